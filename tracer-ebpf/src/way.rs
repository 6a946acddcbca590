//! The two ways into the programs that look at bytes: tracepoints of syscalls, and uprobes of TLS
//! libraries. Tail calls stay within one type of program, so there is a set of programs for each; the
//! code is the same.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::programs::{ProbeContext, TracePointContext};

use crate::kernel::opaque;
use crate::maps::{
    PROGRAMS, SCRATCH, Scratch, TLS_LOCKS, TLS_PROGRAMS, TLS_SCRATCH, TLS_SCRATCH_SLOTS,
};

use crate::memory::add;

/// How a set of programs gets at its scratch buffer and at its other programs.
pub trait Way {
    /// What its programs are called with.
    type Context: EbpfContext;

    /// It is of TLS libraries.
    const IS_LIBRARY: bool;

    /// The buffer of the call being looked at.
    fn scratch() -> Option<&'static mut Scratch>;

    /// Goes to another program of the set; returns only when that is not possible.
    fn tail_call(ctx: &Self::Context, program: u32);
}

/// Tracepoints of syscalls: they run with preemption disabled (where those of single calls do not, by the hook of all of
/// them: see `probes::raw`), so a buffer for each CPU is enough.
pub struct Syscalls;

impl Way for Syscalls {
    type Context = TracePointContext;

    const IS_LIBRARY: bool = false;

    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch> {
        // SAFETY: the per-CPU slot is ours until this program and its tail calls return.
        unsafe { SCRATCH.get_ptr_mut(0)?.as_mut() }
    }

    #[inline(always)]
    fn tail_call(ctx: &TracePointContext, program: u32) {
        // SAFETY: all indexes hold programs of this type.
        unsafe { PROGRAMS.tail_call(ctx, program) };
    }
}

/// Uprobes: since 6.0 (kernel commit 8c7dcb84e3b7) their programs stay on their CPU but can be
/// preempted there, by another thread that runs into a uprobe too. So each CPU has some buffers, and
/// a program takes one that nobody has.
pub struct Uprobes;

/// Who has a buffer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Lock {
    /// Programs that have it or are asking for it.
    pub count: u64,
    /// Thread that has it.
    pub owner: u64,
}

impl Uprobes {
    /// Takes a buffer until [`Uprobes::done`]; `None` when all are taken.
    #[inline(always)]
    pub fn take() -> Option<&'static mut Scratch> {
        let me = bpf_get_current_pid_tgid();
        let mut slot = 0;
        while slot < TLS_SCRATCH_SLOTS {
            let lock = TLS_LOCKS.get_ptr_mut(slot)?;
            // SAFETY: aligned words of map memory. The addition is one instruction (what it replaced
            // is not asked for, which kernels before 5.12 could not say): whoever reads 1 behind his
            // own addition is alone, because everybody's stays until he gives up or is done.
            unsafe {
                add(&raw mut (*lock).count, 1);
                if (&raw const (*lock).count).read_volatile() == 1 {
                    (&raw mut (*lock).owner).write_volatile(me);
                    return TLS_SCRATCH.get_ptr_mut(slot)?.as_mut();
                }
                add(&raw mut (*lock).count, -1);
            }
            slot += 1;
        }
        None
    }

    /// Gives the buffer back. Every program of the set ends with it, unless it went to another one.
    #[inline(always)]
    pub fn done() {
        let _ = try_done();
    }
}

#[inline(always)]
fn try_done() -> Option<()> {
    let lock = TLS_LOCKS.get_ptr_mut(owned()?)?;
    // SAFETY: as in `take`; it is this thread's until the subtraction.
    unsafe {
        (&raw mut (*lock).owner).write_volatile(0);
        add(&raw mut (*lock).count, -1);
    }
    None
}

/// Index of the buffer that this thread has.
#[inline(always)]
fn owned() -> Option<u32> {
    let me = bpf_get_current_pid_tgid();
    let mut found = TLS_SCRATCH_SLOTS;
    let mut slot = 0;
    while slot < TLS_SCRATCH_SLOTS {
        let lock = TLS_LOCKS.get_ptr_mut(slot)?;
        // SAFETY: an aligned word of map memory.
        if unsafe { (&raw const (*lock).owner).read_volatile() } == me {
            found = slot;
        }
        slot += 1;
    }
    (found < TLS_SCRATCH_SLOTS).then_some(opaque(found))
}

impl Way for Uprobes {
    type Context = ProbeContext;

    const IS_LIBRARY: bool = true;

    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch> {
        // SAFETY: this thread took it.
        unsafe { TLS_SCRATCH.get_ptr_mut(owned()?)?.as_mut() }
    }

    #[inline(always)]
    fn tail_call(ctx: &ProbeContext, program: u32) {
        // SAFETY: all indexes hold programs of this type.
        unsafe { TLS_PROGRAMS.tail_call(ctx, program) };
    }
}
