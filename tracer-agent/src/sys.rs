//! The agent's only unsafe code: system calls that std does not offer.

#![allow(
    unsafe_code,
    reason = "this is the room for it; each block says why it is sound"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
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

/// Where a file can be opened by a path as long as it is held.
pub fn path_of(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Waits until `fd` is readable or the time is over; an interrupted wait just ends early. True if
/// something happened.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let millis = timeout.as_millis().min(i32::MAX as u128) as i32;
    // SAFETY: one live pollfd is passed, as the count says; the descriptor is borrowed and open.
    unsafe { libc::poll(&mut poll, 1, millis) > 0 }
}

/// Bytes that wait to be read from a socket.
pub fn readable_bytes(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int, which lives; the descriptor is borrowed and open.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &mut bytes) } {
        0 => Ok(usize::try_from(bytes).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the allocator take what is large from the kernel, and give it back when it is freed. By itself it
/// keeps more the larger the blocks are that it has seen: here what once looked into a large program.
pub fn return_large_blocks() {
    give_back_from(128 * 1024, 128 * 1024);
}

/// The same, but a batch of spans and its message do not count as large, and what one batch frees is there
/// for the next one: else every page of each would be faulted in anew, which cost a fifth of the agent's
/// CPU under load. For when all that was there at the start has been looked into.
pub fn keep_batches() {
    give_back_from(1024 * 1024, 2 * 1024 * 1024);
}

/// Blocks from `large` bytes on go back each, others when so many bytes are free in a row.
fn give_back_from(large: i32, free: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes plain numbers, and locks what it changes.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, large);
        libc::mallopt(libc::M_TRIM_THRESHOLD, free);
    };
    #[cfg(not(target_env = "gnu"))]
    let _ = (large, free);
}

/// Has the allocator give what is free back to the kernel, where it keeps it otherwise.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; it may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Starts a process that holds `kept` (sorted) open, and nothing else, until this one has ended: where
/// the last close of a descriptor takes the kernel long, that process waits for it and not this one. It
/// closes them one by one, each while it has a lock on `turn`, and waits ten seconds at most for
/// others that have one.
pub fn leave_to_child(kept: &[RawFd], turn: Option<&std::fs::File>) -> io::Result<()> {
    const fn milliseconds(n: i64) -> libc::timespec {
        libc::timespec {
            tv_sec: 0,
            tv_nsec: n * 1_000_000,
        }
    }
    const PAUSE: libc::timespec = milliseconds(5);
    /// For others who wait for the lock.
    const REST: libc::timespec = milliseconds(3);
    /// Ten seconds: a parent that does not end has to do without.
    const PAUSES: u32 = 2000;
    let turn = turn.map_or(-1, std::os::fd::AsRawFd::as_raw_fd);
    let mut open: Vec<RawFd> = kept.to_vec();
    open.extend((turn >= 0).then_some(turn));
    open.sort_unstable();
    // SAFETY: no arguments, no effects.
    let parent = unsafe { libc::getpid() };
    // SAFETY: what the child runs until it ends are system calls only: it allocates nothing, takes no
    // lock and touches no state of the threads that it does not have.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: as above; all arguments are plain numbers, and nobody uses the descriptors again.
            unsafe {
                libc::setsid();
                let mut next = 0;
                for &fd in &open {
                    if next < fd {
                        libc::syscall(libc::SYS_close_range, next, fd - 1, 0);
                    }
                    next = fd + 1;
                }
                libc::syscall(libc::SYS_close_range, next, libc::c_uint::MAX, 0);
                for _ in 0..PAUSES {
                    if libc::getppid() != parent {
                        break;
                    }
                    libc::nanosleep(&PAUSE, std::ptr::null_mut());
                }
                let mut pauses = PAUSES;
                for &fd in kept {
                    while libc::flock(turn, libc::LOCK_EX | libc::LOCK_NB) != 0
                        && pauses > 0
                        && turn >= 0
                    {
                        pauses -= 1;
                        libc::nanosleep(&PAUSE, std::ptr::null_mut());
                    }
                    libc::close(fd);
                    libc::flock(turn, libc::LOCK_UN);
                    libc::nanosleep(&REST, std::ptr::null_mut());
                }
                libc::_exit(0)
            }
        }
        _ => Ok(()),
    }
}
