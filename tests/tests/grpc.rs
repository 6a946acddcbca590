//! gRPC live, between libraries: each as client and as server of another one. Every kind of method,
//! every kind of end, 32 calls at once on one connection: exactly one CLIENT and one SERVER span
//! each, also on connections that are older than the agent.

use tracer_tests::agent::Start;
use tracer_tests::finish::finish_own;
use tracer_tests::grpc::{Call, Client, Peer, Run, long, mixed, plain};
use tracer_tests::receiver::Receiver;
use tracer_tests::services::Service;
use tracer_tests::session::{self, Session, skipped};
use tracer_tests::span::Kind;

const CONCURRENCY: usize = 32;
const CALLS: usize = 5_000;
/// Methods that are called before a late agent comes.
const BEFORE: [&str; 2] = ["Unary", "ServerStream"];
/// The pair that also has a stream of ten seconds.
const LONG: (Peer, Peer) = (Peer::PythonAsync, Peer::Node);
const LATE_CALLS: usize = 1_000;

struct Pair {
    server: Service,
    client: Client,
    run: u64,
}

impl Pair {
    /// Starts both; without an agent, so that what does not work is not the agent's doing.
    fn start(client: Peer, server: Peer) -> Result<Self, String> {
        let server = server.server()?;
        let client = client.client(server.address)?;
        let run = fastrand::u64(1..);
        Ok(Self {
            server,
            client,
            run,
        })
    }

    /// Makes the calls and compares them with the spans.
    fn check(
        &mut self,
        calls: &[Call],
        late: Option<&[&str]>,
        agent: tracer_tests::agent::Agent,
        receiver: &Receiver,
    ) {
        let done = self.client.run(calls, CONCURRENCY);
        let run = Run {
            calls,
            done: &done,
            client: self.client.pid(),
            server: self.server.pids()[0],
            address: self.server.address,
            sides: &[Kind::Client, Kind::Server],
            server_cancels: self.server.name == Peer::Rust.name(),
            late,
        };
        let what = format!("{} to {}", self.client.name, self.server.name);
        let (spans, _) = finish_own(agent, receiver, &what, 2 * calls.len(), &[], |span| {
            run.is_own(span)
        });
        let found = run.assert(&spans);
        println!(
            "{what}: {} calls, {} spans, {found:?}",
            calls.len(),
            spans.len()
        );
    }
}

fn early(test: &str, client: Peer, server: Peer) {
    let mut pair = {
        let _lock = session::lock();
        match Pair::start(client, server) {
            Ok(pair) => pair,
            Err(reason) => return skipped(test, &reason),
        }
    };
    let Some(_session) = Session::begin(test) else {
        return;
    };
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let mut calls = mixed(pair.run, 1, CALLS);
    if (client, server) == LONG {
        // Begins before all others.
        calls.insert(0, long(pair.run, 0, 10));
    }
    pair.check(&calls, None, agent, &receiver);
}

fn late(test: &str, client: Peer, server: Peer) {
    let mut pair = match Pair::start(client, server) {
        Ok(pair) => pair,
        Err(reason) => return skipped(test, &reason),
    };
    let Some(_session) = Session::begin(test) else {
        return;
    };
    // What the peers put into their tables here, the agent never sees.
    let before = plain(pair.run, 0, 200, &BEFORE);
    pair.client.run(&before, CONCURRENCY);
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let mut calls = mixed(pair.run, before.len(), LATE_CALLS);
    // Contexts push everything else out of the peers' tables, so that it is sent anew. Without
    // them what was sent before the agent came is never sent again.
    for call in calls.iter_mut().take(LATE_CALLS / 2) {
        call.traceparent = None;
    }
    pair.check(&calls, Some(&BEFORE), agent, &receiver);
}

macro_rules! pairs {
    ($($name:ident: $client:ident to $server:ident,)*) => { $(
        mod $name {
            use super::{Peer, early, late};

            #[test]
            fn all_calls() {
                early(concat!("grpc::", stringify!($name), "::all_calls"), Peer::$client, Peer::$server);
            }

            #[test]
            fn joined_late() {
                late(concat!("grpc::", stringify!($name), "::joined_late"), Peer::$client, Peer::$server);
            }
        }
    )* };
}

pairs! {
    python_sync_to_go: PythonSync to Go,
    go_to_python_sync: Go to PythonSync,
    python_async_to_node: PythonAsync to Node,
    node_to_python_async: Node to PythonAsync,
    rust_to_java: Rust to Java,
    java_to_rust: Java to Rust,
    node_to_rust: Node to Rust,
    rust_to_go: Rust to Go,
    java_to_python_sync: Java to PythonSync,
    go_to_java: Go to Java,
}
