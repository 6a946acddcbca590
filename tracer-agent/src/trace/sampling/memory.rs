//! What was decided about traces, for spans of them that come later.
//!
//! Two generations of bounded size: when the newer one is full the older one is forgotten, so that
//! at least [`GENERATION`] traces are remembered, and at most twice as many.

use rustc_hash::FxHashMap;

use super::threshold::{Randomness, Threshold};
use crate::trace::TraceId;

/// Traces of one generation.
const GENERATION: usize = 32_768;

/// What was decided about a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Decision {
    /// Its spans are exported.
    pub keep: bool,
    /// What they say of the probability; `None` where that is not known.
    pub threshold: Option<Threshold>,
    /// Randomness that did not come from the trace id.
    pub randomness: Option<Randomness>,
    /// Kept for what happened in it.
    pub certain: bool,
    /// Probability before budgets; 0 for a trace that budgets had no say in.
    pub offered: f64,
}

impl Decision {
    /// Somebody else decided against the trace.
    pub(super) const DROP: Decision = Decision {
        keep: false,
        threshold: None,
        randomness: None,
        certain: false,
        offered: 0.0,
    };
}

/// Decisions by trace.
#[derive(Debug, Default)]
pub(super) struct Memory {
    newer: FxHashMap<TraceId, Decision>,
    older: FxHashMap<TraceId, Decision>,
}

impl Memory {
    pub(super) fn get(&self, trace: &TraceId) -> Option<Decision> {
        let found = self.newer.get(trace).or_else(|| self.older.get(trace));
        found.copied()
    }

    pub(super) fn put(&mut self, trace: TraceId, decision: Decision) {
        if self.newer.len() >= GENERATION && !self.newer.contains_key(&trace) {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(trace, decision);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.newer.is_empty() && self.older.is_empty()
    }
}
