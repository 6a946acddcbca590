//! Spans out of the agent: a bounded queue and the exporters behind it.
//!
//! In: finished spans through [`SpanSink::submit`], from any thread, without waiting. Out: OTLP over
//! gRPC or HTTP, Zipkin, OTLP/JSON lines, and whatever else implements [`Exporter`]. Every span is counted
//! once in the ledger's `spans` stage: exported when every exporter took it, else dropped with the
//! reason of the first that did not (`delivery::reason`).
//!
//! What it cannot see: whether a backend that accepted a span keeps it.

pub mod backend;
pub mod console;
pub mod delivery;
pub mod encode;
pub mod file;
pub mod http_client;
pub mod metrics;
pub mod network;
pub mod otlp_grpc;
pub mod otlp_http;
pub mod proto;
pub mod queue;
pub mod resource;
pub mod retry;
pub mod sender;
pub mod settings;
pub mod spool;
mod spooled;
pub mod stats;
#[cfg(test)]
pub(crate) mod tests;
pub mod tls;
pub mod zipkin;

use std::path::PathBuf;
use std::sync::Arc;

pub use delivery::Delivery;
pub use file::FileExporter;
pub use metrics::MetricsExporter;
pub use network::NetworkExporter;
pub use queue::{ExportFuture, ExportPipeline, Exporter, Queue, SpanSink};
pub use resource::ResourceDefaults;
pub use settings::{ExportSettings, QueueSettings, SettingsError, SpoolSettings, TracesExporter};
pub use stats::{ExporterSnapshot, ExporterStats};
pub use tls::TlsError;

/// Sent with every request.
pub const USER_AGENT: &str = concat!("tracer-agent/", env!("CARGO_PKG_VERSION"));

/// An exporter that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The gRPC endpoint cannot be used.
    #[error("cannot use the otlp endpoint over grpc")]
    Grpc(#[source] tonic::transport::Error),
    /// A URL that is none for HTTP.
    #[error("{endpoint}: not a URL that requests can be sent to")]
    Uri {
        /// Without its query.
        endpoint: String,
        /// Why.
        source: http::uri::InvalidUri,
    },
    /// TLS cannot be set up as asked for.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The spool cannot be used.
    #[error("--spool: cannot use {}", directory.display())]
    Spool {
        /// The exporter's own directory.
        directory: PathBuf,
        /// Why.
        source: std::io::Error,
    },
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
    let timeout = settings.queue.export_timeout;
    let networks = settings.traces.iter().filter(|exporter| {
        matches!(
            exporter,
            TracesExporter::Otlp(_) | TracesExporter::Zipkin(_)
        )
    });
    // The bound is that of the directory: its exporters share it.
    let shares = (networks.count() as u64).max(1);
    let boxed = |exporter: NetworkExporter| -> Result<Box<dyn Exporter>, ExportError> {
        Ok(match &settings.spool {
            None => Box::new(exporter),
            Some(spool) => {
                Box::new(exporter.with_spool(&spool.directory, spool.max_bytes / shares)?)
            }
        })
    };
    let make = |exporter: &TracesExporter| -> Result<Box<dyn Exporter>, ExportError> {
        let defaults = Arc::clone(&defaults);
        Ok(match exporter {
            TracesExporter::Otlp(otlp) => boxed(NetworkExporter::otlp(otlp, timeout, defaults)?)?,
            TracesExporter::Zipkin(zipkin) => {
                boxed(NetworkExporter::zipkin(zipkin, timeout, defaults)?)?
            }
            TracesExporter::Console => console(),
            TracesExporter::File(path) => Box::new(FileExporter::new(path, defaults)?),
        })
    };
    settings.traces.iter().map(make).collect()
}
