//! SIGHUP under traffic on connections that stay open: no request is lost, the new rules are in
//! force, a bad file changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tracer_tests::agent::{Agent, Start};
use tracer_tests::http::Connection;
use tracer_tests::process::poll_until;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{Language, Service};
use tracer_tests::session::Session;
use tracer_tests::span::{Kind, Span};
use tracer_tests::sys;

const LIMIT: Duration = Duration::from_secs(120);
/// Requests to each service that every phase must see.
const ENOUGH: usize = 300;

/// One request: to which service, and in which phases it began and ended.
#[derive(Clone, Copy, Debug)]
struct Sent {
    service: usize,
    number: usize,
    began: usize,
    ended: usize,
}

/// What the sending threads share.
struct Traffic<'a> {
    run: &'a str,
    services: [&'a Service; 2],
    phase: AtomicUsize,
    next: AtomicUsize,
    sent: Mutex<Vec<Sent>>,
}

/// The phase that ends the traffic.
const END: usize = usize::MAX;

impl Traffic<'_> {
    /// Asks one service and then the other, each over its own connection, until the end.
    fn send(&self) {
        let open = |service: &Service| Connection::open(service.address).expect("connect");
        let mut connections = self.services.map(open);
        loop {
            for (service, connection) in connections.iter_mut().enumerate() {
                let began = self.phase.load(Ordering::SeqCst);
                if began == END {
                    return;
                }
                let number = self.next.fetch_add(1, Ordering::SeqCst);
                let run = self.run;
                let request = format!(
                    "GET /r/{run}-{number}?status=200&bytes=5&delay_ms=0 HTTP/1.1\r\nHost: x\r\n\r\n"
                );
                let answer = connection.exchange(&[request.as_bytes()], false);
                assert_eq!(answer.expect("an answer").response.status, 200);
                let ended = self.phase.load(Ordering::SeqCst);
                self.sent.lock().expect("sent").push(Sent {
                    service,
                    number,
                    began,
                    ended,
                });
            }
        }
    }

    /// Lets enough requests pass in `phase`.
    fn enough(&self, phase: usize) {
        self.phase.store(phase, Ordering::SeqCst);
        let passed = poll_until(LIMIT, || {
            let sent = self.sent.lock().expect("sent");
            let within = |service| {
                let of = |sent: &&Sent| sent.began == phase && sent.service == service;
                sent.iter().filter(of).count() >= ENOUGH
            };
            (within(0) && within(1)).then_some(())
        });
        assert!(passed.is_some(), "no traffic in phase {phase}");
    }

    /// Lets enough requests pass in `phase`, and goes on to the next. Returns when their spans have
    /// arrived, so that none of them is decided by later settings.
    fn pass(&self, phase: usize, receiver: &Receiver) {
        self.enough(phase);
        self.phase.store(phase + 1, Ordering::SeqCst);
        let sent = self.sent.lock().expect("sent").clone();
        let of_phase = sent.iter().filter(|sent| sent.ended == phase);
        let wanted: BTreeSet<usize> = of_phase.map(|sent| sent.number).collect();
        // What is missing in the end is told by the comparison of all.
        receiver.wait_for(LIMIT, |spans| {
            let clients = spans.iter().filter(|span| span.kind == Kind::Client);
            let arrived: BTreeSet<usize> = clients.filter_map(number_of).collect();
            wanted.is_subset(&arrived)
        });
    }
}

/// The file, and how often the agent was told of it.
struct Settings {
    path: PathBuf,
    told: BTreeMap<&'static str, usize>,
}

impl Settings {
    /// Writes the file, tells the agent, and waits until its log says `answer` once more.
    fn change(&mut self, agent: &Agent, text: &str, answer: &'static str) {
        std::fs::write(&self.path, text).expect("write");
        let told = self.told.entry(answer).or_default();
        *told += 1;
        assert!(sys::signal(agent.pid(), libc::SIGHUP));
        let said = poll_until(LIMIT, || {
            (agent.stderr().matches(answer).count() >= *told).then_some(())
        });
        assert!(said.is_some(), "{answer}\n{}", agent.stderr());
    }
}

const BEFORE: &str = "routes: {patterns: []}\n";
const WITHOUT_PYTHON: &str = "discovery:\n  exclude:\n    exe: ['python*']\n\
    routes:\n  patterns: ['/r/{request}']\n";
const ERRORS_ONLY: &str = "sampling:\n  sampler: always_off\n  keep_errors: true\n";

#[test]
fn settings_change_under_traffic() {
    let Some(session) = Session::begin("reload::settings_change_under_traffic") else {
        return;
    };
    let services = [
        Language::Rust.start().expect("the Rust service"),
        Language::PythonThreaded
            .start()
            .expect("the Python service"),
    ];
    let directory = TempDir::new().expect("directory");
    let mut settings = Settings {
        path: directory.path().join("agent.yaml"),
        told: BTreeMap::new(),
    };
    std::fs::write(&settings.path, BEFORE).expect("write");
    let receiver = Receiver::start();
    let agent = Start::new()
        .export_http(&receiver)
        .env("OTEL_BSP_MAX_QUEUE_SIZE", "200000")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .arg("--config")
        .arg(&settings.path)
        .ready();
    let traffic = Traffic {
        run: &session.run,
        services: services.each_ref(),
        phase: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
        sent: Mutex::new(Vec::new()),
    };
    // Even phases are quiet, in odd ones the settings change.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| traffic.send());
        }
        let guard = EndTraffic(&traffic);
        traffic.pass(0, &receiver);
        settings.change(&agent, WITHOUT_PYTHON, "settings reloaded");
        traffic.pass(2, &receiver);
        settings.change(&agent, "sampling:\n  samplr: x\n", "not reloaded");
        traffic.pass(4, &receiver);
        settings.change(&agent, BEFORE, "settings reloaded");
        traffic.pass(6, &receiver);
        settings.change(&agent, ERRORS_ONLY, "settings reloaded");
        traffic.enough(8);
        drop(guard);
    });
    let ledger = agent.drained_ledger(LIMIT);
    assert_eq!(ledger.wrong_sums(), Vec::<String>::new());
    let dropped = ledger.stage("exchanges").dropped;
    // What was under way at the excluded service when the rules changed; nothing else.
    let given_up: u64 = dropped.values().sum();
    assert!(
        given_up <= 2 && dropped.keys().all(|reason| reason == "policy_changed"),
        "{dropped:?}"
    );
    let stopped = agent.stop();
    assert!(
        stopped
            .stderr
            .contains("agent.yaml line 2: unknown key `sampling.samplr`"),
        "{}",
        stopped.stderr
    );
    let sent = traffic.sent.into_inner().expect("sent");
    check(&sent, &receiver.spans_of(&session.run), &stopped.stderr);
}

/// Ends the traffic, also when an assertion failed.
struct EndTraffic<'a>(&'a Traffic<'a>);

impl Drop for EndTraffic<'_> {
    fn drop(&mut self) {
        self.0.phase.store(END, Ordering::SeqCst);
    }
}

/// Which request a span tells of.
fn number_of(span: &Span) -> Option<usize> {
    let path = span.text("url.path").or_else(|| span.text("url.full"))?;
    path.split('?').next()?.rsplit('-').next()?.parse().ok()
}

fn check(sent: &[Sent], spans: &[Span], log: &str) {
    let mut found: BTreeMap<(usize, Kind), Vec<&Span>> = BTreeMap::new();
    for span in spans {
        let number = number_of(span).unwrap_or_else(|| panic!("{span:?}"));
        found.entry((number, span.kind)).or_default().push(span);
    }
    let mut wrong = Vec::new();
    for request in sent {
        let Sent {
            service,
            number,
            began,
            ended,
        } = *request;
        for kind in [Kind::Server, Kind::Client] {
            let of = found.get(&(number, kind)).map_or(&[][..], Vec::as_slice);
            let quiet = began == ended && began % 2 == 0;
            let excluded = service == 1 && kind == Kind::Server;
            let expected = match began {
                _ if !quiet && (excluded || began >= 7 || ended >= 7) => continue,
                8 => 0,
                2 | 4 if excluded => 0,
                _ => 1,
            };
            let name = match began {
                _ if !quiet => None,
                2 | 4 => Some("GET /r/{request}"),
                _ => Some("GET"),
            };
            let named = of
                .iter()
                .all(|span| name.is_none_or(|name| span.name == name));
            if of.len() != expected || !named {
                let names: Vec<_> = of.iter().map(|span| &span.name).collect();
                wrong.push(format!("{request:?} {kind:?}: {names:?}"));
            }
        }
    }
    let first = wrong.iter().take(10).collect::<Vec<_>>();
    assert!(
        wrong.is_empty(),
        "{} of {}: {first:#?}\n{log}",
        wrong.len(),
        sent.len()
    );
}
