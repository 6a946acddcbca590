//! A receiver of OTLP over http/protobuf that keeps metrics as they came, and of spans only how long
//! each was on its way.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{HistogramDataPoint, metric};
use prost::Message;
use tokio::net::TcpListener;

use crate::process;

/// The receiver; its server ends when it is dropped.
#[derive(Debug)]
pub struct MetricsReceiver {
    /// Where it listens.
    pub address: SocketAddr,
    store: Arc<Mutex<Store>>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Debug, Default)]
struct Store {
    metrics: Vec<ExportMetricsServiceRequest>,
    delays: Vec<Duration>,
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MetricsReceiver {
    /// Starts it on a port of the kernel's choice.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("collector")
            .enable_all()
            .build()
            .expect("a runtime for the collector");
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("bind the collector");
        let address = listener.local_addr().expect("address of the collector");
        let store = Arc::default();
        let routes = axum::Router::new()
            .route("/v1/traces", post(spans))
            .route("/v1/metrics", post(metrics))
            .layer(DefaultBodyLimit::max(64 << 20))
            .with_state(Arc::clone(&store));
        runtime.spawn(axum::serve(listener, routes).into_future());
        Self {
            address,
            store,
            _runtime: runtime,
        }
    }

    /// From the end of each span that came so far to its receipt.
    pub fn delays(&self) -> Vec<Duration> {
        lock(&self.store).delays.clone()
    }

    /// Waits until `count` spans came, at most `limit`.
    pub fn wait_spans(&self, count: usize, limit: Duration) -> bool {
        process::poll_until(limit, || (self.delays().len() >= count).then_some(())).is_some()
    }

    /// The newest requests' points of the histogram `name`, by `service.name` and process.
    pub fn histogram(&self, name: &str) -> Vec<(String, HistogramDataPoint)> {
        let store = lock(&self.store);
        let mut points = std::collections::BTreeMap::new();
        let resources = store
            .metrics
            .iter()
            .flat_map(|metric| &metric.resource_metrics);
        for resource in resources {
            let attributes = resource
                .resource
                .as_ref()
                .map(|resource| &resource.attributes);
            let identity = format!("{attributes:?}");
            let service = attributes
                .into_iter()
                .flatten()
                .find(|attribute| attribute.key == "service.name")
                .map(|attribute| format!("{:?}", attribute.value))
                .unwrap_or_default();
            let metrics = resource
                .scope_metrics
                .iter()
                .flat_map(|scope| &scope.metrics);
            for metric in metrics.filter(|metric| metric.name == name) {
                let Some(metric::Data::Histogram(histogram)) = &metric.data else {
                    panic!("{name} is no histogram");
                };
                for point in &histogram.data_points {
                    let key = (identity.clone(), format!("{:?}", point.attributes));
                    points.insert(key, (service.clone(), point.clone()));
                }
            }
        }
        points.into_values().collect()
    }
}

async fn spans(State(store): State<Arc<Mutex<Store>>>, body: Bytes) -> StatusCode {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    let resources = request.resource_spans.iter();
    let scopes = resources.flat_map(|resource| &resource.scope_spans);
    let ends = scopes.flat_map(|scope| &scope.spans);
    let delays = ends.map(|span| now.saturating_sub(Duration::from_nanos(span.end_time_unix_nano)));
    lock(&store).delays.extend(delays);
    StatusCode::OK
}

async fn metrics(State(store): State<Arc<Mutex<Store>>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportMetricsServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    lock(&store).metrics.push(request);
    StatusCode::OK
}
