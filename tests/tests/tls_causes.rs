//! Parents inside of a process, over TLS: a service with threads that is called by HTTPS and calls by
//! HTTPS. The paths are the truth.

use std::collections::HashMap;
use std::process::Command;

use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{Service, python, source};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};
use tracer_tests::tls::{
    Certificate, Program, REQUESTS, is_https, path, seen_into_processes, start,
};

/// Calls that the service makes for a request.
const CALLS: usize = 2;

fn front(back: &Service, certificate: &Certificate) -> Result<Service, String> {
    let mut command = Command::new(python());
    command.arg(source("tls/front.py"));
    command.arg(back.address.port().to_string());
    command.args(certificate.arguments());
    Service::unnamed("front", command)
}

/// Who made a span, and what for: `/TAG/KIND/I` or `/TAG/back/I/N`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    kind: Kind,
    request: usize,
    /// Which of its calls; `None` for the request itself.
    call: Option<usize>,
}

impl Key {
    fn of(span: &Span, tag: &str) -> Option<Self> {
        let rest = path(span).strip_prefix(&format!("/{tag}/"))?;
        let words: Vec<&str> = rest.split('/').collect();
        let (request, call) = match words[..] {
            ["back", request, call] => (request, Some(call.parse().ok()?)),
            [_, request] => (request, None),
            _ => return None,
        };
        Some(Self {
            kind: span.kind,
            request: request.parse().ok()?,
            call,
        })
    }
}

fn is_below(span: &Span, parent: &Span) -> bool {
    span.parent.as_ref() == Some(&parent.span_id) && span.trace_id == parent.trace_id
}

/// Scenario: 2,000 requests over 16 connections to a service with a thread for each; for each request it
/// makes two calls, on a connection that it keeps or on new ones. Guarantees: every call is below
/// its request; no span has a wrong parent.
#[test]
fn calls_are_below_their_requests() {
    let Some(session) = Session::begin("tls_causes::calls_are_below_their_requests") else {
        return;
    };
    let tag = session.run.as_str();
    let started = Certificate::new().and_then(|certificate| {
        let back = Program::PythonSsl.server(&certificate)?;
        let front = front(&back, &certificate)?;
        let client = Program::Requests.client(front.address, tag)?;
        Ok((back, front, client))
    });
    let (back, front, client) = match started {
        Ok(started) => started,
        Err(reason) => return skipped("tls_causes", &reason),
    };
    let receiver = Receiver::start();
    let agent = start(&receiver).ready_for_tls();
    let pids = [&front, &back].map(|service| service.pids()[0]);
    seen_into_processes(&agent, &[pids[0], pids[1], client.pid()]);
    client.finish();
    let count = 2 * REQUESTS * (1 + CALLS);
    let (spans, stopped) = finish(agent, &receiver, tag, count);

    let mut by_key: HashMap<Key, &Span> = HashMap::new();
    let mut wrong = Vec::new();
    for span in &spans {
        let twice = Key::of(span, tag).and_then(|key| by_key.insert(key, span));
        if twice.is_some() || !is_https(span) {
            wrong.push(format!("twice or not https: {span:?}"));
        }
    }
    let mut right = 0;
    for (key, span) in &by_key {
        // A client's span is below its request, a server's, if at all, below the client's.
        let above = match key {
            Key {
                kind: Kind::Client,
                call: None,
                ..
            } => None,
            Key {
                kind: Kind::Client,
                request,
                ..
            } => Some((Kind::Server, *request, None)),
            Key { request, call, .. } => Some((Kind::Client, *request, *call)),
        };
        let above = above.and_then(|(kind, request, call)| {
            by_key
                .get(&Key {
                    kind,
                    request,
                    call,
                })
                .copied()
        });
        let is_right = above.is_some_and(|above| is_below(span, above));
        if span.parent.is_some() && !is_right {
            wrong.push(format!("wrong parent: {span:?}, not {above:?}"));
        }
        let must = key.kind == Kind::Client && key.call.is_some();
        right += usize::from(must && is_right);
    }
    wrong.truncate(10);
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", stopped.stderr);
    let found = (by_key.len(), spans.len(), right);
    let all = (count, count, CALLS * REQUESTS);
    assert_eq!(found, all, "{}", stopped.stderr);
}
