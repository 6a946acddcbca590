//! Which incoming exchange an outgoing request is sent for.
//!
//! In: requests, other bytes and ends as the data calls see them, and what threads wait for. Out: the
//! cause that goes into the data event of an outgoing request. An exchange that came in is named by
//! its connection and the position of its request's first byte ([`Cause`]); it is open until its
//! response was written or its connection ended.
//!
//! Nothing here may guess: what a thread does next belongs to the request it read only where the way
//! its program runs makes that certain (`abi::kind_of_process`). In doubt there is no cause.
//! It cannot see queues inside of a program: work that one thread hands to another.

use aya_ebpf::bindings::BPF_NOEXIST as NOEXIST;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use tracer_common::abi::{cause_method as method, direction, kind_of_process as kind, role};

use crate::connection::{Connection, mode, open, verdict};
use crate::kernel::{self, Arguments};
use crate::maps::{
    ACTOR_SLOTS, Call, EXCHANGE_SLOTS, EXCHANGE_WAYS, EXCHANGES, GOROUTINE_SLOTS, GOROUTINES,
    HANDED, Handed, KINDS, OPENERS, POOLS, Pool, SITES, THREADS,
};
use crate::probes::io::Caller;

/// An exchange that came in.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    /// Id of its connection; 0 for none.
    pub connection: u64,
    /// Position of its request's first byte.
    pub key: u64,
}

impl Cause {
    /// There is none.
    pub const NONE: Cause = Cause {
        connection: 0,
        key: 0,
    };

    /// The first of the slots where it may be.
    #[inline(always)]
    fn slot(&self) -> u32 {
        const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed = (self.connection ^ self.key.wrapping_mul(MIX)).wrapping_mul(MIX);
        (mixed >> 40) as u32 & (EXCHANGE_SLOTS - 1) & !(EXCHANGE_WAYS - 1)
    }

    /// The slot that holds `what`, of those where this may be.
    #[inline(always)]
    fn find(&self, what: Cause) -> Option<*mut Cause> {
        let first = self.slot();
        let mut way = 0;
        while way < EXCHANGE_WAYS {
            let entry = EXCHANGES.get_ptr_mut(first + way)?;
            // SAFETY: the pointer is into the map.
            if unsafe { *entry } == what {
                return Some(entry);
            }
            way += 1;
        }
        None
    }

    /// True until its response was written.
    #[inline(always)]
    fn is_open(&self) -> bool {
        self.connection != 0 && self.find(*self).is_some()
    }

    #[inline(always)]
    fn begin(&self) {
        let free = self.find(Cause::NONE);
        if let Some(entry) = free.or_else(|| EXCHANGES.get_ptr_mut(self.slot())) {
            // SAFETY: the pointer is into the map; a torn entry of two writers equals neither cause.
            unsafe { *entry = *self };
        }
    }

    #[inline(always)]
    fn end(&self) {
        if let Some(entry) = self.find(*self) {
            // SAFETY: as in `begin`.
            unsafe { *entry = Cause::NONE };
        }
    }
}

/// Who opens a connection, and for which exchange.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Opener {
    pub cause: Cause,
    /// Thread or goroutine.
    pub owner: u64,
}

impl Opener {
    /// It is not known.
    pub const NOBODY: Opener = Opener {
        cause: Cause::NONE,
        owner: 0,
    };
}

/// What a thread or a goroutine is doing.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Actor {
    /// Thread id, or address of the goroutine.
    pub owner: u64,
    /// Its process.
    pub tgid: u32,
    /// Low byte of the process's kind, when it last read a request.
    pub kind: u8,
    /// How `cause` was found.
    pub method: u8,
    /// See [`flag`].
    pub flags: u8,
    pub reserved: u8,
    /// The exchange that it works for now.
    pub cause: Cause,
    /// The request that it read last.
    pub serving: Cause,
}

/// [`Actor::flags`].
mod flag {
    /// It waits for events of many descriptors.
    pub const LOOP: u8 = 1;
    /// It was made by a thread that served a request.
    pub const CREATED: u8 = 2;
    /// It sent a request while that one was open.
    pub const CALLED: u8 = 4;
    /// It is making a goroutine.
    pub const MAKES: u8 = 8;
}

/// A thread's slot, whoever's it is.
#[inline(always)]
fn thread_slot(tid: u32) -> Option<&'static mut Actor> {
    // SAFETY: the pointer is into the map; the owner tells whose it is, and only that thread (or,
    // before it runs, its creator) writes to it as such.
    unsafe { THREADS.get_ptr_mut(tid & (ACTOR_SLOTS - 1))?.as_mut() }
}

/// A thread's entry, if it has one.
#[inline(always)]
fn thread(tid: u32) -> Option<&'static mut Actor> {
    let actor = thread_slot(tid)?;
    (actor.owner == tid as u64).then_some(actor)
}

/// The goroutine that runs now.
#[inline(always)]
fn goroutine() -> Option<u64> {
    Arguments::of_current()?.goroutine().filter(|g| *g != 0)
}

#[inline(always)]
fn goroutine_slot(g: u64, tgid: u32) -> Option<&'static mut Actor> {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let slot = ((g ^ (tgid as u64) << 48).wrapping_mul(MIX) >> 40) as u32 & (GOROUTINE_SLOTS - 1);
    // SAFETY: as in `thread_slot`.
    unsafe { GOROUTINES.get_ptr_mut(slot)?.as_mut() }
}

/// Makes a slot somebody's, as if it never had done anything.
#[inline(always)]
fn reset(actor: &mut Actor, owner: u64, tgid: u32) {
    *actor = Actor {
        owner,
        tgid,
        kind: 0,
        method: 0,
        flags: 0,
        reserved: 0,
        cause: Cause::NONE,
        serving: Cause::NONE,
    };
}

/// The entry of whoever makes this call in a process of this kind; a new one if `make`.
#[inline(always)]
fn actor(kind: u32, tgid: u32, tid: u32, make: bool) -> Option<&'static mut Actor> {
    let (owner, actor) = if kind & kind::MASK == kind::GO {
        let g = goroutine()?;
        (g, goroutine_slot(g, tgid)?)
    } else {
        (tid as u64, thread_slot(tid)?)
    };
    if actor.owner != owner || actor.tgid != tgid {
        if !make {
            return None;
        }
        reset(actor, owner, tgid);
    }
    Some(actor)
}

#[inline(always)]
fn kind_of(tgid: u32) -> u32 {
    // SAFETY: the value is only read.
    unsafe { KINDS.get(&tgid) }.copied().unwrap_or(kind::NONE)
}

#[inline(always)]
fn add_to_kind(tgid: u32, flags: u32) {
    if let Some(kind) = KINDS.get_ptr_mut(&tgid) {
        // SAFETY: the pointer is into the map; a flag that gets lost to another CPU is set again.
        unsafe { *kind |= flags };
    }
}

/// A request begins with the next byte of the call.
#[inline(always)]
pub fn request(call: &mut Call, connection: &mut Connection) {
    if call.direction == direction::READ as u32 {
        came_in(call, connection);
    } else {
        goes_out(call, connection);
    }
}

#[inline(always)]
fn came_in(call: &Call, connection: &mut Connection) {
    let cause = Cause {
        connection: connection.id,
        key: connection.read.position,
    };
    let before = Cause {
        connection: connection.id,
        key: connection.open_key,
    };
    if connection.open != open::NOTHING {
        before.end();
    }
    connection.open_key = cause.key;
    if connection.outstanding > 0 {
        connection.open = open::SEVERAL;
    } else {
        connection.open = open::ONE;
        cause.begin();
    }
    is_read_by(call, connection);
}

/// A request's first bytes came, too few to be sure that they are one.
#[inline(always)]
pub fn perhaps_request(call: &Call, connection: &mut Connection) {
    let serves = connection.requests == direction::READ
        && (connection.role == role::SERVER || connection.verdict == verdict::HTTP1);
    if serves && call.direction == direction::READ as u32 {
        came_in(call, connection);
    }
}

/// More of a request's head came: whoever reads it serves it, and not who read the first byte to see
/// whether the client is still there (Go's server).
#[inline(always)]
pub fn request_goes_on(call: &Call, connection: &Connection) {
    if call.direction == direction::READ as u32
        && connection.requests == direction::READ
        && connection.open == open::ONE
    {
        is_read_by(call, connection);
    }
}

/// Whoever makes the call reads the open request of the connection.
#[inline(always)]
fn is_read_by(call: &Call, connection: &Connection) {
    let cause = Cause {
        connection: connection.id,
        key: connection.open_key,
    };
    let several = connection.open == open::SEVERAL;
    let kind = kind_of(call.tgid);
    if kind == kind::NONE {
        return;
    }
    let Some(actor) = actor(kind, call.tgid, call.tid, true) else {
        return;
    };
    // Requests that it read before and that wait for their answers, of other connections.
    let multiplexes = actor.serving.connection != connection.id && actor.serving.is_open();
    actor.kind = kind as u8;
    actor.serving = cause;
    actor.cause = Cause::NONE;
    actor.flags &= !(flag::CREATED | flag::CALLED);
    if several {
        return;
    }
    let found = match kind & kind::MASK {
        kind::BLOCKING | kind::THREADS => {
            if kind & kind::MULTIPLEXED != 0 {
                return;
            }
            if multiplexes || actor.flags & flag::LOOP != 0 {
                add_to_kind(call.tgid, kind::MULTIPLEXED);
                return;
            }
            if call.blocking == 0 && (kind & kind::MASK == kind::BLOCKING || is_carrier()) {
                return;
            }
            method::SAME_THREAD
        }
        kind::CALLBACKS => method::TURN,
        kind::GO if !multiplexes => method::GOROUTINE,
        _ => return,
    };
    actor.cause = cause;
    actor.method = found as u8;
}

/// True for the threads that carry Java's virtual ones.
#[inline(always)]
fn is_carrier() -> bool {
    bpf_get_current_comm().is_ok_and(|name| {
        u64::from_le_bytes([
            name[0], name[1], name[2], name[3], name[4], name[5], name[6], name[7],
        ]) == u64::from_le_bytes(*b"ForkJoin")
    })
}

#[inline(always)]
fn goes_out(call: &mut Call, connection: &mut Connection) {
    let before = connection.call;
    let (opened_for, opener, answered_for) = if connection.called == 0 {
        (before, connection.caller, Cause::NONE)
    } else {
        (Cause::NONE, 0, before)
    };
    leaves_pool(connection);
    connection.called = 1;
    connection.call = Cause::NONE;
    connection.caller = 0;
    let kind = kind_of(call.tgid);
    if kind == kind::NONE {
        return;
    }
    let actor = actor(kind, call.tgid, call.tid, false);
    let owner = actor.as_ref().map_or(0, |actor| actor.owner);
    let is_first = connection.from_start != 0 && connection.write.position == 0;
    let (cause, found) = match kind & kind::MASK {
        kind::CALLBACKS if is_first => (opened_for, method::CONNECTION),
        // Goes on over the connection that it has just read the answer from: its own next request,
        // or another one's that waited for a connection. With one to spare nobody waits.
        kind::CALLBACKS
            if actor.as_ref().is_some_and(|actor| {
                actor.method as u32 == method::CONTINUATION && actor.cause == answered_for
            }) && !has_spare(connection, call) =>
        {
            return;
        }
        kind::CALLBACKS | kind::GO => match actor {
            Some(actor) => used(actor, kind),
            None => return,
        },
        _ => match actor {
            Some(actor) if kind & kind::MULTIPLEXED == 0 && actor.flags & flag::LOOP == 0 => {
                if actor.cause.connection != 0 {
                    created_thread_calls(actor, kind, call.tgid);
                    used(actor, kind)
                } else if is_first && opener == actor.owner {
                    (opened_for, method::CONNECTION)
                } else {
                    return;
                }
            }
            _ => return,
        },
    };
    if !cause.is_open() || found == method::NONE {
        return;
    }
    call.cause = cause;
    call.cause_method = found;
    connection.caller = owner;
    // As to requests in a row, whose response is read next is not known.
    if connection.outstanding == 0 {
        connection.call = cause;
    }
}

#[inline(always)]
fn pool(tgid: u32, connection: &Connection) -> Pool {
    Pool {
        place: connection.place,
        tgid,
        reserved: 0,
    }
}

/// True when another connection of the process to the same place waits for a request.
#[inline(always)]
fn has_spare(connection: &Connection, call: &Call) -> bool {
    // SAFETY: the value is only read.
    unsafe { POOLS.get(&pool(call.tgid, connection)) }.is_some_and(|waiting| *waiting > 0)
}

/// An answer may have been read to its end: the connection waits for its next request then.
#[inline(always)]
pub fn answer_read(call: &Call, connection: &mut Connection) {
    if connection.pooled != 0
        || connection.requests != direction::WRITE
        || connection.outstanding != 0
        || connection.read.mode != mode::START
        || connection.role != role::CLIENT
        || thread(call.tid).is_none_or(|actor| actor.kind as u32 != kind::CALLBACKS)
    {
        return;
    }
    if connection.place == 0 {
        let sock = connection.socket(call.socket);
        connection.place = kernel::remote_place(sock, connection.family);
    }
    let key = pool(call.tgid, connection);
    connection.pooled = call.tgid;
    match POOLS.get_ptr_mut(&key) {
        // SAFETY: the pointer is into the map; a process with an event loop has one thread for it.
        Some(waiting) => unsafe { *waiting += 1 },
        None => {
            let _ = POOLS.insert(&key, &1, 0);
        }
    }
}

/// A connection sends its next request, or ended.
#[inline(always)]
fn leaves_pool(connection: &mut Connection) {
    if connection.pooled == 0 {
        return;
    }
    let key = pool(connection.pooled, connection);
    connection.pooled = 0;
    if let Some(waiting) = POOLS.get_ptr_mut(&key) {
        // SAFETY: as in `answer_read`.
        unsafe { *waiting = (*waiting).saturating_sub(1) };
    }
}

/// What an actor works for, and how that was found.
#[inline(always)]
fn used(actor: &Actor, kind: u32) -> (Cause, u32) {
    let found = actor.method as u32;
    // Threads made for one request serve others later where they are kept: only programs that were
    // seen to let them end, and never to keep one, are believed.
    let kept = kind & (kind::THREADS_END | kind::THREADS_STAY) != kind::THREADS_END;
    if found == method::THREAD_CREATED && kept {
        return (Cause::NONE, method::NONE);
    }
    (actor.cause, found)
}

/// Learns whether threads that are made while serving a request end with it.
#[inline(always)]
fn created_thread_calls(actor: &mut Actor, kind: u32, tgid: u32) {
    if actor.flags & flag::CREATED == 0 {
        return;
    }
    if actor.cause.is_open() {
        actor.flags |= flag::CALLED;
    } else if kind & kind::THREADS_STAY == 0 {
        add_to_kind(tgid, kind::THREADS_STAY);
    }
}

/// Bytes moved on a connection.
#[inline(always)]
pub fn touched(connection: &Connection, direction: u8, caller: &Caller) {
    let Some(actor) = thread(caller.tid) else {
        return;
    };
    let is_client = connection.requests == direction::WRITE;
    let known = connection.verdict != verdict::UNKNOWN && connection.verdict != verdict::IGNORED;
    let reads = direction == direction::READ;
    match actor.kind as u32 {
        kind::CALLBACKS => {
            if !known {
                // Whose answer it is is not known. What is written stays with who writes it.
                if reads {
                    actor.cause = Cause::NONE;
                }
            } else if is_client {
                if connection.called != 0 && (reads || connection.write.mode != mode::START) {
                    actor.cause = connection.call;
                    actor.method = method::CONTINUATION as u8;
                }
            } else if connection.open == open::ONE {
                actor.cause = Cause {
                    connection: connection.id,
                    key: connection.open_key,
                };
                actor.method = method::TURN as u8;
            } else {
                actor.cause = Cause::NONE;
            }
        }
        // Back from a wait for several descriptors, in the call that it made itself.
        kind::BLOCKING | kind::THREADS
            if reads
                && known
                && is_client
                && connection.called != 0
                && connection.caller == actor.owner
                && connection.call.connection != 0
                && actor.flags & (flag::LOOP | flag::CREATED) == 0 =>
        {
            actor.cause = connection.call;
            actor.method = method::CONTINUATION as u8;
        }
        _ => {}
    }
}

/// A thread read something that is no socket: in an event loop that is often a message of another
/// thread (eventfd, pipe), and what follows belongs to whoever sent it.
#[inline(always)]
pub fn read_elsewhere(caller: &Caller, fd: i32) {
    if let Some(actor) = thread(caller.tid)
        && actor.kind as u32 == kind::CALLBACKS
        && !kernel::is_regular_file(fd)
    {
        actor.cause = Cause::NONE;
    }
}

/// A thread is back from waiting for several descriptors. `is_epoll`: for events, of any number.
#[inline(always)]
pub fn waited(is_epoll: bool) {
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    let Some(actor) = thread_slot(tid) else {
        return;
    };
    if actor.owner != tid as u64 || actor.tgid != tgid {
        if !is_epoll {
            return;
        }
        reset(actor, tid as u64, tgid);
    }
    if is_epoll {
        actor.flags |= flag::LOOP;
    }
    actor.cause = Cause::NONE;
}

/// What the thread does next is none of what it did before (a timer, for one).
#[inline(always)]
pub fn forget() {
    if let Some(actor) = thread(bpf_get_current_pid_tgid() as u32) {
        actor.cause = Cause::NONE;
    }
}

/// Bytes of a response may have been written: the exchange has ended if that was all. Where a
/// response of unknown length ends is not known: then it has ended with its head.
#[inline(always)]
pub fn answered(connection: &mut Connection) {
    if connection.open == open::NOTHING {
        return;
    }
    // Behind a 101 it is another protocol.
    if matches!(
        connection.verdict,
        verdict::IGNORED | verdict::UPGRADED | verdict::HTTP2
    ) {
        exchange_ended(connection);
        return;
    }
    if connection.outstanding != 0
        || connection.requests != direction::READ
        || !(connection.write.mode == mode::START || connection.write.mode == mode::UNFRAMED)
    {
        return;
    }
    exchange_ended(connection);
}

/// The connection ended, and what it carried with it.
#[inline(always)]
pub fn closed(connection: &mut Connection) {
    leaves_pool(connection);
    exchange_ended(connection);
}

#[inline(always)]
fn exchange_ended(connection: &mut Connection) {
    if connection.open == open::ONE {
        let cause = Cause {
            connection: connection.id,
            key: connection.open_key,
        };
        cause.end();
    }
    connection.open = open::NOTHING;
}

#[inline(always)]
fn handed_key(tgid: u32, address: u64) -> Handed {
    Handed {
        address,
        tgid,
        reserved: 0,
    }
}

/// A thread of an event loop begins something that is done elsewhere, known by this address.
#[inline(always)]
pub fn hands_over(address: u64) {
    let id = bpf_get_current_pid_tgid();
    let key = handed_key((id >> 32) as u32, address);
    let cause = thread(id as u32).map_or(Cause::NONE, |actor| actor.cause);
    if cause.is_open() {
        let _ = HANDED.insert(&key, &cause, 0);
    } else {
        let _ = HANDED.remove(&key);
    }
}

/// It is done: a callback goes on with what it was begun for.
#[inline(always)]
pub fn goes_on(address: u64) {
    let id = bpf_get_current_pid_tgid();
    let key = handed_key((id >> 32) as u32, address);
    let Some(actor) = thread(id as u32) else {
        return;
    };
    // SAFETY: the value is copied before the map is changed.
    let cause = unsafe { HANDED.get(&key) }.copied();
    actor.cause = cause.unwrap_or(Cause::NONE);
    actor.method = method::CONTINUATION as u8;
    let _ = HANDED.remove(&key);
}

/// A goroutine sends a request over a connection of Go's client, which another one will write.
#[inline(always)]
pub fn goroutine_sends(g: u64, connection: u64) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let key = handed_key(tgid, connection);
    let actor = goroutine_slot(g, tgid).filter(|actor| actor.owner == g && actor.tgid == tgid);
    let mut cause = Cause::NONE;
    if let Some(actor) = actor {
        cause = actor.cause;
        if actor.method as u32 == method::GOROUTINE_CREATED {
            let site = handed_key(tgid, actor.serving.key);
            if !cause.is_open() {
                // One that outlives what it was made for serves anybody.
                if cause.connection != 0 {
                    let _ = SITES.insert(&site, &SITE_STAYS, 0);
                }
                cause = Cause::NONE;
            } else {
                actor.flags |= flag::CALLED;
                // SAFETY: the value is only read.
                if unsafe { SITES.get(&site) }.is_none_or(|known| *known != SITE_ENDS) {
                    cause = Cause::NONE;
                }
            }
        }
    }
    if cause.is_open() {
        let _ = HANDED.insert(&key, &cause, 0);
    } else {
        let _ = HANDED.remove(&key);
    }
}

/// A goroutine writes what another one sends over a connection of Go's client.
#[inline(always)]
pub fn goroutine_writes(g: u64, connection: u64) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let key = handed_key(tgid, connection);
    let Some(actor) = goroutine_slot(g, tgid) else {
        return;
    };
    if actor.owner != g || actor.tgid != tgid {
        reset(actor, g, tgid);
    }
    // SAFETY: the value is only read.
    actor.cause = unsafe { HANDED.get(&key) }.copied().unwrap_or(Cause::NONE);
    actor.method = method::GOROUTINE as u8;
}

/// Only make a new entry.
const BPF_NOEXIST: u64 = NOEXIST as u64;
/// Goroutines that this `go` statement makes were seen to end while what they were made for was open.
const SITE_ENDS: u32 = 1;
/// Goroutines that it makes were seen to go on after it.
const SITE_STAYS: u32 = 2;

/// A goroutine makes another one, by the `go` statement at this address: the next that becomes
/// runnable on this thread.
#[inline(always)]
pub fn goroutine_made(creator: u64, site: u64) {
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    let creator = goroutine_slot(creator, tgid)
        .filter(|actor| actor.owner == creator && actor.tgid == tgid && actor.cause.is_open());
    let cause = match creator {
        Some(actor) => actor.cause,
        None => Cause::NONE,
    };
    let Some(actor) = thread_slot(tid) else {
        return;
    };
    reset(actor, tid as u64, tgid);
    actor.flags = flag::MAKES;
    actor.cause = cause;
    actor.serving.key = site;
}

/// A goroutine becomes runnable.
#[inline(always)]
pub fn goroutine_runnable(g: u64) {
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    let Some(maker) = thread(tid) else {
        return;
    };
    if maker.flags & flag::MAKES == 0 || maker.tgid != tgid {
        return;
    }
    maker.flags = 0;
    let (cause, site) = (maker.cause, maker.serving.key);
    let Some(actor) = goroutine_slot(g, tgid) else {
        return;
    };
    if cause.connection == 0 {
        // The address may be that of one that ended.
        if actor.owner == g && actor.tgid == tgid {
            actor.owner = 0;
        }
        return;
    }
    reset(actor, g, tgid);
    actor.cause = cause;
    actor.method = method::GOROUTINE_CREATED as u8;
    actor.serving.key = site;
}

/// The current goroutine ends.
#[inline(always)]
pub fn goroutine_ended(g: u64) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(actor) = goroutine_slot(g, tgid) else {
        return;
    };
    if actor.owner != g || actor.tgid != tgid {
        return;
    }
    actor.owner = 0;
    if actor.flags & flag::CALLED != 0 && actor.cause.is_open() {
        // Only where nothing is known of it yet: one that was seen to stay never is believed.
        let site = handed_key(tgid, actor.serving.key);
        let _ = SITES.insert(&site, &SITE_ENDS, BPF_NOEXIST);
    }
}

/// The current thread opens a connection.
#[inline(always)]
pub fn opening(sock: u64) {
    let Some(caller) = Caller::traced() else {
        return;
    };
    if let Some(opener) = opener(&caller) {
        let _ = OPENERS.insert(&sock, &opener, 0);
    } else {
        // What an earlier attempt with the same socket left.
        let _ = OPENERS.remove(&sock);
    }
}

#[inline(always)]
fn opener(caller: &Caller) -> Option<Opener> {
    let kind = kind_of(caller.tgid);
    if kind == kind::NONE || kind & kind::MULTIPLEXED != 0 {
        return None;
    }
    let actor = actor(kind, caller.tgid, caller.tid, false)?;
    let (cause, _) = used(actor, kind);
    if !cause.is_open() {
        return None;
    }
    Some(Opener {
        cause,
        owner: actor.owner,
    })
}

/// Who opened a connection that is established now.
#[inline(always)]
pub fn take_opener(sock: u64) -> Opener {
    // SAFETY: the value is copied before the map is changed.
    match unsafe { OPENERS.get(&sock) }.copied() {
        Some(opener) => {
            let _ = OPENERS.remove(&sock);
            opener
        }
        None => Opener::NOBODY,
    }
}

/// The current thread makes another one in its process.
#[inline(always)]
pub fn thread_made(tgid: u32, child: u32) {
    let id = bpf_get_current_pid_tgid();
    let creator = thread(id as u32)
        .filter(|actor| actor.tgid == tgid && actor.flags & (flag::LOOP | flag::CREATED) == 0)
        .filter(|actor| matches!(actor.kind as u32, kind::BLOCKING | kind::THREADS))
        .filter(|actor| actor.cause.is_open());
    let Some(creator) = creator else {
        return;
    };
    let (kind, cause) = (creator.kind, creator.cause);
    if let Some(actor) = thread_slot(child) {
        reset(actor, child as u64, tgid);
        actor.kind = kind;
        actor.cause = cause;
        actor.method = method::THREAD_CREATED as u8;
        actor.flags = flag::CREATED;
    }
}

/// The current thread ends; its id may be used again.
#[inline(always)]
pub fn thread_ended() {
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    let Some(actor) = thread(tid) else {
        return;
    };
    if actor.flags & flag::CALLED != 0 && actor.cause.is_open() {
        add_to_kind(tgid, kind::THREADS_END);
    }
    actor.owner = 0;
}

/// A process was forked: its child is the same program.
#[inline(always)]
pub fn process_made(parent: u32, child: u32) {
    let kind = kind_of(parent) & kind::MASK;
    if kind != kind::NONE {
        let _ = KINDS.insert(&child, &kind, 0);
    } else {
        // What a process of the same id left.
        let _ = KINDS.remove(&child);
    }
}

/// A process ended, or is another program from now on.
#[inline(always)]
pub fn process_ended(tgid: u32) {
    let _ = KINDS.remove(&tgid);
}
