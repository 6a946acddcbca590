//! Messages that threads of a process leave for each other in pipes and eventfds.
//!
//! In: bytes that are written to them and read. Out: wakes as in `woken.rs`, whose rules hold: a pipe is an address where somebody
//! waits. What is written stays until it is read, so it is counted in bytes, and what several threads wrote is nobody's until all
//! of that was read.

use super::waker::wakes;
use super::woken::{current, takes_at};
use crate::kernel;

/// More bytes than a pipe ever holds.
const UNKNOWN: u64 = u64::MAX >> 1;

/// The current thread is about to write so many bytes; `None`: nobody counted them, so what is in there is nobody's until all of
/// it was read.
#[inline(always)]
pub fn leaves_message(fd: i32, length: Option<u64>) {
    if let Some((tgid, tid)) = current()
        && let Some(place) = kernel::message_place(fd)
    {
        let units = length.unwrap_or(UNKNOWN);
        wakes(tgid, tid, place.address, units, length.is_some(), true);
    }
}

/// The current thread has read so many bytes of those that it asked for.
#[inline(always)]
pub fn takes_message(fd: i32, asked: u64, length: u64) {
    if let Some((tgid, tid)) = current()
        && let Some(place) = kernel::message_place(fd)
    {
        // All there was: an eventfd's number is taken as a whole.
        let is_all = !place.is_pipe || length < asked;
        let units = if is_all { u64::MAX } else { length };
        takes_at(tgid, tid, place.address, units);
    }
}
