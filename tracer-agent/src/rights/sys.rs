//! System calls of this room that nobody has a safe wrapper for, and the signal of the filter.

#![allow(
    unsafe_code,
    reason = "this is the room for it; each block says why it is sound"
)]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers of system calls that the filter refused and nobody asked for yet, a bit each.
static REFUSED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// `si_code` of a signal that a filter sent (`SYS_SECCOMP`, include/uapi/asm-generic/siginfo.h).
const BY_FILTER: libc::c_int = 1;

/// Has refused calls fail with EPERM and be noted, where the signal's default would end the process.
pub(super) fn answer_refused_calls() -> io::Result<()> {
    // SAFETY: all-zero is a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = refuse as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the action is live and complete, its handler has the signature that SA_SIGINFO asks for;
    // nothing is wanted back.
    match unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The kernel has rolled the call back: the register of the result still holds its number (x86-64), or
/// that of the number does (arm64); what is left in the register of the result is what the caller gets.
extern "C" fn refuse(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes both for a handler with SA_SIGINFO.
    if unsafe { (*info).si_code } != BY_FILTER {
        return;
    }
    let context = context.cast::<libc::ucontext_t>();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the context is this thread's own, saved by the kernel and restored when this returns.
    let number = unsafe {
        let result = &mut (*context).uc_mcontext.gregs[libc::REG_RAX as usize];
        std::mem::replace(result, -i64::from(libc::EPERM)) as u64
    };
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    let number = unsafe {
        let registers = &mut (*context).uc_mcontext.regs;
        registers[0] = (-i64::from(libc::EPERM)) as u64;
        registers[8]
    };
    if let Some(word) = REFUSED.get((number / 64) as usize) {
        word.fetch_or(1 << (number % 64), Ordering::Relaxed);
    }
}

/// Numbers of system calls refused since the last call of this.
pub(super) fn take_refused() -> Vec<u32> {
    let words = REFUSED.iter().zip(0u32..);
    words
        .flat_map(|(word, index)| {
            let bits = word.swap(0, Ordering::Relaxed);
            (0..64).filter_map(move |bit| (bits >> bit & 1 == 1).then_some(index * 64 + bit))
        })
        .collect()
}

/// Asks the kernel for a uprobe without saying where: a process that may place one is told that the
/// place is wrong, any other that it may not. Nothing is placed either way. `kind` is the number of the
/// perf device.
pub(super) fn ask_for_uprobe(kind: u32) -> io::Error {
    /// `struct perf_event_attr`, its first version (include/uapi/linux/perf_event.h).
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
        /// Address of the path; none.
        path: u64,
        offset: u64,
    }
    let attributes = Attributes {
        kind,
        size: std::mem::size_of::<Attributes>() as u32,
        ..Attributes::default()
    };
    const ANY_PROCESS: libc::c_int = -1;
    const FIRST_CPU: libc::c_int = 0;
    const NO_GROUP: libc::c_int = -1;
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
    // SAFETY: the attributes are live and as long as they say; the kernel reads them and nothing else.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &attributes,
            ANY_PROCESS,
            FIRST_CPU,
            NO_GROUP,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if result < 0 {
        return io::Error::last_os_error();
    }
    // Not possible without a path; should it be, it is not kept.
    // SAFETY: the descriptor was made just now and nobody else knows it.
    unsafe { libc::close(result as libc::c_int) };
    io::Error::from_raw_os_error(libc::EINVAL)
}
