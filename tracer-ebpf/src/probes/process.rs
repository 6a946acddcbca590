//! Processes: what a new program is called and where it runs, before it can be gone again.
//!
//! Hooks: `sched:sched_process_exec` and `sched_process_exit` (their contexts are not used), and
//! `tp_btf/sched_process_fork (struct task_struct *parent, struct task_struct *child)` for policies
//! that children inherit.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
};
use aya_ebpf::macros::{btf_tracepoint, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, TracePointContext};
use tracer_common::abi::{ExecEvent, ExitEvent, ForkEvent, Header, kind, policy, setting};
use tracer_common::limits::{ARGS_MAX, ENV_MAX};

use crate::cause;
use crate::emit;
use crate::hook;
use crate::kernel::{self, field};
use crate::maps::{EXEC_SCRATCH, PROCESSES, read_setting};

/// See the module's text.
#[tracepoint]
pub fn sched_process_exec(_ctx: TracePointContext) -> u32 {
    let _ = exec();
    0
}

#[inline(always)]
fn exec() -> Option<()> {
    cause::process_ended((bpf_get_current_pid_tgid() >> 32) as u32);
    cause::forget();
    // What it waited in before is over.
    hook::thread_ended();
    // SAFETY: a per-CPU slot; exec runs in process context and is not nested.
    let scratch = unsafe { EXEC_SCRATCH.get_ptr_mut(0)?.as_mut()? };
    let task = kernel::task();
    let mm: u64 = field(task, &kernel::TASK_MM)?;
    let parent: u64 = field(task, &kernel::TASK_REAL_PARENT)?;
    let args_len = copy(scratch, 0, mm, Area::Arguments);
    let env_len = copy(scratch, args_len, mm, Area::Environment);
    scratch.event = ExecEvent {
        header: Header {
            kind: kind::EXEC,
            selector: 0,
            flags: 0,
            reserved: 0,
            value: 0,
        },
        // SAFETY: the helpers have no preconditions.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        start_ns: field(task, &kernel::TASK_START_BOOTTIME).unwrap_or(0),
        tgid: (bpf_get_current_pid_tgid() >> 32) as u32,
        parent_tgid: field(parent, &kernel::TASK_TGID).unwrap_or(0),
        uid: bpf_get_current_uid_gid() as u32,
        args_len: args_len as u16,
        env_len: env_len as u16,
        // SAFETY: the helper has no preconditions.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    let tgid = scratch.event.tgid;
    let undecided = read_setting(setting::POLICY_ACTIVE) & setting::NEW_UNDECIDED != 0;
    if undecided {
        let flags = policy::TRACE
            | policy::INHERIT
            | policy::UNDECIDED
            | policy::started(scratch.event.time_ns);
        let _ = PROCESSES.insert(&tgid, &flags, 0);
    }
    let bytes = (args_len + env_len) as u64;
    let bytes = if bytes > (ARGS_MAX + ENV_MAX) as u64 {
        (ARGS_MAX + ENV_MAX) as u64
    } else {
        bytes
    };
    let told = emit::urgent(
        core::ptr::from_ref(scratch).cast(),
        core::mem::size_of::<ExecEvent>() as u64 + bytes,
    );
    if undecided && !told {
        // Nobody will decide.
        let _ = PROCESSES.remove(&tgid);
    }
    None
}

#[derive(Clone, Copy)]
enum Area {
    Arguments,
    Environment,
}

/// Copies an area of the new program's stack behind the event; it was just written, so it is there.
#[inline(always)]
fn copy(scratch: &mut crate::maps::ExecScratch, at: u32, mm: u64, area: Area) -> u32 {
    let (start, end, max) = match area {
        Area::Arguments => (&kernel::MM_ARG_START, &kernel::MM_ARG_END, ARGS_MAX),
        Area::Environment => (&kernel::MM_ENV_START, &kernel::MM_ENV_END, ENV_MAX),
    };
    let start: u64 = field(mm, start).unwrap_or(0);
    let end: u64 = field(mm, end).unwrap_or(0);
    let len = end.wrapping_sub(start);
    let len = if len > max as u64 {
        max as u32
    } else {
        len as u32
    };
    let at = if at > ARGS_MAX as u32 {
        ARGS_MAX as u32
    } else {
        at
    };
    // SAFETY: `at` and `len` are bounded by ARGS_MAX and ENV_MAX, the buffer is twice their sum.
    let result = unsafe {
        bpf_probe_read_user(
            scratch.bytes.as_mut_ptr().add(at as usize).cast(),
            len,
            start as *const _,
        )
    };
    if result == 0 { len } else { 0 }
}

/// See the module's text.
#[tracepoint]
pub fn sched_process_exit(_ctx: TracePointContext) -> u32 {
    let id = bpf_get_current_pid_tgid();
    let tgid = (id >> 32) as u32;
    cause::thread_ended();
    hook::thread_ended();
    if tgid == id as u32 {
        cause::process_ended(tgid);
        let event = ExitEvent {
            header: Header {
                kind: kind::EXIT,
                selector: 0,
                flags: 0,
                reserved: 0,
                value: 0,
            },
            // SAFETY: the helper has no preconditions.
            time_ns: unsafe { bpf_ktime_get_boot_ns() },
            tgid,
            reserved: 0,
        };
        emit::urgent(
            core::ptr::from_ref(&event).cast(),
            core::mem::size_of::<ExitEvent>() as u64,
        );
    }
    0
}

/// See the module's text.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let _ = fork(ctx.arg::<*const u8>(1) as u64);
    0
}

#[inline(always)]
fn fork(task: u64) -> Option<()> {
    let parent = (bpf_get_current_pid_tgid() >> 32) as u32;
    let child: u32 = field(task, &kernel::TASK_TGID)?;
    if child == parent {
        // A thread shares its creator's process.
        cause::thread_made(child, field(task, &kernel::TASK_PID)?);
        return None;
    }
    cause::process_made(parent, child);
    let mut undecided = false;
    if read_setting(setting::POLICY_ACTIVE) != 0 {
        // SAFETY: the value is copied before the map is changed.
        let flags = unsafe { PROCESSES.get(&parent) }.copied().unwrap_or(0);
        if flags & policy::INHERIT != 0 {
            undecided = flags & (policy::UNDECIDED | policy::UNDECIDED_CHILD) != 0;
            let flags = if undecided {
                flags & !policy::UNDECIDED | policy::UNDECIDED_CHILD
            } else {
                flags
            };
            let _ = PROCESSES.insert(&child, &flags, 0);
        }
    }
    let told = emit::fork(&ForkEvent {
        header: Header {
            kind: kind::FORK,
            selector: 0,
            flags: 0,
            reserved: 0,
            value: 0,
        },
        // SAFETY: the helper has no preconditions.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        tgid: child,
        parent_tgid: parent,
    });
    if undecided && !told {
        let _ = PROCESSES.remove(&child);
    }
    None
}
