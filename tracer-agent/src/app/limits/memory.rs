//! The bound of the agent's memory, and when what is open is given up for it.
//!
//! In: a configured bound, or the cgroup's; what is used now. Out: shed, or go on. Every table and queue
//! has a bound of its own; this one is for their sum, which depends on how much the traced
//! connections have open at a time. A configured bound is compared with the agent's resident memory; the
//! cgroup's with what the kernel would compare it with, tables of the kernel side included, but without
//! the page cache that it can take back.

use std::path::{Path, PathBuf};

/// Of the cgroup's `memory.max`, so that the kernel does not get there first.
const SHARE_OF_CGROUP: (u64, u64) = (85, 100);
/// Below this share of the bound shedding ends.
const LOW: (u64, u64) = (90, 100);

/// Where the bound comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Configured,
    Cgroup(PathBuf),
}

/// A bound in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    bytes: u64,
    source: Source,
}

impl MemoryLimit {
    /// The configured one, else that of the agent's cgroup (v2) or the nearest above it that has one.
    pub fn of(configured: Option<u64>) -> Option<Self> {
        if let Some(bytes) = configured {
            return Some(MemoryLimit {
                bytes,
                source: Source::Configured,
            });
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        let cgroups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let (root, own) = cgroup(&mounts, &cgroups)?;
        own.ancestors()
            .take_while(|directory| directory.starts_with(&root))
            .find_map(|directory| {
                let most = std::fs::read_to_string(directory.join("memory.max")).ok()?;
                let most: u64 = most.trim().parse().ok()?;
                Some(MemoryLimit {
                    bytes: share(most, SHARE_OF_CGROUP),
                    source: Source::Cgroup(directory.to_owned()),
                })
            })
    }

    /// In bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What counts against it now; `None` when that cannot be read.
    pub fn used(&self) -> Option<u64> {
        match &self.source {
            Source::Configured => {
                let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
                let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
                Some(pages.saturating_mul(procfs::page_size()))
            }
            Source::Cgroup(directory) => used_in(directory),
        }
    }
}

/// Root of the hierarchy, and the process's own cgroup in it.
fn cgroup(mounts: &str, cgroups: &str) -> Option<(PathBuf, PathBuf)> {
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    })?;
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let own = root.join(own.trim_start_matches('/'));
    Some((root, own))
}

fn used_in(directory: &Path) -> Option<u64> {
    let current = std::fs::read_to_string(directory.join("memory.current")).ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let stat = std::fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let cache = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "))
        .and_then(|bytes| bytes.trim().parse().ok())
        .unwrap_or(0);
    Some(current.saturating_sub(cache))
}

fn share(whole: u64, (part, of): (u64, u64)) -> u64 {
    whole / of * part
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// As before.
    GoOn,
    /// Give up what is open; told again as long as it does not help.
    Shed,
    /// There is room again.
    Resume,
}

/// Decides, by what is used.
#[derive(Debug)]
pub struct Shedder {
    limit: u64,
    sheds: u64,
    shedding: bool,
}

impl Shedder {
    /// For this bound.
    pub fn new(limit: u64) -> Self {
        Shedder {
            limit,
            sheds: 0,
            shedding: false,
        }
    }

    /// Judges.
    pub fn step(&mut self, used: u64) -> Step {
        if used > self.limit {
            self.sheds += u64::from(!self.shedding);
            self.shedding = true;
            return Step::Shed;
        }
        if self.shedding && used <= share(self.limit, LOW) {
            self.shedding = false;
            return Step::Resume;
        }
        Step::GoOn
    }

    /// How often it began.
    pub fn sheds(&self) -> u64 {
        self.sheds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sheds_above_and_resumes_well_below() {
        let mut shedder = Shedder::new(1000);
        let steps: Vec<Step> = [900, 1000, 1001, 950, 1200, 901, 900, 950, 1001]
            .into_iter()
            .map(|used| shedder.step(used))
            .collect();
        use Step::*;
        let expected = [GoOn, GoOn, Shed, GoOn, Shed, GoOn, Resume, GoOn, Shed];
        assert_eq!(steps, expected);
        assert_eq!(shedder.sheds(), 2);
    }

    #[test]
    fn cgroups_are_found() {
        let check = |mounts: &str, cgroups: &str, expected: Option<(&str, &str)>| {
            let found = cgroup(mounts, cgroups);
            let expected = expected.map(|(root, own)| (root.into(), own.into()));
            assert_eq!(found, expected, "{mounts:?} {cgroups:?}");
        };
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let root = "/sys/fs/cgroup";
        check(unified, "0::/a/b\n", Some((root, "/sys/fs/cgroup/a/b")));
        check(unified, "0::/\n", Some((root, "/sys/fs/cgroup/")));
        check(unified, "4:memory:/a\n", None);
        check(
            "cgroup /sys/fs/cgroup/memory cgroup rw 0 0\n",
            "0::/\n",
            None,
        );
        check("", "", None);
    }

    #[test]
    fn what_counts_in_a_cgroup() {
        let directory = tempfile::tempdir().expect("directory");
        let put = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).expect("written");
        };
        assert_eq!(used_in(directory.path()), None);
        put("memory.current", "1000\n");
        assert_eq!(used_in(directory.path()), Some(1000));
        put("memory.stat", "anon 5\ninactive_file 300\nactive_file 7\n");
        assert_eq!(used_in(directory.path()), Some(700));
    }

    #[test]
    fn a_configured_bound_is_of_this_process() {
        let limit = MemoryLimit::of(Some(1 << 30)).expect("configured");
        assert_eq!(limit.bytes(), 1 << 30);
        assert!(limit.used().is_some_and(|used| used > 0));
    }
}
