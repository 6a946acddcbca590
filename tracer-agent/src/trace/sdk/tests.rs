//! Scenarios of processes with and without SDKs. Guarantee of all: every span comes out exactly once,
//! either reported or left, and no reported one has a parent that nobody gets.

use std::sync::Arc;

use super::payload::{Class, Reported};
use super::*;
use crate::meta::{Options, ProcFs, ProcessTable};
use crate::protocol::{
    CauseMethod, Connection, ContextHeaders, Endpoint, Exchange, Grpc, Outcome, Protocol, Request,
    Response, Role,
};
use crate::trace::{Propagators, Redaction, SpanBuilder, TraceId};

const SECOND: u64 = 1_000_000_000;
const WAIT: u64 = 7 * SECOND;
const TRACE: TraceId = TraceId([7; 16]);
const CALLER: SpanId = SpanId([1; 8]);
const SDK_SERVER: SpanId = SpanId([2; 8]);
const SDK_CLIENT: SpanId = SpanId([3; 8]);
const APP: u32 = 10;

struct World {
    stage: Beside,
    builder: SpanBuilder,
    processes: ProcessTable,
    now_ns: u64,
    report: Vec<Span>,
    left: Vec<Left>,
    pushed: usize,
}

fn world() -> World {
    World {
        stage: Beside::new(&Settings::default()),
        builder: SpanBuilder::new(
            Propagators::default(),
            Redaction::default(),
            fastrand::Rng::with_seed(1),
        ),
        processes: ProcessTable::new(ProcFs::new("/nonexistent"), Options::default()),
        now_ns: 100 * SECOND,
        report: Vec::new(),
        left: Vec::new(),
        pushed: 0,
    }
}

fn context(span_id: SpanId) -> RequestContext {
    RequestContext {
        trace_id: TRACE,
        parent: Some(span_id),
        sampled: Some(true),
        flags: 1,
        trace_state: None,
    }
}

fn payload(spans: &[(SpanKind, Class, Option<SpanId>, SpanId)]) -> Payload {
    let spans = spans
        .iter()
        .map(|&(kind, class, parent, span_id)| Reported {
            kind,
            class,
            trace_id: TRACE,
            span_id,
            parent,
        });
    Payload {
        spans: spans.collect(),
        whole: true,
    }
}

fn server_payload() -> Payload {
    payload(&[(SpanKind::Server, Class::Http, Some(CALLER), SDK_SERVER)])
}

impl World {
    fn begin(&mut self, mode: Mode, sign: Sign) {
        self.stage.begin(APP, mode, sign);
    }

    /// A span of the process; returns its id. It is marked by `name`.
    fn span(&mut self, name: &str, kind: SpanKind, parent: Option<(SpanId, Link)>) -> SpanId {
        self.span_of(APP, name, kind, parent, false)
    }

    fn span_of(
        &mut self,
        tgid: u32,
        name: &str,
        kind: SpanKind,
        parent: Option<(SpanId, Link)>,
        grpc: bool,
    ) -> SpanId {
        let exchange = Exchange {
            key: 0,
            role: match kind {
                SpanKind::Server => Role::Server,
                SpanKind::Client => Role::Client,
            },
            protocol: Protocol::Http11,
            request: Request {
                method: "GET".into(),
                target: name.into(),
                scheme: None,
                authority: None,
                user_agent: None,
                context: ContextHeaders::default(),
                body_bytes: Some(0),
            },
            response: Some(Response {
                status: 200,
                body_bytes: Some(0),
            }),
            grpc: grpc.then_some(Grpc {
                status: Some(0),
                timeout_ns: None,
                request_messages: None,
                response_messages: None,
            }),
            outcome: Outcome::Complete,
            stream: 0,
            start_ns: 1,
            response_start_ns: Some(2),
            end_ns: 3,
            tgid,
            tid: tgid,
        };
        let connection = Arc::new(Connection {
            id: 1,
            local: Endpoint::Unknown,
            remote: Endpoint::Unknown,
            role: None,
            from_start: true,
            tls: false,
            wire: None,
        });
        let process = self.processes.get(tgid);
        let mut span = self.builder.build(exchange, &connection, &process, 0);
        if let Some((parent, link)) = parent {
            span.trace_id = TRACE;
            span.parent = Some(parent);
            span.link = Some(link);
        }
        let id = span.span_id;
        self.pushed += 1;
        self.stage
            .push(span, self.now_ns, &mut self.report, &mut self.left);
        id
    }

    fn server(&mut self, name: &str) -> SpanId {
        self.stage.received(APP, &context(CALLER));
        self.span(name, SpanKind::Server, Some((CALLER, Link::Context)))
    }

    /// A call that carries a context, made in the process if it is not that of the caller.
    fn call(&mut self, name: &str, span_id: SpanId) {
        let kind = SpanKind::Client;
        self.stage
            .sent(APP, SpanId([9; 8]), Some(&context(span_id)), self.now_ns);
        self.span(name, kind, Some((span_id, Link::Context)));
    }

    fn wait(&mut self, ns: u64) {
        self.now_ns = self.now_ns.saturating_add(ns);
        self.stage
            .poll(self.now_ns, true, &mut self.report, &mut self.left);
    }

    fn export(&mut self, payload: &Payload) {
        self.stage.payload(APP, payload);
        self.stage.exported(APP, Signal::Traces);
        self.wait(0);
    }

    #[track_caller]
    fn check(&self, report: &[&str], left: &[&str]) {
        let names = |spans: &mut dyn Iterator<Item = &Span>| {
            let mut names: Vec<_> = spans
                .map(|span| span.exchange.request.target.to_string())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&mut self.report.iter()), report, "reported");
        assert_eq!(
            names(&mut self.left.iter().map(|left| &left.span)),
            left,
            "left"
        );
        let waiting = self.pushed - report.len() - left.len();
        assert_eq!(self.stage.counts().waiting, waiting as u64, "waiting");
        assert_eq!(self.stage.counts().left, left.len() as u64);
    }

    #[track_caller]
    fn reported(&self, name: &str) -> &Span {
        let mut found = self.report.iter();
        found
            .find(|span| &*span.exchange.request.target == name)
            .unwrap_or_else(|| panic!("{name} was not reported"))
    }
}

#[test]
fn without_a_sign_nothing_waits() {
    let mut world = world();
    world.span_of(77, "a stranger", SpanKind::Server, None, false);
    world.begin(Mode::Auto, Sign::None);
    world.server("in");
    world.span("out", SpanKind::Client, None);
    world.call("passed on", CALLER);
    world.check(&["a stranger", "in", "out", "passed on"], &[]);
}

#[test]
fn signs_wait_once_and_are_no_proof() {
    for sign in [Sign::Maybe, Sign::Activated, Sign::Hidden] {
        let mut world = world();
        world.begin(Mode::Auto, sign);
        world.server("in");
        world.check(&[], &[]);
        world.wait(WAIT);
        world.check(&["in"], &[]);
        world.wait(4 * WAIT);
        world.server("later");
        world.check(&["in", "later"], &[]);
    }
}

#[test]
fn what_the_sdk_exports_is_left_from_the_first_request_on() {
    let mut world = world();
    world.begin(Mode::Auto, Sign::Maybe);
    world.call("call", SDK_CLIENT);
    world.server("in");
    world.wait(5 * SECOND);
    world.check(&[], &[]);
    world.export(&server_payload());
    world.check(&[], &["call", "in"]);
    world.server("in 2");
    world.call("call 2", SpanId([4; 8]));
    world.call("passed on", CALLER);
    world.check(&["passed on"], &["call", "call 2", "in", "in 2"]);
    assert!(world.left.iter().all(|left| left.counted));
    world.stage.exported(APP, Signal::Metrics);
    world.server("in 3");
    assert!(!world.left.last().expect("left").counted);
}

/// Scenario: the SDK is loaded by the program's own code, so that only the contexts it writes show it.
#[test]
fn a_context_of_its_own_is_a_sign() {
    let mut world = world();
    world.begin(Mode::Auto, Sign::None);
    world.call("call", SDK_CLIENT);
    world.server("in");
    world.check(&[], &[]);
    world.export(&server_payload());
    world.check(&[], &["call", "in"]);
}

/// Scenario: a process writes contexts (a test client, a proxy that begins traces) but exports nothing.
#[test]
fn contexts_alone_are_no_proof() {
    let mut world = world();
    world.begin(Mode::Auto, Sign::None);
    world.call("call", SDK_CLIENT);
    world.wait(WAIT);
    world.check(&["call"], &[]);
    world.call("call 2", SpanId([4; 8]));
    world.check(&["call", "call 2"], &[]);
}

/// Scenario: the export goes over TLS that is not seen.
#[test]
fn what_was_activated_and_writes_contexts_is_believed() {
    let mut world = world();
    world.begin(Mode::Auto, Sign::Hidden);
    world.call("call", SDK_CLIENT);
    world.server("in");
    world.wait(WAIT);
    world.check(&[], &["call", "in"]);
    let mut world = self::world();
    world.begin(Mode::Auto, Sign::Activated);
    world.call("call", SDK_CLIENT);
    world.wait(WAIT);
    world.check(&["call"], &[]);
}

#[test]
fn metrics_alone_leave_the_spans_to_us() {
    let mut world = world();
    world.begin(Mode::Auto, Sign::Maybe);
    world.server("in");
    world.stage.exported(APP, Signal::Metrics);
    world.wait(WAIT);
    world.check(&["in"], &[]);
}

/// Scenario: exports that name client spans only, or only those of another protocol.
#[test]
fn what_the_sdk_does_not_cover_is_ours() {
    let client = (SpanKind::Client, Class::Http, None, SDK_CLIENT);
    let mut world = world();
    world.begin(Mode::Auto, Sign::Maybe);
    world.server("in");
    world.export(&payload(&[client]));
    world.export(&payload(&[client]));
    world.check(&[], &[]);
    world.wait(WAIT);
    world.check(&["in"], &[]);
    world.server("in 2");
    world.check(&["in", "in 2"], &[]);
    let grpc = Some((CALLER, Link::Context));
    let http = (SpanKind::Server, Class::Http, None, SDK_SERVER);
    world.export(&payload(&[http]));
    world.server("in 3");
    world.span_of(APP, "rpc", SpanKind::Server, grpc, true);
    world.check(&["in", "in 2"], &["in 3"]);
    world.wait(WAIT);
    world.check(&["in", "in 2", "rpc"], &["in 3"]);
}

/// Scenario: exports whose bodies are not seen (gRPC, a path of its own, too long).
#[test]
fn exports_that_cannot_be_read_are_taken_for_everything() {
    let mut world = world();
    world.begin(Mode::Auto, Sign::Maybe);
    world.server("in");
    world.stage.exported(APP, Signal::Traces);
    world.wait(0);
    world.check(&[], &["in"]);
}

/// Scenario: a collector takes the exports of others and sends them on.
#[test]
fn a_relay_has_no_sdk() {
    let mut world = world();
    world.begin(Mode::Auto, Sign::Maybe);
    world.server("in");
    world.stage.relays(APP);
    world.export(&server_payload());
    world.wait(0);
    world.check(&["in"], &[]);
}

/// Scenario: calls that the SDK does not see, made for a request that it does see; one ends before our
/// span of that request does, and the export comes later still.
#[test]
fn calls_of_ours_go_below_the_spans_of_the_sdk() {
    let mut world = world();
    world.begin(Mode::Auto, Sign::Maybe);
    let other = (SpanKind::Server, Class::Http, None, SpanId([8; 8]));
    world.export(&payload(&[other]));
    let cause = Link::Cause(CauseMethod::SameThread);
    let open = SpanId([42; 8]);
    world.span("early", SpanKind::Client, Some((open, cause)));
    let server = world.server("in");
    world.span("call", SpanKind::Client, Some((server, cause)));
    world.check(&[], &["in"]);
    let fate = Fate::Left(Some((TRACE, CALLER)));
    world.stage.fates.insert(open, fate);
    world.wait(0);
    world.check(&[], &["in"]);
    world.export(&server_payload());
    world.check(&["call", "early"], &["in"]);
    for name in ["early", "call"] {
        let call = world.reported(name);
        assert_eq!(call.parent, Some(SDK_SERVER), "{name}");
        assert_eq!(call.link, Some(Link::Context), "{name}");
        assert!(!call.parent_is_remote, "{name}");
    }
}

/// The same, but no export names the request: its caller is above the call for certain.
#[test]
fn without_the_sdks_span_the_caller_is_the_parent() {
    let mut world = world();
    world.begin(Mode::Auto, Sign::Maybe);
    world.export(&payload(&[(
        SpanKind::Server,
        Class::Http,
        None,
        SpanId([8; 8]),
    )]));
    let server = world.server("in");
    let cause = Link::Cause(CauseMethod::SameThread);
    world.span("call", SpanKind::Client, Some((server, cause)));
    world.check(&[], &["in"]);
    world.wait(WAIT);
    let call = world.reported("call");
    assert_eq!((call.parent, call.parent_is_remote), (Some(CALLER), true));
    // A request without context: the SDK's trace is not known.
    let root = world.span("root", SpanKind::Server, None);
    world.span("call 2", SpanKind::Client, Some((root, cause)));
    assert_eq!(world.reported("call 2").parent, None);
    // A request that is still open when the time is over.
    world.span("call 3", SpanKind::Client, Some((SpanId([43; 8]), cause)));
    world.wait(WAIT);
    assert_eq!(world.reported("call 3").parent, None);
}

#[test]
fn forced_modes() {
    let mut world = world();
    world.begin(Mode::Trace, Sign::Activated);
    world.export(&server_payload());
    world.call("call", SDK_CLIENT);
    world.server("in");
    world.check(&["call", "in"], &[]);

    let mut world = self::world();
    world.begin(Mode::Leave, Sign::None);
    let open = SpanId([50; 8]);
    world.stage.sent(APP, open, None, world.now_ns);
    // The other end of that call is another process's.
    world.span_of(
        77,
        "other end",
        SpanKind::Server,
        Some((open, Link::LocalConnection)),
        false,
    );
    world.span("call", SpanKind::Client, None);
    world.server("in");
    world.check(&["other end"], &["call", "in"]);
    assert_eq!(world.reported("other end").parent, None);
}

/// Scenario: a process ends before anything was learnt, or after its last export; its pid is used again.
#[test]
fn ends_decide() {
    let mut world = world();
    world.begin(Mode::Auto, Sign::Maybe);
    world.server("in");
    world.stage.exited(APP, world.now_ns);
    world.wait(0);
    world.check(&["in"], &[]);
    assert!(!world.stage.knows(APP));
    world.begin(Mode::Auto, Sign::Maybe);
    world.server("in 2");
    world.check(&["in"], &[]);
    world.stage.payload(APP, &server_payload());
    world.stage.exported(APP, Signal::Traces);
    world.stage.exited(APP, world.now_ns);
    world.server("in 3");
    world.wait(0);
    world.check(&["in"], &["in 2", "in 3"]);
    world.wait(60 * SECOND);
    assert!(world.stage.processes.is_empty());
}

#[test]
fn bounds_hold() {
    let mut world = world();
    world.begin(Mode::Auto, Sign::Maybe);
    for _ in 0..MAX_HELD + 10 {
        world.server("in");
    }
    assert_eq!(world.stage.held.len(), MAX_HELD);
    assert_eq!(world.stage.counts().hurried, 10);
    world.wait(u64::MAX);
    assert_eq!(world.report.len(), MAX_HELD + 10);
    for tgid in 0..MAX_PROCESSES as u32 + 10 {
        world.stage.begin(1000 + tgid, Mode::Auto, Sign::None);
    }
    assert_eq!(world.stage.processes.len(), MAX_PROCESSES);
    assert!(world.stage.knows(4_000_000), "nobody asks again");
}

#[test]
fn modes_by_service() {
    let settings = Settings {
        mode: Mode::Leave,
        services: vec![ServiceMode {
            service: "shop*".into(),
            mode: Mode::Trace,
        }],
        ..Settings::default()
    };
    assert_eq!(settings.mode_of("shop-2"), Mode::Trace);
    assert_eq!(settings.mode_of("other"), Mode::Leave);
    for word in MODES {
        assert!(Mode::named(word).is_some());
    }
    assert_eq!(Mode::named("x"), None);
}
