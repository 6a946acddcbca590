//! The trace context that a request carries: the server span continues it, the client span belongs
//! to its trace; what is malformed is ignored.

use tracer_tests::agent::Start;
use tracer_tests::driver::{Mix, Plan};
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::Language;
use tracer_tests::session::Session;
use tracer_tests::span::{Kind, Span};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Headers of a request, and whether they put its spans into [`TRACE`], with which tracestate.
struct Case {
    name: &'static str,
    headers: &'static [&'static str],
    state: Option<&'static str>,
}

const CASES: &[Case] = &[
    Case {
        name: "plain",
        headers: &["traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
        state: Some(""),
    },
    Case {
        name: "with-state",
        headers: &[
            "TraceParent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "tracestate: rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        ],
        state: Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
    },
    Case {
        name: "higher-version",
        headers: &["traceparent: 01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"],
        state: Some(""),
    },
    Case {
        name: "zero-trace",
        headers: &[
            "traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "tracestate: a=b",
        ],
        state: None,
    },
    Case {
        name: "zero-parent",
        headers: &["traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"],
        state: None,
    },
    Case {
        name: "version-ff",
        headers: &["traceparent: ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
        state: None,
    },
    Case {
        name: "upper-case",
        headers: &["traceparent: 00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"],
        state: None,
    },
    Case {
        name: "too-short",
        headers: &["traceparent: 00-4bf92f35"],
        state: None,
    },
    Case {
        name: "none",
        headers: &[],
        state: None,
    },
];

fn check(case: &Case, spans: &[Span]) {
    let of = |kind| {
        let found: Vec<&Span> = spans.iter().filter(|span| span.kind == kind).collect();
        assert_eq!(found.len(), 1, "{}: {kind:?}: {spans:#?}", case.name);
        found[0]
    };
    let (server, client) = (of(Kind::Server), of(Kind::Client));
    let name = case.name;
    match case.state {
        Some(state) => {
            assert_eq!(server.trace_id, TRACE, "{name}: server");
            assert_eq!(
                server.parent.as_deref(),
                Some(PARENT),
                "{name}: parent of the server span"
            );
            assert_eq!(server.trace_state, state, "{name}: tracestate");
            assert_eq!(client.trace_id, TRACE, "{name}: client");
            assert_ne!(client.span_id, server.span_id, "{name}");
        }
        None => {
            assert_ne!(server.trace_id, TRACE, "{name}: half-used context");
            assert_ne!(
                server.parent.as_deref(),
                Some(PARENT),
                "{name}: half-used context"
            );
            assert_eq!(
                server.trace_state, "",
                "{name}: tracestate without traceparent"
            );
            assert_ne!(client.trace_id, TRACE, "{name}: half-used context");
        }
    }
}

#[test]
fn traceparent() {
    let Some(session) = Session::begin("traceparent") else {
        return;
    };
    let service = Language::Rust.start().expect("the Rust service");
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    for case in CASES {
        let mut plan = Plan::load(
            service.address,
            &format!("{}-{}", session.run, case.name),
            1,
            1,
        );
        plan.mix = Mix::Simple;
        plan.header = case
            .headers
            .iter()
            .map(|header| (*header).to_owned())
            .collect();
        assert_eq!(plan.run().failures(), Vec::<String>::new());
    }
    finish(agent, &receiver, &session.run, 2 * CASES.len());
    for case in CASES {
        check(
            case,
            &receiver.spans_of(&format!("{}-{}-", session.run, case.name)),
        );
    }
}
