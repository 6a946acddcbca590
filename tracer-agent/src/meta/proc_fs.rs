//! Bounded reads of `/proc`, at a place that tests and containers can choose.
//!
//! Nothing here fails loudly: a process may end between any two reads, so every answer is an
//! `Option`. What lies below a traced process's own root is chosen by that process, so such files
//! are opened without following a final link, without blocking and only if they are regular.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustc_hash::FxHashSet;

/// `USER_HZ`: the unit of times in `/proc/PID/stat`. Part of the kernel's ABI and 100 on every
/// architecture this agent runs on, whatever `CONFIG_HZ` is.
pub const TICKS_PER_SECOND: u64 = 100;
/// Nanoseconds per tick.
pub const NS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SECOND;

const SMALL: u64 = 16 * 1024;
const ARGUMENTS: u64 = 256 * 1024;
const ENVIRONMENT: u64 = 256 * 1024;
const MAPS: u64 = 1024 * 1024;
const MAPPINGS_MAX: usize = 4096;

/// A mounted procfs.
#[derive(Clone, Debug)]
pub struct ProcFs {
    root: PathBuf,
}

/// A file that is mapped executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Name of its link in `/proc/PID/map_files`: both addresses.
    pub range: String,
    /// Where in the file it begins.
    pub offset: u64,
    /// Device as `major:minor` in hexadecimal; not what `stat` says on overlayfs and btrfs.
    pub device: String,
    /// Inode number.
    pub inode: u64,
    /// Name of the file, as far as the agent's root and the process's are the same.
    pub path: PathBuf,
    /// Whether the name was removed since.
    pub deleted: bool,
}

/// What `/proc/PID/stat` says that is of use here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Name of the main thread.
    pub comm: String,
    /// State letter; `Z` is a process that ended but was not waited for.
    pub state: char,
    /// Its parent.
    pub parent: u32,
    /// Start of the process in ticks since boot.
    pub start_ticks: u64,
}

impl Default for ProcFs {
    fn default() -> Self {
        Self::new("/proc")
    }
}

impl ProcFs {
    /// The procfs mounted at `root` (`/proc`; `/host/proc` in a container).
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Ids of all processes, in the order the kernel lists them.
    pub fn pids(&self) -> Vec<u32> {
        let Ok(directory) = std::fs::read_dir(&self.root) else {
            return Vec::new();
        };
        directory
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// False if there is no such process; what cannot be looked at may be there.
    pub fn may_be_there(&self, pid: u32) -> bool {
        match std::fs::metadata(self.root.join(pid.to_string())) {
            Ok(_) => true,
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        }
    }

    /// `/proc/PID/stat`.
    pub fn stat(&self, pid: u32) -> Option<Stat> {
        parse_stat(&String::from_utf8_lossy(&self.read(pid, "stat", SMALL)?))
    }

    /// Real user id, from `/proc/PID/status`.
    pub fn uid(&self, pid: u32) -> Option<u32> {
        let status = self.read(pid, "status", SMALL)?;
        let text = String::from_utf8_lossy(&status);
        text.lines()
            .find_map(|line| line.strip_prefix("Uid:"))?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    }

    /// Arguments as the process shows them now (it may have rewritten them as a title).
    pub fn arguments(&self, pid: u32) -> Option<Vec<u8>> {
        self.read(pid, "cmdline", ARGUMENTS)
    }

    /// Environment the program was started with, NUL-separated.
    pub fn environment(&self, pid: u32) -> Option<Vec<u8>> {
        self.read(pid, "environ", ENVIRONMENT)
    }

    /// Path of the program, as seen in the process's own mount namespace.
    pub fn exe(&self, pid: u32) -> Option<String> {
        let target = std::fs::read_link(self.path(pid, "exe")).ok()?;
        let text = target.to_string_lossy();
        Some(text.strip_suffix(" (deleted)").unwrap_or(&text).to_owned())
    }

    /// Working directory, as seen in the process's own mount namespace.
    pub fn cwd(&self, pid: u32) -> Option<PathBuf> {
        std::fs::read_link(self.path(pid, "cwd")).ok()
    }

    /// `/proc/PID/cgroup`.
    pub fn cgroup(&self, pid: u32) -> Option<String> {
        self.read(pid, "cgroup", SMALL).map(lossy)
    }

    /// `/proc/PID/mountinfo`, its first 256 KiB.
    pub fn mountinfo(&self, pid: u32) -> Option<String> {
        self.read(pid, "mountinfo", ENVIRONMENT).map(lossy)
    }

    /// `/proc/PID/maps`, its first 1 MiB.
    pub fn maps(&self, pid: u32) -> Option<String> {
        self.read(pid, "maps", MAPS).map(lossy)
    }

    /// Files that are mapped executable, in the order of their addresses: the first 16 MiB of
    /// `/proc/PID/maps` (a hundred thousand mappings), up to 4,096 of them.
    pub fn executable_mappings(&self, pid: u32) -> Option<Vec<Mapping>> {
        let file = File::open(self.path(pid, "maps")).ok()?;
        let lines = BufReader::new(file.take(16 * MAPS)).split(b'\n');
        let mut mappings = Vec::new();
        for line in lines {
            mappings.extend(parse_mapping(&line.ok()?));
            if mappings.len() >= MAPPINGS_MAX {
                break;
            }
        }
        Some(mappings)
    }

    /// A mapped file, whatever became of its name. Needs `CAP_SYS_ADMIN` or `CAP_CHECKPOINT_RESTORE`.
    pub fn open_mapping(&self, pid: u32, mapping: &Mapping) -> Option<File> {
        let path = self.path(pid, "map_files").join(&mapping.range);
        // Opening a device can have effects: look first. The link cannot come to lead elsewhere
        // than to what is mapped there.
        if !std::fs::metadata(&path).ok()?.is_file() {
            return None;
        }
        open_untrusted(&path, 0)
    }

    /// The regular file that the process knows as `path` (absolute).
    pub fn open_in_root(&self, pid: u32, path: &Path) -> Option<File> {
        let relative = path.strip_prefix("/").ok()?;
        open_untrusted(&self.path(pid, "root").join(relative), libc::O_NOFOLLOW)
    }

    /// Inode numbers of the sockets that the process has open, none when there is no such process;
    /// `None` when that cannot be read.
    pub fn sockets_of(&self, pid: u32) -> Option<FxHashSet<u64>> {
        let entries = match std::fs::read_dir(self.path(pid, "fd")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Some(FxHashSet::default()),
            Err(_) => return None,
        };
        let links = entries
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let inode = |link: PathBuf| {
            let text = link.to_str()?.strip_prefix("socket:[")?;
            text.strip_suffix(']')?.parse().ok()
        };
        Some(links.filter_map(inode).collect())
    }

    /// Where the program file can be opened, also when it was deleted or replaced since.
    pub fn exe_path(&self, pid: u32) -> PathBuf {
        self.path(pid, "exe")
    }

    /// The program file itself, also when it was deleted or replaced since.
    pub fn open_exe(&self, pid: u32) -> Option<File> {
        File::open(self.path(pid, "exe")).ok()
    }

    /// Up to `limit` bytes of the regular file that the process knows as `path` (absolute).
    pub fn read_in_root(&self, pid: u32, path: &Path, limit: u64) -> Option<Vec<u8>> {
        let relative = path.strip_prefix("/").ok()?;
        read_untrusted(&self.path(pid, "root").join(relative), limit)
    }

    /// A file of procfs that belongs to no process (`uptime`, `sys/kernel/hostname`).
    pub fn global(&self, path: &str) -> Option<String> {
        read_file(&self.root.join(path), SMALL).map(lossy)
    }

    /// Where a link of procfs points to (`self/ns/uts`).
    pub fn global_link(&self, path: &str) -> Option<PathBuf> {
        std::fs::read_link(self.root.join(path)).ok()
    }

    fn path(&self, pid: u32, name: &str) -> PathBuf {
        let mut path = self.root.join(pid.to_string());
        path.push(name);
        path
    }

    fn read(&self, pid: u32, name: &str, limit: u64) -> Option<Vec<u8>> {
        read_file(&self.path(pid, name), limit)
    }
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn read_file(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    File::open(path)
        .ok()?
        .take(limit)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(bytes)
}

/// A FIFO or device in place of the file must not hold the agent up, hence non-blocking and the
/// check of the type on the opened file.
fn open_untrusted(path: &Path, flags: i32) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | flags)
        .open(path)
        .ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

fn read_untrusted(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let file = open_untrusted(path, libc::O_NOFOLLOW)?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// `7f01-7f02 r-xp 00001000 08:01 42   /usr/lib/libssl.so.3 (deleted)` (proc_pid_maps(5)).
fn parse_mapping(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|byte| *byte == b' ')?;
        let (field, after) = rest.split_at_checked(end)?;
        rest = after;
        std::str::from_utf8(field).ok()
    };
    let (range, rights) = (field()?, field()?);
    if rights.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let (offset, device, inode) = (field()?, field()?, field()?);
    let path = rest.trim_ascii_start();
    // Not a file: anonymous, [vdso].
    if !path.starts_with(b"/") {
        return None;
    }
    let (path, deleted) = match path.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (path, false),
    };
    Some(Mapping {
        range: range.to_owned(),
        offset: u64::from_str_radix(offset, 16).ok()?,
        device: device.to_owned(),
        inode: inode.parse().ok()?,
        path: PathBuf::from(OsStr::from_bytes(path)),
        deleted,
    })
}

/// The name is in parentheses and may itself contain spaces and parentheses: the last one ends it.
fn parse_stat(text: &str) -> Option<Stat> {
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let comm = text.get(open + 1..close)?.to_owned();
    let mut fields = text.get(close + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Field 22 of the line is the 20th after the name (proc_pid_stat(5)); two are consumed.
    let start_ticks = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        comm,
        state,
        parent,
        start_ticks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let tail = "R 15562 15562 7799 0 -1 4194304 98 0 0 0 0 0 0 0 20 0 1 0 189855 3133440 382";
        for comm in ["cat", "tmux: server", "a) S 1 (b", "(sd-pam)", ""] {
            let stat = parse_stat(&format!("15566 ({comm}) {tail}")).expect("a valid line");
            assert_eq!(
                stat,
                Stat {
                    comm: comm.into(),
                    state: 'R',
                    parent: 15562,
                    start_ticks: 189_855
                }
            );
        }
        for bad in [
            "",
            "1 (x",
            "1 (x) R",
            "1 x) (R 1 2 3",
            "1 (x) R a b",
            "1 (x) R 1 2 3",
        ] {
            assert_eq!(parse_stat(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn mappings() {
        let check = |line: &str, expected: Option<(&str, u64, bool)>| {
            let mapping = parse_mapping(line.as_bytes());
            let got = mapping
                .as_ref()
                .map(|m| (m.path.to_str().expect("text"), m.inode, m.deleted));
            assert_eq!(got, expected, "{line}");
        };
        let head = "7f0123456000-7f0123457000 r-xp 00001000 fe:01 42";
        check(
            &format!("{head}                         /usr/lib/libssl.so.3"),
            Some(("/usr/lib/libssl.so.3", 42, false)),
        );
        check(&format!("{head} /a b (deleted)"), Some(("/a b", 42, true)));
        check(&format!("{head} [vdso]"), None);
        check(&format!("{head} "), None);
        check(head, None);
        check("7f01-7f02 rw-p 0 fe:01 42 /usr/lib/x", None);
        check("7f01-7f02 r-xp 0 fe:01 x /usr/lib/x", None);
        check("", None);
        let mapping = parse_mapping(format!("{head} /x").as_bytes()).expect("valid");
        assert_eq!(mapping.range, "7f0123456000-7f0123457000");
        assert_eq!(mapping.device, "fe:01");
    }

    #[test]
    fn the_test_process_itself() {
        let proc = ProcFs::default();
        let pid = std::process::id();
        assert!(proc.pids().contains(&pid));
        let stat = proc.stat(pid).expect("own stat");
        assert!(stat.start_ticks > 0 && stat.parent > 0);
        assert_eq!(proc.cwd(pid), std::env::current_dir().ok());
        let exe = std::env::current_exe().expect("own program");
        assert_eq!(proc.exe(pid).as_deref(), exe.to_str());
        assert!(proc.stat(u32::MAX).is_none() && proc.exe(u32::MAX).is_none());
    }

    #[test]
    fn a_fifo_or_link_below_the_root_of_a_process_is_not_read() {
        let root = tempfile::tempdir().expect("tempdir");
        let inside = root.path().join("7/root");
        std::fs::create_dir_all(&inside).expect("mkdir");
        std::fs::write(inside.join("plain"), "12345").expect("write");
        std::os::unix::fs::symlink("/etc/passwd", inside.join("link")).expect("link");
        let status = std::process::Command::new("mkfifo")
            .arg(inside.join("fifo"))
            .status();
        assert!(status.expect("mkfifo runs").success());
        let proc = ProcFs::new(root.path());
        assert_eq!(
            proc.read_in_root(7, Path::new("/plain"), 3),
            Some(b"123".to_vec())
        );
        for refused in ["/link", "/fifo", "/", "/absent", "plain"] {
            assert_eq!(
                proc.read_in_root(7, Path::new(refused), 3),
                None,
                "{refused}"
            );
        }
    }
}
