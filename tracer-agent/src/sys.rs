//! The agent's only unsafe code: system calls that std does not offer.

#![allow(
    unsafe_code,
    reason = "this is the room for it; each block says why it is sound"
)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Reads a clock. `clock` must exist on every supported kernel (`CLOCK_BOOTTIME`, `CLOCK_REALTIME`).
pub fn clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec; the call has no other effect.
    unsafe { libc::clock_gettime(clock, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Waits until `fd` is readable or the time is over; an interrupted wait just ends early.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let millis = timeout.as_millis().min(i32::MAX as u128) as i32;
    // SAFETY: one live pollfd is passed, as the count says; the descriptor is borrowed and open.
    unsafe { libc::poll(&mut poll, 1, millis) };
}
