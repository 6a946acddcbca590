//! Compares the spans of a pair of peers with what the client's library reported: one CLIENT and
//! one SERVER span for each call, known by the trace id it was sent with, everything right in each.
//!
//! Times hold on a loaded machine: a span lies within what the client measured and lasts as long as
//! the call was told to last. Clocks are read one after the other and calls return late, so that one
//! call in [`STRAGGLERS`] may be off by more than [`SLACK_NS`].
//!
//! An agent that came late may not know a method, a status or the trace context. What it says must
//! be right all the same, and it must tell as many calls as were made.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use super::call::{Call, Done, METHODS, SERVICE};
use super::mix::End;
use crate::span::{Kind, Span};

/// One call in so many may be off in its times.
const STRAGGLERS: usize = 100;
/// What is on time.
const SLACK_NS: i128 = 20_000_000;
/// By how much the timers of libraries and of kernels may differ.
const TIMER_NS: i128 = 2_000_000;
/// How many mismatches of a kind are shown.
const SHOWN: usize = 3;
/// Of the calls that were to be ended by the client, one in so many may end before they were sent.
const UNSENT: usize = 20;

const NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const CANCELLED: i32 = 1;
const DEADLINE_EXCEEDED: i32 = 4;
const UNIMPLEMENTED: i32 = 12;
/// What is an error of the server.
const SERVER_ERRORS: [i32; 6] = [2, DEADLINE_EXCEEDED, UNIMPLEMENTED, 13, 14, 15];

/// A run of calls, and which spans are its.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// What was to be done.
    pub calls: &'a [Call],
    /// What the client says of it.
    pub done: &'a [Done],
    /// The client's process.
    pub client: u32,
    /// The server's process.
    pub server: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// The server answers CANCELLED at the deadline.
    pub server_cancels: bool,
    /// The ends that are seen.
    pub sides: &'a [Kind],
    /// The connection is older than the agent, and these methods were called on it before.
    pub late: Option<&'a [&'a str]>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Calls that ended before they were sent: nobody has a span of them.
    pub unsent: usize,
    /// Spans whose method is not known, though it was sent.
    pub unknown_methods: usize,
    /// Spans without a status.
    pub unknown_codes: usize,
    /// Spans without the context they were sent with.
    pub unknown_contexts: usize,
}

/// The name of a status.
pub fn code_name(code: i32) -> &'static str {
    let name = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    name.copied().unwrap_or("?")
}

/// What tells one span from another.
fn short(span: &Span) -> String {
    let Span {
        name,
        trace_id,
        attributes,
        ..
    } = span;
    format!("{name} {trace_id} {} ns {attributes:?}", span.duration_ns())
}

/// The library may end it before it was sent.
fn is_ended_by_client(call: &Call) -> bool {
    matches!(call.end(), End::Deadline | End::Cancelled)
}

impl Run<'_> {
    /// Whether a span is of this pair.
    pub fn is_own(&self, span: &Span) -> bool {
        let pid = match span.kind {
            Kind::Client => self.client,
            Kind::Server => self.server,
            Kind::Other(_) => return false,
        };
        span.pid() == Some(i64::from(pid))
            && span
                .int("server.port")
                .is_none_or(|port| port == i64::from(self.address.port()))
    }

    /// Panics with what is wrong, counted by kind and the first few in full.
    pub fn assert(&self, spans: &[Span]) -> Found {
        let (found, wrong) = self.compare(spans);
        if wrong.is_empty() {
            return found;
        }
        let mut kinds = BTreeMap::<&str, Vec<&String>>::new();
        for mismatch in &wrong {
            let kind = mismatch.split(':').next().unwrap_or_default();
            kinds.entry(kind).or_default().push(mismatch);
        }
        let counts: BTreeMap<_, _> = kinds.iter().map(|(kind, all)| (kind, all.len())).collect();
        let shown: Vec<_> = kinds
            .values()
            .flat_map(|all| all.iter().take(SHOWN))
            .collect();
        panic!(
            "{} calls, {} mismatches: {counts:#?}\n{shown:#?}",
            self.calls.len(),
            wrong.len()
        );
    }

    /// What was found and everything that is wrong, each as `kind: detail`.
    fn compare(&self, spans: &[Span]) -> (Found, Vec<String>) {
        let (mut found, mut wrong, mut off) = (Found::default(), Vec::new(), Vec::new());
        let mut by_trace = HashMap::<(&str, Kind), Vec<&Span>>::new();
        for span in spans {
            by_trace
                .entry((&span.trace_id, span.kind))
                .or_default()
                .push(span);
        }
        let mut nameless: BTreeMap<Kind, Vec<&Call>> = BTreeMap::new();
        for (call, done) in self.calls.iter().zip(self.done) {
            if let Some(text) = self.wrong_end(call, done) {
                wrong.push(format!("the call itself: {text}: {call:?} {done:?}"));
            }
            let mut of = |kind| {
                let trace_id = call.trace_id().unwrap_or_default();
                by_trace.remove(&(trace_id, kind)).unwrap_or_default()
            };
            let sides: Vec<_> = self.sides.iter().map(|kind| (*kind, of(*kind))).collect();
            if is_ended_by_client(call)
                && self.late.is_none()
                && sides.iter().all(|(_, of)| of.is_empty())
            {
                found.unsent += 1;
                continue;
            }
            for (kind, spans) in sides {
                match &spans[..] {
                    [span] => {
                        wrong.extend(self.wrong_in(span, call, done, &mut found));
                        off.extend(self.off(span, call, done));
                    }
                    [] if self.late.is_some() => nameless.entry(kind).or_default().push(call),
                    _ => {
                        let shown: Vec<_> = spans.iter().map(|span| short(span)).collect();
                        wrong.push(format!(
                            "{kind:?} spans {} of a call: {call:?} {done:?} {shown:?}",
                            spans.len()
                        ));
                    }
                }
            }
        }
        let mut rest: BTreeMap<Kind, Vec<&Span>> = BTreeMap::new();
        for ((_, kind), spans) in by_trace {
            rest.entry(kind).or_default().extend(spans);
        }
        if self.late.is_some() {
            for kind in [Kind::Client, Kind::Server] {
                let calls = nameless.remove(&kind).unwrap_or_default();
                let spans = rest.remove(&kind).unwrap_or_default();
                found.unknown_contexts += spans.len();
                wrong.extend(self.wrong_among(kind, &calls, &spans, &mut found));
            }
        }
        for span in rest.values().flatten() {
            wrong.push(format!("extra {:?} span: {}", span.kind, short(span)));
        }
        let ended = self
            .calls
            .iter()
            .filter(|call| is_ended_by_client(call))
            .count();
        if found.unsent > ended.div_ceil(UNSENT) {
            wrong.push(format!(
                "calls that nobody saw: {} of {ended}",
                found.unsent
            ));
        }
        if off.len() > 2 * self.calls.len() / STRAGGLERS {
            wrong.extend(off);
        }
        (found, wrong)
    }

    /// What the library reports is not what the call was made for.
    fn wrong_end(&self, call: &Call, done: &Done) -> Option<String> {
        let codes: &[i32] = match call.end() {
            End::Status(code) => &[code],
            End::Missing => &[UNIMPLEMENTED],
            End::Cancelled => &[CANCELLED],
            // tonic tells its own timeout as CANCELLED, on both sides.
            End::Deadline => &[DEADLINE_EXCEEDED, CANCELLED],
        };
        let right = codes.contains(&done.code);
        (!right).then(|| format!("reported {} instead of {codes:?}", code_name(done.code)))
    }

    /// What the status of a span may be.
    fn codes(&self, span: &Span, call: &Call, done: &Done) -> Vec<i32> {
        if call.end() != End::Deadline {
            return vec![done.code];
        }
        // The server may hear of the deadline before its own timer or from it; a library may have
        // CANCELLED from the wire and its own opinion of that.
        let either = span.kind == Kind::Server || done.code == CANCELLED || self.server_cancels;
        // What was sent late was ended in less time than it says of itself that it had.
        let early = span.duration_ns() < i128::from(call.timeout_ms) * 1_000_000 * 97 / 100;
        if either || early {
            vec![DEADLINE_EXCEEDED, CANCELLED]
        } else {
            vec![done.code]
        }
    }

    fn wrong_in(&self, span: &Span, call: &Call, done: &Done, found: &mut Found) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut that = |what: &str, right: bool, got: &dyn std::fmt::Debug| {
            if !right {
                wrong.push(format!(
                    "{:?} {what}: {got:?} ({call:?} {done:?} {})",
                    span.kind,
                    short(span)
                ));
            }
        };
        let codes = self.codes(span, call, done);
        let told = span.text("rpc.status_code");
        let right = codes.iter().any(|&code| told == Some(code_name(code)));
        that(
            "rpc.status_code",
            right || (self.late.is_some() && told.is_none()),
            &told,
        );
        found.unknown_codes += usize::from(told.is_none());

        let full = format!("{SERVICE}/{}", call.method);
        let method = (
            span.name.as_str(),
            span.text("rpc.method"),
            span.text("rpc.method_original"),
        );
        let known = (full.as_str(), Some(full.as_str()), None);
        let missing = ("grpc", Some("_OTHER"), Some(full.as_str()));
        let unseen = ("grpc", Some("_OTHER"), None);
        let is_missing = !METHODS.contains(&call.method.as_str());
        let right = match (is_missing, told) {
            (false, _) => method == known,
            (true, Some(_)) => method == missing,
            // Nothing says that it does not exist.
            (true, None) => method == known,
        };
        let late = self
            .late
            .is_some_and(|before| before.contains(&call.method.as_str()));
        that("method", right || (late && method == unseen), &method);
        found.unknown_methods += usize::from(method == unseen);

        that(
            "rpc.system.name",
            span.text("rpc.system.name") == Some("grpc"),
            &(),
        );
        let error = codes
            .iter()
            .find(|&&code| told == Some(code_name(code)))
            .filter(|&code| match span.kind {
                Kind::Server => SERVER_ERRORS.contains(code),
                _ => *code != 0,
            });
        that("error", span.error == error.is_some(), &span.error);
        let kind = span.text("error.type");
        that(
            "error.type",
            kind == error.map(|&code| code_name(code)),
            &kind,
        );
        let host = (span.text("server.address"), span.int("server.port"));
        let port = Some(i64::from(self.address.port()));
        let right = host == (Some("127.0.0.1"), port);
        that(
            "server",
            right || (self.late.is_some() && host == (None, None)),
            &host,
        );
        that(
            "parent",
            span.parent.as_deref() == call.span_id(),
            &span.parent,
        );
        that(
            "end before start",
            span.end_ns >= span.start_ns,
            &span.duration_ns(),
        );
        let long =
            i128::from(call.delay_ms + call.gap_ms * (call.messages.saturating_sub(1) as u64))
                * 1_000_000;
        let whole = matches!(call.end(), End::Status(_));
        that(
            "too short",
            !whole || span.duration_ns() >= long - TIMER_NS,
            &span.duration_ns(),
        );
        wrong
    }

    /// A span that is not within what the client measured.
    fn off(&self, span: &Span, call: &Call, done: &Done) -> Option<String> {
        let start = i128::from(span.start_ns) - i128::from(done.start_ns);
        let end = i128::from(span.end_ns) - i128::from(done.start_ns + done.duration_ns);
        // What is given up is told to the other side afterwards.
        let on_time = start >= -SLACK_NS && (end <= SLACK_NS || is_ended_by_client(call));
        (!on_time).then(|| {
            format!("{:?} times: starts {start} ns after the call, ends {end} ns after it: {call:?} {done:?}", span.kind)
        })
    }

    /// Spans of calls that they do not name: as many as calls, and none that no call can be.
    fn wrong_among(
        &self,
        kind: Kind,
        calls: &[&Call],
        spans: &[&Span],
        found: &mut Found,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        if calls.len() != spans.len() {
            wrong.push(format!(
                "{kind:?} spans without context: {} for {} calls",
                spans.len(),
                calls.len()
            ));
        }
        let mut left = BTreeMap::<String, usize>::new();
        for call in calls {
            *left
                .entry(format!("{SERVICE}/{}", call.method))
                .or_default() += 1;
        }
        let before = self.late.unwrap_or_default();
        let mut unseen = calls
            .iter()
            .filter(|call| before.contains(&call.method.as_str()))
            .count();
        for span in spans {
            found.unknown_codes += usize::from(span.text("rpc.status_code").is_none());
            let mut method = span.text("rpc.method");
            if method == Some("_OTHER") && span.name == "grpc" {
                method = span.text("rpc.method_original");
                found.unknown_methods += usize::from(method.is_none());
            }
            let count = match method {
                Some(method) => left.get_mut(method),
                None => Some(&mut unseen),
            };
            match count.filter(|count| **count > 0) {
                Some(count) => *count -= 1,
                None => wrong.push(format!(
                    "{kind:?} method that was not called: {}",
                    short(span)
                )),
            }
        }
        wrong
    }
}
