//! Threads that are woken by one which serves the only exchange in flight in their process.
//!
//! In: exchanges that begin and end, waits and wakes of futexes, requests that go out. Out: the exchange
//! that a thread works for since it was woken. A pool's worker waits at a futex until whoever has work for it
//! wakes it; so does a thread that waits for the pool's answer.
//!
//! Who was woken need not take what it was woken for, so a wake counts only
//! - while the waker's exchange is the only one in the process, from the wake to the call, and none began
//!   in between, and until the thread waits again;
//! - for a thread that was seen to wake the very thread that serves the exchange, which waited for it, after a
//!   call of its own: who makes requests ready for a batch is not waited for like that, and who holds a lock seldom is;
//!   with that wake it has delivered, and works for nobody until it is woken again;
//! - not for a thread that was seen to call by itself: behind a wait that ended by its timeout, woken while nothing
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
use crate::maps::{Handed, LOCKS, WAKERS, WORKERS};
use crate::memory::add;

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

/// [`Worker::flags`] and [`Waker::flags`].
mod state {
    /// It sent a request since it was woken.
    pub const CALLED: u32 = 1;
    /// Its last wait ended by its timeout, or it slept.
    pub const TIMED: u32 = 2;
    /// It was seen to call by itself.
    pub const OWN: u32 = 8;
    /// A wake that may be several ones', or of several.
    pub const MANY: u32 = 16;
}

/// Wakes at an address that were not noticed by who waits there, while one exchange was in flight; or what was written
/// to a pipe or an eventfd and not read.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Waker {
    /// What it works for.
    pub cause: Cause,
    /// See [`Crowd::begun`].
    pub begun: u64,
    pub tid: u32,
    /// See [`state`].
    pub flags: u32,
    /// How many threads are to notice it; or bytes.
    pub left: u64,
}

impl Waker {
    const NOBODY: Waker = Waker {
        cause: Cause::NONE,
        begun: 0,
        tid: 0,
        flags: 0,
        left: 0,
    };
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
fn worker(tgid: u32, tid: u32) -> Option<&'static mut Worker> {
    // SAFETY: the pointer is into the map; each field has one writer, or any order of writes will do.
    let worker = unsafe { WORKERS.get_ptr_mut(&tid)?.as_mut()? };
    (worker.tgid == tgid).then_some(worker)
}

/// A process that is followed for this, and the current thread.
#[inline(always)]
pub(super) fn current() -> Option<(u32, u32)> {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    (kind_of(tgid) & kind::WOKEN != 0).then_some((tgid, id as u32))
}

/// The same, unless what is waited for at this address is an interpreter's own lock: that says nothing, and whoever gets
/// it goes on with what it did.
#[inline(always)]
fn current_at(address: u64) -> Option<(u32, u32)> {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    let kind = kind_of(tgid);
    if kind & kind::WOKEN == 0 {
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
fn serves(tgid: u32, tid: u32) -> Option<&'static Cause> {
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

/// The current thread is about to wait at this address.
#[inline(always)]
pub fn waits_at(address: u64) {
    let Some((tgid, _)) = current_at(address) else {
        return;
    };
    // What was meant for an earlier wait.
    let key = handed_key(tgid, address);
    // SAFETY: the value is only read.
    let Some(waker) = (unsafe { WAKERS.get(&key) }) else {
        return;
    };
    if crowd(tgid).is_none_or(|crowd| again(&crowd.begun) != waker.begun) {
        let _ = WAKERS.remove(&key);
    }
}

/// The current thread is about to wake `count` of those that wait at this address.
#[inline(always)]
pub fn wakes_at(address: u64, count: u32) {
    if let Some((tgid, tid)) = current_at(address) {
        wakes(tgid, tid, address, 1, count == 1, false);
    }
}

/// The current thread's wake at this address woke nobody.
#[inline(always)]
pub fn woke_nobody(address: u64) {
    if let Some((tgid, tid)) = current_at(address) {
        let key = handed_key(tgid, address);
        // SAFETY: the value is only read.
        if unsafe { WAKERS.get(&key) }.is_some_and(|waker| waker.tid == tid) {
            takes(&key, 1);
        }
    }
}

/// A thread is about to wake another one (`is_one`), or others, by so many units. `lasts`: what it leaves stays until it
/// is taken, however many exchanges are in flight.
#[inline(always)]
pub(super) fn wakes(tgid: u32, tid: u32, address: u64, units: u64, is_one: bool, lasts: bool) {
    let Some(crowd) = crowd(tgid) else {
        return;
    };
    let key = handed_key(tgid, address);
    // First: one that begins meanwhile shows in what is read later.
    let begun = again(&crowd.begun);
    let alone = again(&crowd.in_flight) == 1;
    let mut waker = Waker {
        begun,
        tid,
        left: units,
        ..Waker::NOBODY
    };
    // SAFETY: the pointer is into the map; what changes meanwhile is only how much is left.
    let before = WAKERS
        .get_ptr_mut(&key)
        .and_then(|waker| unsafe { waker.as_mut() });
    let is_others = before.as_ref().is_some_and(|before| before.tid != tid);
    if !alone {
        if !lasts {
            if before.is_some() {
                let _ = WAKERS.remove(&key);
            }
            return;
        }
    } else if !is_one || is_others {
        waker.flags = state::MANY;
    } else if let Some(cause) = serves(tgid, tid) {
        waker.cause = *cause;
    } else if let Some(worker) = worker(tgid, tid)
        && worker.begun == begun
        && worker.cause.is_open()
    {
        waker.cause = worker.cause;
        waker.flags = worker.flags & state::CALLED;
        if waker.flags != 0 {
            // It may have delivered what it was asked for; what it takes next, without a wait, is anybody's.
            worker.cause.clear();
        }
    }
    if let Some(before) = before {
        let is_same = before.tid == tid
            && before.begun == begun
            && before.flags == waker.flags
            && before.cause == waker.cause;
        if is_same {
            // SAFETY: an aligned word of map memory.
            unsafe { add(&mut before.left, units as i64) };
            return;
        }
        if lasts {
            waker.cause.clear();
            waker.flags = state::MANY;
        }
        if waker.flags & state::MANY != 0 {
            waker.left = units.wrapping_add(again(&before.left));
        }
    }
    let _ = WAKERS.insert(&key, &waker, 0);
}

/// Takes so many units of what somebody left there.
#[inline(always)]
fn takes(key: &Handed, units: u64) -> Waker {
    // SAFETY: as in `wakes`.
    let Some(waker) = WAKERS
        .get_ptr_mut(key)
        .and_then(|waker| unsafe { waker.as_mut() })
    else {
        return Waker::NOBODY;
    };
    let found = *waker;
    if found.left > units {
        // SAFETY: an aligned word of map memory.
        unsafe { add(&mut waker.left, (units as i64).wrapping_neg()) };
    } else {
        let _ = WAKERS.remove(key);
    }
    found
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
        if let Some(worker) = worker(tgid, tid)
            && worker.flags & state::CALLED != 0
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
