//! The traces of requests that come in, from their heads; what is called for them goes on with these.
//!
//! Reached by tail call between the window and the head program, for windows in which a request's head
//! begins. A head that is not whole in its window says nothing: calls for it get no context.

use aya_ebpf::macros::{tracepoint, uprobe};
use aya_ebpf::programs::{ProbeContext, TracePointContext};
use tracer_common::abi::direction;
use tracer_common::context::{self, incoming as known};

use super::{Incoming, PROPAGATES, Place, RECEIVED, REQUEST_CONTEXTS};
use crate::cause::Cause;
use crate::connection::{self, Connection, open};
use crate::maps::{HEAD_PROGRAM, Scratch};
use crate::memory::Forgotten;
use crate::probes::deliver::{Bytes, go_on};
use crate::way::{Syscalls, Uprobes, Way};

/// True when a request begins in the window whose trace may be asked for.
#[inline(always)]
pub fn wants_a_look(scratch: &Scratch, connection: &Connection) -> bool {
    PROPAGATES.load() != 0
        && scratch.call.direction == direction::READ as u32
        && scratch.found.is_request != 0
        && connection.open == open::ONE
}

/// See the module's text.
#[tracepoint]
pub fn propagate_context(ctx: TracePointContext) -> u32 {
    let _ = look::<Syscalls>(&ctx);
    0
}

/// The same, reached from uprobes.
#[uprobe]
pub fn propagate_tls_context(ctx: ProbeContext) -> u32 {
    let _ = look::<Uprobes>(&ctx);
    Uprobes::done();
    0
}

#[inline(always)]
fn look<W: Way>(ctx: &W::Context) -> Option<()> {
    let scratch = W::scratch()?;
    let bytes = Bytes::of(scratch);
    let place = Forgotten::new(&mut scratch.context);
    // SAFETY: the scratch buffer is this program's.
    unsafe { context::scan(&bytes, scratch.found.scan, place.pointer()) };
    let connection = connection::find(scratch.call.socket)?;
    // SAFETY: as above.
    let context = unsafe { context::conclude(&bytes, place.pointer()) };
    let mut request = Incoming {
        trace: context.trace,
        state: context.state,
        flags: context.flags,
    };
    if request.state == known::ABSENT {
        let socket = connection.socket(scratch.call.socket);
        if socket == 0 {
            // Whether it came in an option cannot be said.
            request.state = known::UNKNOWN;
        } else if connection.sequences != 0 {
            let place = Place {
                sock: socket,
                place: connection
                    .read_sequence
                    .wrapping_add(connection.open_key as u32),
                is_stream: 0,
            };
            // SAFETY: the value is only read.
            if let Some(received) = unsafe { RECEIVED.get(&place) } {
                request = *received;
            }
        }
    }
    if request.state != known::UNKNOWN {
        let cause = Cause {
            connection: connection.id,
            key: connection.open_key,
        };
        let _ = REQUEST_CONTEXTS.insert(&cause, &request, 0);
    }
    go_on::<W>(ctx, scratch, connection, HEAD_PROGRAM);
    None
}
