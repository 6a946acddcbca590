//! Finds the request that begins in what a process is about to write, and offers its context to
//! [`super::option`].
//!
//! Reached by tail call from [`super::plan`], at the entry of a system call. Under TLS the bytes are the
//! plaintext that the call of the library was made with which the system call is made from; of ciphertext that
//! is written at another time (asyncio, Node) see [`super::memory`].
//!
//! HTTP/2 writes requests of several exchanges at once: each stream has a cause of its own. Of several requests
//! in one write the first is offered.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use tracer_common::abi::{Header, InjectedEvent, direction, kind, propagated};
use tracer_common::context;
use tracer_common::frame::Window as _;
use tracer_common::http2::{FrameHeader, HEADER, HEADERS, PREFACE};
use tracer_common::ids::purpose;
use tracer_common::option::{Carried, flag};

use super::plan::{self, may_begin};
use super::{
    ADOPTED, AHEAD, FLOWS, Flow, LEAVING, NAMELESS, OPTIONS, Offered, count, id_of, name, state,
};
use crate::cause::{self, Cause};
use crate::connection::{self, Connection, verdict};
use crate::emit;
use crate::kernel::{self, Socket, SocketFile};
use crate::maps::{BUFFER, EVENTS, SCRATCH, Walk};
use crate::memory::Forgotten;
use crate::probes::deliver::Bytes;
use crate::probes::io::Caller;
use crate::probes::window::{at_most, fill};
use crate::tls;

/// What is about to be written.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ask {
    pub file: SocketFile,
    /// As in `Call`.
    pub base: u64,
    pub vectors: u32,
    /// Bytes, of a plain buffer.
    pub length: u32,
    /// The socket speaks something that is not parsed: TLS, maybe.
    pub encrypted: u32,
    pub reserved: u32,
}

/// Bytes of a request of HTTP/1 that are looked at, and of frames.
const METHOD: u32 = 16;
const FRAMES: u32 = 2048;
/// Frames that are gone over.
const STEPS: u32 = 24;
/// The first eight bytes of the preface.
pub const PREFACE_WORD: u64 = u64::from_le_bytes(*b"PRI * HT");

/// Reached by tail call only.
#[tracepoint]
pub fn propagate_offer(_ctx: TracePointContext) -> u32 {
    if let Some(outcome) = offer() {
        count(outcome);
    }
    0
}

#[inline(always)]
fn offer() -> Option<u32> {
    let caller = Caller::decided()?;
    // SAFETY: programs of tracepoints run with preemption disabled: the per-CPU slots are ours.
    let (ahead, scratch) = unsafe {
        (
            AHEAD.get_ptr_mut(0)?.as_mut()?,
            SCRATCH.get_ptr_mut(0)?.as_mut()?,
        )
    };
    let Ask {
        file,
        mut base,
        mut vectors,
        mut length,
        encrypted,
        ..
    } = ahead.ask;
    let sock = file.sock;
    let mut key = sock;
    if encrypted != 0 {
        // What shows whose ciphertext it is when the call returns shows it now.
        let carrier = connection::find(sock)?;
        let _ = tls::on_socket(
            &caller,
            &file,
            carrier,
            direction::WRITE,
            base,
            vectors,
            if vectors == BUFFER { length } else { u32::MAX },
        );
        let (session, call) = tls::writes_through(&caller, sock)?;
        key = session;
        (base, vectors, length) = (call.buffer, BUFFER, call.length);
    }
    let connection = connection::find(key)?;
    if encrypted != 0 && !may_begin(connection) {
        return None;
    }
    scratch.call.base = base;
    scratch.call.vectors = vectors;
    scratch.call.before = 0;
    let is_frames = connection.verdict == verdict::HTTP2;
    let want = if is_frames || connection.verdict == verdict::UNKNOWN {
        FRAMES
    } else {
        METHOD
    };
    let want = if vectors == BUFFER {
        at_most(want as u64, length)
    } else {
        want
    };
    let filled = fill(scratch, 0, want);
    if filled < METHOD / 2 {
        return None;
    }
    let bytes = Bytes::of(scratch);
    let first = bytes.word(0);
    let flow = FLOWS.get_ptr_mut(&sock)?;
    let is_stream = is_frames || first == PREFACE_WORD;
    let exchange = if is_stream {
        let begin = if is_frames {
            connection
                .write
                .skip
                .wrapping_add(connection.write.unframed as u64)
        } else {
            PREFACE as u64
        };
        // SAFETY: the pointer is into the map.
        let stream = new_stream(&bytes, begin, filled, unsafe { &mut (*flow).stream });
        if stream == 0 {
            return None;
        }
        stream as u64
    } else if context::begins_request(first) {
        connection.write.position
    } else {
        return None;
    };
    // SAFETY: as above.
    let Flow { added, .. } = unsafe { *flow };
    let begin: u32 = kernel::field(sock, &kernel::TCP_WRITE_SEQ)?;
    let base = connection.write_sequence.wrapping_add(added);
    if connection.is_tls == 0 && begin != base.wrapping_add(connection.write.position as u32) {
        // Every byte that was ever sent has to be known, or where the request begins is not.
        // SAFETY: as above.
        unsafe { (*flow).state = state::LEFT };
        let _ = LEAVING.push(&sock, 0);
        return Some(propagated::UNSEEN);
    }
    let request = Request {
        sock,
        begin,
        added,
        exchange,
        is_stream,
    };
    if request.is_offered(connection) {
        // A second write of the same call of the library.
        return None;
    }
    let (cause, method) = if is_stream {
        cause::stream_ahead(connection, caller.tgid, caller.tid, exchange as u32)
    } else {
        plan::ahead(connection, key, &caller)?
    };
    let ids = Forgotten::new(&mut ahead.ids).pointer().cast::<u64>();
    // SAFETY: words of this CPU's slot.
    unsafe { request.offer(connection, cause, method, ids) }
}

/// A request that is about to leave.
pub struct Request {
    pub sock: Socket,
    /// Sequence number of the first byte that is written with it.
    pub begin: u32,
    /// Bytes that were added to what the process wrote before.
    pub added: u32,
    /// Its position, or its stream.
    pub exchange: u64,
    pub is_stream: bool,
}

impl Request {
    /// See `tracer_common::option`.
    #[inline(always)]
    fn place(&self, connection: &Connection) -> u32 {
        // A stream is named from the connection's first byte on, whatever was added.
        let added = if self.is_stream { 0 } else { self.added };
        connection
            .write_sequence
            .wrapping_add(added)
            .wrapping_add(self.exchange as u32)
    }

    /// True if it is what was offered last. Counts one that it takes the place of.
    #[inline(always)]
    pub fn is_offered(&self, connection: &Connection) -> bool {
        // SAFETY: the value is only read.
        let Some(before) = (unsafe { OPTIONS.get(&self.sock) }) else {
            return false;
        };
        if before.armed != 0 && before.words[5] == self.place(connection).to_be() {
            return true;
        }
        if before.armed != 0 && before.stored == 0 {
            count(propagated::CROWDED);
        }
        false
    }

    /// Offers it, and tells of it. Returns the outcome if it is another.
    ///
    /// # Safety
    /// `ids` points to two words of map memory that are nobody else's meanwhile.
    #[inline(always)]
    pub unsafe fn offer(
        &self,
        connection: &Connection,
        cause: Cause,
        method: u32,
        ids: *mut u64,
    ) -> Option<u32> {
        let own = Cause {
            connection: connection.id,
            key: self.exchange,
        };
        // SAFETY: as the caller says.
        let named = unsafe { name(own, cause, ids, ids.add(1)) };
        if named == NAMELESS {
            return Some(propagated::UNKNOWN_TRACE);
        }
        // SAFETY: as above.
        let trace = unsafe { [ids.read_volatile(), ids.add(1).read_volatile()] };
        let stream = if self.is_stream { flag::STREAM } else { 0 };
        let carried = Carried {
            trace,
            place: self.place(connection),
            flags: named & flag::TRACEPARENT | stream,
            nonce: id_of(own, purpose::SPAN) as u32 & 0xff_ffff,
        };
        let Some(mut entry) = EVENTS.reserve::<InjectedEvent>(0) else {
            return Some(propagated::FAILED);
        };
        // SAFETY: the entry is as large as the event.
        unsafe {
            entry.as_mut_ptr().write(InjectedEvent {
                header: Header {
                    kind: kind::INJECTED,
                    selector: 0,
                    flags: 0,
                    reserved: 0,
                    value: 0,
                },
                time_ns: bpf_ktime_get_boot_ns(),
                connection: own.connection,
                position: own.key,
                trace,
                span: carried.span(),
                cause_connection: cause.connection,
                cause_key: cause.key,
                cause_method: method,
                shift: self.added,
                flags: carried.flags & flag::TRACEPARENT,
                adopted: (named & ADOPTED != 0) as u32,
            })
        };
        emit::submitted(entry);
        let offered = Offered {
            begin: self.begin,
            armed: 1,
            stored: 0,
            words: carried.words(),
        };
        let _ = OPTIONS.insert(&self.sock, &offered, 0);
        None
    }
}

/// The first stream that begins in the frames from `begin` on; 0 if none does. `newest` is the newest one
/// of the connection.
#[inline(always)]
pub fn new_stream(bytes: &Bytes, begin: u64, filled: u32, newest: &mut u32) -> u32 {
    if begin >= filled as u64 {
        return 0;
    }
    // `size` is the stream.
    bytes.walk.store(Walk {
        skip: 0,
        size: 0,
        at: begin as u32,
        seen: 0,
        phase: 0,
        keep: 0,
    });
    let mut step = 0;
    while step < STEPS {
        step += 1;
        let mut walk = bytes.walk.load();
        if walk.at >= FRAMES || walk.at + HEADER > filled {
            break;
        }
        let header = FrameHeader::new(bytes.word(walk.at), bytes.byte(walk.at + 8));
        let is_new = header.kind == HEADERS && header.stream & 1 == 1 && header.stream > *newest;
        if is_new {
            *newest = header.stream;
            if walk.size == 0 {
                walk.size = header.stream as u64;
            } else {
                count(propagated::CROWDED);
            }
        }
        walk.at = walk.at.wrapping_add(HEADER).wrapping_add(header.length);
        bytes.walk.store(walk);
    }
    bytes.walk.load().size as u32
}
