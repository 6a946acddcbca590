//! The lines of `--otlp-file`.

use std::path::Path;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use tokio::time::Instant;

use super::*;
use crate::export::{
    ExportError, ExportPipeline, FileExporter, QueueSettings, ResourceDefaults, proto,
};
use crate::telemetry::ledger::{Ledger, StageSnapshot};

fn defaults() -> Arc<ResourceDefaults> {
    Arc::new(ResourceDefaults::new(&[]))
}

/// Writes spans to `path`, a batch of ten each.
async fn write(path: &Path, count: usize) -> StageSnapshot {
    let ledger = Arc::new(Ledger::default());
    let exporter = FileExporter::new(path, defaults()).expect("file");
    let settings = QueueSettings {
        max_export_batch_size: 10,
        ..QueueSettings::default()
    };
    let pipeline = ExportPipeline::start(settings, vec![Box::new(exporter)], Arc::clone(&ledger));
    pipeline.sink().submit(spans(count));
    pipeline
        .drain(Instant::now() + Duration::from_secs(5))
        .await;
    ledger.spans.snapshot()
}

#[tokio::test]
async fn one_request_per_line_appended() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("spans.jsonl");
    assert_eq!(write(&path, 25).await.exported, 25);
    assert_eq!(write(&path, 5).await.exported, 5);
    let text = std::fs::read_to_string(&path).expect("text");
    assert!(text.ends_with('\n'));
    let sizes = text.lines().map(|line| {
        let request: ExportTraceServiceRequest = serde_json::from_str(line).expect("OTLP/JSON");
        request.resource_spans[0].scope_spans[0].spans.len()
    });
    assert_eq!(sizes.collect::<Vec<_>>(), [10, 10, 5, 5]);
}

/// The JSON mapping of OTLP: hex ids in lower case, 64-bit integers as text, enums as numbers,
/// names in lowerCamelCase, no null.
#[test]
fn the_json_is_that_of_otlp() {
    let mut span = span(3, &process(42));
    (span.trace_id.0, span.parent) = ([0xAB; 16], Some(SpanId([0xCD; 8])));
    let json = proto::json(&[span], &defaults()).expect("json");
    let text = String::from_utf8(json.clone()).expect("text");
    assert!(!text.contains('\n') && !text.contains("null"), "{text}");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("json");
    let resource_spans = &json["resourceSpans"][0];
    assert_eq!(
        resource_spans["schemaUrl"],
        "https://opentelemetry.io/schemas/1.44.0"
    );
    let attributes = &resource_spans["resource"]["attributes"];
    assert_eq!(
        attributes[0],
        serde_json::json!({"key": "service.name", "value": {"stringValue": "shop"}})
    );
    assert_eq!(
        attributes[1],
        serde_json::json!({"key": "process.pid", "value": {"intValue": "42"}})
    );
    assert_eq!(
        attributes[2]["value"],
        serde_json::json!({"arrayValue": {"values": [
            {"stringValue": "shop"}, {"stringValue": ""}, {"stringValue": "--port=80"}]}})
    );
    let scope_spans = &resource_spans["scopeSpans"][0];
    assert_eq!(scope_spans["scope"]["name"], "tracer-agent");
    let span = &scope_spans["spans"][0];
    assert_eq!(span["traceId"], "ab".repeat(16));
    assert_eq!(span["spanId"], "0000000000000004");
    assert_eq!(span["parentSpanId"], "cd".repeat(8));
    assert_eq!(span["traceState"], "ot=th:0,vendor=x");
    assert_eq!(span["flags"], 0x103);
    assert_eq!(span["kind"], 3);
    assert_eq!(span["startTimeUnixNano"], "1700000000000000003");
    assert_eq!(span["endTimeUnixNano"], "1700000000001000003");
    assert!(span["status"]["code"].is_number());
}

#[tokio::test]
async fn a_full_disk_is_counted_and_a_bad_path_is_an_error() {
    let full = write(Path::new("/dev/full"), 15).await;
    assert_eq!((full.exported, full.pending), (0, 0));
    assert_eq!(full.dropped, [("write_failed", 15)].into());

    let error = FileExporter::new(Path::new("/nowhere/spans.jsonl"), defaults())
        .expect_err("no such directory");
    assert!(matches!(&error, ExportError::File { .. }));
    assert_eq!(
        error.to_string(),
        "--otlp-file /nowhere/spans.jsonl: cannot open it for writing"
    );
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn a_reader_that_stalls_does_not_hold_up_the_shutdown() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("pipe");
    let made = std::process::Command::new("mkfifo")
        .arg(&path)
        .status()
        .expect("mkfifo");
    assert!(made.success());
    // Opened for both, so that opening does not wait; nobody reads, and a pipe holds 64 KiB.
    let _reader = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("pipe");
    let ledger = Arc::new(Ledger::default());
    let exporter = FileExporter::new(&path, defaults()).expect("file");
    let pipeline = ExportPipeline::start(
        QueueSettings::default(),
        vec![Box::new(exporter)],
        Arc::clone(&ledger),
    );
    pipeline.sink().submit(spans(2000));
    let started = Instant::now();
    pipeline.drain(started + Duration::from_millis(200)).await;
    assert!(started.elapsed() < Duration::from_secs(2));
    let snapshot = ledger.spans.snapshot();
    assert_eq!((snapshot.exported, snapshot.pending), (0, 0));
    assert_eq!(snapshot.dropped, [("shutdown_timeout", 2000)].into());
}
