//! RED metrics and the service graph on the Prometheus page.
//!
//! One page shows many processes, so every series says whose it is as the OpenTelemetry
//! specification has it: `job` is the service's name behind its namespace, `instance` its
//! `service.instance.id`, and `target_info` has all other resource attributes. `service_name` is
//! added, so that the common question needs no join.

use std::fmt::Write as _;
use std::sync::Arc;

use super::graph::Edge;
use super::histogram::{BOUNDS, Histogram};
use super::recorder::{ProcessSeries, Recorded};
use super::series::{Series, SeriesKey};
use crate::meta::{AttributeValue, Process};
use crate::telemetry::exposition::{Kind, Page, label_name};
use crate::trace::Value;
use crate::trace::semconv::metric::Instrument;

/// Requests from one service to another, both seen on this host.
pub const GRAPH_REQUESTS: &str = "traces_service_graph_request_total";
/// Those of them that failed.
pub const GRAPH_FAILED: &str = "traces_service_graph_request_failed_total";
/// Their durations at the server.
pub const GRAPH_SERVER: &str = "traces_service_graph_request_server_seconds";
/// Their durations at the client.
pub const GRAPH_CLIENT: &str = "traces_service_graph_request_client_seconds";

/// Every metric of this room for the reference: name, type, labels, meaning.
pub fn reference() -> Vec<(&'static str, Kind, &'static str, &'static str)> {
    let mut rows: Vec<_> = Instrument::ALL
        .into_iter()
        .map(|instrument| {
            let labels = match instrument {
                Instrument::HttpServer => {
                    "`http_request_method`, `http_response_status_code`, `error_type`, `url_scheme`, `network_protocol_version`"
                }
                Instrument::HttpClient => {
                    "`http_request_method`, `http_response_status_code`, `error_type`, `network_protocol_version`, `server_address`, `server_port`"
                }
                Instrument::RpcServer => {
                    "`rpc_system_name`, `rpc_method`, `rpc_status_code`, `error_type`"
                }
                Instrument::RpcClient => {
                    "`rpc_system_name`, `rpc_method`, `rpc_status_code`, `error_type`, `server_address`, `server_port`"
                }
            };
            (instrument.prometheus_name(), Kind::Histogram, labels, instrument.description())
        })
        .collect();
    rows.extend([
        (
            "target_info",
            Kind::Info,
            "resource attributes",
            "What is known of a process.",
        ),
        (
            GRAPH_REQUESTS,
            Kind::Counter,
            "`client`, `server`",
            GRAPH_HELP[0],
        ),
        (
            GRAPH_FAILED,
            Kind::Counter,
            "`client`, `server`",
            GRAPH_HELP[1],
        ),
        (
            GRAPH_SERVER,
            Kind::Histogram,
            "`client`, `server`",
            GRAPH_HELP[2],
        ),
        (
            GRAPH_CLIENT,
            Kind::Histogram,
            "`client`, `server`",
            GRAPH_HELP[3],
        ),
    ]);
    rows
}

/// What the metrics of the service graph mean, in the order of the page.
pub const GRAPH_HELP: [&str; 4] = [
    "Requests from one service to another of which both ends were seen on this host.",
    "Requests from one service to another that failed at either end.",
    "Duration of requests from one service to another as the server saw it.",
    "Duration of requests from one service to another as the client saw it.",
];

/// Labels of one series.
type Labels = Vec<(String, String)>;

/// Adds everything recorded to `page`.
pub fn write(page: &mut Page, recorded: &Recorded) {
    let processes: Vec<(Arc<ProcessSeries>, Vec<Arc<Series>>, Labels)> = recorded
        .processes()
        .into_iter()
        .map(|process| {
            let series = process.series();
            let labels = identity(&process.process);
            (process, series, labels)
        })
        .collect();
    page.family("target_info", Kind::Info, "What is known of a process.");
    for (process, _, identity) in &processes {
        let mut labels = identity.clone();
        for (key, value) in &process.process.attributes {
            let name = label_name(key);
            let is_said = matches!(
                &**key,
                "service.name" | "service.namespace" | "service.instance.id"
            );
            if !is_said && !labels.iter().any(|(known, _)| *known == name) {
                labels.push((name, attribute_text(value)));
            }
        }
        page.sample("target_info", pairs(&labels), 1);
    }
    for instrument in Instrument::ALL {
        let name = instrument.prometheus_name();
        page.family(name, Kind::Histogram, instrument.description());
        for (_, series, identity) in &processes {
            for series in series.iter().filter(|s| s.key.instrument() == instrument) {
                let mut labels = identity.clone();
                key_labels(&series.key, &mut labels);
                histogram(page, name, &labels, &series.histogram);
            }
        }
    }
    graph(page, &recorded.edges());
}

fn graph(page: &mut Page, edges: &[Arc<Edge>]) {
    let edges: Vec<(&Edge, Labels)> = edges
        .iter()
        .map(|edge| {
            let labels = match &edge.services {
                Some((client, server)) => vec![
                    ("client".to_owned(), client.to_string()),
                    ("server".to_owned(), server.to_string()),
                ],
                None => vec![("otel_metric_overflow".to_owned(), "true".to_owned())],
            };
            (&**edge, labels)
        })
        .collect();
    let [requests, failed, server, client] = GRAPH_HELP;
    page.family(GRAPH_REQUESTS, Kind::Counter, requests);
    for (edge, labels) in &edges {
        page.sample(GRAPH_REQUESTS, pairs(labels), edge.requests());
    }
    page.family(GRAPH_FAILED, Kind::Counter, failed);
    for (edge, labels) in &edges {
        page.sample(GRAPH_FAILED, pairs(labels), edge.failed());
    }
    page.family(GRAPH_SERVER, Kind::Histogram, server);
    for (edge, labels) in &edges {
        histogram(page, GRAPH_SERVER, labels, &edge.server);
    }
    page.family(GRAPH_CLIENT, Kind::Histogram, client);
    for (edge, labels) in &edges {
        histogram(page, GRAPH_CLIENT, labels, &edge.client);
    }
}

fn identity(process: &Process) -> Labels {
    let text = |key: &str| {
        let value = process.attributes.iter().find(|(name, _)| name == key);
        value.map(|(_, value)| attribute_text(value))
    };
    let name = process.service_name.to_string();
    let job = match text("service.namespace").filter(|namespace| !namespace.is_empty()) {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.clone(),
    };
    // Without an identity of its own (its start is not known) the process is told by its id.
    let instance = text("service.instance.id").unwrap_or_else(|| process.pid.to_string());
    vec![
        ("job".to_owned(), job),
        ("instance".to_owned(), instance),
        ("service_name".to_owned(), name),
    ]
}

fn key_labels(key: &SeriesKey, labels: &mut Labels) {
    match key {
        SeriesKey::Set(attributes) => attributes.for_each(|name, value| {
            let value = match value {
                Value::Str(text) => text.into_owned(),
                Value::Int(number) => number.to_string(),
                Value::StrList(texts) => texts.join(","),
            };
            labels.push((label_name(name), value));
        }),
        SeriesKey::Overflow(_) => labels.push(("otel_metric_overflow".into(), "true".into())),
    }
}

fn histogram(page: &mut Page, name: &str, labels: &Labels, histogram: &Histogram) {
    let counts = histogram.counts();
    let exemplars = histogram.exemplars();
    let bucket_name = format!("{name}_bucket");
    let bounds = BOUNDS.iter().map(Some).chain([None]);
    let mut total = 0;
    for (bucket, (count, bound)) in counts.buckets.iter().zip(bounds).enumerate() {
        total += count;
        let le = bound.map_or_else(|| "+Inf".to_owned(), |bound| page.bound(*bound));
        let ids = exemplars
            .iter()
            .find(|exemplar| exemplar.bucket == bucket)
            .map(|exemplar| {
                (
                    hex(&exemplar.trace_id.0),
                    hex(&exemplar.span_id.0),
                    exemplar.duration_ns as f64 / 1e9,
                    exemplar.unix_ns as f64 / 1e9,
                )
            });
        let exemplar = ids
            .as_ref()
            .map(|(trace, span, value, time)| (&**trace, &**span, *value, *time));
        let labels = pairs(labels).chain([("le", &*le)]);
        page.sample_with_exemplar(&bucket_name, labels, total, exemplar);
    }
    page.sample(&format!("{name}_sum"), pairs(labels), counts.sum_seconds());
    page.sample(&format!("{name}_count"), pairs(labels), total);
}

fn pairs(labels: &Labels) -> impl Iterator<Item = (&str, &str)> {
    labels.iter().map(|(name, value)| (&**name, &**value))
}

fn attribute_text(value: &AttributeValue) -> String {
    match value {
        AttributeValue::Str(text) => text.to_string(),
        AttributeValue::Int(number) => number.to_string(),
        AttributeValue::StrList(texts) => serde_json::to_string(texts).unwrap_or_default(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
