//! The system calls the harness needs beyond std; the only `unsafe` of this crate.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

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

/// The first words of `union bpf_attr` for loading a program, as far as to the function that it is for.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u32; 6],
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    more: [u64; 4],
    lines: u32,
    function: u32,
    rest: [u32; 2],
}

/// Loads a program that does nothing at the end of the kernel's function with this type id.
pub fn load_for_function(function: u32) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    const TRACING: u32 = 26;
    const FEXIT: u32 = 25;
    /// `r0 = 0; exit`.
    const NOTHING: [u64; 2] = [0xb7, 0x95];
    let mut attributes = Load {
        kind: TRACING,
        instructions: 2,
        code: NOTHING.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        attach_type: FEXIT,
        function,
        ..Load::default()
    };
    // SAFETY: the addresses are of constants.
    unsafe { bpf(PROG_LOAD, &mut attributes) }
}

/// Attaches it; detached with the descriptor.
pub fn attach_to_function(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
    let mut attributes = [0, 0, program.as_raw_fd().cast_unsigned(), 0];
    // SAFETY: no addresses.
    unsafe { bpf(RAW_TRACEPOINT_OPEN, &mut attributes) }
}

/// # Safety
/// Addresses in the attributes are as the command wants them, and it returns a descriptor.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    let attributes = std::ptr::from_mut(attributes);
    // SAFETY: as the caller says; the size is that of what is passed.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    match libc::c_int::try_from(result) {
        // SAFETY: the kernel has just made it for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}
