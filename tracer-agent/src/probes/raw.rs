//! System calls by two hooks for all of them, on kernels where hooks of single ones can be preempted.
//!
//! In: the loaded programs for single calls. Out: tables of them by the calls' numbers, from which the programs of
//! `tracer-ebpf/src/probes/raw.rs` go on. Calls of 32 bits have other numbers and are left out, as the events of
//! single calls leave them out.

use aya::Ebpf;
use aya::maps::{Array, ProgramArray};
use aya::programs::Program;
use tracer_common::abi::wanted;

use super::error::{LoadError, failed};

/// The program for the ends of calls, and its event.
pub(super) const EXIT: (&str, &str) = ("raw_sys_exit", "sys_exit");
/// The program for their beginnings.
pub(super) const ENTER: (&str, &str) = ("raw_sys_enter", "sys_enter");
/// Where these events are.
pub(super) const CATEGORY: &str = "raw_syscalls";

/// One of both ends of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Where they begin.
    Enter,
    /// Where they return.
    Exit,
}

impl End {
    fn map(self) -> &'static str {
        match self {
            End::Enter => "ENTERS",
            End::Exit => "EXITS",
        }
    }

    fn bit(self) -> u32 {
        match self {
            End::Enter => wanted::ENTER,
            End::Exit => wanted::EXIT,
        }
    }
}

/// Enters a program for the calls of these events (`sys_exit_read`); returns those that this architecture has.
pub(super) fn enter<'a>(
    ebpf: &mut Ebpf,
    end: End,
    name: &str,
    events: &[&'a str],
) -> Result<Vec<&'a str>, LoadError> {
    let Some(Program::TracePoint(program)) = ebpf.program(name) else {
        return Err(LoadError::Mismatch("program of a system call"));
    };
    let fd = program
        .fd()
        .map_err(|source| failed("load", name, source))?;
    let fd = fd
        .try_clone()
        .map_err(|_| LoadError::Mismatch("program of a system call"))?;
    let known: Vec<(&str, u32)> = events
        .iter()
        .filter_map(|event| Some((*event, number(event)?)))
        .collect();
    let map = ebpf
        .map_mut(end.map())
        .ok_or(LoadError::Mismatch(end.map()))?;
    let mut programs: ProgramArray<_> = map.try_into()?;
    for (_, number) in &known {
        programs.set(*number, &fd, 0)?;
    }
    let map = ebpf
        .map_mut("WANTED")
        .ok_or(LoadError::Mismatch("WANTED"))?;
    let mut wanted: Array<_, u32> = map.try_into()?;
    for (_, number) in &known {
        let before = wanted.get(number, 0)?;
        wanted.set(*number, before | end.bit(), 0)?;
    }
    Ok(known.into_iter().map(|(event, _)| event).collect())
}

/// The number of the call that an event is named after; `None` where this architecture has no such call.
fn number(event: &str) -> Option<u32> {
    let call = event
        .strip_prefix("sys_exit_")
        .or_else(|| event.strip_prefix("sys_enter_"))?;
    let number = match call {
        "read" => libc::SYS_read,
        "readv" => libc::SYS_readv,
        "preadv2" => libc::SYS_preadv2,
        "recvfrom" => libc::SYS_recvfrom,
        "recvmsg" => libc::SYS_recvmsg,
        "recvmmsg" => libc::SYS_recvmmsg,
        "write" => libc::SYS_write,
        "writev" => libc::SYS_writev,
        "pwritev2" => libc::SYS_pwritev2,
        "sendto" => libc::SYS_sendto,
        "sendmsg" => libc::SYS_sendmsg,
        "sendmmsg" => libc::SYS_sendmmsg,
        "sendfile64" => libc::SYS_sendfile,
        "splice" => libc::SYS_splice,
        "setsockopt" => libc::SYS_setsockopt,
        "io_uring_enter" => libc::SYS_io_uring_enter,
        "accept" => libc::SYS_accept,
        "accept4" => libc::SYS_accept4,
        "mmap" => libc::SYS_mmap,
        "epoll_pwait" => libc::SYS_epoll_pwait,
        "epoll_pwait2" => libc::SYS_epoll_pwait2,
        "ppoll" => libc::SYS_ppoll,
        "pselect6" => libc::SYS_pselect6,
        #[cfg(target_arch = "x86_64")]
        "epoll_wait" => libc::SYS_epoll_wait,
        #[cfg(target_arch = "x86_64")]
        "poll" => libc::SYS_poll,
        #[cfg(target_arch = "x86_64")]
        "select" => libc::SYS_select,
        _ => return None,
    };
    u32::try_from(number)
        .ok()
        .filter(|number| *number < wanted::NUMBERS)
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSymbol as _};

    use super::super::attach::targets;
    use super::super::futex;
    use super::super::load::{OBJECT, Set};
    use super::*;

    /// Scenario: the object built in. Guarantees: each of its programs for ends of system calls has a number where
    /// this architecture has the call.
    #[test]
    fn all_ends_have_numbers() {
        if OBJECT.is_empty() {
            println!("skipped: no kernel side");
            return;
        }
        let file = object::File::parse(OBJECT).expect("an object");
        let names = file.symbols().filter_map(|symbol| symbol.name().ok());
        let mut seen = 0;
        // Those of futexes are not attached there.
        let ends =
            names.filter(|name| name.starts_with("sys_exit_") && !futex::HOOKS.contains(name));
        for name in ends {
            assert_eq!(Set::of(name), Set::Always, "{name}");
            let events = targets(&name);
            assert!(events.iter().any(|event| number(event).is_some()), "{name}");
            seen += 1;
        }
        assert!(seen > 15, "{seen}");
        for program in [EXIT.0, ENTER.0] {
            assert_eq!(Set::of(program), Set::Raw);
        }
        assert_eq!(number("sys_exit_no_such_call"), None);
        assert_eq!(number("read"), None);
    }
}
