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
use tracer_tests::frames::without_fields;
use tracer_tests::receiver::Receiver;
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};

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

/// A request of random shape: heads of 100 bytes to 60 KB, bodies up to 200 KB, some chunked. What one call
/// moves is looked at in some 16 steps (a head's window, a chunk) and the rest of it counted: so nothing
/// follows behind heads that take many, and chunks are few.
fn request(rng: &mut fastrand::Rng, path: &str) -> Request {
    let is_long = rng.u8(..10) == 0;
    let way = match rng.u8(..10) {
        0 => Way::SplitHead,
        1 if !is_long => Way::Pipelined,
        2 | 3 => Way::Apart,
        _ => Way::Whole,
    };
    let body: Vec<u8> = match rng.u8(..10) {
        0 => vec![b'b'; rng.usize(1..200_000)],
        1 | 2 => vec![b'c'; rng.usize(1..2000)],
        _ => Vec::new(),
    };
    let chunked = !body.is_empty() && !is_long && rng.bool();
    let method = if body.is_empty() { "GET" } else { "POST" };
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
    let mut padding = match rng.u8(..10) {
        _ if is_long => rng.usize(3000..60_000),
        0..=2 => rng.usize(300..3000),
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
        let most = rng.usize(1000..50_000).max(body.len() / 6);
        for chunk in body.chunks(most) {
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

    /// A head in parts, or longer than what is looked at in one piece: behind it, nothing on its connection gets
    /// a header.
    fn leaves_doubt(&self) -> bool {
        self.way == Way::SplitHead || self.head.len() > 3000
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

/// HTTP/2 as a client writes it: several requests in one write, heads in CONTINUATION frames, bodies.
fn frames(rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
    };
    frame(4, 0, 0, &[]);
    // POST, http, /, and a field that is not indexed.
    let head = [&[0x83, 0x86, 0x84, 0x10, 1, b'a', 100][..], &[b'v'; 100]].concat();
    for stream in (1..rng.u32(3..20)).step_by(2) {
        let cut = rng.usize(1..head.len());
        match rng.u8(..3) {
            0 => {
                frame(1, 0, stream, &head[..cut]);
                frame(9, 4, stream, &head[cut..]);
            }
            _ => frame(1, 4, stream, &head),
        }
        frame(0, 1, stream, &vec![b'd'; rng.usize(..16_384)]);
    }
    bytes
}

/// The same inside of a multiplexer's frames (as yamux has them): nothing of it is an HTTP/2 connection's.
fn tunnel(rng: &mut fastrand::Rng) -> Vec<u8> {
    let inner = frames(rng);
    let mut bytes = vec![0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0];
    for part in inner.chunks(rng.usize(1..5000)) {
        bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// HTTP/2, other protocols, some of which carry HTTP or begin like it: what arrives is what was sent, but for fields
/// in requests of HTTP/2.
fn others_pass(listener: &TcpListener, rng: &mut fastrand::Rng) {
    let carried = &b"GET /carried HTTP/1.1\r\nHost: a\r\n\r\n"[..];
    let framed = [b"\0\0\0\0\0\0\0\x01\0\0\0\x40", carried].concat();
    let similar = [b"GETX / HTTP/1.1\r\n", carried].concat();
    let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(20_000).collect();
    for bytes in [framed, similar, noise, frames(rng), tunnel(rng)] {
        let mut pair = Pair::new(listener);
        let arrived = std::thread::scope(|scope| {
            let (client, pieces) = (pair.client, rng.usize(1..bytes.len()));
            let bytes = &bytes;
            scope.spawn(move || {
                let mut client = client;
                for piece in bytes.chunks(pieces) {
                    client.write_all(piece).expect("write");
                }
            });
            let mut arrived = Vec::new();
            pair.server.read_to_end(&mut arrived).expect("read");
            arrived
        });
        // What does not begin as HTTP/2 does is given back as it is.
        let (rest, _) = without_fields(&arrived);
        assert!(rest == *bytes, "another protocol was changed");
    }
}

/// What so many requests of random shapes came to.
#[derive(Default)]
struct Soaked {
    sent: usize,
    injected: usize,
    took: Duration,
}

/// Sends requests from some threads and compares every byte that arrives.
fn soak(requests: usize) -> Soaked {
    const THREADS: usize = 4;
    let begin = std::time::Instant::now();
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || soak_alone(requests / THREADS, thread)))
            .collect();
        let done = threads
            .into_iter()
            .map(|thread| thread.join().expect("a thread"));
        done.collect::<Vec<_>>()
    });
    Soaked {
        sent: parts.iter().map(|(sent, _)| sent).sum(),
        injected: parts.iter().map(|(_, injected)| injected).sum(),
        took: begin.elapsed(),
    }
}

fn soak_alone(requests: usize, thread: usize) -> (usize, usize) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let mut rng = fastrand::Rng::with_seed(100 + thread as u64);
    let mut pair = Pair::new(&listener);
    let (mut sent, mut injected) = (0, 0);
    let mut renew = false;
    for i in 0..requests {
        if renew || i % 50 == 0 {
            pair = Pair::new(&listener);
        }
        if i % 500 == 499 {
            others_pass(&listener, &mut rng);
        }
        let request = request(&mut rng, &format!("/soak/{thread}-{i}"));
        let arrived = pair.exchange(&request, &mut rng);
        let (rest, header) = without_header(&arrived, request.head.len());
        assert!(
            rest == request.bytes(),
            "request {i} of {thread} arrived changed"
        );
        sent += request.requests();
        injected += usize::from(header.is_some());
        // Most connections end here, so that most requests are such that may get a header.
        renew = request.leaves_doubt() && rng.u8(..5) > 0;
    }
    (sent, injected)
}

/// By hand: `cargo test --release -p tracer-tests --test propagate -- --ignored --nocapture`. So many
/// requests as `TRACER_SOAK` says, without an agent, with one that only traces, and with one that sends
/// context in each of the two ways.
#[test]
#[ignore = "takes minutes"]
fn a_long_soak() {
    let Some(_session) = Session::begin("a_long_soak") else {
        return;
    };
    let count = std::env::var("TRACER_SOAK")
        .ok()
        .and_then(|text| text.parse().ok());
    let count: usize = count.unwrap_or(200_000);
    let receiver = Receiver::start();
    let mut plain = Duration::ZERO;
    for ways in [None, Some("false"), Some("option"), Some("always")] {
        let agent = ways.map(|way| {
            let agent = Start::new()
                .arg(format!("--propagate={way}"))
                .only_this_process();
            agent
                .env("OTEL_TRACES_SAMPLER", "always_off")
                .export_http(&receiver)
                .ready()
        });
        let Soaked {
            sent,
            injected,
            took,
        } = soak(count);
        if ways.is_none() {
            plain = took;
        }
        println!(
            "propagate {ways:?}: {sent} requests, {injected} with a header, {:.0} a second, {:.2} of those without an agent",
            sent as f64 / took.as_secs_f64(),
            plain.as_secs_f64() / took.as_secs_f64()
        );
        if let Some(agent) = agent {
            // What the page says of them is some seconds old.
            std::thread::sleep(Duration::from_secs(3));
            let page = agent.metrics();
            for line in page.lines().filter(|line| {
                line.starts_with("tracer_agent_propagated_total")
                    || line.contains("_drop")
                    || line.contains("_dropped")
            }) {
                if !line.ends_with(" 0") {
                    println!("  {line}");
                }
            }
            drop(agent.stop());
        }
    }
}

/// Scenario: an agent that sends context in TCP options only, and requests of random shapes.
/// Guarantees: not a byte differs, nothing waits, and the options arrive.
#[test]
fn options_change_nothing() {
    const TEST: &str = "options_change_nothing";
    const REQUESTS: usize = 300;
    let Some(session) = Session::begin(TEST) else {
        return;
    };
    let receiver = Receiver::start();
    let agent = Start::new()
        .arg("--propagate=option")
        .only_this_process()
        .export_http(&receiver)
        .ready();
    if !agent.stderr().contains("outgoing requests: in TCP options") {
        return skipped(TEST, "this kernel has no TCP options of programs");
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let mut rng = fastrand::Rng::with_seed(13);
    let mut pair = Pair::new(&listener);
    for i in 0..REQUESTS {
        if i % 10 == 0 {
            pair = Pair::new(&listener);
        }
        let path = format!("/r/{}-{i}", session.run);
        let request = request(&mut rng, &path);
        let arrived = pair.exchange(&request, &mut rng);
        assert!(arrived == request.bytes(), "request {i} arrived changed");
    }
    others_pass(&listener, &mut rng);
    // The page tells of it some seconds later.
    let received = tracer_tests::process::poll_until(Duration::from_secs(60), || {
        let page = agent.metrics();
        let line = page.lines().find_map(|line| {
            line.strip_prefix("tracer_agent_propagated_total{outcome=\"received\"} ")
        });
        line.is_some_and(|count| count != "0").then_some(())
    });
    assert!(received.is_some(), "{}", agent.metrics());
    drop(agent.stop());
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
        .only_this_process()
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
    let mut shapes = HashMap::new();
    let (mut sent, mut injected) = (0, 0);
    let mut pair = Pair::new(&listener);
    for i in 0..REQUESTS {
        if i % 10 == 0 {
            pair = Pair::new(&listener);
        }
        let path = format!("/r/{}-{i}", session.run);
        let request = request(&mut rng, &path);
        shapes.insert(path.clone(), Shape::of(&request, i));
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
    others_pass(&listener, &mut rng);
    println!("{injected} of {sent} requests got a header");
    assert!(
        injected > REQUESTS / 20,
        "{injected} of {sent}: {}",
        agent.metrics()
    );

    let (spans, _) = finish(agent, &receiver, &format!("/r/{}-", session.run), 2 * sent);
    assert_eq!(
        spans.len(),
        2 * sent,
        "one span at each end; not so: {:#?}",
        wrong_ends(&spans, &shapes)
    );
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

/// What a request looked like, to tell of one that went wrong, and how many times it was sent.
struct Shape {
    text: String,
    requests: usize,
}

impl Shape {
    fn of(request: &Request, number: usize) -> Self {
        let (head, body) = (request.head.len(), request.body.len());
        Shape {
            text: format!("{number}: {:?}, {head} + {body} bytes", request.way),
            requests: request.requests(),
        }
    }
}

/// Requests that have not one span at each end for each time they were sent, and how many they have.
fn wrong_ends(spans: &[Span], shapes: &HashMap<String, Shape>) -> Vec<String> {
    let mut ends: HashMap<(Kind, &str), usize> = HashMap::new();
    for span in spans {
        let whole = span.text("url.path").or(span.text("url.full"));
        if let Some(at) = whole.and_then(|whole| Some(&whole[whole.find("/r/")?..])) {
            *ends.entry((span.kind, at)).or_default() += 1;
        }
    }
    let mut wrong = Vec::new();
    for (path, Shape { text, requests }) in shapes {
        for kind in [Kind::Client, Kind::Server] {
            let count = ends.get(&(kind, path)).copied().unwrap_or(0);
            if count != *requests {
                wrong.push(format!("{text}: {count} {kind:?} spans of {requests}"));
            }
        }
    }
    wrong
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
