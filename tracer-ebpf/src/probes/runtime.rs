//! What runtimes do inside of a process that no system call shows.
//!
//! Uprobes, attached to a program when a process runs it:
//! - Node (exported C++ symbols): `node::Environment::RunTimers` and `CheckImmediate`, in which
//!   callbacks of any request run within a turn of the loop.
//! - Go (its function table; register ABI since 1.17): `runtime.newproc1(fn, callergp, ...)` makes a
//!   goroutine, which `runtime.runqput(pp, gp, next)` then makes runnable on the same thread;
//!   `runtime.ready(gp, ...)` wakes one; `runtime.goexit1()` ends the current one.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use crate::cause;

/// See the module's text.
#[uprobe]
pub fn node_other_work(_ctx: ProbeContext) -> u32 {
    cause::forget();
    0
}
