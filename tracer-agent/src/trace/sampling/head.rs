//! The standard samplers: what can be said of a trace before its outcome is known.

use super::threshold::{Randomness, Threshold};
use super::tracestate::Ot;

/// What `OTEL_TRACES_SAMPLER` can be.
pub const NAMES: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// A standard sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standard {
    /// Follows the decision that came with the request, where one did.
    pub parent_based: bool,
    /// For everything else.
    pub root: Threshold,
}

impl Default for Standard {
    /// `parentbased_always_on`.
    fn default() -> Self {
        Standard {
            parent_based: true,
            root: Threshold::ALWAYS,
        }
    }
}

impl Standard {
    /// By its name; `ratio` is for those that have one.
    pub fn named(name: &str, ratio: f64) -> Option<Standard> {
        let root = match name.strip_prefix("parentbased_").unwrap_or(name) {
            "always_on" => Threshold::ALWAYS,
            "always_off" => Threshold::NEVER,
            "traceidratio" => Threshold::of_probability(ratio),
            _ => return None,
        };
        Some(Standard {
            parent_based: name.starts_with("parentbased_"),
            root,
        })
    }

    /// What it makes of a trace: `sampled` is the decision that came with the request, `ot` what its
    /// `tracestate` said.
    pub(super) fn decide(self, sampled: Option<bool>, ot: Ot, randomness: Randomness) -> Head {
        match sampled.filter(|_| self.parent_based) {
            None => Head::At(self.root),
            Some(false) => Head::Drop,
            // A threshold that would not have kept the trace cannot be the one that did.
            Some(true) => ot
                .threshold
                .filter(|threshold| threshold.keeps(randomness))
                .map_or(Head::Unknown, Head::At),
        }
    }
}

/// What a standard sampler makes of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Kept with the probability of this threshold.
    At(Threshold),
    /// Kept by somebody who did not say with which probability.
    Unknown,
    /// Not kept by somebody else's decision.
    Drop,
}
