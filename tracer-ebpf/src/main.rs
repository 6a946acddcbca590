//! The kernel side: ships bytes, positions, socket identity and time; does not parse protocols.
//!
//! A data syscall is seen once, at its exit: the tracepoint program ([`probes::io`]) finds the
//! kernel's socket behind the fd, looks its connection up and, when there is something to ship,
//! tail-calls [`probes::window`], which walks over the call's bytes a window at a time. Everything
//! about a connection hangs on its `struct sock`, so that dup, fork, fd passing and reuse of fds,
//! pids and ports need no tracking at all.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and values of maps are borrowed: a copy would go through the small stack"
)]
#![allow(
    clippy::missing_safety_doc,
    reason = "each unsafe block says why it is sound"
)]

/// Debug output through aya-log, compiled in by the feature `log` only.
macro_rules! trace_log {
    ($ctx:expr, $($arg:tt)*) => {
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!($ctx, $($arg)*);
    };
}

mod cause;
mod connection;
mod emit;
mod hello;
mod hook;
mod kernel;
mod maps;
mod memory;
mod probes;
mod propagate;
mod tls;
mod way;

/// A reachable panic is an endless loop, which the verifier refuses: none can hide.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The verifier allows the GPL-only helpers used here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
