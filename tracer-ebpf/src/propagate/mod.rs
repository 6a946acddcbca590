//! Writes trace context into requests that go out. Loaded only when that is asked for.
//!
//! 1. [`opening`] remembers a socket that a traced process connects; [`sockets`] puts it into the map
//!    of sockets whose messages are looked at ([`SOCKETS`]) once it is connected.
//! 2. [`incoming`] and, over HTTP/2, [`blocks`] find the trace of each request that comes in.
//! 3. [`plan`] runs when a process enters a write on such a socket: is a request due here, and for
//!    which exchange is it sent?
//! 4. [`message`] sees the bytes before they leave: if they begin with a whole head without context, a
//!    header is put in before its last line end.
//! 5. HTTP/2: [`frames`] follows the connection in its messages and finds the requests that begin in one; [`stream`]
//!    puts a field into each.
//! 6. Where that cannot be (TLS, kernels with faults), [`offer`] finds the request in the bytes that
//!    the process hands over, and [`option`] puts its context into a TCP option, and reads what others sent. [`memory`] does it for
//!    programs that move the ciphertext of their TLS sessions themselves.
//!
//! In doubt nothing is written. What the process counts as sent never includes the header.

pub mod blocks;
pub mod bytes;
pub mod frames;
pub mod incoming;
pub mod memory;
pub mod message;
pub mod offer;
pub mod option;
pub mod plan;
pub mod selftest;
pub mod sockets;
pub mod stream;

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, ProgramArray, Queue, SockHash};
use tracer_common::abi::{propagated, propagation};
use tracer_common::context::incoming as incoming_state;
use tracer_common::ids::{self, purpose};
use tracer_common::option::Words;

use crate::cause::Cause;
use crate::connection::Connection;
use crate::kernel;
use crate::maps::Call;
use crate::memory::add;
use crate::probes::io::Caller;

/// 1 when trace context is written.
#[unsafe(no_mangle)]
pub static PROPAGATES: Global<u32> = Global::new(0);
/// What ids are made from; random for every start.
#[unsafe(no_mangle)]
pub static ID_SECRET_0: Global<u64> = Global::new(0);
/// See [`ID_SECRET_0`].
#[unsafe(no_mangle)]
pub static ID_SECRET_1: Global<u64> = Global::new(0);

/// Sockets whose messages are looked at, by the address of their `struct sock`.
#[map]
pub static SOCKETS: SockHash<u64> = SockHash::with_max_entries(32768, 0);

/// What is known of these sockets.
#[map]
pub static FLOWS: LruHashMap<u64, Flow> = LruHashMap::with_max_entries(32768, 0);

/// What is known of the frames of connections that speak HTTP/2, by socket.
#[map]
pub static FRAMINGS: LruHashMap<u64, Framing> = LruHashMap::with_max_entries(8192, 0);

/// What a thread is about to write, by its id.
#[map]
pub static PLANS: LruHashMap<u32, Plan> = LruHashMap::with_max_entries(8192, 0);

/// The traces of requests that came in.
#[map]
pub static REQUEST_CONTEXTS: LruHashMap<Cause, Incoming> = LruHashMap::with_max_entries(16384, 0);

/// Sockets that user space should take out of [`SOCKETS`]: they speak something else.
#[map]
pub static LEAVING: Queue<u64> = Queue::with_max_entries(4096, 0);

/// Outcomes, by the indexes of `abi::propagated`.
#[map]
pub static PROPAGATED: PerCpuArray<u64> = PerCpuArray::with_max_entries(propagated::COUNT, 0);

/// What user space may change while programs run, by the indexes of `abi::propagation`.
#[map]
pub static PROPAGATION: Array<u64> = Array::with_max_entries(propagation::COUNT, 0);

/// Where [`plan`] tries what the cause of a request would be.
#[map]
pub static AHEAD: PerCpuArray<Ahead> = PerCpuArray::with_max_entries(1, 0);

/// What is sent in TCP options, by socket.
#[map]
pub static OPTIONS: LruHashMap<u64, Offered> = LruHashMap::with_max_entries(32768, 0);

/// What came in TCP options.
#[map]
pub static RECEIVED: LruHashMap<Place, Incoming> = LruHashMap::with_max_entries(16384, 0);

/// Sockets of the self-test.
#[map]
pub static SELFTEST_SOCKETS: SockHash<u64> = SockHash::with_max_entries(4, 0);

/// What the self-test writes.
#[map]
pub static SELFTEST_PLAN: Array<Plan> = Array::with_max_entries(1, 0);

/// Programs that look at messages, for tail calls.
#[map]
pub static MESSAGE_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(6, 0);

/// Value of [`FLOWS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flow {
    /// Id of the connection; 0 until it is connected.
    pub connection: u64,
    /// Bytes that were added.
    pub added: u32,
    /// One of [`state`].
    pub state: u32,
    /// Newest stream of HTTP/2 that began.
    pub stream: u32,
    pub reserved: u32,
}

/// Requests of one message that get a field; a power of two.
pub const BEGUN: u32 = 8;

/// Value of [`FRAMINGS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Framing {
    pub connection: u64,
    /// Sequence number of the first byte of the next message.
    pub next: u32,
    /// Bytes of its payload that the last frame still lacks.
    pub skip: u32,
    /// Newest stream that began.
    pub newest: u32,
    /// One of [`framing`].
    pub state: u32,
    /// Requests in [`Framing::begun`] that are not done with.
    pub count: u32,
    /// Fields that were put into the message.
    pub injected: u32,
    pub walk: FrameWalk,
    pub begun: [Begun; BEGUN as usize],
}

/// Values of [`Framing::state`].
pub mod framing {
    /// Nothing but the preface was sent.
    pub const FIRST: u32 = 0;
    /// Frames are followed.
    pub const FRAMES: u32 = 1;
    /// They are not any more.
    pub const LEFT: u32 = 2;
}

/// Where the walk over the frames of a message is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FrameWalk {
    /// Offset of the frame.
    pub at: u32,
    /// Bytes of the message.
    pub size: u32,
    /// `hpack::phase`, or one of those of [`frames`].
    pub phase: u32,
    /// Where the next part of a field begins, from the frame's first byte on.
    pub field: u32,
    /// The same of the block's end.
    pub end: u32,
    /// Offset behind the frame.
    pub next: u32,
    pub stream: u32,
    /// Programs run for the message.
    pub runs: u32,
    /// 1 if requests may get a field.
    pub planned: u32,
    pub reserved: u32,
}

impl FrameWalk {
    /// Nowhere.
    pub const NONE: Self = FrameWalk {
        at: 0,
        size: 0,
        phase: 0,
        field: 0,
        end: 0,
        next: 0,
        stream: 0,
        runs: 0,
        planned: 0,
        reserved: 0,
    };
}

/// A request that begins in a message.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Begun {
    pub stream: u32,
    /// Offset of its frame.
    pub at: u32,
    /// Bytes from there to the end of its header block.
    pub length: u32,
    /// The frame's payload.
    pub frame: u32,
}

impl Begun {
    /// None.
    pub const NONE: Self = Begun {
        stream: 0,
        at: 0,
        length: 0,
        frame: 0,
    };
}

/// Value of [`OPTIONS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Offered {
    /// Sequence number of the first byte that is written with the request.
    pub begin: u32,
    /// 1 until that byte was acknowledged.
    pub armed: u32,
    /// Segments that carried it.
    pub stored: u32,
    /// The option.
    pub words: Words,
}

/// Key of [`RECEIVED`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Place {
    /// The socket.
    pub sock: u64,
    /// See `tracer_common::option`.
    pub place: u32,
    /// 1 for a stream of HTTP/2.
    pub is_stream: u32,
}

/// Values of [`Flow::state`].
pub mod state {
    /// The connection is being made.
    pub const OPENING: u32 = 0;
    /// Its messages are looked at.
    pub const ENROLLED: u32 = 1;
    /// Nothing is sent with what it sends.
    pub const LEFT: u32 = 2;
    /// Its messages are not looked at; TCP options may go out with them.
    pub const PLAIN: u32 = 3;
}

/// Value of [`PLANS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Plan {
    /// The socket.
    pub sock: u64,
    pub connection: u64,
    /// Where the request begins, as the process counts.
    pub position: u64,
    pub cause: Cause,
    pub cause_method: u32,
    /// Where the scan of the message is.
    pub at: u32,
    /// Lines that have ended.
    pub lines: u32,
    /// Offset of the empty line.
    pub end: u32,
    /// 1 until the first message of the write was seen.
    pub armed: u32,
    /// Flags of `traceparent`.
    pub flags: u32,
    /// 1 if the trace id was read from the request that came in.
    pub adopted: u32,
    /// 1 for frames of HTTP/2.
    pub frames: u32,
    /// Of frames: who makes the streams, where `cause` is not that of all of them (`cause::Streams`).
    pub maker: u64,
    /// That of the stream whose turn it is.
    pub stream_cause: Cause,
    pub stream_method: u32,
    pub reserved: u32,
    /// Halves of the trace id, and the span id.
    pub ids: [u64; 3],
    pub text: [u8; bytes::TEXT],
}

/// Value of [`REQUEST_CONTEXTS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Incoming {
    /// Halves of the trace id, if the request carries it.
    pub trace: [u64; 2],
    /// `context::incoming`.
    pub state: u32,
    /// Flags of `traceparent`.
    pub flags: u32,
}

/// Value of [`AHEAD`].
#[repr(C)]
pub struct Ahead {
    pub connection: Connection,
    pub call: Call,
    pub ask: offer::Ask,
    pub ids: [u64; 3],
}

/// A setting's value now.
#[inline(always)]
pub fn setting(index: u32) -> u64 {
    PROPAGATION.get(index).copied().unwrap_or(0)
}

/// Counts one outcome.
#[inline(always)]
pub fn count(outcome: u32) {
    if let Some(n) = PROPAGATED.get_ptr_mut(outcome) {
        // SAFETY: a word of a per-CPU map; one instruction, because programs may be preempted.
        unsafe { add(n, 1) };
    }
}

/// An id of an exchange; see `tracer_common::ids`.
#[inline(always)]
pub fn id_of(exchange: Cause, purpose: u64) -> u64 {
    let secret = [ID_SECRET_0.load(), ID_SECRET_1.load()];
    ids::derive(secret, exchange.connection, exchange.key, purpose)
}

/// [`name`]: the trace was read from the request that came in.
pub const ADOPTED: u32 = 1 << 8;
/// [`name`]: the trace is not known.
pub const NAMELESS: u32 = u32::MAX;
/// `traceparent`'s flags.
const SAMPLED: u32 = 1;
const RANDOM: u32 = 2;

/// Which trace a request belongs to that is sent for `cause`: writes the halves of its id. Returns the flags
/// of `traceparent` (and [`ADOPTED`]), or [`NAMELESS`].
///
/// # Safety
/// `high` and `low` point to words of map memory that are nobody else's meanwhile. Volatile, so that each is
/// computed, kept and forgotten.
#[inline(always)]
pub unsafe fn name(own: Cause, cause: Cause, high: *mut u64, low: *mut u64) -> u32 {
    let mut known = Incoming {
        trace: [0; 2],
        state: incoming_state::ABSENT,
        flags: 0,
    };
    let mut named_by = own;
    if cause.connection != 0 {
        named_by = cause;
        // SAFETY: the value is only read.
        let Some(found) = (unsafe { REQUEST_CONTEXTS.get(&cause) }) else {
            return NAMELESS;
        };
        known = *found;
    }
    let mut flags = if known.state == incoming_state::W3C {
        // SAFETY: as the caller says.
        unsafe {
            high.write_volatile(known.trace[0]);
            low.write_volatile(known.trace[1]);
        }
        known.flags & 0xff | ADOPTED
    } else if known.state == incoming_state::ABSENT {
        // SAFETY: as the caller says.
        unsafe {
            high.write_volatile(id_of(named_by, purpose::TRACE_HIGH));
            low.write_volatile(id_of(named_by, purpose::TRACE_LOW));
        }
        RANDOM
    } else {
        return NAMELESS;
    };
    if flags & ADOPTED == 0 || setting(propagation::PARENT_BASED) == 0 {
        // SAFETY: as the caller says.
        let random = unsafe { low.read_volatile() } & (u64::MAX >> 8);
        let is_sampled = random >= setting(propagation::THRESHOLD);
        flags = flags & !SAMPLED | is_sampled as u32;
    }
    flags
}

/// The current thread connects a socket.
#[inline(always)]
pub fn opening(sock: u64) {
    if PROPAGATES.load() == 0 || Caller::traced().is_none() || !kernel::is_of_process(sock) {
        return;
    }
    // SAFETY: the value is only read.
    if unsafe { FLOWS.get(&sock) }.is_some_and(|flow| flow.state == state::LEFT) {
        return;
    }
    let flow = Flow {
        connection: 0,
        added: 0,
        state: state::OPENING,
        stream: 0,
        reserved: 0,
    };
    let _ = FLOWS.insert(&sock, &flow, 0);
    let _ = OPTIONS.remove(&sock);
    let _ = FRAMINGS.remove(&sock);
}

/// A connection ended; its socket's address may be used again.
#[inline(always)]
pub fn closed(sock: u64) {
    if PROPAGATES.load() != 0 {
        let _ = FLOWS.remove(&sock);
        let _ = OPTIONS.remove(&sock);
        let _ = FRAMINGS.remove(&sock);
    }
}

/// The value of a pointer that the verifier knows as one. Swapping its bytes makes it a number to the
/// verifier (nothing else does on every kernel), and swapping them again makes it the right one.
#[inline(always)]
pub fn number<T>(pointer: *mut T) -> u64 {
    let mut value = pointer as u64;
    // SAFETY: arithmetic on a register.
    unsafe {
        core::arch::asm!("{v} = be64 {v}", "{v} = be64 {v}", v = inout(reg) value, options(pure, nomem, nostack));
    }
    value
}
