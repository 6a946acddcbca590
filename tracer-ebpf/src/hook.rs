//! Where a program of system calls runs: at a tracepoint, or at the function that does the call.
//!
//! The code is the same, and the object holds it once. For programs of functions user space loads it a second time,
//! with the names of this file exchanged (`probes/object.rs`): [`AT_TRACEPOINT`] becomes [`AT_FUNCTION`], and the map of
//! programs that are tail-called becomes the other one. The verifier does not go where the constant does not lead.
//!
//! Programs of functions do not see the end of a call that began before they were attached. So while
//! [`setting::HANDOVER`] is set both are there, and user space has written down who was in a call. The function's
//! program comes first, tells, and takes its thread off that list, because nothing older can come from it then. The
//! tracepoint tells for threads that are still on it.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::programs::TracePointContext;
use aya_ebpf::{EbpfContext, Global};
use tracer_common::abi::{left_behind, setting};

use crate::maps::{LEFT_BEHIND, read_setting};

/// What programs ask which of the two they are; of tracepoints this one. Never set by user space.
#[unsafe(no_mangle)]
pub static AT_TRACEPOINT: Global<u32> = Global::new(0);
/// Of functions this one.
#[unsafe(no_mangle)]
pub static AT_FUNCTION: Global<u32> = Global::new(1);
/// 1 when there are programs at functions.
#[unsafe(no_mangle)]
pub static HANDS_OVER: Global<u32> = Global::new(0);

/// Whether this program runs at a function.
#[inline(always)]
pub fn at_function() -> bool {
    AT_TRACEPOINT.load() != 0
}

/// What the system call returns: `ret` at 16 of a `sys_exit` tracepoint; behind the only argument of a function that
/// does a system call, `long (const struct pt_regs *)`.
#[inline(always)]
pub fn result(ctx: &TracePointContext) -> i64 {
    let at = ctx.as_ptr();
    let value;
    // In assembler, so that LLVM neither merges reads with their neighbours nor computes the place first: the
    // verifier refuses both.
    // SAFETY: both contexts are longer than that.
    unsafe {
        if at_function() {
            core::arch::asm!(
                "{v} = *(u64 *)({p} + 8)",
                v = out(reg) value,
                p = in(reg) at,
                options(readonly, nostack, preserves_flags),
            );
        } else {
            core::arch::asm!(
                "{v} = *(u64 *)({p} + 16)",
                v = out(reg) value,
                p = in(reg) at,
                options(readonly, nostack, preserves_flags),
            );
        }
    }
    value
}

/// Which system call a tracepoint of single calls is for: `__syscall_nr` at 8 of all of them.
#[inline(always)]
pub fn number(ctx: &TracePointContext) -> u32 {
    // SAFETY: the context is longer; volatile, so that the read is not made wider.
    unsafe { ctx.as_ptr().cast::<u32>().add(2).read_volatile() }
}

/// At the end of a call: whether this program is the one that tells it.
#[inline(always)]
pub fn tells() -> bool {
    if HANDS_OVER.load() == 0 {
        return true;
    }
    if read_setting(setting::HANDOVER) == 0 {
        return at_function();
    }
    let tid = bpf_get_current_pid_tgid() as u32;
    let was_in_call = was_in(tid) == Some(left_behind::DATA);
    if was_in_call {
        let _ = LEFT_BEHIND.remove(&tid);
    }
    at_function() || was_in_call
}

/// Whether a thread, of which nothing was seen so far, waited for events when the programs of functions came: the end of that
/// wait is the one end of a wait that they do not see.
#[inline(always)]
pub fn waits_for_events(tid: u32) -> bool {
    HANDS_OVER.load() != 0 && was_in(tid) == Some(left_behind::EVENTS)
}

/// The current thread ended; another one may get its id.
#[inline(always)]
pub fn thread_ended() {
    if HANDS_OVER.load() != 0 {
        let tid = bpf_get_current_pid_tgid() as u32;
        let _ = LEFT_BEHIND.remove(&tid);
    }
}

#[inline(always)]
fn was_in(tid: u32) -> Option<u32> {
    // SAFETY: the value is copied before the map is changed.
    unsafe { LEFT_BEHIND.get(&tid) }.copied()
}
