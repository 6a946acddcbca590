//! Data calls that go through io_uring: reads and writes of sockets, by the completion of their requests.
//!
//! Hook: `io_uring:io_uring_complete` (`req` at 16, `res` at 32; with the request since 5.19, kernel commit
//! c4bb964fa092), in the context of a thread of the process, whose memory can be read. What a request is
//! and where its bytes are is in `struct io_kiocb` itself. Calls with vectors may have given theirs back
//! by now, so their bytes are not looked for: they are a gap, and counted. A request that answers
//! many times is not passed to the hook but at its end: counted too, once.

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use tracer_common::abi::{direction, drop_reason};

use super::io::{self, Begun, Caller, MSG_ERRQUEUE, MSG_OOB, MSG_PEEK, MSG_TRUNC};
use crate::kernel::{self, UringRequest};
use crate::maps::{BUFFER, NO_BYTES};
use crate::{cause, emit};

/// `enum io_uring_op`.
mod op {
    pub const READV: u8 = 1;
    pub const WRITEV: u8 = 2;
    pub const READ_FIXED: u8 = 4;
    pub const WRITE_FIXED: u8 = 5;
    pub const SENDMSG: u8 = 9;
    pub const RECVMSG: u8 = 10;
    pub const READ: u8 = 22;
    pub const WRITE: u8 = 23;
    pub const SEND: u8 = 26;
    pub const RECV: u8 = 27;
    pub const SEND_ZC: u8 = 47;
    pub const SENDMSG_ZC: u8 = 48;
}

/// `IORING_RECV_MULTISHOT` in the request's own flags.
const MULTISHOT: u16 = 1 << 1;

/// How a request names its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// As `read` and `write` do (`struct io_rw`).
    Plain,
    /// As `recv` and `send` do (`struct io_sr_msg`).
    Socket,
    /// By vectors.
    Vectors,
}

/// See the module's text.
#[tracepoint]
pub fn io_uring_complete(ctx: TracePointContext) -> u32 {
    let _ = completed(&ctx);
    0
}

#[inline(always)]
fn completed(ctx: &TracePointContext) -> Option<()> {
    // SAFETY: the agent has compared the event's format with what is read here; volatile keeps LLVM from
    // merging reads, which the verifier refuses.
    let (request, result) = unsafe {
        let at = ctx.as_ptr();
        (
            core::ptr::read_volatile(at.add(16).cast::<u64>()),
            core::ptr::read_volatile(at.add(32).cast::<i32>()),
        )
    };
    let request = UringRequest::at(request)?;
    let (direction, shape) = match request.opcode()? {
        op::READ | op::READ_FIXED => (direction::READ, Shape::Plain),
        op::WRITE | op::WRITE_FIXED => (direction::WRITE, Shape::Plain),
        op::RECV => (direction::READ, Shape::Socket),
        op::SEND | op::SEND_ZC => (direction::WRITE, Shape::Socket),
        op::READV | op::RECVMSG => (direction::READ, Shape::Vectors),
        op::WRITEV | op::SENDMSG | op::SENDMSG_ZC => (direction::WRITE, Shape::Vectors),
        _ => return None,
    };
    let caller = Caller::traced()?;
    let file = kernel::socket_file(request.file()?)?;
    // Whoever waits for completions runs an event loop.
    cause::waited(true);
    let (mut vectors, mut length) = (NO_BYTES, 1);
    match shape {
        Shape::Vectors => emit::drop_one(drop_reason::IO_URING),
        Shape::Plain => {
            vectors = BUFFER;
            length = request.plain_length()?;
        }
        Shape::Socket => {
            let flags = request.message_flags()?;
            if flags & MSG_OOB != 0 {
                return None;
            }
            if direction == direction::READ {
                if flags & (MSG_PEEK | MSG_ERRQUEUE) != 0 {
                    return None;
                }
                if request.socket_flags()? & MULTISHOT != 0 {
                    emit::drop_one(drop_reason::IO_URING);
                }
            }
            vectors = match direction == direction::READ && flags & MSG_TRUNC != 0 {
                true => NO_BYTES,
                false => BUFFER,
            };
            length = request.socket_length()?;
        }
    }
    if result <= 0 {
        let is_end = result == 0 && direction == direction::READ && length > 0;
        return io::ended(&caller, &file, result as i64, direction, is_end);
    }
    let base = match shape {
        Shape::Plain => request.plain_address()?,
        Shape::Socket => request.socket_address()?,
        Shape::Vectors => 0,
    };
    io::account(
        ctx,
        &caller,
        &file,
        direction,
        base,
        vectors,
        result as u32,
        None,
        Begun::Now,
    );
    None
}
