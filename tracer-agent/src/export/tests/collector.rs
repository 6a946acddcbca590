//! A collector in this process: OTLP over gRPC and HTTP on a port from the kernel, answering by a
//! script and remembering what it took.

use std::collections::VecDeque;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::codec::CompressionEncoding;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Status};

use crate::export::retry::{RetryInfo, RpcAny, RpcDuration, RpcStatus};

/// What the collector answers to one request. After the script it accepts everything.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// HTTP status and `Retry-After`.
    Http(u16, Option<&'static str>),
    /// gRPC status and the delay of a `RetryInfo`.
    Grpc(Code, Option<Duration>),
    /// Accepts all but so many spans.
    Reject(i64),
    /// Answers only after this long.
    Late(Duration),
}

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// When.
    pub at: Instant,
    /// Headers or metadata.
    pub headers: HeaderMap,
    /// Decoded, whatever the protocol and the compression.
    pub request: ExportTraceServiceRequest,
}

impl Received {
    /// Number of spans in the request.
    pub fn spans(&self) -> usize {
        let scopes = self
            .request
            .resource_spans
            .iter()
            .flat_map(|resource| &resource.scope_spans);
        scopes.map(|scope| scope.spans.len()).sum()
    }
}

#[derive(Clone, Debug, Default)]
pub struct State {
    script: Arc<Mutex<VecDeque<Answer>>>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl State {
    fn take(&self, headers: HeaderMap, request: ExportTraceServiceRequest) -> Option<Answer> {
        self.received.lock().expect("lock").push(Received {
            at: Instant::now(),
            headers,
            request,
        });
        self.script.lock().expect("lock").pop_front()
    }
}

/// A running collector; ends with its value.
pub struct Collector {
    pub address: SocketAddr,
    state: State,
    server: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Collector {
    pub async fn grpc(script: &[Answer]) -> Self {
        Self::grpc_on(
            TcpListener::bind("127.0.0.1:0").await.expect("bind"),
            script,
        )
    }

    pub fn grpc_on(listener: TcpListener, script: &[Answer]) -> Self {
        let state = State {
            script: Arc::new(Mutex::new(script.iter().copied().collect())),
            ..State::default()
        };
        let address = listener.local_addr().expect("address");
        let service =
            TraceServiceServer::new(state.clone()).accept_compressed(CompressionEncoding::Gzip);
        let server = tonic::transport::Server::builder().add_service(service);
        let server = tokio::spawn(async move {
            server
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
                .expect("grpc server");
        });
        Self {
            address,
            state,
            server,
        }
    }

    pub async fn http(script: &[Answer]) -> Self {
        Self::http_on(
            TcpListener::bind("127.0.0.1:0").await.expect("bind"),
            script,
        )
    }

    pub fn http_on(listener: TcpListener, script: &[Answer]) -> Self {
        let state = State {
            script: Arc::new(Mutex::new(script.iter().copied().collect())),
            ..State::default()
        };
        let address = listener.local_addr().expect("address");
        let handler_state = state.clone();
        let handler = move |headers, body| answer_http(handler_state.clone(), headers, body);
        let app = axum::Router::new().route("/v1/traces", axum::routing::post(handler));
        let app = app.layer(axum::extract::DefaultBodyLimit::max(64 * 1024 * 1024));
        let server =
            tokio::spawn(async move { axum::serve(listener, app).await.expect("http server") });
        Self {
            address,
            state,
            server,
        }
    }

    pub fn received(&self) -> Vec<Received> {
        self.state.received.lock().expect("lock").clone()
    }
}

async fn answer_http(state: State, headers: HeaderMap, body: Bytes) -> Response {
    let mut plain = body.to_vec();
    if headers
        .get("content-encoding")
        .is_some_and(|encoding| encoding == "gzip")
    {
        plain = Vec::new();
        flate2::read::GzDecoder::new(&body[..])
            .read_to_end(&mut plain)
            .expect("gzip");
    }
    let json = headers
        .get("content-type")
        .is_some_and(|content| content == "application/json");
    let request = if json {
        serde_json::from_slice(&plain).expect("OTLP/JSON")
    } else {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        ExportTraceServiceRequest::decode(&plain[..]).expect("protobuf")
    };
    match state.take(headers, request) {
        Some(Answer::Http(status, retry_after)) => {
            let mut response = StatusCode::from_u16(status)
                .expect("status")
                .into_response();
            if let Some(value) = retry_after {
                response
                    .headers_mut()
                    .insert("retry-after", HeaderValue::from_static(value));
            }
            response
        }
        Some(Answer::Reject(rejected)) if json => format!(
            r#"{{"partialSuccess":{{"rejectedSpans":"{rejected}","errorMessage":"too old"}}}}"#
        )
        .into_response(),
        Some(Answer::Reject(rejected)) => partial(rejected).encode_to_vec().into_response(),
        Some(Answer::Late(delay)) => {
            tokio::time::sleep(delay).await;
            StatusCode::OK.into_response()
        }
        Some(Answer::Grpc(..)) | None => StatusCode::OK.into_response(),
    }
}

fn partial(rejected_spans: i64) -> ExportTraceServiceResponse {
    let error_message = "too old".to_owned();
    ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            rejected_spans,
            error_message,
        }),
    }
}

#[tonic::async_trait]
impl TraceService for State {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        match self.take(headers, request.into_inner()) {
            Some(Answer::Grpc(code, delay)) => {
                let details = delay.map(|delay| {
                    let seconds = i64::try_from(delay.as_secs()).expect("small");
                    let nanos = i32::try_from(delay.subsec_nanos()).expect("small");
                    let info = RetryInfo {
                        retry_delay: Some(RpcDuration { seconds, nanos }),
                    };
                    let type_url = "type.googleapis.com/google.rpc.RetryInfo".to_owned();
                    RpcStatus {
                        details: vec![RpcAny {
                            type_url,
                            value: info.encode_to_vec(),
                        }],
                    }
                    .encode_to_vec()
                });
                Err(Status::with_details(
                    code,
                    "scripted",
                    details.unwrap_or_default().into(),
                ))
            }
            Some(Answer::Reject(rejected)) => Ok(tonic::Response::new(partial(rejected))),
            Some(Answer::Late(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
            }
            Some(Answer::Http(..)) | None => {
                Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
            }
        }
    }
}
