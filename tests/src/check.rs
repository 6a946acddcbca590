//! Compares the spans of a run with the driver's report: exactly one SERVER and one CLIENT span per
//! request, everything right in each, nothing else.
//!
//! Durations are compared with the driver's own. The driver's interval encloses the client span's,
//! so that may never be longer. Shorter it may be by [`tolerance_ns`], unless the scheduler took the
//! CPU away from the driver in between. What no test can see, a server preempted between handing
//! over the last byte and returning from the call, or a hypervisor that took the CPU, may make one
//! request in [`STRAGGLERS`] an exception. Clients that do not measure report a duration of 0.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use crate::driver::{Record, Report, SERVICE_NAME, USER_AGENT};
use crate::span::{Kind, Span};

/// Share of requests whose durations may be off by more than the tolerance: one in so many.
const STRAGGLERS: usize = 100;
/// By how much clocks read one after the other may disagree.
const CLOCK_NS: i128 = 50_000;
/// By how much the start of a client span may differ from the driver's wall clock.
const START_NS: i128 = 20_000_000;
/// How many mismatches are shown.
const SHOWN: usize = 3;

/// Who answered.
#[derive(Clone, Debug)]
pub struct Server<'a> {
    /// `service.name` of its spans.
    pub name: &'a str,
    /// Processes that may have served.
    pub pids: Vec<u32>,
}

/// What a run must have; `None` if that side is not traced and must have no spans.
#[derive(Clone, Debug)]
pub struct Sides<'a> {
    /// The service.
    pub server: Option<Server<'a>>,
    /// The driver.
    pub client: bool,
}

/// 1 ms + 5%.
pub fn tolerance_ns(duration_ns: u64) -> i128 {
    1_000_000 + i128::from(duration_ns / 20)
}

/// Panics with what is wrong, counted by kind and the first few in full.
pub fn assert_run(spans: &[Span], report: &Report, sides: &Sides<'_>) {
    let wrong = mismatches(spans, report, sides);
    if wrong.is_empty() {
        return;
    }
    let mut counts = BTreeMap::<&str, usize>::new();
    for mismatch in &wrong {
        *counts
            .entry(mismatch.split(':').next().unwrap_or_default())
            .or_default() += 1;
    }
    let mut left: BTreeMap<&str, usize> = counts.keys().map(|kind| (*kind, SHOWN)).collect();
    let shown: Vec<&String> = wrong
        .iter()
        .filter(|mismatch| {
            let kind = mismatch.split(':').next().unwrap_or_default();
            left.get_mut(kind)
                .is_some_and(|n| std::mem::replace(n, n.saturating_sub(1)) > 0)
        })
        .collect();
    panic!(
        "{} requests, {} mismatches: {counts:#?}\n{shown:#?}",
        report.records.len(),
        wrong.len()
    );
}

/// Everything that is wrong, each as `kind: detail`.
pub fn mismatches(spans: &[Span], report: &Report, sides: &Sides<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_key = HashMap::<(&str, Kind), Vec<&Span>>::new();
    let own = format!("/r/{}-", report.run);
    for span in spans.iter().filter(|span| span.mentions(&own)) {
        by_key
            .entry((path_of(span), span.kind))
            .or_default()
            .push(span);
    }
    let mut late = Vec::new();
    for record in &report.records {
        let mut side = |kind, wanted: bool| {
            let found = by_key
                .remove(&(record.path.as_str(), kind))
                .unwrap_or_default();
            if found.len() != usize::from(wanted) {
                let want = usize::from(wanted);
                wrong.push(format!(
                    "{kind:?} spans {} instead of {want}: {record:?} {found:#?}",
                    found.len()
                ));
            }
            found.first().copied()
        };
        let server = side(Kind::Server, sides.server.is_some());
        let client = side(Kind::Client, sides.client);
        let mut note = |kind: Kind, differences: Vec<String>| {
            wrong.extend(
                differences
                    .into_iter()
                    .map(|text| format!("{kind:?} {text} ({record:?})")),
            );
        };
        if let Some((span, expected)) = server.zip(sides.server.as_ref()) {
            note(
                Kind::Server,
                server_span(span, record, report.address, expected),
            );
        }
        if let Some(span) = client {
            note(Kind::Client, client_span(span, record, report));
        }
        if record.duration_ns > 0 {
            wrong.extend(client.and_then(|client| too_long(client, record)));
            if !record.preempted {
                late.extend(durations(server, client, record));
            }
        }
    }
    for ((path, kind), extra) in by_key {
        wrong.push(format!("extra {kind:?} span: {path}: {extra:?}"));
    }
    if late.len() > report.records.len() / STRAGGLERS {
        wrong.extend(late);
    }
    wrong.extend(ids(spans, &own));
    wrong
}

/// `url.path`, or the path of the `url.full` that clients have instead.
pub fn path_of(span: &Span) -> &str {
    if let Some(path) = span.text("url.path") {
        return path;
    }
    let full = span.text("url.full").unwrap_or_default();
    let rest = full.split_once("://").map_or(full, |(_, rest)| rest);
    let path = rest.find('/').map_or("", |start| &rest[start..]);
    path.split('?').next().unwrap_or_default()
}

/// Collects differences between what a span says and what it must.
struct Compare<'a> {
    span: &'a Span,
    wrong: Vec<String>,
}

impl Compare<'_> {
    fn text(&mut self, name: &str, expected: Option<&str>) {
        let got = self.span.attributes.get(name);
        let got_text = self.span.text(name);
        if got_text != expected || got.is_some() != expected.is_some() {
            self.wrong
                .push(format!("{name}: {got:?} instead of {expected:?}"));
        }
    }

    fn int(&mut self, name: &str, expected: i64) {
        if self.span.int(name) != Some(expected) {
            let got = self.span.attributes.get(name);
            self.wrong
                .push(format!("{name}: {got:?} instead of {expected}"));
        }
    }

    fn that(&mut self, what: &str, right: bool, got: impl std::fmt::Debug) {
        if !right {
            self.wrong.push(format!("{what}: {got:?}"));
        }
    }
}

/// What both sides have in common.
fn both<'a>(span: &'a Span, record: &Record, address: SocketAddr) -> Compare<'a> {
    let mut compare = Compare {
        span,
        wrong: Vec::new(),
    };
    compare.that("name", span.name == record.method, &span.name);
    compare.text("http.request.method", Some(&record.method));
    compare.int("http.response.status_code", record.status.into());
    compare.int("server.port", address.port().into());
    compare.text("server.address", Some(&address.ip().to_string()));
    compare.text("network.protocol.version", Some("1.1"));
    compare.that(
        "end before start",
        span.end_ns >= span.start_ns,
        span.duration_ns(),
    );
    let failed = record.status >= if span.kind == Kind::Client { 400 } else { 500 };
    compare.that("status", span.error == failed, span.error);
    compare.text(
        "error.type",
        failed.then(|| record.status.to_string()).as_deref(),
    );
    compare
}

fn server_span(
    span: &Span,
    record: &Record,
    address: SocketAddr,
    server: &Server<'_>,
) -> Vec<String> {
    let mut compare = both(span, record, address);
    compare.text("url.path", Some(&record.path));
    compare.text("url.query", Some(&record.query));
    compare.text("url.scheme", Some("http"));
    compare.text("user_agent.original", Some(USER_AGENT));
    compare.text("client.address", Some(&address.ip().to_string()));
    compare.int("network.peer.port", record.local_port.into());
    compare.that(
        "service.name",
        span.service() == Some(server.name),
        span.service(),
    );
    let pid = span.pid();
    compare.that(
        "pid",
        server.pids.iter().any(|known| pid == Some((*known).into())),
        (pid, &server.pids),
    );
    compare.wrong
}

fn client_span(span: &Span, record: &Record, report: &Report) -> Vec<String> {
    let mut compare = both(span, record, report.address);
    let full = format!("http://{}{}?{}", report.address, record.path, record.query);
    compare.text("url.full", Some(&full));
    compare.int("network.peer.port", report.address.port().into());
    compare.that(
        "service.name",
        span.service() == Some(SERVICE_NAME),
        span.service(),
    );
    compare.that("pid", span.pid() == Some(report.pid.into()), span.pid());
    let offset = i128::from(span.start_ns) - i128::from(record.started_ns);
    compare.that(
        "start",
        record.preempted || offset.abs() <= START_NS,
        offset,
    );
    compare.wrong
}

fn too_long(client: &Span, record: &Record) -> Option<String> {
    let (got, own) = (client.duration_ns(), i128::from(record.duration_ns));
    (got > own + CLOCK_NS)
        .then(|| format!("Client duration: {got} ns, measured {own} ns ({record:?})"))
}

fn durations(server: Option<&Span>, client: Option<&Span>, record: &Record) -> Vec<String> {
    let own = i128::from(record.duration_ns);
    let tolerance = tolerance_ns(record.duration_ns);
    let mut wrong = Vec::new();
    if let Some(client) = client {
        let got = client.duration_ns();
        if got < own - tolerance {
            wrong.push(format!(
                "Client duration: {got} ns, measured {own} ns ({record:?})"
            ));
        }
    }
    if let Some(server) = server {
        let got = server.duration_ns();
        if got > own + tolerance {
            wrong.push(format!(
                "Server duration: {got} ns, client measured {own} ns ({record:?})"
            ));
        }
    }
    wrong
}

/// Span ids are unique, ids have their lengths and are not zero, resources name their schema.
fn ids(spans: &[Span], own: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen = HashSet::new();
    let zero = |id: &str| id.bytes().all(|digit| digit == b'0');
    for span in spans.iter().filter(|span| span.mentions(own)) {
        if !seen.insert(&span.span_id) {
            wrong.push(format!("span id twice: {}", span.span_id));
        }
        if span.span_id.len() != 16
            || zero(&span.span_id)
            || span.trace_id.len() != 32
            || zero(&span.trace_id)
        {
            wrong.push(format!("bad ids: {} {}", span.trace_id, span.span_id));
        }
        if !span
            .schema_url
            .starts_with("https://opentelemetry.io/schemas/")
        {
            wrong.push(format!("schema: {:?}", span.schema_url));
        }
    }
    wrong
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
