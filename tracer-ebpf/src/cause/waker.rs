//! Wakes that whoever was woken has not noticed yet, and what was left in pipes and eventfds.
//!
//! In: waits and wakes. Out: who woke a thread that is back from its wait, and for what. At one address several threads may
//! wait (workers at one condition), so wakes are counted, and those that woke nobody are taken back.

use super::Cause;
use super::crowd::{again, crowd};
use super::turn::handed_key;
use super::woken::{current_at, serves, worker};
use crate::maps::{Handed, WAKERS};
use crate::memory::add;

/// [`super::woken::Worker::flags`] and [`Waker::flags`].
pub(super) mod state {
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
    pub(super) const NOBODY: Waker = Waker {
        cause: Cause::NONE,
        begun: 0,
        tid: 0,
        flags: 0,
        left: 0,
    };
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
        // Also of wakes that nobody has noticed yet: who comes back first may be one of theirs.
        if lasts || again(&before.left) != 0 {
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
pub(super) fn takes(key: &Handed, units: u64) -> Waker {
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
