//! Heads that come in parts, with bodies that are longer than what is looked at, and another message behind.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use tracer_tests::agent::Start;
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::session::Session;
use tracer_tests::span::Kind;

/// A read that takes longer is a stall.
const PATIENCE: Duration = Duration::from_secs(30);
/// More than two reads of [`BUFFER`] and than what is captured of a message whose end is not known.
const BODY: usize = 160_000;
const BUFFER: usize = 64 * 1024;

/// How a message says how long its body is.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length,
    Chunked,
}

/// A message: its head, and all of it.
fn message(start: &str, framing: Framing) -> (usize, Vec<u8>) {
    let field = match framing {
        Framing::Length => format!("Content-Length: {BODY}"),
        Framing::Chunked => "Transfer-Encoding: chunked".to_owned(),
    };
    let mut bytes = format!("{start}\r\nX-First: 1\r\n{field}\r\nX-Last: 2\r\n\r\n").into_bytes();
    let head = bytes.len();
    match framing {
        Framing::Length => bytes.extend(vec![b'c'; BODY]),
        Framing::Chunked => {
            for chunk in vec![b'c'; BODY].chunks(40_000) {
                bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
        }
    }
    (head, bytes)
}

/// Where heads are cut: everywhere but within the first 16 bytes and within the field that says how long the body is. Those say
/// nothing in parts: what follows is looked at up to some limit, and counted.
fn cuts(head: &[u8]) -> Vec<usize> {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let field = ["content-length", "transfer-encoding"]
        .iter()
        .find_map(|name| text.find(name))
        .expect("a field");
    let end = field + text[field..].find("\r\n").expect("its end");
    (16..head.len())
        .filter(|cut| !(field + 1..end + 2).contains(cut))
        .collect()
}

/// Writes at one end what is read at the other: up to `cut`, then all that follows.
fn carry(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8], cut: usize) {
    from.write_all(&bytes[..cut]).expect("write");
    let mut buffer = vec![0; BUFFER];
    to.read_exact(&mut buffer[..cut]).expect("the first part");
    std::thread::scope(|scope| {
        scope.spawn(|| from.write_all(&bytes[cut..]).expect("write"));
        let mut got = cut;
        while got < bytes.len() {
            let n = to.read(&mut buffer).expect("the rest");
            assert!(n > 0, "the connection ended");
            got += n;
        }
    });
}

/// Scenario: two requests in one stretch, each with a body of 160 KB, and their two responses alike, in connections of which
/// each has its first head, of the request and of the response, cut at another place.
/// Guarantees: one span at each end for every request.
#[test]
fn heads_in_parts() {
    let Some(session) = Session::begin("heads_in_parts") else {
        return;
    };
    let receiver = Receiver::start();
    let agent = Start::new()
        .only_this_process()
        .export_http(&receiver)
        .ready();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let mut paths = Vec::new();
    for framing in [Framing::Length, Framing::Chunked] {
        let path = |i: usize| format!("/r/{}-{framing:?}-{i:04}", session.run);
        let request = |i| message(&format!("POST {} HTTP/1.1\r\nHost: test", path(i)), framing);
        let (head, first) = request(0);
        let cuts_in_request = cuts(&first[..head]);
        let (head, response) = message("HTTP/1.1 200 Cut anywhere\r\nServer: test", framing);
        let cuts_in_response = cuts(&response[..head]);
        for (i, cut) in cuts_in_request.iter().enumerate() {
            let requests = request(i).1.repeat(2);
            let responses = response.repeat(2);
            let address = listener.local_addr().expect("address");
            let mut client = TcpStream::connect(address).expect("connect");
            let (mut server, _) = listener.accept().expect("accept");
            for stream in [&client, &server] {
                stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
                stream.set_nodelay(true).expect("nodelay");
            }
            carry(&mut client, &mut server, &requests, *cut);
            let cut_in_response = cuts_in_response[i % cuts_in_response.len()];
            carry(&mut server, &mut client, &responses, cut_in_response);
            paths.push((path(i), *cut, cut_in_response));
        }
    }
    let count = 4 * paths.len();
    let (spans, _) = finish(agent, &receiver, &format!("/r/{}-", session.run), count);
    let mut wrong = Vec::new();
    for (path, cut, cut_in_response) in &paths {
        for kind in [Kind::Client, Kind::Server] {
            let ends = spans
                .iter()
                .filter(|span| span.kind == kind && span.mentions(path));
            let ends = ends.count();
            if ends != 2 {
                wrong.push(format!(
                    "{path}, cut at {cut} and {cut_in_response}: {ends} {kind:?} spans"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(spans.len(), count);
}
