//! A real OTLP receiver on 127.0.0.1: gRPC and http/protobuf, plain or gzip, each on its own port.
//!
//! In: export requests. Out: flat spans. It can be told to answer the next requests otherwise
//! first ([`Answer`]), to see what the exporter does then.

use std::collections::VecDeque;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tokio::net::TcpListener;
use tonic::codec::CompressionEncoding;

use crate::span::{Span, Via, flatten};

/// Largest export request taken.
const LIMIT: usize = 64 << 20;

/// What is said to one request instead of taking it.
#[derive(Clone, Debug)]
pub enum Answer {
    /// HTTP: this status, and a `Retry-After`. Nothing is taken.
    Status(u16, Option<&'static str>),
    /// gRPC: this code, and details such as a `RetryInfo`. Nothing is taken.
    Code(tonic::Code, Vec<u8>),
    /// All but the last so many spans are taken.
    Partial(usize),
    /// Taken, but answered only after this long.
    Late(Duration),
}

/// The receiver; its servers end when it is dropped.
#[derive(Debug)]
pub struct Receiver {
    /// Address for gRPC.
    pub grpc: SocketAddr,
    /// Address for http/protobuf.
    pub http: SocketAddr,
    store: Arc<Store>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Debug, Default)]
struct Store {
    inner: Mutex<Inner>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    spans: Vec<Span>,
    requests: u64,
    user_agents: Vec<String>,
    answers: VecDeque<Answer>,
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self) -> Option<Answer> {
        self.lock().answers.pop_front()
    }

    fn add(
        &self,
        request: ExportTraceServiceRequest,
        via: Via,
        user_agent: Option<&str>,
        leave_out: usize,
    ) {
        let mut inner = self.lock();
        inner.requests += 1;
        if let Some(agent) = user_agent
            && !inner.user_agents.iter().any(|known| known == agent)
        {
            inner.user_agents.push(agent.to_owned());
        }
        let mut spans = flatten(request, via);
        spans.truncate(spans.len().saturating_sub(leave_out));
        inner.spans.extend(spans);
        self.grown.notify_all();
    }
}

impl Receiver {
    /// Starts both servers on ports of the kernel's choice.
    pub fn start() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_at(any, any)
    }

    /// Starts both servers, as a backend that comes back at its old address.
    pub fn start_at(grpc: SocketAddr, http: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("receiver")
            .enable_all()
            .build()
            .expect("a runtime for the receiver");
        let store = Arc::new(Store::default());
        let bind = |address| {
            runtime
                .block_on(TcpListener::bind(address))
                .expect("bind the receiver")
        };
        let (grpc_listener, http_listener) = (bind(grpc), bind(http));
        let address =
            |listener: &TcpListener| listener.local_addr().expect("address of the receiver");
        let (grpc, http) = (address(&grpc_listener), address(&http_listener));

        let service = TraceServiceServer::new(Grpc(Arc::clone(&store)))
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(LIMIT);
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(tonic::transport::server::TcpIncoming::from(grpc_listener)),
        );
        let routes = axum::Router::new()
            .route("/v1/traces", post(take_http))
            // Metrics are accepted, so that an agent that also exports them is not disturbed.
            .route("/v1/metrics", post(|| async { StatusCode::OK }))
            .layer(DefaultBodyLimit::max(LIMIT))
            .with_state(Arc::clone(&store));
        runtime.spawn(axum::serve(http_listener, routes).into_future());
        Self {
            grpc,
            http,
            store,
            _runtime: runtime,
        }
    }

    /// Everything received so far.
    pub fn spans(&self) -> Vec<Span> {
        self.store.lock().spans.clone()
    }

    /// What was received so far and mentions `marker`.
    pub fn spans_of(&self, marker: &str) -> Vec<Span> {
        self.own(|span| span.mentions(marker))
    }

    /// What was received so far that `is_own` knows.
    pub fn own(&self, is_own: impl Fn(&Span) -> bool) -> Vec<Span> {
        let inner = self.store.lock();
        let own = inner.spans.iter().filter(|span| is_own(span));
        own.cloned().collect()
    }

    /// Export requests taken so far.
    pub fn requests(&self) -> u64 {
        self.store.lock().requests
    }

    /// User agents seen so far.
    pub fn user_agents(&self) -> Vec<String> {
        self.store.lock().user_agents.clone()
    }

    /// Answers the next HTTP export requests with these statuses, taking nothing.
    pub fn refuse(&self, statuses: &[u16]) {
        let answers = statuses.iter().map(|status| Answer::Status(*status, None));
        self.store.lock().answers.extend(answers);
    }

    /// Answers the next export requests like this.
    pub fn answer(&self, answers: &[Answer]) {
        self.store.lock().answers.extend(answers.iter().cloned());
    }

    /// Waits until `enough` is true of the spans, at most `limit`; whether it came true.
    pub fn wait_for(&self, limit: Duration, mut enough: impl FnMut(&[Span]) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut inner = self.store.lock();
        while !enough(&inner.spans) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            inner = self
                .store
                .grown
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Waits until at least `count` spans mention `marker`.
    pub fn wait_count(&self, marker: &str, count: usize, limit: Duration) -> bool {
        self.wait_own(|span| span.mentions(marker), count, limit)
    }

    /// Waits until at least `count` spans have come that `is_own` knows.
    pub fn wait_own(&self, is_own: impl Fn(&Span) -> bool, count: usize, limit: Duration) -> bool {
        // Batches are large and many: look only at what is new.
        let (mut looked, mut found) = (0, 0);
        self.wait_for(limit, |spans| {
            found += spans[looked..].iter().filter(|span| is_own(span)).count();
            looked = spans.len();
            found >= count
        })
    }
}

struct Grpc(Arc<Store>);

#[tonic::async_trait]
impl TraceService for Grpc {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let agent = request
            .metadata()
            .get("user-agent")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let leave_out = match self.0.answer() {
            Some(Answer::Code(code, details)) => {
                return Err(tonic::Status::with_details(
                    code,
                    "asked to",
                    details.into(),
                ));
            }
            Some(Answer::Partial(rejected)) => rejected,
            Some(Answer::Late(delay)) => {
                tokio::time::sleep(delay).await;
                0
            }
            Some(Answer::Status(..)) | None => 0,
        };
        self.0
            .add(request.into_inner(), Via::Grpc, agent.as_deref(), leave_out);
        Ok(tonic::Response::new(partial(leave_out)))
    }
}

fn partial(rejected: usize) -> ExportTraceServiceResponse {
    let partial_success = (rejected > 0).then(|| ExportTracePartialSuccess {
        rejected_spans: i64::try_from(rejected).unwrap_or(i64::MAX),
        error_message: "asked to".to_owned(),
    });
    ExportTraceServiceResponse { partial_success }
}

async fn take_http(
    State(store): State<Arc<Store>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut leave_out = 0;
    match store.answer() {
        Some(Answer::Status(status, retry_after)) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let after =
                retry_after.map(|value| (header::RETRY_AFTER, value.parse().expect("value")));
            return (status, after.into_iter().collect(), Vec::new());
        }
        Some(Answer::Partial(rejected)) => leave_out = rejected,
        Some(Answer::Late(delay)) => tokio::time::sleep(delay).await,
        Some(Answer::Code(..)) | None => {}
    }
    let (status, answer) = take_body(&store, &headers, &body, leave_out);
    (status, HeaderMap::new(), answer)
}

fn take_body(
    store: &Store,
    headers: &HeaderMap,
    body: &[u8],
    leave_out: usize,
) -> (StatusCode, Vec<u8>) {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if header(header::CONTENT_TYPE) != Some("application/x-protobuf") {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, Vec::new());
    }
    let mut plain = Vec::new();
    let body = match header(header::CONTENT_ENCODING) {
        None => body,
        Some("gzip") => match flate2::read::GzDecoder::new(body)
            .take(LIMIT as u64)
            .read_to_end(&mut plain)
        {
            Ok(_) => &plain[..],
            Err(_) => return (StatusCode::BAD_REQUEST, Vec::new()),
        },
        Some(_) => return (StatusCode::UNSUPPORTED_MEDIA_TYPE, Vec::new()),
    };
    match ExportTraceServiceRequest::decode(body) {
        Ok(request) => {
            let agent = header(header::USER_AGENT);
            store.add(request, Via::HttpProtobuf, agent, leave_out);
            (StatusCode::OK, partial(leave_out).encode_to_vec())
        }
        Err(_) => (StatusCode::BAD_REQUEST, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as Wire};
    use std::io::Write;

    fn request(path: &str) -> ExportTraceServiceRequest {
        let value = Some(AnyValue {
            value: Some(Value::StringValue(path.to_owned())),
        });
        let span = Wire {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            kind: 3,
            attributes: vec![KeyValue {
                key: "url.path".to_owned(),
                value,
                ..KeyValue::default()
            }],
            ..Wire::default()
        };
        let scope_spans = vec![ScopeSpans {
            spans: vec![span],
            ..ScopeSpans::default()
        }];
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                scope_spans,
                ..ResourceSpans::default()
            }],
        }
    }

    fn arrived(receiver: &Receiver, marker: &str, via: Via) {
        assert!(
            receiver.wait_count(marker, 1, Duration::from_secs(5)),
            "{marker} did not arrive"
        );
        let spans = receiver.spans_of(marker);
        assert_eq!(spans.len(), 1);
        assert_eq!(
            (spans[0].via, spans[0].kind),
            (via, crate::span::Kind::Client)
        );
    }

    #[test]
    fn takes_protobuf_over_http_plain_gzip_and_after_a_refusal() {
        let receiver = Receiver::start();
        let send = |body: &[u8]| {
            http::post(receiver.http, "/v1/traces", "application/x-protobuf", body)
                .expect("post")
                .status
        };
        assert_eq!(send(&request("/plain").encode_to_vec()), 200);
        arrived(&receiver, "/plain", Via::HttpProtobuf);
        receiver.refuse(&[503, 429]);
        let statuses: Vec<u16> = (0..3)
            .map(|_| send(&request("/again").encode_to_vec()))
            .collect();
        assert_eq!(statuses, [503, 429, 200]);
        arrived(&receiver, "/again", Via::HttpProtobuf);
        assert_eq!(send(b"\xff\xff"), 400);
        assert_eq!(receiver.requests(), 2);

        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&request("/gzip").encode_to_vec())
            .expect("gzip");
        let body = gzip.finish().expect("gzip");
        let head = format!(
            "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n\
             content-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut connection = http::Connection::open(receiver.http).expect("connect");
        let answer = connection
            .exchange(&[head.as_bytes(), &body], false)
            .expect("answer");
        assert_eq!(answer.response.status, 200);
        arrived(&receiver, "/gzip", Via::HttpProtobuf);
    }

    #[test]
    fn takes_grpc() {
        let receiver = Receiver::start();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let mut client = TraceServiceClient::connect(format!("http://{}", receiver.grpc))
                .await
                .expect("connect");
            client.export(request("/grpc")).await.expect("export");
        });
        arrived(&receiver, "/grpc", Via::Grpc);
        assert!(
            receiver.user_agents()[0].contains("tonic"),
            "{:?}",
            receiver.user_agents()
        );
        assert!(!receiver.wait_count("/never", 1, Duration::from_millis(20)));
    }
}
