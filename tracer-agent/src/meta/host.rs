//! The host that the traced processes run on: name, id, boot time, users.
//!
//! The agent may itself run in a container that sees the host's processes: then process 1 of the
//! given procfs is the host's init, and its root is the host's file system.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::proc_fs::ProcFs;

const FILE_LIMIT: u64 = 1024 * 1024;

/// Facts about the host, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// `host.name`; `None` where it cannot be read.
    pub name: Option<Box<str>>,
    /// `host.id`: the machine id.
    pub id: Option<Box<str>>,
    /// Wall clock time at which `CLOCK_BOOTTIME` was 0, nanoseconds since the epoch.
    pub boot_unix_ns: u64,
    users: Vec<(u32, Box<str>)>,
}

impl Host {
    /// Reads everything. `/proc/uptime` counts hundredths, so the boot time is up to 10 ms late.
    pub fn read(proc: &ProcFs) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let uptime_ns = proc
            .global("uptime")
            .and_then(|text| parse_uptime_ns(&text))
            .unwrap_or(0);
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        Self {
            name: host_name(proc),
            id: ["/etc/machine-id", "/var/lib/dbus/machine-id"]
                .into_iter()
                .find_map(|path| word(&host_file(proc, path)?)),
            boot_unix_ns: now_ns.saturating_sub(uptime_ns),
            users: host_file(proc, "/etc/passwd")
                .map(|text| parse_passwd(&text))
                .unwrap_or_default(),
        }
    }

    /// Name of a user by the host's own `/etc/passwd`.
    pub fn user(&self, uid: u32) -> Option<&str> {
        find_user(&self.users, uid)
    }
}

/// Name of a user by the passwd file inside the process's own root.
pub fn user_in_container(proc: &ProcFs, pid: u32, uid: u32) -> Option<Box<str>> {
    let bytes = proc.read_in_root(pid, Path::new("/etc/passwd"), 64 * 1024)?;
    find_user(&parse_passwd(&String::from_utf8_lossy(&bytes)), uid).map(Into::into)
}

fn find_user(users: &[(u32, Box<str>)], uid: u32) -> Option<&str> {
    users
        .iter()
        .find(|(id, _)| *id == uid)
        .map(|(_, name)| &**name)
}

/// `name:password:uid:...` (passwd(5)).
fn parse_passwd(text: &str) -> Vec<(u32, Box<str>)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            Some((fields.nth(1)?.parse().ok()?, name.into()))
        })
        .collect()
}

/// The kernel's own host name, unless the agent lives in another UTS namespace than process 1.
fn host_name(proc: &ProcFs) -> Option<Box<str>> {
    let own = || word(&proc.global("sys/kernel/hostname")?);
    match (
        proc.global_link("self/ns/uts"),
        proc.global_link("1/ns/uts"),
    ) {
        (Some(mine), Some(init)) if mine != init => host_file(proc, "/etc/hostname")
            .and_then(|text| word(&text))
            .or_else(own),
        _ => own(),
    }
}

fn host_file(proc: &ProcFs, path: &str) -> Option<String> {
    let bytes = proc.read_in_root(1, Path::new(path), FILE_LIMIT)?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn word(text: &str) -> Option<Box<str>> {
    let word = text.split_whitespace().next()?;
    (word != "(none)" && word != "uninitialized").then(|| word.into())
}

fn parse_uptime_ns(text: &str) -> Option<u64> {
    let first = text.split_whitespace().next()?;
    let (seconds, hundredths) = first.split_once('.').unwrap_or((first, "0"));
    let seconds: u64 = seconds.parse().ok()?;
    let hundredths: u64 = hundredths.parse().ok()?;
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(hundredths.checked_mul(10_000_000)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fake_host() {
        let root = tempfile::tempdir().expect("tempdir");
        for (path, text) in [
            ("uptime", "100.25 1.00\n"),
            ("sys/kernel/hostname", "pod-7\n"),
            (
                "1/root/etc/machine-id",
                "0123456789abcdef0123456789abcdef\n",
            ),
            ("1/root/etc/hostname", "node-1\n"),
            (
                "1/root/etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\nbroken\n:x:5\nshop:x:1001:1001::/:\n",
            ),
        ] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        }
        let proc = ProcFs::new(root.path());
        let host = Host::read(&proc);
        assert_eq!(host.name.as_deref(), Some("pod-7"));
        assert_eq!(host.id.as_deref(), Some("0123456789abcdef0123456789abcdef"));
        assert_eq!(
            (host.user(0), host.user(1001), host.user(5)),
            (Some("root"), Some("shop"), None)
        );
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("clock")
            .as_nanos() as u64;
        let age = now - host.boot_unix_ns;
        assert!((100_250_000_000..110_000_000_000).contains(&age), "{age}");

        for (link, target) in [("self/ns/uts", "uts:[1]"), ("1/ns/uts", "uts:[2]")] {
            let link = root.path().join(link);
            std::fs::create_dir_all(link.parent().expect("parent")).expect("mkdir");
            std::os::unix::fs::symlink(target, link).expect("symlink");
        }
        assert_eq!(Host::read(&proc).name.as_deref(), Some("node-1"));
    }

    #[test]
    fn nothing_to_read_is_not_an_error() {
        let root = tempfile::tempdir().expect("tempdir");
        let host = Host::read(&ProcFs::new(root.path()));
        assert_eq!(
            (host.name.as_deref(), host.id.as_deref(), host.user(0)),
            (None, None, None)
        );
    }

    #[test]
    fn this_host_booted_in_the_past() {
        let host = Host::read(&ProcFs::default());
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("clock")
            .as_nanos() as u64;
        assert!(host.boot_unix_ns > 0 && host.boot_unix_ns < now);
        assert!(host.name.is_some());
    }
}
