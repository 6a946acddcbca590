//! What the kernel side remembers of a connection, and how one comes into the table.

use aya_ebpf::bindings::BPF_ANY;
use tracer_common::abi::{connection_entry, direction, drop_reason, role, setting};

use crate::emit;
use crate::kernel::{self, AF_UNIX, Socket, SocketFile};
use crate::maps::{CONNECTIONS, IGNORED_PORTS, read_setting};

/// Value of the connection table.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connection {
    /// Unique; user space knows the connection by it.
    pub id: u64,
    /// Socket inode number, 0 until the first call.
    pub inode: u64,
    /// When tracking began.
    pub since_ns: u64,
    /// By `abi::direction`.
    pub read: Direction,
    /// See `read`.
    pub write: Direction,
    /// Of a socket: key of the TLS session it carries. Of a session: its socket. 0 if not known.
    pub other: u64,
    /// Of a socket: the process whose TLS session it carries, 0 if none is known.
    pub tls_tgid: u32,
    pub reserved_too: u32,
    /// Address family.
    pub family: u16,
    /// `abi::role`, from the TCP state change.
    pub role: u8,
    /// One of [`verdict`].
    pub verdict: u8,
    /// Tracked from its first byte.
    pub from_start: u8,
    /// User space was told of it.
    pub announced: u8,
    /// Direction of the last call.
    pub last: u8,
    /// Turns without a message start, for connections joined in the middle.
    pub misses: u8,
    /// An outstanding request is HEAD or CONNECT: lengths of responses mean nothing.
    pub bodiless: u8,
    /// An outstanding request is CONNECT.
    pub connect: u8,
    /// The direction has just turned.
    pub turned: u8,
    /// Request heads without a response head, as far as they were seen. Those that were not make it
    /// too low only where requests are pipelined behind one that came in parts.
    pub outstanding: u8,
    /// Direction of the requests.
    pub requests: u8,
    /// This is the plaintext of a TLS session, not a socket.
    pub is_tls: u8,
    /// Its end was told.
    pub ended: u8,
    pub reserved: u8,
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Connection>() == connection_entry::WORDS * 8);
    assert!(offset_of!(Connection, id) == 0);
    assert!(offset_of!(Connection, verdict) == connection_entry::VERDICT_BYTE);
    assert!(offset_of!(Connection, since_ns) == 8 * connection_entry::SINCE_WORD);
    assert!(verdict::IGNORED == connection_entry::IGNORED);
};

impl Connection {
    /// The plaintext of the TLS session that this socket carries.
    #[inline(always)]
    pub fn session(&self) -> Option<&'static mut Connection> {
        if self.other == 0 || self.is_tls != 0 {
            return None;
        }
        find(self.other)
    }
}

/// One direction of a connection.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Direction {
    /// Bytes moved so far.
    pub position: u64,
    /// Bytes left out on purpose since the last event of this direction.
    pub skipped: u64,
    /// Body or chunk bytes to skip.
    pub skip: u64,
    /// Chunk size being read.
    pub chunk_size: u64,
    /// Bytes captured of this message while its framing is not known.
    pub unframed: u32,
    /// One of [`mode`].
    pub mode: u8,
    /// `frame::chunk` phase.
    pub chunk_phase: u8,
    /// `frame::Head::carry`.
    pub carry: u8,
    pub reserved: u8,
}

impl Direction {
    /// True in the modes that know how much to leave out.
    #[inline(always)]
    pub fn has_skip(&self) -> bool {
        self.mode == mode::BODY || self.mode == mode::CHUNKED || self.mode == mode::FRAMES
    }
}

/// What a direction is in.
pub mod mode {
    /// The next byte should begin a message.
    pub const START: u8 = 0;
    /// In a head whose end was not seen yet.
    pub const HEAD: u8 = 1;
    /// In a body of known length.
    pub const BODY: u8 = 2;
    /// In a chunked body.
    pub const CHUNKED: u8 = 3;
    /// In something whose end only a turn tells.
    pub const UNFRAMED: u8 = 4;
    /// In HTTP/2 frames: `skip` is DATA payload to leave out, `unframed` other payload to ship,
    /// `chunk_phase` and `chunk_size` are a frame header that a call cut.
    pub const FRAMES: u8 = 5;
}

/// What a connection was found to speak.
pub mod verdict {
    /// Not known yet.
    pub const UNKNOWN: u8 = 0;
    /// HTTP/1.
    pub const HTTP1: u8 = 1;
    /// Nothing we parse (any more): only counted.
    pub const IGNORED: u8 = 2;
    /// HTTP/2.
    pub const HTTP2: u8 = 3;
    /// HTTP/1 up to a 101: what comes behind it is HTTP/2 or nothing we parse.
    pub const UPGRADED: u8 = 4;
}

const FRESH: Direction = Direction {
    position: 0,
    skipped: 0,
    skip: 0,
    chunk_size: 0,
    unframed: 0,
    mode: mode::START,
    chunk_phase: 0,
    carry: 0,
    reserved: 0,
};

/// Enters a connection. The table forgets the longest unused one when it is full; should that one
/// speak again, it is joined in the middle, and user space counts what it had outstanding.
#[inline(always)]
pub fn insert(sock: Socket, family: u16, role: u8, from_start: bool, now_ns: u64, inode: u64) {
    let new = New {
        family,
        role,
        from_start,
        now_ns,
        inode,
        session_of: None,
    };
    insert_new(sock, &new);
}

/// What a new entry begins with.
pub struct New {
    pub family: u16,
    pub role: u8,
    pub from_start: bool,
    pub now_ns: u64,
    pub inode: u64,
    /// For a TLS session: its socket, 0 if not known.
    pub session_of: Option<Socket>,
}

/// See [`insert`].
#[inline(always)]
pub fn insert_new(sock: Socket, new: &New) {
    let &New {
        family,
        role,
        from_start,
        now_ns,
        inode,
        session_of,
    } = new;
    let verdict = if ports_ignored(session_of.unwrap_or(sock), family, role) {
        verdict::IGNORED
    } else {
        verdict::UNKNOWN
    };
    let connection = Connection {
        // Unique enough to be an identity: two connections would have to begin in the same
        // nanosecond at the same address.
        id: now_ns ^ (sock << 40),
        inode,
        since_ns: now_ns,
        read: FRESH,
        write: FRESH,
        family,
        role,
        verdict,
        from_start: from_start as u8,
        announced: 0,
        last: 2,
        misses: 0,
        // Of what was asked before nothing is known.
        bodiless: !from_start as u8,
        connect: 0,
        turned: 0,
        outstanding: 0,
        // A head that comes in parts is more often a request's.
        requests: if role == role::CLIENT {
            direction::WRITE
        } else {
            direction::READ
        },
        is_tls: session_of.is_some() as u8,
        ended: 0,
        reserved: 0,
        tls_tgid: 0,
        reserved_too: 0,
        other: session_of.unwrap_or(0),
    };
    if CONNECTIONS
        .insert(&sock, &connection, BPF_ANY as u64)
        .is_err()
    {
        emit::drop_one(drop_reason::CONNECTIONS_FULL);
    }
}

/// The table's entry, valid until this program returns.
#[inline(always)]
pub fn find(sock: Socket) -> Option<&'static mut Connection> {
    // SAFETY: map values live under RCU until the program ends; fields of one direction are written
    // by the process's own calls in that direction, which it has to serialise itself.
    unsafe { CONNECTIONS.get_ptr_mut(&sock)?.as_mut() }
}

/// The entry for the socket of a data call, made when it is not there yet.
#[inline(always)]
pub fn find_or_join(file: &SocketFile, now_ns: u64) -> Option<&'static mut Connection> {
    let number = file.number();
    if let Some(connection) = find(file.sock) {
        if connection.inode == number {
            return Some(connection);
        }
        if connection.inode == 0 {
            connection.inode = number;
            return Some(connection);
        }
        // The address was used again and we missed the end of the old connection.
    }
    let family = kernel::family(file.sock);
    if !file.is_stream(family) {
        return None;
    }
    insert(file.sock, family, role::UNKNOWN, false, now_ns, number);
    find(file.sock)
}

/// Takes a connection out of the table.
#[inline(always)]
pub fn remove(sock: Socket) {
    let _ = CONNECTIONS.remove(&sock);
}

#[inline(always)]
pub fn ports_ignored(sock: Socket, family: u16, role: u8) -> bool {
    if read_setting(setting::PORTS_ACTIVE) == 0 || family == AF_UNIX || family == 0 {
        return false;
    }
    let local = (kernel::local_port(sock) as u32) << 1;
    let remote = (kernel::remote_port(sock) as u32) << 1 | 1;
    // SAFETY: values are only read.
    unsafe {
        (role != role::CLIENT && IGNORED_PORTS.get(&local).is_some())
            || (role != role::SERVER && IGNORED_PORTS.get(&remote).is_some())
    }
}
