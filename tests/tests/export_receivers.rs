//! Exports to a real OpenTelemetry Collector by every way it takes, and to a real Jaeger, and
//! compares every attribute with what the agent says of the same spans in its own file.

use std::collections::BTreeMap;
use std::time::Duration;

use tracer_tests::agent::Start;
use tracer_tests::collector::Collector;
use tracer_tests::driver::{Plan, SERVICE_NAME};
use tracer_tests::jaeger::Jaeger;
use tracer_tests::services::{Language, Service};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Attribute, Kind, Span, Via, from_json_lines};

const REQUESTS: usize = 40;
const ARRIVAL: Duration = Duration::from_secs(120);

/// What the receiver took, and what the agent wrote to its file, of one run.
fn export(
    service: &Service,
    took: impl FnOnce() -> Vec<Span>,
    run: &str,
    env: &[(&str, String)],
) -> [Vec<Span>; 2] {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("spans.jsonl");
    let mut start = Start::new()
        .arg("--include-port")
        .arg(service.address.port().to_string())
        .arg("--otlp-file")
        .arg(&path);
    for (name, value) in env {
        start = start.env(name, value);
    }
    let agent = start.ready();
    let report = Plan::load(service.address, run, REQUESTS, 2).run();
    assert_eq!(report.failures(), [""; 0]);
    let took = took();
    agent.stop();
    let text = std::fs::read_to_string(&path).expect("the file");
    let mut wrote = from_json_lines(&text).expect("OTLP/JSON lines");
    wrote.retain(|span| span.mentions(run));
    assert_eq!(wrote.len(), 2 * REQUESTS, "{env:?}");
    assert_eq!(took.len(), 2 * REQUESTS, "{env:?}");
    [took, wrote]
}

/// Attribute names of the semantic conventions, and what the project has ahead of their release.
fn is_registered(name: &str) -> bool {
    const REGISTRY: &str = include_str!("../../tracer-agent/src/export/tests/semconv-1.44.0.txt");
    // Our own, where no convention exists, have a prefix that says so.
    name == "rpc.status_code"
        || name.starts_with("tracer.")
        || REGISTRY.lines().any(|line| match line.strip_suffix(".*") {
            Some(template) => name.starts_with(template) && name.len() > template.len() + 1,
            None => line == name,
        })
}

fn by_id(spans: Vec<Span>) -> BTreeMap<String, Span> {
    let each = spans.into_iter().map(|span| {
        let span = Span {
            via: Via::File,
            ..span
        };
        (span.span_id.clone(), span)
    });
    each.collect()
}

#[test]
fn the_collector_gets_every_attribute_by_every_way() {
    let test = "export_receivers::the_collector_gets_every_attribute_by_every_way";
    let collector = match Collector::start() {
        Ok(collector) => collector,
        Err(reason) => return skipped(test, &reason),
    };
    let Some(session) = Session::begin(test) else {
        return;
    };
    let service = Language::Rust.start().expect("the Rust service");
    let file = |name| collector.file(name).display().to_string();
    let ways = [
        ("grpc", "none", false),
        ("grpc", "gzip", true),
        ("http/protobuf", "gzip", false),
        ("http/protobuf", "none", true),
        ("http/json", "none", false),
        ("http/json", "gzip", true),
    ];
    for (number, (protocol, compression, mutual)) in ways.into_iter().enumerate() {
        let run = format!("{}w{number}", session.run);
        let endpoint = match (protocol, mutual) {
            ("grpc", false) => format!("http://{}", collector.grpc),
            ("grpc", true) => format!("https://localhost:{}", collector.mutual_grpc.port()),
            (_, false) => format!("http://{}", collector.http),
            (_, true) => format!("https://localhost:{}", collector.mutual_http.port()),
        };
        let mut env = vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", compression.to_owned()),
        ];
        if mutual {
            env.push(("OTEL_EXPORTER_OTLP_CERTIFICATE", file("ca.pem")));
            env.push(("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", file("client.pem")));
            env.push(("OTEL_EXPORTER_OTLP_CLIENT_KEY", file("client.key")));
        }
        let took = || collector.wait_for(&run, 2 * REQUESTS, ARRIVAL);
        let [took, wrote] = export(&service, took, &run, &env);
        for span in &took {
            let mut names = span.attributes.keys().chain(span.resource.keys());
            assert_eq!(names.find(|name| !is_registered(name)), None, "{span:#?}");
        }
        assert_eq!(
            by_id(took),
            by_id(wrote),
            "{protocol} {compression} {mutual}"
        );
    }
}

/// Zipkin knows texts only and has no resource: the Collector's receiver gives back what it can
/// know to be an integer, and puts the tags that were resource attributes on the span.
#[test]
fn the_collector_understands_the_zipkin_json() {
    let test = "export_receivers::the_collector_understands_the_zipkin_json";
    let collector = match Collector::start() {
        Ok(collector) => collector,
        Err(reason) => return skipped(test, &reason),
    };
    let Some(session) = Session::begin(test) else {
        return;
    };
    let service = Language::Rust.start().expect("the Rust service");
    let env = [
        ("OTEL_TRACES_EXPORTER", "zipkin".to_owned()),
        (
            "OTEL_EXPORTER_ZIPKIN_ENDPOINT",
            format!("http://{}/api/v2/spans", collector.zipkin),
        ),
    ];
    let took = || collector.wait_for(&session.run, 2 * REQUESTS, ARRIVAL);
    let [took, wrote] = export(&service, took, &session.run, &env);
    let (took, wrote) = (by_id(took), by_id(wrote));
    assert!(took.keys().eq(wrote.keys()));
    for (id, wrote) in &wrote {
        let took = &took[id];
        let essence = |span: &Span| {
            let micros = (
                span.start_ns / 1000,
                span.end_ns.saturating_sub(span.start_ns) / 1000,
            );
            (
                span.trace_id.clone(),
                span.parent.clone(),
                span.kind,
                span.name.clone(),
                micros.0,
                span.error,
            )
        };
        assert_eq!(essence(took), essence(wrote));
        assert_eq!(took.service(), wrote.service());
        let duration = |span: &Span| span.end_ns.saturating_sub(span.start_ns) / 1000;
        assert!(duration(took).abs_diff(duration(wrote).max(1)) <= 1);
        // Every attribute is there, as text at least; the resource's on either side.
        for (name, value) in wrote.attributes.iter().chain(&wrote.resource) {
            // The mapping's own, which the Collector turns back into something else.
            if wrote.kind == Kind::Client && name.starts_with("network.peer.") {
                continue;
            }
            let found = took
                .attributes
                .get(name)
                .or_else(|| took.resource.get(name));
            let shown = |value: &Attribute| match value {
                Attribute::Text(text) => text.clone(),
                Attribute::Int(number) => number.to_string(),
                Attribute::Other(text) => text.clone(),
            };
            assert_eq!(found.map(shown), Some(shown(value)), "{name} of {took:#?}");
        }
    }
}

/// What Jaeger's query API shows: services, names, kinds, status, parents and every attribute.
#[test]
fn jaeger_shows_the_traces() {
    let test = "export_receivers::jaeger_shows_the_traces";
    let jaeger = match Jaeger::start() {
        Ok(jaeger) => jaeger,
        Err(reason) => return skipped(test, &reason),
    };
    let Some(session) = Session::begin(test) else {
        return;
    };
    let service = Language::PythonThreaded.start().expect("Python's service");
    let ways = [("grpc", jaeger.grpc), ("http/protobuf", jaeger.http)];
    for (number, (protocol, address)) in ways.into_iter().enumerate() {
        let run = format!("{}w{number}", session.run);
        let env = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
        ];
        let took = || jaeger.wait_for(&service.name, &run, 2 * REQUESTS, ARRIVAL);
        let [took, wrote] = export(&service, took, &run, &env);
        assert_eq!(jaeger.services(), [service.name.as_str(), SERVICE_NAME]);
        // A server's span is a child of the client's in every trace, and some of them failed.
        let (took, wrote) = (by_id(took), by_id(wrote));
        let servers = took.values().filter(|span| span.kind == Kind::Server);
        let parents = servers.filter_map(|span| took.get(span.parent.as_ref()?));
        let clients = parents.filter(|parent| parent.kind == Kind::Client);
        assert_eq!(clients.count(), REQUESTS, "{protocol}");
        assert!(took.values().any(|span| span.error), "{protocol}");
        let wrote = wrote.into_iter().map(|(id, span)| (id, as_jaeger(span)));
        assert_eq!(took, wrote.collect(), "{protocol}");
    }
}

/// The span without what Jaeger does not keep.
fn as_jaeger(span: Span) -> Span {
    let start = span.start_ns / 1000;
    let duration = span.end_ns.saturating_sub(span.start_ns) / 1000;
    Span {
        start_ns: start * 1000,
        end_ns: (start + duration) * 1000,
        schema_url: String::new(),
        ..span
    }
}
