//! HTTPS, live: library files of containers, which are not the host's, of two versions at the same
//! time, loaded by programs that the agent has looked at before; and OpenSSL's relatives.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::session::{Session, skipped};
use tracer_tests::tls::{
    Certificate, Client, Container, Joined, Sent, host_libssl, other_libssl, relatives,
    seen_into_files, seen_into_processes, start,
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

/// A server of a relative of OpenSSL, whose library file was replaced since it was loaded.
struct Relative {
    container: Container,
    server: Server,
    version: String,
}

impl Relative {
    fn start(libssl: &Path, certificate: &Certificate) -> Result<Self, String> {
        let container = Container::new(libssl, certificate)?;
        let (server, version) = Server::load(container.server()?);
        container.replace_libssl()?;
        Ok(Self {
            container,
            server,
            version,
        })
    }
}

/// Scenario: a server and a client of each of OpenSSL's relatives that there are: BoringSSL, and what
/// `TRACER_TESTS_LIBSSL` names (LibreSSL, say). The server runs before the agent, and its library was
/// replaced on disk meanwhile, as an update does; the client loads the new file late. Guarantees:
/// exact spans on both sides; servers' spans are below their
/// clients'.
#[test]
fn relatives_and_replaced_files() {
    let Some(session) = Session::begin("tls_files::relatives_and_replaced_files") else {
        return;
    };
    let certificate = match Certificate::new() {
        Ok(certificate) => certificate,
        Err(reason) => return skipped("tls relatives", &reason),
    };
    let mut started = Vec::new();
    for libssl in relatives() {
        match libssl.and_then(|libssl| Relative::start(&libssl, &certificate)) {
            Ok(relative) => started.push(relative),
            Err(reason) => skipped("tls relative", &reason),
        }
    }
    let receiver = Receiver::start();
    let agent = start(&receiver).ready_for_tls();
    let mut sent = Vec::new();
    for (number, relative) in started.iter().enumerate() {
        let server = &relative.server;
        let tag = format!("{}-{number}", session.run);
        let mut client = server.client(&relative.container, &tag);
        assert_eq!(load(&mut client), relative.version);
        let pid = client.pid();
        // The one that is gone and the new one.
        seen_into_files(&agent, &relative.container.libssl(), 2);
        client.go();
        client.end();
        println!("{}: {tag}", relative.version);
        sent.push(Sent {
            tag,
            server: server.1,
            client_pids: Some(vec![pid]),
            server_pids: Some(vec![server.0.pid()]),
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
