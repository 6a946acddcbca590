//! New trace and span ids.
//!
//! In: a seeded generator. Out: ids that are never all zero (W3C Trace Context 3.2.2.3, 3.2.2.4:
//! an all-zero id is invalid). All bits are random, so traces started here may carry the random
//! flag of level 2.

use super::span::{SpanId, TraceId};

/// Draws ids from one generator.
#[derive(Clone, Debug)]
pub struct Ids {
    rng: fastrand::Rng,
}

impl Ids {
    /// Ids from `rng`. Two agents need different seeds, so seed it from the system's entropy
    /// (`fastrand::Rng::new()`); a fixed seed makes tests and replays repeatable.
    pub fn new(rng: fastrand::Rng) -> Ids {
        Ids { rng }
    }

    /// A trace id nobody has.
    pub fn trace_id(&mut self) -> TraceId {
        loop {
            let id = self.rng.u128(..);
            if id != 0 {
                return TraceId(id.to_be_bytes());
            }
        }
    }

    /// A span id nobody has.
    pub fn span_id(&mut self) -> SpanId {
        SpanId(self.rng.u64(1..).to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence_of_different_ids() {
        let mut first = Ids::new(fastrand::Rng::with_seed(7));
        let mut second = Ids::new(fastrand::Rng::with_seed(7));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10_000 {
            let (trace, span) = (first.trace_id(), first.span_id());
            assert_eq!((trace, span), (second.trace_id(), second.span_id()));
            assert_ne!(trace.0, [0; 16]);
            assert_ne!(span.0, [0; 8]);
            assert!(
                seen.insert(trace.0) && seen.insert([span.0, [0; 8]].concat().try_into().unwrap())
            );
        }
    }
}
