//! The OTLP exporter behind the queue, against a collector that answers by a script.
//!
//! Guaranteed in every case: the ledger is exact and nothing is pending after the drain.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::Instant;
use tonic::Code;

use super::collector::{Answer, Collector, Received};
use super::*;
use crate::export::{
    ExportPipeline, ExportSettings, ExporterSnapshot, ResourceDefaults, TracesExporter, proto,
};
use crate::telemetry::ledger::{Ledger, StageSnapshot};

/// Settings as a user would write them, with a short delay.
fn settings(variables: &[(&str, &str)]) -> ExportSettings {
    let lookup = |name: &str| {
        let set = variables
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned());
        set.or_else(|| (name == "OTEL_BSP_SCHEDULE_DELAY").then(|| "10".to_owned()))
    };
    ExportSettings::from_variables(&lookup, None).expect("settings")
}

fn start(settings: &ExportSettings) -> (ExportPipeline, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::default());
    assert!(
        settings
            .traces
            .iter()
            .all(|exporter| matches!(exporter, TracesExporter::Otlp(_)))
    );
    let exporters =
        crate::export::exporters(settings, || unreachable!("no console here")).expect("exporters");
    (
        ExportPipeline::start(settings.queue, exporters, Arc::clone(&ledger)),
        ledger,
    )
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !reached() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The three ways of sending.
const PROTOCOLS: [&str; 3] = ["grpc", "http/protobuf", "http/json"];

async fn collector(protocol: &str, script: &[Answer]) -> Collector {
    if protocol == "grpc" {
        Collector::grpc(script).await
    } else {
        Collector::http(script).await
    }
}

struct Outcome {
    ledger: StageSnapshot,
    stats: ExporterSnapshot,
    received: Vec<Received>,
}

/// Sends `count` spans to a collector with `script`, waits until all are settled, drains.
async fn run(protocol: &str, extra: &[(&str, &str)], count: usize, script: &[Answer]) -> Outcome {
    run_spans(
        protocol,
        extra,
        spans(count),
        collector(protocol, script).await,
    )
    .await
}

async fn run_spans(
    protocol: &str,
    extra: &[(&str, &str)],
    spans: Vec<Span>,
    collector: Collector,
) -> Outcome {
    let count = spans.len();
    let endpoint = format!("http://{}", collector.address);
    let mut variables = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
    ];
    variables.extend_from_slice(extra);
    let (pipeline, ledger) = start(&settings(&variables));
    let sink = pipeline.sink();
    std::thread::spawn(move || sink.submit(spans))
        .join()
        .expect("a thread without a runtime can submit");
    until("settled", || ledger.spans.snapshot().pending == 0).await;
    let stats = pipeline.stats();
    pipeline
        .drain(Instant::now() + Duration::from_secs(5))
        .await;
    let ledger = ledger.spans.snapshot();
    assert_eq!(
        (ledger.seen, ledger.pending, stats[0].snapshot().backlog),
        (count as u64, 0, 0)
    );
    Outcome {
        ledger,
        stats: stats[0].snapshot(),
        received: collector.received(),
    }
}

fn dropped(ledger: &StageSnapshot) -> Vec<(&'static str, u64)> {
    ledger.dropped.clone().into_iter().collect()
}

#[tokio::test]
async fn spans_arrive_as_they_are_whatever_the_protocol() {
    for protocol in PROTOCOLS {
        for compression in ["none", "gzip"] {
            let extra = [
                ("OTEL_EXPORTER_OTLP_COMPRESSION", compression),
                ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b"),
                (
                    "OTEL_RESOURCE_ATTRIBUTES",
                    "deployment.environment.name=test",
                ),
            ];
            let outcome = run(protocol, &extra, 100, &[]).await;
            assert_eq!(
                (outcome.ledger.exported, dropped(&outcome.ledger)),
                (100, vec![])
            );
            let [received] = outcome.received.as_slice() else {
                panic!("one request")
            };
            let agent = [("deployment.environment.name".to_owned(), "test".to_owned())];
            let mut expected = proto::request(&spans(100), &ResourceDefaults::new(&agent));
            if protocol == "http/json" {
                // JSON always spells the status out.
                for span in &mut expected.resource_spans[0].scope_spans[0].spans {
                    span.status.get_or_insert_default();
                }
            }
            assert_eq!(received.request, expected, "{protocol} {compression}");
            assert_eq!(received.headers["x-tenant"], "a b");
            let agent = received.headers["user-agent"].to_str().expect("text");
            assert!(
                agent.starts_with(concat!("tracer-agent/", env!("CARGO_PKG_VERSION"))),
                "{agent}"
            );
            let encoding = if protocol == "grpc" {
                "grpc-encoding"
            } else {
                "content-encoding"
            };
            let encoding = received
                .headers
                .get(encoding)
                .map(|value| value.to_str().expect("text").to_owned());
            assert_eq!(
                encoding.as_deref() == Some("gzip"),
                compression == "gzip",
                "{protocol}"
            );
        }
    }
}

#[tokio::test]
async fn a_large_batch_is_split_into_acceptable_messages() {
    let extra = [("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "30000")];
    let mut large = spans(20_000);
    for span in &mut large {
        span.trace_state = Some(format!("vendor={}", "x".repeat(500)).into());
    }
    let outcome = run_spans("grpc", &extra, large, Collector::grpc(&[]).await).await;
    assert_eq!(outcome.ledger.exported, 20_000);
    assert!(
        outcome.received.len() > 1,
        "10 MB are more than one message"
    );
    assert_eq!(
        outcome.received.iter().map(Received::spans).sum::<usize>(),
        20_000
    );
    assert_eq!(outcome.stats.batches, 1);
}

#[tokio::test]
async fn a_busy_backend_is_asked_again_when_it_said() {
    for (protocol, answer, least) in [
        ("http/protobuf", Answer::Http(503, Some("1")), 1000),
        ("http/json", Answer::Http(429, Some("1")), 1000),
        ("http/protobuf", Answer::Http(502, None), 120),
        (
            "http/protobuf",
            Answer::Http(504, Some("Sun, 06 Nov 1994 08:49:37 GMT")),
            120,
        ),
        ("grpc", Answer::Grpc(Code::Unavailable, None), 120),
        (
            "grpc",
            Answer::Grpc(Code::Unavailable, Some(Duration::from_millis(700))),
            700,
        ),
        (
            "grpc",
            Answer::Grpc(Code::ResourceExhausted, Some(Duration::from_millis(600))),
            600,
        ),
        (
            "grpc",
            Answer::Grpc(Code::ResourceExhausted, Some(Duration::ZERO)),
            120,
        ),
    ] {
        let outcome = run(protocol, &[], 10, &[answer]).await;
        assert_eq!(
            (outcome.ledger.exported, dropped(&outcome.ledger)),
            (10, vec![]),
            "{protocol} {answer:?}"
        );
        let [first, second] = outcome.received.as_slice() else {
            panic!("two requests: {protocol} {answer:?}")
        };
        let waited = second.at - first.at;
        assert!(
            waited >= Duration::from_millis(least),
            "{waited:?}: {protocol} {answer:?}"
        );
        assert_eq!(first.request, second.request);
        let ExporterSnapshot {
            attempts,
            failures,
            retries,
            batches,
            spans,
            lost,
            ..
        } = outcome.stats;
        assert_eq!(
            (attempts, failures, retries, batches, spans, lost),
            (2, 1, 1, 1, 10, 0)
        );
    }
}

#[tokio::test]
async fn a_refusal_is_final() {
    for (protocol, answer) in [
        ("http/protobuf", Answer::Http(400, None)),
        ("http/protobuf", Answer::Http(401, Some("1"))),
        ("http/protobuf", Answer::Http(307, None)),
        ("http/json", Answer::Http(500, None)),
        ("grpc", Answer::Grpc(Code::ResourceExhausted, None)),
        (
            "grpc",
            Answer::Grpc(Code::InvalidArgument, Some(Duration::ZERO)),
        ),
        ("grpc", Answer::Grpc(Code::Unknown, None)),
        ("grpc", Answer::Grpc(Code::Internal, None)),
    ] {
        let outcome = run(protocol, &[], 10, &[answer]).await;
        assert_eq!(
            dropped(&outcome.ledger),
            [("rejected", 10)],
            "{protocol} {answer:?}"
        );
        assert_eq!(outcome.received.len(), 1, "{protocol} {answer:?}");
        assert_eq!(
            (
                outcome.stats.spans,
                outcome.stats.lost,
                outcome.stats.retries
            ),
            (0, 10, 0)
        );
    }
}

#[tokio::test]
async fn a_partial_success_counts_the_rejected_and_is_not_repeated() {
    for protocol in PROTOCOLS {
        for (says, rejected) in [(3, 3), (0, 0), (-4, 0), (i64::MAX, 10)] {
            let outcome = run(protocol, &[], 10, &[Answer::Reject(says)]).await;
            assert_eq!(outcome.ledger.exported, 10 - rejected, "{protocol} {says}");
            assert_eq!(
                outcome.ledger.dropped.get("rejected").copied().unwrap_or(0),
                rejected
            );
            assert_eq!(outcome.received.len(), 1);
        }
    }
}

#[tokio::test]
async fn no_answer_in_time_is_a_failed_attempt() {
    for protocol in PROTOCOLS {
        let extra = [("OTEL_EXPORTER_OTLP_TIMEOUT", "200")];
        let outcome = run(
            protocol,
            &extra,
            10,
            &[Answer::Late(Duration::from_secs(60))],
        )
        .await;
        assert_eq!(
            (outcome.ledger.exported, outcome.received.len()),
            (10, 2),
            "{protocol}"
        );
    }
}

#[tokio::test]
async fn a_batch_is_given_up_when_its_time_is_over() {
    for (protocol, answer) in [
        ("grpc", Answer::Grpc(Code::Unavailable, None)),
        ("http/protobuf", Answer::Http(503, None)),
    ] {
        let extra = [("OTEL_BSP_EXPORT_TIMEOUT", "600")];
        let outcome = run(protocol, &extra, 10, &[answer; 50]).await;
        assert_eq!(
            dropped(&outcome.ledger),
            [("export_failed", 10)],
            "{protocol}"
        );
        assert!(
            (2..=4).contains(&outcome.received.len()),
            "{}",
            outcome.received.len()
        );
    }
}

#[tokio::test]
async fn an_unreachable_collector_gets_the_spans_once_it_is_there() {
    for protocol in PROTOCOLS {
        // A bound socket that does not listen yet refuses connections.
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = socket.local_addr().expect("address");
        let endpoint = format!("http://{address}");
        let (pipeline, ledger) = start(&settings(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ]));
        pipeline.sink().submit(spans(10));
        let stats = pipeline.stats();
        until("a failed attempt", || stats[0].snapshot().failures >= 2).await;
        assert_eq!(ledger.spans.snapshot().pending, 10);
        let listener = socket.listen(16).expect("listen");
        let collector = if protocol == "grpc" {
            Collector::grpc_on(listener, &[])
        } else {
            Collector::http_on(listener, &[])
        };
        until("exported", || ledger.spans.snapshot().exported == 10).await;
        pipeline
            .drain(Instant::now() + Duration::from_secs(5))
            .await;
        let ledger = ledger.spans.snapshot();
        assert_eq!(
            (ledger.seen, ledger.exported, ledger.pending),
            (10, 10, 0),
            "{protocol}"
        );
        assert_eq!(collector.received().len(), 1, "{protocol}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again() {
    for protocol in PROTOCOLS {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let endpoint = format!("http://{}", listener.local_addr().expect("address"));
        let (pipeline, ledger) = start(&settings(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ]));
        pipeline.sink().submit(spans(10));
        // Takes the request's first bytes, then closes with the rest unread: a reset.
        let (mut connection, _) = listener.accept().await.expect("accept");
        connection.read_u8().await.expect("a byte");
        drop(connection);
        let collector = if protocol == "grpc" {
            Collector::grpc_on(listener, &[])
        } else {
            Collector::http_on(listener, &[])
        };
        until("exported", || ledger.spans.snapshot().exported == 10).await;
        assert_eq!(collector.received().len(), 1, "{protocol}");
        pipeline
            .drain(Instant::now() + Duration::from_secs(5))
            .await;
    }
}

#[tokio::test]
async fn two_backends_each_get_everything() {
    let (grpc, http) = (
        Collector::grpc(&[Answer::Reject(2)]).await,
        Collector::http(&[]).await,
    );
    let over = |protocol, address| {
        let endpoint = format!("http://{address}");
        settings(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ])
    };
    let mut both = over("grpc", grpc.address);
    both.traces
        .extend(over("http/protobuf", http.address).traces);
    let (pipeline, ledger) = start(&both);
    pipeline.sink().submit(spans(10));
    pipeline
        .drain(Instant::now() + Duration::from_secs(5))
        .await;
    let ledger = ledger.spans.snapshot();
    assert_eq!(
        (ledger.exported, dropped(&ledger), ledger.pending),
        (8, vec![("rejected", 2)], 0)
    );
    assert_eq!(
        (grpc.received()[0].spans(), http.received()[0].spans()),
        (10, 10)
    );
}

#[tokio::test]
async fn a_drain_delivers_what_it_can_and_counts_the_rest() {
    // The first batch is answered at once, the second one never.
    let collector =
        Collector::http(&[Answer::Reject(0), Answer::Late(Duration::from_secs(60))]).await;
    let endpoint = format!("http://{}", collector.address);
    let (pipeline, ledger) = start(&settings(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10"),
        ("OTEL_BSP_SCHEDULE_DELAY", "60000"),
    ]));
    let sink = pipeline.sink();
    sink.submit(spans(35));
    let started = Instant::now();
    pipeline.drain(started + Duration::from_millis(500)).await;
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    sink.submit(spans(4));
    let ledger = ledger.spans.snapshot();
    assert_eq!((ledger.seen, ledger.exported, ledger.pending), (39, 10, 0));
    assert_eq!(
        dropped(&ledger),
        [("shutdown", 4), ("shutdown_timeout", 25)]
    );
}
