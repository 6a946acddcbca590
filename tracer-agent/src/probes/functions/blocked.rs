//! Which threads of the host are in a call that programs of functions would have to see the end of, and cannot?
//!
//! In: `/proc/PID/task/TID/syscall`, which says what a thread waits in. Out: threads that wait in a call that moves bytes on a
//! socket, for events, or for connections. What runs just now says nothing: it is asked again ([`Thread::look_again`]).

use std::fs;
use std::io;
use std::path::Path;

/// What a thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum In {
    /// A call that moves bytes on a socket; the program of its end.
    Data(&'static str),
    /// A wait for events of many descriptors.
    Events,
    /// Another wait; the program of its end.
    Wait(&'static str),
    /// It runs, in a call or not.
    Unknown,
}

impl In {
    /// The program of the end of that call, if it is known.
    pub fn program(self) -> Option<&'static str> {
        match self {
            In::Data(program) | In::Wait(program) => Some(program),
            In::Events => Some(EVENTS_PROGRAM),
            In::Unknown => None,
        }
    }
}

/// A thread that is in something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its process.
    pub tgid: u32,
    /// Its id.
    pub tid: u32,
    /// What it is in.
    pub is_in: In,
}

/// Calls that move bytes: number, program of their end, which arguments may be a socket.
const DATA: &[(libc::c_long, &str, &[usize])] = &[
    (libc::SYS_read, "sys_exit_read", &[0]),
    (libc::SYS_readv, "sys_exit_readv", &[0]),
    (libc::SYS_preadv2, "sys_exit_preadv2", &[0]),
    (libc::SYS_recvfrom, "sys_exit_recvfrom", &[0]),
    (libc::SYS_recvmsg, "sys_exit_recvmsg", &[0]),
    (libc::SYS_recvmmsg, "sys_exit_recvmmsg", &[0]),
    (libc::SYS_write, "sys_exit_write", &[0]),
    (libc::SYS_writev, "sys_exit_writev", &[0]),
    (libc::SYS_pwritev2, "sys_exit_pwritev2", &[0]),
    (libc::SYS_sendto, "sys_exit_sendto", &[0]),
    (libc::SYS_sendmsg, "sys_exit_sendmsg", &[0]),
    (libc::SYS_sendmmsg, "sys_exit_sendmmsg", &[0]),
    (libc::SYS_sendfile, "sys_exit_sendfile64", &[0, 1]),
    (libc::SYS_splice, "sys_exit_splice", &[0, 2]),
];

/// Calls that wait for events, as programs with event loops do.
const EVENTS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
];
const EVENTS_PROGRAM: &str = "sys_exit_epoll_wait";

/// Other calls that last: number, program of their end.
const WAITS: &[(libc::c_long, &str)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, "sys_exit_poll"),
    (libc::SYS_ppoll, "sys_exit_poll"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_select, "sys_exit_select"),
    (libc::SYS_pselect6, "sys_exit_select"),
    (libc::SYS_accept, "sys_exit_accept4"),
    (libc::SYS_accept4, "sys_exit_accept4"),
    (libc::SYS_mmap, "sys_exit_mmap"),
];

/// Whether a program is for the end of a call that moves bytes.
pub fn moves_bytes(program: &str) -> bool {
    DATA.iter().any(|(_, data, _)| *data == program)
}

/// Looks at all threads but this process's. An error is that of a thread that may not be looked at.
pub fn all(proc: &Path) -> io::Result<Vec<Thread>> {
    let mut found = Vec::new();
    for tgid in numbers(proc)? {
        if tgid == std::process::id() {
            continue;
        }
        // It may have ended.
        let Ok(tids) = numbers(&proc.join(format!("{tgid}/task"))) else {
            continue;
        };
        for tid in tids {
            if let Some(is_in) = look(proc, tgid, tid)? {
                found.push(Thread { tgid, tid, is_in });
            }
        }
    }
    Ok(found)
}

impl Thread {
    /// What it is in now, if it is in something that counts; `None` of one that has ended.
    pub fn look_again(&self, proc: &Path) -> Option<In> {
        // One that cannot be looked at any more is in what it was in.
        look(proc, self.tgid, self.tid).unwrap_or(Some(self.is_in))
    }
}

fn numbers(directory: &Path) -> io::Result<Vec<u32>> {
    let entries = fs::read_dir(directory)?.flatten();
    Ok(entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

fn look(proc: &Path, tgid: u32, tid: u32) -> io::Result<Option<In>> {
    let task = proc.join(format!("{tgid}/task/{tid}"));
    match fs::read_to_string(task.join("syscall")) {
        Ok(text) => Ok(judge(&text, |fd| is_socket(&task, fd))),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Err(_) => Ok(None),
    }
}

/// False only if it certainly is none.
fn is_socket(task: &Path, fd: i32) -> bool {
    match fs::read_link(task.join(format!("fd/{fd}"))) {
        Ok(target) => target
            .as_os_str()
            .as_encoded_bytes()
            .starts_with(b"socket:"),
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

/// From what `syscall` says: `running`, or a number and six arguments, or -1 outside of calls.
fn judge(text: &str, is_socket: impl Fn(i32) -> bool) -> Option<In> {
    let mut words = text.split_ascii_whitespace();
    let first = words.next()?;
    if first == "running" {
        return Some(In::Unknown);
    }
    let number: libc::c_long = first.parse().ok()?;
    if EVENTS.contains(&number) {
        return Some(In::Events);
    }
    if let Some((_, program)) = WAITS.iter().find(|(wait, _)| *wait == number) {
        return Some(In::Wait(program));
    }
    let (_, program, places) = DATA.iter().find(|(data, ..)| *data == number)?;
    let arguments: Vec<u64> = words
        .map_while(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
        .collect();
    let moves = places.iter().any(|place| {
        // A descriptor is an `int`, whatever is above it.
        arguments
            .get(*place)
            .is_some_and(|fd| is_socket(*fd as u32 as i32))
    });
    moves.then_some(In::Data(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_is_in() {
        let rest = "0x7f 0x100 0x0 0x0 0x0 0x7ffe 0x7f01\n";
        let call = |number: libc::c_long, first: &str| format!("{number} {first} {rest}");
        let events = libc::SYS_epoll_pwait;
        for (text, expected) in [
            (call(libc::SYS_read, "0x5"), Some(In::Data("sys_exit_read"))),
            (call(libc::SYS_read, "0x6"), None),
            (
                call(libc::SYS_recvfrom, "0xffffffff00000005"),
                Some(In::Data("sys_exit_recvfrom")),
            ),
            // The socket is the third argument, or the second.
            (
                format!("{} 0x6 0x0 0x5 0x0 0x1 0x0 0x7 0x8\n", libc::SYS_splice),
                Some(In::Data("sys_exit_splice")),
            ),
            (
                format!("{} 0x6 0x5 0x0 0x1 0x0 0x0 0x7 0x8\n", libc::SYS_sendfile),
                Some(In::Data("sys_exit_sendfile64")),
            ),
            (call(events, "0x6"), Some(In::Events)),
            (call(libc::SYS_futex, "0x5"), None),
            (
                call(libc::SYS_ppoll, "0x7f00"),
                Some(In::Wait("sys_exit_poll")),
            ),
            ("running\n".to_owned(), Some(In::Unknown)),
            ("-1 0x7ffe 0x7f01\n".to_owned(), None),
            ("0\n".to_owned(), None),
            (String::new(), None),
            ("what 0x5".to_owned(), None),
        ] {
            assert_eq!(judge(&text, |fd| fd == 5), expected, "{text:?}");
        }
    }

    /// Scenario: two threads, one in a read of a socket, one that waits for another end of a pipe; of a made-up host.
    /// Guarantees: only the first is found, and where one may not be looked at that is told.
    #[test]
    fn threads_of_a_host() {
        let proc = tempfile::tempdir().expect("directory");
        let task = |tid: u32| proc.path().join(format!("70/task/{tid}"));
        for (tid, target) in [(70, "socket:[5]"), (71, "pipe:[6]")] {
            fs::create_dir_all(task(tid).join("fd")).expect("made");
            std::os::unix::fs::symlink(target, task(tid).join("fd/5")).expect("linked");
            let text = format!("{} 0x5 0x0 0x1 0x0 0x0 0x0 0x7 0x8\n", libc::SYS_read);
            fs::write(task(tid).join("syscall"), text).expect("written");
        }
        let found = all(proc.path()).expect("looked");
        let expected = Thread {
            tgid: 70,
            tid: 70,
            is_in: In::Data("sys_exit_read"),
        };
        assert_eq!(found, [expected]);
        fs::remove_dir_all(task(70)).expect("removed");
        assert_eq!(expected.look_again(proc.path()), None);
    }
}
