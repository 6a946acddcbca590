//! TLS in the kernel: OpenSSL hands its keys to the socket, so what programs write to it is plaintext, and
//! SSL_sendfile sends files. Run by `cargo xtask vm kernel-tls`, in a machine whose kernel does it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::target_dir;
use tracer_tests::session::Session;
use tracer_tests::tls::{CONNECTIONS, Client, Joined, REQUESTS, Sent, seen_into_processes, start};

/// As the machine has it.
fn file(name: &str) -> PathBuf {
    target_dir().join("services").join(name)
}

fn program(words: &[String], is_tls12: bool) -> Client {
    let mut command = Command::new(file("c-dlopen"));
    command
        .arg("libssl.so.3")
        .args(words)
        .env("KERNEL_TLS", "1");
    if is_tls12 {
        command.env("TLS12", "1");
    }
    let mut client = Client::start(command).expect("the program");
    client.go();
    println!("{}", client.line());
    client
}

fn server(is_tls12: bool) -> (Client, SocketAddr) {
    let files = ["certificate.pem", "key.pem"].map(|name| file(name).display().to_string());
    let [certificate, key] = files;
    let server = program(&["server".into(), certificate, key], is_tls12);
    let port: u16 = server.line().parse().expect("a port");
    (server, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

/// Scenario: TLS 1.3, where the kernel encrypts, and TLS 1.2, where it decrypts too; large bodies are
/// sent by SSL_sendfile; the programs end if the kernel does not do it. Guarantees: exact spans on both
/// sides, once each though the socket's calls show plaintext too, and servers' spans below their clients'.
#[test]
#[ignore = "run by `cargo xtask vm kernel-tls`, where the kernel can do TLS"]
fn in_a_machine() {
    let Some(session) = Session::begin("tls_kernel::in_a_machine") else {
        return;
    };
    let receiver = Receiver::start();
    // What an emulated receiver answers too late would be sent twice.
    let agent = start(&receiver)
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "60000")
        .ready_for_tls();
    let mut sent = Vec::new();
    for (name, is_tls12) in [("tls13", false), ("tls12", true)] {
        let (server, address) = server(is_tls12);
        let tag = format!("{}-{name}", session.run);
        let mut words = vec!["client".into(), address.port().to_string(), tag.clone()];
        words.extend([REQUESTS, CONNECTIONS].map(|n| n.to_string()));
        let mut client = program(&words, is_tls12);
        let pids = [server.pid(), client.pid()];
        seen_into_processes(&agent, &pids);
        client.go();
        client.end();
        let [server_pid, client_pid] = pids;
        sent.push(Sent {
            tag,
            server: address,
            client_pids: Some(vec![client_pid]),
            server_pids: Some(vec![server_pid]),
            version: Some("1.1"),
        });
    }
    let count = sent.iter().map(Sent::spans).sum();
    let (spans, stopped) = finish(agent, &receiver, &session.run, count);
    Sent::check_all(&sent, &spans, &stopped.stderr);
    for sent in &sent {
        sent.check_joined(&spans, Joined::Most);
    }
}
