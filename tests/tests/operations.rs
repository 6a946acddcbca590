//! Agents that come and go under traffic on connections that stay open: every request has exactly one
//! SERVER and one CLIENT span, whoever reports it; and bounds of memory and CPU that are met.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tracer_tests::agent::{Agent, Start};
use tracer_tests::http::Connection;
use tracer_tests::process::poll_until;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{Language, Service};
use tracer_tests::session::Session;
use tracer_tests::span::{Kind, Span};
use tracer_tests::sys;

const LIMIT: Duration = Duration::from_secs(60);
const CONCURRENCY: usize = 8;
/// Requests that every phase must have.
const ENOUGH: usize = 400;

/// What the sending threads share.
struct Traffic<'a> {
    run: &'a str,
    service: &'a Service,
    flows: AtomicBool,
    ended: AtomicBool,
    /// Threads between two requests, while nothing flows.
    resting: AtomicUsize,
    next: AtomicUsize,
    sent: Mutex<Vec<usize>>,
}

impl Traffic<'_> {
    /// Asks over one connection until the end.
    fn send(&self) {
        let mut connection = Connection::open(self.service.address).expect("connect");
        while !self.ended.load(Ordering::SeqCst) {
            if !self.flows.load(Ordering::SeqCst) {
                self.resting.fetch_add(1, Ordering::SeqCst);
                while !self.flows.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(2));
                }
                self.resting.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            let run = self.run;
            let request = format!(
                "GET /r/{run}-{number}?status=200&bytes=5&delay_ms=3 HTTP/1.1\r\nHost: x\r\n\r\n"
            );
            let answer = connection.exchange(&[request.as_bytes()], false);
            assert_eq!(answer.expect("an answer").response.status, 200);
            self.sent.lock().expect("sent").push(number);
        }
    }

    fn count(&self) -> usize {
        self.sent.lock().expect("sent").len()
    }

    /// Lets enough requests pass.
    fn pass(&self) {
        let before = self.count();
        let passed = poll_until(LIMIT, || (self.count() >= before + ENOUGH).then_some(()));
        assert!(passed.is_some(), "no traffic");
    }

    /// Nothing is under way until `flows` is set again, and all spans have arrived.
    fn rest(&self, receiver: &Receiver) {
        self.flows.store(false, Ordering::SeqCst);
        let rests = || (self.resting.load(Ordering::SeqCst) == CONCURRENCY).then_some(());
        assert!(poll_until(LIMIT, rests).is_some(), "traffic does not rest");
        // What is missing is told by the comparison at the end.
        receiver.wait_count(self.run, 2 * self.count(), LIMIT);
    }

    fn flow(&self) {
        self.flows.store(true, Ordering::SeqCst);
    }
}

/// Ends the traffic, also when an assertion failed.
struct EndTraffic<'a>(&'a Traffic<'a>);

impl Drop for EndTraffic<'_> {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}

fn start(receiver: &Receiver, name: &str) -> Agent {
    Start::new()
        .export_http(receiver)
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "200000")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .arg("--takeover")
        .arg(name)
        .ready()
}

fn says(agent: &Agent, what: &str) {
    let said = poll_until(LIMIT, || agent.stderr().contains(what).then_some(()));
    assert!(said.is_some(), "{what}\n{}", agent.stderr());
}

#[test]
fn agents_come_and_go_under_traffic() {
    let Some(session) = Session::begin("operations::agents_come_and_go_under_traffic") else {
        return;
    };
    let service = Language::Rust.start().expect("the service");
    let receiver = Receiver::start();
    let traffic = Traffic {
        run: &session.run,
        service: &service,
        flows: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        resting: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
        sent: Mutex::new(Vec::new()),
    };
    let mut log = String::new();
    std::thread::scope(|scope| {
        for _ in 0..CONCURRENCY {
            scope.spawn(|| traffic.send());
        }
        let guard = EndTraffic(&traffic);
        let first = start(&receiver, &session.run);
        traffic.flow();
        traffic.pass();
        // A newer one is started beside it, and takes over.
        let second = start(&receiver, &session.run);
        says(&first, "this one stands by");
        says(&second, "took over from another agent");
        traffic.pass();
        // It crashes: the older one reports again.
        traffic.rest(&receiver);
        assert!(sys::signal(second.pid(), libc::SIGKILL));
        says(&first, "this one reports again");
        traffic.flow();
        traffic.pass();
        // A third one takes over, and the first ends, as in a rolling update.
        let third = start(&receiver, &session.run);
        traffic.pass();
        let ledger = first.ledger();
        assert_eq!(ledger.wrong_sums(), Vec::<String>::new());
        log += &first.stop().stderr;
        traffic.pass();
        // It crashes with nobody beside it; what is started then picks the connections up.
        traffic.rest(&receiver);
        assert!(sys::signal(third.pid(), libc::SIGKILL));
        log += &third.stderr();
        let fourth = start(&receiver, &session.run);
        traffic.flow();
        traffic.pass();
        traffic.rest(&receiver);
        drop(guard);
        log += &fourth.stop().stderr;
    });
    check(
        &traffic.sent.into_inner().expect("sent"),
        &receiver.spans_of(&session.run),
        &log,
    );
}

/// Scenario: spans that are long and wait for a decision for a minute, more of them than the bound allows.
/// Guarantees: memory stays near the bound, what is given up for it is counted, and tracing goes on.
#[test]
fn memory_stays_near_its_bound() {
    let Some(session) = Session::begin("operations::memory_stays_near_its_bound") else {
        return;
    };
    const BOUND: u64 = 128 << 20;
    let service = Language::Rust.start().expect("the service");
    let receiver = Receiver::start();
    let agent = Start::new()
        .export_http(&receiver)
        .env("TRACER_LIMITS_MEMORY", BOUND.to_string())
        .env("OTEL_TRACES_SAMPLER", "always_off")
        .env("TRACER_SAMPLING_KEEP_ERRORS", "true")
        .env("TRACER_SAMPLING_DECISION_WAIT_MS", "60000")
        .env("TRACER_SAMPLING_MAX_BUFFERED_SPANS", "1000000")
        .ready();
    let run = &session.run;
    let long = "x".repeat(6000);
    let mut number = 0u64;
    let mut connection = Connection::open(service.address).expect("connect");
    let mut ask = || {
        number += 1;
        // A parent elsewhere: the trace has no root here that would decide it.
        let request = format!(
            "GET /r/{run}-{number}?status=200&bytes=5&delay_ms=0&long={long} HTTP/1.1\r\nHost: x\r\n\
             traceparent: 00-{number:032x}-{number:016x}-01\r\n\r\n"
        );
        let answer = connection.exchange(&[request.as_bytes()], false);
        assert_eq!(answer.expect("an answer").response.status, 200);
    };
    let resident = || {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", agent.pid()));
        let statm = statm.expect("a running agent");
        let pages = statm
            .split_whitespace()
            .nth(1)
            .and_then(|n| n.parse::<u64>().ok());
        pages.expect("pages") * 4096
    };
    let mut highest = 0;
    let shed = poll_until(2 * LIMIT, || {
        (0..50).for_each(|_| ask());
        highest = highest.max(resident());
        agent
            .stderr()
            .contains("more memory than allowed")
            .then_some(())
    });
    assert!(
        shed.is_some(),
        "{} MiB\n{}",
        resident() >> 20,
        agent.stderr()
    );
    assert!(highest < 2 * BOUND, "{} MiB", highest >> 20);
    says(&agent, "there is enough memory again");
    let seen = agent.ledger().stage("exchanges").seen;
    let goes_on = poll_until(LIMIT, || {
        ask();
        (agent.ledger().stage("exchanges").seen > seen).then_some(())
    });
    assert!(goes_on.is_some(), "{}", agent.stderr());
    let metrics = agent.metrics();
    let line = |name: &str| metrics.lines().any(|line| line.starts_with(name));
    assert!(
        line(&format!("tracer_agent_memory_limit_bytes {BOUND}")),
        "{metrics}"
    );
    assert!(!line("tracer_agent_memory_sheds_total 0"), "{metrics}");
    assert_eq!(agent.ledger().wrong_sums(), Vec::<String>::new());
    agent.stop();
}

/// Scenario: a budget of CPU that is less than the agent takes when it has nothing to do.
/// Guarantees: it switches everything off and says so, what is sent then is not told, and the ledger adds up.
#[test]
fn tracing_ends_above_the_budget_of_cpu() {
    let Some(session) = Session::begin("operations::tracing_ends_above_the_budget_of_cpu") else {
        return;
    };
    let service = Language::Rust.start().expect("the service");
    let receiver = Receiver::start();
    let agent = Start::new()
        .export_http(&receiver)
        .env("TRACER_LIMITS_CPU", "0.00001")
        .ready();
    let run = &session.run;
    let ask = |connection: &mut Connection, tag: &str| {
        let request =
            format!("GET /r/{run}-{tag}?status=200&bytes=5&delay_ms=0 HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = connection.exchange(&[request.as_bytes()], false);
        assert_eq!(answer.expect("an answer").response.status, 200);
    };
    let mut connection = Connection::open(service.address).expect("connect");
    let off = "tracer_agent_cpu_switched_off{feature=\"tracing\"} 1";
    let has = |text: &str, line: &str| text.lines().any(|found| found == line);
    let switched_off = poll_until(2 * LIMIT, || {
        ask(&mut connection, "before");
        has(&agent.metrics(), off).then_some(())
    });
    assert!(
        switched_off.is_some(),
        "{}\n{}",
        agent.metrics(),
        agent.stderr()
    );
    assert!(
        agent.stderr().contains("more CPU than allowed"),
        "{}",
        agent.stderr()
    );
    let metrics = agent.metrics();
    assert!(
        !has(&metrics, "tracer_agent_cpu_sheds_total 0"),
        "{metrics}"
    );
    let mut second = Connection::open(service.address).expect("connect");
    for _ in 0..20 {
        ask(&mut connection, "after");
        ask(&mut second, "after");
    }
    assert_eq!(agent.ledger().wrong_sums(), Vec::<String>::new());
    agent.stop();
    let told = receiver.spans_of(run).into_iter().filter(|span| {
        let path = span.text("url.path").or_else(|| span.text("url.full"));
        path.is_some_and(|path| path.contains("-after"))
    });
    assert_eq!(told.count(), 0);
}

fn check(sent: &[usize], spans: &[Span], log: &str) {
    let mut found: BTreeMap<(usize, Kind), usize> = BTreeMap::new();
    for span in spans {
        let path = span.text("url.path").or_else(|| span.text("url.full"));
        let path = path.and_then(|path| path.split('?').next());
        let number = path.and_then(|path| path.rsplit('-').next()?.parse().ok());
        let number = number.unwrap_or_else(|| panic!("{span:?}"));
        *found.entry((number, span.kind)).or_default() += 1;
    }
    let mut wrong = Vec::new();
    for number in sent {
        for kind in [Kind::Server, Kind::Client] {
            let times = found.get(&(*number, kind)).copied().unwrap_or_default();
            if times != 1 {
                wrong.push(format!("{number} {kind:?}: {times}"));
            }
        }
    }
    let first = wrong.iter().take(10).collect::<Vec<_>>();
    assert!(
        wrong.is_empty(),
        "{} of {}: {first:?}\n{log}",
        wrong.len(),
        sent.len()
    );
}
