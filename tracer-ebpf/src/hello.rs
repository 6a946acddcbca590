//! ClientHellos: which socket carries the session that made up these 32 random bytes.
//!
//! A client sends its random in the first record of its connection, in the clear, at a fixed place (RFC 8446 section
//! 4.1.2). Both ends keep it in their session's object. So where a program moves its ciphertext itself, a session's
//! socket is the one on which its process wrote (as a client) or read (as a server) a ClientHello with the random that
//! is found in the object. Two sockets with the same random, as of a tunnel within the process, prove nothing.
//!
//! Which end a session is shows the first plaintext: who writes a request first is the client. So a process that talks to
//! itself has one candidate for each of the two.
//!
//! Where the random is in the object differs from version to version, so it is searched. In OpenSSL 3 it is in the object
//! itself (at 352 in 3.0), in 1.1 in a structure that the object points to. User space says which of the two a
//! session is; others have smaller objects, behind which another session's might be found, and are not searched.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::bpf_probe_read_user as read_user_into;
use tracer_common::abi::direction;
use tracer_common::frame::Window as _;

use crate::connection::Connection;
use crate::kernel::{Socket, SocketFile};
use crate::maps::{HELLOS, Scratch};
use crate::probes::deliver::Bytes;
use crate::probes::io::Caller;

/// Key of [`HELLOS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HelloKey {
    /// The first eight bytes of the random.
    pub first: u64,
    pub tgid: u32,
    /// Whether the process read or wrote it: `abi::direction`.
    pub direction: u32,
}

/// A ClientHello on a socket.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Hello {
    /// The other 24 bytes of the random.
    pub rest: [u64; 3],
    /// The socket; 0: there are several.
    pub socket: Socket,
    /// See `socket`.
    pub inode: u64,
}

/// How an object holds the random.
pub mod layout {
    /// It is not known.
    pub const NONE: u8 = 0;
    /// As OpenSSL 1.1 does.
    pub const BEHIND: u8 = 1;
    /// As OpenSSL 3 does.
    pub const WITHIN: u8 = 2;
}

/// Bytes of the call that have to be there: headers of record (5) and message (4), version (2), random.
pub const BYTES: u32 = 43;
/// Where the message's type is, and the random.
const TYPE: u64 = 5;
const RANDOM: u64 = 11;
/// `handshake`, the type of a record.
pub const HANDSHAKE: u8 = 0x16;
/// `client_hello`, the type of a message.
const CLIENT_HELLO: u8 = 1;

/// What of an object is searched, for words of eight bytes: objects of OpenSSL 3 are longer.
const FROM: u64 = 0x100;
const SEARCHED: u32 = 0x200;
/// OpenSSL 1.1: where the object points to the structure, and where in that the random is.
const STRUCTURE: u64 = 0xa8;
const RANDOM_IN_STRUCTURE: u64 = 0xb8;

/// True if nothing was moved on the connection in that direction yet.
#[inline(always)]
pub fn is_first(carrier: &Connection, way: u8) -> bool {
    let moved = if way == direction::READ {
        carrier.read.position
    } else {
        carrier.write.position
    };
    moved == 0 && carrier.from_start != 0
}

/// The first record that a process moves on a connection is one of a handshake, and its first [`BYTES`] are at `at`.
#[inline(always)]
pub fn note(
    caller: &Caller,
    file: &SocketFile,
    carrier: &Connection,
    way: u8,
    at: u64,
) -> Option<()> {
    if !is_first(carrier, way) {
        return None;
    }
    // SAFETY: the helper checks the address.
    let kind: u8 = unsafe { bpf_probe_read_user((at + TYPE) as *const _) }.ok()?;
    if kind != CLIENT_HELLO {
        return None;
    }
    // SAFETY: as above.
    let [first, rest @ ..]: [u64; 4] =
        unsafe { bpf_probe_read_user((at + RANDOM) as *const _) }.ok()?;
    let key = HelloKey {
        first,
        tgid: caller.tgid,
        direction: way as u32,
    };
    let hello = Hello {
        rest,
        socket: file.sock,
        inode: file.number(),
    };
    if HELLOS.insert(&key, &hello, BPF_NOEXIST as u64).is_err()
        && let Some(before) = HELLOS.get_ptr_mut(&key)
    {
        // SAFETY: the pointer is into the map.
        unsafe {
            if (*before).socket != hello.socket || (*before).inode != hello.inode {
                (*before).socket = 0;
            }
        }
    }
    None
}

/// The socket whose ClientHello has the random that is in this object, and the socket's inode number.
#[inline(always)]
pub fn find(
    scratch: &mut Scratch,
    object: u64,
    layout: u8,
    caller: &Caller,
    way: u32,
) -> Option<(Socket, u64)> {
    let window = scratch.window.as_mut_ptr();
    let mut words = SEARCHED / 8;
    if layout == layout::WITHIN {
        // SAFETY: the window is longer; the helper checks the source.
        let read = unsafe { read_user_into(window.cast(), SEARCHED, (object + FROM) as *const _) };
        if read != 0 {
            return None;
        }
    } else {
        words = 1;
        // SAFETY: the helper checks the address.
        let structure: u64 =
            unsafe { bpf_probe_read_user((object + STRUCTURE) as *const _) }.ok()?;
        // SAFETY: as above.
        let read = unsafe {
            let random = structure.wrapping_add(RANDOM_IN_STRUCTURE);
            read_user_into(window.cast(), 32, random as *const _)
        };
        if read != 0 {
            return None;
        }
    }
    let bytes = Bytes::of(scratch);
    let mut i = 0;
    while i < SEARCHED / 8 {
        if i >= words {
            break;
        }
        let at = i * 8;
        i += 1;
        let key = HelloKey {
            first: bytes.word(at),
            tgid: caller.tgid,
            direction: way,
        };
        // SAFETY: the value is only read.
        let Some(hello) = (unsafe { HELLOS.get(&key) }) else {
            continue;
        };
        // The last words of what was read are never a random's first: what is behind them does not matter.
        let [second, third, last] = hello.rest;
        let is_same = bytes.word(at + 8) == second
            && bytes.word(at + 16) == third
            && bytes.word(at + 24) == last;
        if !is_same {
            continue;
        }
        let found = (hello.socket, hello.inode);
        let _ = HELLOS.remove(&key);
        return (found.0 != 0).then_some(found);
    }
    None
}
