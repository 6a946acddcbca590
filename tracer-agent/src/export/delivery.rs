//! A batch on its way to every exporter, and the one place that settles it with the ledger.
//!
//! Every exporter gets its own [`Delivery`] of the same [`Batch`] and says span by span count what
//! became of it. What it has not said when the delivery is dropped (it was cancelled, it panicked)
//! is lost at shutdown. When the last delivery is gone the batch is settled: a span that every
//! exporter took is exported, any other is dropped, once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::stats::ExporterStats;
use crate::telemetry::ledger::Ledger;
use crate::telemetry::services::Outcome;
use crate::trace::Span;

/// Why a span was not exported: the reasons in the ledger.
pub mod reason {
    /// More spans than the queue may hold.
    pub const QUEUE_FULL: &str = "queue_full";
    /// The backend could not be reached, or kept failing for as long as a batch may take.
    pub const EXPORT_FAILED: &str = "export_failed";
    /// The backend refused the spans; sending them again would not help.
    pub const REJECTED: &str = "rejected";
    /// Writing to the file or to standard output failed.
    pub const WRITE_FAILED: &str = "write_failed";
    /// Still queued or under way when the time to shut down was over.
    pub const SHUTDOWN_TIMEOUT: &str = "shutdown_timeout";
    /// Dropped from the spool, oldest first, to stay within its bound.
    pub const SPOOL_FULL: &str = "spool_full";
    /// In a record of the spool that is damaged or cut off.
    pub const SPOOL_DAMAGED: &str = "spool_damaged";
    /// Made after the queue was closed.
    pub const SHUTDOWN: &str = "shutdown";
}

/// Spans that travel together.
#[derive(Debug)]
struct Batch {
    spans: Vec<Span>,
    ledger: Arc<Ledger>,
    /// Deliveries that are not done yet.
    open: AtomicUsize,
    /// What each exporter lost, in the order of the exporters.
    losses: Mutex<Vec<Vec<(&'static str, u64)>>>,
}

/// One exporter's hold on a batch.
#[derive(Debug)]
pub struct Delivery {
    batch: Arc<Batch>,
    exporter: usize,
    stats: Arc<ExporterStats>,
    settled: u64,
    lost: Vec<(&'static str, u64)>,
}

impl Delivery {
    /// One delivery of `spans` per exporter. Without exporters the spans are done at once.
    pub fn fan_out(
        spans: Vec<Span>,
        exporters: &[Arc<ExporterStats>],
        ledger: &Arc<Ledger>,
    ) -> Vec<Self> {
        if exporters.is_empty() {
            ledger.spans.exported(spans.len() as u64);
            ledger.services.settled(&spans, Outcome::Exported);
            return Vec::new();
        }
        let batch = Arc::new(Batch {
            spans,
            ledger: Arc::clone(ledger),
            open: AtomicUsize::new(exporters.len()),
            losses: Mutex::new(vec![Vec::new(); exporters.len()]),
        });
        let each = exporters.iter().enumerate().map(|(exporter, stats)| {
            stats.batch_queued(batch.spans.len() as u64);
            Self {
                batch: Arc::clone(&batch),
                exporter,
                stats: Arc::clone(stats),
                settled: 0,
                lost: Vec::new(),
            }
        });
        each.collect()
    }

    /// The spans, all of them.
    pub fn spans(&self) -> &[Span] {
        &self.batch.spans
    }

    /// How many spans are not settled yet.
    pub fn unsettled(&self) -> u64 {
        (self.batch.spans.len() as u64).saturating_sub(self.settled)
    }

    /// `n` more spans were delivered.
    pub fn accept(&mut self, n: u64) {
        self.settled += n.min(self.unsettled());
    }

    /// All spans not settled yet were delivered.
    pub fn accept_rest(&mut self) {
        self.accept(self.unsettled());
    }

    /// `n` more spans will not be delivered.
    pub fn lose(&mut self, reason: &'static str, n: u64) {
        let n = n.min(self.unsettled());
        if n > 0 {
            self.settled += n;
            self.lost.push((reason, n));
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.lose(reason::SHUTDOWN_TIMEOUT, self.unsettled());
        let lost = self.lost.iter().map(|(_, n)| n).sum();
        self.stats.batch_done(self.batch.spans.len() as u64, lost);
        if lost > 0 {
            let mut losses = self
                .batch
                .losses
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(slot) = losses.get_mut(self.exporter) {
                *slot = std::mem::take(&mut self.lost);
            }
        }
        if self.batch.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.batch.settle();
        }
    }
}

impl Batch {
    /// Counts every span once. Which spans a backend refused it does not say, only how many:
    /// losses of several exporters are taken to be of the same spans as far as they can be.
    fn settle(&self) {
        let losses =
            std::mem::take(&mut *self.losses.lock().unwrap_or_else(PoisonError::into_inner));
        let mut lost = 0;
        let mut reasons = Vec::new();
        for exporter in losses {
            let mut own = 0;
            for (reason, n) in exporter {
                own += n;
                if own > lost {
                    let more = n.min(own - lost);
                    self.ledger.spans.dropped(reason, more);
                    reasons.push((reason, more));
                    lost = own;
                }
            }
        }
        let total = self.spans.len() as u64;
        self.ledger.spans.exported(total - lost);
        let services = &self.ledger.services;
        // Whose spans were lost is known when all or none were, or when all are of one service.
        match reasons.as_slice() {
            [] => services.settled(&self.spans, Outcome::Exported),
            [(reason, _)] if lost == total => {
                services.settled(&self.spans, Outcome::Dropped(reason));
            }
            reasons => services.settled_in_part(&self.spans, reasons),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::spans;

    /// Per exporter: what it accepted, what it lost; the rest is left unsaid.
    #[track_caller]
    fn check(
        total: usize,
        exporters: &[(u64, &[(&'static str, u64)])],
        dropped: &[(&'static str, u64)],
    ) {
        let ledger = Arc::new(Ledger::default());
        ledger.spans.seen(total as u64);
        let stats: Vec<_> = exporters
            .iter()
            .map(|_| Arc::new(ExporterStats::new("test")))
            .collect();
        let deliveries = Delivery::fan_out(spans(total), &stats, &ledger);
        // The order in which exporters finish must not matter.
        for (mut delivery, (accepted, lost)) in deliveries.into_iter().zip(exporters).rev() {
            delivery.accept(*accepted);
            for (reason, n) in *lost {
                delivery.lose(reason, *n);
            }
        }
        let snapshot = ledger.spans.snapshot();
        assert_eq!(snapshot.dropped.into_iter().collect::<Vec<_>>(), dropped);
        assert_eq!(
            snapshot.exported,
            total as u64 - dropped.iter().map(|(_, n)| n).sum::<u64>()
        );
        assert_eq!(snapshot.pending, 0);
        assert!(stats.iter().all(|stats| stats.snapshot().backlog == 0));
    }

    #[test]
    fn every_span_is_counted_once() {
        use reason::*;
        check(5, &[], &[]);
        check(5, &[(5, &[])], &[]);
        check(5, &[(3, &[(REJECTED, 2)])], &[(REJECTED, 2)]);
        check(5, &[(3, &[])], &[(SHUTDOWN_TIMEOUT, 2)]);
        check(5, &[(5, &[]), (5, &[])], &[]);
        check(
            5,
            &[(5, &[]), (0, &[(EXPORT_FAILED, 5)])],
            &[(EXPORT_FAILED, 5)],
        );
        check(
            5,
            &[(0, &[(QUEUE_FULL, 5)]), (0, &[(EXPORT_FAILED, 5)])],
            &[(QUEUE_FULL, 5)],
        );
        check(
            5,
            &[(3, &[(REJECTED, 2)]), (1, &[(EXPORT_FAILED, 4)])],
            &[(EXPORT_FAILED, 2), (REJECTED, 2)],
        );
        check(
            5,
            &[(1, &[(EXPORT_FAILED, 1), (REJECTED, 3)])],
            &[(EXPORT_FAILED, 1), (REJECTED, 3)],
        );
        // Saying more than there is changes nothing.
        check(
            5,
            &[(4, &[(REJECTED, 9), (EXPORT_FAILED, 9)])],
            &[(REJECTED, 1)],
        );
    }
}
