//! Sampling end to end: what must be kept is there, what was left out is accounted for, and what
//! the kept spans say they stand for adds up to what was seen.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tracer_tests::agent::{Agent, Start};
use tracer_tests::hosts::TwoHosts;
use tracer_tests::http::Connection;
use tracer_tests::ledger::{Ledger, Stage};
use tracer_tests::process;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{self, Language, Service};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};

const ARRIVAL: Duration = Duration::from_secs(120);

/// Sends `count` requests over one connection each for so many threads.
fn ask(service: &Service, run: &str, what: &str, query: &str, count: usize, threads: usize) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut connection = Connection::open(service.address).expect("connect");
                for number in 0..count / threads {
                    let request = format!(
                        "GET /r/{run}-{what}-{thread}-{number}?{query} HTTP/1.1\r\nHost: x\r\n\r\n"
                    );
                    let answer = connection.exchange(&[request.as_bytes()], false);
                    answer.expect("an answer");
                }
            });
        }
    });
}

/// How many spans one stands for, by its `th`.
fn adjusted_count(span: &Span) -> f64 {
    let ot = span.trace_state.strip_prefix("ot=th:");
    let digits = ot.unwrap_or_else(|| panic!("no threshold: {:?}", span.trace_state));
    let threshold = u64::from_str_radix(&format!("{digits:0<14}"), 16).expect("hex digits");
    let range = (1u64 << 56) as f64;
    range / (range - threshold as f64)
}

/// The sum of what the spans stand for is `seen`, within five standard deviations.
fn assert_total(spans: &[Span], seen: u64) {
    let counts = spans.iter().map(adjusted_count);
    let (mut total, mut variance) = (0.0, 0.0);
    for count in counts {
        total += count;
        // (1 - p) / p², for spans that are kept independently of each other.
        variance += (1.0 - 1.0 / count) * count * count;
    }
    let error = f64::abs(total - seen as f64);
    let allowed = 5.0 * f64::sqrt(variance);
    assert!(error <= allowed, "{total} of {seen}, allowed {allowed}");
}

/// Stops the agent once it is quiet; everything that it saw is exported or sampled out.
fn settled(agent: Agent) -> Ledger {
    let ledger = agent.drained_ledger(ARRIVAL);
    assert_eq!(ledger.wrong_sums(), Vec::<String>::new());
    let stopped = agent.stop();
    assert_eq!(
        ledger.losses(&[]),
        Vec::<String>::new(),
        "{}",
        stopped.stderr
    );
    ledger
}

#[test]
fn errors_and_slow_ones_are_all_there_at_one_percent() {
    let test = "sampling::errors_and_slow_ones_are_all_there_at_one_percent";
    let Some(session) = Session::begin(test) else {
        return;
    };
    const PLAIN: usize = 10_000;
    const ERRORS: usize = 40;
    const SLOW: usize = 12;
    let run = &session.run;
    let service = Language::Rust.start().expect("the Rust service");
    let receiver = Receiver::start();
    let agent = Start::new()
        .export_http(&receiver)
        .arg("--include-port")
        .arg(service.address.port().to_string())
        .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        .env("OTEL_TRACES_SAMPLER_ARG", "0.01")
        .env("TRACER_SAMPLING_KEEP_ERRORS", "true")
        .env("TRACER_SAMPLING_KEEP_SLOWER_THAN_MS", "1000")
        .ready();
    ask(&service, run, "plain", "status=200&bytes=5", PLAIN, 4);
    ask(&service, run, "error", "status=500&bytes=5", ERRORS, 2);
    ask(&service, run, "slow", "status=200&delay_ms=1200", SLOW, 4);

    let (errors, slow) = (format!("{run}-error-"), format!("{run}-slow-"));
    let arrived = receiver.wait_count(&errors, 2 * ERRORS, ARRIVAL)
        && receiver.wait_count(&slow, 2 * SLOW, ARRIVAL);
    let ledger = settled(agent);
    let of = |marker: &str, kind| {
        let spans = receiver.spans_of(marker);
        spans.into_iter().filter(|span| span.kind == kind).count()
    };
    for (marker, count) in [(&errors, ERRORS), (&slow, SLOW)] {
        for kind in [Kind::Server, Kind::Client] {
            assert_eq!(of(marker, kind), count, "{marker} {kind:?} {arrived}");
        }
    }
    for span in receiver.spans_of(&errors) {
        assert_eq!(span.trace_state, "ot=th:0", "stands for itself: {span:?}");
    }
    let spans = receiver.spans_of(run);
    let Stage {
        seen,
        exported,
        sampled_out,
        ..
    } = ledger.stage("exchanges");
    assert_eq!(seen, 2 * (PLAIN + ERRORS + SLOW) as u64);
    assert_eq!(exported, spans.len() as u64);
    assert_eq!(sampled_out, seen - exported);
    // On a machine that stood still a plain one may have been slow as well.
    let by_ratio = spans.iter().filter(|span| adjusted_count(span) > 1.0);
    assert!((60..400).contains(&by_ratio.count()), "{}", spans.len());
    assert_total(&spans, seen);
}

#[test]
fn a_decision_that_comes_with_the_request_is_followed() {
    let test = "sampling::a_decision_that_comes_with_the_request_is_followed";
    let Some(session) = Session::begin(test) else {
        return;
    };
    let service = Language::Rust.start().expect("the Rust service");
    let receiver = Receiver::start();
    // The default sampler.
    let agent = Start::new()
        .export_http(&receiver)
        .arg("--include-port")
        .arg(service.address.port().to_string())
        .ready();
    let mut connection = Connection::open(service.address).expect("connect");
    for number in 0..20 {
        let flags = number % 2;
        let request = format!(
            "GET /r/{}-{flags}-{number} HTTP/1.1\r\nHost: x\r\n\
             traceparent: 00-4bf92f3577b34da6a3ce929d0e0e{number:04x}-00f067aa0ba902b7-0{flags}\r\n\r\n",
            session.run
        );
        let answer = connection.exchange(&[request.as_bytes()], false);
        answer.expect("an answer");
    }
    assert!(receiver.wait_count(&format!("{}-1-", session.run), 20, ARRIVAL));
    let ledger = settled(agent);
    assert_eq!(receiver.spans_of(&format!("{}-0-", session.run)), []);
    let Stage {
        exported,
        sampled_out,
        ..
    } = ledger.stage("exchanges");
    assert_eq!((exported, sampled_out), (20, 20));
}

/// A Python program on one of the hosts.
fn python(hosts: &TwoHosts, host: usize, program: &str) -> Command {
    let mut command = hosts.command(host);
    command
        .arg(services::python())
        .arg(services::source("netns").join(program));
    command
}

/// Ended when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        process::end(&mut self.0);
    }
}

/// Each agent sees one side only, as on two hosts, and nothing but trace ids goes from one to the
/// other: they keep the same traces nevertheless.
#[test]
fn two_agents_keep_the_same_traces() {
    let test = "sampling::two_agents_keep_the_same_traces";
    let Some(session) = Session::begin(test) else {
        return;
    };
    let hosts = match TwoHosts::make() {
        Ok(hosts) => hosts,
        Err(reason) => return skipped(test, &format!("no network namespaces: {reason}")),
    };
    const REQUESTS: usize = 2000;
    let mut server = python(&hosts, 0, "server.py");
    server.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = Ended(server.spawn().expect("the server"));
    let output = server.0.stdout.take().expect("its output");
    let port = process::first_line(output, ARRIVAL).expect("its port");

    let side = |program: &str| {
        let receiver = Receiver::start();
        let agent = Start::new()
            .export_http(&receiver)
            .arg("--include-cmdline")
            .arg(format!("netns/{program}"))
            .env("OTEL_TRACES_SAMPLER", "traceidratio")
            .env("OTEL_TRACES_SAMPLER_ARG", "0.1")
            .ready();
        (receiver, agent)
    };
    let (at_server, server_agent) = side("server.py");
    let (at_client, client_agent) = side("client.py");
    let mut client = python(&hosts, 1, "client.py");
    client
        .args([TwoHosts::ADDRESSES[0], port.trim()])
        .args([&REQUESTS.to_string(), &session.run]);
    process::run(&mut client).expect("the client");

    let seen = |agent: &Agent| {
        process::poll_until(ARRIVAL, || {
            let exchanges = agent.ledger().stage("exchanges");
            (exchanges.seen == REQUESTS as u64 && exchanges.pending == 0).then_some(())
        })
    };
    assert!(seen(&server_agent).is_some(), "{:?}", server_agent.ledger());
    assert!(seen(&client_agent).is_some(), "{:?}", client_agent.ledger());
    settled(server_agent);
    settled(client_agent);
    let traces = |receiver: &Receiver, kind| {
        let spans = receiver.spans_of(&session.run);
        assert!(spans.iter().all(|span| span.kind == kind), "one side only");
        assert_total(&spans, REQUESTS as u64);
        spans
            .into_iter()
            .map(|span| span.trace_id)
            .collect::<BTreeSet<_>>()
    };
    let (server, client) = (
        traces(&at_server, Kind::Server),
        traces(&at_client, Kind::Client),
    );
    assert!((100..320).contains(&server.len()), "{}", server.len());
    assert_eq!(server, client);
}

/// Settings that cannot be followed end the agent at once, with one line.
#[test]
fn bad_settings_are_refused() {
    if Session::begin("sampling::bad_settings_are_refused").is_none() {
        return;
    }
    let directory = tempfile::TempDir::new().expect("directory");
    let check = |variables: &[(&str, &str)], file: &str, expected: &str| {
        let path = directory.path().join("agent.yaml");
        let mut written = std::fs::File::create(&path).expect("create");
        written.write_all(file.as_bytes()).expect("write");
        let output = config(&["config", "print", "--config"], Some(&path), variables);
        assert_eq!(output.0, Some(2), "{expected}: {}", output.1);
        assert!(output.1.contains(expected), "{expected}: {}", output.1);
        assert_eq!(output.1.lines().count(), 1, "{}", output.1);
    };
    let sampler = "OTEL_TRACES_SAMPLER";
    let argument = "OTEL_TRACES_SAMPLER_ARG";
    check(
        &[(sampler, "jaeger_remote")],
        "",
        "OTEL_TRACES_SAMPLER: `jaeger_remote` is unknown",
    );
    for ratio in ["1.5", "-0.1", "nan", "half", "inf"] {
        let variables = [(sampler, "traceidratio"), (argument, ratio)];
        let expected = format!("OTEL_TRACES_SAMPLER_ARG: `{ratio}` is not a ratio");
        check(&variables, "", &expected);
    }
    check(
        &[],
        "sampling:\n  rules:\n    - service: a\n",
        "agent.yaml line 3: sampling.rules: the rule says nothing",
    );
    check(
        &[],
        "routes:\n  patterns:\n    - /a\n    - b\n",
        "agent.yaml line 4: routes.patterns: `b`",
    );
    let (status, stderr) = config(
        &["config", "check"],
        None,
        &[(sampler, "always_on"), (argument, "x")],
    );
    assert_eq!(status, Some(0), "{stderr}");
    let (status, stderr) = config(&["config", "check"], None, &[(sampler, "none")]);
    assert_eq!(status, Some(2), "{stderr}");
}

fn config(
    arguments: &[&str],
    file: Option<&Path>,
    variables: &[(&str, &str)],
) -> (Option<i32>, String) {
    let output = Command::new(tracer_tests::agent::binary())
        .args(arguments)
        .args(file)
        .envs(variables.iter().copied())
        .output()
        .expect("start the agent");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), stderr)
}
