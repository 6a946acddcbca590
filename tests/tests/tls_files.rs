//! HTTPS, live: library files of containers, which are not the host's, of two versions at the same
//! time, loaded by programs that the agent has looked at before.

use std::net::{Ipv4Addr, SocketAddr};

use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::session::{Session, skipped};
use tracer_tests::tls::{
    Certificate, Client, Container, Sent, host_libssl, other_libssl, seen_into_processes, start,
};

/// Has a program load its library; its version.
fn load(program: &mut Client) -> String {
    program.go();
    program.line()
}

/// A server that has loaded its library, and where it listens.
struct Server(Client, SocketAddr);

impl Server {
    fn load(mut program: Client) -> (Self, String) {
        let version = load(&mut program);
        let port: u16 = program.line().parse().expect("a port");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        (Self(program, address), version)
    }

    fn client(&self, of: &Container, tag: &str) -> Client {
        let client = of.client(&self.1.port().to_string(), tag);
        client.expect("it has started before")
    }
}

/// Scenario: two containers with the same path to different files of libssl. In one a program runs
/// that has not loaded it when the agent comes, everything else starts later; all load it by dlopen.
/// Then each container's client asks the other's server, at the same time. Guarantees: exact spans
/// on both sides, each of its own process.
#[test]
fn containers_with_libraries_of_their_own() {
    let Some(session) = Session::begin("tls_files::containers_with_libraries_of_their_own") else {
        return;
    };
    let started = Certificate::new().and_then(|certificate| {
        let host = Container::new(&host_libssl()?, &certificate)?;
        let other = Container::new(&other_libssl()?, &certificate)?;
        let early = host.server()?;
        Ok((host, other, early))
    });
    let (host, other, early) = match started {
        Ok(started) => started,
        Err(reason) => return skipped("tls containers", &reason),
    };
    let receiver = Receiver::start();
    let agent = start(&receiver).ready_for_tls();
    let (newer, new) = Server::load(early);
    let (older, old) = Server::load(other.server().expect("it runs in the other one"));
    assert!(old.starts_with("OpenSSL 1.1.1"), "{old}");
    assert_ne!(new, old);

    let tags = ["old-new", "new-old"].map(|name| format!("{}-{name}", session.run));
    let mut clients = [
        newer.client(&other, &tags[0]),
        older.client(&host, &tags[1]),
    ];
    assert_eq!(load(&mut clients[0]), old);
    assert_eq!(load(&mut clients[1]), new);
    let pids = clients.each_ref().map(Client::pid);
    seen_into_processes(&agent, &[pids[0], pids[1], newer.0.pid(), older.0.pid()]);
    for client in &mut clients {
        client.go();
    }
    for client in clients {
        client.end();
    }
    let mut sent = Vec::new();
    for ((tag, client), server) in tags.into_iter().zip(pids).zip([&newer, &older]) {
        sent.push(Sent {
            tag,
            server: server.1,
            client_pids: Some(vec![client]),
            server_pids: Some(vec![server.0.pid()]),
            version: Some("1.1"),
        });
    }
    let count = sent.iter().map(Sent::spans).sum();
    let (spans, stopped) = finish(agent, &receiver, &session.run, count);
    Sent::check_all(&sent, &spans, &stopped.stderr);
}
