//! Streams of HTTP/2 that this end begins: for whom.
//!
//! In: who writes to which connection; what a writer is about to send for others ([`made`]). Out: the cause of a stream
//! that is begun, told ahead of its bytes ([`emit::caused`]).

use tracer_common::abi::{cause_method as method, kind_of_process as kind};

use super::Cause;
use super::actor::{actor, flag, kind_of, thread};
use super::goroutine;
use super::outgoing::used;
use super::stream::{Begun, Stream};
use super::thread::created_thread_calls;
use super::turn::handed_key;
use crate::connection::Connection;
use crate::emit;
use crate::maps::{Call, DUE, Handed, STREAMS};

/// Value of `DUE`: for whom a stream is made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Due {
    pub cause: Cause,
    pub method: u32,
    pub reserved: u32,
}

/// Whose connection it is to write to, where that says for whom.
#[inline(always)]
pub(super) fn binds(tid: u32, connection: &mut Connection, kind: u32) {
    let place = bound(tid, connection, kind);
    if connection.place != place {
        connection.place = place;
    }
}

/// What [`Connection::place`] is once this thread has written.
#[inline(always)]
fn bound(tid: u32, connection: &Connection, kind: u32) -> u64 {
    match kind & kind::MASK {
        // One session of Node's writes to it, from the first byte on.
        kind::CALLBACKS => {
            if connection.place == 0
                && let Some(actor) = thread(tid)
            {
                return actor.context;
            }
        }
        // What another thread has prepared may be written too, once there are two.
        kind::BLOCKING | kind::THREADS => {
            let writer = tid as u64;
            if connection.place == 0 && connection.from_start != 0 {
                return writer;
            } else if connection.place != writer {
                return u64::MAX;
            }
        }
        _ => {}
    }
    connection.place
}

/// A stream is begun: tells for whom.
#[inline(always)]
pub(super) fn begins(call: &Call, connection: &Connection, begun: *const Begun, id: u32) {
    // SAFETY: the caller's slot of map memory.
    let (streams, remembers) = unsafe {
        (
            (&raw const (*begun).streams).read_volatile(),
            (&raw const (*begun).remembers).read_volatile(),
        )
    };
    let (cause, found) = streams.of(call.tgid, id);
    if found == method::NONE {
        return;
    }
    let own = Cause {
        connection: connection.id,
        key: id as u64,
    };
    if remembers != 0 {
        let stream = Stream {
            cause,
            socket: call.socket,
        };
        let _ = STREAMS.insert(&own, &stream, 0);
    }
    emit::caused(call.time_ns, &own, &cause, found);
}

/// What a stream is that the thread is about to write, or has written.
#[inline(always)]
pub fn ahead(connection: &mut Connection, tgid: u32, tid: u32, id: u32) -> (Cause, u32) {
    let kind = kind_of(tgid);
    binds(tid, connection, kind);
    streams_by(connection, kind, tgid, tid).of(tgid, id)
}

/// What streams are for that the thread writes, which [`binds`] has seen.
#[inline(always)]
pub(super) fn streams_by(connection: &Connection, kind: u32, tgid: u32, tid: u32) -> Streams {
    streams_for(connection, connection.place, kind, tgid, tid)
}

/// What streams are for that one write begins.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Streams {
    /// Who makes them, each for a cause of its own; 0: they have this one.
    pub maker: u64,
    pub cause: Cause,
    pub method: u32,
    pub reserved: u32,
}

/// What streams will be found to be for that the thread is about to write to this connection.
#[inline(always)]
pub fn streams_ahead(connection: &Connection, tgid: u32, tid: u32) -> Streams {
    let kind = kind_of(tgid);
    streams_for(connection, bound(tid, connection, kind), kind, tgid, tid)
}

/// What one of them is for; see [`Streams`].
#[inline(always)]
pub fn written(maker: u64, cause: Cause, method: u32, tgid: u32, id: u32) -> (Cause, u32) {
    let streams = Streams {
        maker,
        cause,
        method,
        reserved: 0,
    };
    streams.of(tgid, id)
}

impl Streams {
    /// True if whatever is begun is for nobody.
    #[inline(always)]
    pub(super) fn is_nobody(&self) -> bool {
        self.maker == 0 && (self.cause.connection == 0 || self.method == method::NONE)
    }

    /// What one of them is for, if that is open.
    #[inline(always)]
    pub(super) fn of(&self, tgid: u32, id: u32) -> (Cause, u32) {
        let (cause, method) = if self.maker == 0 {
            (self.cause, self.method)
        } else {
            due(tgid, self.maker, id)
        };
        if cause.is_open() {
            (cause, method)
        } else {
            (Cause::NONE, method::NONE)
        }
    }
}

#[inline(always)]
fn streams_for(connection: &Connection, place: u64, kind: u32, tgid: u32, tid: u32) -> Streams {
    let mut streams = Streams {
        maker: 0,
        cause: Cause::NONE,
        method: method::NONE,
        reserved: 0,
    };
    match kind & kind::MASK {
        kind::CALLBACKS if kind & kind::OWN_STREAMS != 0 => {
            // A new connection is written to in a turn of its own.
            if connection.from_start != 0 && connection.write.position == 0 {
                (streams.cause, streams.method) = (connection.call, method::CONNECTION);
            } else if let Some(actor) = thread(tid) {
                (streams.cause, streams.method) = used(actor, kind);
            }
        }
        kind::CALLBACKS => streams.maker = place,
        kind::GO => {
            let Some(actor) = actor(kind, tgid, tid, false) else {
                return streams;
            };
            if actor.flags & flag::SHARED == 0 {
                streams.cause = goroutine::works_for(actor);
                streams.method = actor.method as u32;
            } else {
                streams.maker = actor.owner;
            }
        }
        kind::BLOCKING | kind::THREADS => {
            let Some(actor) = thread(tid) else {
                return streams;
            };
            if place != tid as u64
                || kind & kind::MULTIPLEXED != 0
                || actor.flags & flag::LOOP != 0
                || actor.tgid != tgid
            {
                return streams;
            }
            created_thread_calls(actor, kind, tgid);
            (streams.cause, streams.method) = used(actor, kind);
        }
        _ => {}
    }
    streams
}

#[inline(always)]
fn due(tgid: u32, maker: u64, id: u32) -> (Cause, u32) {
    // SAFETY: the value is only read.
    match unsafe { DUE.get(&due_key(tgid, maker, id)) } {
        Some(due) => (due.cause, due.method),
        None => (Cause::NONE, method::NONE),
    }
}

#[inline(always)]
fn due_key(tgid: u32, maker: u64, id: u32) -> Handed {
    Handed {
        reserved: id,
        ..handed_key(tgid, maker)
    }
}

/// A stream with this number is made by `maker` (a session, or the goroutine that writes for others), for what
/// the caller works for.
#[inline(always)]
pub(super) fn made(tgid: u32, maker: u64, id: u32, cause: Cause, method: u32) {
    let key = due_key(tgid, maker, id);
    if cause.is_open() {
        let due = Due {
            cause,
            method,
            reserved: 0,
        };
        let _ = DUE.insert(&key, &due, 0);
    } else {
        // Of an earlier maker at the same address.
        let _ = DUE.remove(&key);
    }
}
