//! A received span as the tests look at it: flat, ids as text, resource attributes at hand.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{span, status};

/// Which side of an exchange a span tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Answered the request.
    Server,
    /// Sent the request.
    Client,
    /// Anything else; the agent must not send it.
    Other(i32),
}

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// Text.
    Text(String),
    /// Integer.
    Int(i64),
    /// Any other type, shown by its debug text.
    Other(String),
}

/// Attributes by name.
pub type Attributes = BTreeMap<String, Attribute>;

/// By which way a span came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP as protobuf over HTTP.
    HttpProtobuf,
    /// OTLP/JSON lines of a file.
    File,
    /// The query API of a tracing backend.
    Query,
}

/// One span with its resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// By which way it came.
    pub via: Via,
    /// Lower-case hex.
    pub trace_id: String,
    /// Lower-case hex.
    pub span_id: String,
    /// Lower-case hex; `None` for a root.
    pub parent: Option<String>,
    /// `tracestate`.
    pub trace_state: String,
    /// Server or client.
    pub kind: Kind,
    /// Span name.
    pub name: String,
    /// Wall clock, nanoseconds since the epoch.
    pub start_ns: u64,
    /// Wall clock, nanoseconds since the epoch.
    pub end_ns: u64,
    /// The status is Error.
    pub error: bool,
    /// Its own attributes.
    pub attributes: Attributes,
    /// Attributes of its resource.
    pub resource: Attributes,
    /// Schema of its resource or scope.
    pub schema_url: String,
}

impl Span {
    /// Text attribute of the span.
    pub fn text(&self, name: &str) -> Option<&str> {
        text(&self.attributes, name)
    }

    /// Integer attribute of the span.
    pub fn int(&self, name: &str) -> Option<i64> {
        int(&self.attributes, name)
    }

    /// `service.name` of its resource.
    pub fn service(&self) -> Option<&str> {
        text(&self.resource, "service.name")
    }

    /// `process.pid` of its resource.
    pub fn pid(&self) -> Option<i64> {
        int(&self.resource, "process.pid")
    }

    /// From start to end; negative if they are the wrong way round.
    pub fn duration_ns(&self) -> i128 {
        i128::from(self.end_ns) - i128::from(self.start_ns)
    }

    /// Some text attribute of the span contains `marker`: how a test knows its own traffic.
    pub fn mentions(&self, marker: &str) -> bool {
        self.attributes
            .values()
            .any(|value| matches!(value, Attribute::Text(text) if text.contains(marker)))
    }
}

fn text<'a>(attributes: &'a Attributes, name: &str) -> Option<&'a str> {
    match attributes.get(name) {
        Some(Attribute::Text(text)) => Some(text),
        _ => None,
    }
}

fn int(attributes: &Attributes, name: &str) -> Option<i64> {
    match attributes.get(name) {
        Some(Attribute::Int(number)) => Some(*number),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(value: Option<AnyValue>) -> Attribute {
    match value.and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => Attribute::Text(text),
        Some(any_value::Value::IntValue(number)) => Attribute::Int(number),
        other => Attribute::Other(format!("{other:?}")),
    }
}

fn attributes(list: Vec<KeyValue>) -> Attributes {
    list.into_iter()
        .map(|KeyValue { key, value, .. }| (key, attribute(value)))
        .collect()
}

/// All spans of an export request.
pub fn flatten(request: ExportTraceServiceRequest, via: Via) -> Vec<Span> {
    let mut spans = Vec::new();
    for group in request.resource_spans {
        let resource = attributes(
            group
                .resource
                .map(|resource| resource.attributes)
                .unwrap_or_default(),
        );
        for scope in group.scope_spans {
            let schema_url = if scope.schema_url.is_empty() {
                group.schema_url.clone()
            } else {
                scope.schema_url
            };
            for span in scope.spans {
                spans.push(Span {
                    via,
                    trace_id: hex(&span.trace_id),
                    span_id: hex(&span.span_id),
                    parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
                    trace_state: span.trace_state,
                    kind: match span::SpanKind::try_from(span.kind) {
                        Ok(span::SpanKind::Server) => Kind::Server,
                        Ok(span::SpanKind::Client) => Kind::Client,
                        _ => Kind::Other(span.kind),
                    },
                    name: span.name,
                    start_ns: span.start_time_unix_nano,
                    end_ns: span.end_time_unix_nano,
                    error: span
                        .status
                        .is_some_and(|status| status.code == status::StatusCode::Error as i32),
                    attributes: attributes(span.attributes),
                    resource: resource.clone(),
                    schema_url: schema_url.clone(),
                });
            }
        }
    }
    spans
}

/// All spans of an `--otlp-file`: one ExportTraceServiceRequest in JSON per line.
pub fn from_json_lines(text: &str) -> Result<Vec<Span>, String> {
    let mut spans = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let request: ExportTraceServiceRequest =
            serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))?;
        spans.extend(flatten(request, Via::File));
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines() {
        let line = r#"{"resourceSpans":[{"resource":{"attributes":[
            {"key":"service.name","value":{"stringValue":"shop"}},{"key":"process.pid","value":{"intValue":"7"}}]},
            "scopeSpans":[{"scope":{"name":"tracer-agent"},"spans":[{"traceId":"5b8efff798038103d269b633813fc60c",
            "spanId":"eee19b7ec3c1b174","name":"GET","kind":2,"startTimeUnixNano":"1000","endTimeUnixNano":"3000",
            "attributes":[{"key":"url.path","value":{"stringValue":"/r/x-1"}}],"status":{"code":2}}]}]}]}"#
            .replace('\n', " ");
        let spans = from_json_lines(&format!("{line}\n{line}\n")).expect("valid");
        assert_eq!(spans.len(), 2);
        let span = &spans[0];
        assert_eq!(
            (span.service(), span.pid(), span.kind),
            (Some("shop"), Some(7), Kind::Server)
        );
        assert_eq!(span.trace_id, "5b8efff798038103d269b633813fc60c");
        assert_eq!(
            (span.duration_ns(), span.error, span.parent.as_deref()),
            (2000, true, None)
        );
        assert!(span.mentions("x-1") && !span.mentions("x-2"));
        assert!(
            from_json_lines("{\n")
                .expect_err("cut off")
                .starts_with("line 1")
        );
    }
}
