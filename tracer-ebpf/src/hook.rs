//! Where a program of system calls runs: at a tracepoint, or at the function that does the call.
//!
//! The code is the same, and the object holds it once. For programs of functions user space loads it a second time,
//! with the names of this file exchanged (`probes/object.rs`): [`AT_TRACEPOINT`] becomes [`AT_FUNCTION`], and the map of
//! programs that are tail-called becomes the other one. The verifier does not go where the constant does not lead.
//!
//! Programs of functions do not see the end of a call that began before they were attached. So while
//! [`setting::HANDOVER`] is set both are there: the function's program comes first and marks what it told, and the
//! tracepoint tells what has no mark.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::programs::TracePointContext;
use aya_ebpf::{EbpfContext, Global};
use tracer_common::abi::{left_behind, setting};

use crate::cause;
use crate::maps::{ENTERED, ENTERED_SLOTS, LEFT_BEHIND, read_setting};

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

/// At the end of a call. False if it was told already.
#[inline(always)]
pub fn is_untold() -> bool {
    if HANDS_OVER.load() == 0 || read_setting(setting::HANDOVER) == 0 {
        return true;
    }
    let tid = bpf_get_current_pid_tgid() as u32;
    let Some(slot) = ENTERED.get_ptr_mut(tid & (ENTERED_SLOTS - 1)) else {
        return true;
    };
    // SAFETY: the pointer is into the map; the mark is this thread's, or another's, which its id tells.
    unsafe {
        let mark = &raw mut (*slot).told;
        if at_function() {
            mark.write_volatile(tid);
        } else if mark.read_volatile() == tid {
            mark.write_volatile(0);
            return false;
        }
    }
    // SAFETY: the value is copied before the map is changed.
    if let Some(was_in) = unsafe { LEFT_BEHIND.get(&tid) }.copied() {
        let _ = LEFT_BEHIND.remove(&tid);
        if was_in == left_behind::EVENTS {
            cause::waits_for_events();
        }
    }
    true
}
