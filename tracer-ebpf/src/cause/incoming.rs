//! Requests that come in: whoever reads one serves it, where the way its program runs says so.

use aya_ebpf::helpers::bpf_get_current_comm;
use tracer_common::abi::{cause_method as method, direction, kind_of_process as kind, role};

use super::Cause;
use super::actor::{actor, add_to_kind, flag, kind_of};
use super::crowd::{begins, ends};
use super::outgoing::goes_out;
use crate::connection::{Connection, mark, open, verdict};
use crate::maps::Call;

/// A request begins with the next byte of the call.
#[inline(always)]
pub fn request(call: &mut Call, connection: &mut Connection) {
    if call.direction == direction::READ as u32 {
        came_in(call, connection);
    } else {
        goes_out(call, connection);
    }
}

#[inline(always)]
fn came_in(call: &Call, connection: &mut Connection) {
    let cause = Cause {
        connection: connection.id,
        key: connection.read.position,
    };
    let before = Cause {
        connection: connection.id,
        key: connection.open_key,
    };
    if connection.open != open::NOTHING {
        before.end();
    }
    if connection.marks & mark::COUNTED != 0 {
        connection.marks &= !mark::COUNTED;
        ends(&before);
    }
    let kind = kind_of(call.tgid);
    if begins(&cause, call.tgid, kind) {
        connection.marks |= mark::COUNTED;
    }
    connection.open_key = cause.key;
    if connection.outstanding > 0 {
        connection.open = open::SEVERAL;
    } else {
        connection.open = open::ONE;
        cause.begin();
    }
    is_read_by(call, connection, kind);
}

/// A request's first bytes came, too few to be sure that they are one.
#[inline(always)]
pub fn perhaps_request(call: &Call, connection: &mut Connection) {
    let serves = connection.requests == direction::READ
        && (connection.role == role::SERVER || connection.verdict == verdict::HTTP1);
    if serves && call.direction == direction::READ as u32 {
        came_in(call, connection);
    }
}

/// More of a request's head came: whoever reads it serves it, and not who read the first byte to see
/// whether the client is still there (Go's server).
#[inline(always)]
pub fn request_goes_on(call: &Call, connection: &Connection) {
    if call.direction == direction::READ as u32
        && connection.requests == direction::READ
        && connection.open == open::ONE
    {
        is_read_by(call, connection, kind_of(call.tgid));
    }
}

/// Whoever makes the call, in a process of this kind, reads the open request of the connection.
#[inline(always)]
fn is_read_by(call: &Call, connection: &Connection, kind: u32) {
    let cause = Cause {
        connection: connection.id,
        key: connection.open_key,
    };
    let several = connection.open == open::SEVERAL;
    if kind == kind::NONE {
        return;
    }
    if kind & kind::SERVES == 0 {
        add_to_kind(call.tgid, kind::SERVES);
    }
    let Some(actor) = actor(kind, call.tgid, call.tid, true) else {
        return;
    };
    // Requests that it read before and that wait for their answers, of other connections. Event loops always may.
    let multiplexes = !matches!(
        kind & kind::MASK,
        kind::CALLBACKS | kind::TASKS | kind::TOKIO
    ) && actor.serving.connection != connection.id
        && actor.serving.is_open();
    if kind & kind::MASK == kind::TOKIO
        && actor.serving.connection != 0
        && actor.serving.connection != connection.id
    {
        actor.flags |= flag::SHARED;
    }
    actor.kind = kind as u8;
    actor.serving = cause;
    actor.cause = Cause::NONE;
    actor.flags &= !(flag::CREATED | flag::CALLED);
    if several {
        return;
    }
    let found = match kind & kind::MASK {
        kind::BLOCKING | kind::THREADS => {
            if kind & kind::MULTIPLEXED != 0 {
                return;
            }
            if multiplexes || actor.flags & flag::LOOP != 0 {
                add_to_kind(call.tgid, kind::MULTIPLEXED);
                return;
            }
            if call.blocking == 0 && (kind & kind::MASK == kind::BLOCKING || is_carrier()) {
                return;
            }
            method::SAME_THREAD
        }
        kind::CALLBACKS => method::TURN,
        kind::TASKS => {
            actor.flags |= flag::READS;
            method::TURN
        }
        kind::TOKIO => {
            if actor.flags & flag::SHARED != 0 {
                return;
            }
            method::TASK
        }
        kind::GO if !multiplexes => method::GOROUTINE,
        _ => return,
    };
    actor.cause = cause;
    actor.method = found as u8;
}

/// True for the threads that carry Java's virtual ones.
#[inline(always)]
fn is_carrier() -> bool {
    bpf_get_current_comm().is_ok_and(|name| {
        u64::from_le_bytes([
            name[0], name[1], name[2], name[3], name[4], name[5], name[6], name[7],
        ]) == u64::from_le_bytes(*b"ForkJoin")
    })
}
