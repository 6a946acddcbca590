//! Which spans are exported, and what each of them stands for.
//!
//! In: finished spans with their final trace ids, one by one ([`Sampler::push`]), and the time
//! ([`Sampler::tick`]). Out: the spans to export, with what the `th` of their `tracestate` says of
//! the probability that they were kept with. Spans of one trace on this host share one decision.
//!
//! | settings | when a span is decided | what is written |
//! | --- | --- | --- |
//! | always_on, parent-based or not, alone | at once | nothing: a `th` that came in and is wrong is corrected |
//! | another standard sampler, alone | at once, by id and incoming flag | `th` |
//! | beside it: errors, slow ones, budgets | when the trace's root is known, at a deadline, or when too many wait | `th` |
//!
//! **Adjusted counts are honest** because no threshold depends on the trace's own randomness: rules
//! set the threshold of a trace by what happened in it, budgets by what was offered before, and only
//! then the randomness is compared. A trace with an error has `th:0` also when the ratio alone would
//! have kept it: it had no chance of being left out, so it stands for itself and for no other.
//!
//! It cannot see the parts of a trace on other hosts, and for how long a root will still run.
//! What is decided about here is what is exported, not what is sent on in requests.

mod budget;
mod head;
mod memory;
mod sampler;
mod settings;
mod threshold;
mod tracestate;

pub use head::{NAMES, Standard};
pub use sampler::{Sampler, SamplerCounts};
pub use settings::{Rule, Settings};
pub use threshold::{Randomness, Threshold};

#[cfg(test)]
pub(crate) mod tests;
