//! Which programs are attached to which tracepoints.

use aya::Ebpf;
use aya::programs::{Program, ProgramError};

use super::error::{LoadError, failed};
use super::functions;
use super::load::{Set, TAIL_CALLED, sees_io_uring};
use super::{futex, raw};
use crate::kernel::tier::Tier;

/// Programs that are attached to several tracepoints, by the first of them; all others are named
/// after theirs.
const SHARED: &[&[&str]] = &[
    &[
        "sys_enter_write",
        "sys_enter_writev",
        "sys_enter_pwritev2",
        "sys_enter_sendto",
        "sys_enter_sendmsg",
        "sys_enter_sendmmsg",
        "sys_enter_sendfile64",
    ],
    &[
        "sys_exit_epoll_wait",
        "sys_exit_epoll_pwait",
        "sys_exit_epoll_pwait2",
    ],
    &["sys_exit_poll", "sys_exit_ppoll"],
    &["sys_exit_select", "sys_exit_pselect6"],
    &["sys_exit_accept4", "sys_exit_accept"],
    &["sys_exit_clock_nanosleep", "sys_exit_nanosleep"],
];

/// The program for requests of io_uring, which kernels before 5.19 do not tell.
const IO_URING: &str = "io_uring_complete";

/// Tracepoints that not every architecture, or not every kernel, has: calls of other names do their
/// work there.
pub(super) const OPTIONAL: &[&str] = &[
    "sys_exit_epoll_wait",
    "sys_exit_epoll_pwait2",
    "sys_exit_poll",
    "sys_exit_select",
];

/// Whether a program is for ends of system calls.
pub(super) fn is_exit(name: &str) -> bool {
    !futex::HOOKS.contains(&name) && name.starts_with("sys_exit_")
}

/// The tracepoints of a program.
pub(super) fn targets<'a>(name: &'a &'a str) -> &'a [&'a str] {
    let shared = SHARED.iter().find(|points| points.first() == Some(name));
    shared.copied().unwrap_or(std::slice::from_ref(name))
}

/// Attaches what goes on to the programs for ends of system calls by their numbers; returns for which there is one.
pub(super) fn attach_by_number(ebpf: &mut Ebpf) -> Result<Vec<String>, LoadError> {
    let exits = ebpf.programs().map(|(name, _)| name.to_owned());
    let exits: Vec<String> = exits.filter(|name| is_exit(name)).collect();
    let mut seen = Vec::new();
    for name in &exits {
        let name = name.as_str();
        let events = raw::enter(ebpf, raw::End::Exit, name, targets(&name))?;
        seen.extend(events.into_iter().map(str::to_owned));
    }
    let (name, event) = raw::EXIT;
    let Some(Program::TracePoint(point)) = ebpf.program_mut(name) else {
        return Err(LoadError::Mismatch(name));
    };
    point
        .attach(raw::CATEGORY, event)
        .map_err(|source| failed("attach", name, source))?;
    Ok(seen)
}

/// Tracepoints, and whether a program could be attached to them.
pub(super) type Tried = Vec<(String, Result<(), ProgramError>)>;

/// Attaches a program to all of its tracepoints, if it belongs to any; what became of each.
pub(super) fn attach(name: &str, program: &mut Program, tier: Tier) -> Result<Tried, LoadError> {
    match program {
        // Attached to files that use them: see `TlsProbes` and `RuntimeProbes`.
        Program::UProbe(_) => Ok(Vec::new()),
        // See `Propagation`.
        _ if matches!(Set::of(name), Set::Propagate | Set::TcpOptions) => Ok(Vec::new()),
        // At functions, and here while `Handover` wants them.
        _ if tier == Tier::Fast && functions::has(name) => Ok(Vec::new()),
        Program::TracePoint(_) if TAIL_CALLED.contains(&name) => Ok(Vec::new()),
        // Attached while they are needed: see `FutexHooks`.
        Program::TracePoint(_) if futex::HOOKS.contains(&name) => Ok(Vec::new()),
        Program::TracePoint(_) if name == IO_URING && !sees_io_uring() => Ok(Vec::new()),
        Program::TracePoint(point) => {
            let attach = |target: &&str| {
                let category = match target.split_once('_') {
                    Some(("sched", _)) => "sched",
                    Some(("io", _)) => "io_uring",
                    _ => "syscalls",
                };
                let result = point.attach(category, target).map(drop);
                ((*target).to_owned(), result)
            };
            Ok(targets(&name).iter().map(attach).collect())
        }
        Program::BtfTracePoint(point) => Ok(vec![(name.to_owned(), point.attach().map(drop))]),
        _ => Err(LoadError::Mismatch("known program type")),
    }
}
