//! A histogram of durations that one thread fills and others read.
//!
//! Its count is the sum of its buckets, so that a reader never sees one without the other; the sum
//! of the durations may be one measurement ahead or behind while traffic runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::trace::{SpanId, TraceId};

/// Upper bounds of the buckets but the last, in seconds (semantic conventions).
pub const BOUNDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// Buckets.
pub const BUCKETS: usize = BOUNDS.len() + 1;

const MILLISECOND: u64 = 1_000_000;
/// [`BOUNDS`] in nanoseconds.
const BOUNDS_NS: [u64; 14] = [
    5 * MILLISECOND,
    10 * MILLISECOND,
    25 * MILLISECOND,
    50 * MILLISECOND,
    75 * MILLISECOND,
    100 * MILLISECOND,
    250 * MILLISECOND,
    500 * MILLISECOND,
    750 * MILLISECOND,
    1_000 * MILLISECOND,
    2_500 * MILLISECOND,
    5_000 * MILLISECOND,
    7_500 * MILLISECOND,
    10_000 * MILLISECOND,
];

/// A measurement that leads to a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    /// Bucket it fell into.
    pub bucket: usize,
    /// What was measured.
    pub duration_ns: u64,
    /// When, wall clock.
    pub unix_ns: u64,
    /// Trace of the span.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
}

/// The histogram.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
    /// The last one of each bucket that has any.
    exemplars: Mutex<Vec<Exemplar>>,
    /// What an exporter of differences delivered before, and up to when.
    delivered: Mutex<Option<Box<(Counts, u64)>>>,
}

/// A histogram at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Measurements per bucket, not cumulated.
    pub buckets: [u64; BUCKETS],
    /// Sum of the durations.
    pub sum_ns: u64,
}

/// Bucket of a duration: bounds belong to the bucket below them.
pub fn bucket_of(duration_ns: u64) -> usize {
    BOUNDS_NS.partition_point(|bound| *bound < duration_ns)
}

impl Histogram {
    /// Adds one measurement.
    pub fn record(&self, duration_ns: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(duration_ns)) {
            self.sum_ns.fetch_add(duration_ns, Ordering::Relaxed);
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Remembers an example of its bucket. Left out when a reader looks at them just now.
    pub fn exemplar(&self, exemplar: Exemplar) {
        let Ok(mut exemplars) = self.exemplars.try_lock() else {
            return;
        };
        match exemplars
            .iter_mut()
            .find(|known| known.bucket == exemplar.bucket)
        {
            Some(known) => *known = exemplar,
            None => exemplars.push(exemplar),
        }
    }

    /// The counts now.
    pub fn counts(&self) -> Counts {
        Counts {
            buckets: std::array::from_fn(|bucket| {
                self.buckets
                    .get(bucket)
                    .map_or(0, |bucket| bucket.load(Ordering::Relaxed))
            }),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }

    /// What was delivered before, and up to when.
    pub fn delivered(&self) -> Option<(Counts, u64)> {
        let delivered = self.delivered.lock();
        let delivered = delivered.unwrap_or_else(PoisonError::into_inner);
        delivered.as_deref().copied()
    }

    /// `counts` as they were at `unix_ns` are delivered.
    pub fn deliver(&self, counts: Counts, unix_ns: u64) {
        let delivered = self.delivered.lock();
        *delivered.unwrap_or_else(PoisonError::into_inner) = Some(Box::new((counts, unix_ns)));
    }

    /// The examples now, at most one per bucket.
    pub fn exemplars(&self) -> Vec<Exemplar> {
        self.exemplars
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Counts {
    /// Measurements.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Sum of the durations in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// What came since `earlier`.
    pub fn since(&self, earlier: &Counts) -> Counts {
        let mut counts = *self;
        for (count, earlier) in counts.buckets.iter_mut().zip(earlier.buckets) {
            *count = count.saturating_sub(earlier);
        }
        counts.sum_ns = counts.sum_ns.saturating_sub(earlier.sum_ns);
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_the_same_in_both_units() {
        for (seconds, ns) in BOUNDS.iter().zip(BOUNDS_NS) {
            assert_eq!((seconds * 1e9).round() as u64, ns);
        }
    }

    #[test]
    fn durations_fall_into_their_buckets() {
        let check = |duration_ns: u64, bucket: usize| {
            let histogram = Histogram::default();
            histogram.record(duration_ns);
            let counts = histogram.counts();
            assert_eq!(counts.buckets.iter().position(|n| *n == 1), Some(bucket));
            assert_eq!((counts.count(), counts.sum_ns), (1, duration_ns));
        };
        check(0, 0);
        check(5_000_000, 0);
        check(5_000_001, 1);
        check(1_000_000_000, 9);
        check(10_000_000_000, 13);
        check(10_000_000_001, 14);
        check(u64::MAX, 14);
    }

    #[test]
    fn one_exemplar_per_bucket_the_last() {
        let histogram = Histogram::default();
        for (bucket, duration_ns) in [(0, 1), (3, 2), (0, 3)] {
            histogram.exemplar(Exemplar {
                bucket,
                duration_ns,
                unix_ns: 0,
                trace_id: TraceId([1; 16]),
                span_id: SpanId([1; 8]),
            });
        }
        let durations: Vec<u64> = histogram
            .exemplars()
            .iter()
            .map(|exemplar| exemplar.duration_ns)
            .collect();
        assert_eq!(durations, [3, 2]);
    }
}
