//! Scenario: recorded spans, exported to a receiver that answers by a script. Guarantees: each message
//! says what the conventions and OTLP ask for, and no outage or temporality loses or doubles a count.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::StatusCode;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{HistogramDataPoint, Metric, metric};
use prost::Message as _;
use tokio::time::Instant;

use super::*;
use crate::export::settings::{ExportSettings, Temporality};
use crate::export::tests::{process, span};
use crate::export::{ExporterStats, ResourceDefaults};
use crate::meta::{AttributeValue, Process};
use crate::metrics::{Recorded, Recorder};
use crate::telemetry::snapshot::{Probes, Snapshot};

fn recorded() -> (Recorder, Arc<Recorded>) {
    let recorded = Arc::new(Recorded::default());
    let recorder = Recorder::new(Arc::clone(&recorded), Duration::from_secs(60));
    (recorder, recorded)
}

fn encoder(temporality: Temporality) -> Encoder {
    let agent = Process {
        pid: 1,
        service_name: "tracer-agent".into(),
        attributes: vec![(
            "service.name".into(),
            AttributeValue::Str("tracer-agent".into()),
        )],
    };
    Encoder::new(Arc::new(ResourceDefaults::new(&[])), agent, temporality, 5)
}

fn metrics(request: &ExportMetricsServiceRequest) -> impl Iterator<Item = &Metric> {
    let resources = request.resource_metrics.iter();
    let scopes = resources.flat_map(|resource| &resource.scope_metrics);
    scopes.flat_map(|scope| &scope.metrics)
}

fn points<'a>(
    request: &'a ExportMetricsServiceRequest,
    name: &'a str,
) -> impl Iterator<Item = &'a HistogramDataPoint> {
    metrics(request)
        .filter(move |metric| metric.name == name)
        .flat_map(move |metric| match &metric.data {
            Some(metric::Data::Histogram(histogram)) => histogram.data_points.as_slice(),
            _ => panic!("{name} is no histogram"),
        })
}

const SERVER: &str = "http.server.request.duration";

#[test]
fn one_resource_per_process_and_one_of_the_agent() {
    let (mut recorder, recorded) = recorded();
    let kept = span(2, &process(1));
    recorder.record(&kept);
    recorder.exemplar(&kept);
    recorder.record(&span(2, &process(2)));
    let own = Snapshot {
        probes: Probes {
            attached: 3,
            wanted: 4,
        },
        ..Snapshot::default()
    };
    let messages = encoder(Temporality::Cumulative).encode(&recorded, &own, u64::MAX);
    assert_eq!(messages.len(), 1);
    let request = &messages[0].request;
    assert_eq!(request.resource_metrics.len(), 3);
    let point = points(request, SERVER).next().expect("a point");
    assert_eq!((point.count, point.sum), (1, Some(0.001)));
    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
    assert_eq!(point.exemplars[0].span_id, kept.span_id.0);
    let names: BTreeMap<&str, &str> = metrics(request)
        .map(|metric| (&*metric.name, &*metric.unit))
        .collect();
    assert_eq!(names.get(SERVER), Some(&"s"));
    assert_eq!(names.get("tracer_agent_probes_attached"), Some(&"1"));
    assert_eq!(names.get("process_cpu"), Some(&"s"));
    assert_eq!(names.get("process_resident_memory"), Some(&"By"));
}

#[test]
fn json_has_hex_ids_text_numbers_and_no_nulls() {
    let (mut recorder, recorded) = recorded();
    let kept = span(2, &process(1));
    recorder.record(&kept);
    recorder.exemplar(&kept);
    let messages =
        encoder(Temporality::Cumulative).encode(&recorded, &Snapshot::default(), u64::MAX);
    let json = String::from_utf8(messages[0].json().expect("json")).expect("text");
    for part in [
        r#""spanId":"0000000000000003""#,
        r#""name":"http.server.request.duration""#,
        r#""bucketCounts":["1","#,
        r#""count":"1""#,
    ] {
        assert!(json.contains(part), "{part} not in {json}");
    }
    assert!(!json.contains("null"), "{json}");
    let back: ExportMetricsServiceRequest = serde_json::from_str(&json).expect("read back");
    assert_eq!(points(&back, SERVER).count(), 1);
}

#[test]
fn deltas_begin_anew_when_they_are_delivered() {
    #[track_caller]
    fn check(temporality: Temporality, deliveries: &[bool], counts: &[&[u64]]) {
        let (mut recorder, recorded) = recorded();
        let mut encoder = encoder(temporality);
        for (round, (delivered, counts)) in deliveries.iter().zip(counts).enumerate() {
            for _ in 0..=round {
                recorder.record(&span(2, &process(1)));
            }
            let unix_ns = u64::MAX - 1000 + round as u64;
            let mut messages = encoder.encode(&recorded, &Snapshot::default(), unix_ns);
            let message = messages.remove(0);
            let found: Vec<u64> = points(&message.request, SERVER)
                .map(|point| point.count)
                .collect();
            assert_eq!(found, *counts, "{temporality:?} round {round}");
            assert!(
                points(&message.request, SERVER)
                    .all(|point| point.start_time_unix_nano < point.time_unix_nano)
            );
            if *delivered {
                encoder.delivered(message);
            }
        }
        // Nothing new: a difference of nothing is not said.
        let messages = encoder.encode(&recorded, &Snapshot::default(), u64::MAX);
        let silent = messages
            .iter()
            .all(|message| points(&message.request, SERVER).count() == 0);
        assert_eq!(silent, temporality != Temporality::Cumulative);
    }
    check(
        Temporality::Cumulative,
        &[true, false, true],
        &[&[1], &[3], &[6]],
    );
    check(
        Temporality::Delta,
        &[true, false, true],
        &[&[1], &[2], &[5]],
    );
    check(
        Temporality::LowMemory,
        &[false, true, true],
        &[&[1], &[3], &[3]],
    );
}

#[test]
fn counters_follow_the_preference() {
    let own = |attached: u64| {
        let ledger = crate::telemetry::ledger::Ledger::default();
        ledger.spans.seen(attached);
        Snapshot {
            ledger: ledger.snapshot(),
            ..Snapshot::default()
        }
    };
    let seen = |message: &Message| {
        let metric = metrics(&message.request)
            .find(|metric| metric.name == "tracer_agent_stage_seen")
            .expect("the metric");
        let Some(metric::Data::Sum(sum)) = &metric.data else {
            panic!("no sum")
        };
        assert!(sum.is_monotonic);
        let values = sum.data_points.iter().map(|point| match point.value {
            Some(opentelemetry_proto::tonic::metrics::v1::number_data_point::Value::AsInt(
                value,
            )) => value,
            _ => panic!("no integer"),
        });
        values.sum::<i64>()
    };
    for (temporality, second) in [
        (Temporality::Cumulative, 7),
        (Temporality::LowMemory, 7),
        (Temporality::Delta, 4),
    ] {
        let mut encoder = encoder(temporality);
        let recorded = Recorded::default();
        let message = encoder.encode(&recorded, &own(3), 10).remove(0);
        assert_eq!(seen(&message), 3);
        encoder.delivered(message);
        let message = encoder.encode(&recorded, &own(7), 20).remove(0);
        assert_eq!(seen(&message), second, "{temporality:?}");
    }
}

#[test]
fn messages_are_bounded_and_hold_everything() {
    let (mut recorder, recorded) = recorded();
    const PROCESSES: u32 = 4096;
    for pid in 0..PROCESSES {
        let mut process = (*process(pid)).clone();
        let filler = AttributeValue::Str("x".repeat(1000).into());
        process.attributes.push(("filler".into(), filler));
        recorder.record(&span(2, &Arc::new(process)));
    }
    let messages =
        encoder(Temporality::Cumulative).encode(&recorded, &Snapshot::default(), u64::MAX);
    assert!(messages.len() > 1);
    let mut found = 0;
    for message in &messages {
        assert!(message.protobuf().len() < 4 * 1024 * 1024);
        found += points(&message.request, SERVER).count();
    }
    assert_eq!(found, PROCESSES as usize);
}

/// A receiver on a port of the kernel's choice that answers by a script, then with 200.
async fn receiver(script: &[u16]) -> (String, Arc<Mutex<Vec<ExportMetricsServiceRequest>>>) {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let script = Arc::new(Mutex::new(script.to_vec()));
    let store = Arc::clone(&taken);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bound");
    let address = listener.local_addr().expect("address");
    let take = move |body: Bytes| async move {
        let mut script = script.lock().expect("lock");
        if !script.is_empty() {
            let status = script.remove(0);
            return StatusCode::from_u16(status).expect("status");
        }
        let request = ExportMetricsServiceRequest::decode(body).expect("protobuf");
        store.lock().expect("lock").push(request);
        StatusCode::OK
    };
    let router = axum::Router::new().route("/v1/metrics", axum::routing::post(take));
    tokio::spawn(axum::serve(listener, router).into_future());
    (format!("http://{address}"), taken)
}

#[tokio::test]
async fn an_export_is_repeated_and_the_last_one_comes_at_the_end() {
    let (endpoint, taken) = receiver(&[503, 429]).await;
    let variables = |name: &str| match name {
        "OTEL_METRICS_EXPORTER" => Some("otlp".to_owned()),
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.clone()),
        "OTEL_METRIC_EXPORT_INTERVAL" => Some("50".to_owned()),
        _ => None,
    };
    let settings = ExportSettings::from_variables(&variables, None).expect("settings");
    let (mut recorder, recorded) = recorded();
    recorder.record(&span(2, &process(1)));
    let stats = Arc::new(ExporterStats::new("otlp_metrics"));
    let exporter = MetricsExporter::start(
        &settings.metrics,
        &[("env".to_owned(), "test".to_owned())],
        recorded,
        Arc::new(Snapshot::default),
        Arc::clone(&stats),
    );
    let exporter = exporter.expect("made").expect("asked for");
    let deadline = Instant::now() + Duration::from_secs(30);
    while taken.lock().expect("lock").is_empty() {
        assert!(Instant::now() < deadline, "nothing arrived");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    recorder.record(&span(2, &process(1)));
    exporter.finish(deadline).await;
    let taken = taken.lock().expect("lock");
    let last = taken.last().expect("taken");
    let counts: Vec<u64> = points(last, SERVER).map(|point| point.count).collect();
    assert_eq!(counts, [2]);
    let resource = last.resource_metrics[0].resource.as_ref().expect("one");
    assert!(resource.attributes.iter().any(|entry| entry.key == "env"));
    assert_eq!(stats.snapshot().failures, 2);
}
