//! How many exchanges of a process are in flight.
//!
//! In: exchanges that begin and end in processes that are followed for it. Out: their number, never too low, and how many were begun:
//! `woken.rs` believes who was woken only while there is one, and none began in between.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use tracer_common::abi::kind_of_process as kind;

use super::Cause;
use super::actor::{add_to_kind, kind_of};
use super::woken::may_be_believed;
use crate::maps::{CROWDS, FLIGHTS, LOCKS};
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

#[inline(always)]
pub(super) fn crowd(tgid: u32) -> Option<&'static mut Crowd> {
    // SAFETY: the pointer is into the map; counters are added to in one instruction.
    unsafe { CROWDS.get_ptr_mut(&tgid)?.as_mut() }
}

/// A counter, as it is now.
#[inline(always)]
pub(super) fn again(counter: &u64) -> u64 {
    // SAFETY: made from a reference.
    unsafe { core::ptr::from_ref(counter).read_volatile() }
}

/// Counts an exchange that begins in a process of this kind; true if it was counted.
#[inline(always)]
pub(super) fn begins(cause: &Cause, tgid: u32, kind: u32) -> bool {
    // Once nobody is believed, that stays so.
    if !may_be_believed(kind) {
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

/// A process ended, or is another program from now on.
#[inline(always)]
pub(super) fn crowd_ended(tgid: u32) {
    let _ = CROWDS.remove(&tgid);
    let _ = LOCKS.remove(&tgid);
}

/// A connection speaks a protocol whose exchanges are not counted.
#[inline(always)]
pub(super) fn uncounted(tgid: u32) {
    if kind_of(tgid) & (kind::WOKEN | kind::OTHER_WORK) == kind::WOKEN {
        add_to_kind(tgid, kind::OTHER_WORK);
    }
}
