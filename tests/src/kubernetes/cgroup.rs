//! Cgroups named as container runtimes name them.

use std::fs;
use std::path::{Path, PathBuf};

/// A cgroup of a pretended container; removed with its parents when dropped.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// Directories made, the uppermost first.
    made: Vec<PathBuf>,
}

/// Where a hierarchy is mounted: `cgroup2`, or a v1 controller such as `pids`.
pub fn hierarchy(name: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, path, kind, options, ..] = fields[..] else {
            return None;
        };
        let v2 = name == "cgroup2" && kind == "cgroup2";
        let v1 = kind == "cgroup" && options.split(',').any(|option| option == name);
        (v2 || v1).then(|| PathBuf::from(path))
    })
}

impl Cgroup {
    /// Makes `path`, which no other test has, below a hierarchy.
    pub fn make(hierarchy: &Path, path: &str) -> Self {
        let mut at = hierarchy.to_owned();
        let mut made = Vec::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at.push(part);
            match fs::create_dir(&at) {
                Ok(()) => made.push(at.clone()),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("{}: {error}", at.display()),
            }
        }
        Cgroup { path: at, made }
    }

    /// The file that takes process ids.
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for directory in self.made.iter().rev() {
            // A process that is about to end may still be in it.
            let gone = || fs::remove_dir(directory).ok();
            crate::process::poll_until(std::time::Duration::from_secs(5), gone);
        }
    }
}
