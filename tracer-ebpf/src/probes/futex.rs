//! Threads that wait for others, and wake them. Attached only while a process runs that is followed for it.
//!
//! Hooks: `syscalls:sys_enter_futex (uaddr, op, val, ...)` and `sys_exit_futex` (`ret` at 16). Of its operations
//! those that libc's semaphores, conditions and locks are made of. And `sys_exit_clock_nanosleep` (and `nanosleep`).

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::cause::{self, Wait};
use crate::kernel::Arguments;

/// `FUTEX_WAIT`, `FUTEX_WAKE`, `FUTEX_WAIT_BITSET`, `FUTEX_WAKE_BITSET`.
const WAIT: u32 = 0;
const WAKE: u32 = 1;
const WAIT_BITSET: u32 = 9;
const WAKE_BITSET: u32 = 10;
/// `FUTEX_CMD_MASK`: without `FUTEX_PRIVATE_FLAG` and `FUTEX_CLOCK_REALTIME`.
const COMMAND: u32 = 0x7f;
/// Value of a lock of glibc's that others wait for.
const CONTENDED: u32 = 2;
/// A condition of musl's is waited for with the same operation and value; what is waited at lies on the waiter's stack.
const NEAR: u64 = 4096;

/// An argument of the call that is entered.
#[inline(always)]
fn argument(ctx: &TracePointContext, n: usize) -> u64 {
    // SAFETY: the context of such a tracepoint has the arguments from offset 16 on; volatile so that loads are
    // not merged.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().add(16 + n * 8).cast::<u64>()) }
}

/// See the module's text. Before the wake: whoever is woken may be there sooner than the waker is back.
#[tracepoint]
pub fn sys_enter_futex(ctx: TracePointContext) -> u32 {
    match argument(&ctx, 1) as u32 & COMMAND {
        WAKE | WAKE_BITSET => cause::wakes_at(argument(&ctx, 0), argument(&ctx, 2) as u32),
        WAIT | WAIT_BITSET => cause::waits_at(argument(&ctx, 0)),
        _ => {}
    }
    0
}

/// See the module's text.
#[tracepoint]
pub fn sys_exit_futex(ctx: TracePointContext) -> u32 {
    let _ = left(&ctx);
    0
}

#[inline(always)]
fn left(ctx: &TracePointContext) -> Option<()> {
    if !cause::waits_are_followed() {
        return None;
    }
    let arguments = Arguments::of_current()?;
    let [address, operation, value, _] = arguments.four()?;
    let result = argument(ctx, 0) as i64;
    match operation as u32 & COMMAND {
        WAKE | WAKE_BITSET if result == 0 => cause::woke_nobody(address),
        command @ (WAIT | WAIT_BITSET) => {
            let is_lock = command == WAIT
                && value as u32 == CONTENDED
                && arguments
                    .stack()
                    .is_some_and(|stack| address.wrapping_sub(stack) > NEAR);
            let wait = if is_lock { Wait::Lock } else { Wait::Any };
            cause::waited_at(address, result, wait);
        }
        _ => {}
    }
    None
}

/// See the module's text.
#[tracepoint]
pub fn sys_exit_clock_nanosleep(_ctx: TracePointContext) -> u32 {
    cause::goes_on_later(true);
    0
}
