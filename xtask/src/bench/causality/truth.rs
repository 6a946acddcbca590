//! What the ids in the paths say about the parents of the spans.

use std::collections::HashMap;
use std::fmt;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::fronts::{Front, Kind};

/// The outcome of one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    /// Calls that the service made for requests.
    pub calls: u64,
    /// Of those, with the right parent.
    pub right: u64,
    /// With none.
    pub missing: u64,
    /// Spans with a parent that is not theirs, calls in the background among them.
    pub wrong: u64,
    /// Server spans, and those below the client span of the same exchange.
    pub ends: (u64, u64),
}

impl Score {
    /// Right parents of all there should be.
    pub fn recall(&self) -> f64 {
        ratio(self.right, self.calls)
    }

    fn precision(&self) -> f64 {
        ratio(self.right, self.right + self.wrong)
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        1.0
    } else {
        part as f64 / whole as f64
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>7} {:>7} {:>7} {:>6} {:>7.2}% {:>8.2}% {:>7.2}%",
            self.calls,
            self.right,
            self.missing,
            self.wrong,
            self.recall() * 100.0,
            self.precision() * 100.0,
            ratio(self.ends.1, self.ends.0) * 100.0,
        )
    }
}

#[derive(Debug)]
struct Span {
    id: String,
    trace: String,
    parent: String,
    server: bool,
    /// Path up to the query.
    path: String,
    pid: i64,
}

impl Span {
    /// The unique part of the path.
    fn name(&self) -> &str {
        self.path.split('/').nth(2).unwrap_or_default()
    }

    /// What the calls that are made for it have for a name: a service's call to itself is told by the last part.
    fn own_name(&self) -> &str {
        if self.path.starts_with("/r/") {
            self.name()
        } else {
            self.path.split('/').nth(3).unwrap_or_default()
        }
    }
}

/// Compares spans with their paths.
pub fn score(text: &str, front: &Front) -> Result<Score> {
    let mut spans = Vec::new();
    for line in text.lines() {
        let request: Value = serde_json::from_str(line).context("a line is no JSON")?;
        read(&request, &mut spans);
    }
    if spans.is_empty() {
        bail!("there are no spans");
    }
    // The driver and the backend are one process; everything else is the service.
    let scene = spans
        .iter()
        .find(|span| !span.server && span.path.starts_with("/r/warm"))
        .filter(|_| !matches!(front.kind, Kind::Nginx { .. }))
        .or_else(|| spans.iter().find(|span| !span.server))
        .map(|span| span.pid)
        .context("there is no client span")?;
    let scene = driver(&spans).unwrap_or(scene);
    let mut requests = HashMap::new();
    let mut clients = HashMap::new();
    for span in &spans {
        if span.server && span.pid != scene {
            requests.insert(span.own_name(), span);
        }
        if !span.server {
            clients.insert((span.pid == scene, span.path.as_str()), span);
        }
    }
    let mut score = Score::default();
    for span in spans
        .iter()
        .filter(|span| !span.server && span.pid != scene)
    {
        if span.name().starts_with("warm") {
            continue;
        }
        let cause = requests.get(span.name());
        match cause {
            Some(cause) => {
                score.calls += 1;
                if span.parent.is_empty() {
                    score.missing += 1;
                } else if span.parent == cause.id && span.trace == cause.trace {
                    score.right += 1;
                } else {
                    wrong(span, &mut score);
                }
            }
            None if span.parent.is_empty() => {}
            None => wrong(span, &mut score),
        }
    }
    for span in spans.iter().filter(|span| span.server) {
        // The other end is the driver's span for the service, and the service's for the backend.
        let path = span.path.as_str();
        let other = clients
            .get(&(span.pid != scene, path))
            .or_else(|| clients.get(&(false, path)));
        let Some(other) = other else {
            continue;
        };
        score.ends.0 += 1;
        if span.parent == other.id && span.trace == other.trace {
            score.ends.1 += 1;
        } else if !span.parent.is_empty() {
            wrong(span, &mut score);
        }
    }
    Ok(score)
}

/// True if a client span of a path that begins like this has a parent.
pub fn has_parent(text: &str, path: &str) -> bool {
    let mut spans = Vec::new();
    // The last line may be half written.
    for request in text.lines().flat_map(serde_json::from_str) {
        read(&request, &mut spans);
    }
    let mut calls = spans.iter().filter(|span| !span.server);
    calls.any(|span| span.path.starts_with(path) && !span.parent.is_empty())
}

fn wrong(span: &Span, score: &mut Score) {
    score.wrong += 1;
    if score.wrong <= 3 {
        eprintln!("bench: wrong parent: {span:?}");
    }
}

/// The process with server spans of the backend's paths or of whoever is not the service: it is the
/// one that sends requests and receives none of them.
fn driver(spans: &[Span]) -> Option<i64> {
    let mut sent: HashMap<i64, (u64, u64)> = HashMap::new();
    for span in spans.iter().filter(|span| span.path.starts_with("/r/")) {
        let (clients, servers) = sent.entry(span.pid).or_default();
        *if span.server { servers } else { clients } += 1;
    }
    // A proxy sends what it received; the driver's backend received it as well. Where both look
    // alike, the driver is the one that was there first.
    sent.into_iter()
        .filter(|(_, (clients, _))| *clients > 0)
        .map(|(pid, _)| pid)
        .min()
}

fn read(request: &Value, spans: &mut Vec<Span>) {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    for resource in list(request, "resourceSpans") {
        let pid = attribute(&resource["resource"], "process.pid")
            .and_then(|text| text.parse().ok())
            .unwrap_or_default();
        for scope in list(&resource, "scopeSpans") {
            for span in list(&scope, "spans") {
                let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
                let url = attribute(&span, "url.path")
                    .or_else(|| attribute(&span, "url.full"))
                    .or_else(|| attribute(&span, "rpc.method").map(|method| format!("/{method}")));
                let url = url.unwrap_or_default();
                let path = url.find("/r/").or_else(|| url.find("/b/"));
                let Some(path) = path.and_then(|at| url.get(at..)) else {
                    continue;
                };
                spans.push(Span {
                    id: text("spanId"),
                    trace: text("traceId"),
                    parent: text("parentSpanId"),
                    server: span["kind"] == 2,
                    path: path.split('?').next().unwrap_or_default().to_owned(),
                    pid,
                });
            }
        }
    }
}

fn attribute(holder: &Value, key: &str) -> Option<String> {
    let attribute = holder["attributes"]
        .as_array()?
        .iter()
        .find(|attribute| attribute["key"] == key)?;
    let value = &attribute["value"];
    value["stringValue"]
        .as_str()
        .map(str::to_owned)
        .or_else(|| value["intValue"].as_str().map(str::to_owned))
        .or_else(|| value["intValue"].as_i64().map(|n| n.to_string()))
}
