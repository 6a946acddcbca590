//! Which sockets' messages are looked at.
//!
//! Hook: sock_ops of the root cgroup, `BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB`: right behind the change of
//! state that made the connection's entry (`tcp_finish_connect`). The socket's address in the context
//! is there since 5.6 (kernel commit 1314ef561102).

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use tracer_common::abi::{propagation, role};

use super::{FLOWS, SOCKETS, number, setting, state};
use crate::connection::{self, verdict};

const ACTIVE_ESTABLISHED: u32 = 4;

/// See the module's text.
#[sock_ops]
pub fn propagate_connected(ctx: SockOpsContext) -> u32 {
    let _ = connected(&ctx);
    1
}

#[inline(always)]
fn connected(ctx: &SockOpsContext) -> Option<()> {
    // SAFETY: fields of the context; volatile keeps loads of neighbours from being merged.
    let op = unsafe { (&raw const (*ctx.ops).op).read_volatile() };
    if op != ACTIVE_ESTABLISHED {
        return None;
    }
    // SAFETY: as above.
    let sock = number(unsafe { (&raw const (*ctx.ops).__bindgen_anon_2.sk).read_volatile() });
    let flow = FLOWS.get_ptr_mut(&sock)?;
    // SAFETY: the pointer is into the map.
    if unsafe { (*flow).state } != state::OPENING {
        return None;
    }
    let connection = connection::find(sock)?;
    if connection.role != role::CLIENT || connection.verdict == verdict::IGNORED {
        return None;
    }
    if setting(propagation::HEADERS) == 0 {
        // SAFETY: the pointer is into the map; nobody else writes before the connection is told of.
        unsafe {
            (*flow).connection = connection.id;
            (*flow).state = state::PLAIN;
        }
        return None;
    }
    let mut key = sock;
    // SAFETY: the context is this program's; the key lives until the helper returns.
    let entered = unsafe {
        aya_ebpf::helpers::bpf_sock_hash_update(
            ctx.ops,
            core::ptr::addr_of!(SOCKETS) as *mut _,
            (&raw mut key).cast(),
            BPF_NOEXIST as u64,
        )
    };
    if entered == 0 {
        // SAFETY: the pointer is into the map; nobody else writes before the connection is told of.
        unsafe {
            (*flow).connection = connection.id;
            (*flow).state = state::ENROLLED;
        }
    }
    None
}
