//! Event loops that run callbacks to their ends (nginx, Node): within a turn the last touch counts.
//!
//! In: bytes of any connection, waits for events, what libuv does elsewhere and goes on with. Out: what
//! the thread works for now.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::abi::{cause_method as method, direction, kind_of_process as kind, role};

use super::Cause;
use super::actor::{Actor, flag, reset, thread, thread_slot};
use super::crowd::uncounted;
use super::made::{runs_now, settle};
use super::tokio;
use crate::connection::{Connection, mode, open, verdict};
use crate::kernel;
use crate::maps::{Call, HANDED, Handed};
use crate::memory::zero;
use crate::probes::io::Caller;

/// True if what is read may ask for work that is no counted exchange: streams, what follows an upgrade, other protocols, TLS of
/// the program's own, ports that are left out. Where it is not known which end asks, it may be the other one.
#[inline(always)]
fn brings_other_work(connection: &Connection) -> bool {
    match connection.verdict {
        verdict::HTTP2 | verdict::UPGRADED => connection.requests == direction::READ,
        // Of ciphertext the plaintext is looked at, where there is any.
        verdict::IGNORED => {
            connection.role != role::CLIENT && (connection.is_tls != 0 || connection.other == 0)
        }
        _ => false,
    }
}

/// What was read is no message of a protocol that is parsed.
#[inline(always)]
pub fn other_protocol(call: &Call, connection: &Connection) {
    let is_read = call.direction == direction::READ as u32;
    if is_read && connection.role != role::CLIENT && connection.other == 0 {
        uncounted(call.tgid);
    }
}

/// Bytes moved on a connection.
#[inline(always)]
pub fn touched(connection: &Connection, direction: u8, caller: &Caller) {
    if direction == direction::READ && brings_other_work(connection) {
        uncounted(caller.tgid);
    }
    let Some(actor) = thread(caller.tid) else {
        return;
    };
    let is_client = connection.requests == direction::WRITE;
    let known = connection.verdict != verdict::UNKNOWN && connection.verdict != verdict::IGNORED;
    let reads = direction == direction::READ;
    match actor.kind as u32 {
        kind::CALLBACKS => {
            let in_timers = !reads && actor.flags & flag::TIMERS != 0;
            if !in_timers {
                settle(actor);
                actor.flags &= !flag::TIMERS;
            }
            if in_timers {
                runs_now(actor, false);
            } else if connection.verdict == verdict::HTTP2 {
                // Which streams it was tells [`super::stream`].
                if reads {
                    actor.cause = Cause::NONE;
                }
            } else if !known {
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
        ends_timers(actor);
        actor.cause = Cause::NONE;
    }
}

/// The same of a socket that is no stream, or of a connection that nobody knows (any more).
#[inline(always)]
pub fn read_unknown(caller: &Caller) {
    if let Some(actor) = thread(caller.tid)
        && actor.kind as u32 == kind::CALLBACKS
    {
        ends_timers(actor);
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
    if actor.kind as u32 == kind::TOKIO {
        if is_epoll {
            tokio::waited(actor);
        }
        return;
    }
    settle(actor);
    // [`flag::TIMERS`] among them.
    actor.flags &= !(flag::READS | flag::ACCEPTED | flag::CONNECTS);
    zero(&mut actor.context);
    zero(&mut actor.top);
    actor.cause.clear();
}

/// What the thread does next is none of what it did before (the end of a socket, for one).
#[inline(always)]
pub fn forget() {
    if let Some(actor) = thread(bpf_get_current_pid_tgid() as u32) {
        ends_timers(actor);
        actor.cause = Cause::NONE;
    }
}

/// What comes next is no callback of a timer.
#[inline(always)]
pub(super) fn ends_timers(actor: &mut Actor) {
    if actor.kind as u32 == kind::CALLBACKS {
        settle(actor);
        actor.flags &= !flag::TIMERS;
    }
}

#[inline(always)]
pub(super) fn handed_key(tgid: u32, address: u64) -> Handed {
    Handed {
        address,
        tgid,
        reserved: 0,
    }
}

/// A thread of an event loop begins something that is done elsewhere, known by this address.
#[inline(always)]
pub fn hands_over(address: u64, connects: bool) {
    let id = bpf_get_current_pid_tgid();
    let key = handed_key((id >> 32) as u32, address);
    let cause = match thread(id as u32) {
        Some(actor) => {
            runs_now(actor, connects);
            actor.cause
        }
        None => Cause::NONE,
    };
    if cause.is_open() {
        let _ = HANDED.insert(&key, &cause, 0);
    } else {
        let _ = HANDED.remove(&key);
    }
}

/// It is done: a callback goes on with what it was begun for, a name or a connection.
#[inline(always)]
pub fn goes_on(address: u64) {
    goes_on_as(address, method::CONTINUATION);
}

/// Work of another thread is done, and its callback runs.
#[inline(always)]
pub fn is_worked_on(address: u64) {
    goes_on_as(address, method::TURN);
}

#[inline(always)]
fn goes_on_as(address: u64, found: u32) {
    let id = bpf_get_current_pid_tgid();
    let key = handed_key((id >> 32) as u32, address);
    let Some(actor) = thread(id as u32) else {
        return;
    };
    // SAFETY: the value is copied before the map is changed.
    let cause = unsafe { HANDED.get(&key) }.copied();
    ends_timers(actor);
    actor.cause = cause.unwrap_or(Cause::NONE);
    actor.method = found as u8;
    let _ = HANDED.remove(&key);
}
