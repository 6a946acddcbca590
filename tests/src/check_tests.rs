//! The comparison itself can fail: right spans pass, and each single falsehood is found.

use super::*;
use crate::span::{Attribute, Via};

const SERVER_PID: u32 = 41;
const DRIVER_PID: u32 = 42;

fn report() -> Report {
    let records = [("GET", 200), ("POST", 404), ("PUT", 503)]
        .into_iter()
        .enumerate()
        .map(|(number, (method, status))| Record {
            method: method.to_owned(),
            path: format!("/r/x-{number}"),
            query: format!("status={status}&bytes=1&delay_ms=0"),
            status,
            duration_ns: 2_000_000,
            started_ns: 1_000_000_000,
            local_port: 5_000,
            reused: false,
            preopened: false,
            preempted: false,
            response_bytes: 1,
            error: None,
        });
    let address = "127.0.0.1:80".parse().expect("address");
    Report {
        pid: DRIVER_PID,
        address,
        run: "x".to_owned(),
        records: records.collect(),
    }
}

fn text(value: &str) -> Attribute {
    Attribute::Text(value.to_owned())
}

fn span(record: &Record, kind: Kind) -> Span {
    let server = kind == Kind::Server;
    let failed = record.status >= if server { 500 } else { 400 };
    let mut attributes = vec![
        ("http.request.method", text(&record.method)),
        (
            "http.response.status_code",
            Attribute::Int(record.status.into()),
        ),
        ("server.address", text("127.0.0.1")),
        ("server.port", Attribute::Int(80)),
        ("network.protocol.version", text("1.1")),
        (
            "network.peer.port",
            Attribute::Int(if server { 5_000 } else { 80 }),
        ),
    ];
    if server {
        attributes.extend([
            ("url.path", text(&record.path)),
            ("url.query", text(&record.query)),
            ("url.scheme", text("http")),
            ("user_agent.original", text(USER_AGENT)),
            ("client.address", text("127.0.0.1")),
        ]);
    } else {
        let full = format!("http://127.0.0.1:80{}?{}", record.path, record.query);
        attributes.push(("url.full", text(&full)));
    }
    if failed {
        attributes.push(("error.type", text(&record.status.to_string())));
    }
    let (service, pid) = if server {
        ("shop", SERVER_PID)
    } else {
        (SERVICE_NAME, DRIVER_PID)
    };
    let resource = [
        ("service.name", text(service)),
        ("process.pid", Attribute::Int(pid.into())),
    ];
    let owned = |(name, value): (&str, Attribute)| (name.to_owned(), value);
    Span {
        via: Via::Grpc,
        trace_id: "1".repeat(32),
        span_id: format!(
            "{:0>15}{}",
            record.path.replace("/r/x-", ""),
            u8::from(server) + 1
        ),
        parent: None,
        trace_state: String::new(),
        kind,
        name: record.method.clone(),
        start_ns: 1_000_000_000,
        end_ns: 1_001_900_000,
        error: failed,
        attributes: attributes.into_iter().map(owned).collect(),
        resource: resource.into_iter().map(owned).collect(),
        schema_url: "https://opentelemetry.io/schemas/1.44.0".to_owned(),
    }
}

fn spans(report: &Report) -> Vec<Span> {
    let both = |record| [span(record, Kind::Server), span(record, Kind::Client)];
    report.records.iter().flat_map(both).collect()
}

fn sides() -> Sides<'static> {
    Sides {
        server: Some(Server {
            name: "shop",
            pids: vec![40, SERVER_PID],
        }),
        client: true,
    }
}

#[test]
fn right_spans_pass() {
    let report = report();
    let mut spans = spans(&report);
    // Others' traffic is none of this run's business.
    spans.push(Span {
        attributes: [("url.path".to_owned(), text("/r/y-0"))].into(),
        ..spans[0].clone()
    });
    assert_eq!(mismatches(&spans, &report, &sides()), Vec::<String>::new());
    assert_run(&spans, &report, &sides());
}

#[test]
fn each_falsehood_is_found() {
    let check = |expected: &str, change: fn(&mut Vec<Span>)| {
        let report = report();
        let mut spans = spans(&report);
        change(&mut spans);
        let wrong = mismatches(&spans, &report, &sides());
        assert!(
            wrong.iter().any(|text| text.starts_with(expected)),
            "{expected}: {wrong:#?}"
        );
    };
    fn set(span: &mut Span, name: &str, value: Attribute) {
        span.attributes.insert(name.to_owned(), value);
    }
    // spans[0] and [1] are server and client of the 200, [4] and [5] of the 503.
    check("Server spans 0 instead of 1", |spans| drop(spans.remove(0)));
    check("Client spans 0 instead of 1", |spans| drop(spans.remove(1)));
    check("Client spans 2 instead of 1", |spans| {
        spans.push(spans[1].clone())
    });
    check("span id twice", |spans| spans.push(spans[1].clone()));
    check("extra Server span", |spans| {
        let mut extra = spans[0].clone();
        set(&mut extra, "url.path", text("/r/x-99"));
        spans.push(extra);
    });
    check("extra Other(1) span", |spans| {
        spans.push(Span {
            kind: Kind::Other(1),
            ..spans[0].clone()
        })
    });
    check("Server http.request.method", |spans| {
        set(&mut spans[0], "http.request.method", text("PUT"))
    });
    check("Server name", |spans| {
        spans[0].name = "GET /r/x-0".to_owned()
    });
    check("Server http.response.status_code", |spans| {
        set(
            &mut spans[0],
            "http.response.status_code",
            Attribute::Int(201),
        );
    });
    check("Server http.response.status_code", |spans| {
        set(&mut spans[0], "http.response.status_code", text("200"))
    });
    check("Server url.query", |spans| {
        set(&mut spans[0], "url.query", text("other"))
    });
    check("Client url.full", |spans| {
        set(&mut spans[1], "url.full", text("http://localhost/r/x-0"))
    });
    check("Client server.port", |spans| {
        set(&mut spans[1], "server.port", Attribute::Int(81))
    });
    check("Server network.peer.port", |spans| {
        set(&mut spans[0], "network.peer.port", Attribute::Int(1))
    });
    check("Server pid", |spans| {
        drop(
            spans[0]
                .resource
                .insert("process.pid".to_owned(), Attribute::Int(42)),
        )
    });
    check("Client pid", |spans| {
        drop(spans[1].resource.remove("process.pid"))
    });
    check("Client service.name", |spans| {
        drop(
            spans[1]
                .resource
                .insert("service.name".to_owned(), text("sh")),
        )
    });
    check("Server error.type", |spans| {
        set(&mut spans[0], "error.type", text("200"))
    });
    check("Server error.type", |spans| {
        drop(spans[4].attributes.remove("error.type"))
    });
    check("Client status", |spans| spans[3].error = false);
    check("Server status", |spans| spans[2].error = true);
    check("Client duration", |spans| spans[1].end_ns += 200_000);
    check("Client duration", |spans| spans[1].end_ns -= 1_100_000);
    check("Server duration", |spans| spans[0].end_ns += 1_300_000);
    check("Server end before start", |spans| spans[0].end_ns = 1);
    check("Client start", |spans| {
        spans[1].start_ns += 30_000_000;
        spans[1].end_ns += 30_000_000;
    });
    check("bad ids", |spans| spans[0].trace_id = "0".repeat(32));
    check("schema", |spans| spans[0].schema_url.clear());
}

#[test]
fn a_side_that_is_not_traced_must_have_none() {
    let report = report();
    let wrong = mismatches(
        &spans(&report),
        &report,
        &Sides {
            server: None,
            client: true,
        },
    );
    assert_eq!(
        wrong
            .iter()
            .filter(|text| text.starts_with("Server spans 1 instead of 0"))
            .count(),
        3,
        "{wrong:#?}"
    );
}
