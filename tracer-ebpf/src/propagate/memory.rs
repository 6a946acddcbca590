//! Offers the context of requests whose ciphertext the program moves itself (Node, Python's asyncio): when the library
//! returns from the write of the plaintext, none of it was sent.
//!
//! Reached by tail call between the window and what comes behind it, for calls of libraries that write to sessions whose
//! socket was found by their ClientHello ([`crate::hello`]). The option goes with the first segment from here on; which
//! request it is for says the place in it, so it does not matter whether the ciphertext of this one is in that segment.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_common::abi::{direction, propagated, propagation};

use super::offer::{Request, new_stream};
use super::plan::may_begin;
use super::{FLOWS, Flow, LEAVING, OPTIONS, PROPAGATES, count, setting, state};
use crate::cause;
use crate::connection;
use crate::kernel;
use crate::maps::{FRAMES_PROGRAM, HEAD_PROGRAM, Scratch};
use crate::memory::Forgotten;
use crate::probes::deliver::{Bytes, go_on};
use crate::probes::io::Caller;
use crate::probes::window::action;
use crate::way::{Uprobes, Way};

/// True when a request begins in the window, or may.
#[inline(always)]
pub fn wants_an_offer(scratch: &Scratch) -> bool {
    let begins = (scratch.found.action == action::HEAD && scratch.found.is_request != 0)
        || scratch.found.action == action::FRAMES;
    PROPAGATES.load() != 0
        && begins
        && scratch.unsent != 0
        && scratch.call.direction == direction::WRITE as u32
}

/// See the module's text.
#[uprobe]
pub fn propagate_tls_offer(ctx: ProbeContext) -> u32 {
    let _ = try_offer(&ctx);
    Uprobes::done();
    0
}

#[inline(always)]
fn try_offer(ctx: &ProbeContext) -> Option<()> {
    let scratch = Uprobes::scratch()?;
    if let Some(outcome) = offer(scratch) {
        count(outcome);
    }
    let connection = connection::find(scratch.call.socket)?;
    let next = if scratch.found.action == action::FRAMES {
        FRAMES_PROGRAM
    } else {
        HEAD_PROGRAM
    };
    go_on::<Uprobes>(ctx, scratch, connection, next);
    None
}

/// Returns the outcome if it is not an option that waits to leave.
#[inline(always)]
fn offer(scratch: &mut Scratch) -> Option<u32> {
    let caller = Caller::decided()?;
    if setting(propagation::ACTIVE) == 0 || setting(propagation::OPTIONS) == 0 {
        return None;
    }
    let connection = connection::find(scratch.call.socket)?;
    if !may_begin(connection) {
        return None;
    }
    let sock = connection.other;
    let carrier = connection::find(sock)?;
    let flow = FLOWS.get_ptr_mut(&sock)?;
    // SAFETY: the pointer is into the map.
    let now = unsafe { *flow };
    if carrier.other != scratch.call.socket || now.connection != carrier.id {
        return None;
    }
    if now.state == state::ENROLLED {
        // SAFETY: as above.
        unsafe { (*flow).state = state::PLAIN };
        let _ = LEAVING.push(&sock, 0);
    } else if now.state != state::PLAIN {
        return None;
    }
    let is_stream = scratch.found.action == action::FRAMES;
    let exchange = if is_stream {
        let begin = connection
            .write
            .skip
            .wrapping_add(connection.write.unframed as u64);
        let filled = scratch.found.len;
        let bytes = Bytes::of(scratch);
        // SAFETY: as above.
        let stream = new_stream(&bytes, begin, filled, unsafe { &mut (*flow).stream });
        if stream == 0 {
            return None;
        }
        stream as u64
    } else {
        connection.write.position
    };
    let begin: u32 = kernel::field(sock, &kernel::TCP_WRITE_SEQ)?;
    // SAFETY: the value is only read.
    if let Some(before) = unsafe { OPTIONS.get(&sock) }
        && before.armed != 0
        && before.stored == 0
        && before.begin == begin
    {
        // Another request waits for the same segment.
        return Some(propagated::CROWDED);
    }
    let Flow { added, .. } = now;
    let request = Request {
        sock,
        begin,
        added,
        exchange,
        is_stream,
    };
    if request.is_offered(connection) {
        return None;
    }
    let (cause, method) = if is_stream {
        cause::stream_ahead(connection, caller.tgid, caller.tid, exchange as u32)
    } else {
        (scratch.call.cause, scratch.call.cause_method)
    };
    let ids = Forgotten::new(&mut scratch.ids).pointer().cast::<u64>();
    // SAFETY: words of the scratch buffer, which is this program's.
    unsafe { request.offer(connection, cause, method, ids) }
}
