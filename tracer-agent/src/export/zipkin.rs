//! Zipkin v2 JSON, by OpenTelemetry's mapping ("OpenTelemetry to Zipkin Transformation").
//!
//! In: an OTLP request. Out: one JSON list of Zipkin spans. Zipkin has no resource: its attributes
//! become tags beside the span's own, which win. What it has no place for (trace flags beside
//! "sampled", which every exported span is) is left out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde::Serialize;

use super::ExportError;
use super::http_client::HttpClient;
use super::retry::Verdict;
use super::settings::{Compression, TlsSettings, ZipkinSettings};

/// A client of a Zipkin collector.
#[derive(Debug)]
pub struct ZipkinTransport {
    client: HttpClient,
}

impl ZipkinTransport {
    /// Does not connect yet.
    pub fn new(settings: &ZipkinSettings) -> Result<Self, ExportError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let tls = TlsSettings::default();
        let client = HttpClient::new(&settings.endpoint, &tls, headers, Compression::None)?;
        Ok(Self { client })
    }

    /// One attempt. Zipkin takes all of a list or nothing.
    pub async fn send(&mut self, message: Bytes) -> Verdict {
        match self.client.post(message).await {
            Err(why) => Verdict::Retry { after: None, why },
            Ok(answer) if answer.status.is_success() => Verdict::Accepted {
                rejected: 0,
                message: String::new(),
            },
            Ok(answer) => answer.failure(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ZipkinSpan<'a> {
    trace_id: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    /// Microseconds since the epoch.
    timestamp: u64,
    /// Microseconds; zero would mean "not known".
    duration: u64,
    local_endpoint: Endpoint<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_endpoint: Option<Endpoint<'a>>,
    tags: BTreeMap<&'a str, String>,
}

#[derive(Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    service_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

/// All spans of `request` as one JSON list.
pub fn json(request: &ExportTraceServiceRequest) -> serde_json::Result<Vec<u8>> {
    let mut spans = Vec::new();
    for resource_spans in &request.resource_spans {
        let resource = resource_spans
            .resource
            .as_ref()
            .map_or(&[][..], |resource| &resource.attributes);
        for scope_spans in &resource_spans.scope_spans {
            let scope = scope_spans.scope.as_ref();
            let each = scope_spans.spans.iter();
            spans.extend(each.map(|span| zipkin_span(span, resource, scope)));
        }
    }
    serde_json::to_vec(&spans)
}

fn zipkin_span<'a>(
    span: &'a Span,
    resource: &'a [KeyValue],
    scope: Option<&'a InstrumentationScope>,
) -> ZipkinSpan<'a> {
    let kind = match span.kind() {
        SpanKind::Server => Some("SERVER"),
        SpanKind::Client => Some("CLIENT"),
        SpanKind::Producer => Some("PRODUCER"),
        SpanKind::Consumer => Some("CONSUMER"),
        SpanKind::Internal | SpanKind::Unspecified => None,
    };
    let remote = matches!(span.kind(), SpanKind::Client | SpanKind::Producer)
        .then(|| remote_endpoint(&span.attributes))
        .filter(|endpoint| *endpoint != Endpoint::default());
    let end = span.end_time_unix_nano.max(span.start_time_unix_nano);
    ZipkinSpan {
        trace_id: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent_id: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
        name: &span.name,
        kind,
        timestamp: span.start_time_unix_nano / 1000,
        duration: ((end - span.start_time_unix_nano) / 1000).max(1),
        local_endpoint: Endpoint {
            service_name: text_of(resource, "service.name"),
            ..Endpoint::default()
        },
        remote_endpoint: remote,
        tags: tags(span, resource, scope),
    }
}

fn tags<'a>(
    span: &'a Span,
    resource: &'a [KeyValue],
    scope: Option<&'a InstrumentationScope>,
) -> BTreeMap<&'a str, String> {
    let mut tags = BTreeMap::new();
    let both = resource.iter().filter(|own| own.key != "service.name");
    for attribute in both.chain(&span.attributes) {
        if let Some(value) = value_of(attribute) {
            tags.insert(attribute.key.as_str(), tag(value));
        }
    }
    if let Some(scope) = scope {
        tags.insert("otel.scope.name", scope.name.clone());
        tags.insert("otel.scope.version", scope.version.clone());
    }
    if !span.trace_state.is_empty() {
        // The Collector's name for it, in both directions.
        tags.insert("w3c.tracestate", span.trace_state.clone());
    }
    if let Some(status) = &span.status {
        match status.code() {
            StatusCode::Unset => {}
            StatusCode::Ok => {
                tags.insert("otel.status_code", "OK".to_owned());
            }
            StatusCode::Error => {
                tags.insert("otel.status_code", "ERROR".to_owned());
                // Set even if there is nothing to say: it is what marks a failed span.
                tags.insert("error", status.message.clone());
            }
        }
    }
    tags
}

/// Who was called: a name if the request named one, and the address of the connection.
fn remote_endpoint(attributes: &[KeyValue]) -> Endpoint<'_> {
    let address = text_of(attributes, "network.peer.address").and_then(|text| text.parse().ok());
    let port = attributes
        .iter()
        .find(|attribute| attribute.key == "network.peer.port")
        .and_then(value_of);
    Endpoint {
        service_name: text_of(attributes, "server.address"),
        ipv4: address.filter(IpAddr::is_ipv4),
        ipv6: address.filter(IpAddr::is_ipv6),
        port: match port {
            Some(Value::IntValue(port)) if address.is_some() => u16::try_from(*port).ok(),
            _ => None,
        },
    }
}

fn value_of(attribute: &KeyValue) -> Option<&Value> {
    attribute.value.as_ref()?.value.as_ref()
}

fn text_of<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    match attributes
        .iter()
        .find(|attribute| attribute.key == key)
        .and_then(value_of)
    {
        Some(Value::StringValue(text)) => Some(text),
        _ => None,
    }
}

/// Texts as they are, anything else as its JSON.
fn tag(value: &Value) -> String {
    match value {
        Value::StringValue(text) => text.clone(),
        other => plain(other).to_string(),
    }
}

fn plain(value: &Value) -> serde_json::Value {
    match value {
        Value::StringValue(text) => text.as_str().into(),
        Value::BoolValue(yes) => (*yes).into(),
        Value::IntValue(number) => (*number).into(),
        Value::DoubleValue(number) => (*number).into(),
        Value::ArrayValue(list) => {
            let each = list.values.iter().map(|item| item.value.as_ref());
            each.map(|item| item.map_or(serde_json::Value::Null, plain))
                .collect()
        }
        // Nothing of ours: maps, bytes, and what later versions add.
        _ => serde_json::Value::Null,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a text does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
