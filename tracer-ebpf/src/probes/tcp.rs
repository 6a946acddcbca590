//! TCP connections from the kernel's own state machine, whoever ends them and however.
//!
//! Hook: `tp_btf/inet_sock_set_state (const struct sock *sk, const int oldstate, const int newstate)`,
//! since 4.16 (kernel commit 563e0bb0dc74). It runs in the process's context or in softirq.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use tracer_common::abi::{direction, end, role, setting};

use crate::cause::{self, Opener};
use crate::connection::{self, Origin};
use crate::emit::{self, Ended};
use crate::kernel;
use crate::maps::read_setting;
use crate::propagate;

const TCP_ESTABLISHED: u64 = 1;
const TCP_SYN_SENT: u64 = 2;
const TCP_SYN_RECV: u64 = 3;
const TCP_FIN_WAIT1: u64 = 4;
const TCP_CLOSE: u64 = 7;
const TCP_LAST_ACK: u64 = 9;

/// See the module's text.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    // Read through the helper, the first argument is a number; loaded directly it is a typed pointer,
    // which could neither be hashed nor be a map key.
    if let Some(sock) = kernel::read::<u64>(ctx.as_ptr() as u64) {
        let old = ctx.arg::<i32>(1) as u32 as u64;
        let new = ctx.arg::<i32>(2) as u32 as u64;
        trace_log!(&ctx, "sock {:x}: state {} -> {}", sock, old, new);
        let _ = changed(sock, old, new);
    }
    0
}

#[inline(always)]
fn changed(sock: u64, old: u64, new: u64) -> Option<()> {
    // SAFETY: the helper has no preconditions.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    if new == TCP_ESTABLISHED {
        let role = match old {
            TCP_SYN_SENT => role::CLIENT,
            TCP_SYN_RECV => role::SERVER,
            _ => return None,
        };
        // Its first bytes may go by unseen: it is joined when it speaks.
        if read_setting(setting::POLICY_ACTIVE) & setting::CLOSED != 0 || !kernel::is_tcp(sock) {
            return None;
        }
        let family = kernel::family(sock);
        let origin = Origin {
            family,
            role,
            from_start: true,
            sequences: kernel::sequences(sock, family),
            opener: if role == role::CLIENT {
                cause::take_opener(sock)
            } else {
                Opener::NOBODY
            },
        };
        connection::insert(sock, &origin, time_ns, 0);
        return None;
    }
    if new == TCP_SYN_SENT {
        cause::opening(sock);
        propagate::opening(sock);
        return None;
    }
    if new == TCP_CLOSE {
        propagate::closed(sock);
    }
    let cause = match new {
        TCP_FIN_WAIT1 | TCP_LAST_ACK => end::WRITE_SHUTDOWN,
        TCP_CLOSE => end::CLOSED,
        _ => return None,
    };
    let connection = connection::find(sock)?;
    cause::closed(connection);
    // Whether the process made the change cannot be told here (softirq runs in anybody's context).
    let id = bpf_get_current_pid_tgid();
    let ended = Ended {
        cause,
        direction: direction::WRITE,
        errno: kernel::error(sock),
        time_ns,
        tgid: (id >> 32) as u32,
        tid: id as u32,
    };
    emit::end(connection, &ended);
    if let Some(session) = connection.session() {
        cause::closed(session);
        emit::end(session, &ended);
        if cause == end::CLOSED && session.announced == 0 {
            connection::remove(connection.other);
        }
    }
    // After an orderly end the process may still read what has arrived: the entry of a connection
    // that user space knows stays until it says so (or the address is used again).
    if cause == end::CLOSED && connection.announced == 0 {
        connection::remove(sock);
    }
    None
}
