//! The loss ledger: per stage, seen = exported + sampled_out + dropped(reason) + pending.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// The stages an exchange passes, in order. `exported` of a stage is what the next one sees.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Ring records of the kernel side: seen = submitted by it + dropped by it.
    pub events: Stage,
    /// Requests recognised on a connection end until they are a finished exchange.
    pub exchanges: Stage,
    /// Spans from creation to acknowledgement by every exporter's backend, or to its spool on disk.
    pub spans: Stage,
    /// Spans on disk, once per exporter, what an earlier agent left there included. Without
    /// `--spool` nothing ever enters.
    pub spool: Stage,
}

/// One stage. `pending` is derived: seen - exported - sampled_out - dropped.
#[derive(Debug, Default)]
pub struct Stage {
    seen: AtomicU64,
    exported: AtomicU64,
    sampled_out: AtomicU64,
    dropped: Mutex<BTreeMap<&'static str, u64>>,
}

/// A stage at one moment, as shown on `/ledger`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StageSnapshot {
    /// Everything that entered.
    pub seen: u64,
    /// What was handed on.
    pub exported: u64,
    /// What sampling left out.
    pub sampled_out: u64,
    /// What was lost, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// What is still inside.
    pub pending: u64,
}

impl Stage {
    /// `n` entered.
    pub fn seen(&self, n: u64) {
        self.seen.fetch_add(n, Ordering::Relaxed);
    }

    /// `n` were handed on.
    pub fn exported(&self, n: u64) {
        self.exported.fetch_add(n, Ordering::Relaxed);
    }

    /// `n` were sampled out.
    pub fn sampled_out(&self, n: u64) {
        self.sampled_out.fetch_add(n, Ordering::Relaxed);
    }

    /// `n` were dropped for `reason` (snake_case, stable).
    pub fn dropped(&self, reason: &'static str, n: u64) {
        if n > 0 {
            *self.lock().entry(reason).or_default() += n;
        }
    }

    /// `n` that entered turned out not to belong here (the agent's own traffic, excluded ports).
    pub fn retract(&self, n: u64) {
        self.seen.fetch_sub(n, Ordering::Relaxed);
    }

    /// For a stage that is counted elsewhere: everything that entered so far.
    pub fn set_seen(&self, total: u64) {
        self.seen.store(total, Ordering::Relaxed);
    }

    /// For a stage that is counted elsewhere: everything handed on so far.
    pub fn set_exported(&self, total: u64) {
        self.exported.store(total, Ordering::Relaxed);
    }

    /// For a stage that is counted elsewhere: everything dropped for `reason` so far.
    pub fn set_dropped(&self, reason: &'static str, total: u64) {
        if total > 0 {
            self.lock().insert(reason, total);
        }
    }

    /// The stage now. Reads outcomes before `seen`, so that pending is never negative.
    pub fn snapshot(&self) -> StageSnapshot {
        let dropped = self.lock().clone();
        let exported = self.exported.load(Ordering::Acquire);
        let sampled_out = self.sampled_out.load(Ordering::Acquire);
        let seen = self.seen.load(Ordering::Acquire);
        let done = exported + sampled_out + dropped.values().sum::<u64>();
        StageSnapshot {
            seen,
            exported,
            sampled_out,
            dropped,
            pending: seen.saturating_sub(done),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.dropped
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Ledger {
    /// All stages by name.
    pub fn snapshot(&self) -> BTreeMap<&'static str, StageSnapshot> {
        let Ledger {
            events,
            exchanges,
            spans,
            spool,
        } = self;
        BTreeMap::from([
            ("events", events.snapshot()),
            ("exchanges", exchanges.snapshot()),
            ("spans", spans.snapshot()),
            ("spool", spool.snapshot()),
        ])
    }
}
