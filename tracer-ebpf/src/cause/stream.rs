//! Streams of HTTP/2: which requests they bring, and who works for them.
//!
//! In: noted frames ([`super::noted`]) of what calls read and write. Out: which streams are open, whom their readers work for, and
//! which ones are begun ([`super::begun`] tells for whom), since one call may write requests of many exchanges.
//!
//! An exchange is named by its connection and its stream ([`Cause::key`]), and open until the last frame of its
//! answer was written, either side gave it up, or its connection ended. Who reads the frames of one stream
//! alone works for it; with several in one call it takes the runtime's word ([`crate::probes::runtime`]), or there is no cause.
//!
//! It cannot see which end of a connection asks, where the connection was there before the agent, until one
//! stream was seen in both directions.

use tracer_common::abi::{
    cause_method as method, direction, drop_reason, kind_of_process as kind, role,
};
use tracer_common::http2::HEADERS;

use super::Cause;
use super::actor::{actor, kind_of, thread};
use super::begun::{Streams, begins, binds, streams_by};
use super::goroutine;
use super::noted::{END_STREAM, NOTED, Noted, RESET};
use super::tokio;
use crate::connection::{self, Connection};
use crate::emit;
use crate::kernel::Socket;
use crate::maps::{Call, STREAMS};
use crate::memory::Forgotten;

/// [`Connection::newest`]: the connection has ended.
const OVER: u32 = u32::MAX;
/// [`Call::streams`] and [`Call::fresh`]: more than one.
pub const MANY: u32 = u32::MAX;
/// Streams that are begun in one window, all of which are noted ([`NOTED`]).
const MOST: usize = NOTED as usize;

/// Value of `STREAMS`: of a stream that came in itself, of one that was begun what it is for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stream {
    pub cause: Cause,
    /// Key of its connection.
    pub socket: Socket,
}

/// Streams that are begun in the window.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Begun {
    pub count: u32,
    /// 1 if the writer's callbacks read what is answered.
    pub remembers: u32,
    /// Whom they are for, as far as it is the same for all: by way of map memory, or everything that it can be would be a way of its
    /// own through the loop.
    pub streams: Streams,
    pub ids: [u32; MOST],
}

impl Cause {
    /// True for a stream that came in and is not answered.
    #[inline(always)]
    pub(super) fn is_open_stream(&self) -> bool {
        // SAFETY: the value is only read.
        let Some(stream) = (unsafe { STREAMS.get(self) }) else {
            return false;
        };
        stream.cause == *self
            && connection::find(stream.socket).is_some_and(|connection| {
                connection.id == self.connection
                    && connection.newest != OVER
                    && self.key > connection.place
            })
    }
}

/// What frames of this window said was not looked at. Streams that they may have ended count as ended, and who reads works for nobody
/// that is known.
#[inline(always)]
pub fn misses(call: &mut Call, connection: &mut Connection) {
    call.streams = MANY;
    call.fresh = MANY;
    match is_client(connection) {
        // What it begins is told apart by later frames too; these have no cause.
        Some(true) => emit::drop_one(drop_reason::STREAMS_GIVEN_UP),
        Some(false) => {
            connection.place = connection.newest as u64;
            emit::drop_one(drop_reason::STREAMS_GIVEN_UP);
        }
        None => gives_up(connection),
    }
    if call.direction == direction::READ as u32
        && let Some(actor) = thread(call.tid)
        && actor.kind as u32 == kind::CALLBACKS
    {
        actor.cause.clear();
    }
}

/// Where frames begin is not known any more: nor which streams are open, and who works for whom.
#[inline(always)]
pub fn gives_up(connection: &mut Connection) {
    if connection.newest != OVER {
        emit::drop_one(drop_reason::STREAMS_GIVEN_UP);
    }
    connection.newest = OVER;
}

/// The connection ended.
#[inline(always)]
pub(super) fn ended(connection: &mut Connection) {
    connection.newest = OVER;
}

/// True if this end asks; `None` while that is not known.
#[inline(always)]
fn is_client(connection: &Connection) -> Option<bool> {
    match connection.role {
        role::CLIENT => Some(true),
        role::SERVER => Some(false),
        _ if connection.called != 0 => Some(connection.requests == direction::WRITE),
        _ => None,
    }
}

/// A call goes on within a frame that began in an earlier one: of which stream is not known any more.
#[inline(always)]
pub fn goes_on(call: &mut Call) {
    if call.offset == 0 && call.streams == 0 {
        call.streams = 1;
        call.stream = Cause::NONE;
    }
}

/// A noted frame of a call.
#[inline(always)]
fn frame(call: &mut Call, begun: *mut Begun, connection: &mut Connection, noted: u64) {
    let id = (noted >> 16) as u32;
    let opens = (noted >> 8) as u8 == HEADERS;
    let resets = (noted >> 8) as u8 == RESET;
    let ends = noted as u8 & END_STREAM != 0;
    // Read anew for every frame: what is known of them before the loop over frames would be one more way to
    // go through all of it, to the verifier.
    let direction = again(&call.direction);
    let writes = direction == direction::WRITE as u32;
    let client = match again(&connection.role) {
        role::CLIENT => true,
        role::SERVER => false,
        _ if again(&connection.called) != 0 => again(&connection.requests) == direction::WRITE,
        _ => {
            if opens {
                learn(connection, id, direction);
            }
            return;
        }
    };
    let is_new = opens && id & 1 == 1 && id > again(&connection.newest);
    let mut stream = Stream {
        cause: Cause {
            connection: connection.id,
            key: id as u64,
        },
        socket: call.socket,
    };
    let key = stream.cause;
    if client == writes && is_new {
        connection.newest = id;
        if writes {
            // SAFETY: the caller's slot of map memory; the masked index is within it.
            unsafe {
                let count = (&raw const (*begun).count).read_volatile();
                if count < MOST as u32 {
                    let ids = (&raw mut (*begun).ids).cast::<u32>();
                    ids.add((count & (MOST as u32 - 1)) as usize)
                        .write_volatile(id);
                    (&raw mut (*begun).count).write_volatile(count + 1);
                }
            }
            return;
        }
        let _ = STREAMS.insert(&key, &stream, 0);
        call.fresh = if again(&call.fresh) == 0 { id } else { MANY };
    } else if resets || (!client && writes && ends) {
        let _ = STREAMS.remove(&key);
        return;
    }
    if writes {
        return;
    }
    if client {
        // SAFETY: the value is only read.
        stream.cause = match unsafe { STREAMS.get(&key) } {
            Some(stream) => stream.cause,
            None => Cause::NONE,
        };
    }
    if again(&call.streams) == 0 {
        call.streams = 1;
        call.stream = stream.cause;
    } else if again(&call.stream) != stream.cause {
        call.streams = MANY;
    }
}

/// A field of map memory, as it is now.
#[inline(always)]
fn again<T: Copy>(field: &T) -> T {
    // SAFETY: made from a reference.
    unsafe { core::ptr::from_ref(field).read_volatile() }
}

/// Who asks is learnt from a stream that was begun in one direction and is then answered in the other.
#[inline(always)]
fn learn(connection: &mut Connection, id: u32, direction: u32) {
    let from = direction as u64 + 1;
    if id & 1 == 1 && id > connection.newest {
        connection.newest = id;
        connection.open_key = from;
    } else if id == connection.newest && connection.open_key != from {
        connection.requests = connection.open_key.wrapping_sub(1) as u8;
        connection.called = 1;
    }
}

/// The frames of a window were gone over.
#[inline(always)]
pub fn seen(
    call: &mut Call,
    noted: Forgotten<Noted>,
    begun: Forgotten<Begun>,
    connection: &mut Connection,
) {
    let noted = noted.pointer();
    // SAFETY: the caller's slots of map memory; the masked index is within the array.
    unsafe { (&raw mut (*begun.pointer()).count).write_volatile(0) };
    let mut i = 0;
    while i < NOTED {
        // SAFETY: as above.
        let (count, frame_of) = unsafe {
            let frames = (&raw const (*noted).frames).cast::<u64>();
            (
                Noted::count(noted),
                frames.add((i & (NOTED - 1)) as usize).read_volatile(),
            )
        };
        // One way out of the loop: the verifier would go over what is behind it for every one.
        if i < count {
            frame(call, begun.pointer(), connection, frame_of);
        }
        i += 1;
    }
    let kind = kind_of(call.tgid);
    let Some(client) = is_client(connection) else {
        return;
    };
    if kind == kind::NONE {
        return;
    }
    if call.direction == direction::READ as u32 {
        read(call, connection, kind, client);
    } else if client {
        binds(call.tid, connection, kind);
        let begun = begun.pointer();
        // SAFETY: the caller's slot of map memory.
        if unsafe { (&raw const (*begun).count).read_volatile() } == 0 {
            return;
        }
        let streams = streams_by(connection, kind, call.tgid, call.tid);
        if streams.is_nobody() {
            return;
        }
        let remembers = (kind & kind::MASK == kind::CALLBACKS) as u32;
        // SAFETY: the caller's slot of map memory.
        unsafe {
            (&raw mut (*begun).remembers).write_volatile(remembers);
            (&raw mut (*begun).streams).write_volatile(streams);
        }
        let mut i = 0;
        while i < MOST as u32 {
            // SAFETY: the caller's slot of map memory; the masked index is within it.
            let (count, id) = unsafe {
                let ids = (&raw const (*begun).ids).cast::<u32>();
                (
                    (&raw const (*begun).count).read_volatile(),
                    ids.add((i & (MOST as u32 - 1)) as usize).read_volatile(),
                )
            };
            if i < count {
                begins(call, connection, begun, id);
            }
            i += 1;
        }
    }
}

/// Frames were read.
#[inline(always)]
fn read(call: &Call, connection: &mut Connection, kind: u32, client: bool) {
    match kind & kind::MASK {
        kind::CALLBACKS => {
            let Some(actor) = actor(kind, call.tgid, call.tid, true) else {
                return;
            };
            actor.kind = kind::CALLBACKS as u8;
            reads_from(call, connection, actor);
            if call.streams == 1 {
                actor.cause = call.stream;
            }
            actor.method = if client {
                method::CONTINUATION as u8
            } else {
                method::TURN as u8
            };
        }
        kind::GO => {
            if let Some(actor) = actor(kind, call.tgid, call.tid, true) {
                reads_from(call, connection, actor);
                actor.method = method::GOROUTINE as u8;
                if !client {
                    actor.flags |= goroutine::READS_STREAMS;
                    goroutine::reads_for(actor, call.tgid);
                }
            }
        }
        kind::TOKIO if !client => tokio::reads_streams(call, connection),
        _ => {}
    }
}

#[inline(always)]
fn reads_from(call: &Call, connection: &Connection, actor: &mut super::Actor) {
    actor.serving = Cause {
        connection: connection.id,
        key: call.socket,
    };
    actor.cause = Cause::NONE;
}
