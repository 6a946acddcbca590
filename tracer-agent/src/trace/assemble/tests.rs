//! Scenarios of exchanges on one host; each says who called whom and which spans must come out.

mod ids;
mod sent;

use std::net::SocketAddr;

use super::*;
use crate::meta::{Options, ProcFs, ProcessTable};
use crate::protocol::{
    Cause, CauseMethod, ContextHeaders, Endpoint, Exchange, Outcome, Protocol, Request, Response,
    Wire,
};
use crate::trace::{FLAG_SAMPLED, Redaction, SpanBuilder, TraceId};

const PARENT: &str = "00f067aa0ba902b7";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// An assembler, a builder in front of it, and what came out.
struct World {
    assembler: Assembler,
    builder: SpanBuilder,
    processes: ProcessTable,
    out: Vec<Span>,
    now_ns: u64,
}

fn world(limits: Limits) -> World {
    let propagators = Propagators::default();
    World {
        assembler: Assembler::new(limits, propagators.clone(), fastrand::Rng::with_seed(1)),
        builder: SpanBuilder::new(
            propagators,
            Redaction::default(),
            fastrand::Rng::with_seed(2),
        ),
        processes: ProcessTable::new(ProcFs::new("/nonexistent"), Options::default()),
        out: Vec::new(),
        now_ns: 1_000_000_000,
    }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// One end of a TCP connection from port `client` to port `server`.
fn connection(id: u64, role: Role, client: u16, server: u16) -> Arc<Connection> {
    let (near, far) = match role {
        Role::Client => (client, server),
        Role::Server => (server, client),
    };
    let (up, down) = (u32::from(client) << 8, 77);
    Arc::new(Connection {
        id,
        local: Endpoint::Ip(address(near)),
        remote: Endpoint::Ip(address(far)),
        role: Some(role),
        from_start: true,
        tls: false,
        wire: Some(match role {
            Role::Client => Wire::Tcp {
                read: down,
                write: up,
            },
            Role::Server => Wire::Tcp {
                read: up,
                write: down,
            },
        }),
    })
}

fn opened(role: Role, key: u64, cause: Option<(u64, u64)>, header: Option<&str>) -> Opened {
    Opened {
        key,
        role,
        position: Some(key),
        start_ns: 5_000,
        tgid: 1,
        cause: cause.map(|(connection, key)| Cause {
            exchange: ExchangeId { connection, key },
            method: CauseMethod::SameThread,
        }),
        context: ContextHeaders(
            header
                .map(|value| ("traceparent".into(), value.into()))
                .into_iter()
                .collect(),
        ),
    }
}

impl World {
    fn begin(&mut self, opened: Opened, connection: &Arc<Connection>) {
        self.assembler.opened(opened, connection, self.now_ns);
    }

    fn end(&mut self, role: Role, key: u64, connection: &Arc<Connection>) {
        let exchange = Exchange {
            key,
            role,
            protocol: Protocol::Http11,
            request: Request {
                method: "GET".into(),
                target: format!("/{}/{key}", connection.id).into(),
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
            grpc: None,
            outcome: Outcome::Complete,
            stream: 0,
            start_ns: 5_000,
            response_start_ns: Some(6_000),
            end_ns: 7_000,
            tgid: 1,
            tid: 1,
        };
        let process = self.processes.get(1);
        let span = self.builder.build(exchange, connection, &process, 0);
        let id = ExchangeId {
            connection: connection.id,
            key,
        };
        self.assembler
            .finished(id, span, self.now_ns, &mut self.out);
    }

    fn wait(&mut self, ns: u64) {
        self.now_ns = self.now_ns.saturating_add(ns);
        self.assembler.poll(self.now_ns, &mut self.out);
    }

    /// The one span of that exchange which came out.
    fn span(&self, connection: u64, key: u64) -> &Span {
        let target = format!("/{connection}/{key}");
        let mut found = self
            .out
            .iter()
            .filter(|span| *span.exchange.request.target == *target);
        let span = found
            .next()
            .unwrap_or_else(|| panic!("no span of {target}"));
        assert!(found.next().is_none(), "{target} came out twice");
        span
    }
}

/// Scenario: a request comes in, two calls are made for it and end before it does.
/// Guarantees: both are its children in its trace, and nothing waits once all is known.
#[test]
fn calls_are_children_of_what_they_are_made_for() {
    let mut world = world(Limits::default());
    let server = connection(1, Role::Server, 1000, 80);
    let client = connection(2, Role::Client, 2000, 90);
    world.begin(opened(Role::Server, 0, None, None), &server);
    for key in [0, 40] {
        world.begin(opened(Role::Client, key, Some((1, 0)), None), &client);
        world.end(Role::Client, key, &client);
    }
    world.end(Role::Server, 0, &server);
    world.wait(PATIENCE_NS);
    let parent = world.span(1, 0);
    assert_eq!(parent.parent, None);
    for key in [0, 40] {
        let span = world.span(2, key);
        assert_eq!(span.parent, Some(parent.span_id));
        assert_eq!(span.trace_id, parent.trace_id);
        assert_eq!(span.link, Some(Link::Cause(CauseMethod::SameThread)));
        assert!(!span.parent_is_remote);
    }
    assert_eq!(world.assembler.counts().roots, 1);
}

/// Scenario: both ends of a connection are on this host; the client's write returns before or after
/// the server has read, and even answered, the request.
/// Guarantees: the server's span is below the client's in either order.
#[test]
fn ends_of_a_connection_are_joined_in_any_order() {
    for server_first in [false, true] {
        let mut world = world(Limits::default());
        let server = connection(1, Role::Server, 1000, 80);
        let client = connection(2, Role::Client, 1000, 80);
        if server_first {
            world.begin(opened(Role::Server, 7, None, None), &server);
            world.end(Role::Server, 7, &server);
            assert!(world.out.is_empty(), "its caller may still be learnt");
            world.begin(opened(Role::Client, 7, None, None), &client);
        } else {
            world.begin(opened(Role::Client, 7, None, None), &client);
            world.begin(opened(Role::Server, 7, None, None), &server);
            world.end(Role::Server, 7, &server);
        }
        world.end(Role::Client, 7, &client);
        world.wait(1);
        let (caller, called) = (world.span(2, 7), world.span(1, 7));
        assert_eq!(called.parent, Some(caller.span_id), "{server_first}");
        assert_eq!(called.trace_id, caller.trace_id);
        assert_eq!(called.link, Some(Link::LocalConnection));
        assert!(called.parent_is_remote);
    }
}

/// Scenario: the same addresses and position, but the bytes are others (another network namespace,
/// an earlier connection), or the request was read before it was written.
/// Guarantees: no join.
#[test]
fn what_only_looks_alike_is_not_joined() {
    let joined = |change: &dyn Fn(&mut Connection, &mut Opened)| {
        let mut world = world(Limits::default());
        let server = connection(1, Role::Server, 1000, 80);
        let mut client = Connection::clone(&connection(2, Role::Client, 1000, 80));
        let mut request = opened(Role::Client, 7, None, None);
        change(&mut client, &mut request);
        let client = Arc::new(client);
        world.begin(request, &client);
        world.begin(opened(Role::Server, 7, None, None), &server);
        world.end(Role::Server, 7, &server);
        world.wait(PATIENCE_NS);
        world.span(1, 7).parent.is_some()
    };
    assert!(joined(&|_, _| {}));
    assert!(!joined(&|client, _| client.wire = None));
    assert!(!joined(&|client, _| {
        client.wire = Some(Wire::Tcp { read: 77, write: 3 });
    }));
    assert!(!joined(&|client, _| {
        client.local = Endpoint::Ip(address(1001));
    }));
    assert!(!joined(&|_, request| request.position = Some(8)));
    assert!(!joined(&|_, request| request.start_ns = 5_001));
}

/// Scenario: a request carries context; the call made for it carries the same one (a proxy), and
/// another call carries none.
/// Guarantees: the server adopts it, the call that carries it is not re-parented, the other one is
/// the server's child in the caller's trace.
#[test]
fn context_in_the_request_goes_before_everything() {
    let header = format!("00-{TRACE}-{PARENT}-01");
    let mut world = world(Limits::default());
    let server = connection(1, Role::Server, 1000, 80);
    let client = connection(2, Role::Client, 2000, 90);
    world.begin(opened(Role::Server, 0, None, Some(&header)), &server);
    world.begin(
        opened(Role::Client, 0, Some((1, 0)), Some(&header)),
        &client,
    );
    world.end(Role::Client, 0, &client);
    world.begin(opened(Role::Client, 40, Some((1, 0)), None), &client);
    world.end(Role::Client, 40, &client);
    world.end(Role::Server, 0, &server);
    assert_eq!(world.out.len(), 3, "nothing has to wait");
    let parent = world.span(1, 0);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&parent.trace_id.0), TRACE);
    assert_eq!(parent.parent.map(|id| hex(&id.0)).as_deref(), Some(PARENT));
    let (carrying, silent) = (world.span(2, 0), world.span(2, 40));
    assert_eq!(carrying.parent, parent.parent);
    assert_eq!(carrying.link, Some(Link::Context));
    assert_eq!(silent.parent, Some(parent.span_id));
    assert_eq!(silent.trace_id, parent.trace_id);
}

/// Scenario: a call whose cause is not known (its connection was never told of).
/// Guarantees: it waits for a moment, then begins a trace of its own.
#[test]
fn an_unknown_cause_is_no_parent() {
    let mut world = world(Limits::default());
    let client = connection(2, Role::Client, 2000, 90);
    world.begin(opened(Role::Client, 0, Some((9, 9)), None), &client);
    world.end(Role::Client, 0, &client);
    assert!(world.out.is_empty());
    world.wait(PATIENCE_NS);
    let span = world.span(2, 0);
    assert_eq!((span.parent, span.link), (None, None));
    assert_eq!(world.assembler.waiting(), 0);
}

/// Scenario: five services in a chain, every span of which ends before anything was settled.
/// Guarantees: one trace, in order.
#[test]
fn a_chain_is_one_trace() {
    let mut world = world(Limits::default());
    let ends: Vec<_> = (0..5u16)
        .map(|hop| {
            let id = u64::from(hop) * 2;
            (
                connection(id + 1, Role::Client, 1000 + hop, 80 + hop),
                connection(id + 2, Role::Server, 1000 + hop, 80 + hop),
            )
        })
        .collect();
    let mut cause = None;
    for (client, server) in &ends {
        world.begin(opened(Role::Server, 0, None, None), server);
        world.begin(opened(Role::Client, 0, cause, None), client);
        cause = Some((server.id, 0));
    }
    for (client, server) in ends.iter().rev() {
        world.end(Role::Server, 0, server);
        world.end(Role::Client, 0, client);
    }
    world.wait(PATIENCE_NS);
    let mut above = None;
    for id in 1..=10 {
        let span = world.span(id, 0);
        assert_eq!(span.parent, above, "{id}");
        assert_eq!(span.trace_id, world.span(1, 0).trace_id);
        above = Some(span.span_id);
    }
}

/// Scenario: both ends of an exchange are over; a call is made for it afterwards.
/// Guarantees: it is not among what goes on any more, and still a parent, for as long as is promised.
#[test]
fn what_is_over_is_still_a_parent() {
    let mut world = world(Limits::default());
    let caller = connection(1, Role::Client, 1000, 80);
    let server = connection(2, Role::Server, 1000, 80);
    let client = connection(3, Role::Client, 2000, 90);
    for key in 0..100 {
        world.begin(opened(Role::Client, key, None, None), &caller);
        world.begin(opened(Role::Server, key, None, None), &server);
        // The client may be told of first.
        let order = if key % 2 == 0 {
            [(Role::Server, &server), (Role::Client, &caller)]
        } else {
            [(Role::Client, &caller), (Role::Server, &server)]
        };
        for (role, connection) in order {
            world.end(role, key, connection);
        }
        world.wait(1);
        assert_eq!(world.assembler.nodes.len(), 0, "{key}");
        assert_eq!(world.assembler.wires.len(), 0, "{key}");
        assert_eq!(world.span(2, key).parent, Some(world.span(1, key).span_id));
    }
    world.wait(MEMORY_NS - 1_000);
    world.begin(opened(Role::Client, 0, Some((2, 99)), None), &client);
    world.end(Role::Client, 0, &client);
    let (call, above) = (world.span(3, 0), world.span(2, 99));
    assert_eq!(call.parent, Some(above.span_id));
    assert_eq!(call.trace_id, above.trace_id);
    world.wait(2 * MEMORY_NS);
    world.wait(2 * MEMORY_NS);
    world.begin(opened(Role::Client, 1, Some((2, 99)), None), &client);
    world.end(Role::Client, 1, &client);
    world.wait(PATIENCE_NS);
    assert_eq!(world.span(3, 1).parent, None);
}

/// Scenario: a client gives up, and its span is out, before the server reads the request.
/// Guarantees: the server's span is below it.
#[test]
fn a_server_may_read_late() {
    let mut world = world(Limits::default());
    let server = connection(1, Role::Server, 1000, 80);
    let client = connection(2, Role::Client, 1000, 80);
    world.begin(opened(Role::Client, 7, None, None), &client);
    world.end(Role::Client, 7, &client);
    world.wait(MEMORY_NS / 2);
    world.begin(opened(Role::Server, 7, None, None), &server);
    world.end(Role::Server, 7, &server);
    let (caller, called) = (world.span(2, 7), world.span(1, 7));
    assert_eq!(called.parent, Some(caller.span_id));
    assert_eq!(called.trace_id, caller.trace_id);
    world.wait(2 * MEMORY_NS);
    assert_eq!(world.assembler.nodes.len(), 0);
}

/// Scenario: more spans wait, and more exchanges are open, than is allowed.
/// Guarantees: every span comes out once; the tables stay within their bounds; it is counted.
#[test]
fn bounds_hold() {
    let limits = Limits {
        exchanges: 50,
        waiting: 10,
    };
    let mut world = world(limits);
    let server = connection(1, Role::Server, 1000, 80);
    for key in 0..500 {
        world.begin(opened(Role::Server, key, None, None), &server);
        if key % 2 == 0 {
            world.end(Role::Server, key, &server);
        }
        assert!(world.assembler.nodes.len() <= limits.exchanges);
        assert!(world.assembler.wires.len() <= limits.exchanges);
        assert!(world.assembler.waiting() <= limits.waiting);
        assert!(world.assembler.begun.len() <= 2 * limits.exchanges + 1);
    }
    world.wait(u64::MAX);
    assert_eq!(world.out.len(), 250);
    assert!(world.assembler.counts().hurried > 0);
    assert!(world.assembler.counts().forgotten > 0);
}
