//! What the metrics of the semantic conventions say of a span: instruments and their attributes.
//!
//! In: a span. Out: its [`MetricAttributes`], borrowed from it: the required and recommended
//! attributes of low cardinality. A server's own name comes from a header, which would let a client
//! make up series: it is opt-in by the conventions, and left out here. `http.route` is not known.

use std::borrow::Cow;

use super::super::span::{Span, SpanKind, Value};
use super::super::target::Target;
use super::{authority, error_type, is_known_method, protocol_version, rpc, scheme, server, text};

/// A histogram of durations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Instrument {
    /// `http.server.request.duration`.
    HttpServer,
    /// `http.client.request.duration`.
    HttpClient,
    /// `rpc.server.call.duration`.
    RpcServer,
    /// `rpc.client.call.duration`.
    RpcClient,
}

impl Instrument {
    /// Each of them, in the order of the exports.
    pub const ALL: [Instrument; 4] = [
        Instrument::HttpServer,
        Instrument::HttpClient,
        Instrument::RpcServer,
        Instrument::RpcClient,
    ];

    /// Name by the conventions.
    pub fn name(self) -> &'static str {
        match self {
            Instrument::HttpServer => "http.server.request.duration",
            Instrument::HttpClient => "http.client.request.duration",
            Instrument::RpcServer => "rpc.server.call.duration",
            Instrument::RpcClient => "rpc.client.call.duration",
        }
    }

    /// Its name as Prometheus has it: plain characters, unit at the end.
    pub fn prometheus_name(self) -> &'static str {
        match self {
            Instrument::HttpServer => "http_server_request_duration_seconds",
            Instrument::HttpClient => "http_client_request_duration_seconds",
            Instrument::RpcServer => "rpc_server_call_duration_seconds",
            Instrument::RpcClient => "rpc_client_call_duration_seconds",
        }
    }

    /// What it measures.
    pub fn description(self) -> &'static str {
        match self {
            Instrument::HttpServer => "Duration of HTTP server requests.",
            Instrument::HttpClient => "Duration of HTTP client requests.",
            Instrument::RpcServer => {
                "Measures the duration of an incoming Remote Procedure Call (RPC)."
            }
            Instrument::RpcClient => {
                "Measures the duration of an outgoing Remote Procedure Call (RPC)."
            }
        }
    }
}

/// The attributes of one measurement.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MetricAttributes<'a> {
    /// Which histogram it belongs to.
    pub instrument: Instrument,
    /// `http.request.method` or `rpc.method`, `_OTHER` for one that is not known.
    pub method: Cow<'a, str>,
    /// Status code of HTTP or gRPC; `None` if there was none.
    pub status: Option<u32>,
    /// `error.type`, if it failed.
    pub error_type: Option<Cow<'a, str>>,
    /// `url.scheme`, at an HTTP server.
    pub scheme: Option<Cow<'a, str>>,
    /// `network.protocol.version`, for HTTP.
    pub version: Option<&'static str>,
    /// `server.address`, at a client.
    pub address: Option<Cow<'a, str>>,
    /// `server.port`, at a client.
    pub port: Option<u16>,
}

impl<'a> MetricAttributes<'a> {
    /// Of `span`.
    pub fn of(span: &'a Span) -> Self {
        let exchange = &span.exchange;
        let request = &exchange.request;
        let target = Target::parse(&request.method, &request.target);
        let scheme = scheme(span, &target);
        let (address, port) = match span.kind {
            SpanKind::Client => server(span, authority(span, &target), scheme),
            SpanKind::Server => (None, None),
        };
        let error_type = error_type(span.kind, exchange);
        if let Some(grpc) = &exchange.grpc {
            return MetricAttributes {
                instrument: match span.kind {
                    SpanKind::Server => Instrument::RpcServer,
                    SpanKind::Client => Instrument::RpcClient,
                },
                method: Cow::Borrowed(rpc::method(exchange, grpc).known.unwrap_or("_OTHER")),
                status: grpc.status,
                error_type,
                scheme: None,
                version: None,
                address,
                port,
            };
        }
        let method = if is_known_method(&request.method) {
            &*request.method
        } else {
            "_OTHER"
        };
        MetricAttributes {
            instrument: match span.kind {
                SpanKind::Server => Instrument::HttpServer,
                SpanKind::Client => Instrument::HttpClient,
            },
            method: Cow::Borrowed(method),
            // 0 is a status that was not seen.
            status: exchange
                .response
                .as_ref()
                .map(|response| response.status.into())
                .filter(|status| *status != 0),
            error_type,
            scheme: (span.kind == SpanKind::Server).then_some(Cow::Borrowed(scheme)),
            version: Some(protocol_version(exchange.protocol)),
            address,
            port,
        }
    }

    /// The same, on its own.
    pub fn into_owned(self) -> MetricAttributes<'static> {
        let Self {
            instrument,
            method,
            status,
            error_type,
            scheme,
            version,
            address,
            port,
        } = self;
        let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        MetricAttributes {
            instrument,
            method: own(method),
            status,
            error_type: error_type.map(own),
            scheme: scheme.map(own),
            version,
            address: address.map(own),
            port,
        }
    }

    /// Calls `each` once per attribute, in a stable order.
    pub fn for_each(&self, mut each: impl FnMut(&'static str, Value<'_>)) {
        let Self {
            instrument,
            method,
            status,
            error_type,
            scheme,
            version,
            address,
            port,
        } = self;
        let is_rpc = match instrument {
            Instrument::HttpServer | Instrument::HttpClient => false,
            Instrument::RpcServer | Instrument::RpcClient => true,
        };
        if is_rpc {
            each("rpc.system.name", text("grpc"));
            each("rpc.method", text(method));
            if let Some(status) = status {
                each("rpc.status_code", Value::Str(rpc::status_name(*status)));
            }
        } else {
            each("http.request.method", text(method));
            if let Some(status) = status {
                each("http.response.status_code", Value::Int(i64::from(*status)));
            }
        }
        if let Some(error_type) = error_type {
            each("error.type", text(error_type));
        }
        if let Some(scheme) = scheme {
            each("url.scheme", text(scheme));
        }
        if let Some(version) = version {
            each("network.protocol.version", text(version));
        }
        if let Some(address) = address {
            each("server.address", text(address));
        }
        if let Some(port) = port {
            each("server.port", Value::Int(i64::from(*port)));
        }
    }
}
