//! What `cargo xtask vm test` runs on other kernels beside tests that run here too: gRPC and TLS with
//! programs of this workspace alone, since those machines hold nothing else.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tracer_tests::agent::Start;
use tracer_tests::finish::{finish, finish_own};
use tracer_tests::grpc::{Peer, Run, mixed};
use tracer_tests::receiver::Receiver;
use tracer_tests::services::build;
use tracer_tests::session::{Session, share};
use tracer_tests::span::Kind;
use tracer_tests::tls::{Certificate, Client, Sent, start};

const CALLS: usize = 1_000;
const CONCURRENCY: usize = 32;
/// Where a libssl is, on the distributions that this runs on.
const LIBSSL: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/libssl.so.3",
    "/usr/lib/aarch64-linux-gnu/libssl.so.3",
    "/usr/lib64/libssl.so.3",
];

/// Scenario: calls of every kind of method and end, 32 at once on one connection, from tonic to tonic.
/// Guarantees: exactly one CLIENT and one SERVER span each.
#[test]
#[ignore = "for other kernels: `cargo xtask vm test`; grpc.rs has more"]
fn grpc() {
    let server = Peer::Rust.server().expect("tonic");
    let mut client = Peer::Rust.client(server.address).expect("tonic");
    let Some(_session) = Session::begin("kernels::grpc") else {
        return;
    };
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let calls = mixed(fastrand::u64(1..), 1, share(CALLS));
    let done = client.run(&calls, CONCURRENCY);
    let run = Run {
        calls: &calls,
        done: &done,
        client: client.pid(),
        server: server.pids()[0],
        address: server.address,
        sides: &[Kind::Client, Kind::Server],
        server_cancels: true,
        late: None,
    };
    let (spans, _) = finish_own(agent, &receiver, "tonic", 2 * calls.len(), &[], |span| {
        run.is_own(span)
    });
    run.assert(&spans);
}

/// Scenario: a client and a server in C load libssl when the agent is there.
/// Guarantees: exactly one CLIENT and one SERVER span for each request, with the right peers.
#[test]
#[ignore = "for other kernels: `cargo xtask vm test`; tls.rs has more"]
fn tls() {
    let Some(session) = Session::begin("kernels::tls") else {
        return;
    };
    let libssl = LIBSSL.into_iter().find(|path| Path::new(path).exists());
    let libssl = libssl.expect("a libssl");
    let certificate = Certificate::new().expect("openssl");
    let program = build::dlopen().expect("a C program");
    let receiver = Receiver::start();
    let agent = start(&receiver).ready_for_tls();
    let mut command = Command::new(&program);
    command
        .args([libssl, "server"])
        .args(certificate.arguments());
    let mut server = Client::start(command).expect("the server");
    server.go();
    server.line();
    let port: u16 = server.line().parse().expect("a port");
    let tag = format!("{}-tls", session.run);
    let mut command = Command::new(&program);
    command.args([libssl, "client", &port.to_string(), &tag]);
    command
        .args([tracer_tests::tls::REQUESTS, tracer_tests::tls::CONNECTIONS].map(|n| n.to_string()));
    let mut client = Client::start(command).expect("the client");
    client.go();
    client.line();
    let sent = [Sent {
        tag,
        server: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        client_pids: Some(vec![client.pid()]),
        server_pids: Some(vec![server.pid()]),
        version: Some("1.1"),
    }];
    client.finish();
    let count = sent.iter().map(Sent::spans).sum();
    let (spans, stopped) = finish(agent, &receiver, &session.run, count);
    Sent::check_all(&sent, &spans, &stopped.stderr);
}
