//! Ends of unix connections, which have no state tracepoint.
//!
//! Hooks: `syscalls:sys_enter_close (fd)` and `sys_enter_shutdown (fd, how)`, or the functions ([`crate::hook`]); at entry, while the
//! descriptor still leads to the socket. They look only once a unix connection spoke HTTP.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use tracer_common::abi::{direction, end};

use super::io::Caller;
use crate::cause;
use crate::connection;
use crate::emit::{self, Ended};
use crate::hook;
use crate::kernel::{self, AF_UNIX, Arguments};
use crate::maps::UNIX_SEEN;

/// See the module's text.
#[tracepoint]
pub fn sys_enter_close(ctx: TracePointContext) -> u32 {
    let _ = ends(&ctx, end::CLOSED);
    0
}

/// See the module's text.
#[tracepoint]
pub fn sys_enter_shutdown(ctx: TracePointContext) -> u32 {
    const SHUT_RD: u64 = 0;
    if argument(&ctx, 1) != Some(SHUT_RD) {
        let _ = ends(&ctx, end::WRITE_SHUTDOWN);
    }
    0
}

#[inline(always)]
fn argument(ctx: &TracePointContext, n: usize) -> Option<u64> {
    if hook::at_function() {
        let arguments = Arguments::of_current()?;
        return if n == 0 {
            arguments.first()
        } else {
            arguments.second()
        };
    }
    // SAFETY: the context of a sys_enter tracepoint has six arguments from offset 16 on; volatile
    // keeps LLVM from merging the loads, which the verifier refuses.
    Some(unsafe { core::ptr::read_volatile(ctx.as_ptr().add(16 + n * 8).cast::<u64>()) })
}

#[inline(always)]
fn ends(ctx: &TracePointContext, cause: u8) -> Option<()> {
    if UNIX_SEEN.get(0).is_none_or(|seen| *seen == 0) {
        return None;
    }
    let file = kernel::socket_of(argument(ctx, 0)? as i32)?;
    if kernel::family(file.sock) != AF_UNIX {
        return None;
    }
    if cause == end::CLOSED && !file.is_last_reference() {
        return None;
    }
    let connection = connection::find(file.sock)?;
    cause::closed(connection);
    if let Some(Caller { tgid, tid }) = Caller::traced() {
        // SAFETY: the helper has no preconditions.
        let time_ns = unsafe { bpf_ktime_get_boot_ns() };
        let direction = direction::WRITE;
        emit::end(
            connection,
            &Ended {
                cause,
                direction,
                errno: 0,
                time_ns,
                tgid,
                tid,
            },
        );
    }
    if cause == end::CLOSED {
        connection::remove(file.sock);
    }
    None
}
