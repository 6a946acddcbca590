//! The loaded object, shared between the capture thread and the one that attaches to TLS libraries.
//!
//! Loading and attaching take seconds on a busy host. The thread does them piece by piece and lets the
//! capture thread go first in between: until a runtime is followed, its calls have no parents.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use aya::Ebpf;

/// Longest that the capture thread is let go first: it may have found something else to do.
const LONGEST: Duration = Duration::from_millis(200);

/// See the module's text.
pub(super) struct SharedEbpf {
    ebpf: Mutex<Ebpf>,
    /// The capture thread did not get it, and comes back for it.
    wanted: AtomicBool,
}

impl SharedEbpf {
    /// Of a loaded object.
    pub(super) fn new(ebpf: Ebpf) -> Self {
        SharedEbpf {
            ebpf: Mutex::new(ebpf),
            wanted: AtomicBool::new(false),
        }
    }

    /// Waits for it.
    pub(super) fn lock(&self) -> MutexGuard<'_, Ebpf> {
        self.ebpf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// If nobody has it.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Ebpf>> {
        match self.ebpf.try_lock() {
            Ok(ebpf) => Some(ebpf),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// For the capture thread, which never waits: without it this time it goes first next time.
    pub(super) fn try_lock_first(&self) -> Option<MutexGuard<'_, Ebpf>> {
        let locked = self.try_lock();
        self.wanted.store(locked.is_none(), Ordering::Release);
        locked
    }

    /// For one piece of long work: after the capture thread, if that wants it.
    pub(super) fn lock_in_turn(&self) -> MutexGuard<'_, Ebpf> {
        let begun = Instant::now();
        while self.wanted.load(Ordering::Acquire) && begun.elapsed() < LONGEST {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.lock()
    }
}
