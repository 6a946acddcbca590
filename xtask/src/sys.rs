//! The few things std has no name for: signals, the death of the parent, CPU affinity, usage of an
//! ended child. The only file of this crate with `unsafe`.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

/// The last of SIGINT, SIGTERM and SIGHUP that arrived, or 0.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// What an ended process used.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Exit status 0.
    pub success: bool,
    /// CPU time of all its threads, user and system.
    pub cpu: Duration,
    /// Largest resident set, in bytes.
    pub max_rss: u64,
}

/// Whether this process has root's rights.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, touches no memory and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Sends a signal to one process. An error if there is no such process.
pub fn signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    if pid <= 1 {
        // 0 and negative numbers would address whole groups.
        return Err(io::Error::other("not the id of a child"));
    }
    // SAFETY: kill takes plain numbers and touches no memory of ours.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP no longer end this process; [`caught`] tells of them.
pub fn catch_signals() {
    extern "C" fn note(signal: libc::c_int) {
        CAUGHT.store(signal, Ordering::SeqCst);
    }
    let handler = note as extern "C" fn(libc::c_int);
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores into an atomic, which is async-signal-safe, and lives for
        // as long as the program.
        unsafe {
            libc::signal(number, handler as libc::sighandler_t);
        }
    }
}

/// Takes the signal that arrived since the last call.
pub fn caught() -> Option<i32> {
    match CAUGHT.swap(0, Ordering::SeqCst) {
        0 => None,
        signal => Some(signal),
    }
}

/// Makes the kernel end the command's process when the calling thread ends, however that happens,
/// and gives it a process group of its own, so that the terminal's Ctrl-C reaches only us.
pub fn die_with_us(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    command.process_group(0);
    // SAFETY: between fork and exec the closure only makes the async-signal-safe system calls prctl
    // and getppid and allocates nothing (`from_raw_os_error` does not allocate).
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have gone before the call above.
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

/// Confines the command's process to one CPU.
pub fn pin(command: &mut Command, cpu: usize) -> &mut Command {
    // SAFETY: an all-zero cpu_set_t is a valid empty set, and CPU_SET checks its bounds.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: between fork and exec the closure only makes one system call, on a set it owns.
    unsafe {
        command.pre_exec(move || {
            match libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }
}

/// Waits for a child that was not waited for yet and tells what it used.
pub fn wait_usage(pid: u32) -> io::Result<Usage> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid (plain numbers).
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live locals of the right types.
        let result = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if result == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let duration = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs())
            + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    Ok(Usage {
        success: libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        cpu: duration(usage.ru_utime) + duration(usage.ru_stime),
        max_rss: usage.ru_maxrss.unsigned_abs() * 1024,
    })
}

/// How long a clock tick of /proc lasts.
pub fn clock_tick() -> Duration {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Duration::from_secs(1)
        / u32::try_from(per_second)
            .ok()
            .filter(|&n| n > 0)
            .unwrap_or(100)
}
