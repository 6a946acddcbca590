//! What the kernel side remembers of a connection, and how one comes into the table.

use aya_ebpf::bindings::BPF_ANY;
use tracer_common::abi::{connection_entry, direction, drop_reason, role, setting};

use crate::cause::{Cause, Opener};
use crate::emit;
use crate::kernel::{self, AF_UNIX, Sequences, Socket, SocketFile};
use crate::maps::{CONNECTIONS, EMPTY_CONNECTION, IGNORED_PORTS, JOINED, read_setting};
use crate::memory::Forgotten;

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
    /// As a server: a request is being served ([`open`]).
    pub open: u8,
    /// As a client: a request was sent.
    pub called: u8,
    /// `read_sequence` and `write_sequence` are known.
    pub sequences: u8,
    /// As a server: position of the request that is being served.
    pub open_key: u64,
    /// As a client: the exchange that the newest request was sent for; before the first one, that the
    /// connection was opened for.
    pub call: Cause,
    /// Who sent that request, or opened the connection: thread or goroutine.
    pub caller: u64,
    /// As a client with an event loop: the process in whose pool it waits; 0 for none.
    pub pooled: u32,
    /// Of a socket: the process whose TLS session it carries, 0 if none is known.
    pub tls_tgid: u32,
    /// Where it leads, of address and port mixed; 0 until that is asked for. As a client that speaks HTTP/2: who
    /// writes to it (`cause/begun.rs`). As a server that does: streams up to this one count as ended (`cause/stream.rs`).
    pub place: u64,
    /// TCP sequence numbers of the bytes at position 0; of a session those of its socket.
    pub read_sequence: u32,
    pub write_sequence: u32,
    /// Of a socket: key of the TLS session it carries. Of a session: its socket. 0 if not known.
    pub other: u64,
    /// This is the plaintext of a TLS session, not a socket.
    pub is_tls: u8,
    /// Its end was told.
    pub ended: u8,
    /// Of a socket that carries a TLS session: calls wait where there is nothing to read.
    pub blocking: u8,
    /// Bits of [`mark`].
    pub marks: u8,
    /// Newest stream of HTTP/2 that was begun.
    pub newest: u32,
}

/// Bits of [`Connection::marks`].
pub mod mark {
    /// As a client: where one of its requests ended was told by the answer alone.
    pub const GUESSED: u8 = 1;
    /// As a server: the request at `open_key` is counted among those of its process.
    pub const COUNTED: u8 = 2;
}

/// Values of [`Connection::open`].
pub mod open {
    /// Nothing is being served.
    pub const NOTHING: u8 = 0;
    /// One request.
    pub const ONE: u8 = 1;
    /// Several, which cannot be told apart.
    pub const SEVERAL: u8 = 2;
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Connection>() == connection_entry::WORDS * 8);
    assert!(offset_of!(Connection, id) == 0);
    assert!(offset_of!(Connection, verdict) == connection_entry::VERDICT_BYTE);
    assert!(offset_of!(Connection, since_ns) == 8 * connection_entry::SINCE_WORD);
    assert!(verdict::IGNORED == connection_entry::IGNORED);
    assert!(offset_of!(Connection, open_key) == 8 * connection_entry::OPEN_KEY_WORD);
};

impl Connection {
    /// The socket behind it, of which `key` is the key in the table; 0 if it is not known.
    #[inline(always)]
    pub fn socket(&self, key: Socket) -> Socket {
        if self.is_tls != 0 { self.other } else { key }
    }

    /// What an empty one is from the beginning.
    #[inline(always)]
    fn begin(&mut self, sock: Socket, origin: &Origin, now_ns: u64, inode: u64) {
        let &Origin {
            family,
            role,
            from_start,
            sequences,
            opener,
        } = origin;
        self.id = identity(sock, now_ns);
        self.inode = inode;
        self.since_ns = now_ns;
        self.family = family;
        self.role = role;
        if ports_ignored(sock, family, role) {
            self.verdict = verdict::IGNORED;
        }
        self.from_start = from_start as u8;
        self.last = 2;
        // Of what was asked before nothing is known.
        self.bodiless = !from_start as u8;
        self.requests = likely_requests(role);
        self.call = opener.cause;
        self.caller = opener.owner;
        self.sequences = sequences.known;
        self.read_sequence = sequences.read;
        self.write_sequence = sequences.write;
    }

    /// The socket of this session is known now.
    #[inline(always)]
    pub fn carried_by(&mut self, socket: Socket, carrier: &Connection) {
        self.other = socket;
        self.family = carrier.family;
        self.inode = carrier.inode;
        if self.role == role::UNKNOWN {
            self.role = carrier.role;
        }
        // Both count from their first byte, so what is at a position of the plaintext has the same
        // number at both ends of the connection.
        if self.from_start != 0 && carrier.from_start != 0 {
            self.sequences = carrier.sequences;
            self.read_sequence = carrier.read_sequence;
            self.write_sequence = carrier.write_sequence;
        }
        if self.read.position == 0 && self.write.position == 0 {
            self.requests = likely_requests(self.role);
        }
        // As long as it carries no request: who opened it, and for which exchange.
        if self.called == 0 && carrier.called == 0 {
            self.call = carrier.call;
            self.caller = carrier.caller;
        }
        if ports_ignored(socket, self.family, self.role) {
            self.verdict = verdict::IGNORED;
        }
    }

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
    /// Chunk size being read. In a head, the length of the body that was told so far.
    pub chunk_size: u64,
    /// Bytes captured of this message while its framing is not known.
    pub unframed: u32,
    /// One of [`mode`].
    pub mode: u8,
    /// `frame::chunk` phase. In a head, what its first line said: one of [`first`].
    pub chunk_phase: u8,
    /// `frame::Head::carry`.
    pub carry: u8,
    /// In a head, the `frame::Body` that was told so far.
    pub said: u8,
}

impl Direction {
    /// True in the modes that know how much to leave out.
    #[inline(always)]
    pub fn has_skip(&self) -> bool {
        self.mode == mode::BODY || self.mode == mode::CHUNKED || self.mode == mode::FRAMES
    }

    /// Keeps what a part of a head said, for the part that follows. Gives back the first two.
    #[inline(always)]
    pub fn keep_said(&mut self, first: u8, said: u8, length: u64) -> (u8, u8) {
        Forgotten::new(&mut self.chunk_size).store(length);
        let (first_kept, said_kept) = (
            Forgotten::new(&mut self.chunk_phase),
            Forgotten::new(&mut self.said),
        );
        first_kept.store(first);
        said_kept.store(said);
        (first_kept.load(), said_kept.load())
    }
}

/// What the first line of a message says about the bodies of its connection.
pub mod first {
    /// It was cut, or begins like no message.
    pub const UNKNOWN: u8 = 0;
    /// A request.
    pub const REQUEST: u8 = 1;
    /// A request whose response has no body, or may have none.
    pub const BODILESS: u8 = 2;
    /// `CONNECT`.
    pub const CONNECT: u8 = 3;
    /// A request that may carry spans.
    pub const EXPORT: u8 = 4;
    /// A response; those of a kind of their own follow.
    pub const RESPONSE: u8 = 5;
    /// 2xx.
    pub const SUCCESS: u8 = 6;
    /// 204.
    pub const NO_CONTENT: u8 = 7;
    /// 304.
    pub const NOT_MODIFIED: u8 = 8;
    /// 1xx.
    pub const INTERIM: u8 = 9;
    /// 101.
    pub const SWITCHES: u8 = 10;
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
    said: 0,
};

/// Zeros, as the entry of `EMPTY_CONNECTION` is.
const EMPTY: Connection = Connection {
    id: 0,
    inode: 0,
    since_ns: 0,
    read: FRESH,
    write: FRESH,
    family: 0,
    role: role::UNKNOWN,
    verdict: verdict::UNKNOWN,
    from_start: 0,
    announced: 0,
    last: 0,
    misses: 0,
    bodiless: 0,
    connect: 0,
    turned: 0,
    outstanding: 0,
    requests: 0,
    open: open::NOTHING,
    called: 0,
    sequences: 0,
    open_key: 0,
    call: Cause::NONE,
    caller: 0,
    pooled: 0,
    tls_tgid: 0,
    place: 0,
    read_sequence: 0,
    write_sequence: 0,
    other: 0,
    is_tls: 0,
    ended: 0,
    blocking: 0,
    marks: 0,
    newest: 0,
};

/// Where a connection comes from.
#[derive(Clone, Copy)]
pub struct Origin {
    /// Address family.
    pub family: u16,
    /// `abi::role`.
    pub role: u8,
    /// Seen from its first byte.
    pub from_start: bool,
    /// TCP sequence numbers of the next bytes read and written.
    pub sequences: Sequences,
    /// Who opened it, and for which exchange.
    pub opener: Opener,
}

/// Enters a connection. The table forgets the longest unused one when it is full; should that one
/// speak again, it is joined in the middle, and user space counts what it had outstanding.
#[inline(always)]
pub fn insert(sock: Socket, origin: &Origin, now_ns: u64, inode: u64) {
    let mut connection = EMPTY;
    connection.begin(sock, origin, now_ns, inode);
    enter(sock, &connection);
}

#[inline(always)]
fn enter(key: Socket, connection: &Connection) {
    let entered = CONNECTIONS.insert(&key, connection, BPF_ANY as u64);
    if entered.is_err() {
        emit::drop_one(drop_reason::CONNECTIONS_FULL);
    }
}

/// Unique enough to be an identity: two connections would have to begin in the same nanosecond at
/// the same address.
#[inline(always)]
fn identity(sock: Socket, now_ns: u64) -> u64 {
    now_ns ^ (sock << 40)
}

/// A head that comes in parts is more often a request's.
#[inline(always)]
fn likely_requests(role: u8) -> u8 {
    if role == role::CLIENT {
        direction::WRITE
    } else {
        direction::READ
    }
}

/// Enters the plaintext of a TLS session that the socket of this entry carries, if that is known. It
/// is made in the table, because the stack has no room for another one; nobody else has its key.
#[inline(always)]
pub fn insert_session(
    key: Socket,
    from_start: bool,
    now_ns: u64,
    socket: Socket,
    carrier: Option<&Connection>,
) -> Option<&'static mut Connection> {
    enter(key, EMPTY_CONNECTION.get(0)?);
    let session = find(key)?;
    session.id = identity(key, now_ns);
    session.since_ns = now_ns;
    session.role = role::UNKNOWN;
    session.from_start = from_start as u8;
    session.bodiless = !from_start as u8;
    session.last = 2;
    session.is_tls = 1;
    if let Some(carrier) = carrier {
        session.carried_by(socket, carrier);
    }
    session.requests = likely_requests(session.role);
    Some(session)
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
pub fn find_or_join(
    file: &SocketFile,
    direction: u8,
    moved: u32,
    now_ns: u64,
) -> Option<&'static mut Connection> {
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
    let mut sequences = kernel::sequences(file.sock, family);
    // The call has moved its bytes already.
    if direction == direction::READ {
        sequences.read = sequences.read.wrapping_sub(moved);
    } else {
        sequences.write = sequences.write.wrapping_sub(moved);
    }
    let origin = Origin {
        family,
        role: role::UNKNOWN,
        from_start: false,
        sequences,
        opener: Opener::NOBODY,
    };
    // SAFETY: data calls' programs run with preemption disabled and not within each other, so the
    // per-CPU slot is ours.
    let joined = unsafe { JOINED.get_ptr_mut(0)?.as_mut()? };
    *joined = EMPTY;
    joined.begin(file.sock, &origin, now_ns, number);
    enter(file.sock, joined);
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
