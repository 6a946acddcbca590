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

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns};
use tracer_common::abi::{cause_method as method, kind_of_process as kind};

use super::Cause;
use super::actor::{add_to_kind, flag, kind_of, thread};
use super::turn::handed_key;
use crate::maps::{CROWDS, FLIGHTS, WAKERS, WORKERS};
use crate::memory::add;

/// Exchanges of a process.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Crowd {
    /// That were begun and have not ended; never too low.
    pub in_flight: u64,
    /// That were begun.
    pub begun: u64,
    /// When it was first counted: another process may have the same id later.
    pub since_ns: u64,
    /// Calls in threads that were woken for them, which the serving thread waited for, in a row.
    pub proofs: u64,
}

/// An exchange that is counted.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flight {
    /// [`Crowd::since_ns`].
    pub since_ns: u64,
    pub tgid: u32,
    pub reserved: u32,
}

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
    /// Its last wait ended by its timeout.
    pub const TIMED: u32 = 2;
    /// It was woken while nothing was in flight.
    pub const IDLE: u32 = 4;
    /// It was seen to call by itself.
    pub const OWN: u32 = 8;
    /// A wake that may be several ones', or of several.
    pub const MANY: u32 = 16;
}

/// The last wake at an address that was not noticed by who waits there, while one exchange was in flight.
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
}

/// See [`Crowd::proofs`].
const PROOFS: u64 = 16;
/// `-ETIMEDOUT`.
const TIMED_OUT: i64 = -110;

#[inline(always)]
fn crowd(tgid: u32) -> Option<&'static mut Crowd> {
    // SAFETY: the pointer is into the map; counters are added to in one instruction.
    unsafe { CROWDS.get_ptr_mut(&tgid)?.as_mut() }
}

/// A counter, as it is now.
#[inline(always)]
fn again(counter: &u64) -> u64 {
    // SAFETY: made from a reference.
    unsafe { core::ptr::from_ref(counter).read_volatile() }
}

#[inline(always)]
fn worker(tgid: u32, tid: u32) -> Option<&'static mut Worker> {
    // SAFETY: the pointer is into the map; each field has one writer, or any order of writes will do.
    let worker = unsafe { WORKERS.get_ptr_mut(&tid)?.as_mut()? };
    (worker.tgid == tgid).then_some(worker)
}

/// Counts an exchange that begins in a process of this kind; true if it was counted.
#[inline(always)]
pub(super) fn begins(cause: &Cause, tgid: u32, kind: u32) -> bool {
    if kind & kind::WOKEN == 0 {
        return false;
    }
    if crowd(tgid).is_none() {
        let made = Crowd {
            in_flight: 0,
            begun: 0,
            // SAFETY: the helper has no preconditions.
            since_ns: unsafe { bpf_ktime_get_boot_ns() },
            proofs: 0,
        };
        let _ = CROWDS.insert(&tgid, &made, BPF_NOEXIST as u64);
    }
    let Some(crowd) = crowd(tgid) else {
        // There is no room for its number.
        add_to_kind(tgid, kind::OTHER_WORK);
        return false;
    };
    let flight = Flight {
        since_ns: crowd.since_ns,
        tgid,
        reserved: 0,
    };
    if FLIGHTS.insert(cause, &flight, BPF_NOEXIST as u64).is_err() {
        // The number would be too low.
        add_to_kind(tgid, kind::OTHER_WORK);
        return false;
    }
    // SAFETY: aligned words of map memory.
    unsafe {
        add(&mut crowd.in_flight, 1);
        add(&mut crowd.begun, 1);
    }
    true
}

/// A counted exchange ended.
#[inline(always)]
pub(super) fn ends(cause: &Cause) {
    // SAFETY: the value is copied before the map is changed.
    let Some(flight) = (unsafe { FLIGHTS.get(cause) }).copied() else {
        return;
    };
    // Of several that see it end only one takes it out.
    if FLIGHTS.remove(cause).is_err() {
        return;
    }
    if let Some(crowd) = crowd(flight.tgid)
        && crowd.since_ns == flight.since_ns
    {
        // SAFETY: an aligned word of map memory.
        unsafe { add(&mut crowd.in_flight, -1) };
    }
}

/// A process that is followed for this, and the current thread.
#[inline(always)]
fn current() -> Option<(u32, u32)> {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    (kind_of(tgid) & kind::WOKEN != 0).then_some((tgid, id as u32))
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
    let Some((tgid, _)) = current() else {
        return;
    };
    // What was meant for an earlier wait.
    let key = handed_key(tgid, address);
    // SAFETY: only whether it is there is asked.
    if unsafe { WAKERS.get(&key) }.is_some() {
        let _ = WAKERS.remove(&key);
    }
}

/// The current thread is about to wake `count` of those that wait at this address.
#[inline(always)]
pub fn wakes_at(address: u64, count: u32) {
    let Some((tgid, tid)) = current() else {
        return;
    };
    let Some(crowd) = crowd(tgid) else {
        return;
    };
    let key = handed_key(tgid, address);
    // SAFETY: the value is only read, before the map is changed.
    let before = match unsafe { WAKERS.get(&key) } {
        Some(waker) => waker.tid,
        None => 0,
    };
    // First: one that begins meanwhile shows in what is read later.
    let begun = again(&crowd.begun);
    if again(&crowd.in_flight) != 1 {
        if before != 0 {
            let _ = WAKERS.remove(&key);
        }
        return;
    }
    let mut waker = Waker {
        cause: Cause::NONE,
        begun,
        tid,
        flags: 0,
    };
    if count != 1 || (before != 0 && before != tid) {
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
    let _ = WAKERS.insert(&key, &waker, 0);
}

/// The current thread is back from a wait at this address, with this result of the call.
#[inline(always)]
pub fn waited_at(address: u64, result: i64) {
    let Some((tgid, tid)) = current() else {
        return;
    };
    let key = handed_key(tgid, address);
    let mut waker = Waker {
        cause: Cause::NONE,
        begun: 0,
        tid: 0,
        flags: 0,
    };
    if result == 0
        // SAFETY: the value is copied before the map is changed.
        && let Some(found) = unsafe { WAKERS.get(&key) }
    {
        waker = *found;
        let _ = WAKERS.remove(&key);
    }
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
    } else if result == TIMED_OUT {
        worker.flags |= state::TIMED;
    } else if result == 0 && in_flight == 0 {
        worker.flags |= state::IDLE;
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
        worker.flags & state::TIMED != 0 || (worker.flags & state::IDLE != 0 && in_flight == 0)
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

/// A thread of a process of this kind ended.
#[inline(always)]
pub(super) fn worker_ended(tgid: u32, tid: u32) {
    if kind_of(tgid) & kind::WOKEN != 0 {
        let _ = WORKERS.remove(&tid);
    }
}

/// A process ended, or is another program from now on.
#[inline(always)]
pub(super) fn crowd_ended(tgid: u32) {
    if kind_of(tgid) & kind::WOKEN != 0 {
        let _ = CROWDS.remove(&tgid);
    }
}

/// A connection speaks a protocol whose exchanges are not counted.
#[inline(always)]
pub(super) fn uncounted(tgid: u32) {
    if kind_of(tgid) & (kind::WOKEN | kind::OTHER_WORK) == kind::WOKEN {
        add_to_kind(tgid, kind::OTHER_WORK);
    }
}
