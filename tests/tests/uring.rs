//! Programs that read and write their sockets through io_uring.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use tracer_tests::agent::Start;
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::Kind;
use tracer_tests::uring::{Ring, Way};

const REQUESTS: usize = 200;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// Reads until the bytes end like this; false at the end of the connection.
fn read_until(ring: &mut Ring, stream: &TcpStream, end: &[u8], way: Way) -> bool {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    while !read.ends_with(end) {
        match ring.read(stream, &mut buffer, way).expect("a read") {
            0 => return false,
            n => read.extend_from_slice(&buffer[..n]),
        }
    }
    true
}

/// Answers on one connection until it ends.
fn serve(listener: &TcpListener, way: Way) {
    let (stream, _) = listener.accept().expect("a connection");
    let mut ring = Ring::new().expect("a ring");
    while read_until(&mut ring, &stream, b"\r\n\r\n", way) {
        ring.write(&stream, ANSWER, way).expect("an answer");
    }
}

/// Scenario: both ends of connections, opened before and after the agent, use `recv` and `send`, or `read`
/// and `write`, of io_uring. Guarantees: exactly one CLIENT and one SERVER span for each request.
#[test]
fn sockets_of_io_uring() {
    const TEST: &str = "uring::sockets_of_io_uring";
    let Some(session) = Session::begin(TEST) else {
        return;
    };
    if let Err(error) = Ring::new() {
        return skipped(TEST, &format!("io_uring: {error}"));
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let address = listener.local_addr().expect("an address");
    let connect = || TcpStream::connect(address).expect("connect");
    let before = [(Way::Socket, connect()), (Way::File, connect())];
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let event = "/sys/kernel/tracing/events/io_uring/io_uring_complete/format";
    if !std::fs::read_to_string(event).is_ok_and(|format| format.contains("void * req")) {
        return skipped(TEST, "this kernel does not tell of requests (before 5.19)");
    }
    let after = [(Way::Socket, connect()), (Way::File, connect())];
    let mut sent = 0;
    std::thread::scope(|scope| {
        // Accepted in the order in which they were opened.
        let listener = &listener;
        for (way, stream) in before.into_iter().chain(after) {
            let server = scope.spawn(move || serve(listener, way));
            let mut ring = Ring::new().expect("a ring");
            for _ in 0..REQUESTS / 4 {
                let request = format!(
                    "GET /r/{}-{sent} HTTP/1.1\r\nHost: localhost\r\n\r\n",
                    session.run
                );
                ring.write(&stream, request.as_bytes(), way)
                    .expect("a request");
                assert!(read_until(&mut ring, &stream, b"hello", way), "an answer");
                sent += 1;
            }
            drop(stream);
            server.join().expect("the server");
        }
    });
    let (spans, stopped) = finish(agent, &receiver, &session.run, 2 * sent);
    for number in 0..sent {
        let path = format!("/r/{}-{number}", session.run);
        for kind in [Kind::Client, Kind::Server] {
            let count = spans
                .iter()
                .filter(|span| {
                    let found = span.text("url.path").or_else(|| span.text("url.full"));
                    span.kind == kind && found.is_some_and(|found| found.ends_with(&path))
                })
                .count();
            assert_eq!(count, 1, "{path} {kind:?}\n{}", stopped.stderr);
        }
    }
}
