//! Waits for several descriptors: where a turn of an event loop ends and the next one begins. And
//! connections that are accepted.
//!
//! Hooks: `syscalls:sys_exit_epoll_wait` (and `epoll_pwait`, `epoll_pwait2`), `sys_exit_poll` (and
//! `ppoll`), `sys_exit_select` (and `pselect6`), `sys_exit_accept4` (and `accept`); or the functions of these calls
//! ([`crate::hook`]); both for a while, since what they say may be said twice.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use tracer_common::abi::setting;

use crate::cause;
use crate::hook;
use crate::kernel::Arguments;
use crate::maps::read_setting;

/// See the module's text.
#[tracepoint]
pub fn sys_exit_epoll_wait(ctx: TracePointContext) -> u32 {
    hook::ended();
    if is_followed() {
        cause::goes_on_later(hook::result(&ctx) == 0);
    }
    cause::waited(true);
    0
}

/// See the module's text. Waiting for one descriptor is how timeouts of blocking calls are made.
#[tracepoint]
pub fn sys_exit_poll(ctx: TracePointContext) -> u32 {
    hook::ended();
    slept(&ctx);
    let count = Arguments::of_current().and_then(|arguments| arguments.second());
    if count.is_none_or(|count| count as u32 > 1) {
        cause::waited(false);
    }
    0
}

/// See the module's text.
#[tracepoint]
pub fn sys_exit_select(ctx: TracePointContext) -> u32 {
    hook::ended();
    slept(&ctx);
    cause::waited(false);
    0
}

/// True while anybody asks for whom threads wait.
#[inline(always)]
fn is_followed() -> bool {
    read_setting(setting::WAKES) != 0
}

/// A wait for descriptors may have ended by its timeout.
#[inline(always)]
fn slept(ctx: &TracePointContext) {
    if is_followed() && hook::result(ctx) == 0 {
        cause::goes_on_later(true);
    }
}

/// See the module's text.
#[tracepoint]
pub fn sys_exit_accept4(ctx: TracePointContext) -> u32 {
    hook::ended();
    if hook::result(&ctx) >= 0 {
        cause::accepted();
    }
    0
}
