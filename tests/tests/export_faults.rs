//! What backends and disks do to an exporter, with the exact number of spans sent and received.
//!
//! Every test: a real agent that traces one service and its client only, a known number of requests
//! (two spans each), one fault. Guaranteed: the received, and the counted losses, are the sent; no
//! span is received twice but where that is said.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use prost::Message;
use tempfile::TempDir;
use tonic::Code;
use tracer_tests::agent::{Agent, Start, free_address};
use tracer_tests::driver::Plan;
use tracer_tests::ledger::Stage;
use tracer_tests::process::poll_until;
use tracer_tests::receiver::{Answer, Receiver};
use tracer_tests::services::{Language, Service};
use tracer_tests::session::Session;
use tracer_tests::sys;

const REQUESTS: usize = 200;
const SPANS: usize = 2 * REQUESTS;
/// For anything that should come: generous, since it is waited for and not slept.
const LIMIT: Duration = Duration::from_secs(120);

/// How long the collector is down. The 60 s take `TRACER_OUTAGE_SECONDS=60`.
fn outage() -> Duration {
    let seconds = std::env::var("TRACER_OUTAGE_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(4))
}

struct Fault {
    session: Session,
    service: Service,
}

impl Fault {
    fn begin(test: &str) -> Option<Self> {
        let session = Session::begin(&format!("export_faults::{test}"))?;
        let service = Language::Rust.start().expect("the Rust service");
        Some(Self { session, service })
    }

    /// An agent that traces the service only.
    fn start(&self, endpoint: impl std::fmt::Display, protocol: &str) -> Start {
        Start::new()
            .arg("--include-port")
            .arg(self.service.address.port().to_string())
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{endpoint}"))
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    }

    /// Makes [`SPANS`] spans.
    fn traffic(&self) {
        let report = Plan::load(self.service.address, &self.session.run, REQUESTS, 4).run();
        assert_eq!(report.failures(), [""; 0]);
    }

    /// Waits until `received` spans are there, and says how often spans came more than once.
    fn received(&self, receiver: &Receiver, received: usize) -> Received {
        receiver.wait_count(&self.session.run, received, LIMIT);
        let mut times = BTreeMap::<_, usize>::new();
        for span in receiver.spans_of(&self.session.run) {
            *times.entry((span.trace_id, span.span_id)).or_default() += 1;
        }
        Received {
            spans: times.len(),
            duplicates: times.values().sum::<usize>() - times.len(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Received {
    spans: usize,
    duplicates: usize,
}

const ALL: Received = Received {
    spans: SPANS,
    duplicates: 0,
};

/// The stage when it is as wanted.
fn stage(agent: &Agent, name: &str, wanted: impl Fn(&Stage) -> bool) -> Stage {
    let mut last = Stage::default();
    let reached = poll_until(LIMIT, || {
        std::thread::sleep(Duration::from_millis(50));
        let ledger = agent.ledger();
        assert_eq!(ledger.wrong_sums(), [""; 0]);
        last = ledger.stage(name);
        wanted(&last).then_some(())
    });
    assert!(reached.is_some(), "{name}: {last:?}\n{}", agent.stderr());
    last
}

fn settled(agent: &Agent) -> Stage {
    stage(agent, "spans", |spans| {
        spans.seen >= SPANS as u64 && spans.pending == 0
    })
}

fn dropped(reason: &str, n: u64) -> BTreeMap<String, u64> {
    [(reason.to_owned(), n)].into()
}

/// The collector is down from the start and comes back: memory alone holds what fits there.
#[test]
fn down_with_memory_only() {
    let Some(fault) = Fault::begin("down_with_memory_only") else {
        return;
    };
    for protocol in ["grpc", "http/protobuf"] {
        let (grpc, http) = (free_address(), free_address());
        let endpoint = if protocol == "grpc" { grpc } else { http };
        let agent = fault.start(endpoint, protocol).ready();
        fault.traffic();
        let waiting = |spans: &Stage| spans.seen == SPANS as u64;
        assert_eq!(stage(&agent, "spans", waiting).pending, SPANS as u64);
        std::thread::sleep(outage());
        assert_eq!(agent.ledger().stage("spans").pending, SPANS as u64);
        let receiver = Receiver::start_at(grpc, http);
        assert_eq!(fault.received(&receiver, SPANS), ALL, "{protocol}");
        assert_eq!(settled(&agent).dropped, BTreeMap::new());
        agent.stop();
        assert_eq!(fault.received(&receiver, SPANS), ALL, "{protocol}");
    }
}

/// The same with a spool: nothing stays in memory.
#[test]
fn down_with_a_spool() {
    let Some(fault) = Fault::begin("down_with_a_spool") else {
        return;
    };
    let (grpc, http) = (free_address(), free_address());
    let spool = TempDir::new().expect("directory");
    let agent = fault
        .start(http, "http/protobuf")
        .arg("--spool")
        .arg(spool.path())
        .ready();
    fault.traffic();
    assert_eq!(settled(&agent).dropped, BTreeMap::new());
    assert_eq!(agent.ledger().stage("spool").pending, SPANS as u64);
    std::thread::sleep(outage());
    let receiver = Receiver::start_at(grpc, http);
    assert_eq!(fault.received(&receiver, SPANS), ALL);
    let spool = stage(&agent, "spool", |spool| spool.pending == 0);
    assert_eq!(
        (spool.exported, spool.dropped),
        (SPANS as u64, BTreeMap::new())
    );
    agent.stop();
    assert_eq!(fault.received(&receiver, SPANS), ALL);
}

fn retry_info(seconds: i64) -> Vec<u8> {
    /// `google.rpc.Status`, with its details only.
    #[derive(Clone, PartialEq, Message)]
    struct Status {
        #[prost(message, repeated, tag = "3")]
        details: Vec<Any>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Any {
        #[prost(string, tag = "1")]
        type_url: String,
        #[prost(bytes = "vec", tag = "2")]
        value: Vec<u8>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct RetryInfo {
        #[prost(message, optional, tag = "1")]
        delay: Option<Delay>,
    }
    #[derive(Clone, Copy, PartialEq, Message)]
    struct Delay {
        #[prost(int64, tag = "1")]
        seconds: i64,
    }
    let delay = Some(Delay { seconds });
    let status = Status {
        details: vec![Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value: RetryInfo { delay }.encode_to_vec(),
        }],
    };
    status.encode_to_vec()
}

/// What a backend that is there says to the first request, and what becomes of the spans.
#[test]
fn answers() {
    let Some(fault) = Fault::begin("answers") else {
        return;
    };
    let exhausted = |details| Answer::Code(Code::ResourceExhausted, details);
    // The number of lost spans is that of the whole first request where the table says `None`.
    let table: [(&str, Answer, Option<u64>); 6] = [
        ("http/protobuf", Answer::Status(503, Some("2")), Some(0)),
        ("grpc", exhausted(retry_info(2)), Some(0)),
        ("grpc", exhausted(Vec::new()), None),
        ("http/protobuf", Answer::Partial(5), Some(5)),
        ("grpc", Answer::Partial(5), Some(5)),
        (
            "http/protobuf",
            Answer::Late(Duration::from_secs(3)),
            Some(0),
        ),
    ];
    for (protocol, answer, lost) in table {
        let receiver = Receiver::start();
        receiver.answer(std::slice::from_ref(&answer));
        let endpoint = if protocol == "grpc" {
            receiver.grpc
        } else {
            receiver.http
        };
        let agent = fault.start(endpoint, protocol).ready();
        fault.traffic();
        let counted = settled(&agent);
        let rejected = counted.dropped.get("rejected").copied().unwrap_or(0);
        let expected = if rejected == 0 {
            BTreeMap::new()
        } else {
            dropped("rejected", rejected)
        };
        assert_eq!(counted.dropped, expected, "{protocol} {answer:?}");
        match lost {
            Some(lost) => assert_eq!(rejected, lost, "{protocol} {answer:?}"),
            None => assert!(rejected > 0, "{protocol} {answer:?}"),
        }
        agent.stop();
        let expected = Received {
            spans: SPANS - usize::try_from(rejected).expect("small"),
            duplicates: 0,
        };
        assert_eq!(
            fault.received(&receiver, expected.spans),
            expected,
            "{protocol} {answer:?}"
        );
    }
}

/// The connection is reset in the middle of a request.
#[test]
fn reset() {
    let Some(fault) = Fault::begin("reset") else {
        return;
    };
    for protocol in ["grpc", "http/protobuf"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let agent = fault.start(address, protocol).ready();
        fault.traffic();
        let (mut connection, _) = listener.accept().expect("accept");
        connection.read_exact(&mut [0]).expect("a byte");
        // Closed with the rest unread: the kernel answers with a reset.
        drop((connection, listener));
        let other = free_address();
        let receiver = if protocol == "grpc" {
            Receiver::start_at(address, other)
        } else {
            Receiver::start_at(other, address)
        };
        assert_eq!(fault.received(&receiver, SPANS), ALL, "{protocol}");
        assert_eq!(settled(&agent).dropped, BTreeMap::new());
        agent.stop();
        assert_eq!(fault.received(&receiver, SPANS), ALL, "{protocol}");
    }
}

/// A small file system of its own; unmounted when dropped.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn mount(size: &str) -> Self {
        let directory = TempDir::new().expect("directory");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(directory.path())
            .status();
        assert!(status.expect("mount").success());
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the agent may still be ending.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// The spool's disk has room for a part only: the rest waits in memory.
#[test]
fn full_disk() {
    let Some(fault) = Fault::begin("full_disk") else {
        return;
    };
    let disk = Tmpfs::mount("96k");
    let (grpc, http) = (free_address(), free_address());
    let agent = fault
        .start(http, "http/protobuf")
        .arg("--spool")
        .arg(disk.path().join("spool"))
        .env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "20")
        .ready();
    fault.traffic();
    let failures = poll_until(LIMIT, || {
        std::thread::sleep(Duration::from_millis(50));
        let metrics = agent.metrics();
        let line = "tracer_agent_spool_write_failures_total{exporter=\"otlp\"} ";
        let value = metrics.lines().find_map(|text| text.strip_prefix(line))?;
        value.parse::<f64>().ok().filter(|count| *count > 0.0)
    });
    assert!(
        failures.is_some(),
        "the disk never was full\n{}",
        agent.stderr()
    );
    let ledger = agent.ledger();
    let (spans, spool) = (ledger.stage("spans"), ledger.stage("spool"));
    assert!(spool.pending > 0 && spans.pending > 0, "{ledger:#?}");
    assert!(agent.stderr().contains("cannot write to the spool"));
    let receiver = Receiver::start_at(grpc, http);
    assert_eq!(fault.received(&receiver, SPANS), ALL);
    assert_eq!(settled(&agent).dropped, BTreeMap::new());
    agent.stop();
    assert_eq!(fault.received(&receiver, SPANS), ALL);
}

/// The agent is killed with spans on disk: the next one sends them. At least once: the message that
/// was under way when the end came may come twice, and here none was.
#[test]
fn killed_with_a_spool() {
    let Some(fault) = Fault::begin("killed_with_a_spool") else {
        return;
    };
    let (grpc, http) = (free_address(), free_address());
    let spool = TempDir::new().expect("directory");
    let start = || fault.start(grpc, "grpc").arg("--spool").arg(spool.path());
    let agent = start().ready();
    fault.traffic();
    settled(&agent);
    assert_eq!(agent.ledger().stage("spool").pending, SPANS as u64);
    assert!(sys::signal(agent.pid(), libc::SIGKILL));
    assert!(!agent.wait(LIMIT).status.success());
    assert!(!segments(spool.path()).is_empty());

    let receiver = Receiver::start_at(grpc, http);
    let agent = start().ready();
    assert_eq!(fault.received(&receiver, SPANS), ALL);
    let counted = stage(&agent, "spool", |spool| spool.pending == 0);
    assert_eq!(
        (counted.seen, counted.exported),
        (SPANS as u64, SPANS as u64)
    );
    agent.stop();
    assert_eq!(fault.received(&receiver, SPANS), ALL);
    assert!(
        segments(spool.path()).is_empty(),
        "delivered, but still there"
    );
}

fn segments(spool: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(spool.join("otlp")).expect("the spool");
    let paths = entries.map(|entry| entry.expect("entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .collect()
}

/// The number after `name=` in the last log line of a stage.
fn logged(stderr: &str, stage: &str, name: &str) -> u64 {
    let line = stderr
        .lines()
        .rfind(|line| line.contains("ledger") && line.contains(&format!("stage=\"{stage}\"")));
    let line = line.unwrap_or_else(|| panic!("no ledger of {stage}\n{stderr}"));
    let value = line.split_once(&format!("{name}=")).map(|(_, rest)| rest);
    let digits = value.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    digits
        .and_then(|digits| digits.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {line}"))
}

/// The agent is asked to end while requests are made: what it says it exported is what arrived.
#[test]
fn terminated_under_load() {
    let Some(fault) = Fault::begin("terminated_under_load") else {
        return;
    };
    for with_spool in [false, true] {
        let receiver = Receiver::start();
        let spool = TempDir::new().expect("directory");
        let mut start = fault.start(receiver.http, "http/protobuf");
        if with_spool {
            start = start.arg("--spool").arg(spool.path());
        }
        let agent = start.ready();
        let plan = Plan::load(fault.service.address, &fault.session.run, 5000, 4);
        let load = std::thread::spawn(move || plan.run());
        assert!(
            receiver.wait_for(LIMIT, |spans| !spans.is_empty()),
            "nothing arrived\n{}",
            agent.stderr()
        );
        let stopped = agent.stop();
        load.join().expect("load");
        let logged = |name| logged(&stopped.stderr, "spans", name);
        let (seen, exported) = (logged("seen"), logged("exported"));
        let received = receiver.spans();
        let ids: std::collections::BTreeSet<_> = received
            .iter()
            .map(|span| (&span.trace_id, &span.span_id))
            .collect();
        assert_eq!(ids.len(), received.len(), "duplicates");
        assert_eq!(logged("pending"), 0, "{}", stopped.stderr);
        // On a machine too busy to deliver everything in time the rest is counted as dropped, the
        // request under way with it: the backend may have that one all the same.
        let received = received.len() as u64;
        assert!(
            (exported..=seen).contains(&received),
            "{received}\n{}",
            stopped.stderr
        );
    }
}
