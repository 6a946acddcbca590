//! System calls around `perf_event_open`: rings that tell when the kernel makes code, and programs at tracepoints that come and go.
#![allow(
    unsafe_code,
    reason = "system calls take addresses, and the kernel shares memory; each block says why it is sound"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The first version of `struct perf_event_attr`, which has all that is wanted here.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    period: u64,
    sample: u64,
    read: u64,
    flags: u64,
    wakeup: u32,
    breakpoint: u32,
    address: u64,
}

const TYPE_SOFTWARE: u32 = 1;
const TYPE_TRACEPOINT: u32 = 2;
const COUNT_SW_DUMMY: u64 = 9;
/// Who did it is told with each record, behind it.
const SAMPLE_TID: u64 = 1 << 1;
const WATERMARK: u64 = 1 << 14;
const SAMPLE_ID_ALL: u64 = 1 << 18;
const KSYMBOL: u64 = 1 << 29;
const FLAG_CLOEXEC: libc::c_ulong = 1 << 3;
const IOC_ENABLE: libc::Ioctl = 0x2400;
const IOC_SET_BPF: libc::Ioctl = 0x4004_2408;

/// Pages of records: well over a hundred.
const PAGES: usize = 2;
/// Where `struct perf_event_mmap_page` has what is written, and what is read.
const HEAD: usize = 1024;
const TAIL: usize = 1032;

fn open(attributes: &mut Attributes, cpu: u32) -> io::Result<OwnedFd> {
    const ANY_PROCESS: libc::c_int = -1;
    const NO_GROUP: libc::c_int = -1;
    attributes.size = size_of::<Attributes>() as u32;
    // SAFETY: the attributes are live and as long as they say; the kernel reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(attributes),
            ANY_PROCESS,
            cpu,
            NO_GROUP,
            FLAG_CLOEXEC,
        )
    };
    match libc::c_int::try_from(result) {
        // SAFETY: the kernel has just made it for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Attaches a program to the tracepoint with this number; detached with the descriptor.
pub fn attach(tracepoint: u64, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = Attributes {
        kind: TYPE_TRACEPOINT,
        config: tracepoint,
        period: 1,
        wakeup: 1,
        ..Attributes::default()
    };
    // The program runs on all CPUs, wherever the event is counted.
    let event = open(&mut attributes, 0)?;
    for (command, argument) in [(IOC_SET_BPF, program.as_raw_fd()), (IOC_ENABLE, 0)] {
        // SAFETY: both take a number.
        if unsafe { libc::ioctl(event.as_raw_fd(), command, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(event)
}

/// Records of code that the kernel makes, of one CPU.
pub struct Ring {
    event: OwnedFd,
    memory: NonNull<u8>,
    page: usize,
}

// SAFETY: the memory is the ring's own, and is reached through `&mut` alone.
unsafe impl Send for Ring {}

impl Ring {
    /// Opens it.
    pub fn open(cpu: u32) -> io::Result<Self> {
        let mut attributes = Attributes {
            kind: TYPE_SOFTWARE,
            config: COUNT_SW_DUMMY,
            sample: SAMPLE_TID,
            flags: WATERMARK | SAMPLE_ID_ALL | KSYMBOL,
            // A byte: whoever waits is woken by each record.
            wakeup: 1,
            ..Attributes::default()
        };
        let event = open(&mut attributes, cpu)?;
        // SAFETY: a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: the kernel chooses the place.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                page * (PAGES + 1),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(memory.cast::<u8>()) {
            Some(memory) if memory.as_ptr().cast() != libc::MAP_FAILED => Ok(Ring {
                event,
                memory,
                page,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Appends what was recorded since the last time.
    pub fn take(&mut self, bytes: &mut Vec<u8>) {
        let size = self.page * PAGES;
        let (head, tail) = (self.word(HEAD), self.word(TAIL));
        let end = head.load(Ordering::Acquire);
        let start = tail.load(Ordering::Relaxed);
        let length = usize::try_from(end.wrapping_sub(start)).unwrap_or(size);
        for n in 0..length.min(size) {
            let at = (start as usize).wrapping_add(n) % size;
            // SAFETY: within the pages behind the first one; what is between both ends the kernel does not write.
            bytes.push(unsafe { self.memory.add(self.page + at).read_volatile() });
        }
        tail.store(end, Ordering::Release);
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: within the first page, aligned, and written by the kernel and by us as a whole.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(at).cast()) }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and nobody has an address in it.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.page * (PAGES + 1)) };
    }
}

/// Waits until one of them has something to tell, or has ended; which.
pub fn wait<'a>(
    descriptors: impl Iterator<Item = BorrowedFd<'a>>,
    limit: Duration,
) -> io::Result<Vec<bool>> {
    let mut list: Vec<libc::pollfd> = descriptors
        .map(|descriptor| libc::pollfd {
            fd: descriptor.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let limit = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the list is live and as long as it is said to be.
    let result = unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, limit) };
    let error = io::Error::last_os_error();
    if result < 0 && error.kind() != io::ErrorKind::Interrupted {
        return Err(error);
    }
    Ok(list.iter().map(|one| one.revents != 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a pipe whose other end goes.
    /// Guarantees: it is told from one that stays, and waiting ends at its time.
    #[test]
    fn ends_of_pipes() {
        let (stays, _other) = io::pipe().expect("a pipe");
        let (goes, end) = io::pipe().expect("a pipe");
        let both = || [stays.as_fd(), goes.as_fd()].into_iter();
        let moment = Duration::from_millis(1);
        assert_eq!(wait(both(), moment).expect("waited"), [false, false]);
        drop(end);
        let long = Duration::from_secs(60);
        assert_eq!(wait(both(), long).expect("waited"), [false, true]);
        assert_eq!(size_of::<Attributes>(), 64);
    }
}
