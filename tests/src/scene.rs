//! Scenes of services that call others for their requests: what was expected to hang below what, and what did.
//!
//! The services are those of `cargo xtask bench causality`, and odder ones beside the tests.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::agent::binary;
use crate::process;
use crate::services::{python, source};
use crate::session::Session;
use crate::span::{Kind, Span, from_json_lines};

/// Clients at a time.
pub const CONCURRENCY: usize = 8;
/// Requests of a scene.
pub const REQUESTS: usize = 160;
/// Longest scene, start and compilation included.
const LIMIT: Duration = Duration::from_secs(150);

/// How long a new program's functions may take to be found: then a call gets its first parent.
pub const FOLLOWED: Duration = Duration::from_secs(45);
/// The same, where no parent is to be waited for.
pub const SETTLED: Duration = Duration::from_secs(2);

/// What came of one scene.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Calls for requests, and those of them with the right parent.
    pub calls: usize,
    /// See `calls`.
    pub right: usize,
    /// Server spans of the backend, and those of them below the call.
    pub served: usize,
    /// See `served`.
    pub joined: usize,
}

/// A service of the benchmark.
pub fn front(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "xtask", "causality", name]
        .iter()
        .collect()
}

/// The unique part of `/r/ID?..` and `/b/ID/N`.
fn id_of(span: &Span) -> Option<(char, String, String)> {
    let url = span.text("url.path").or_else(|| span.text("url.full"));
    let method = || span.text("rpc.method").map(|method| format!("/{method}"));
    let url = url.map(str::to_owned).or_else(method)?;
    let at = url.find("/r/").or_else(|| url.find("/b/"))?;
    let path = url.get(at..)?.split('?').next()?;
    let kind = path.chars().nth(1)?;
    let id = path.split('/').nth(2)?.to_owned();
    Some((kind, id, path.to_owned()))
}

/// Plays a scene under an agent that traces nothing else. `None` if the service cannot run here.
pub fn play(
    test: &str,
    query: &str,
    service: &[&str],
    env: &[(&str, &str)],
    wait: Duration,
) -> Option<Outcome> {
    play_at(CONCURRENCY, test, query, service, env, wait)
}

/// The same with so many clients at a time.
pub fn play_at(
    concurrency: usize,
    test: &str,
    query: &str,
    service: &[&str],
    env: &[(&str, &str)],
    wait: Duration,
) -> Option<Outcome> {
    let _session = Session::begin(test)?;
    let files = tempfile::TempDir::new().expect("a directory");
    let spans = files.path().join("spans.jsonl");
    let mut command = Command::new(binary());
    command
        .env("OTEL_TRACES_EXPORTER", "none")
        .envs(env.iter().copied())
        .args(["run", "--admin", "off", "--otlp-file"])
        .arg(&spans)
        .arg("--")
        .arg(python())
        .arg(source("causality/scene.py"))
        .args([&concurrency.to_string(), &REQUESTS.to_string(), query])
        .args(service)
        .env("SPANS", &spans)
        .env("WAIT", wait.as_secs().to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let mut child = command.spawn().expect("the agent starts");
    let status = process::wait(&mut child, LIMIT);
    if status.is_none() {
        process::end(&mut child);
    }
    assert!(
        status.is_some_and(|status| status.success()),
        "{test}: the scene ended with {status:?}"
    );
    let text = std::fs::read_to_string(&spans).expect("spans");
    Some(compare(&from_json_lines(&text).expect("OTLP/JSON")))
}

fn compare(spans: &[Span]) -> Outcome {
    let mut requests = HashMap::new();
    let mut calls = HashMap::new();
    for span in spans {
        let Some((kind, id, path)) = id_of(span) else {
            continue;
        };
        match (kind, span.kind == Kind::Server) {
            ('r', true) => {
                requests.insert(id, span);
            }
            // What a service asks of itself is a request too, by the last part of its path.
            ('b', true) => {
                if let Some(own) = path.rsplit('/').next().filter(|own| own.contains('.')) {
                    requests.insert(own.to_owned(), span);
                }
            }
            ('b', false) => {
                calls.insert(path, (id, span));
            }
            _ => {}
        }
    }
    let mut outcome = Outcome::default();
    for (id, call) in calls.values() {
        let given = call.parent.is_some();
        match requests.get(id) {
            Some(request) => {
                let right = is_below(call, request);
                assert!(right || !given, "wrong parent: {call:?}, not {request:?}");
                if !id.starts_with("warm") {
                    outcome.calls += 1;
                    outcome.right += usize::from(right);
                }
            }
            None => assert!(!given, "work in the background has a parent: {call:?}"),
        }
    }
    for span in spans.iter().filter(|span| span.kind == Kind::Server) {
        let Some(('b', _, path)) = id_of(span) else {
            continue;
        };
        let Some((_, call)) = calls.get(&path) else {
            continue;
        };
        outcome.served += 1;
        let right = is_below(span, call);
        assert!(
            right || span.parent.is_none(),
            "wrong parent: {span:?}, not {call:?}"
        );
        outcome.joined += usize::from(right);
    }
    outcome
}

fn is_below(span: &Span, parent: &Span) -> bool {
    span.parent.as_ref() == Some(&parent.span_id) && span.trace_id == parent.trace_id
}

/// At least so much of what there is to find was found, `percent` of it.
pub fn at_least(test: &str, outcome: &Outcome, calls_each: usize, percent: usize) {
    assert_eq!(outcome.calls, calls_each * REQUESTS, "{test}: {outcome:?}");
    assert!(
        outcome.right * 100 >= outcome.calls * percent,
        "{test}: {outcome:?}"
    );
    assert!(
        outcome.joined * 100 >= outcome.served * 95,
        "{test}: {outcome:?}"
    );
}
