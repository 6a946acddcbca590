//! Waits for several descriptors: where a turn of an event loop ends and the next one begins. And
//! connections that are accepted.
//!
//! Hooks: `syscalls:sys_exit_epoll_wait` (and `epoll_pwait`, `epoll_pwait2`), `sys_exit_poll` (and
//! `ppoll`), `sys_exit_select` (and `pselect6`), `sys_exit_accept4` (and `accept`); or the functions of these calls
//! ([`crate::hook`]).

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::cause;
use crate::hook;
use crate::kernel::Arguments;

/// See the module's text.
#[tracepoint]
pub fn sys_exit_epoll_wait(_ctx: TracePointContext) -> u32 {
    cause::waited(true);
    0
}

/// See the module's text. Waiting for one descriptor is how timeouts of blocking calls are made.
#[tracepoint]
pub fn sys_exit_poll(_ctx: TracePointContext) -> u32 {
    let count = Arguments::of_current().and_then(|arguments| arguments.second());
    if count.is_none_or(|count| count as u32 > 1) {
        cause::waited(false);
    }
    0
}

/// See the module's text.
#[tracepoint]
pub fn sys_exit_select(_ctx: TracePointContext) -> u32 {
    cause::waited(false);
    0
}

/// See the module's text.
#[tracepoint]
pub fn sys_exit_accept4(ctx: TracePointContext) -> u32 {
    if hook::result(&ctx) >= 0 {
        cause::accepted();
    }
    0
}
