//! Whose turn it is to attach or detach, among all agents of this kernel.
//!
//! The kernel has one lock for both, and holds it for a grace period for each hook that goes. An agent that starts
//! while the hooks of another one go would wait seconds for it; and a hook that somebody else has as well
//! goes at once. So who detaches lets those go first who attach. They agree by a file lock, on a file that all
//! see whatever container they are in.

use std::fs::{File, TryLockError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::kernel::prepare::TRACEFS;

/// A file of tracefs, which is the same one in all mounts of it; what is in it does not matter.
const FILE: &str = "README";

/// Longest wait for one hook to go, as long as who detaches waits in all.
const LONGEST: Duration = Duration::from_secs(10);

/// The file; without it everybody does as they like.
pub fn open() -> Option<File> {
    let path = std::path::Path::new(TRACEFS).join(FILE);
    File::open(path)
        .map_err(
            |error| tracing::debug!(%error, "agents that start and end do not wait for each other"),
        )
        .ok()
}

/// The turn of those who attach; several may have it at a time.
#[derive(Clone, Debug)]
pub(super) struct Turn(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    file: File,
    holders: Mutex<usize>,
}

/// Nobody detaches until it is dropped. Who wants to waits ten seconds at most.
#[derive(Debug)]
pub struct Held(Option<Arc<Shared>>);

impl Turn {
    /// Nobody holds it yet.
    pub(super) fn new() -> Self {
        let shared = open().map(|file| Shared {
            file,
            holders: Mutex::new(0),
        });
        Turn(shared.map(Arc::new))
    }

    /// Waits while a hook goes.
    pub(super) fn hold(&self) -> Held {
        if let Some(shared) = &self.0 {
            let mut holders = shared
                .holders
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if *holders == 0 && !wait(&shared.file) {
                tracing::warn!(
                    "an agent that ends does not go on; what is attached now takes longer"
                );
            }
            *holders += 1;
        }
        Held(self.0.clone())
    }
}

/// Waits while a hook goes, but not for ever: who has the file may be stopped. False if it was not to be had.
fn wait(file: &File) -> bool {
    let begun = Instant::now();
    loop {
        match file.try_lock_shared() {
            Ok(()) => return true,
            Err(TryLockError::WouldBlock) if begun.elapsed() < LONGEST => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(TryLockError::WouldBlock) => return false,
            Err(TryLockError::Error(error)) => {
                tracing::debug!(%error, "does not wait for agents that end");
                return true;
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(shared) = &self.0 else { return };
        let mut holders = shared
            .holders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *holders = holders.saturating_sub(1);
        if *holders == 0 {
            // Closing the file would do it too.
            let _ = shared.file.unlock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: two hold the turn, as threads of one agent do. Guarantees: somebody else gets the file
    /// to himself when both are done, and not before.
    #[test]
    fn it_is_held_until_the_last_one_is_done() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("turn");
        let file = File::create(&path).expect("file");
        let holders = Mutex::new(0);
        let turn = Turn(Some(Arc::new(Shared { file, holders })));
        let other = File::open(&path).expect("file");
        let (first, second) = (turn.hold(), turn.clone().hold());
        assert!(other.try_lock().is_err());
        drop(first);
        assert!(other.try_lock().is_err());
        drop(second);
        assert!(other.try_lock().is_ok());
    }
}
