//! What each exporter did, for the agent's own metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counters of one exporter; they only grow, except the backlog.
#[derive(Debug, Default)]
pub struct ExporterStats {
    name: &'static str,
    batches: AtomicU64,
    spans: AtomicU64,
    lost: AtomicU64,
    attempts: AtomicU64,
    failures: AtomicU64,
    retries: AtomicU64,
    attempt_ns: AtomicU64,
    backlog: AtomicU64,
    spool_bytes: AtomicU64,
    spool_failures: AtomicU64,
    spool_damaged: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ExporterSnapshot {
    /// `otlp`, `console`, `file`, ...
    pub exporter: &'static str,
    /// Batches it is done with, delivered or not.
    pub batches: u64,
    /// Spans it delivered.
    pub spans: u64,
    /// Spans it did not deliver.
    pub lost: u64,
    /// Requests or writes made, retries included.
    pub attempts: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Attempts that repeated a failed one.
    pub retries: u64,
    /// Time spent in attempts, nanoseconds.
    pub attempt_ns: u64,
    /// Spans that wait for it or that it is working on.
    pub backlog: u64,
    /// Bytes it has on disk.
    pub spool_bytes: u64,
    /// Messages that could not be written to disk.
    pub spool_failures: u64,
    /// Pieces of its spool that were damaged beyond counting their spans.
    pub spool_damaged: u64,
}

impl ExporterStats {
    /// All zero. The name labels the exporter's metrics.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// The counters now.
    pub fn snapshot(&self) -> ExporterSnapshot {
        let Self {
            name,
            batches,
            spans,
            lost,
            attempts,
            failures,
            retries,
            attempt_ns,
            backlog,
            spool_bytes,
            spool_failures,
            spool_damaged,
        } = self;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExporterSnapshot {
            exporter: name,
            batches: load(batches),
            spans: load(spans),
            lost: load(lost),
            attempts: load(attempts),
            failures: load(failures),
            retries: load(retries),
            attempt_ns: load(attempt_ns),
            backlog: load(backlog),
            spool_bytes: load(spool_bytes),
            spool_failures: load(spool_failures),
            spool_damaged: load(spool_damaged),
        }
    }

    /// An attempt ended after `took`.
    pub fn attempt(&self, took: Duration, succeeded: bool) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.attempt_ns.fetch_add(took_ns, Ordering::Relaxed);
        if !succeeded {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A failed attempt is about to be repeated.
    pub fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A message could not be written to the spool.
    pub(super) fn spool_failure(&self) {
        self.spool_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The spool takes so many bytes.
    pub(super) fn spool_holds(&self, bytes: u64) {
        self.spool_bytes.store(bytes, Ordering::Relaxed);
    }

    /// So many pieces of the spool cannot be read.
    pub(super) fn spool_damage(&self, segments: u64) {
        self.spool_damaged.fetch_add(segments, Ordering::Relaxed);
    }

    /// Spans waiting or being worked on.
    pub(super) fn backlog(&self) -> u64 {
        self.backlog.load(Ordering::Relaxed)
    }

    pub(super) fn batch_queued(&self, spans: u64) {
        self.backlog.fetch_add(spans, Ordering::Relaxed);
    }

    pub(super) fn batch_done(&self, spans: u64, lost: u64) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.spans
            .fetch_add(spans - lost.min(spans), Ordering::Relaxed);
        self.lost.fetch_add(lost, Ordering::Relaxed);
        self.backlog.fetch_sub(spans, Ordering::Relaxed);
    }
}
