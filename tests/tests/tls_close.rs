//! HTTPS, live: responses without a length, which end when their session does.

use std::process::Command;

use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{python, source};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};
use tracer_tests::tls::{Certificate, Client, is_https, path, start};

/// Requests of each way.
const EACH: usize = 50;
/// See `closing.py`; how many of each.
const WAYS: [(&str, usize); 4] = [
    ("notify", EACH),
    ("abrupt", EACH),
    ("half", 1),
    ("memory", EACH),
];

/// Scenario: a session ends with close_notify or without; its socket is closed at once, or much later.
/// Guarantees: one span for each request and end, with its status and without an error (but for a client
/// whose response ended without close_notify: it may have been cut off, RFC 9112 section 9.8); where the
/// socket outlives the session the span does not last as long.
#[test]
fn responses_end_with_their_session() {
    let Some(session) = Session::begin("tls_close::responses_end_with_their_session") else {
        return;
    };
    let tag = session.run.as_str();
    let started = Certificate::new().and_then(|certificate| {
        let mut command = Command::new(python());
        command.arg(source("tls/closing.py"));
        command.args(certificate.arguments());
        command.args([tag, &EACH.to_string()]);
        Ok((Client::start(command)?, certificate))
    });
    let (mut program, _certificate) = match started {
        Ok(started) => started,
        Err(reason) => return skipped("tls_close", &reason),
    };
    let receiver = Receiver::start();
    let agent = start(&receiver).ready_for_tls();
    program.go();
    let ended: u64 = program.line().parse().expect("a time");
    program.end();
    let count = WAYS.iter().map(|(_, count)| 2 * count).sum();
    let (spans, stopped) = finish(agent, &receiver, tag, count);
    let mut wrong = Vec::new();
    for (way, count) in WAYS {
        let prefix = format!("/{tag}/{way}/");
        for kind in [Kind::Client, Kind::Server] {
            let is_own = |span: &&Span| span.kind == kind && path(span).starts_with(&prefix);
            let own: Vec<&Span> = spans.iter().filter(is_own).collect();
            let may_be_cut_off = way == "abrupt" && kind == Kind::Client;
            let is_right = |span: &Span| {
                span.int("http.response.status_code") == Some(200)
                    && is_https(span)
                    && (may_be_cut_off || (!span.error && span.text("error.type").is_none()))
                    && span.text("network.peer.address") == Some("127.0.0.1")
            };
            let bad = own.iter().find(|span| !is_right(span));
            if own.len() != count || bad.is_some() {
                wrong.push(format!("{way} {kind:?}: {} of {count}, {bad:?}", own.len()));
            }
            if let Some(late) = own.iter().find(|span| way == "half" && span.end_ns > ended) {
                let late_ms = (late.end_ns - ended) / 1_000_000;
                wrong.push(format!("{way} {kind:?} ends {late_ms} ms late"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", stopped.stderr);
    assert_eq!(spans.len(), count, "none extra");
}
