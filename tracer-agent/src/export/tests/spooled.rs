//! Outages with a spool behind the queue, requests that are too large, and exporters side by side.
//!
//! Guaranteed in every case: each span is counted once per stage, and what the collector took is
//! compared span by span.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::time::Instant;
use tonic::Code;

use super::collector::{Answer, Collector};
use super::*;
use crate::export::{ExportPipeline, ExportSettings, SpoolSettings};
use crate::telemetry::ledger::{Ledger, StageSnapshot};

const PROTOCOLS: [&str; 3] = ["grpc", "http/protobuf", "http/json"];

/// Settings for `address`: small batches and a memory queue of 200 spans.
fn settings(protocol: &str, address: SocketAddr, spool: Option<&Path>) -> ExportSettings {
    let lookup = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(format!("http://{address}")),
        "OTEL_EXPORTER_OTLP_PROTOCOL" => Some(protocol.to_owned()),
        "OTEL_BSP_SCHEDULE_DELAY" => Some("5".to_owned()),
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE" => Some("50".to_owned()),
        "OTEL_BSP_MAX_QUEUE_SIZE" => Some("200".to_owned()),
        _ => None,
    };
    let mut settings = ExportSettings::from_variables(&lookup, None).expect("settings");
    settings.spool = spool.map(|directory| SpoolSettings {
        directory: directory.to_owned(),
        max_bytes: 1 << 30,
    });
    settings
}

fn start(settings: &ExportSettings) -> (ExportPipeline, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::default());
    let exporters =
        crate::export::exporters(settings, || unreachable!("no console here")).expect("exporters");
    let pipeline = ExportPipeline::start(settings.queue, exporters, Arc::clone(&ledger));
    (pipeline, ledger)
}

async fn collector(protocol: &str, listener: TcpListener, script: &[Answer]) -> Collector {
    if protocol == "grpc" {
        Collector::grpc_on(listener, script)
    } else {
        Collector::http_on(listener, script)
    }
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !reached() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn drain(pipeline: ExportPipeline) {
    pipeline
        .drain(Instant::now() + Duration::from_secs(4))
        .await;
}

/// How often each span was received, by span id.
fn received(collector: &Collector) -> BTreeMap<Vec<u8>, usize> {
    let mut times = BTreeMap::new();
    for request in collector.received() {
        for resource in request.request.resource_spans {
            for span in resource
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                *times.entry(span.span_id).or_default() += 1;
            }
        }
    }
    times
}

/// Submits spans `from..to` as fast as the queue takes them.
async fn submit(pipeline: &ExportPipeline, ledger: &Ledger, from: u64, to: u64) {
    let process = process(42);
    let sink = pipeline.sink();
    for number in from..to {
        sink.submit(vec![span(number, &process)]);
        if number % 50 == 49 {
            until("room", || ledger.spans.snapshot().pending <= 100).await;
        }
    }
}

fn counts(stage: &StageSnapshot) -> (u64, u64, u64) {
    assert!(stage.dropped.is_empty(), "{stage:?}");
    (stage.seen, stage.exported, stage.pending)
}

/// Scenario: ten times what the memory queue holds is made while nobody listens. Guarantee: all of
/// it arrives once the collector is there, each span once.
#[tokio::test]
async fn an_outage_loses_nothing() {
    for protocol in PROTOCOLS {
        let directory = tempfile::tempdir().expect("directory");
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = socket.local_addr().expect("address");
        let (pipeline, ledger) = start(&settings(protocol, address, Some(directory.path())));
        submit(&pipeline, &ledger, 0, 2000).await;
        until("all on disk", || ledger.spans.snapshot().exported == 2000).await;
        let on_disk = ledger.spool.snapshot();
        assert_eq!(counts(&on_disk), (2000, 0, 2000), "{protocol}");
        let listener = socket.listen(64).expect("listen");
        let collector = collector(protocol, listener, &[]).await;
        until("delivered", || ledger.spool.snapshot().exported == 2000).await;
        // With the disk empty, spans go straight from memory again.
        submit(&pipeline, &ledger, 2000, 2100).await;
        until("direct", || ledger.spans.snapshot().exported == 2100).await;
        drain(pipeline).await;
        assert_eq!(counts(&ledger.spans.snapshot()), (2100, 2100, 0));
        assert_eq!(counts(&ledger.spool.snapshot()), (2000, 2000, 0));
        let times = received(&collector);
        assert_eq!(times.len(), 2100, "{protocol}");
        assert!(times.values().all(|times| *times == 1), "{protocol}");
    }
}

/// Scenario: the agent ends while the collector is down, and starts again. Guarantee: everything
/// made before the end is on disk, and is sent by the next agent, once.
#[tokio::test]
async fn a_restart_sends_what_an_earlier_agent_left() {
    for protocol in PROTOCOLS {
        let directory = tempfile::tempdir().expect("directory");
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = socket.local_addr().expect("address");
        let settings = settings(protocol, address, Some(directory.path()));
        let (pipeline, ledger) = start(&settings);
        submit(&pipeline, &ledger, 0, 500).await;
        drain(pipeline).await;
        assert_eq!(
            counts(&ledger.spans.snapshot()),
            (500, 500, 0),
            "{protocol}"
        );
        assert_eq!(
            counts(&ledger.spool.snapshot()),
            (500, 0, 500),
            "{protocol}"
        );

        let listener = socket.listen(64).expect("listen");
        let collector = collector(protocol, listener, &[]).await;
        // The lock is free when the first agent's thread has ended.
        let deadline = Instant::now() + Duration::from_secs(10);
        let exporters = loop {
            match crate::export::exporters(&settings, || unreachable!("no console")) {
                Ok(exporters) => break exporters,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let ledger = Arc::new(Ledger::default());
        let pipeline = ExportPipeline::start(settings.queue, exporters, Arc::clone(&ledger));
        until("delivered", || ledger.spool.snapshot().exported == 500).await;
        drain(pipeline).await;
        assert_eq!(counts(&ledger.spool.snapshot()), (500, 500, 0));
        let times = received(&collector);
        assert_eq!(times.len(), 500, "{protocol}");
        assert!(times.values().all(|times| *times == 1), "{protocol}");
    }
}

/// Scenario: each answer takes a second while spans come as fast as memory takes them. Guarantee:
/// the disk takes what memory cannot, nothing is lost.
#[tokio::test]
async fn a_slow_collector_loses_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let late = [Answer::Late(Duration::from_secs(1)); 2];
    let collector = collector("http/protobuf", listener, &late).await;
    let (pipeline, ledger) = start(&settings("http/protobuf", address, Some(directory.path())));
    submit(&pipeline, &ledger, 0, 1000).await;
    until("all settled", || {
        ledger.spans.snapshot().pending == 0 && ledger.spool.snapshot().pending == 0
    })
    .await;
    drain(pipeline).await;
    assert_eq!(counts(&ledger.spans.snapshot()), (1000, 1000, 0));
    assert!(ledger.spool.snapshot().seen > 0, "the disk was used");
    let times = received(&collector);
    assert_eq!(times.len(), 1000);
    assert!(times.values().all(|times| *times == 1));
}

/// What a backend says to messages from disk is counted in the `spool` stage.
#[tokio::test]
async fn refusals_of_what_was_on_disk_are_counted_there() {
    for (protocol, script, rejected) in [
        (
            "http/protobuf",
            [Answer::Http(503, None), Answer::Reject(3)],
            3,
        ),
        (
            "http/json",
            [Answer::Http(503, None), Answer::Http(400, None)],
            10,
        ),
        (
            "grpc",
            [Answer::Grpc(Code::Unavailable, None), Answer::Reject(3)],
            3,
        ),
        (
            "grpc",
            [
                Answer::Grpc(Code::Unavailable, None),
                Answer::Grpc(Code::ResourceExhausted, None),
            ],
            10,
        ),
    ] {
        let directory = tempfile::tempdir().expect("directory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let _collector = collector(protocol, listener, &script).await;
        let (pipeline, ledger) = start(&settings(protocol, address, Some(directory.path())));
        pipeline.sink().submit(spans(10));
        until("settled", || {
            let spool = ledger.spool.snapshot();
            spool.seen == 10 && spool.pending == 0
        })
        .await;
        drain(pipeline).await;
        let spool = ledger.spool.snapshot();
        assert_eq!(spool.exported, 10 - rejected, "{protocol} {script:?}");
        assert_eq!(spool.dropped, [("rejected", rejected)].into());
        assert_eq!(ledger.spans.snapshot().exported, 10);
    }
}

/// Scenario: the server takes requests up to a size only. Guarantee: all spans arrive, once each,
/// in parts, with and without a spool, and later requests are made small at once.
#[tokio::test]
async fn a_request_that_is_too_large_is_sent_in_parts() {
    for protocol in ["http/protobuf", "http/json"] {
        for spool in [false, true] {
            let directory = tempfile::tempdir().expect("directory");
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
            let address = listener.local_addr().expect("address");
            let script = [
                Answer::Http(413, None),
                Answer::Http(413, None),
                Answer::Http(413, None),
            ];
            let collector = collector(protocol, listener, &script).await;
            let spool = spool.then(|| directory.path());
            let (pipeline, ledger) = start(&settings(protocol, address, spool));
            pipeline.sink().submit(spans(40));
            until("settled", || ledger.spans.snapshot().pending == 0).await;
            drain(pipeline).await;
            assert_eq!(counts(&ledger.spans.snapshot()), (40, 40, 0), "{protocol}");
            // 40 refused, 20 refused, 10 refused; 5, 5, 10, 20 taken.
            let sizes: Vec<_> = collector.received().iter().map(|one| one.spans()).collect();
            assert_eq!(sizes, [40, 20, 10, 5, 5, 10, 20], "{protocol}");
        }
    }
}

/// Scenario: `otlp,zipkin`, and nobody listens for Zipkin. Guarantee: OTLP gets every span, at its
/// own pace; what Zipkin lost is counted for Zipkin.
#[tokio::test]
async fn one_that_is_down_takes_nothing_from_the_others() {
    let otlp = Collector::http(&[]).await;
    let nobody = TcpSocket::new_v4().expect("socket");
    nobody.bind(([127, 0, 0, 1], 0).into()).expect("bind");
    let nobody = nobody.local_addr().expect("address");
    let lookup = |name: &str| match name {
        "OTEL_TRACES_EXPORTER" => Some("otlp,zipkin".to_owned()),
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(format!("http://{}", otlp.address)),
        "OTEL_EXPORTER_ZIPKIN_ENDPOINT" => Some(format!("http://{nobody}/api/v2/spans")),
        "OTEL_BSP_SCHEDULE_DELAY" => Some("5".to_owned()),
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE" => Some("50".to_owned()),
        "OTEL_BSP_MAX_QUEUE_SIZE" => Some("200".to_owned()),
        _ => None,
    };
    let settings = ExportSettings::from_variables(&lookup, None).expect("settings");
    let (pipeline, ledger) = start(&settings);
    let stats = pipeline.stats();
    let process = process(42);
    for round in 0..20 {
        let numbers = round * 50..(round + 1) * 50;
        let batch = numbers.map(|number| span(number, &process)).collect();
        pipeline.sink().submit(batch);
        let sent = (round + 1) * 50;
        until("otlp has it", || stats[0].snapshot().spans == sent).await;
    }
    pipeline
        .drain(Instant::now() + Duration::from_millis(300))
        .await;
    assert_eq!(received(&otlp).len(), 1000);
    let (first, second) = (stats[0].snapshot(), stats[1].snapshot());
    assert_eq!((first.exporter, first.spans, first.lost), ("otlp", 1000, 0));
    assert_eq!(
        (second.exporter, second.spans, second.lost),
        ("zipkin", 0, 1000)
    );
    let counted = ledger.spans.snapshot();
    assert_eq!(
        (counted.seen, counted.exported, counted.pending),
        (1000, 0, 0)
    );
    // 200 waited in memory until the end, the rest found the queue full.
    assert_eq!(
        counted.dropped,
        [("queue_full", 800), ("shutdown_timeout", 200)].into()
    );
}
