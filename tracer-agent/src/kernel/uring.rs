//! io_uring: whether calls through it can be seen, and who has one.
//!
//! In: the format of the kernel's event, descriptors of processes. Out: yes or no, names. A process that has a
//! ring need not use it for sockets: that only its requests tell.

use std::path::Path;

use super::host::{Host, text};

/// The event, below tracefs.
pub const EVENT: &str = "events/io_uring/io_uring_complete";
/// Processes that are named.
const MOST: usize = 1024;

/// A process that has a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub pid: u32,
    /// Name of its main thread.
    pub name: String,
}

/// Whether the event tells which request was completed (since Linux 5.19), where the kernel side looks for
/// it. `tracefs` is where that is mounted.
pub fn is_told(tracefs: &Path) -> bool {
    text(&tracefs.join(EVENT).join("format")).is_some_and(|format| has_request(&format))
}

fn has_request(format: &str) -> bool {
    let has = |field: &str, offset: &str, size: &str| {
        format.lines().any(|line| {
            let mut parts = line.split(';').map(str::trim);
            parts.next().and_then(|part| part.strip_prefix("field:")) == Some(field)
                && parts.next().and_then(|part| part.strip_prefix("offset:")) == Some(offset)
                && parts.next().and_then(|part| part.strip_prefix("size:")) == Some(size)
        })
    };
    has("void * req", "16", "8") && has("int res", "32", "4")
}

/// Processes that have a ring open, as far as this one may look.
pub fn users(host: &Host) -> Vec<User> {
    let is_ring = |entry: std::fs::DirEntry| {
        let target = std::fs::read_link(entry.path());
        target.is_ok_and(|target| target.as_os_str() == "anon_inode:[io_uring]")
    };
    let entries = std::fs::read_dir(&host.proc)
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<User> = entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let descriptors = std::fs::read_dir(entry.path().join("fd")).ok()?;
            descriptors.flatten().any(is_ring).then_some(())?;
            let name = text(&entry.path().join("comm"))?.trim_end().to_owned();
            Some(User { pid, name })
        })
        .take(MOST)
        .collect();
    found.sort_unstable_by_key(|user| user.pid);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let field = |text: &str, offset: u32, size: u32| {
            format!("\tfield:{text};\toffset:{offset};\tsize:{size};\tsigned:0;\n")
        };
        let ctx = field("void * ctx", 8, 8);
        let new = ctx.clone() + &field("void * req", 16, 8) + &field("int res", 32, 4);
        assert!(has_request(&new));
        // Linux 5.10.
        let old = ctx.clone() + &field("u64 user_data", 16, 8) + &field("long res", 24, 8);
        assert!(!has_request(&old));
        let moved = ctx + &field("void * req", 16, 8) + &field("int res", 40, 4);
        assert!(!has_request(&moved));
        assert!(!has_request(""));
    }

    #[test]
    fn processes_with_a_ring() {
        let root = tempfile::tempdir().expect("directory");
        let put = |pid: &str, name: &str, target: &str| {
            let fd = root.path().join("proc").join(pid).join("fd");
            std::fs::create_dir_all(&fd).expect("made");
            std::os::unix::fs::symlink(target, fd.join("3")).expect("linked");
            std::fs::write(fd.with_file_name("comm"), format!("{name}\n")).expect("written");
        };
        put("20", "b", "anon_inode:[io_uring]");
        put("10", "a", "anon_inode:[io_uring]");
        put("30", "c", "anon_inode:[eventpoll]");
        put("self", "d", "anon_inode:[io_uring]");
        let host = Host {
            proc: root.path().join("proc"),
            ..Host::real()
        };
        let user = |pid, name: &str| User {
            pid,
            name: name.to_owned(),
        };
        assert_eq!(users(&host), [user(10, "a"), user(20, "b")]);
    }
}
