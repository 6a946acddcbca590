//! The loaded object, shared between the threads that attach to runtimes and to TLS libraries.
//!
//! Attaching takes seconds on a busy host. What follows runtimes goes first: until that is done, calls have
//! no parents. The capture thread waits for neither.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use aya::Ebpf;

use super::turn::{Held, Turn};

/// Longest that the one who goes first is waited for.
const LONGEST: Duration = Duration::from_millis(200);

/// See the module's text.
pub(super) struct SharedEbpf {
    ebpf: Mutex<Ebpf>,
    /// Somebody who goes first wants it.
    wanted: AtomicBool,
    turn: Turn,
}

/// It is locked, and no agent that ends is in the way.
pub(super) struct Locked<'a> {
    ebpf: MutexGuard<'a, Ebpf>,
    _turn: Held,
}

impl Deref for Locked<'_> {
    type Target = Ebpf;

    fn deref(&self) -> &Ebpf {
        &self.ebpf
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

impl SharedEbpf {
    /// Of a loaded object.
    pub(super) fn new(ebpf: Ebpf, turn: Turn) -> Self {
        SharedEbpf {
            ebpf: Mutex::new(ebpf),
            wanted: AtomicBool::new(false),
            turn,
        }
    }

    /// Waits for it.
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked {
            _turn: self.turn.hold(),
            ebpf: self.ebpf.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// If nobody has it: for the capture thread, which never waits, and attaches nothing.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Ebpf>> {
        match self.ebpf.try_lock() {
            Ok(ebpf) => Some(ebpf),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// For one thread: waits for it, before those that get it in turn.
    pub(super) fn lock_first(&self) -> Locked<'_> {
        self.wanted.store(true, Ordering::Release);
        let locked = self.lock();
        self.wanted.store(false, Ordering::Release);
        locked
    }

    /// For one piece of long work: after the one who goes first, if that wants it.
    pub(super) fn lock_in_turn(&self) -> Locked<'_> {
        let begun = Instant::now();
        while self.wanted.load(Ordering::Acquire) && begun.elapsed() < LONGEST {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.lock()
    }

    /// Has agents that end keep their hooks while it is held.
    pub(super) fn hold_turn(&self) -> Held {
        self.turn.hold()
    }
}
