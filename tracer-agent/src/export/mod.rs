//! Spans out of the agent: a bounded queue and the exporters behind it.
//!
//! In: finished spans through [`SpanSink::submit`], from any thread, without waiting. Out: OTLP over
//! gRPC or HTTP, OTLP/JSON lines, and whatever else implements [`Exporter`]. Every span is counted
//! once in the ledger's `spans` stage: exported when every exporter took it, else dropped with the
//! reason of the first that did not (`delivery::reason`).
//!
//! What it cannot see: whether a backend that accepted a span keeps it.

pub mod console;
pub mod delivery;
pub mod encode;
pub mod file;
pub mod metrics;
pub mod otlp;
pub mod otlp_grpc;
pub mod otlp_http;
pub mod proto;
pub mod queue;
pub mod resource;
pub mod retry;
pub mod settings;
pub mod stats;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;
use std::sync::Arc;

pub use delivery::Delivery;
pub use file::FileExporter;
pub use metrics::MetricsExporter;
pub use otlp::OtlpExporter;
pub use queue::{ExportFuture, ExportPipeline, Exporter, SpanSink};
pub use resource::ResourceDefaults;
pub use settings::{ExportSettings, QueueSettings, SettingsError, TracesExporter};
pub use stats::{ExporterSnapshot, ExporterStats};

/// An exporter that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The gRPC endpoint cannot be used.
    #[error("cannot use the otlp endpoint over grpc")]
    Grpc(#[source] tonic::transport::Error),
    /// No HTTP client.
    #[error("cannot make an http client for otlp")]
    Http(#[source] reqwest::Error),
    /// The file cannot be written.
    #[error("--otlp-file {}: cannot open it for writing", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Makes the exporters that `settings` ask for, in their order. `console` makes the one for
/// [`TracesExporter::Console`]. Needs a tokio runtime.
pub fn exporters(
    settings: &ExportSettings,
    mut console: impl FnMut() -> Box<dyn Exporter>,
) -> Result<Vec<Box<dyn Exporter>>, ExportError> {
    let defaults = Arc::new(ResourceDefaults::new(&settings.resource));
    let make = |exporter: &TracesExporter| -> Result<Box<dyn Exporter>, ExportError> {
        Ok(match exporter {
            TracesExporter::Otlp(otlp) => Box::new(OtlpExporter::new(
                otlp,
                settings.queue.export_timeout,
                Arc::clone(&defaults),
            )?),
            TracesExporter::Console => console(),
            TracesExporter::File(path) => Box::new(FileExporter::new(path, Arc::clone(&defaults))?),
        })
    };
    settings.traces.iter().map(make).collect()
}
