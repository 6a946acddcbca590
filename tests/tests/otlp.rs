//! Every way out carries the same spans: OTLP over gRPC, http/protobuf, and the OTLP/JSON file.

use std::collections::BTreeMap;

use tracer_tests::agent::Start;
use tracer_tests::check::{Server, Sides, assert_run};
use tracer_tests::driver::Plan;
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{Language, Service};
use tracer_tests::session::Session;
use tracer_tests::span::{Kind, Span, Via, from_json_lines};

const REQUESTS: usize = 200;

fn sides(service: &Service) -> Sides<'_> {
    Sides {
        server: Some(Server {
            name: &service.name,
            pids: service.pids(),
        }),
        client: true,
    }
}

/// One run with an agent of `start`'s making; its spans, checked.
fn run(session: &Session, receiver: &Receiver, start: Start, via: Via) -> Vec<Span> {
    let service = Language::Rust.start().expect("the Rust service");
    let agent = start.ready();
    let report = Plan::load(service.address, &session.run, REQUESTS, 4).run();
    let (spans, _) = finish(agent, receiver, &session.run, 2 * REQUESTS);
    assert_run(&spans, &report, &sides(&service));
    assert!(spans.iter().all(|span| span.via == via), "all by {via:?}");
    assert!(receiver.user_agents().iter().all(|agent| !agent.is_empty()));
    assert!(!receiver.user_agents().is_empty(), "no User-Agent was sent");
    // The agent's own export is never traced, on neither side.
    let exports = ["/v1/traces", "TraceService"];
    let own: Vec<_> = receiver
        .spans()
        .into_iter()
        .filter(|span| exports.iter().any(|path| span.mentions(path)))
        .collect();
    assert!(own.is_empty(), "{own:#?}");
    spans
}

#[test]
fn grpc() {
    let Some(session) = Session::begin("otlp::grpc") else {
        return;
    };
    let receiver = Receiver::start();
    run(
        &session,
        &receiver,
        Start::new().export_grpc(&receiver),
        Via::Grpc,
    );
}

#[test]
fn grpc_gzip() {
    let Some(session) = Session::begin("otlp::grpc_gzip") else {
        return;
    };
    let receiver = Receiver::start();
    let start = Start::new()
        .export_grpc(&receiver)
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
    run(&session, &receiver, start, Via::Grpc);
}

#[test]
fn http_protobuf_gzip_after_refusals() {
    let Some(session) = Session::begin("otlp::http_protobuf_gzip_after_refusals") else {
        return;
    };
    let receiver = Receiver::start();
    receiver.refuse(&[503, 429]);
    let start = Start::new()
        .export_http(&receiver)
        .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
    run(&session, &receiver, start, Via::HttpProtobuf);
}

/// A span without what differs by the way it came.
fn essence(span: &Span) -> (String, Kind, Span) {
    (
        span.span_id.clone(),
        span.kind,
        Span {
            via: Via::File,
            ..span.clone()
        },
    )
}

#[test]
fn the_file_has_the_same_spans() {
    let Some(session) = Session::begin("otlp::the_file_has_the_same_spans") else {
        return;
    };
    let receiver = Receiver::start();
    let directory = tempfile::TempDir::new().expect("directory");
    let path = directory.path().join("spans.jsonl");
    let start = Start::new()
        .export_http(&receiver)
        .arg("--otlp-file")
        .arg(&path);
    let received = run(&session, &receiver, start, Via::HttpProtobuf);

    let text = std::fs::read_to_string(&path).expect("the file");
    let written = from_json_lines(&text).expect("OTLP/JSON lines");
    let written: Vec<_> = written
        .into_iter()
        .filter(|span| span.mentions(&session.run))
        .collect();
    assert_eq!(written.len(), received.len());
    let by_id = |spans: &[Span]| -> BTreeMap<_, _> {
        spans
            .iter()
            .map(essence)
            .map(|(id, kind, span)| ((id, format!("{kind:?}")), span))
            .collect()
    };
    assert_eq!(by_id(&written), by_id(&received));
}
