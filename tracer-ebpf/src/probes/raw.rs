//! All system calls by two hooks, for kernels whose hooks of single calls can be preempted.
//!
//! Hooks: the events `raw_syscalls:sys_enter` and `sys_exit` (the call's number at 8; `ret` at 16 of the latter).
//! Their contexts are laid out like those of `syscalls:sys_*_NAME`, so the programs of these are gone to by number.
//!
//! Since 7.x the kernel runs programs of `syscalls:*` with preemption enabled (`trace_call_bpf_faultable`). A thread
//! that is preempted in the midst of one has the kernel leave that program out for all other threads of the CPU,
//! and those of other calls would find its per-CPU buffers in use. Programs of `raw_syscalls:*` run with preemption
//! disabled, as all did before. The price is some 300 instructions for each system call that nobody looks at.

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use tracer_common::abi::wanted;

use crate::kernel;
use crate::maps::{ENTERS, EXITS, WANTED};

/// See the module's text.
#[tracepoint]
pub fn raw_sys_exit(ctx: TracePointContext) -> u32 {
    if let Some(number) = number(&ctx, wanted::EXIT) {
        // SAFETY: all indexes hold programs of this type, and the contexts are alike.
        unsafe { EXITS.tail_call(&ctx, number) };
    }
    0
}

/// See the module's text; attached only where trace context is written.
#[tracepoint]
pub fn raw_sys_enter(ctx: TracePointContext) -> u32 {
    if let Some(number) = number(&ctx, wanted::ENTER) {
        // SAFETY: as above.
        unsafe { ENTERS.tail_call(&ctx, number) };
    }
    0
}

/// The call's number, if there is a program for it.
#[inline(always)]
fn number(ctx: &TracePointContext, what: u32) -> Option<u32> {
    // SAFETY: the context is at least 24 bytes; volatile keeps LLVM from merging it with a neighbour, which the
    // verifier refuses.
    let number = unsafe { core::ptr::read_volatile(ctx.as_ptr().add(8).cast::<u64>()) };
    if number > u32::MAX as u64 || WANTED.get(number as u32)? & what == 0 {
        return None;
    }
    // Calls of 32 bits have other numbers. The events of single calls leave them out.
    if !kernel::has(&kernel::TASK_COMPAT) {
        return None;
    }
    let state: u32 = kernel::field(kernel::task(), &kernel::TASK_COMPAT)?;
    (state & kernel::COMPAT.load() == 0).then_some(number as u32)
}
