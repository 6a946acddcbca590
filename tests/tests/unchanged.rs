//! Never harm: programs that check every byte they exchange notice nothing of an agent that comes
//! and goes ten times meanwhile. And each agent tells of the requests made under its eyes, all of
//! them, once, although the connections were there before it.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tracer_tests::agent::Start;
use tracer_tests::finish::finish;
use tracer_tests::process;
use tracer_tests::receiver::Receiver;
use tracer_tests::session::Session;
use tracer_tests::span::Kind;

const AGENTS: usize = 10;
const CLIENTS: usize = 4;
/// Largest body; most are small.
const LARGEST: usize = 300_000;
/// What each agent at least gets to see before it goes.
const WATCHED: usize = 200;
/// Longest time without progress.
const STALL: Duration = Duration::from_secs(5);
/// Reads and writes give up after that, which is an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// FNV-1a: any changed, lost, repeated or swapped byte changes it.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn body(random: &mut Rng) -> Vec<u8> {
    let length = match random.u8(..4) {
        0 => 0,
        1 => random.usize(..200),
        2 => random.usize(..20_000),
        _ => random.usize(..=LARGEST),
    };
    // Made once: the traffic should not wait for its own making.
    static RANDOM: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut random = Rng::with_seed(7);
        std::iter::repeat_with(|| random.u8(..))
            .take(2 * LARGEST)
            .collect()
    });
    let start = random.usize(..LARGEST);
    RANDOM[start..start + length].to_vec()
}

/// Writes all of `bytes` in pieces of random sizes, by write or writev.
fn write_split(stream: &mut TcpStream, bytes: &[u8], random: &mut Rng) -> std::io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        let most = match random.u8(..3) {
            0 => 10,
            1 => 5_000,
            _ => LARGEST,
        };
        let (piece, _) = left.split_at(random.usize(1..=most).min(left.len()));
        let written = if random.bool() {
            let (one, two) = piece.split_at(random.usize(..=piece.len()));
            stream.write_vectored(&[IoSlice::new(one), IoSlice::new(&[]), IoSlice::new(two)])?
        } else {
            stream.write(piece)?
        };
        left = &left[written..];
    }
    Ok(())
}

/// Reads with buffers of random sizes, by recv or readv, now and then after a peek.
struct Input {
    stream: TcpStream,
    buffer: Vec<u8>,
    random: Rng,
}

impl Input {
    /// One read; false at the end.
    fn more(&mut self) -> std::io::Result<bool> {
        let mut space = vec![0; self.random.usize(1..100_000)];
        let count = match self.random.u8(..4) {
            0 => {
                self.stream.peek(&mut space)?;
                self.stream.read(&mut space)?
            }
            1 => {
                let middle = self.random.usize(..=space.len());
                let (one, two) = space.split_at_mut(middle);
                self.stream
                    .read_vectored(&mut [IoSliceMut::new(one), IoSliceMut::new(two)])?
            }
            _ => self.stream.read(&mut space)?,
        };
        self.buffer.extend_from_slice(&space[..count]);
        Ok(count > 0)
    }

    /// Head and body of the next message; `None` at the end of the stream.
    fn message(&mut self) -> std::io::Result<Option<(String, Vec<u8>)>> {
        let end = loop {
            let beginning = &self.buffer[..self.buffer.len().min(1000)];
            if let Some(end) = beginning.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if !self.more()? {
                assert!(self.buffer.is_empty(), "half a head");
                return Ok(None);
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let head = String::from_utf8(head).expect("a head of text");
        let length: usize = field(&head, "content-length").parse().expect("a length");
        while self.buffer.len() < length {
            assert!(self.more()?, "half a body");
        }
        let body: Vec<u8> = self.buffer.drain(..length).collect();
        assert_eq!(field(&head, "x-checksum"), checksum(&body).to_string());
        Ok(Some((head, body)))
    }
}

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {name} in {head:?}"))
}

fn opened(stream: TcpStream, random: Rng) -> (Input, TcpStream) {
    stream.set_nodelay(true).expect("nodelay");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
    let writer = stream.try_clone().expect("a second descriptor");
    let input = Input {
        stream,
        buffer: Vec::new(),
        random,
    };
    (input, writer)
}

/// Answers with a body of its own and the checksum of the request's.
fn serve(stream: TcpStream, seed: u64) {
    let (mut input, mut writer) = opened(stream, Rng::with_seed(seed));
    let mut random = Rng::with_seed(seed ^ 1);
    while let Some((_, got)) = input.message().expect("the server reads") {
        let answer = body(&mut random);
        let head = format!(
            "HTTP/1.1 200 OK\r\nx-got: {}\r\nx-checksum: {}\r\ncontent-length: {}\r\n\r\n",
            checksum(&got),
            checksum(&answer),
            answer.len()
        );
        let mut bytes = head.into_bytes();
        bytes.extend(answer);
        write_split(&mut writer, &bytes, &mut random).expect("the server writes");
    }
}

/// One request as its client saw it.
struct Seen {
    path: String,
    begun: Instant,
    ended: Instant,
}

/// Traffic without an end; everything is checked on the way.
struct Traffic {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn start(run: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let clients = (0..CLIENTS)
            .map(|number| {
                let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
                let run = format!("{run}c{number}");
                std::thread::spawn(move || client(address, &run, number, &stop, &seen))
            })
            .collect();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let stream = stream.expect("accept");
                std::thread::spawn(move || serve(stream, number as u64));
            }
        });
        Self {
            stop,
            seen,
            clients,
        }
    }

    fn count(&self) -> usize {
        self.seen.lock().expect("no client panicked").len()
    }

    /// Waits until `more` requests were answered.
    fn watch(&self, more: usize) {
        let goal = self.count() + more;
        let limit = Duration::from_secs(60);
        let done = process::poll_until(limit, || (self.count() >= goal).then_some(()));
        assert!(done.is_some(), "the traffic stands still");
    }

    fn finish(mut self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        for client in std::mem::take(&mut self.clients) {
            client.join().expect("a client found something wrong");
        }
        let mut seen = self.seen.lock().expect("no client panicked");
        std::mem::take(&mut *seen)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // A failed test must not leave its traffic to the next one.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn client(
    address: SocketAddr,
    run: &str,
    number: usize,
    stop: &AtomicBool,
    seen: &Mutex<Vec<Seen>>,
) {
    let seed = 1000 + number as u64;
    let mut random = Rng::with_seed(seed);
    let connect = || {
        let stream = TcpStream::connect(address).expect("connect");
        opened(stream, Rng::with_seed(seed))
    };
    let (mut input, mut writer) = connect();
    // Half of the clients keep their connection for all their life.
    let keeps = number.is_multiple_of(2);
    for request in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if !keeps && random.u8(..20) == 0 {
            (input, writer) = connect();
        }
        let path = format!("/r/{run}-{request}");
        let sent = body(&mut random);
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nx-checksum: {}\r\ncontent-length: {}\r\n\r\n",
            checksum(&sent),
            sent.len()
        );
        let mut bytes = head.into_bytes();
        bytes.extend(&sent);
        let begun = Instant::now();
        write_split(&mut writer, &bytes, &mut random).expect("the client writes");
        let answer = input.message().expect("the client reads");
        let (head, _) = answer.expect("an answer");
        let ended = Instant::now();
        assert_eq!(field(&head, "x-got"), checksum(&sent).to_string(), "{path}");
        let took = ended.duration_since(begun);
        assert!(took < STALL, "{path} took {took:?}");
        seen.lock()
            .expect("no client panicked")
            .push(Seen { path, begun, ended });
    }
}

/// Requests of one agent whose heads may go by before the joined connections are in step.
const UNRECOGNISED: u64 = 20;

/// The time between an agent being ready and being asked to end, and its spans by path and kind.
struct Watch {
    ready: Instant,
    asked: Instant,
    spans: std::collections::HashMap<(String, Kind), usize>,
    log: String,
}

#[test]
fn ten_agents_come_and_go() {
    let Some(session) = Session::begin("unchanged::ten_agents_come_and_go") else {
        return;
    };
    let traffic = Traffic::start(&session.run);
    traffic.watch(WATCHED);
    let watches: Vec<Watch> = (0..AGENTS)
        .map(|_| {
            let receiver = Receiver::start();
            let agent = Start::new().export_http(&receiver).ready();
            let ready = Instant::now();
            traffic.watch(WATCHED);
            let asked = Instant::now();
            // The traffic goes on, so that there is always something pending: no finish() here.
            let ready_after = agent.ready_after;
            let stopped = agent.stop();
            println!(
                "ready after {ready_after:?}, stopped after {:?}",
                stopped.took
            );
            assert!(!stopped.stderr.contains("panicked"), "{}", stopped.stderr);
            let losses = stopped.stderr.lines();
            losses
                .filter(|line| line.contains("ledger stage=\"e"))
                .for_each(|line| println!("{line}"));
            let mut spans = std::collections::HashMap::new();
            for span in receiver.spans_of(&session.run) {
                let path = tracer_tests::check::path_of(&span).to_owned();
                *spans.entry((path, span.kind)).or_default() += 1;
            }
            Watch {
                ready,
                asked,
                spans,
                log: stopped.stderr,
            }
        })
        .collect();
    traffic.watch(WATCHED);
    let seen = traffic.finish();
    let mut wrong = Vec::new();
    let (mut expected, mut missing, mut shown) = (0, 0, String::new());
    for (number, watch) in watches.iter().enumerate() {
        let mut missing_here = 0;
        for request in &seen {
            let within = watch.ready <= request.begun && request.ended <= watch.asked;
            expected += 2 * usize::from(within);
            for kind in [Kind::Server, Kind::Client] {
                let key = (request.path.clone(), kind);
                let found = watch.spans.get(&key).copied().unwrap_or(0);
                // What was cut by the coming or going may be told or not, but not twice.
                if found > 1 {
                    wrong.push(format!("agent {number}: {found} {kind:?} {}", request.path));
                }
                missing_here += u64::from(within && found == 0);
            }
        }
        // A connection that was joined inside a body may stay without certain pairs: those requests
        // are counted, not guessed. Those whose head was not recognised yet show as bytes only.
        let counted = dropped_exchanges(&watch.log);
        if missing_here > counted + UNRECOGNISED {
            wrong.push(format!(
                "agent {number}: {missing_here} spans missing, {counted} counted"
            ));
        }
        missing += missing_here;
        let paths: std::collections::HashSet<&str> =
            seen.iter().map(|request| request.path.as_str()).collect();
        if !wrong.is_empty() && shown.is_empty() {
            shown = format!("log of agent {number}: {}", watch.log);
        }
        let invented = watch
            .spans
            .keys()
            .filter(|(path, _)| !paths.contains(path.as_str()));
        wrong.extend(invented.map(|key| format!("agent {number}: nobody asked for {key:?}")));
    }
    println!(
        "{} requests, {expected} spans expected, {missing} of them missing and counted",
        seen.len()
    );
    assert!(
        missing * 5 <= expected as u64,
        "{missing} of {expected} missing"
    );
    assert!(expected >= 2 * AGENTS * WATCHED / 2, "{expected} expected");
    let first = &wrong[..wrong.len().min(20)];
    assert!(
        wrong.is_empty(),
        "{} of {expected}: {first:#?}\n{shown}",
        wrong.len()
    );
}

/// What the last ledger in an agent's log says of exchanges that gave no span.
fn dropped_exchanges(log: &str) -> u64 {
    let line = log
        .lines()
        .rfind(|line| line.contains("ledger stage=\"exchanges\""));
    let dropped = line.and_then(|line| line.split_once("dropped={"));
    let Some((_, dropped)) = dropped else {
        return 0;
    };
    dropped
        .trim_end_matches('}')
        .split(',')
        .filter_map(|entry| entry.rsplit(':').next()?.trim().parse::<u64>().ok())
        .sum()
}

/// The same bytes under a constant watch, all of them told.
#[test]
fn one_agent_stays() {
    let Some(session) = Session::begin("unchanged::one_agent_stays") else {
        return;
    };
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let traffic = Traffic::start(&session.run);
    traffic.watch(4 * WATCHED);
    let seen = traffic.finish();
    let (spans, _) = finish(agent, &receiver, &session.run, 2 * seen.len());
    assert_eq!(spans.len(), 2 * seen.len());
}
