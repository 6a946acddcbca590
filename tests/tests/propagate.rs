//! Headers that the agent writes into requests: nothing else of what is sent changes, and the ids on the
//! wire are those of the spans that are exported.
//!
//! Client and server are threads of the test itself, which the agent traces like anybody else: so what
//! was sent and what arrived can be compared byte by byte.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tracer_tests::agent::Start;
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::Kind;

/// A read that takes longer is a stall.
const PATIENCE: Duration = Duration::from_secs(30);
const HEADER: &str = "\r\ntraceparent: 00-";
/// What is added to a head, without the line end before it.
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
        for chunk in body.chunks(rng.usize(1..50_000)) {
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

/// Takes the header out of what arrived, if it is where it should be; gives back both.
fn without_header(arrived: &[u8], head: usize) -> (Vec<u8>, Option<String>) {
    // Before the empty line.
    let at = head - 2;
    let line = arrived.get(at - 2..at + ADDED).unwrap_or_default();
    if !line.starts_with(HEADER.as_bytes()) {
        return (arrived.to_vec(), None);
    }
    let text = String::from_utf8_lossy(&line[2..]).trim_end().to_owned();
    let rest = [&arrived[..at], &arrived[at + ADDED..]].concat();
    (rest, Some(text))
}

/// One connection from the test to itself.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new(listener: &TcpListener, address: SocketAddr) -> Self {
        let client = TcpStream::connect(address).expect("connect");
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
        let split = match request.way {
            Way::SplitHead => rng.usize(1..request.head.len() - 1),
            Way::Apart => request.head.len(),
            Way::Whole | Way::Pipelined => bytes.len(),
        };
        let (server, client) = (&mut self.server, &mut self.client);
        let mut arrived = Vec::with_capacity(bytes.len() + ADDED);
        std::thread::scope(|scope| {
            let writes = scope.spawn(|| {
                client.write_all(&bytes[..split]).expect("write");
                client.write_all(&bytes[split..]).expect("write");
            });
            let mut buffer = vec![0; 64 * 1024];
            let head = request.head.len();
            loop {
                let added = without_header(&arrived, head).1.map_or(0, |_| ADDED);
                if arrived.len() >= bytes.len() + added
                    && (added > 0 || arrived.len() >= head + ADDED || !may_follow(server))
                {
                    break;
                }
                let n = server.read(&mut buffer).expect("the request arrives");
                assert!(n > 0, "the connection ended");
                arrived.extend_from_slice(&buffer[..n]);
            }
            writes.join().expect("writer");
        });
        for _ in 0..request.requests() {
            server
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .expect("answer");
        }
        let mut answers = vec![0; 40 * request.requests()];
        client.read_exact(&mut answers).expect("the answer arrives");
        arrived
    }
}

/// True when more bytes are there already: a header makes a request longer than was written.
fn may_follow(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("mode");
    let more = stream.peek(&mut [0]).is_ok_and(|n| n > 0);
    stream.set_nonblocking(false).expect("mode");
    more
}
