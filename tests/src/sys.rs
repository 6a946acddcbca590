//! The system calls the harness needs beyond std; the only `unsafe` of this crate.

/// Effective user id.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

/// Sends `signal` to one process. Returns false if it is gone (or is not ours to signal).
pub fn signal(pid: u32, signal: i32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else {
        return false;
    };
    // 0 and negative numbers address groups: never what the harness wants.
    if pid <= 1 {
        return false;
    }
    // SAFETY: kill takes plain integers; the pid is that of one process.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// How often the scheduler took the CPU from this thread against its will. A measurement during
/// which this grew says nothing about the traced program.
pub fn involuntary_switches() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to writable memory of the right type; all-zero is a valid rusage, so
    // reading it is sound even if the call failed.
    unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init().ru_nivcsw
    }
}
