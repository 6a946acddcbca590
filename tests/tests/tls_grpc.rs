//! gRPC over TLS, live: grpc-go and grpc-js against each other, calls of every kind and every end;
//! and what is seen of one end if the other one's library is not.

use tracer_tests::finish::finish_own;
use tracer_tests::grpc::{Client, Peer, Run, mixed};
use tracer_tests::receiver::Receiver;
use tracer_tests::services::Service;
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::Kind;
use tracer_tests::tls::{CONNECTIONS, Certificate, Program, REQUESTS, seen_into_processes, start};

const PAIRS: [(Peer, Peer); 4] = [
    (Peer::Go, Peer::Node),
    (Peer::Node, Peer::Go),
    (Peer::PythonSync, Peer::Go),
    (Peer::Node, Peer::PythonSync),
];

struct Pair {
    server: Service,
    client: Client,
    sides: Vec<Kind>,
}

fn is_seen(peer: Peer) -> bool {
    let program = match peer {
        Peer::Go => Program::GrpcGo,
        Peer::Node => Program::GrpcJs,
        _ => Program::Grpcio,
    };
    program.facts().client == Some(true) && program.facts().server == Some(true)
}

impl Pair {
    fn start(client: Peer, server: Peer, certificate: &Certificate) -> Result<Self, String> {
        let sides = [(Kind::Client, client), (Kind::Server, server)];
        let seen = sides.into_iter().filter(|(_, peer)| is_seen(*peer));
        let server = server.server_with(Some(certificate))?;
        let client = client.client_with(server.address, Some(certificate))?;
        Ok(Self {
            sides: seen.map(|(kind, _)| kind).collect(),
            server,
            client,
        })
    }

    fn pids(&self) -> Vec<u32> {
        let of = |kind: &Kind| match kind {
            Kind::Client => self.client.pid(),
            _ => self.server.pids()[0],
        };
        self.sides.iter().map(of).collect()
    }
}

/// Scenario: 2,000 calls at concurrency 16 on one connection, between two languages, and with
/// BoringSSL without symbols at one end. Guarantees: one span for each call and end that is seen,
/// with the right method, status, trace context and peer; none of the end that is not.
#[test]
fn two_languages() {
    let Some(_session) = Session::begin("tls_grpc::two_languages") else {
        return;
    };
    let certificate = match Certificate::new() {
        Ok(certificate) => certificate,
        Err(reason) => return skipped("tls_grpc", &reason),
    };
    let receiver = Receiver::start();
    let mut agent = Some(start(&receiver).ready_for_tls());
    let mut runs = Vec::new();
    for (client, server) in PAIRS {
        let mut pair = match Pair::start(client, server, &certificate) {
            Ok(pair) => pair,
            Err(reason) => {
                skipped("tls_grpc", &reason);
                continue;
            }
        };
        let agent = agent.as_ref().expect("it runs");
        seen_into_processes(agent, &pair.pids());
        let calls = mixed(fastrand::u64(1..), 1, REQUESTS);
        let done = pair.client.run(&calls, CONNECTIONS);
        runs.push((pair, calls, done));
    }
    let runs: Vec<(&Pair, Run<'_>)> = runs
        .iter()
        .map(|(pair, calls, done)| {
            let run = Run {
                calls,
                done,
                client: pair.client.pid(),
                server: pair.server.pids()[0],
                address: pair.server.address,
                server_cancels: false,
                sides: &pair.sides,
                late: None,
            };
            (pair, run)
        })
        .collect();
    let count = runs
        .iter()
        .map(|(pair, _)| pair.sides.len() * REQUESTS)
        .sum();
    let agent = agent.take().expect("it runs");
    let is_own = |span: &_| runs.iter().any(|(_, run)| run.is_own(span));
    let (spans, _) = finish_own(agent, &receiver, "all pairs", count, &[], is_own);
    for (pair, run) in &runs {
        let own: Vec<_> = spans
            .iter()
            .filter(|span| run.is_own(span))
            .cloned()
            .collect();
        let found = run.assert(&own);
        println!(
            "{} to {}: {} spans, {found:?}",
            pair.client.name,
            pair.server.name,
            own.len()
        );
        let port = i64::from(run.address.port());
        for span in own {
            let peer = span.text("network.peer.address");
            assert_eq!(peer, Some("127.0.0.1"), "{span:?}");
            let right = span.kind == Kind::Server || span.int("network.peer.port") == Some(port);
            assert!(right, "{span:?}");
        }
    }
}
