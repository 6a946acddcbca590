//! Goroutines: who made them, and who writes what another one sends.

use aya_ebpf::bindings::BPF_NOEXIST as NOEXIST;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::abi::cause_method as method;

use super::Cause;
use super::actor::{flag, goroutine_slot, reset, thread, thread_slot};
use super::turn::handed_key;
use crate::maps::{HANDED, SITES};

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
