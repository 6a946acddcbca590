//! Spans to the message structs of `opentelemetry-proto`, and these to OTLP/JSON.
//!
//! The plain way, used where speed does not matter (JSON), and the measure for `super::encode`.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as ProtoValue;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind as ProtoKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as ProtoSpan, Status};
use rustc_hash::FxHashMap;

use super::encode::span_flags;
use super::resource::{ResourceDefaults, SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION};
use crate::meta::{AttributeValue, Process};
use crate::trace::{Span, SpanKind, SpanStatus, Value};

/// All `spans` in one request, one `ResourceSpans` per process in order of first appearance.
pub fn request(spans: &[Span], defaults: &ResourceDefaults) -> ExportTraceServiceRequest {
    let mut index: FxHashMap<usize, usize> = FxHashMap::default();
    let mut groups: Vec<(&Process, Vec<ProtoSpan>)> = Vec::new();
    for span in spans {
        let group = *index
            .entry(Arc::as_ptr(&span.process) as usize)
            .or_insert(groups.len());
        match groups.get_mut(group) {
            Some((_, members)) => members.push(proto_span(span)),
            None => groups.push((&span.process, vec![proto_span(span)])),
        }
    }
    let resource_spans = groups.into_iter().map(|(process, spans)| ResourceSpans {
        resource: Some(resource(process, defaults)),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope {
                name: SCOPE_NAME.to_owned(),
                version: SCOPE_VERSION.to_owned(),
                ..InstrumentationScope::default()
            }),
            spans,
            schema_url: SCHEMA_URL.to_owned(),
        }],
        schema_url: SCHEMA_URL.to_owned(),
    });
    ExportTraceServiceRequest {
        resource_spans: resource_spans.collect(),
    }
}

/// `spans` as one OTLP/JSON `ExportTraceServiceRequest` on one line, without a line end.
pub fn json(spans: &[Span], defaults: &ResourceDefaults) -> serde_json::Result<Vec<u8>> {
    to_json(request(spans, defaults))
}

/// A request as OTLP/JSON on one line, without a line end.
pub fn to_json(mut request: ExportTraceServiceRequest) -> serde_json::Result<Vec<u8>> {
    let scopes = request
        .resource_spans
        .iter_mut()
        .flat_map(|resource| &mut resource.scope_spans);
    for span in scopes.flat_map(|scope| &mut scope.spans) {
        // An absent message would be written as `null`, which not every JSON reader of OTLP takes.
        span.status.get_or_insert_default();
    }
    serde_json::to_vec(&request)
}

/// Spans in a request.
pub fn count(request: &ExportTraceServiceRequest) -> u64 {
    let scopes = request
        .resource_spans
        .iter()
        .flat_map(|resource| &resource.scope_spans);
    scopes.map(|scope| scope.spans.len() as u64).sum()
}

/// Two requests with half of the spans each, in order; `None` if there are not two spans.
pub fn split(
    mut request: ExportTraceServiceRequest,
) -> Option<(ExportTraceServiceRequest, ExportTraceServiceRequest)> {
    let total = usize::try_from(count(&request)).ok()?;
    if total < 2 {
        return None;
    }
    let mut keep = total / 2;
    let mut second = ExportTraceServiceRequest::default();
    for resource_spans in &mut request.resource_spans {
        let mut moved = ResourceSpans {
            resource: resource_spans.resource.clone(),
            scope_spans: Vec::new(),
            schema_url: resource_spans.schema_url.clone(),
        };
        for scope_spans in &mut resource_spans.scope_spans {
            let here = keep.min(scope_spans.spans.len());
            keep -= here;
            let spans = scope_spans.spans.split_off(here);
            if !spans.is_empty() {
                moved.scope_spans.push(ScopeSpans {
                    scope: scope_spans.scope.clone(),
                    spans,
                    schema_url: scope_spans.schema_url.clone(),
                });
            }
        }
        resource_spans
            .scope_spans
            .retain(|scope| !scope.spans.is_empty());
        if !moved.scope_spans.is_empty() {
            second.resource_spans.push(moved);
        }
    }
    request
        .resource_spans
        .retain(|resource| !resource.scope_spans.is_empty());
    Some((request, second))
}

pub(super) fn resource(process: &Process, defaults: &ResourceDefaults) -> Resource {
    let mut attributes = Vec::new();
    defaults.for_each(process, |key, value| {
        let value = match value {
            AttributeValue::Str(text) => ProtoValue::StringValue(text.to_string()),
            AttributeValue::Int(number) => ProtoValue::IntValue(*number),
            AttributeValue::StrList(texts) => list(texts),
        };
        attributes.push(key_value(key, value));
    });
    Resource {
        attributes,
        ..Resource::default()
    }
}

fn proto_span(span: &Span) -> ProtoSpan {
    let mut attributes = Vec::new();
    span.for_each_attribute(&mut |key, value| {
        attributes.push(key_value(
            key,
            match value {
                Value::Str(text) => ProtoValue::StringValue(text.into_owned()),
                Value::Int(number) => ProtoValue::IntValue(number),
                Value::StrList(texts) => list(texts),
            },
        ));
    });
    let kind = match span.kind {
        SpanKind::Server => ProtoKind::Server,
        SpanKind::Client => ProtoKind::Client,
    };
    ProtoSpan {
        trace_id: span.trace_id.0.to_vec(),
        span_id: span.span_id.0.to_vec(),
        trace_state: span.trace_state.as_deref().unwrap_or_default().to_owned(),
        parent_span_id: span
            .parent
            .map(|parent| parent.0.to_vec())
            .unwrap_or_default(),
        flags: span_flags(span),
        name: span.name().into_owned(),
        kind: kind.into(),
        start_time_unix_nano: span.start_unix_ns,
        end_time_unix_nano: span.end_unix_ns,
        attributes,
        status: match span.status() {
            SpanStatus::Unset => None,
            SpanStatus::Error => Some(Status {
                code: StatusCode::Error.into(),
                ..Status::default()
            }),
        },
        ..ProtoSpan::default()
    }
}

pub(super) fn key_value(key: &str, value: ProtoValue) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn list(texts: &[Box<str>]) -> ProtoValue {
    let values = texts.iter().map(|text| AnyValue {
        value: Some(ProtoValue::StringValue(text.to_string())),
    });
    ProtoValue::ArrayValue(ArrayValue {
        values: values.collect(),
    })
}
