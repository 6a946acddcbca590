//! The TLS libraries of running processes, each file parsed once.
//!
//! In: process ids. Out: [`Target`]s whose files are held open, so that they can be attached to
//! wherever they are: in another mount namespace, deleted, replaced. A process may end or map more at
//! any time; what is reported was mapped when it was looked at.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::libraries::Contents;
use super::types::{FileId, Target, TlsLibrary};
use super::{BinaryError, contents};
use crate::meta::proc_fs::{Mapping, ProcFs};
use crate::sys;

/// Files whose result is kept. A host has some thousand libraries at most; a result is small.
const CACHE_MAX: usize = 8192;

/// Reason where a file was not there to be read: most often because its process has just ended.
pub const NOT_OPENED: &str = "the file cannot be opened";

/// What a process uses.
#[derive(Debug, Default)]
pub struct Found {
    /// Libraries, in the order in which they are mapped.
    pub targets: Vec<Target>,
    /// Files that may contain one and could not be looked at.
    pub unseen: Vec<Unseen>,
}

/// A mapped file that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// What the process calls it.
    pub shown: PathBuf,
    /// Why, in words for people.
    pub reason: String,
}

/// Finds targets and remembers files.
#[derive(Debug)]
pub struct Scanner {
    proc: ProcFs,
    cache: FxHashMap<FileId, Entry>,
    clock: u64,
    parsed: u64,
}

#[derive(Debug)]
struct Entry {
    result: Result<Arc<Contents>, Arc<str>>,
    used: u64,
}

impl Scanner {
    /// Looks at processes through this procfs.
    pub fn new(proc: ProcFs) -> Self {
        Scanner {
            proc,
            cache: FxHashMap::default(),
            clock: 0,
            parsed: 0,
        }
    }

    /// Files parsed since the start; the others came from memory.
    pub fn parsed(&self) -> u64 {
        self.parsed
    }

    /// What a process uses now; `None` if its mappings cannot be read (it ended, or it belongs to
    /// another user and the agent may not).
    pub fn scan(&mut self, pid: u32) -> Option<Found> {
        let mut found = Found::default();
        let mut crypto = Vec::new();
        let mut seen = FxHashSet::default();
        for mapping in self.proc.executable_mappings(pid)? {
            if !seen.insert((mapping.device.clone(), mapping.inode)) {
                continue;
            }
            let Some((file, id)) = open(&self.proc, pid, &mapping) else {
                found.unseen.push(Unseen {
                    shown: mapping.path,
                    reason: NOT_OPENED.into(),
                });
                continue;
            };
            self.look_into(file, id, mapping.path, &mut found, &mut crypto);
        }
        complete_versions(&mut found.targets, &crypto);
        Some(found)
    }

    /// What a file of the agent's own mount namespace contains; `None` if it cannot be opened.
    pub fn file(&mut self, path: &Path) -> Option<Found> {
        let file = File::open(path).ok()?;
        let id = identity(&file)?;
        let mut found = Found::default();
        self.look_into(file, id, path.to_owned(), &mut found, &mut Vec::new());
        Some(found)
    }

    fn look_into(
        &mut self,
        file: File,
        id: FileId,
        shown: PathBuf,
        found: &mut Found,
        crypto: &mut Vec<(PathBuf, TlsLibrary)>,
    ) {
        match self.contents(&file, id) {
            Ok(contents) => {
                crypto.extend(contents.crypto.clone().map(|it| (shown.clone(), it)));
                if contents.libraries.is_empty() {
                    return;
                }
                let handle = Arc::new(file);
                let path = sys::path_of(&*handle);
                let libraries = contents.libraries.iter();
                found.targets.extend(libraries.map(|library| Target {
                    file: id,
                    path: path.clone(),
                    handle: Arc::clone(&handle),
                    shown: shown.clone(),
                    library: library.library.clone(),
                    functions: Arc::clone(&library.functions),
                    refused: Arc::clone(&library.refused),
                }));
            }
            Err(reason) => found.unseen.push(Unseen {
                shown,
                reason: reason.as_ref().into(),
            }),
        }
    }

    fn contents(&mut self, file: &File, id: FileId) -> Result<Arc<Contents>, Arc<str>> {
        self.clock += 1;
        if let Some(entry) = self.cache.get_mut(&id) {
            entry.used = self.clock;
            return entry.result.clone();
        }
        if self.cache.len() >= CACHE_MAX {
            self.forget_the_older_half();
        }
        self.parsed += 1;
        let result = match contents(file, id.size) {
            Ok(contents) => Ok(Arc::new(contents)),
            // Data that happens to be mapped executable is no loss.
            Err(BinaryError::NotElf) => Ok(Arc::default()),
            Err(error) => Err(error.to_string().into()),
        };
        let entry = Entry {
            result: result.clone(),
            used: self.clock,
        };
        self.cache.insert(id, entry);
        result
    }

    fn forget_the_older_half(&mut self) {
        let mut used: Vec<u64> = self.cache.values().map(|entry| entry.used).collect();
        let middle = used.len() / 2;
        let (_, median, _) = used.select_nth_unstable(middle);
        let median = *median;
        self.cache.retain(|_, entry| entry.used > median);
    }
}

/// A libssl is of the version of the libcrypto beside it, or of the only one that is mapped.
fn complete_versions(targets: &mut [Target], crypto: &[(PathBuf, TlsLibrary)]) {
    for target in targets {
        let unknown = matches!(
            target.library,
            TlsLibrary::OpenSsl { version: None } | TlsLibrary::LibreSsl { version: None }
        );
        if !unknown {
            continue;
        }
        let beside = crypto
            .iter()
            .find(|(path, _)| path.parent() == target.shown.parent());
        let only = match crypto {
            [only] => Some(only),
            _ => None,
        };
        if let Some((_, library)) = beside.or(only) {
            target.library = library.clone();
        }
    }
}

/// The mapped file itself. The link of the mapping leads to it whatever its name is now, but needs
/// privileges; otherwise the name is tried, and must lead to the same inode.
fn open(proc: &ProcFs, pid: u32, mapping: &Mapping) -> Option<(File, FileId)> {
    let file = proc
        .open_mapping(pid, mapping)
        .or_else(|| {
            proc.open_in_root(pid, &mapping.path)
                .filter(|file| same(file, mapping))
        })
        .or_else(|| proc.open_exe(pid).filter(|file| same(file, mapping)))?;
    let id = identity(&file)?;
    Some((file, id))
}

fn same(file: &File, mapping: &Mapping) -> bool {
    file.metadata()
        .is_ok_and(|metadata| metadata.ino() == mapping.inode)
}

fn identity(file: &File) -> Option<FileId> {
    let metadata = file.metadata().ok()?;
    metadata.is_file().then(|| FileId {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.len(),
        modified_ns: i128::from(metadata.mtime()) * 1_000_000_000
            + i128::from(metadata.mtime_nsec()),
    })
}
