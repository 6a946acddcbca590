//! TLS sessions: which socket carries which session's ciphertext.
//!
//! A session is known by its object's address in its process. Its plaintext is a connection of its
//! own in the connection table, under a key made here, and is looked at like that of a socket.
//!
//! It is bound to a socket by evidence only. While a thread is in a call for a session, a TLS
//! record that it moves on a stream socket is that session's. Programs that keep the ciphertext in
//! memory and move it themselves show it by their ClientHello ([`crate::hello`]), else by what the same thread does next: the
//! record behind the one call has the length that this plaintext makes, and there is no other candidate. What has no
//! evidence stays unbound: its exchanges have no addresses, which is counted.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_probe_read_user};
use tracer_common::abi::{direction, end};
use tracer_common::tls::{self, APPLICATION_DATA, HEADER};

use crate::cause;
use crate::connection::{self, Connection, verdict};
use crate::emit::{self, Ended};
use crate::hello::{self, layout};
use crate::kernel::{self, Arguments, Socket, SocketFile};
use crate::maps::{
    BUFFER, NO_BYTES, Scratch, TLS_ACTIVE, TLS_EMPTY_THREAD, TLS_SESSIONS, TLS_THREADS, count,
};
use crate::probes::io::Caller;

/// Key of [`TLS_SESSIONS`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionKey {
    /// Address of the session's object.
    pub object: u64,
    pub tgid: u32,
    pub reserved: u32,
}

/// A session.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Session {
    /// Its plaintext's key in the connection table: never a kernel address.
    pub key: u64,
    /// The socket that carries it, 0 if not known.
    pub socket: Socket,
    /// The socket's inode number, against a second use of the address.
    pub inode: u64,
    /// Seen from its handshake on.
    pub from_start: u8,
    /// Its plaintext was in the connection table.
    pub entered: u8,
    /// How its object can be searched: [`hello::layout`].
    pub layout: u8,
    /// Directions in which plaintext was moved while its socket was not known, by bit: what begins one has shown who asks.
    pub searched: u8,
    /// Its socket was found so: the program moves the ciphertext itself.
    pub proved: u8,
    pub reserved: [u8; 3],
}

/// Key of [`TLS_THREADS`]: what calls of a session follow each other in.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ThreadKey {
    /// Process and thread; of a goroutine only the process, for it may go from thread to thread.
    pub id: u64,
    /// Address of the goroutine, else 0.
    pub goroutine: u64,
}

/// What a thread is doing with TLS.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Thread {
    /// Calls it is in, the outer one first.
    pub calls: [TlsCall; 2],
    /// The session whose plaintext was written last, without its ciphertext being seen since.
    pub wrote: u64,
    /// Its length.
    pub wrote_length: u32,
    /// Writes of other sessions since then make it 2: no evidence.
    pub writers: u32,
    /// The socket that a record was read from last, with no TLS call since.
    pub read_socket: Socket,
    /// See `read_socket`.
    pub read_inode: u64,
    /// The record's length.
    pub read_length: u32,
    /// Other sockets read from since then make it 2: no evidence.
    pub readers: u32,
}

/// One TLS call under way.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TlsCall {
    /// Stack pointer at the entry, which is that at the RET too; 0: none.
    pub stack: u64,
    /// Address of the session's object.
    pub object: u64,
    /// Buffer.
    pub buffer: u64,
    /// Where the length is left, for functions that return it so.
    pub out: u64,
    pub start_ns: u64,
    /// One of [`kind`].
    pub kind: u8,
    /// A socket was read or written meanwhile.
    pub nested: u8,
    pub reserved: [u8; 2],
    /// Of writes: bytes of the buffer, as far as they can be said.
    pub length: u32,
}

/// What a TLS call does and how it says how much.
pub mod kind {
    /// Reads; returns the number of bytes.
    pub const READ: u8 = 1;
    /// Writes; returns the number of bytes.
    pub const WRITE: u8 = 2;
    /// Reads; returns 1 and leaves the number.
    pub const READ_EX: u8 = 3;
    /// Writes; returns 1 and leaves the number.
    pub const WRITE_EX: u8 = 4;
    /// Writes from a file; returns the number of bytes.
    pub const SEND_FILE: u8 = 5;
    /// Shakes hands.
    pub const HANDSHAKE: u8 = 6;
    /// Returns a new session.
    pub const NEW: u8 = 7;
    /// Returns 0 and leaves a new session.
    pub const NEW_OUT: u8 = 8;
    /// As [`NEW`], of OpenSSL 1.1.
    pub const NEW_1: u8 = 9;
    /// As [`NEW`], of OpenSSL 3.
    pub const NEW_3: u8 = 10;
}

/// The current time.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The thread's entry.
#[inline(always)]
pub fn thread(key: &ThreadKey) -> Option<&'static mut Thread> {
    // SAFETY: map values live under RCU until the program ends; only this thread uses its own.
    unsafe { TLS_THREADS.get_ptr_mut(key)?.as_mut() }
}

/// The thread's entry, made if it is not there.
#[inline(always)]
pub fn thread_or_new(key: &ThreadKey) -> Option<&'static mut Thread> {
    if let Some(thread) = thread(key) {
        return Some(thread);
    }
    let empty = TLS_EMPTY_THREAD.get(0)?;
    let _ = TLS_THREADS.insert(key, empty, BPF_ANY as u64);
    thread(key)
}

impl Thread {
    /// The call that a socket call is made from now; `None` if there is none. `stack` is the stack
    /// pointer in the socket call: a call that it is not below of was left without a return.
    #[inline(always)]
    pub fn innermost(&mut self, stack: u64) -> Option<&mut TlsCall> {
        let [outer, inner] = &mut self.calls;
        if inner.stack > stack {
            Some(inner)
        } else if outer.stack > stack {
            Some(outer)
        } else {
            None
        }
    }
}

/// The session, if it is known.
#[inline(always)]
pub fn session(key: &SessionKey) -> Option<&'static mut Session> {
    // SAFETY: as in `thread`; calls for one session are serialised by the process.
    unsafe { TLS_SESSIONS.get_ptr_mut(key)?.as_mut() }
}

/// The session, made if it is not known.
#[inline(always)]
pub fn session_or_new(key: &SessionKey, from_start: bool) -> Option<&'static mut Session> {
    if let Some(session) = session(key) {
        return Some(session);
    }
    new_session(key, from_start, layout::NONE);
    session(key)
}

/// Enters a session.
#[inline(always)]
pub fn new_session(key: &SessionKey, from_start: bool, layout: u8) {
    let session = Session {
        key: new_key(),
        socket: 0,
        inode: 0,
        from_start: from_start as u8,
        entered: 0,
        layout,
        searched: 0,
        proved: 0,
        reserved: [0; 3],
    };
    let _ = TLS_SESSIONS.insert(key, &session, BPF_ANY as u64);
}

/// A key that no socket has (kernel addresses have the highest bit) and no other session: made on
/// this CPU at this nanosecond.
#[inline(always)]
fn new_key() -> u64 {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    (now() << 10 | (cpu as u64 & 1023)) & (u64::MAX >> 1)
}

/// A session's object is freed, or used for another session.
#[inline(always)]
pub fn end_session(key: &SessionKey, caller: &Caller) {
    let Some(session) = session(key) else {
        return;
    };
    end_plaintext(session, caller);
    let _ = TLS_SESSIONS.remove(key);
}

#[inline(always)]
fn end_plaintext(session: &mut Session, caller: &Caller) {
    if let Some(plaintext) = connection::find(session.key) {
        cause::closed(plaintext);
        let ended = Ended {
            cause: end::CLOSED,
            direction: direction::WRITE,
            errno: 0,
            time_ns: now(),
            tgid: caller.tgid,
            tid: caller.tid,
        };
        emit::end(plaintext, &ended);
        if plaintext.announced == 0 {
            connection::remove(session.key);
        }
    }
    if let Some(carrier) = connection::find(session.socket)
        && carrier.other == session.key
    {
        carrier.other = 0;
        carrier.tls_tgid = 0;
    }
}

/// The session's plaintext in the connection table.
#[inline(always)]
pub fn plaintext(session: &mut Session) -> Option<&'static mut Connection> {
    if let Some(plaintext) = connection::find(session.key) {
        return Some(plaintext);
    }
    let from_start = session.from_start != 0 && session.entered == 0;
    let carrier = carrier(session);
    session.entered = 1;
    connection::insert_session(
        session.key,
        from_start,
        now(),
        session.socket,
        carrier.as_deref(),
    )
}

/// A traced process moved bytes on a socket that may carry a TLS session that is not known to.
#[inline(always)]
pub fn on_socket(
    caller: &Caller,
    file: &SocketFile,
    carrier: &mut Connection,
    direction: u8,
    base: u64,
    vectors: u32,
    total: u32,
) -> Option<()> {
    if TLS_ACTIVE.get(0).is_none_or(|active| *active == 0) || carrier.tls_tgid == caller.tgid {
        return None;
    }
    if carrier.from_start != 0
        && carrier.verdict != verdict::IGNORED
        && carrier.verdict != verdict::UNKNOWN
    {
        return None;
    }
    let arguments = Arguments::of_current()?;
    let thread = current_thread(&arguments, caller);
    // Of threads that never call a library only the beginning says anything.
    if thread.is_none() && !hello::is_first(carrier, direction) {
        return None;
    }
    let First { at, length } = First::of(base, vectors, total);
    let record = if length < HEADER as u64 {
        tls::record([0; HEADER])
    } else {
        // SAFETY: the helper checks the address.
        tls::record(unsafe { bpf_probe_read_user(at as *const _) }.unwrap_or([0; HEADER]))
    };
    let Some(thread) = thread else {
        if record.kind == hello::HANDSHAKE && length >= hello::BYTES as u64 {
            hello::note(caller, file, carrier, direction, at);
        }
        return None;
    };
    let stack = arguments.stack()?;
    let this = Carrier {
        sock: file.sock,
        inode: file.number(),
    };
    if let Some(call) = thread.innermost(stack) {
        call.nested = 1;
        if record.kind != 0 || kernel::is_kernel_tls(file.sock) {
            let key = SessionKey {
                object: call.object,
                tgid: caller.tgid,
                reserved: 0,
            };
            bind(&key, call.kind == kind::HANDSHAKE, &this, carrier, caller);
        }
        return None;
    }
    if record.kind == hello::HANDSHAKE {
        if length >= hello::BYTES as u64 {
            hello::note(caller, file, carrier, direction, at);
        }
        return None;
    }
    let length = record.length;
    if record.kind != APPLICATION_DATA {
        return None;
    }
    if direction == direction::READ {
        if thread.readers == 0 || thread.read_socket == file.sock {
            thread.readers = 1;
            thread.read_socket = this.sock;
            thread.read_inode = this.inode;
            thread.read_length = length;
        } else {
            thread.readers = 2;
        }
        return None;
    }
    if thread.writers == 1 && carrier.other == 0 && tls::fits(length, thread.wrote_length) {
        let key = SessionKey {
            object: thread.wrote,
            tgid: caller.tgid,
            reserved: 0,
        };
        bind(&key, false, &this, carrier, caller);
    }
    thread.writers = 0;
    None
}

/// What the current thread, in a system call, does with TLS.
#[inline(always)]
fn current_thread(arguments: &Arguments, caller: &Caller) -> Option<&'static mut Thread> {
    let key = ThreadKey {
        id: (caller.tgid as u64) << 32 | caller.tid as u64,
        goroutine: 0,
    };
    if let Some(thread) = thread(&key) {
        return Some(thread);
    }
    let goroutine = ThreadKey {
        id: (caller.tgid as u64) << 32,
        goroutine: arguments.goroutine()?,
    };
    thread(&goroutine)
}

/// The plaintext that the current thread is about to write to `socket` as ciphertext: the call of the
/// library that the system call is made from, if the session is known to be that socket's.
#[inline(always)]
pub fn writes_through(caller: &Caller, socket: Socket) -> Option<(u64, &'static TlsCall)> {
    let arguments = Arguments::of_current()?;
    let stack = arguments.stack()?;
    let call = current_thread(&arguments, caller)?.innermost(stack)?;
    if call.kind != kind::WRITE && call.kind != kind::WRITE_EX {
        return None;
    }
    let key = SessionKey {
        object: call.object,
        tgid: caller.tgid,
        reserved: 0,
    };
    let session = session(&key)?;
    if session.socket != socket {
        return None;
    }
    plaintext(session)?;
    Some((session.key, call))
}

/// The part of a call's bytes that is in one piece from their beginning on.
struct First {
    at: u64,
    /// 0 if they cannot be had.
    length: u64,
}

impl First {
    #[inline(always)]
    fn of(base: u64, vectors: u32, total: u32) -> Self {
        let total = total as u64;
        if vectors == NO_BYTES {
            return First { at: 0, length: 0 };
        }
        if vectors == BUFFER {
            return First {
                at: base,
                length: total,
            };
        }
        // struct iovec: base 0, length 8.
        // SAFETY: the helper checks the address.
        let vector: [u64; 2] = unsafe { bpf_probe_read_user(base as *const _) }.unwrap_or([0; 2]);
        let [at, length] = vector;
        First {
            at,
            length: if length < total { length } else { total },
        }
    }
}

/// A socket, and which use of its address.
struct Carrier {
    sock: Socket,
    inode: u64,
}

/// The socket is known to carry the session.
#[inline(always)]
fn bind(
    key: &SessionKey,
    in_handshake: bool,
    to: &Carrier,
    carrier: &mut Connection,
    caller: &Caller,
) {
    let Some(mut session) = session_or_new(key, in_handshake) else {
        return;
    };
    let &Carrier { sock, inode } = to;
    if session.socket != 0 && (session.socket != sock || session.inode != inode) {
        // The object was used again, and its end was missed.
        end_plaintext(session, caller);
        new_session(key, in_handshake, layout::NONE);
        let Some(new) = self::session(key) else {
            return;
        };
        session = new;
    }
    session.socket = sock;
    session.inode = inode;
    session.proved = 0;
    if carrier.verdict == verdict::UNKNOWN {
        emit::count_one(count::TLS);
    }
    carrier.verdict = verdict::IGNORED;
    carrier.other = session.key;
    carrier.tls_tgid = caller.tgid;
    if let Some(plaintext) = connection::find(session.key)
        && plaintext.other == 0
    {
        plaintext.carried_by(sock, carrier);
        if plaintext.announced != 0 {
            emit::announce(plaintext, session.key, caller.tgid);
        }
    }
}

/// The socket that is known to carry a session, if it still does.
#[inline(always)]
pub fn carrier(session: &Session) -> Option<&'static mut Connection> {
    if session.socket == 0 {
        return None;
    }
    let carrier = connection::find(session.socket)?;
    (carrier.other == session.key && carrier.inode == session.inode).then_some(carrier)
}

/// Looks for the socket of a session whose plaintext begins with a request that it reads or writes, and binds it. Where there is
/// none, lengths have to tell. True if it was found.
#[inline(always)]
pub fn prove(scratch: &mut Scratch, key: &SessionKey, caller: &Caller) -> bool {
    let total = scratch.call.total;
    let reads = scratch.call.direction == direction::READ as u32;
    let proved = try_prove(scratch, key, caller).is_some();
    let of_thread = ThreadKey {
        id: (caller.tgid as u64) << 32 | caller.tid as u64,
        goroutine: 0,
    };
    let Some(thread) = thread(&of_thread) else {
        return proved;
    };
    if proved {
        thread.readers = 0;
    } else if reads {
        match_read(thread, key, total, caller);
    } else {
        note_write(thread, key.object, total);
    }
    proved
}

#[inline(always)]
fn try_prove(scratch: &mut Scratch, key: &SessionKey, caller: &Caller) -> Option<()> {
    let session = session(key)?;
    let way = scratch.call.direction;
    let (sock, inode) = hello::find(scratch, key.object, session.layout, caller, way)?;
    let carrier = connection::find(sock)?;
    if carrier.inode != inode || carrier.other != 0 {
        return None;
    }
    bind(key, true, &Carrier { sock, inode }, carrier, caller);
    self::session(key)?.proved = 1;
    Some(())
}

/// A read call returned so much plaintext without having read a socket: the record that the thread
/// read before was this, if it has the right length and there was only that one.
#[inline(always)]
pub fn match_read(thread: &mut Thread, key: &SessionKey, plaintext: u32, caller: &Caller) {
    let readers = thread.readers;
    thread.readers = 0;
    if readers != 1 || !tls::fits(thread.read_length, plaintext) {
        return;
    }
    let Some(carrier) = connection::find(thread.read_socket) else {
        return;
    };
    if carrier.inode != thread.read_inode || carrier.other != 0 {
        return;
    }
    let read = Carrier {
        sock: thread.read_socket,
        inode: thread.read_inode,
    };
    bind(key, false, &read, carrier, caller);
}

/// A write call took so much plaintext without having written a socket.
#[inline(always)]
pub fn note_write(thread: &mut Thread, object: u64, plaintext: u32) {
    if thread.writers == 0 {
        thread.wrote = object;
        thread.wrote_length = if plaintext > tls::MOST {
            tls::MOST
        } else {
            plaintext
        };
        thread.writers = 1;
    } else if thread.wrote != object {
        thread.writers = 2;
    }
}
