//! The systemd unit: what systemd says of it, and that its rights are enough. `cargo xtask vm systemd` boots a
//! machine where systemd itself starts it.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tracer_tests::agent::Start;
use tracer_tests::check::{Server, Sides, assert_run};
use tracer_tests::driver::{Plan, Report};
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::rights::NOBODY;
use tracer_tests::services::{Language, Service};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Span, from_json_lines};
use tracer_tests::sys;

const REQUESTS: usize = 200;
/// In tenths, as `systemd-analyze` takes it: 2.5.
const EXPOSURE: u32 = 25;
const WAIT: Duration = Duration::from_secs(30);

fn unit() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/systemd/tracer-agent.service"
    ))
}

/// The last value of a setting.
fn setting(name: &str) -> String {
    let text = std::fs::read_to_string(unit()).expect("the unit");
    let mut lines = text.lines().rev();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {name}=")).to_owned()
}

fn analyze(arguments: &[&str]) -> Option<(bool, String)> {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit())
        .output()
        .ok()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Some((output.status.success(), text))
}

fn assert_traced(spans: &[Span], report: &Report, service: &Service) {
    let server = Server {
        name: &service.name,
        pids: service.pids(),
    };
    let sides = Sides {
        server: Some(server),
        client: true,
    };
    assert_run(spans, report, &sides);
}

#[test]
fn the_unit_is_understood_and_hardened() {
    let threshold = format!("--threshold={EXPOSURE}");
    let security = ["security", "--offline=true", "--no-pager", &threshold];
    let Some((hardened, text)) = analyze(&security) else {
        let required = std::env::var_os("TRACER_TESTS_REQUIRED").is_some();
        assert!(!required, "no systemd-analyze");
        return skipped(
            "systemd::the_unit_is_understood_and_hardened",
            "no systemd-analyze",
        );
    };
    assert!(hardened, "{text}");
    let (_, text) = analyze(&["verify", "--man=no"]).expect("systemd-analyze");
    let complaints: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("tracer-agent.service"))
        // The agent is not installed here.
        .filter(|line| !line.contains("is not executable"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// As another user, with the unit's capabilities and no others, telling a manager what it does.
#[test]
fn the_rights_of_the_unit_are_enough() {
    let Some(session) = Session::begin("systemd::the_rights_of_the_unit_are_enough") else {
        return;
    };
    let capabilities = setting("AmbientCapabilities");
    assert_eq!(capabilities, setting("CapabilityBoundingSet"));
    let names: Vec<String> = capabilities
        .split(' ')
        .map(|name| name.strip_prefix("CAP_").expect("CAP_").to_lowercase())
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("bind");
    manager.set_read_timeout(Some(WAIT)).expect("a timeout");
    open_to_all(directory.path());
    open_to_all(&path);
    let told = || -> String {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).expect("a datagram");
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        text.lines().next().unwrap_or_default().to_owned()
    };

    let service = Language::Rust.start().expect("the service");
    let receiver = Receiver::start();
    let agent = Start::new()
        .export_http(&receiver)
        .env("NOTIFY_SOCKET", &path)
        .with_rights(NOBODY, &names)
        .ready();
    assert_eq!(told(), "READY=1");
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("status");
    let user = status.lines().find(|line| line.starts_with("Uid:"));
    let users = [NOBODY.to_string().as_str(); 4].join("\t");
    assert_eq!(user, Some(format!("Uid:\t{users}").as_str()));
    let log = agent.stderr();
    assert!(!log.contains("cannot be probed"), "{log}");

    let report = Plan::load(service.address, &session.run, REQUESTS, 8).run();
    assert_eq!(report.failures(), Vec::<String>::new());
    assert!(sys::signal(agent.pid(), libc::SIGHUP));
    assert_eq!(told(), "RELOADING=1");
    assert_eq!(told(), "READY=1");
    let (spans, _) = finish(
        agent,
        &receiver,
        &format!("/r/{}-", report.run),
        2 * REQUESTS,
    );
    assert_eq!(told(), "STOPPING=1");
    assert_traced(&spans, &report, &service);
}

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).output();
    let output = output.expect("systemctl");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Under systemd itself, in a machine that `cargo xtask vm systemd` makes.
#[test]
#[ignore = "run by `cargo xtask vm systemd`, where systemd is the init"]
fn in_a_machine() {
    const UNIT: &str = "tracer-agent";
    const SPANS: &str = "/var/lib/tracer-agent/spans.jsonl";
    let Some(session) = Session::begin("systemd::in_a_machine") else {
        return;
    };
    // Comes back when the agent said that it is ready.
    systemctl(&["start", UNIT]);
    assert_eq!(systemctl(&["is-active", UNIT]), "active");
    let property = |name: &str| systemctl(&["show", UNIT, "--value", "--property", name]);
    assert_eq!(property("StatusText"), "tracing");
    let pid: u32 = property("MainPID").parse().expect("a pid");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    for line in status.lines() {
        if ["Uid", "Cap", "NoNew", "Seccomp:", "VmHWM"]
            .iter()
            .any(|name| line.starts_with(name))
        {
            println!("{line}");
        }
    }
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:\t"));
    assert!(
        user.is_some_and(|user| !user.starts_with("0\t")),
        "{status}"
    );

    let service = Language::Rust.start().expect("the service");
    let report = Plan::load(service.address, &session.run, REQUESTS, 8).run();
    assert_eq!(report.failures(), Vec::<String>::new());
    systemctl(&["reload", UNIT]);
    systemctl(&["stop", UNIT]);
    assert_eq!(property("Result"), "success");
    assert_eq!(property("ExecMainStatus"), "0");
    let text = std::fs::read_to_string(SPANS).expect("the spans");
    let marker = format!("/r/{}-", report.run);
    let mut spans = from_json_lines(&text).expect("OTLP/JSON lines");
    spans.retain(|span| span.mentions(&marker));
    assert_traced(&spans, &report, &service);
    println!("spans: {} of {}", spans.len(), 2 * REQUESTS);
}

/// The agent's user has to get there.
fn open_to_all(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("permissions");
}
