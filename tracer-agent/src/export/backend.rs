//! One backend: how a message is written for it, and one attempt to send it.
//!
//! Every message begins as OTLP protobuf, written by `super::encode`: that is also what waits on
//! disk. JSON and Zipkin are made from it when it is sent, so a spool outlives a change of protocol.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;

use super::encode::MAX_MESSAGE_BYTES;
use super::otlp_grpc::GrpcTransport;
use super::otlp_http::HttpTransport;
use super::retry::Verdict;
use super::settings::{OtlpSettings, Protocol, ZipkinSettings};
use super::zipkin::{self, ZipkinTransport};
use super::{ExportError, http_client, proto};

/// JSON takes about three times the bytes of protobuf.
const MAX_JSON_SOURCE_BYTES: usize = MAX_MESSAGE_BYTES / 3;
/// A server that refuses even this as too large is not believed again.
const MIN_MESSAGE_BYTES: usize = 64 * 1024;

/// An `ExportTraceServiceRequest` and the number of its spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Protobuf.
    pub otlp: Bytes,
    /// Spans in it.
    pub spans: u64,
}

impl Message {
    /// Two messages with half of the spans each; `None` for a single span.
    pub fn split(&self) -> Option<(Self, Self)> {
        let request = ExportTraceServiceRequest::decode(self.otlp.clone()).ok()?;
        let (first, second) = proto::split(request)?;
        let message = |request: ExportTraceServiceRequest| Self {
            spans: proto::count(&request),
            otlp: request.encode_to_vec().into(),
        };
        Some((message(first), message(second)))
    }
}

/// Where messages go.
#[derive(Debug)]
pub enum Backend {
    /// OTLP over gRPC.
    Grpc(Box<GrpcTransport>),
    /// OTLP over HTTP, protobuf.
    Http(HttpTransport),
    /// OTLP over HTTP, JSON.
    Json(HttpTransport),
    /// Zipkin.
    Zipkin(ZipkinTransport),
}

impl Backend {
    /// An OTLP endpoint. Connects only when there is something to send; needs a tokio runtime.
    pub fn otlp(settings: &OtlpSettings) -> Result<Self, ExportError> {
        Ok(match settings.protocol {
            Protocol::Grpc => Self::Grpc(Box::new(GrpcTransport::new(settings)?)),
            Protocol::HttpProtobuf => Self::Http(HttpTransport::new(settings)?),
            Protocol::HttpJson => Self::Json(HttpTransport::new(settings)?),
        })
    }

    /// A Zipkin endpoint.
    pub fn zipkin(settings: &ZipkinSettings) -> Result<Self, ExportError> {
        ZipkinTransport::new(settings).map(Self::Zipkin)
    }

    /// Names the exporter in metrics, log lines and the spool.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Grpc(_) | Self::Http(_) | Self::Json(_) => "otlp",
            Self::Zipkin(_) => "zipkin",
        }
    }

    /// How large a message may be before it is written for this backend.
    pub fn limit(&self) -> Limit {
        Limit(AtomicUsize::new(match self {
            Self::Grpc(_) | Self::Http(_) => MAX_MESSAGE_BYTES,
            Self::Json(_) | Self::Zipkin(_) => MAX_JSON_SOURCE_BYTES,
        }))
    }

    /// The message as this backend wants it: made once, however often it is tried.
    pub fn write(&self, message: &Message) -> Result<Bytes, String> {
        let decoded = || {
            ExportTraceServiceRequest::decode(message.otlp.clone())
                .map_err(|error| format!("cannot be read back: {error}"))
        };
        let no_json = |error: serde_json::Error| format!("cannot be written as JSON: {error}");
        Ok(match self {
            Self::Grpc(_) => message.otlp.clone(),
            Self::Http(http) => http.compressed(message.otlp.clone()),
            Self::Json(http) => {
                http.compressed(proto::to_json(decoded()?).map_err(no_json)?.into())
            }
            Self::Zipkin(_) => zipkin::json(&decoded()?).map_err(no_json)?.into(),
        })
    }

    /// One attempt, at most `timeout` long.
    pub async fn send(&mut self, written: Bytes, timeout: Duration) -> Verdict {
        let attempt = async {
            match self {
                Self::Grpc(grpc) => grpc.send(written, timeout).await,
                Self::Http(http) | Self::Json(http) => http.send(written).await,
                Self::Zipkin(zipkin) => zipkin.send(written).await,
            }
        };
        if let Ok(verdict) = tokio::time::timeout(timeout, attempt).await {
            return verdict;
        }
        if let Self::Grpc(grpc) = self {
            // The connection may be dead without knowing it.
            grpc.reconnect();
        }
        Verdict::Retry {
            after: None,
            why: format!("no answer within {timeout:?}"),
        }
    }
}

/// The largest message, learned from refusals. Shared by who makes messages and who sends them.
#[derive(Debug)]
pub struct Limit(AtomicUsize);

impl Limit {
    /// Bytes of a message now.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A message of so many bytes was too large.
    pub fn refused(&self, bytes: usize) {
        let half = (bytes / 2).max(MIN_MESSAGE_BYTES);
        self.0.fetch_min(half, Ordering::Relaxed);
    }
}

/// For log lines.
pub(super) fn otlp_label(settings: &OtlpSettings) -> String {
    http_client::shown(&settings.endpoint)
}
