//! Waiting until the agent sees into a file: what a program does before that is missed, if it is the
//! first one to use the file.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::LIMIT;
use crate::agent::Agent;
use crate::process;

/// Waits until the agent's log says that it sees into a file: by this path, or by another name of
/// the same file.
pub fn seen_into(agent: &Agent, file: &Path) {
    seen_into_files(agent, file, 1);
}

/// The same for so many files that have or had this name.
pub fn seen_into_files(agent: &Agent, file: &Path, count: usize) {
    let wanted = identity(file);
    let seen = process::poll_until(LIMIT, || {
        let log = agent.stderr();
        let files = log.lines().filter_map(|line| {
            let (_, rest) = line.split_once("sees into a TLS library file=")?;
            let (path, _) = rest.split_once(" library=")?;
            Some(PathBuf::from(path))
        });
        let is_it = |path: &PathBuf| path == file || (wanted.is_some() && identity(path) == wanted);
        (files.filter(is_it).count() >= count).then_some(())
    });
    assert!(seen.is_some(), "{}\n{}", file.display(), agent.stderr());
}

fn identity(file: &Path) -> Option<(u64, u64)> {
    let metadata = file.metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Waits until the agent sees into the TLS libraries of these processes.
pub fn seen_into_processes(agent: &Agent, pids: &[u32]) {
    let files: BTreeSet<PathBuf> = pids.iter().flat_map(|pid| libraries(*pid)).collect();
    assert!(!files.is_empty(), "{pids:?} have no files");
    for file in files {
        seen_into(agent, &file);
    }
}

/// The TLS libraries that a process has mapped: by their names, else it is the program itself.
fn libraries(pid: u32) -> BTreeSet<PathBuf> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.get(line.find('/')?..));
    // A file that is gone is known by the name that it had.
    let paths = paths.map(|path| path.trim_end_matches(" (deleted)"));
    let found: BTreeSet<PathBuf> = paths
        .filter(|path| {
            let name = path.rsplit('/').next().unwrap_or_default();
            name.starts_with("libssl") || name.starts_with("libgnutls")
        })
        .map(PathBuf::from)
        .collect();
    if found.is_empty() {
        let program = std::fs::read_link(format!("/proc/{pid}/exe"));
        return program.into_iter().collect();
    }
    found
}
