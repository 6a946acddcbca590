//! Cleartext HTTP/2 with prior knowledge, live: h2load and curl against nginx and Go net/http,
//! many streams at once and bodies of megabytes. Exactly one SERVER and one CLIENT span each, right paths and statuses.

use std::process::Command;
use std::time::Duration;

use tracer_tests::agent::Start;
use tracer_tests::finish::finish;
use tracer_tests::process;
use tracer_tests::receiver::Receiver;
use tracer_tests::scrape;
use tracer_tests::services::{Service, build, nginx};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};

const REQUESTS: usize = 50_000;
const BIG: usize = 3_000_000;

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output();
    found.is_ok_and(|output| output.status.success())
}

fn path(span: &Span) -> Option<&str> {
    span.text("url.path").or_else(|| {
        let full = span.text("url.full")?;
        full.splitn(4, '/').nth(3).map(|_| ())?;
        full.find("://").and_then(|at| {
            full[at + 3..]
                .find('/')
                .map(|slash| &full[at + 3 + slash..])
        })
    })
}

/// How many spans of a kind have this path and status.
fn count(spans: &[Span], kind: Kind, wanted: &str, status: i64) -> usize {
    spans
        .iter()
        .filter(|span| span.kind == kind && path(span) == Some(wanted))
        .filter(|span| span.int("http.response.status_code") == Some(status))
        .filter(|span| span.text("network.protocol.version") == Some("2"))
        .count()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect(program);
    assert!(output.status.success(), "{program}: {output:?}");
}

/// h2load with 8 connections of 100 streams each for one path, and curl for two more.
fn check(test: &str, start: impl FnOnce() -> Result<Service, String>) {
    let Some(session) = Session::begin(test) else {
        return;
    };
    for program in ["h2load", "curl"] {
        if !has(program) {
            return skipped(test, &format!("no {program} on this machine"));
        }
    }
    let server = match start() {
        Ok(server) => server,
        Err(reason) => return skipped(test, &reason),
    };
    let address = server.address;
    let receiver = Receiver::start();
    // The load takes a second; this receiver, which keeps every span, takes longer than that.
    let agent = Start::new()
        .export_http(&receiver)
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "131072")
        .ready();
    let url = |kind: &str| format!("http://{address}/{kind}/{}", session.run);
    let requests = REQUESTS.to_string();
    run(
        "h2load",
        &["-n", &requests, "-c", "8", "-m", "100", &url("small")],
    );
    for kind in ["missing", "big"] {
        let plain = ["-s", "--http2-prior-knowledge", "-o", "/dev/null"];
        run("curl", &[&plain[..], &[&url(kind)]].concat());
    }
    // 100 streams at a time ask for the same: their numbers alone tell the service graph who is who.
    let paired = process::poll_until(Duration::from_secs(120), || {
        let samples = scrape::parse(&agent.metrics()).expect("a page of samples");
        let edge = [("client", "h2load")];
        let paired = scrape::sum(&samples, "traces_service_graph_request_total", &edge);
        let waits = scrape::sum(
            &samples,
            "tracer_agent_graph_ends_total",
            &[("outcome", "ambiguous")],
        );
        println!("{paired} paired, {waits} ambiguous");
        (paired >= 0.9 * REQUESTS as f64).then_some(paired)
    });
    assert!(
        paired.is_some_and(|paired| paired <= REQUESTS as f64),
        "{paired:?}"
    );
    let marker = session.run.clone();
    let (spans, _) = finish(agent, &receiver, &marker, 2 * (REQUESTS + 2));
    for kind in [Kind::Server, Kind::Client] {
        let of =
            |what: &str, status| count(&spans, kind, &format!("/{what}/{}", session.run), status);
        let found = (of("small", 200), of("missing", 404), of("big", 200));
        assert_eq!(found, (REQUESTS, 1, 1), "{kind:?}");
    }
    assert_eq!(spans.len(), 2 * (REQUESTS + 2), "none extra");
}

#[test]
fn nginx_h2load_and_curl() {
    check("http2::nginx_h2load_and_curl", || {
        nginx::start("http2.conf.in", &[("big", BIG)], &[])
    });
}

#[test]
fn go_h2load_and_curl() {
    check("http2::go_h2load_and_curl", || {
        Service::unnamed("go-http2", Command::new(build::go("go-http2")?))
    });
}
