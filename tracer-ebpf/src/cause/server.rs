//! Which connection an object of Go's HTTP/2 server serves, where the agent came after it was made.
//!
//! In: the object (`serverConn` of `net/http` and of `golang.org/x/net/http2`) and a stream that it serves. Out: the connection.
//!
//! The way there is by the layout of types, of which the words that are used have been the same since Go 1.9: `serverConn` has its
//! `net.Conn` behind two pointers; a `TCPConn` or `UnixConn` is a pointer to a `netFD`; `tls.Conn`, and most of what wraps a
//! connection, begins with the `net.Conn` inside. A layout is not believed: the descriptor that is found has to be of the family that the
//! `netFD` names, has to speak HTTP/2, and has to have this very stream open. Anything else is no connection.

use aya_ebpf::helpers::bpf_probe_read_user;

use super::Cause;
use crate::connection::{self, verdict};
use crate::kernel::{self, Socket};

/// The data word of `serverConn.conn`: behind two pointers and the word of its type.
const CONN: u64 = 24;
/// How deep a connection may be wrapped.
const DEEPEST: u32 = 3;
/// `SOCK_STREAM`.
const STREAM: u64 = 1;

/// The beginning of a `netFD`.
#[repr(C)]
#[derive(Clone, Copy)]
struct NetFd {
    /// State and semaphores of `poll.FD`.
    lock: [u64; 2],
    descriptor: u64,
    /// The rest of `poll.FD`.
    rest: [u64; 4],
    family: u64,
    kind: u64,
}

#[inline(always)]
fn read<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(address as *const T) }.ok()
}

/// Id and key of the connection on which the object serves this stream.
#[inline(always)]
pub(super) fn connection_of(server: u64, stream: u32) -> Option<Cause> {
    let mut object: u64 = read(server.wrapping_add(CONN))?;
    let mut depth = 0;
    while depth < DEEPEST {
        if let Some(found) = behind(object, stream) {
            return Some(found);
        }
        // What is wrapped: its data word.
        object = read(object.wrapping_add(8))?;
        depth += 1;
    }
    None
}

/// The connection behind this object, if it is a pointer to a `netFD` and nothing contradicts.
#[inline(always)]
fn behind(object: u64, stream: u32) -> Option<Cause> {
    let at: u64 = read(object)?;
    let net: NetFd = read(at)?;
    if net.kind != STREAM || net.descriptor >> 31 != 0 {
        return None;
    }
    let file = kernel::socket_of(net.descriptor as i32)?;
    let carrier = connection::find(file.sock)?;
    if carrier.family as u64 != net.family {
        return None;
    }
    let mut key: Socket = file.sock;
    let (mut id, mut speaks) = (carrier.id, carrier.verdict);
    if let Some(session) = carrier.session() {
        key = carrier.other;
        (id, speaks) = (session.id, session.verdict);
    }
    let served = Cause {
        connection: id,
        key: stream as u64,
    };
    (speaks == verdict::HTTP2 && served.is_open_stream()).then_some(Cause {
        connection: id,
        key,
    })
}
