//! The direct encoder against prost's structs, and its speed.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as ProtoValue;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span as ProtoSpan;
use prost::Message;

use super::collector::{Collector, Received};
use super::*;
use crate::export::encode::{MAX_MESSAGE_BYTES, TraceEncoder, span_attribute};
use crate::export::{ExportPipeline, ExportSettings, ResourceDefaults, exporters, proto};
use crate::telemetry::ledger::Ledger;
use crate::trace::Value;

fn defaults() -> Arc<ResourceDefaults> {
    let own = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Arc::new(ResourceDefaults::new(&[
        own("deployment.environment.name", "test"),
        own("service.name", "agent's"),
    ]))
}

#[test]
fn bytes_are_those_of_the_prost_structs() {
    #[track_caller]
    fn check(encoder: &mut TraceEncoder, spans: &[Span]) {
        let encoded = encoder.encode(spans);
        let expected = proto::request(spans, &defaults());
        assert_eq!(encoded.spans, spans.len());
        assert_eq!(
            ExportTraceServiceRequest::decode(encoded.message.clone()).expect("protobuf"),
            expected
        );
        assert_eq!(encoded.message, expected.encode_to_vec());
    }
    let mut encoder = TraceEncoder::new(defaults(), MAX_MESSAGE_BYTES);
    check(&mut encoder, &[]);
    check(&mut encoder, &spans(1));
    check(&mut encoder, &spans(300));
    // Interleaved processes, more than once, with the buffers of the calls before.
    let processes: Vec<_> = (0..70).map(process).collect();
    let mixed: Vec<_> = (0..500)
        .map(|number| span(number, &processes[number as usize * 7 % 70]))
        .collect();
    check(&mut encoder, &mixed);
    check(&mut encoder, &mixed[..3]);
    // The same facts behind another pointer are another resource: identity is the pointer.
    check(&mut encoder, &[span(1, &process(1)), span(2, &process(1))]);
    let mut odd = span(5, &processes[0]);
    (
        odd.start_unix_ns,
        odd.end_unix_ns,
        odd.exchange.request.method,
    ) = (0, 0, "".into());
    check(&mut encoder, &[odd]);
}

#[test]
fn span_attributes_are_those_of_prost() {
    #[track_caller]
    fn check(name: &str, value: Value<'_>, expected: ProtoValue) {
        let mut bytes = Vec::new();
        span_attribute(&mut bytes, name, &value);
        let value = Some(AnyValue {
            value: Some(expected),
        });
        let attribute = KeyValue {
            key: name.to_owned(),
            value,
            ..KeyValue::default()
        };
        assert_eq!(
            bytes,
            ProtoSpan {
                attributes: vec![attribute],
                ..ProtoSpan::default()
            }
            .encode_to_vec()
        );
    }
    for text in [
        "",
        "x",
        &"y".repeat(127),
        &"z".repeat(128),
        &"ü".repeat(20_000),
    ] {
        check(
            "url.full",
            Value::Str(text.into()),
            ProtoValue::StringValue(text.to_owned()),
        );
    }
    let texts: [Box<str>; 3] = ["a".into(), "".into(), "b".repeat(300).into()];
    for texts in [&texts[..], &[]] {
        let values = texts.iter().map(|text| AnyValue {
            value: Some(ProtoValue::StringValue(text.to_string())),
        });
        let expected = ProtoValue::ArrayValue(ArrayValue {
            values: values.collect(),
        });
        check("http.request.header.x", Value::StrList(texts), expected);
    }
    for number in [0, 1, 127, 128, 65_535, -1, i64::MIN, i64::MAX] {
        check(
            "server.port",
            Value::Int(number),
            ProtoValue::IntValue(number),
        );
    }
}

#[test]
fn what_a_resource_says() {
    let request = proto::request(&spans(2), &defaults());
    let [resource_spans] = request.resource_spans.as_slice() else {
        panic!("one resource")
    };
    let attributes = &resource_spans
        .resource
        .as_ref()
        .expect("resource")
        .attributes;
    let names: Vec<_> = attributes
        .iter()
        .map(|attribute| attribute.key.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "service.name",
            "process.pid",
            "process.command_args",
            "host.name",
            "telemetry.distro.name",
            "telemetry.distro.version",
            "deployment.environment.name",
        ]
    );
    let [server, client] = resource_spans.scope_spans[0].spans.as_slice() else {
        panic!("two spans")
    };
    assert_eq!((server.flags, client.flags), (0x103, 0x303));
}

#[test]
fn messages_stop_at_their_bound_and_lose_nothing() {
    let processes: Vec<_> = (0..5).map(process).collect();
    let all: Vec<_> = (0..400)
        .map(|number| span(number, &processes[number as usize % 5]))
        .collect();
    for bound in [0, 700, 3_000, 20_000] {
        let mut encoder = TraceEncoder::new(defaults(), bound);
        let mut sent = 0;
        while sent < all.len() {
            let encoded = encoder.encode(&all[sent..]);
            assert!(
                encoded.spans == 1 || encoded.message.len() <= bound,
                "{} > {bound}",
                encoded.message.len()
            );
            let part = &all[sent..sent + encoded.spans];
            assert_eq!(
                encoded.message,
                proto::request(part, &defaults()).encode_to_vec()
            );
            sent += encoded.spans;
        }
        assert_eq!(sent, all.len());
    }
}

/// `cargo test --release -p tracer-agent --lib export::tests::encode -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, meaningful in release builds"]
fn measure_time_per_span() {
    const ROUNDS: u32 = 500;
    let processes: Vec<_> = (0..4).map(process).collect();
    let batch: Vec<_> = (0..2048)
        .map(|number| span(number, &processes[number as usize % 4]))
        .collect();
    let mut encoder = TraceEncoder::new(defaults(), MAX_MESSAGE_BYTES);
    let mut attributes = 0;
    batch[0].for_each_attribute(&mut |_, _| attributes += 1);
    let time = |run: &mut dyn FnMut() -> usize| {
        let bytes = run();
        let before = thread_cpu_ns();
        for _ in 0..ROUNDS {
            std::hint::black_box(run());
        }
        (
            (thread_cpu_ns() - before) / u64::from(ROUNDS) / 2048,
            bytes / 2048,
        )
    };
    let direct = time(&mut || encoder.encode(&batch).message.len());
    let structs = time(&mut || proto::request(&batch, &defaults()).encode_to_vec().len());
    println!("{attributes} attributes a span");
    println!("direct: {} ns and {} bytes a span", direct.0, direct.1);
    println!("structs: {} ns and {} bytes a span", structs.0, structs.1);
}

/// CPU time of this thread so far, nanoseconds: the first number of `schedstat`.
fn thread_cpu_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    stat.split(' ')
        .next()
        .and_then(|ns| ns.parse().ok())
        .expect("a number")
}

/// Everything from `submit` to the collector's answer, on one thread; the collector on another.
/// `cargo test --release -p tracer-agent --lib export::tests::encode -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, meaningful in release builds"]
fn measure_cpu_per_span_to_a_collector() {
    const SPANS: usize = 60_000;
    for (protocol, compression) in [
        ("grpc", "none"),
        ("grpc", "gzip"),
        ("http/protobuf", "none"),
        ("http/protobuf", "gzip"),
    ] {
        let (address_is, address) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("runtime").block_on(async {
                let collector = if protocol == "grpc" {
                    Collector::grpc(&[]).await
                } else {
                    Collector::http(&[]).await
                };
                address_is
                    .send(collector.address)
                    .expect("the test listens");
                stopped.await.expect("stop");
                collector
                    .received()
                    .iter()
                    .map(Received::spans)
                    .sum::<usize>()
            })
        });
        let endpoint = format!("http://{}", address.recv().expect("address"));
        let lookup = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.clone()),
            "OTEL_EXPORTER_OTLP_PROTOCOL" => Some(protocol.to_owned()),
            "OTEL_EXPORTER_OTLP_COMPRESSION" => Some(compression.to_owned()),
            "OTEL_BSP_MAX_QUEUE_SIZE" => Some("100000".to_owned()),
            _ => None,
        };
        let settings = ExportSettings::from_variables(&lookup, None).expect("settings");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let cpu_ns = runtime.expect("runtime").block_on(async {
            let exporters =
                exporters(&settings, || unreachable!("no console here")).expect("exporters");
            let ledger = Arc::new(Ledger::default());
            let pipeline = ExportPipeline::start(settings.queue, exporters, Arc::clone(&ledger));
            let sink = pipeline.sink();
            let mut pairs = Vec::new();
            let mut all = spans(SPANS).into_iter();
            while let (Some(one), Some(two)) = (all.next(), all.next()) {
                pairs.push(vec![one, two]);
            }
            let before = thread_cpu_ns();
            for pair in pairs {
                sink.submit(pair);
                if ledger.spans.snapshot().seen.is_multiple_of(2000) {
                    tokio::task::yield_now().await;
                }
            }
            pipeline
                .drain(tokio::time::Instant::now() + Duration::from_secs(30))
                .await;
            assert_eq!(ledger.spans.snapshot().exported, SPANS as u64);
            thread_cpu_ns() - before
        });
        stop.send(()).expect("the server waits");
        assert_eq!(server.join().expect("server"), SPANS);
        println!(
            "{protocol} {compression}: {} ns of CPU a span",
            cpu_ns / SPANS as u64
        );
    }
}
