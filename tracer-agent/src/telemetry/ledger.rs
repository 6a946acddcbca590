//! The loss ledger: per stage, seen = exported + sampled_out + dropped(reason) + pending; the same by
//! service (`super::services`), and the bytes of traced connections.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::services::{Outcome, ServiceSnapshot, Services};
use crate::trace::Span;

/// The stages an exchange passes, in order. `exported` of a stage is what the next one sees.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Ring records of the kernel side: seen = submitted by it + dropped by it.
    pub events: Stage,
    /// Requests recognised on a connection end until they are a finished exchange.
    pub exchanges: Stage,
    /// Spans from creation to acknowledgement by every exporter's backend, or to its spool on disk.
    pub spans: Stage,
    /// Bytes of connections that are parsed.
    pub bytes: Bytes,
    /// Exchanges and spans by service.
    pub services: Services,
    /// Spans on disk, once per exporter, what an earlier agent left there included. Without
    /// `--spool` nothing ever enters.
    pub spool: Stage,
}

/// Bytes of traced connections: seen = parsed + skipped + lost.
#[derive(Debug, Default)]
pub struct Bytes {
    now: Mutex<BytesSnapshot>,
}

/// [`Bytes`] at one moment, or what was added to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct BytesSnapshot {
    /// By which the positions of all directions advanced.
    pub seen: u64,
    /// Handed to a parser.
    pub parsed: u64,
    /// Left out on purpose: bodies, and what turned out to be no protocol that is parsed.
    pub skipped: u64,
    /// Missing without a word, found by position.
    pub lost: u64,
}

impl Bytes {
    /// More of them.
    pub fn add(&self, more: BytesSnapshot) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let BytesSnapshot {
            seen,
            parsed,
            skipped,
            lost,
        } = &mut *now;
        *seen = seen.saturating_add(more.seen);
        *parsed = parsed.saturating_add(more.parsed);
        *skipped = skipped.saturating_add(more.skipped);
        *lost = lost.saturating_add(more.lost);
    }

    /// All of them.
    pub fn snapshot(&self) -> BytesSnapshot {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BytesSnapshot {
    /// As a stage of the ledger: what was parsed, or counted in place of being parsed, is handed on.
    pub fn stage(&self) -> StageSnapshot {
        let BytesSnapshot {
            seen,
            parsed,
            skipped,
            lost,
        } = *self;
        let exported = parsed.saturating_add(skipped);
        StageSnapshot {
            seen,
            exported,
            sampled_out: 0,
            dropped: (lost > 0).then_some(("lost", lost)).into_iter().collect(),
            pending: seen.saturating_sub(exported).saturating_sub(lost),
        }
    }
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
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// All stages by name.
    pub fn snapshot(&self) -> BTreeMap<&'static str, StageSnapshot> {
        let Ledger {
            events,
            exchanges,
            spans,
            bytes,
            services: _,
            spool,
        } = self;
        BTreeMap::from([
            ("bytes", bytes.snapshot().stage()),
            ("events", events.snapshot()),
            ("exchanges", exchanges.snapshot()),
            ("spans", spans.snapshot()),
            ("spool", spool.snapshot()),
        ])
    }

    /// Spans that had entered will not be exported.
    pub fn dropped_spans(&self, spans: &[Span], reason: &'static str) {
        self.spans.dropped(reason, spans.len() as u64);
        self.services.settled(spans, Outcome::Dropped(reason));
    }

    /// More than the stages say: services and bytes.
    pub fn details(&self) -> Details {
        Details {
            bytes: self.bytes.snapshot(),
            services: self.services.snapshot(),
        }
    }
}

/// What `/ledger/services` shows.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Details {
    /// seen = parsed + skipped + lost.
    pub bytes: BytesSnapshot,
    /// By name; seen = exported + sampled_out + dropped + unknown + pending.
    pub services: BTreeMap<Box<str>, ServiceSnapshot>,
}
