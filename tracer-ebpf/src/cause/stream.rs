//! Streams of HTTP/2: which requests they bring, and for whom they are begun.
//!
//! In: headers of frames as calls read and write them; which stream a runtime handles now or makes, where
//! its probes tell ([`crate::probes::runtime`]). Out: the cause of every stream that is begun
//! ([`emit::caused`]), since one call may write requests of many exchanges.
//!
//! An exchange is named by its connection and its stream ([`Cause::key`]), and open until the last frame of its
//! answer was written, either side gave it up, or its connection ended. Who reads the frames of one stream
//! alone works for it; with several in one call it takes the runtime's word, or there is no cause.
//!
//! It cannot see which end of a connection asks, where the connection was there before the agent, until one
//! stream was seen in both directions.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::abi::{cause_method as method, direction, kind_of_process as kind, role};
use tracer_common::http2::{CONTINUATION, DATA, FrameHeader, HEADERS};

use super::Cause;
use super::actor::{actor, flag, kind_of, reset, thread, thread_slot};
use super::goroutine;
use super::outgoing::used;
use super::thread::created_thread_calls;
use super::tokio;
use super::turn::handed_key;
use crate::connection::{self, Connection};
use crate::emit;
use crate::kernel::Socket;
use crate::maps::{Call, DUE, Handed, STREAMS};
use crate::memory::Forgotten;

/// Types of frames, and a flag of them (RFC 9113 section 6).
const RESET: u8 = 3;
const END_STREAM: u8 = 1;

/// [`Connection::newest`]: the connection has ended.
const OVER: u32 = u32::MAX;
/// [`Call::streams`] and [`Call::fresh`]: more than one.
pub const MANY: u32 = u32::MAX;
/// Streams that are begun in one window and noted.
pub const MOST: usize = 8;
/// Frames of one window that are noted; the walk over the window rests then.
pub const NOTED: u32 = 64;

/// Value of `STREAMS`: of a stream that came in itself, of one that was begun what it is for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stream {
    pub cause: Cause,
    /// Key of its connection.
    pub socket: Socket,
}

/// Value of `DUE`: for whom a stream is made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Due {
    pub cause: Cause,
    pub method: u32,
    pub reserved: u32,
}

/// Streams that are begun in the window.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Begun {
    pub count: u32,
    /// That of the process: by way of map memory, or every flag of it would be a way of its own through the loop.
    pub kind: u32,
    pub ids: [u32; MOST],
}

/// Frames that say something of a stream, in a loop of its own: in that over all frames the verifier would go over
/// what is done with them as often as there are ways through it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Noted {
    pub count: u32,
    /// Stream of the last one.
    pub last: u32,
    /// Which ones are: [`wanted`].
    pub wanted: u32,
    /// 1 if header blocks are to be looked at in any case.
    pub looks: u32,
    /// With so many the walk rests.
    pub most: u32,
    pub reserved: u32,
    /// Stream, type and flags.
    pub frames: [u64; NOTED as usize],
    /// Offset of the payload in the window, and its length.
    pub places: [u64; NOTED as usize],
}

/// Bits of [`Noted::wanted`].
pub mod wanted {
    /// DATA of another stream than the frame before.
    pub const BODIES: u32 = 1;
    /// Ends of streams.
    pub const ENDS: u32 = 2;
    /// HEADERS of another stream than the frame before.
    pub const HEADS: u32 = 4;
    /// All parts of header blocks.
    pub const BLOCKS: u32 = 8;
}

impl Noted {
    /// What is wanted of frames in this direction.
    #[inline(always)]
    pub fn wanted(connection: &Connection, direction: u8) -> u32 {
        if direction == direction::READ {
            return wanted::HEADS | wanted::BODIES;
        }
        match connection.role {
            role::CLIENT => wanted::HEADS,
            role::SERVER => wanted::ENDS,
            _ => wanted::HEADS | wanted::ENDS,
        }
    }

    /// A frame begins; its payload is at this offset. Frames say who is read from, which requests are begun and which
    /// streams end; as few as possible are noted, since each costs steps of other programs.
    ///
    /// # Safety
    /// `this` is a place of map memory that is nobody else's meanwhile.
    #[inline(always)]
    pub unsafe fn add(this: *mut Noted, header: &FrameHeader, at: u32) {
        let id = header.stream & (u32::MAX >> 1);
        // SAFETY: as the caller says; the masked index is within the array.
        unsafe {
            let wanted = (&raw const (*this).wanted).read_volatile();
            let is_other = (&raw const (*this).last).read_volatile() != id;
            let ends = header.flags & END_STREAM != 0;
            let says = match header.kind {
                RESET => true,
                HEADERS | CONTINUATION if wanted & wanted::BLOCKS != 0 => true,
                HEADERS if wanted & wanted::ENDS != 0 && ends => true,
                HEADERS => is_other && wanted & wanted::HEADS != 0,
                DATA if wanted & wanted::ENDS != 0 => ends,
                DATA => is_other && wanted & wanted::BODIES != 0,
                _ => false,
            };
            if id == 0 || !says {
                return;
            }
            let count = (&raw const (*this).count).read_volatile();
            let frames = (&raw mut (*this).frames).cast::<u64>();
            let frame = (id as u64) << 16 | (header.kind as u64) << 8 | header.flags as u64;
            let places = (&raw mut (*this).places).cast::<u64>();
            let index = (count & (NOTED - 1)) as usize;
            frames.add(index).write_volatile(frame);
            let place = (header.length as u64) << 32 | at as u64;
            places.add(index).write_volatile(place);
            (&raw mut (*this).last).write_volatile(id);
            (&raw mut (*this).count).write_volatile(count.wrapping_add(1));
        }
    }

    /// True with more of them than there is room for.
    #[inline(always)]
    pub fn too_many(&self) -> bool {
        // SAFETY: made from a reference.
        unsafe { (&raw const self.count).read_volatile() > NOTED }
    }

    /// Whether anything was noted, and whether header blocks are to be looked at.
    #[inline(always)]
    pub fn says(&self) -> (bool, bool) {
        // SAFETY: made from references.
        let [looks, wanted, count] = unsafe {
            [
                (&raw const self.looks).read_volatile(),
                (&raw const self.wanted).read_volatile(),
                (&raw const self.count).read_volatile(),
            ]
        };
        let blocks = wanted & wanted::BLOCKS != 0 && count != 0;
        (count != 0, looks != 0 || blocks)
    }

    /// One of them: stream, type and flags; offset and length of its payload.
    ///
    /// # Safety
    /// As of [`Noted::add`].
    #[inline(always)]
    pub unsafe fn at(this: *const Noted, index: u32) -> (u64, u64) {
        let index = (index & (NOTED - 1)) as usize;
        // SAFETY: as the caller says; the masked index is within the arrays.
        unsafe {
            let frames = (&raw const (*this).frames).cast::<u64>();
            let places = (&raw const (*this).places).cast::<u64>();
            (
                frames.add(index).read_volatile(),
                places.add(index).read_volatile(),
            )
        }
    }

    /// True with as many as go into one run.
    ///
    /// # Safety
    /// As of [`Noted::add`].
    #[inline(always)]
    pub unsafe fn is_full(this: *const Noted) -> bool {
        // SAFETY: as the caller says.
        unsafe { Noted::count(this) >= (&raw const (*this).most).read_volatile() }
    }

    /// How many there are.
    ///
    /// # Safety
    /// As of [`Noted::add`].
    #[inline(always)]
    pub unsafe fn count(this: *const Noted) -> u32 {
        // SAFETY: as the caller says.
        unsafe { (&raw const (*this).count).read_volatile() }
    }
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
                connection.id == self.connection && connection.newest != OVER
            })
    }
}

/// What some frames said was not looked at: which streams are open, and who works for whom, is not known any more.
#[inline(always)]
pub fn gives_up(connection: &mut Connection) {
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
        unsafe { (&raw mut (*begun).kind).write_volatile(kind) };
        let mut i = 0;
        while i < MOST as u32 {
            // SAFETY: the caller's slot of map memory; the masked index is within it.
            let (count, kind, id) = unsafe {
                let ids = (&raw const (*begun).ids).cast::<u32>();
                (
                    (&raw const (*begun).count).read_volatile(),
                    (&raw const (*begun).kind).read_volatile(),
                    ids.add((i & (MOST as u32 - 1)) as usize).read_volatile(),
                )
            };
            if i < count {
                begins(call, connection, kind, id);
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

/// Whose connection it is to write to, where that says for whom.
#[inline(always)]
fn binds(tid: u32, connection: &mut Connection, kind: u32) {
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
fn begins(call: &Call, connection: &mut Connection, kind: u32, id: u32) {
    let (cause, found) = begun_for(connection, kind, call.tgid, call.tid, id);
    if !cause.is_open() || found == method::NONE {
        return;
    }
    let own = Cause {
        connection: connection.id,
        key: id as u64,
    };
    if kind & kind::MASK == kind::CALLBACKS {
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
    let (cause, found) = begun_for(connection, kind, tgid, tid, id);
    if cause.is_open() {
        (cause, found)
    } else {
        (Cause::NONE, method::NONE)
    }
}

#[inline(always)]
fn begun_for(connection: &Connection, kind: u32, tgid: u32, tid: u32, id: u32) -> (Cause, u32) {
    let streams = streams_for(connection, connection.place, kind, tgid, tid);
    if streams.maker == 0 {
        return (streams.cause, streams.method);
    }
    due(tgid, streams.maker, id)
}

/// What streams are for that one write begins.
#[derive(Clone, Copy)]
pub struct Streams {
    /// Who makes them, each for a cause of its own; 0: they have this one.
    pub maker: u64,
    pub cause: Cause,
    pub method: u32,
}

/// What streams will be found to be for that the thread is about to write to this connection.
#[inline(always)]
pub fn streams_ahead(connection: &Connection, tgid: u32, tid: u32) -> Streams {
    let kind = kind_of(tgid);
    streams_for(connection, bound(tid, connection, kind), kind, tgid, tid)
}

/// What one of them is for.
#[inline(always)]
pub fn written(maker: u64, cause: Cause, method: u32, tgid: u32, id: u32) -> (Cause, u32) {
    let (cause, method) = if maker == 0 {
        (cause, method)
    } else {
        due(tgid, maker, id)
    };
    if cause.is_open() {
        (cause, method)
    } else {
        (Cause::NONE, method::NONE)
    }
}

#[inline(always)]
fn streams_for(connection: &Connection, place: u64, kind: u32, tgid: u32, tid: u32) -> Streams {
    let mut streams = Streams {
        maker: 0,
        cause: Cause::NONE,
        method: method::NONE,
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

/// Node: the callback makes a stream of this session.
#[inline(always)]
pub fn session_makes(session: u64, id: u32) {
    let all = bpf_get_current_pid_tgid();
    if let Some(actor) = thread(all as u32) {
        let (cause, method) = (actor.cause, actor.method as u32);
        made((all >> 32) as u32, session, id, cause, method);
    }
}

/// Node: the session is about to write.
#[inline(always)]
pub fn session_writes(session: u64) {
    let all = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((all >> 32) as u32, all as u32);
    let Some(actor) = thread_slot(tid) else {
        return;
    };
    if actor.owner != tid as u64 || actor.tgid != tgid {
        reset(actor, tid as u64, tgid);
    }
    actor.context = session;
}

/// Node: what comes next belongs to this stream of the connection that was read from last.
#[inline(always)]
pub fn session_reads(id: u32) {
    let Some(actor) = thread(bpf_get_current_pid_tgid() as u32) else {
        return;
    };
    let key = Cause {
        connection: actor.serving.connection,
        key: id as u64,
    };
    // SAFETY: the value is only read.
    let Some(stream) = (unsafe { STREAMS.get(&key) }) else {
        actor.cause = Cause::NONE;
        return;
    };
    actor.cause = stream.cause;
    actor.method = if stream.cause == key {
        method::TURN as u8
    } else {
        method::CONTINUATION as u8
    };
}
