//! The agent with fewer rights: without a capability the feature that needs it is off and that is said,
//! everything else is traced with exact counts; without an essential one it says so and ends. What it
//! holds while it traces is what it needs, and secrets stay where they are.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use tracer_tests::agent::{self, Start};
use tracer_tests::http::Connection;
use tracer_tests::process::poll_until;
use tracer_tests::receiver::Receiver;
use tracer_tests::rights::{self, NOBODY};
use tracer_tests::services::{Language, Service};
use tracer_tests::session::{self, Session};
use tracer_tests::span::{Kind, Span};

const LIMIT: Duration = Duration::from_secs(60);
const REQUESTS: usize = 40;

/// All that are worth having on this machine, `CAP_SYS_ADMIN` apart.
const ALL: [&str; 5] = [
    "bpf",
    "perfmon",
    "sys_ptrace",
    "dac_read_search",
    "checkpoint_restore",
];

fn without(name: &str) -> Vec<&'static str> {
    ALL.into_iter().filter(|other| *other != name).collect()
}

/// Checks of `doctor` that say `missing`, by name, and whether anything can be traced.
fn doctor(user: u32, capabilities: &[&str]) -> (BTreeSet<String>, bool) {
    let mut command = rights::command(user, capabilities);
    command
        .arg(rights::reachable_agent())
        .args(["doctor", "--json"]);
    let output = command.output().expect("doctor");
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = checks.as_array().expect("an array");
    let missing = checks.iter().filter(|check| check["status"] == "missing");
    let missing = missing.filter_map(|check| Some(check["check"].as_str()?.to_owned()));
    (missing.collect(), output.status.success())
}

/// Requests over one connection, and the spans of them.
fn trace(service: &Service, run: &str, receiver: &Receiver) -> Vec<Span> {
    let mut connection = Connection::open(service.address).expect("connect");
    for number in 0..REQUESTS {
        let request = format!(
            "GET /r/{run}-{number}?status=200&bytes=5&delay_ms=0 HTTP/1.1\r\nHost: x\r\n\r\n"
        );
        let answer = connection.exchange(&[request.as_bytes()], false);
        assert_eq!(answer.expect("an answer").response.status, 200);
    }
    receiver.wait_count(run, 2 * REQUESTS, LIMIT);
    receiver.spans_of(run)
}

/// Exactly one SERVER and one CLIENT span of every request.
fn assert_exact(spans: &[Span], run: &str, log: &str) {
    for kind in [Kind::Server, Kind::Client] {
        for number in 0..REQUESTS {
            let path = format!("/r/{run}-{number}");
            let of = spans.iter().filter(|span| {
                let url = span.text("url.path").or_else(|| span.text("url.full"));
                let end = url.and_then(|url| url.split('?').next());
                span.kind == kind && end.is_some_and(|end| end.ends_with(&path))
            });
            assert_eq!(of.count(), 1, "{kind:?} {path}\n{log}");
        }
    }
}

#[test]
fn without_a_capability_only_its_feature_is_off() {
    let Some(_session) = Session::begin("rights::without_a_capability_only_its_feature_is_off")
    else {
        return;
    };
    let service = Language::PythonThreaded.start().expect("the service");
    let check = |user: u32, capabilities: &[&str], said: Option<&str>, off: Option<&str>| {
        let run = session::unique();
        let receiver = Receiver::start();
        let agent = Start::new()
            .export_http(&receiver)
            .with_rights(user, capabilities)
            .ready();
        let spans = trace(&service, &run, &receiver);
        let log = agent.stderr();
        agent.stop();
        assert_exact(&spans, &run, &log);
        if let Some(said) = said {
            assert_eq!(log.matches(said).count(), 1, "{said}\n{log}");
        }
        let (missing, can_trace) = doctor(user, capabilities);
        assert!(can_trace);
        if let Some(off) = off {
            assert!(missing.contains(off), "{off}: {missing:?}");
        }
        // Uprobes take CAP_SYS_ADMIN on some kernels: the log and the doctor agree on it.
        let uprobes = missing.contains("probe programs");
        assert_eq!(
            log.contains("no CAP_SYS_ADMIN"),
            uprobes,
            "{missing:?}\n{log}"
        );
        spans
    };
    let has_paths = |spans: &[Span]| {
        let server = spans.iter().find(|span| span.kind == Kind::Server);
        let server = server.expect("a server's span");
        server.resource.contains_key("process.executable.path")
    };
    assert!(has_paths(&check(NOBODY, &ALL, None, None)));
    let blind = check(
        NOBODY,
        &without("sys_ptrace"),
        Some("no CAP_SYS_PTRACE"),
        Some("look into processes"),
    );
    assert!(!has_paths(&blind));
    let only_ebpf = check(
        0,
        &["bpf", "perfmon"],
        Some("no CAP_DAC_READ_SEARCH"),
        Some("open replaced files"),
    );
    assert!(!has_paths(&only_ebpf));
}

#[test]
fn without_an_essential_capability_it_says_so() {
    let Some(_session) = Session::begin("rights::without_an_essential_capability_it_says_so")
    else {
        return;
    };
    let check = |capabilities: &[&str], said: &str, missing: &str| {
        let agent = Start::new()
            .env("OTEL_TRACES_EXPORTER", "none")
            .with_rights(NOBODY, capabilities)
            .spawn();
        let stopped = agent.wait(LIMIT);
        assert_eq!(stopped.status.code(), Some(1), "{}", stopped.stderr);
        let last = stopped.stderr.lines().last().unwrap_or_default();
        assert!(
            last.starts_with("tracer-agent: error: ") && last.contains(said),
            "{}",
            stopped.stderr
        );
        let (found, can_trace) = doctor(NOBODY, capabilities);
        assert!(!can_trace && found.contains(missing), "{found:?}");
    };
    check(
        &without("bpf"),
        "CAP_BPF and CAP_PERFMON",
        "load eBPF programs",
    );
    check(
        &without("perfmon"),
        "CAP_BPF and CAP_PERFMON",
        "load eBPF programs",
    );
    check(
        &without("dac_read_search"),
        "CAP_DAC_READ_SEARCH",
        "tracefs",
    );
}

/// `CapEff`, `NoNewPrivs` and `Seccomp` of `/proc/…/status`.
fn rights_in(status: &str) -> (u64, u64, u64) {
    let field = |name: &str, radix| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| u64::from_str_radix(line.trim(), radix).ok());
        number.unwrap_or_else(|| panic!("no {name} in {status}"))
    };
    (
        field("CapEff:", 16),
        field("NoNewPrivs:", 10),
        field("Seccomp:", 10),
    )
}

#[test]
fn what_is_not_needed_is_given_up_and_not_by_the_command() {
    let test = "rights::what_is_not_needed_is_given_up_and_not_by_the_command";
    let Some(_session) = Session::begin(test) else {
        return;
    };
    // DAC_READ_SEARCH, SYS_PTRACE, SYS_ADMIN (where uprobes take it), PERFMON, BPF, CHECKPOINT_RESTORE.
    const MOST: u64 = 1 << 2 | 1 << 19 | 1 << 21 | 1 << 38 | 1 << 39 | 1 << 40;
    let secret = "planted-secret-3f9c";
    let (receiver, nobody) = (Receiver::start(), agent::free_address());
    let agent = Start::new()
        .export_http(&receiver)
        .env("OTEL_TRACES_EXPORTER", "otlp,zipkin")
        .env(
            "OTEL_EXPORTER_ZIPKIN_ENDPOINT",
            format!("http://{nobody}/api/v2/spans?key={secret}"),
        )
        .env(
            "OTEL_EXPORTER_OTLP_HEADERS",
            format!("authorization=Bearer%20{secret},x-key={secret}"),
        )
        .env("RUST_LOG", "trace,h2=info,hyper=info")
        .ready();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("threads");
    let mut threads = 0;
    for task in tasks.flatten() {
        // A thread may be gone by now.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        threads += 1;
        let (effective, no_new_privs, seccomp) = rights_in(&status);
        assert_eq!(effective & !MOST, 0, "{status}");
        assert_eq!((no_new_privs, seccomp), (1, 2), "{status}");
    }
    assert!(threads > 1);
    let service = Language::PythonThreaded.start().expect("the service");
    let run = session::unique();
    let spans = trace(&service, &run, &receiver);
    let failed = poll_until(LIMIT, || {
        agent.stderr().contains("cannot export").then_some(())
    });
    assert!(failed.is_some(), "{}", agent.stderr());
    let mut said = vec![agent.metrics()];
    for page in ["/ledger", "/ledger/services", "/healthz", "/readyz"] {
        said.push(String::from_utf8_lossy(&agent.page(page)).into_owned());
    }
    let stopped = agent.stop();
    assert_exact(&spans, &run, &stopped.stderr);
    said.extend([stopped.stderr, stopped.stdout]);
    for arguments in [
        &["config", "print"][..],
        &["config", "check"],
        &["doctor", "--json"],
    ] {
        let output = Command::new(agent::binary())
            .args(arguments)
            .env("OTEL_EXPORTER_OTLP_HEADERS", format!("x-key={secret}"))
            .env(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                format!("http://u:{secret}@{nobody}"),
            )
            .env(
                "OTEL_EXPORTER_ZIPKIN_ENDPOINT",
                format!("http://u:{secret}@{nobody}/"),
            )
            .output()
            .expect("the agent");
        said.push(String::from_utf8_lossy(&output.stdout).into_owned());
        said.push(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    for text in &said {
        let at = text.lines().find(|line| line.contains(secret));
        assert_eq!(at, None, "the secret is told");
    }
    assert!(!said.iter().any(|text| text.contains("please report this")));
    command_has_all_rights();
}

/// Scenario: `run -- CMD`. Guarantees: the command may do what the agent was started with.
fn command_has_all_rights() {
    let own = std::fs::read_to_string("/proc/thread-self/status").expect("own status");
    let agent = Start::new()
        .env("OTEL_TRACES_EXPORTER", "none")
        .arg("--")
        .arg("cat")
        .arg("/proc/self/status")
        .spawn();
    let stopped = agent.wait(LIMIT);
    assert!(stopped.status.success(), "{}", stopped.stderr);
    assert_eq!(
        rights_in(&stopped.stdout),
        rights_in(&own),
        "{}",
        stopped.stderr
    );
}
