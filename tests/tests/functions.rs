//! Programs of others come to the functions of system calls, and go, while the agent's own are there: threads that sleep in such
//! a function then skip what is at its end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tracer_tests::agent::{Agent, Start};
use tracer_tests::check::path_of;
use tracer_tests::finish::finish;
use tracer_tests::functions::Others;
use tracer_tests::http::Connection;
use tracer_tests::receiver::Receiver;
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::Kind;

/// Functions that threads of the test sleep in.
const CALLS: [&str; 3] = ["read", "readv", "recvfrom"];
/// How the server of a connection reads.
const WAYS: usize = 3;
/// Connections that are idle but for one request each time.
const IDLE: usize = 4 * WAYS;
/// Connections that never are.
const BUSY: usize = 2;
const ROUNDS: usize = 8;
/// The agent says so when tracepoints are there no more.
const DONE: &str = "no call is left";
/// And before that, when they come.
const CHANGED: &str = "tracepoints tell too";
/// It takes a few seconds.
const LONG: Duration = Duration::from_secs(30);

/// Answers requests without bodies. `way` says by which call they are read.
fn serve(stream: TcpStream, way: usize) {
    let mut writer = stream.try_clone().expect("a descriptor");
    let mut reader = stream.try_clone().expect("a descriptor");
    let mut file = File::from(OwnedFd::from(stream));
    let mut text = [0; 4096];
    let mut length = 0;
    loop {
        let room = &mut text[length..];
        let read = match way % WAYS {
            0 => file.read(room),
            1 => reader.read_vectored(&mut [IoSliceMut::new(room)]),
            _ => reader.read(room),
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(count) => length += count,
        }
        if text[..length].ends_with(b"\r\n\r\n") {
            length = 0;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            if writer.write_all(answer).is_err() {
                return;
            }
        }
    }
}

/// A server with a thread for each connection.
fn server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for way in 0.. {
            let (stream, _) = listener.accept().expect("accept");
            stream.set_nodelay(true).expect("nodelay");
            std::thread::spawn(move || serve(stream, way));
        }
    });
    address
}

struct Requests<'a> {
    run: &'a str,
    sent: AtomicUsize,
}

impl Requests<'_> {
    fn send(&self, connection: &mut Connection) {
        let n = self.sent.fetch_add(1, Ordering::Relaxed);
        let run = self.run;
        let request = format!("GET /r/{run}-{n} HTTP/1.1\r\nhost: a\r\n\r\n");
        let answer = connection.exchange(&[request.as_bytes()], false);
        assert_eq!(answer.expect("an answer").response.status, 200);
    }
}

/// What a scene works with.
struct Scene<'a> {
    agent: &'a Agent,
    requests: &'a Requests<'a>,
    idle: Vec<Connection>,
}

impl Scene<'_> {
    /// A request on each of the connections that are idle.
    fn all(&mut self) {
        for connection in &mut self.idle {
            self.requests.send(connection);
        }
    }

    /// How often the agent has been done with tracepoints.
    fn done(&self) -> usize {
        self.agent.stderr().matches(DONE).count()
    }

    /// Waits until it has been so often. Who is idle may be in a call that began before a change, as far as the agent can tell.
    fn until_done(&mut self, times: usize) {
        let start = Instant::now();
        while self.done() < times && start.elapsed() < LONG {
            self.all();
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// Says that it is over, however that is.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has `play` do what it does with idle connections, beside busy ones, under an agent in the fast tier: each request must be one CLIENT and
/// one SERVER span. So many times at least tracepoints come.
fn check(session: &Session, times: usize, play: impl FnOnce(&mut Scene<'_>)) {
    let address = server();
    let open = |_| Connection::open(address).expect("a connection");
    let idle = (0..IDLE).map(open).collect();
    let busy: Vec<Connection> = (0..BUSY).map(open).collect();
    let receiver = Receiver::start();
    let agent = Start::new()
        .export_http(&receiver)
        .env("RUST_LOG", "info,tracer_agent::probes=debug")
        .ready();
    let log = agent.stderr();
    assert!(log.contains("tier=fast"), "{log}");
    let requests = Requests {
        run: &session.run,
        sent: AtomicUsize::new(0),
    };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = End(&is_over);
        for mut connection in busy {
            let (requests, is_over) = (&requests, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    requests.send(&mut connection);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let requests = &requests;
        let agent = &agent;
        play(&mut Scene {
            agent,
            requests,
            idle,
        });
    });
    let sent = requests.sent.into_inner();
    let log = agent.stderr();
    let (spans, _) = finish(agent, &receiver, &format!("/r/{}-", session.run), 2 * sent);
    let mut counts = BTreeMap::<(String, bool), usize>::new();
    for n in 0..sent {
        for is_server in [false, true] {
            counts.insert((format!("/r/{}-{n}", session.run), is_server), 0);
        }
    }
    for span in &spans {
        let is_server = span.kind == Kind::Server;
        let path = path_of(span).to_owned();
        *counts.entry((path, is_server)).or_default() += 1;
    }
    counts.retain(|_, count| *count != 1);
    let wrong = counts.len();
    assert_eq!(wrong, 0, "of {sent} requests: {counts:#?}\n{log}");
    let both = log.matches(CHANGED).count();
    assert!(both >= times, "{both} times: {log}");
}

/// Programs at the functions, if this kernel takes them.
fn others(test: &str) -> Option<Others> {
    match Others::load(&CALLS) {
        Ok(others) => Some(others),
        Err(error) => {
            skipped(test, &format!("no programs of functions: {error}"));
            None
        }
    }
}

/// Scenario: servers sleep in `read`, `readv` and `recvfrom` on idle connections, while another program is attached to these functions, and
/// detached, again and again; each time the first request comes at once. Beside them connections that are never idle.
/// Guarantees: exactly one CLIENT and one SERVER span for each request; the agent is in the fast tier.
#[test]
fn of_others_come_and_go() {
    const NAME: &str = "functions::of_others_come_and_go";
    let Some(session) = Session::begin(NAME) else {
        return;
    };
    let Some(others) = others(NAME) else {
        return;
    };
    check(&session, ROUNDS / 4, |scene| {
        let mut done = 0;
        for round in 0..ROUNDS {
            scene.all();
            // Every other time tracepoints are there still.
            if round % 2 == 0 {
                scene.until_done(done + 1);
            }
            done = scene.done();
            let start = Instant::now();
            let attached = others.attach().expect("attached");
            println!("attached after {:?}", start.elapsed());
            scene.all();
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..50)));
            drop(attached);
            scene.all();
        }
    });
}

/// Scenario: the same, and the other program is a second agent.
/// Guarantees: the same.
#[test]
fn of_a_second_agent() {
    const NAME: &str = "functions::of_a_second_agent";
    let Some(session) = Session::begin(NAME) else {
        return;
    };
    if others(NAME).is_none() {
        return;
    }
    check(&session, 1, |scene| {
        scene.all();
        let second = Start::new().env("OTEL_TRACES_EXPORTER", "none").ready();
        second.stop();
        scene.all();
    });
}
