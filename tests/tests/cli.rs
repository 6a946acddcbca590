//! The command line's contract: exit statuses, one clear line for each kind of bad input, `run --`,
//! `doctor`, start and stop times.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tracer_tests::agent::{Agent, Start, binary, free_address};
use tracer_tests::check::{Sides, assert_run};
use tracer_tests::driver::{Mix, Plan, Report};
use tracer_tests::receiver::Receiver;
use tracer_tests::services::Language;
use tracer_tests::session::Session;

/// Longest run of a command that is to fail.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the agent to its end with a time limit.
fn agent(arguments: &[&str]) -> Output {
    limited(Command::new(binary()).args(arguments))
}

fn limited(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("start the agent");
    if tracer_tests::process::wait(&mut child, LIMIT).is_none() {
        tracer_tests::process::end(&mut child);
        panic!("still running after {LIMIT:?}: {command:?}");
    }
    child.wait_with_output().expect("its output")
}

/// It must end with `status`, and stderr must name all of `words`.
fn fails(output: &Output, status: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in: {stderr}");
    }
    assert!(
        !stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"),
        "{stderr}"
    );
}

/// As [`fails`], and it must be one line.
fn fails_in_one_line(output: &Output, status: i32, words: &[&str]) {
    fails(output, status, words);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.trim_end().lines().count(), 1, "one line: {stderr}");
}

#[test]
fn bad_usage() {
    let Some(_session) = Session::begin("cli::bad_usage") else {
        return;
    };
    fails(&agent(&["run", "--no-such-flag"]), 2, &["--no-such-flag"]);
    fails(&agent(&["no-such-command"]), 2, &["no-such-command"]);
    fails(
        &agent(&["run", "--admin", "not an address"]),
        2,
        &["--admin"],
    );
    fails(&agent(&["replay"]), 2, &["FILE"]);
}

#[test]
fn bad_configuration() {
    let Some(_session) = Session::begin("cli::bad_configuration") else {
        return;
    };
    let directory = TempDir::new().expect("directory");
    let file = directory.path().join("config.yaml");
    let path = file.to_str().expect("path").to_owned();
    std::fs::write(&file, "# fine\n\nno_such_key: 1\n").expect("write");
    fails_in_one_line(
        &agent(&["run", "--config", &path]),
        2,
        &["no_such_key", "3"],
    );
    std::fs::write(&file, "{ no yaml\n").expect("write");
    fails(&agent(&["run", "--config", &path]), 2, &["config.yaml"]);
    fails_in_one_line(
        &agent(&["run", "--config", "/nowhere/config.yaml"]),
        2,
        &["/nowhere/config.yaml"],
    );
    let bad = limited(
        Command::new(binary())
            .arg("run")
            .env("OTEL_TRACES_EXPORTER", "pigeon"),
    );
    fails(&bad, 2, &["OTEL_TRACES_EXPORTER", "pigeon"]);
}

#[test]
fn files_that_cannot_be_replayed() {
    let Some(_session) = Session::begin("cli::files_that_cannot_be_replayed") else {
        return;
    };
    fails_in_one_line(
        &agent(&["replay", "/nowhere/x.pcap"]),
        1,
        &["/nowhere/x.pcap"],
    );
    let directory = TempDir::new().expect("directory");
    let file = directory.path().join("noise.pcap");
    let path = file.to_str().expect("path").to_owned();
    for content in [
        &b""[..],
        b"this is no capture file at all, but long enough to hold a header",
    ] {
        std::fs::write(&file, content).expect("write");
        fails_in_one_line(&agent(&["replay", &path]), 1, &["noise.pcap"]);
    }
}

#[test]
fn taken_admin_port() {
    let Some(_session) = Session::begin("cli::taken_admin_port") else {
        return;
    };
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    let output = limited(
        Command::new(binary())
            .args(["run", "--admin", &address])
            .env("OTEL_TRACES_EXPORTER", "none"),
    );
    fails(&output, 1, &[&address]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        stderr
            .lines()
            .filter(|line| line.contains(&address))
            .count(),
        1,
        "{stderr}"
    );
}

/// Scenario: a kernel without type information, as a mount namespace shows it.
#[test]
fn without_btf() {
    let Some(_session) = Session::begin("cli::without_btf") else {
        return;
    };
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]);
    command.arg("mount -t tmpfs none /sys/kernel/btf && exec \"$0\" run --admin off");
    command.arg(binary());
    fails_in_one_line(
        &limited(command.env("RUST_LOG", "error")),
        1,
        &["type information", "CONFIG_DEBUG_INFO_BTF"],
    );
}

#[test]
fn without_root() {
    let Some(_session) = Session::begin("cli::without_root") else {
        return;
    };
    let directory = TempDir::new().expect("directory");
    // The build directory may not be open to others.
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755))
        .expect("permissions");
    let copy = directory.path().join("tracer-agent");
    std::fs::copy(binary(), &copy).expect("copy");
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
        ]);
        limited(command.arg(&copy).args(arguments).current_dir("/"))
    };
    let admin = free_address().to_string();
    fails_in_one_line(&nobody(&["run", "--admin", &admin]), 1, &["root"]);
    let doctor = nobody(&["doctor"]);
    assert!(
        String::from_utf8_lossy(&doctor.stdout).contains("root"),
        "{doctor:?}"
    );
}

#[test]
fn doctor() {
    let Some(_session) = Session::begin("cli::doctor") else {
        return;
    };
    let output = agent(&["doctor"]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8_lossy(&output.stdout).lines().count() >= 3);
    let output = agent(&["doctor", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(value.is_object() || value.is_array(), "{value}");
}

#[test]
fn doctor_lists_processes_with_tls() {
    let Some(_session) = Session::begin("cli::doctor_lists_processes_with_tls") else {
        return;
    };
    let script = "import ssl, sys; print('ready', flush=True); sys.stdin.read()";
    let mut python = std::process::Command::new("python3")
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3");
    let mut line = String::new();
    let out = python.stdout.take().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("readable");
    let (pid, output) = (python.id(), agent(&["doctor", "--json"]));
    python.kill().and_then(|()| python.wait()).expect("ended");
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let lines = value.as_array().expect("an array");
    let tls = lines
        .iter()
        .find(|line| line["check"] == "tls" && line["pid"] == pid);
    let tls = tls.unwrap_or_else(|| panic!("{pid} is not in {value}"));
    assert_eq!(
        (&tls["status"], &tls["library"]),
        (&"ok".into(), &"OpenSSL".into())
    );
    let version = tls["version"].as_str().unwrap_or_default();
    assert!(version.starts_with(['1', '3', '4']), "{tls}");
}

#[test]
fn serves_its_admin_endpoint_and_stops_within_five_seconds() {
    let Some(_session) = Session::begin("cli::serves_its_admin_endpoint_and_stops_in_time") else {
        return;
    };
    let agent = Start::new().env("OTEL_TRACES_EXPORTER", "none").ready();
    assert_eq!(
        tracer_tests::http::get(agent.admin, "/healthz")
            .expect("healthz")
            .status,
        200
    );
    assert_eq!(
        tracer_tests::http::get(agent.admin, "/no-such-page")
            .expect("404")
            .status,
        404
    );
    assert!(agent.metrics().contains("# TYPE"), "Prometheus text");
    assert_eq!(agent.ledger().wrong_sums(), Vec::<String>::new());
    let stopped = agent.stop();
    assert!(
        stopped.took <= Duration::from_secs(10),
        "stopped after {:?}",
        stopped.took
    );
}

/// A little traffic that an agent can see.
fn traffic(run: &str) -> Report {
    let service = Language::Rust.start().expect("the Rust service");
    let report = Plan::load(service.address, run, 20, 2).run();
    assert_eq!(report.failures(), Vec::<String>::new());
    report
}

#[test]
fn an_unreachable_collector_is_not_fatal() {
    let Some(session) = Session::begin("cli::an_unreachable_collector_is_not_fatal") else {
        return;
    };
    for protocol in ["http/protobuf", "grpc"] {
        let endpoint = format!("http://{}", free_address());
        let start = Start::new().env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
        let agent = start.env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol).ready();
        traffic(&session.run);
        let told = tracer_tests::process::poll_until(LIMIT, || {
            agent
                .stderr()
                .contains(endpoint.trim_start_matches("http://"))
                .then_some(())
        });
        assert!(
            told.is_some(),
            "{protocol}: nothing said of {endpoint}: {}",
            agent.stderr()
        );
        let ledger = agent.ledger();
        assert_eq!(ledger.wrong_sums(), Vec::<String>::new());
        let spans = ledger.stage("spans");
        assert!(
            spans.seen >= 40 && spans.exported == 0,
            "{protocol}: {spans:?}"
        );
        assert_eq!(
            tracer_tests::http::get(agent.admin, "/readyz")
                .expect("readyz")
                .status,
            200
        );
        agent.stop();
    }
}

#[test]
fn the_console_is_the_default() {
    let Some(session) = Session::begin("cli::the_console_is_the_default") else {
        return;
    };
    let agent = Start::new().ready();
    let report = traffic(&session.run);
    let shown = |agent: &Agent| {
        report
            .records
            .iter()
            .filter(|record| agent.stdout().contains(&record.path))
            .count()
    };
    let all = tracer_tests::process::poll_until(LIMIT, || {
        (shown(&agent) == report.records.len()).then_some(())
    });
    assert!(
        all.is_some(),
        "{} of {} shown: {}",
        shown(&agent),
        report.records.len(),
        agent.stdout()
    );
    let stopped = agent.stop();
    assert!(!stopped.stdout.contains('\x1b'), "no colours into a file");
}

#[test]
fn run_command_traces_only_its_children() {
    let Some(session) = Session::begin("cli::run_command_traces_only_its_children") else {
        return;
    };
    let receiver = Receiver::start();
    let service = Language::Rust.start().expect("the Rust service");
    let mut plan = Plan::load(service.address, &session.run, 100, 4);
    let directory = TempDir::new().expect("directory");
    let file = directory.path().join("report.json");
    // The driver as a grandchild: sh, driver.
    let driver = plan.command();
    let mut start = Start::new()
        .export_http(&receiver)
        .env("OTEL_SERVICE_NAME", "tracer-driver");
    start = start
        .arg("--")
        .arg("sh")
        .arg("-c")
        .arg("report=$1; shift; \"$@\" --once > \"$report\"; exit 7")
        .arg("sh");
    start = start.arg(&file).arg(driver.get_program());
    for argument in driver.get_args() {
        start = start.arg(argument);
    }
    let stopped = start.spawn().wait(Duration::from_secs(30));
    assert_eq!(stopped.status.code(), Some(7), "{}", stopped.stderr);
    let text = std::fs::read_to_string(&file).expect("report");
    let report: Report = serde_json::from_str(&text).expect("report");
    assert_eq!(report.failures(), Vec::<String>::new());
    let spans = receiver.spans_of(&session.run);
    assert_run(
        &spans,
        &report,
        &Sides {
            server: None,
            client: true,
        },
    );

    // What is not its child is not traced: the service was not, and neither is this driver.
    let own = tracer_tests::session::unique();
    let agent = Start::new()
        .export_http(&receiver)
        .arg("--")
        .arg("sleep")
        .arg("600")
        .ready();
    (plan.run, plan.mix) = (own.clone(), Mix::Simple);
    assert_eq!(plan.run().failures(), Vec::<String>::new());
    let pid = agent.pid();
    agent.stop_with_command();
    assert_eq!(receiver.spans_of(&own), Vec::new());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}
