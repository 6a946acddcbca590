//! Threads that are woken by one which serves the only exchange in flight in their process.
//!
//! In: exchanges that begin and end, what threads were woken by (`waker.rs`), requests that go out. Out: the exchange
//! that a thread works for since it was woken. A pool's worker waits at a futex (or for a pipe) until whoever has work for
//! it wakes it; so does a thread that waits for the pool's answer.
//!
//! Who was woken need not take what it was woken for, so a wake counts only
//! - while the waker's exchange is the only one in the process, from the wake to the call, and none began
//!   in between, and until the thread waits again;
//! - for a thread that was seen to wake the very thread that serves the exchange, which waited for it, after a
//!   call of its own: who makes requests ready for a batch is not waited for like that, and who holds a lock seldom is;
//!   with that wake it has delivered, and works for nobody until it is woken again;
//! - not for a thread that was seen to call by itself: behind a wait that ended by its timeout, while nothing
//!   was in flight, or after the answer. If one that was believed does that, its pool does other work
//!   than requests', and nobody is believed in the process from then on;
//! - once the process was seen to wait for [`PROOFS`] such calls in a row, in which none of these threads was woken by one that
//!   works for nothing.
//!
//! It cannot see work that is taken from a queue without a wake, by a thread that was woken and made no call yet; nor
//! whether a wake hands over work or a lock.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::abi::{cause_method as method, kind_of_process as kind};

use super::Cause;
use super::actor::{add_to_kind, flag, kind_of, thread};
use super::crowd::{again, crowd};
use super::turn::handed_key;
use super::waker::{Waker, state, takes};
use crate::maps::{LOCKS, WORKERS};

/// A thread that was woken by one that serves an exchange, at any time.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Worker {
    /// What it works for until it waits again.
    pub cause: Cause,
    /// [`Crowd::begun`] at the wake.
    pub begun: u64,
    pub tgid: u32,
    /// See [`state`]; written by the thread alone.
    pub flags: u32,
    /// Not 0: it was waited for. Written by others alone.
    pub trusted: u64,
}

/// How a futex is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// For anything.
    Any,
    /// For a lock of glibc's: who gets it goes on with what it did before.
    Lock,
}

/// See [`Crowd::proofs`].
const PROOFS: u64 = 16;
/// `-ETIMEDOUT`.
const TIMED_OUT: i64 = -110;

#[inline(always)]
pub(super) fn worker(tgid: u32, tid: u32) -> Option<&'static mut Worker> {
    // SAFETY: the pointer is into the map; each field has one writer, or any order of writes will do.
    let worker = unsafe { WORKERS.get_ptr_mut(&tid)?.as_mut()? };
    (worker.tgid == tgid).then_some(worker)
}

/// True of kinds of processes in which threads may be believed.
#[inline(always)]
pub(super) fn may_be_believed(kind: u32) -> bool {
    kind & (kind::WOKEN | kind::OTHER_WORK | kind::MULTIPLEXED) == kind::WOKEN
}

/// A process that is followed for this, and the current thread.
#[inline(always)]
pub(super) fn current() -> Option<(u32, u32)> {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    let kind = kind_of(tgid);
    // Where its lock is not known, waits at futexes are not seen either.
    // SAFETY: the value is not looked at.
    let is_seen = kind & kind::ONE_LOCK == 0 || unsafe { LOCKS.get(&tgid) }.is_some();
    (may_be_believed(kind) && is_seen).then_some((tgid, id as u32))
}

/// The same, unless what is waited for at this address is an interpreter's own lock: that says nothing, and whoever gets
/// it goes on with what it did.
#[inline(always)]
pub(super) fn current_at(address: u64) -> Option<(u32, u32)> {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    let kind = kind_of(tgid);
    if !may_be_believed(kind) {
        return None;
    }
    if kind & kind::ONE_LOCK != 0 {
        // SAFETY: the value is only read.
        let [first, behind] = *unsafe { LOCKS.get(&tgid) }?;
        if address >= first && address < behind {
            return None;
        }
    }
    Some((tgid, id as u32))
}

/// True if the current thread's process is followed for this.
#[inline(always)]
pub fn waits_are_followed() -> bool {
    current().is_some()
}

/// The exchange whose request the thread has read itself, if it is open.
#[inline(always)]
pub(super) fn serves(tgid: u32, tid: u32) -> Option<&'static Cause> {
    let actor = thread(tid)?;
    let serves = actor.tgid == tgid
        && actor.flags & (flag::LOOP | flag::CREATED) == 0
        && matches!(
            actor.method as u32,
            method::SAME_THREAD | method::CONTINUATION
        )
        && actor.cause.is_open();
    serves.then_some(&actor.cause)
}

/// The current thread is back from a wait at this address, with this result of the call.
#[inline(always)]
pub fn waited_at(address: u64, result: i64, wait: Wait) {
    let Some((tgid, tid)) = current_at(address) else {
        return;
    };
    let mut waker = Waker::NOBODY;
    if result == 0 {
        waker = takes(&handed_key(tgid, address), 1);
    }
    if wait == Wait::Lock {
        // A wait for the value 2 may be a program's own: woken for something else it goes on with that.
        if let Some(worker) = worker(tgid, tid)
            && (worker.flags & state::CALLED != 0
                || (waker.tid != 0 && waker.cause != worker.cause))
        {
            worker.cause.clear();
        }
        return;
    }
    is_woken(tgid, tid, &waker, result == TIMED_OUT);
}

/// A thread took so many units of what others leave at this address.
#[inline(always)]
pub(super) fn takes_at(tgid: u32, tid: u32, address: u64, units: u64) {
    let waker = takes(&handed_key(tgid, address), units);
    is_woken(tgid, tid, &waker, false);
}

/// A thread goes on after a wait that this one ended, or time did.
#[inline(always)]
fn is_woken(tgid: u32, tid: u32, waker: &Waker, timed_out: bool) {
    let (mut in_flight, mut begun) = (0, 0);
    if let Some(crowd) = crowd(tgid) {
        begun = again(&crowd.begun);
        in_flight = again(&crowd.in_flight);
    }
    let woken_for = waker.cause.connection != 0 && in_flight == 1 && begun == waker.begun;
    if let Some(cause) = serves(tgid, tid) {
        // It waited for what it had handed on.
        if woken_for && waker.flags & state::CALLED != 0 && waker.cause == *cause {
            proves(tgid, waker.tid);
        }
        if let Some(worker) = worker(tgid, tid) {
            worker.cause.clear();
        }
        return;
    }
    let Some(worker) = worker(tgid, tid) else {
        if woken_for {
            let made = Worker {
                cause: waker.cause,
                begun,
                tgid,
                flags: 0,
                trusted: 0,
            };
            let _ = WORKERS.insert(&tid, &made, 0);
        }
        return;
    };
    worker.flags &= state::OWN;
    worker.cause.clear();
    if woken_for {
        worker.begun = begun;
        worker.cause = waker.cause;
    } else if timed_out {
        worker.flags |= state::TIMED;
    } else if waker.tid != 0
        && waker.flags & state::MANY == 0
        && waker.cause.connection == 0
        && worker.trusted != 0
        && let Some(crowd) = crowd(tgid)
    {
        // Somebody else may have work for it.
        crowd.proofs = 0;
    }
}

/// The current thread slept (`by_time`), or waited for events: what comes next is not what it was woken for.
#[inline(always)]
pub fn goes_on_later(by_time: bool) {
    let Some((tgid, tid)) = current() else {
        return;
    };
    if let Some(worker) = worker(tgid, tid) {
        worker.cause.clear();
        worker.flags &= state::OWN;
        if by_time {
            worker.flags |= state::TIMED;
        }
    }
}

/// A thread that was woken has called, and the one that serves the exchange waited for it.
#[inline(always)]
fn proves(tgid: u32, tid: u32) {
    let Some(worker) = worker(tgid, tid) else {
        return;
    };
    if worker.flags & state::OWN != 0 {
        return;
    }
    worker.trusted = 1;
    if let Some(crowd) = crowd(tgid)
        && crowd.proofs < PROOFS
    {
        crowd.proofs += 1;
    }
}

/// A thread that serves nothing itself sends a request: what for, or [`Cause::NONE`].
#[inline(always)]
pub(super) fn woken_calls(kind: u32, tgid: u32, tid: u32) -> Cause {
    if kind & kind::WOKEN == 0 {
        return Cause::NONE;
    }
    let (mut in_flight, mut begun, mut proofs) = (0, 0, 0);
    if let Some(crowd) = crowd(tgid) {
        (in_flight, begun, proofs) = (crowd.in_flight, crowd.begun, crowd.proofs);
    }
    if in_flight != 0 && kind & kind::STRANGERS == 0 {
        add_to_kind(tgid, kind::STRANGERS);
    }
    let Some(worker) = worker(tgid, tid) else {
        if in_flight == 0 {
            let made = Worker {
                cause: Cause::NONE,
                begun: 0,
                tgid,
                flags: state::OWN,
                trusted: 0,
            };
            let _ = WORKERS.insert(&tid, &made, 0);
        }
        return Cause::NONE;
    };
    let by_itself = if worker.cause.connection != 0 {
        // It outlives what it was woken for.
        !worker.cause.is_open()
    } else {
        worker.flags & state::TIMED != 0 || in_flight == 0
    };
    if by_itself {
        worker.cause.clear();
        worker.flags = state::OWN;
        if worker.trusted != 0 {
            add_to_kind(tgid, kind::OTHER_WORK);
        }
        return Cause::NONE;
    }
    if worker.cause.connection == 0 || in_flight != 1 || begun != worker.begun {
        worker.cause.clear();
        return Cause::NONE;
    }
    worker.flags |= state::CALLED;
    if worker.flags & state::OWN != 0
        || worker.trusted == 0
        || proofs < PROOFS
        || kind & kind::OTHER_WORK != 0
    {
        return Cause::NONE;
    }
    worker.cause
}

/// A thread ended: whatever its process is by now.
#[inline(always)]
pub(super) fn worker_ended(tid: u32) {
    let _ = WORKERS.remove(&tid);
}
