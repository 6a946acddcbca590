//! What a thread is about to write: is a request due on this socket, and which exchange is it for?
//!
//! Hooks: `syscalls:sys_enter_*` of write, writev, sendto and sendmsg. Only what goes through these is
//! seen when it returns, so nothing else gets a plan (or a place in an option, see [`super::offer`]); io_uring_enter, sendfile64, splice and sendmmsg
//! take away what is left of one.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use tracer_common::abi::{cause_method, direction, propagation, role};

use super::offer::{Ask, PREFACE_WORD};
use super::{AHEAD, FLOWS, FRAMINGS, Flow, LEAVING, PLANS, Plan, framing, setting, state};
use crate::cause::{self, Cause, Streams};
use crate::connection::{self, Connection, mark, mode, verdict};
use crate::kernel::{self, Arguments, SocketFile};
use crate::maps::{BUFFER, Call, OFFER_PROGRAM, PROGRAMS};
use crate::probes::io::{Caller, Message};
use crate::probes::window::at_most;

/// `MSG_OOB`, `MSG_ZEROCOPY` and `MSG_FASTOPEN`: data that is sent in other ways.
const ODD_FLAGS: u64 = 0x1 | 0x400_0000 | 0x2000_0000;

/// `write(fd, buffer, length)`.
#[tracepoint]
pub fn propagate_enter_write(ctx: TracePointContext) -> u32 {
    let _ = enter(&ctx, Shape::Buffer);
    0
}

/// `writev(fd, vectors, count)`.
#[tracepoint]
pub fn propagate_enter_writev(ctx: TracePointContext) -> u32 {
    let _ = enter(&ctx, Shape::Vectors);
    0
}

/// `sendto(fd, buffer, length, flags, ...)`.
#[tracepoint]
pub fn propagate_enter_sendto(ctx: TracePointContext) -> u32 {
    let _ = enter(&ctx, Shape::BufferFlags);
    0
}

/// `sendmsg(fd, message, flags)`.
#[tracepoint]
pub fn propagate_enter_sendmsg(ctx: TracePointContext) -> u32 {
    let _ = enter(&ctx, Shape::Message);
    0
}

/// How a system call names its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Buffer,
    BufferFlags,
    Vectors,
    Message,
}

/// Calls that send what is not seen, or in other ways.
#[tracepoint]
pub fn propagate_enter_other(_ctx: TracePointContext) -> u32 {
    let tid = bpf_get_current_pid_tgid() as u32;
    if let Some(plan) = PLANS.get_ptr_mut(&tid) {
        // SAFETY: the pointer is into the map; only this thread uses its plan.
        unsafe { (*plan).armed = 0 };
    }
    0
}

/// `setsockopt(fd, level, option, ...)`: a socket that is to send in other ways is left alone: without
/// copying (`SO_ZEROCOPY`: the kernel would count what it reports wrongly), or through another
/// protocol of the kernel's (`TCP_ULP`: TLS).
#[tracepoint]
pub fn propagate_enter_setsockopt(_ctx: TracePointContext) -> u32 {
    let _ = set_option();
    0
}

#[inline(always)]
fn set_option() -> Option<()> {
    const SOL_SOCKET: u64 = 1;
    const SO_ZEROCOPY: u64 = 60;
    const SOL_TCP: u64 = 6;
    const TCP_ULP: u64 = 31;
    let arguments = Arguments::of_current()?;
    let option = (arguments.second()?, arguments.third()?);
    if option != (SOL_SOCKET, SO_ZEROCOPY) && option != (SOL_TCP, TCP_ULP) {
        return None;
    }
    let file = kernel::socket_of(arguments.first()? as i32)?;
    let flow = Flow {
        connection: 0,
        added: 0,
        state: state::LEFT,
        stream: 0,
        reserved: 0,
    };
    let _ = FLOWS.insert(&file.sock, &flow, 0);
    let _ = LEAVING.push(&file.sock, 0);
    None
}

#[inline(always)]
fn enter(ctx: &TracePointContext, shape: Shape) -> Option<()> {
    let caller = Caller::decided()?;
    let arguments = Arguments::of_current()?;
    let flags = match shape {
        Shape::BufferFlags => arguments.fourth()?,
        Shape::Message => arguments.third()?,
        Shape::Buffer | Shape::Vectors => 0,
    };
    let file = kernel::socket_of(arguments.first()? as i32)?;
    let flow = FLOWS.get_ptr_mut(&file.sock)?;
    // SAFETY: the pointer is into the map.
    let Flow {
        connection: id,
        state: mut now,
        ..
    } = unsafe { *flow };
    if now != state::ENROLLED && now != state::PLAIN {
        return None;
    }
    let connection = connection::find(file.sock)?;
    if connection.id != id {
        return None;
    }
    let encrypted = connection.verdict == verdict::IGNORED;
    if encrypted && now == state::ENROLLED {
        now = state::PLAIN;
        // SAFETY: as above.
        unsafe { (*flow).state = now };
        let _ = LEAVING.push(&file.sock, 0);
    }
    if flags & ODD_FLAGS != 0 || setting(propagation::ACTIVE) == 0 {
        return disarm(&caller);
    }
    let is_plain = now == state::ENROLLED && connection.is_tls == 0 && connection.other == 0;
    if is_plain && follows_frames(connection, file.sock) {
        return plan_frames(connection, &file, &caller);
    }
    if is_plain && is_due(connection) {
        if connection.verdict == verdict::UNKNOWN
            && first_word(shape, arguments.second()?) == PREFACE_WORD
        {
            return plan_frames(connection, &file, &caller);
        }
        // What has one vector more than is looked at is not seen whole.
        if shape == Shape::Message && Message::read(arguments.second()?)?.vectors > 32 {
            return None;
        }
        return plan(connection, &file, &caller);
    }
    if setting(propagation::OPTIONS) == 0 || !(encrypted || may_begin(connection)) {
        return None;
    }
    let (mut base, mut vectors, mut length) = (arguments.second()?, BUFFER, 0);
    match shape {
        Shape::Buffer | Shape::BufferFlags => length = at_most(arguments.third()?, u32::MAX),
        Shape::Vectors => vectors = at_most(arguments.third()?, 1024),
        Shape::Message => {
            let message = Message::read(base)?;
            (base, vectors) = (message.base, message.vectors);
        }
    }
    // SAFETY: programs of tracepoints run with preemption disabled: the per-CPU slot is ours.
    let ahead = unsafe { AHEAD.get_ptr_mut(0)?.as_mut()? };
    ahead.ask = Ask {
        file,
        base,
        vectors,
        length,
        encrypted: encrypted as u32,
        reserved: 0,
    };
    // SAFETY: all indexes hold programs of this type.
    unsafe { PROGRAMS.tail_call(ctx, OFFER_PROGRAM) };
    None
}

#[inline(always)]
fn plan(connection: &mut Connection, file: &SocketFile, caller: &Caller) -> Option<()> {
    let (cause, method) = ahead(connection, file.sock, caller)?;
    insert(connection, file, caller, cause, method, 0, 0);
    None
}

/// The same for frames of HTTP/2: streams that may begin in them.
#[inline(always)]
fn plan_frames(connection: &Connection, file: &SocketFile, caller: &Caller) -> Option<()> {
    let streams = cause::streams_ahead(connection, caller.tgid, caller.tid);
    let Streams {
        maker,
        cause,
        method,
        reserved: _,
    } = streams;
    insert(connection, file, caller, cause, method, maker, 1);
    None
}

#[inline(always)]
fn insert(
    connection: &Connection,
    file: &SocketFile,
    caller: &Caller,
    cause: Cause,
    method: u32,
    maker: u64,
    frames: u32,
) {
    let plan = Plan {
        sock: file.sock,
        connection: connection.id,
        position: connection.write.position,
        cause,
        cause_method: method,
        at: 0,
        lines: 0,
        end: 0,
        armed: 1,
        flags: 0,
        adopted: 0,
        frames,
        maker,
        stream_cause: Cause::NONE,
        stream_method: cause_method::NONE,
        reserved: 0,
        ids: [0; 3],
        text: [0; 72],
    };
    let _ = PLANS.insert(&caller.tid, &plan, 0);
}

/// An earlier plan is none for this call.
#[inline(always)]
fn disarm(caller: &Caller) -> Option<()> {
    if let Some(plan) = PLANS.get_ptr_mut(&caller.tid) {
        // SAFETY: the pointer is into the map; only this thread uses its plan.
        unsafe { (*plan).armed = 0 };
    }
    None
}

/// True for a connection whose frames are followed in its messages.
#[inline(always)]
fn follows_frames(connection: &Connection, sock: u64) -> bool {
    if connection.verdict != verdict::HTTP2 || !is_known(connection) {
        return false;
    }
    // SAFETY: the value is only read.
    match unsafe { FRAMINGS.get(&sock) } {
        Some(framing) => framing.connection == connection.id && framing.state != framing::LEFT,
        None => false,
    }
}

/// The first eight bytes that a call is to write; 0 if they are not there in one piece.
#[inline(always)]
fn first_word(shape: Shape, base: u64) -> u64 {
    let read = |address: u64| -> u64 {
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_user(address as *const u64) }.unwrap_or(0)
    };
    let (vectors, is_buffer) = match shape {
        Shape::Buffer | Shape::BufferFlags => (base, true),
        Shape::Vectors => (base, false),
        // struct user_msghdr: iov 16.
        Shape::Message => (read(base + 16), false),
    };
    read(if is_buffer { vectors } else { read(vectors) })
}

/// True for the client's end of a connection of which every byte was seen.
#[inline(always)]
fn is_known(connection: &Connection) -> bool {
    connection.role == role::CLIENT
        && connection.from_start != 0
        && connection.sequences != 0
        && connection.connect == 0
}

/// True when the next byte that is written certainly begins a request, if it looks like one.
#[inline(always)]
fn is_due(connection: &Connection) -> bool {
    let is_first = connection.verdict == verdict::UNKNOWN && connection.write.position == 0;
    let is_next = connection.verdict == verdict::HTTP1 && connection.requests == direction::WRITE;
    (is_first || is_next)
        && is_known(connection)
        && connection.marks & mark::GUESSED == 0
        && connection.write.mode == mode::START
        && connection.write.skip == 0
}

/// The same, or a frame of HTTP/2 begins or has begun.
#[inline(always)]
pub fn may_begin(connection: &Connection) -> bool {
    is_due(connection)
        || (is_known(connection)
            && connection.verdict == verdict::HTTP2
            && connection.write.mode == mode::FRAMES
            && connection.write.chunk_phase == 0)
}

/// What the cause will be found to be when the call returns.
#[inline(always)]
pub fn ahead(connection: &mut Connection, sock: u64, caller: &Caller) -> Option<(Cause, u32)> {
    // SAFETY: programs of tracepoints run with preemption disabled: the per-CPU slot is ours.
    let ahead = unsafe { AHEAD.get_ptr_mut(0)?.as_mut()? };
    ahead.connection = *connection;
    ahead.call = Call {
        socket: sock,
        base: 0,
        vectors: BUFFER,
        direction: direction::WRITE as u32,
        total: 0,
        offset: 0,
        time_ns: 0,
        start_ns: 0,
        tgid: caller.tgid,
        tid: caller.tid,
        blocking: 0,
        cause_method: cause_method::NONE,
        cause: Cause::NONE,
        messages: 0,
        runs: 0,
        noting: 0,
        next_message: 0,
        before: 0,
        streams: 0,
        fresh: 0,
        stream: Cause::NONE,
        last: 0,
    };
    cause::writes_now(caller.tid);
    cause::request(&mut ahead.call, &mut ahead.connection);
    // The copy left the pool of waiting connections, for both.
    connection.pooled = 0;
    Some((ahead.call.cause, ahead.call.cause_method))
}
