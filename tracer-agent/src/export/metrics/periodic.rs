//! Collects and sends at an interval.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::encode::{Encoder, Message};
use crate::export::otlp_grpc::GrpcTransport;
use crate::export::otlp_http::HttpTransport;
use crate::export::retry::{Backoff, Verdict};
use crate::export::settings::{MetricsSettings, OtlpSettings, Protocol};
use crate::export::{ExportError, ExporterStats, ResourceDefaults};
use crate::meta::{AttributeValue, Process, identity};
use crate::metrics::Recorded;
use crate::telemetry::snapshot::Snapshot;

/// Gives the agent's own counters.
pub type Own = Arc<dyn Fn() -> Snapshot + Send + Sync>;

/// The running exporter of metrics.
#[derive(Debug)]
pub struct MetricsExporter {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl MetricsExporter {
    /// Starts it, if metrics go anywhere over OTLP. Must be called on a tokio runtime. Attempts are
    /// counted in `stats`.
    pub fn start(
        settings: &MetricsSettings,
        resource: &[(String, String)],
        recorded: Arc<Recorded>,
        own: Own,
        stats: Arc<ExporterStats>,
    ) -> Result<Option<Self>, ExportError> {
        let Some(otlp) = &settings.otlp else {
            return Ok(None);
        };
        let defaults = Arc::new(ResourceDefaults::new(resource));
        let encoder = Encoder::new(defaults, agent(), settings.temporality, unix_ns());
        let sender = Sender::new(otlp, settings.timeout, stats)?;
        let (stop, stopped) = oneshot::channel();
        let periodic = Periodic {
            encoder,
            sender,
            recorded,
            own,
        };
        Ok(Some(Self {
            stop,
            task: tokio::spawn(periodic.run(settings.interval, stopped)),
        }))
    }

    /// Exports a last time; returns when that is done or `deadline` has come.
    pub async fn finish(mut self, deadline: Instant) {
        // The task ends only when told to.
        let _ = self.stop.send(());
        if tokio::time::timeout_at(deadline, &mut self.task)
            .await
            .is_err()
        {
            tracing::warn!("the last metrics could not be exported in time");
            self.task.abort();
        }
    }
}

struct Periodic {
    encoder: Encoder,
    sender: Sender,
    recorded: Arc<Recorded>,
    own: Own,
}

impl Periodic {
    async fn run(mut self, interval: Duration, mut stopped: oneshot::Receiver<()>) {
        let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = &mut stopped => break,
            }
            tokio::select! {
                () = export(&mut self.encoder, &mut self.sender, &self.recorded, &self.own) => {}
                // What is under way is in the last export too, unless it arrived.
                _ = &mut stopped => break,
            }
        }
        export(
            &mut self.encoder,
            &mut self.sender,
            &self.recorded,
            &self.own,
        )
        .await;
    }
}

async fn export(encoder: &mut Encoder, sender: &mut Sender, recorded: &Recorded, own: &Own) {
    let give_up = Instant::now() + sender.patience;
    for message in encoder.encode(recorded, &own(), unix_ns()) {
        if sender.send(&message, give_up).await {
            encoder.delivered(message);
        }
    }
}

/// One endpoint.
struct Sender {
    transport: Transport,
    json: bool,
    endpoint: String,
    attempt_timeout: Duration,
    patience: Duration,
    stats: Arc<ExporterStats>,
    /// The log says when it changes.
    working: bool,
}

enum Transport {
    Grpc(Box<GrpcTransport>),
    Http(Box<HttpTransport>),
}

impl Sender {
    fn new(
        otlp: &OtlpSettings,
        patience: Duration,
        stats: Arc<ExporterStats>,
    ) -> Result<Self, ExportError> {
        let transport = match otlp.protocol {
            Protocol::Grpc => Transport::Grpc(Box::new(GrpcTransport::new(otlp)?)),
            Protocol::HttpProtobuf | Protocol::HttpJson => {
                Transport::Http(Box::new(HttpTransport::new(otlp)?))
            }
        };
        // For log lines: a query may hold a key.
        let mut shown = otlp.endpoint.clone();
        shown.set_query(None);
        Ok(Self {
            transport,
            json: otlp.protocol == Protocol::HttpJson,
            endpoint: shown.into(),
            attempt_timeout: otlp.timeout,
            patience,
            stats,
            working: true,
        })
    }

    /// Sends a message until it is taken, refused, or the time is over. True if it was taken.
    async fn send(&mut self, message: &Message, give_up: Instant) -> bool {
        let body = if self.json {
            match message.json() {
                Ok(json) => Bytes::from(json),
                Err(error) => {
                    self.failed(&format!("cannot be written as JSON: {error}"));
                    return false;
                }
            }
        } else {
            Bytes::from(message.protobuf())
        };
        let body = match &self.transport {
            Transport::Http(http) => http.compressed(body),
            Transport::Grpc(_) => body,
        };
        let mut backoff = Backoff::new();
        loop {
            let left = give_up.saturating_duration_since(Instant::now());
            let timeout = self.attempt_timeout.min(left).max(Duration::from_millis(1));
            let started = Instant::now();
            let attempt = async {
                match &mut self.transport {
                    Transport::Grpc(grpc) => grpc.send(body.clone(), timeout).await,
                    Transport::Http(http) => http.send(body.clone()).await,
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
            let taken = matches!(verdict, Verdict::Accepted { .. });
            self.stats.attempt(started.elapsed(), taken);
            match verdict {
                Verdict::Accepted { rejected, message } => {
                    self.accepted(rejected, &message);
                    return true;
                }
                Verdict::Retry { after, why } => {
                    self.failed(&why);
                    let wait = match after {
                        Some(after) => after.max(backoff.wait(0.0)),
                        None => backoff.wait(fastrand::f64()),
                    };
                    if Instant::now() + wait >= give_up {
                        return false;
                    }
                    self.stats.retry();
                    tokio::time::sleep(wait).await;
                }
                Verdict::Refused { why } | Verdict::TooLarge { why } => {
                    self.failed(&why);
                    return false;
                }
            }
        }
    }

    fn accepted(&mut self, rejected: u64, message: &str) {
        let endpoint = &self.endpoint;
        if !std::mem::replace(&mut self.working, true) {
            tracing::info!(endpoint, "the otlp endpoint takes metrics again");
        }
        if rejected > 0 || !message.is_empty() {
            tracing::debug!(
                endpoint,
                rejected,
                message,
                "the otlp endpoint has something to say of the metrics"
            );
        }
    }

    fn failed(&mut self, why: &str) {
        let endpoint = &self.endpoint;
        if std::mem::replace(&mut self.working, false) {
            tracing::warn!(
                endpoint,
                why,
                "cannot export metrics over otlp; the next export will have them"
            );
        } else {
            tracing::debug!(endpoint, why, "cannot export metrics, still");
        }
    }
}

/// The agent as the resource of its own metrics.
fn agent() -> Process {
    let pid = std::process::id();
    let start = procfs::process::Process::myself().and_then(|process| process.stat());
    let start = start.map_or(0, |stat| stat.starttime);
    let text = |value: &str| AttributeValue::Str(value.into());
    Process {
        pid,
        service_name: "tracer-agent".into(),
        attributes: vec![
            ("service.name".into(), text("tracer-agent")),
            ("service.version".into(), text(env!("CARGO_PKG_VERSION"))),
            (
                "service.instance.id".into(),
                text(&identity::service_instance_id("tracer-agent", pid, start)),
            ),
            ("process.pid".into(), AttributeValue::Int(i64::from(pid))),
        ],
    }
}

fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
