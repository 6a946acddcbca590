//! Scenario: spans of processes that come and go. Guarantees: each is counted once in the series that
//! the conventions name, memory has a bound, and ends are joined only where that is certain.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::export::tests::{process, span};
use crate::meta::{AttributeValue, Process};
use crate::protocol::{Connection, Endpoint, Grpc, Response, Role};
use crate::telemetry::exposition::{Format, Page};
use crate::trace::semconv::metric::{Instrument, MetricAttributes};
use crate::trace::{Span, SpanKind};

fn recorder() -> (Recorder, Arc<Recorded>) {
    let recorded = Arc::new(Recorded::default());
    (
        Recorder::new(Arc::clone(&recorded), Duration::from_secs(60)),
        recorded,
    )
}

/// A server's span of `process` that took `duration_ns`.
fn served(process: &Arc<Process>, duration_ns: u64) -> Span {
    let mut span = span(2, process);
    span.end_unix_ns = span.start_unix_ns + duration_ns;
    span
}

fn named(pid: u32, name: &str) -> Arc<Process> {
    Arc::new(Process {
        pid,
        service_name: name.into(),
        attributes: vec![
            ("service.name".into(), AttributeValue::Str(name.into())),
            ("service.namespace".into(), AttributeValue::Str("eu".into())),
            (
                "service.instance.id".into(),
                AttributeValue::Str(format!("i{pid}").into()),
            ),
        ],
    })
}

fn total(recorded: &Recorded) -> u64 {
    let all = recorded.processes();
    let series = all.iter().flat_map(|process| process.series());
    series.map(|series| series.histogram.counts().count()).sum()
}

#[test]
fn attributes_are_those_of_the_conventions() {
    #[track_caller]
    fn check(change: impl Fn(&mut Span), instrument: Instrument, expected: &str) {
        let mut span = span(2, &process(1));
        change(&mut span);
        let attributes = MetricAttributes::of(&span);
        assert_eq!(attributes.instrument, instrument);
        let mut text = Vec::new();
        attributes.for_each(|name, value| text.push(format!("{name}={value:?}")));
        let text = text.join(" ").replace("Str(\"", "").replace("\")", "");
        assert_eq!(text.replace("Int(", "").replace(')', ""), expected);
        assert_eq!(attributes.clone().into_owned(), attributes);
    }
    let client = |span: &mut Span| {
        span.kind = SpanKind::Client;
        span.exchange.role = Role::Client;
    };
    let grpc = |span: &mut Span, status| {
        span.exchange.request.target = "/pkg.Shop/Buy".into();
        span.exchange.grpc = Some(Grpc {
            status,
            timeout_ns: None,
            request_messages: None,
            response_messages: None,
        });
    };
    let status = |span: &mut Span, status| {
        span.exchange.response = Some(Response {
            status,
            body_bytes: None,
        });
    };
    check(
        |_| {},
        Instrument::HttpServer,
        "http.request.method=GET http.response.status_code=200 url.scheme=http network.protocol.version=1.1",
    );
    check(
        |span| {
            span.exchange.request.method = "BREW".into();
            status(span, 503);
        },
        Instrument::HttpServer,
        "http.request.method=_OTHER http.response.status_code=503 error.type=503 url.scheme=http network.protocol.version=1.1",
    );
    check(
        |span| {
            client(span);
            status(span, 404);
        },
        Instrument::HttpClient,
        "http.request.method=GET http.response.status_code=404 error.type=404 network.protocol.version=1.1 server.address=shop.example server.port=8080",
    );
    check(
        |span| grpc(span, Some(0)),
        Instrument::RpcServer,
        "rpc.system.name=grpc rpc.method=pkg.Shop/Buy rpc.status_code=OK",
    );
    check(
        |span| {
            client(span);
            grpc(span, Some(12));
        },
        Instrument::RpcClient,
        "rpc.system.name=grpc rpc.method=_OTHER rpc.status_code=UNIMPLEMENTED error.type=UNIMPLEMENTED server.address=shop.example server.port=8080",
    );
}

#[test]
fn every_span_is_counted_once_in_its_series() {
    let (mut recorder, recorded) = recorder();
    let (one, two) = (named(1, "a"), named(2, "b"));
    for _ in 0..3 {
        recorder.record(&served(&one, 1_000_000));
    }
    recorder.record(&served(&one, 30_000_000));
    recorder.record(&served(&two, 1));
    let processes = recorded.processes();
    assert_eq!(processes.len(), 2);
    let series = processes[0].series();
    assert_eq!(series.len(), 1, "status and method are the same");
    let counts = series[0].histogram.counts();
    assert_eq!((counts.buckets[0], counts.buckets[3]), (3, 1));
    assert_eq!(counts.sum_ns, 33_000_000);
    assert_eq!(total(&recorded), 5);
}

#[test]
fn the_page_has_identity_exemplars_and_cumulated_buckets() {
    let (mut recorder, recorded) = recorder();
    let shop = named(7, "shop");
    let mut kept = served(&shop, 8_000_000);
    recorder.record(&kept);
    recorder.exemplar(&kept);
    kept.flags = 0;
    kept.end_unix_ns = kept.start_unix_ns + 1;
    recorder.record(&kept);
    recorder.exemplar(&kept);
    let mut page = Page::new(Format::OpenMetrics);
    super::page::write(&mut page, &recorded);
    let page = page.finish();
    let labels = "job=\"eu/shop\",instance=\"i7\",service_name=\"shop\",http_request_method=\"GET\",\
                  http_response_status_code=\"200\",url_scheme=\"http\",network_protocol_version=\"1.1\"";
    for line in [
        "target_info{job=\"eu/shop\",instance=\"i7\",service_name=\"shop\"} 1".to_owned(),
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"0.005\"}} 1"),
        format!(
            "http_server_request_duration_seconds_bucket{{{labels},le=\"0.01\"}} 2 # {{trace_id=\"{}\",span_id=\"{}\"}} 0.008 1700000000.008",
            "07070707070707070000000000000002", "0000000000000003"
        ),
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
        format!("http_server_request_duration_seconds_count{{{labels}}} 2"),
        "# UNIT http_server_request_duration_seconds seconds".to_owned(),
    ] {
        assert!(
            page.lines().any(|found| found == line),
            "{line}\nnot in\n{page}"
        );
    }
    assert!(page.ends_with("# EOF\n"));
    assert_eq!(page.matches("trace_id=").count(), 1, "only sampled spans");
}

#[test]
fn sets_beyond_the_bound_overflow() {
    let (mut recorder, recorded) = recorder();
    let process = process(1);
    const SETS: u64 = 3000;
    for number in 0..SETS {
        let mut span = served(&process, 1);
        span.kind = SpanKind::Client;
        span.exchange.request.authority = Some(format!("h{number}:80").into());
        recorder.record(&span);
    }
    let series = recorded.processes()[0].series();
    assert_eq!(series.len(), 1001);
    let overflow = series
        .iter()
        .find(|series| series.key == SeriesKey::Overflow(Instrument::HttpClient))
        .expect("overflow");
    assert_eq!(overflow.histogram.counts().count(), SETS - 1000);
    assert_eq!(recorded.counts().overflowed, SETS - 1000);
    assert_eq!(total(&recorded), SETS);
}

#[test]
fn processes_expire_after_their_end_and_are_bounded() {
    let (mut recorder, recorded) = recorder();
    for pid in 1..=5000 {
        recorder.record(&served(&named(pid, "s"), 1));
        if pid % 2 == 0 {
            recorder.process_ended(pid, u64::from(pid));
        }
    }
    let counts = recorded.counts();
    assert_eq!((counts.processes, counts.evicted), (4096, 904));
    assert_eq!(counts.series, 4096);
    recorder.expire(recorder::KEEP_ENDED_NS + 5000);
    assert_eq!(recorded.counts().processes, 2500, "those that run");
    // The same facts made anew are the same process; other facts under its pid are another.
    recorder.record(&served(&named(1, "s"), 1));
    recorder.record(&served(&named(1, "t"), 1));
    assert_eq!(recorded.counts().processes, 2501);
    recorder.expire(2 * recorder::KEEP_ENDED_NS);
    assert_eq!(recorded.counts().processes, 2500, "the one before the exec");
}

/// Both ends of one exchange.
fn ends(client: &Arc<Process>, server: &Arc<Process>, at_ns: u64, stream: u32) -> (Span, Span) {
    let (here, there) = (
        Endpoint::Ip(([127, 0, 0, 1], 40_000).into()),
        Endpoint::Ip(([127, 0, 0, 1], 8080).into()),
    );
    let end = |kind, process: &Arc<Process>, local: &Endpoint, remote: &Endpoint, inset: u64| {
        let mut span = span(2, process);
        span.kind = kind;
        span.connection = Arc::new(Connection {
            local: local.clone(),
            remote: remote.clone(),
            ..(*span.connection).clone()
        });
        let exchange = &mut span.exchange;
        exchange.stream = stream;
        exchange.start_ns = at_ns + inset;
        exchange.response_start_ns = Some(at_ns + 100 - inset);
        exchange.end_ns = at_ns + 200;
        span
    };
    (
        end(SpanKind::Client, client, &here, &there, 0),
        end(SpanKind::Server, server, &there, &here, 10),
    )
}

#[test]
fn ends_are_joined_where_that_is_certain() {
    #[track_caller]
    fn check(what: &str, change: impl Fn(&mut Span, &mut Span), paired: u64) {
        for server_first in [true, false] {
            let (mut recorder, recorded) = recorder();
            let (mut client, mut server) = ends(&named(1, "web"), &named(2, "shop"), 1000, 0);
            change(&mut client, &mut server);
            let both = if server_first {
                [&server, &client]
            } else {
                [&client, &server]
            };
            for span in both {
                recorder.record(span);
            }
            recorder.expire(60_000_000_000);
            let counts = recorded.graph_counts();
            assert_eq!(counts.paired, paired, "{what}");
            assert_eq!(counts.unpaired, 2 - 2 * paired, "{what}");
        }
    }
    check("as it is", |_, _| {}, 1);
    check(
        "another port",
        |_, s| {
            s.connection = Arc::new(Connection {
                remote: Endpoint::Ip(([127, 0, 0, 1], 40_001).into()),
                ..(*s.connection).clone()
            });
        },
        0,
    );
    check(
        "another target",
        |_, s| s.exchange.request.target = "/x".into(),
        0,
    );
    check("another stream", |_, s| s.exchange.stream = 3, 0);
    check(
        "one stream, target seen at one end",
        |c, s| {
            (c.exchange.stream, s.exchange.stream) = (3, 3);
            s.exchange.request.target = "".into();
        },
        1,
    );
    check(
        "another status",
        |_, s| {
            s.exchange.response = Some(Response {
                status: 500,
                body_bytes: None,
            });
        },
        0,
    );
    check(
        "served before it was asked",
        |_, s| s.exchange.start_ns = 999,
        0,
    );
    check(
        "answered after the answer was read",
        |_, s| {
            s.exchange.response_start_ns = Some(1101);
        },
        0,
    );
    check(
        "asked after it was over",
        |_, s| {
            (s.exchange.start_ns, s.exchange.response_start_ns) = (2000, None);
        },
        0,
    );
    check("two servers", |_, s| s.kind = SpanKind::Client, 0);
}

#[test]
fn an_end_that_fits_two_others_is_left_alone() {
    let (mut recorder, recorded) = recorder();
    let (client, server) = ends(&named(1, "web"), &named(2, "shop"), 1000, 0);
    for span in [&client, &client, &server] {
        recorder.record(span);
    }
    let counts = recorded.graph_counts();
    assert_eq!((counts.paired, counts.ambiguous), (0, 1));
    assert!(recorded.edges().is_empty());
}

#[test]
fn edges_count_requests_failures_and_both_durations() {
    let (mut recorder, recorded) = recorder();
    let (web, shop) = (named(1, "web"), named(2, "shop"));
    for number in 0..10 {
        let (mut client, mut server) = ends(&web, &shop, number * 1000, 0);
        client.end_unix_ns = client.start_unix_ns + 20_000_000;
        server.end_unix_ns = server.start_unix_ns + 1_000_000;
        if number % 5 == 0 {
            for span in [&mut client, &mut server] {
                span.exchange.response = Some(Response {
                    status: 503,
                    body_bytes: None,
                });
            }
        }
        recorder.record(&server);
        recorder.record(&client);
    }
    let edges = recorded.edges();
    assert_eq!(edges.len(), 1);
    assert_eq!(edges[0].services, Some(("web".into(), "shop".into())));
    assert_eq!((edges[0].requests(), edges[0].failed()), (10, 2));
    assert_eq!(edges[0].client.counts().sum_ns, 200_000_000);
    assert_eq!(edges[0].server.counts().sum_ns, 10_000_000);
    let mut page = Page::new(Format::Text);
    super::page::write(&mut page, &recorded);
    let page = page.finish();
    let line = "traces_service_graph_request_failed_total{client=\"web\",server=\"shop\"} 2";
    assert!(page.lines().any(|found| found == line), "{page}");
}

#[test]
fn one_sided_traffic_has_a_bound() {
    let (mut recorder, recorded) = recorder();
    let (web, shop) = (named(1, "web"), named(2, "shop"));
    for number in 0..100_000 {
        let (client, _) = ends(&web, &shop, number * 1000, 0);
        recorder.record(&client);
    }
    let counts = recorded.graph_counts();
    assert_eq!((counts.paired, counts.unpaired), (0, 100_000 - 8192));
}

#[test]
#[ignore = "a measurement, run by hand"]
fn nanoseconds_per_exchange() {
    let (mut recorder, recorded) = recorder();
    const ROUNDS: u64 = 200_000;
    let pairs: Vec<(Span, Span)> = (0..8u32)
        .map(|n| ends(&named(n, "web"), &named(100 + n, "shop"), 0, 0))
        .collect();
    let started = Instant::now();
    let mut spans = 0u64;
    for round in 0..ROUNDS {
        for (client, server) in &pairs {
            // Both ends of each, and from time to time the end of a batch.
            recorder.record(server);
            recorder.exemplar(server);
            recorder.record(client);
            recorder.exemplar(client);
            spans += 2;
        }
        if round % 1000 == 0 {
            recorder.expire(round);
        }
    }
    let elapsed = started.elapsed();
    assert!(total(&recorded) == spans);
    println!(
        "{:.0} ns per exchange with example and service graph; {:?}",
        elapsed.as_nanos() as f64 / spans as f64,
        recorded.graph_counts()
    );
}
