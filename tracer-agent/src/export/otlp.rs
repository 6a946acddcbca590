//! The OTLP exporter: encodes batches, sends them over gRPC or HTTP, and tries again when told to.
//!
//! A message is given up (`export_failed`) when `OTEL_BSP_EXPORT_TIMEOUT` is over, the last attempt
//! included. A backend that says when to come back is obeyed even beyond that: meanwhile the queue
//! holds the spans, up to its bound. Nothing here is fatal to the agent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::delivery::{Delivery, reason};
use super::encode::{MAX_MESSAGE_BYTES, TraceEncoder};
use super::otlp_grpc::GrpcTransport;
use super::otlp_http::HttpTransport;
use super::queue::{ExportFuture, Exporter};
use super::resource::ResourceDefaults;
use super::retry::{Backoff, Verdict};
use super::settings::{OtlpSettings, Protocol};
use super::stats::ExporterStats;
use super::{ExportError, proto};

/// Sent with every request.
pub const USER_AGENT: &str = concat!("tracer-agent/", env!("CARGO_PKG_VERSION"));

/// JSON takes about three times the bytes of protobuf and has no way to stop in time: fewer spans.
const JSON_SPANS_PER_MESSAGE: usize = 1024;

/// One OTLP endpoint.
#[derive(Debug)]
pub struct OtlpExporter {
    transport: Transport,
    encoding: Encoding,
    defaults: Arc<ResourceDefaults>,
    endpoint: String,
    attempt_timeout: Duration,
    export_timeout: Duration,
    /// The backend asked to be left alone until then.
    not_before: Option<Instant>,
    health: Health,
    rejections_said: bool,
}

/// How the last attempt went. A change is worth a line in the log, the rest is in the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Working,
    Failing,
    Refused,
}

#[derive(Debug)]
enum Transport {
    Grpc(Box<GrpcTransport>),
    Http(Box<HttpTransport>),
}

#[derive(Debug)]
enum Encoding {
    Protobuf(TraceEncoder),
    Json,
}

impl OtlpExporter {
    /// Makes an exporter; connects only when there is something to send. Needs a tokio runtime.
    pub fn new(
        settings: &OtlpSettings,
        export_timeout: Duration,
        defaults: Arc<ResourceDefaults>,
    ) -> Result<Self, ExportError> {
        let transport = match settings.protocol {
            Protocol::Grpc => Transport::Grpc(Box::new(GrpcTransport::new(settings)?)),
            Protocol::HttpProtobuf | Protocol::HttpJson => {
                Transport::Http(Box::new(HttpTransport::new(settings)?))
            }
        };
        let encoding = match settings.protocol {
            Protocol::Grpc | Protocol::HttpProtobuf => {
                Encoding::Protobuf(TraceEncoder::new(Arc::clone(&defaults), MAX_MESSAGE_BYTES))
            }
            Protocol::HttpJson => Encoding::Json,
        };
        // For log lines: a query may hold a key.
        let mut shown = settings.endpoint.clone();
        shown.set_query(None);
        Ok(Self {
            transport,
            encoding,
            defaults,
            endpoint: shown.into(),
            attempt_timeout: settings.timeout,
            export_timeout,
            not_before: None,
            health: Health::Working,
            rejections_said: false,
        })
    }

    async fn export_all(&mut self, delivery: &mut Delivery, stats: &ExporterStats) {
        let mut sent = 0;
        while let Some(rest) = delivery.spans().get(sent..).filter(|rest| !rest.is_empty()) {
            let (message, spans) = match &mut self.encoding {
                Encoding::Protobuf(encoder) => {
                    let encoded = encoder.encode(rest);
                    (encoded.message, encoded.spans)
                }
                Encoding::Json => {
                    let part = rest.get(..JSON_SPANS_PER_MESSAGE).unwrap_or(rest);
                    match proto::json(part, &self.defaults) {
                        Ok(json) => (Bytes::from(json), part.len()),
                        Err(error) => {
                            let spans = part.len();
                            self.refused(&format!("cannot be written as JSON: {error}"));
                            delivery.lose(reason::REJECTED, spans as u64);
                            sent += spans;
                            continue;
                        }
                    }
                }
            };
            self.send(message, spans as u64, delivery, stats).await;
            sent += spans.max(1);
        }
    }

    /// Sends one message until it is accepted, refused or given up.
    async fn send(
        &mut self,
        message: Bytes,
        spans: u64,
        delivery: &mut Delivery,
        stats: &ExporterStats,
    ) {
        let message = match &self.transport {
            Transport::Http(http) => http.compressed(message),
            Transport::Grpc(_) => message,
        };
        let give_up = Instant::now() + self.export_timeout;
        let mut backoff = Backoff::new();
        loop {
            let mut timeout = self.attempt_timeout;
            match self.not_before.take() {
                Some(not_before) => tokio::time::sleep_until(not_before).await,
                None => {
                    let left = give_up.saturating_duration_since(Instant::now());
                    timeout = timeout.min(left.max(Duration::from_millis(1)));
                }
            }
            let started = Instant::now();
            let attempt = async {
                match &mut self.transport {
                    Transport::Grpc(grpc) => grpc.send(message.clone(), timeout).await,
                    Transport::Http(http) => http.send(message.clone()).await,
                }
            };
            let verdict = match tokio::time::timeout(timeout, attempt).await {
                Ok(verdict) => verdict,
                Err(_) => {
                    if let Transport::Grpc(grpc) = &mut self.transport {
                        // The connection may be dead without knowing it.
                        grpc.reconnect();
                    }
                    Verdict::Retry {
                        after: None,
                        why: format!("no answer within {timeout:?}"),
                    }
                }
            };
            stats.attempt(
                started.elapsed(),
                matches!(verdict, Verdict::Accepted { .. }),
            );
            match verdict {
                Verdict::Accepted { rejected, message } => {
                    self.accepted(rejected, &message);
                    let rejected = rejected.min(spans);
                    delivery.lose(reason::REJECTED, rejected);
                    delivery.accept(spans - rejected);
                    return;
                }
                Verdict::Refused { why } => {
                    self.refused(&why);
                    delivery.lose(reason::REJECTED, spans);
                    return;
                }
                Verdict::Retry { after, why } => {
                    self.failed(&why);
                    let now = Instant::now();
                    let wait = match after {
                        Some(after) => {
                            // Never sooner than asked for, and never in a tight loop.
                            let after = after.max(backoff.wait(0.0));
                            self.not_before = Some(now + after);
                            Duration::ZERO
                        }
                        None => backoff.wait(fastrand::f64()),
                    };
                    if now + wait >= give_up {
                        delivery.lose(reason::EXPORT_FAILED, spans);
                        return;
                    }
                    stats.retry();
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    fn accepted(&mut self, rejected: u64, message: &str) {
        let Self { endpoint, .. } = self;
        if std::mem::replace(&mut self.health, Health::Working) != Health::Working {
            tracing::info!(endpoint, "the otlp endpoint takes spans again");
        }
        if rejected > 0 && !std::mem::replace(&mut self.rejections_said, true) {
            tracing::warn!(
                endpoint,
                rejected,
                message,
                "the otlp endpoint rejected spans; from now on they are only counted"
            );
        } else if rejected > 0 || !message.is_empty() {
            tracing::debug!(
                endpoint,
                rejected,
                message,
                "the otlp endpoint has something to say"
            );
        }
    }

    fn failed(&mut self, why: &str) {
        let Self { endpoint, .. } = self;
        if std::mem::replace(&mut self.health, Health::Failing) == Health::Failing {
            tracing::debug!(endpoint, why, "cannot export spans, still");
        } else {
            tracing::warn!(
                endpoint,
                why,
                "cannot export spans over otlp; trying again, what does not fit into the queue is dropped and counted"
            );
        }
    }

    fn refused(&mut self, why: &str) {
        let Self { endpoint, .. } = self;
        if std::mem::replace(&mut self.health, Health::Refused) == Health::Refused {
            tracing::debug!(endpoint, why, "spans refused, still");
        } else {
            tracing::warn!(
                endpoint,
                why,
                "the otlp endpoint refuses spans; they are dropped and counted as rejected"
            );
        }
    }
}

impl Exporter for OtlpExporter {
    fn name(&self) -> &'static str {
        "otlp"
    }

    fn export<'a>(
        &'a mut self,
        delivery: &'a mut Delivery,
        stats: &'a ExporterStats,
    ) -> ExportFuture<'a> {
        Box::pin(self.export_all(delivery, stats))
    }
}
