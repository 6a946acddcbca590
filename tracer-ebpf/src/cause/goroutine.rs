//! Goroutines: who made them, and who writes what another one sends.

use aya_ebpf::bindings::BPF_NOEXIST as NOEXIST;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::abi::cause_method as method;

use super::Cause;
use super::actor::{Actor, flag, goroutine_slot, reset, thread, thread_slot};
use super::stream;
use super::turn::handed_key;
use crate::maps::{HANDED, SITES};

/// [`Actor::flags`] of a goroutine: it makes one for each stream that it reads.
pub(super) const READS_STREAMS: u8 = flag::READS;

/// A goroutine sends a request over a connection of Go's client, which another one will write.
#[inline(always)]
pub fn goroutine_sends(g: u64, connection: u64) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let key = handed_key(tgid, connection);
    let actor = goroutine_slot(g, tgid).filter(|actor| actor.owner == g && actor.tgid == tgid);
    let cause = match actor {
        Some(actor) => works_for(actor),
        None => Cause::NONE,
    };
    if cause.is_open() {
        let _ = HANDED.insert(&key, &cause, 0);
    } else {
        let _ = HANDED.remove(&key);
    }
}

/// What a goroutine works for that is about to send something; learns whether those of its kind end with what
/// they were made for.
#[inline(always)]
pub(super) fn works_for(actor: &mut Actor) -> Cause {
    if actor.method as u32 != method::GOROUTINE_CREATED {
        return actor.cause;
    }
    let site = handed_key(actor.tgid, actor.serving.key);
    if !actor.cause.is_open() {
        // One that outlives what it was made for serves anybody.
        if actor.cause.connection != 0 {
            let _ = SITES.insert(&site, &SITE_STAYS, 0);
        }
        return Cause::NONE;
    }
    actor.flags |= flag::CALLED;
    if is_believed(actor) {
        actor.cause
    } else {
        Cause::NONE
    }
}

/// Whether a goroutine that was made for a request is known to end with it. One that was made where a
/// stream is read is its handler: it may end when the answer was written, so that it was not seen to stay is
/// enough.
#[inline(always)]
fn is_believed(actor: &Actor) -> bool {
    let site = handed_key(actor.tgid, actor.serving.key);
    // SAFETY: the value is only read.
    match unsafe { SITES.get(&site) } {
        Some(known) => *known == SITE_ENDS,
        None => actor.flags & flag::CREATED != 0,
    }
}

/// The goroutine that writes a connection's frames for others (grpc-go) is about to write this stream, for what
/// it was handed last.
#[inline(always)]
pub fn goroutine_begins(g: u64, stream: u32) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let actor = goroutine_slot(g, tgid).filter(|actor| actor.owner == g && actor.tgid == tgid);
    let Some(actor) = actor else {
        return;
    };
    if actor.flags & flag::SHARED != 0 {
        stream::made(tgid, g, stream, actor.cause, method::GOROUTINE);
    }
}

/// As [`goroutine_writes`], by one that writes many such before they leave.
#[inline(always)]
pub fn goroutine_writes_many(g: u64, handed: u64) {
    goroutine_writes(g, handed);
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if let Some(actor) = goroutine_slot(g, tgid)
        && actor.owner == g
        && actor.tgid == tgid
    {
        actor.flags |= flag::SHARED;
    }
}

/// The goroutine has read the head of this stream, from the connection that it read last.
#[inline(always)]
pub fn goroutine_reads(g: u64, stream: u32) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if let Some(actor) = goroutine_slot(g, tgid)
        && actor.owner == g
        && actor.tgid == tgid
        && actor.flags & READS_STREAMS != 0
    {
        actor.cause = Cause {
            connection: actor.serving.connection,
            key: stream as u64,
        };
    }
}

/// The goroutine begins to read frames for this object of Go's server.
#[inline(always)]
pub fn goroutine_serves(g: u64, server: u64) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    if let Some(actor) = goroutine_slot(g, tgid) {
        reset(actor, g, tgid);
        actor.context = server;
    }
}

/// A goroutine has read frames: for the object that it reads for.
#[inline(always)]
pub(super) fn reads_for(actor: &Actor, tgid: u32) {
    if actor.context == 0 {
        return;
    }
    let key = handed_key(tgid, actor.context);
    // SAFETY: the value is only read.
    if unsafe { HANDED.get(&key) }.is_none_or(|known| *known != actor.serving) {
        let _ = HANDED.insert(&key, &actor.serving, 0);
    }
}

/// The goroutine that serves this object makes a handler for a stream next.
#[inline(always)]
pub fn session_serves(g: u64, server: u64, stream: u32) {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: the value is only read.
    let Some(connection) = (unsafe { HANDED.get(&handed_key(tgid, server)) }) else {
        // What it has is another stream's.
        if let Some(actor) = goroutine_slot(g, tgid)
            && actor.owner == g
            && actor.tgid == tgid
        {
            actor.cause.clear();
        }
        return;
    };
    let cause = Cause {
        connection: connection.connection,
        key: stream as u64,
    };
    let Some(actor) = goroutine_slot(g, tgid) else {
        return;
    };
    if actor.owner != g || actor.tgid != tgid {
        reset(actor, g, tgid);
    }
    actor.flags |= READS_STREAMS;
    actor.cause = cause;
    actor.method = method::GOROUTINE as u8;
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
pub(super) const SITE_ENDS: u32 = 1;

/// Goroutines that it makes were seen to go on after it.
pub(super) const SITE_STAYS: u32 = 2;

/// A goroutine makes another one, by the `go` statement at this address: the next that becomes
/// runnable on this thread.
#[inline(always)]
pub fn goroutine_made(creator: u64, site: u64) {
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    let creator = goroutine_slot(creator, tgid)
        .filter(|actor| actor.owner == creator && actor.tgid == tgid && actor.cause.is_open());
    let (mut cause, mut reads) = (Cause::NONE, false);
    if let Some(creator) = creator {
        let is_created = creator.method as u32 == method::GOROUTINE_CREATED;
        if is_created {
            // What it makes sends for it: it counts as one that did.
            creator.flags |= flag::CALLED;
        }
        if !is_created || is_believed(creator) {
            cause = creator.cause;
            reads = creator.flags & READS_STREAMS != 0;
            if reads {
                // A handler of another stream, that had to wait, may be started next.
                creator.cause.clear();
            }
        }
    }
    let Some(actor) = thread_slot(tid) else {
        return;
    };
    reset(actor, tid as u64, tgid);
    actor.flags = if reads {
        flag::MAKES | flag::CREATED
    } else {
        flag::MAKES
    };
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
    let handler = maker.flags & flag::CREATED;
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
    actor.flags = handler;
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
