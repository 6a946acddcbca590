//! HTTPS, live: real servers and clients of several TLS libraries, each pair with 2,000 requests over
//! 16 connections. Exactly one CLIENT and one SERVER span for each request, with its path, status,
//! scheme, process and the right peer; nothing twice.

use std::process::Command;

use tracer_tests::agent::Start;
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::build;
use tracer_tests::session::{Session, skipped};
use tracer_tests::tls::{Certificate, Client, Pair, Program, Sent, seen_into, start};

/// Clients and servers. Where one end is not seen the other one is, exactly.
const PAIRS: [(Program, Program); 9] = [
    (Program::Requests, Program::PythonSsl),
    (Program::Aiohttp, Program::Aiohttp),
    (Program::Requests, Program::Uvicorn),
    (Program::Requests, Program::Gunicorn),
    (Program::Node, Program::Node),
    (Program::Go, Program::Go),
    (Program::GoStripped, Program::GoStripped),
    (Program::NativeTls, Program::Rustls),
    (Program::Rustls, Program::NativeTls),
];

fn pairs() -> impl Iterator<Item = Pair> {
    PAIRS
        .into_iter()
        .map(|(client, server)| Pair { client, server })
}

/// Scenario: the agent runs; pairs of server and client start, one after the other. Guarantees:
/// exact spans on both sides for OpenSSL on sockets, on memory and on callbacks, inside of an
/// executable, and Go's crypto/tls with and without symbols; none of rustls. Servers' spans are below
/// their clients', though no header says so.
#[test]
fn pairs_that_start_later() {
    let Some(session) = Session::begin("tls::pairs_that_start_later") else {
        return;
    };
    let certificate = match Certificate::new() {
        Ok(certificate) => certificate,
        Err(reason) => return skipped("tls", &reason),
    };
    let receiver = Receiver::start();
    let agent = start(&receiver).ready_for_tls();
    let mut sent = Vec::new();
    for pair in pairs() {
        match pair.start(&session.run, &certificate) {
            Ok(ready) => sent.push((pair, ready.run(&agent))),
            Err(reason) => skipped(&format!("tls {}", pair.name()), &reason),
        }
    }
    let all: Vec<Sent> = sent.iter().map(|(_, sent)| sent.clone()).collect();
    let count = all.iter().map(Sent::spans).sum();
    let (spans, stopped) = finish(agent, &receiver, &session.run, count);
    Sent::check_all(&all, &spans, &stopped.stderr);
    for (pair, sent) in &sent {
        sent.check_joined(&spans, pair.joined());
    }
}

/// Scenario: the same programs run before the agent comes, and connect afterwards. Guarantees: the
/// same.
#[test]
fn pairs_that_ran_before() {
    let Some(session) = Session::begin("tls::pairs_that_ran_before") else {
        return;
    };
    let certificate = match Certificate::new() {
        Ok(certificate) => certificate,
        Err(reason) => return skipped("tls", &reason),
    };
    let mut ready = Vec::new();
    for pair in pairs() {
        match pair.start(&session.run, &certificate) {
            Ok(pair) => ready.push(pair),
            Err(reason) => skipped(&format!("tls {}", pair.name()), &reason),
        }
    }
    let receiver = Receiver::start();
    let agent = start(&receiver).ready_for_tls();
    let sent: Vec<Sent> = ready.into_iter().map(|pair| pair.run(&agent)).collect();
    let count = sent.iter().map(Sent::spans).sum();
    let (spans, stopped) = finish(agent, &receiver, &session.run, count);
    Sent::check_all(&sent, &spans, &stopped.stderr);
}

/// Scenario: 100,000 calls with probes attached, in a program that a seccomp filter would end for any
/// call it does not know, and in a Go program whose stacks move within the probed calls. Guarantees:
/// both end well, having compared every byte.
#[test]
fn strict_and_moving_programs_are_unharmed() {
    const CALLS: &str = "100000";
    let Some(_session) = Session::begin("tls::strict_and_moving_programs_are_unharmed") else {
        return;
    };
    let certificate = match Certificate::new() {
        Ok(certificate) => certificate,
        Err(reason) => return skipped("tls", &reason),
    };
    let agent = Start::new()
        .env("OTEL_TRACES_EXPORTER", "none")
        .ready_for_tls();
    let started = build::strict().and_then(|program| {
        let mut command = Command::new(program);
        command.args(certificate.arguments()).arg(CALLS);
        Client::start(command)
    });
    match started {
        Ok(client) => client.finish(),
        Err(reason) => skipped("tls strict", &reason),
    }
    let started = build::go_tls("").and_then(|program| {
        let mut command = Command::new(&program);
        command.arg("grow").args(certificate.arguments()).arg(CALLS);
        Ok((Client::start(command)?, program))
    });
    match started {
        Ok((client, program)) => {
            seen_into(&agent, &program);
            client.finish();
        }
        Err(reason) => skipped("tls moving", &reason),
    }
    let drops = agent.metrics();
    let busy = r#"kernel_drops_total{reason="tls_busy"} 0"#;
    assert!(drops.contains(busy), "{drops}");
    agent.stop();
}
