//! Where a program of system calls runs: at a tracepoint, or at the function that does the call.
//!
//! The code is the same, and the object holds it once. For programs of functions user space loads it a second time,
//! with the names of this file exchanged (`probes/object.rs`): [`AT_TRACEPOINT`] becomes [`AT_FUNCTION`], and the map of
//! programs that are tail-called becomes the other one. The verifier does not go where the constant does not lead.
//!
//! Programs at the end of a function are left out for calls that began before they were attached, and for those in which a thread
//! sleeps while any program comes to the function or goes from it. While [`setting::HANDOVER`] is set there are tracepoints
//! too, for calls whose functions are concerned. The function's program comes first, tells, and leaves a mark
//! on its CPU; the tracepoint of the same call finds it and is silent, or tells. Between the two a thread
//! does not lose its CPU on kernels that have this tier.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::programs::TracePointContext;
use aya_ebpf::{EbpfContext, Global};
use tracer_common::abi::{left_behind, setting};

use crate::kernel::{self, Arguments, field};
use crate::maps::{LEFT_BEHIND, TOLD, Told, read_setting};

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

/// Which system call it is: `__syscall_nr` at 8 of all tracepoints of single calls; of a function the registers tell.
#[inline(always)]
pub fn number(ctx: &TracePointContext, arguments: &Arguments) -> Option<u32> {
    if at_function() {
        return arguments.number();
    }
    let number: u64;
    // In assembler, so that this is read where it is there alone.
    // SAFETY: the context of a tracepoint is longer.
    unsafe {
        core::arch::asm!(
            "{v} = *(u32 *)({p} + 8)",
            v = out(reg) number,
            p = in(reg) ctx.as_ptr(),
            options(readonly, nostack, preserves_flags),
        );
    }
    Some(number as u32)
}

/// At the end of a call that moves bytes: whether this program is the one that tells it. `call` is a number of its own for each
/// kind of call.
#[inline(always)]
pub fn tells(call: u32) -> bool {
    if HANDS_OVER.load() == 0 {
        return true;
    }
    if read_setting(setting::HANDOVER) == 0 {
        return at_function();
    }
    let Some(mark) = TOLD.get_ptr_mut(0) else {
        return at_function();
    };
    let tid = bpf_get_current_pid_tgid() as u32;
    let task = kernel::task();
    // How often the thread has lost its CPU tells a mark that nobody found from one of this call.
    let now = Told {
        tid,
        call,
        waits: field(task, &kernel::TASK_WAITS).unwrap_or(0),
        losses: field(task, &kernel::TASK_LOSSES).unwrap_or(0),
    };
    // SAFETY: the slot is this CPU's, and nobody else runs on it until this program returns.
    let mark = unsafe { &mut *mark };
    if at_function() {
        *mark = now;
    } else {
        let told = mark.tid == now.tid
            && mark.call == now.call
            && mark.waits == now.waits
            && mark.losses == now.losses;
        mark.tid = 0;
        if told {
            return false;
        }
    }
    is_out(tid);
    true
}

/// At the end of a call that moves none, which may be told by both.
#[inline(always)]
pub fn ended() {
    if HANDS_OVER.load() != 0 && read_setting(setting::HANDOVER) != 0 {
        is_out(bpf_get_current_pid_tgid() as u32);
    }
}

/// A thread is in no call any more that was written down.
#[inline(always)]
fn is_out(tid: u32) {
    if was_in(tid) == Some(left_behind::CALL) {
        let _ = LEFT_BEHIND.remove(&tid);
    }
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
