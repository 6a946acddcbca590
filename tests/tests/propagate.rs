//! Headers that the agent writes into requests: nothing else of what is sent changes, and the ids on the
//! wire are those of the spans that are exported.
//!
//! Client and server are threads of the test itself, which the agent traces like anybody else: so what
//! was sent and what arrived can be compared byte by byte.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use tracer_tests::agent::Start;
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::Kind;

/// A read that takes longer is a stall.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the header with its line end.
const ADDED: usize = 70;

/// How a request is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Whole,
    /// The head, then the body.
    Apart,
    /// In two writes, somewhere within the head.
    SplitHead,
    /// Behind it, in the same write, the same request again.
    Pipelined,
}

struct Request {
    head: Vec<u8>,
    body: Vec<u8>,
    way: Way,
}

/// A request of random shape: heads of 100 bytes to 60 KB, bodies up to 200 KB, some chunked.
fn request(rng: &mut fastrand::Rng, path: &str) -> Request {
    let way = match rng.u8(..10) {
        0 => Way::SplitHead,
        1 => Way::Pipelined,
        2 | 3 => Way::Apart,
        _ => Way::Whole,
    };
    let body: Vec<u8> = match rng.u8(..10) {
        0 => vec![b'b'; rng.usize(1..200_000)],
        1 | 2 => vec![b'c'; rng.usize(1..2000)],
        _ => Vec::new(),
    };
    let chunked = !body.is_empty() && rng.bool();
    let method = if body.is_empty() { "GET" } else { "POST" };
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
    let mut padding = match rng.u8(..10) {
        0 => rng.usize(3000..60_000),
        1 | 2 => rng.usize(300..3000),
        _ => rng.usize(..300),
    };
    let mut name = 0;
    while padding > 0 {
        let line = padding.min(rng.usize(1..1500));
        head.push_str(&format!("x-{name}: {}\r\n", "p".repeat(line)));
        padding -= line;
        name += 1;
    }
    let body = if chunked {
        head.push_str("Transfer-Encoding: chunked\r\n\r\n");
        let mut chunks = Vec::new();
        for chunk in body.chunks(rng.usize(1000..50_000)) {
            chunks.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            chunks.extend(chunk);
            chunks.extend(b"\r\n");
        }
        chunks.extend(b"0\r\n\r\n");
        chunks
    } else if body.is_empty() {
        head.push_str("\r\n");
        body
    } else {
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        body
    };
    Request {
        head: head.into_bytes(),
        body,
        way,
    }
}

impl Request {
    fn bytes(&self) -> Vec<u8> {
        let once = [self.head.as_slice(), &self.body].concat();
        match self.way {
            Way::Pipelined => [once.as_slice(), &once].concat(),
            _ => once,
        }
    }

    fn requests(&self) -> usize {
        1 + usize::from(self.way == Way::Pipelined)
    }
}

/// Takes the header out of what arrived, if there is one; gives back both.
fn without_header(arrived: &[u8], head: usize) -> (Vec<u8>, Option<String>) {
    let at = head - 2;
    if !is_added(arrived, head) {
        return (arrived.to_vec(), None);
    }
    let line = String::from_utf8_lossy(&arrived[at..at + ADDED]);
    let rest = [&arrived[..at], &arrived[at + ADDED..]].concat();
    (rest, Some(line.trim_end().to_owned()))
}

/// Something stands where the empty line of the head should be.
fn is_added(arrived: &[u8], head: usize) -> bool {
    arrived[head - 2..head] != *b"\r\n"
}

/// One connection from the test to itself.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new(listener: &TcpListener) -> Self {
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        }
        client.set_nodelay(true).expect("nodelay");
        Pair { client, server }
    }

    /// Sends a request, reads it at the other end, answers. Gives back what arrived.
    fn exchange(&mut self, request: &Request, rng: &mut fastrand::Rng) -> Vec<u8> {
        let bytes = request.bytes();
        let head = request.head.len();
        let split = match request.way {
            Way::SplitHead => rng.usize(1..head - 1),
            Way::Apart => head,
            Way::Whole | Way::Pipelined => bytes.len(),
        };
        let (server, client) = (&mut self.server, &mut self.client);
        let mut arrived = Vec::with_capacity(bytes.len() + ADDED);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                client.write_all(&bytes[..split]).expect("write");
                client.write_all(&bytes[split..]).expect("write");
            });
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let added = arrived.len() >= head && is_added(&arrived, head);
                if arrived.len() >= bytes.len() + if added { ADDED } else { 0 } {
                    break;
                }
                let n = server.read(&mut buffer).expect("the request arrives");
                assert!(n > 0, "the connection ended");
                arrived.extend_from_slice(&buffer[..n]);
            }
            writer.join().expect("writer");
        });
        const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let answers = ANSWER.repeat(request.requests());
        server.write_all(&answers).expect("answer");
        let mut read = vec![0; answers.len()];
        client.read_exact(&mut read).expect("the answer arrives");
        assert_eq!(read, answers);
        arrived
    }
}

/// Scenario: requests of random shapes over kept and new connections, in between protocols that only
/// look like HTTP, with an agent that writes headers; then the spans it exports.
/// Guarantees: what arrives is what was sent but for one header before the empty line; the ids in it
/// are those of the client span, and the server span is its child; nothing is lost or waits.
#[test]
fn only_the_header_is_added() {
    const TEST: &str = "only_the_header_is_added";
    const REQUESTS: usize = 1200;
    let Some(session) = Session::begin(TEST) else {
        return;
    };
    let receiver = Receiver::start();
    // This kernel's fault in FIONREAD, if it has it, is none to these programs: they never ask.
    let agent = Start::new()
        .arg("--propagate=always")
        .export_http(&receiver)
        .ready();
    if !agent
        .stderr()
        .contains("trace context is written into outgoing requests")
    {
        return skipped(TEST, "this kernel does not let headers be written");
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let mut rng = fastrand::Rng::with_seed(11);
    let mut headers = HashMap::new();
    let (mut sent, mut injected) = (0, 0);
    let mut pair = Pair::new(&listener);
    for i in 0..REQUESTS {
        if i % 10 == 0 {
            pair = Pair::new(&listener);
        }
        let path = format!("/r/{}-{i}", session.run);
        let request = request(&mut rng, &path);
        let arrived = pair.exchange(&request, &mut rng);
        let (rest, header) = without_header(&arrived, request.head.len());
        assert!(
            rest == request.bytes(),
            "request {i} ({:?}, head of {} bytes) arrived changed",
            request.way,
            request.head.len()
        );
        sent += request.requests();
        if let Some(header) = header {
            assert_ne!(
                request.way,
                Way::SplitHead,
                "{i}: it cannot be known what follows"
            );
            injected += 1;
            if request.way != Way::Pipelined {
                headers.insert(path, header);
            }
        }
    }
    // Frames of another protocol that carry HTTP, and bytes that begin like it.
    for begin in [&b"\0\0\0\0\0\0\0\x01\0\0\0\x40"[..], b"GETX / HTTP/1.1\r\n"] {
        let mut pair = Pair::new(&listener);
        let carried = b"GET /carried HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut expected = Vec::new();
        for bytes in [begin, carried, begin, carried] {
            pair.client.write_all(bytes).expect("write");
            expected.extend_from_slice(bytes);
        }
        drop(pair.client);
        let mut arrived = Vec::new();
        pair.server.read_to_end(&mut arrived).expect("read");
        assert!(arrived == expected, "another protocol was changed");
    }
    println!("{injected} of {sent} requests got a header");
    assert!(
        injected > REQUESTS / 20,
        "{injected} of {sent}: {}",
        agent.metrics()
    );

    let (spans, _) = finish(agent, &receiver, &format!("/r/{}-", session.run), 2 * sent);
    let mut checked = 0;
    for (path, header) in &headers {
        let end = |kind: Kind| {
            let mut ends = spans.iter().filter(|span| {
                span.kind == kind && ends_with(span.text("url.path"), span.text("url.full"), path)
            });
            let only = ends
                .next()
                .unwrap_or_else(|| panic!("{path}: no {kind:?} span"));
            assert!(ends.next().is_none(), "{path}: two {kind:?} spans");
            only
        };
        let (client, server) = (end(Kind::Client), end(Kind::Server));
        let wire = format!("traceparent: 00-{}-{}-03", client.trace_id, client.span_id);
        assert_eq!(*header, wire, "{path}");
        assert_eq!(server.trace_id, client.trace_id, "{path}");
        assert_eq!(server.parent.as_ref(), Some(&client.span_id), "{path}");
        checked += 1;
    }
    assert_eq!(checked, headers.len());
}

fn ends_with(path: Option<&str>, url: Option<&str>, wanted: &str) -> bool {
    path.or(url).is_some_and(|text| text.ends_with(wanted))
}

/// Scenario: an agent that is not asked to write anything. Guarantees: what arrives is what was sent,
/// and no program for it is loaded.
#[test]
fn off_by_default() {
    let Some(session) = Session::begin("off_by_default") else {
        return;
    };
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let mut rng = fastrand::Rng::with_seed(12);
    let mut pair = Pair::new(&listener);
    let request = request(&mut rng, &format!("/r/{}-off", session.run));
    assert!(pair.exchange(&request, &mut rng) == request.bytes());
    assert!(!agent.metrics().contains("tracer_agent_propagated_total{"));
    drop(agent.stop());
}
