//! RED metrics and the service graph, from every span before sampling.
//!
//! In: spans, from the one thread that makes them ([`Recorder::record`]), and the ends of processes.
//! Out: histograms per process and attribute set, and edges between services, which any thread reads
//! through [`Recorded`] without holding up the recording one: counters are atomic, and locks are held
//! for as long as it takes to copy a list of pointers.
//!
//! `histogram` counts, `series` keeps the sets of one process, `recorder` the processes, `graph` joins
//! the two ends of an exchange, `page` writes them for Prometheus. Names and attributes are those of
//! `trace::semconv::metric`.
//!
//! Memory is bounded by the constants of `recorder` and `graph`. What does not fit is counted in a
//! series that says so (`otel.metric.overflow`); processes that do not fit are forgotten, the longest
//! unused first, and counted.
//!
//! What it cannot see: exchanges that were given up without a span, and the other end of an exchange
//! with another host or behind address translation.

mod graph;
mod histogram;
pub mod page;
pub mod recorder;
mod series;
#[cfg(test)]
mod tests;

pub use graph::{Edge, GraphCounts};
pub use histogram::{BOUNDS, BUCKETS, Counts, Exemplar, Histogram};
pub use recorder::{ProcessSeries, Recorded, Recorder, RecorderCounts};
pub use series::{Series, SeriesKey};
