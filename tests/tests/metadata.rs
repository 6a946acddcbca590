//! What a span says of its process: also of one that lived for a few milliseconds, also where
//! nobody told it a name.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tracer_tests::agent::Start;
use tracer_tests::driver::{Mix, Plan, Report};
use tracer_tests::finish::finish;
use tracer_tests::process;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{self, Language, Service};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Attribute, Kind, Span};

const CLIENTS: usize = 50;

/// Runs `script` with the given positional arguments to its end; its output.
fn shell(script: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("sh");
    for variable in ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"] {
        command.env_remove(variable);
    }
    let output = command
        .args(["-c", script, "sh"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("run the shell");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

fn resource<'a>(span: &'a Span, name: &str) -> Option<&'a str> {
    match span.resource.get(name) {
        Some(Attribute::Text(text)) => Some(text),
        _ => None,
    }
}

/// The name that client `number` was given, half of them in the one way and half in the other.
fn name_of(number: usize) -> String {
    format!("fresh-{number}")
}

/// A loop of clients that live for one request. `$1`: program, `$2`: address, `$3`: run, `$4`: how many.
const LOOP: &str = r#"
i=0
while [ $i -lt "$4" ]; do
    if [ $((i % 2)) = 0 ]; then
        OTEL_SERVICE_NAME=fresh-$i "$1" --address "$2" --run "$3c${i}c" --once || exit 1
    else
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test,service.name=fresh-$i" \
            "$1" --address "$2" --run "$3c${i}c" --once || exit 1
    fi
    i=$((i + 1))
done
"#;

fn client_of<'a>(spans: &'a [Span], marker: &str) -> &'a Span {
    let found: Vec<&Span> = spans
        .iter()
        .filter(|span| span.kind == Kind::Client && span.mentions(marker))
        .collect();
    assert_eq!(found.len(), 1, "CLIENT spans of {marker}: {found:#?}");
    found[0]
}

#[test]
fn a_loop_of_short_lived_clients() {
    let Some(session) = Session::begin("metadata::a_loop_of_short_lived_clients") else {
        return;
    };
    let service = Language::Rust.start().expect("the service");
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let program = services::own_binary("tracer-driver");
    let output = shell(
        LOOP,
        &[
            program.to_str().expect("path"),
            &service.address.to_string(),
            &session.run,
            &CLIENTS.to_string(),
        ],
    );
    let reports: Vec<Report> = output
        .lines()
        .map(|line| serde_json::from_str(line).expect("a report"))
        .collect();
    assert_eq!(reports.len(), CLIENTS);
    let (spans, _) = finish(agent, &receiver, &session.run, 2 * CLIENTS);
    for (number, report) in reports.iter().enumerate() {
        assert_eq!(report.failures(), Vec::<String>::new());
        let span = client_of(&spans, &format!("/r/{}-", report.run));
        assert_eq!(span.pid(), Some(i64::from(report.pid)), "{span:?}");
        assert_eq!(span.service(), Some(name_of(number).as_str()), "{span:?}");
        assert_eq!(
            resource(span, "process.executable.name"),
            Some("tracer-driver"),
            "{span:?}"
        );
        assert_eq!(
            resource(span, "process.executable.path"),
            program.to_str(),
            "{span:?}"
        );
        let environment = resource(span, "deployment.environment.name");
        assert_eq!(environment, (number % 2 == 1).then_some("test"), "{span:?}");
        assert!(resource(span, "process.creation.time").is_some());
    }
    let pids: std::collections::BTreeSet<_> = reports.iter().map(|report| report.pid).collect();
    assert_eq!(pids.len(), CLIENTS);
}

/// A client of a few milliseconds that is not ours, and whose process has no other name than its
/// program's.
#[test]
fn curl() {
    let test = "metadata::curl";
    if Command::new("curl").arg("-V").output().is_err() {
        return skipped(test, "curl is not installed");
    }
    let Some(session) = Session::begin(test) else {
        return;
    };
    let service = Language::Rust.start().expect("the service");
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let url = format!("http://{}/r/{}-", service.address, session.run);
    // One whose environment names it, and one that is told nothing; `--noproxy` for both, whatever
    // this machine's environment says.
    let pids = shell(
        r#"
        OTEL_SERVICE_NAME=named sh -c 'echo $$; exec curl -sf --noproxy "*" "$0"' "$1a?status=200&bytes=0&delay_ms=0"
        sh -c 'echo $$; exec curl -sf --noproxy "*" "$0"' "$1b?status=200&bytes=0&delay_ms=0"
        "#,
        &[&url],
    );
    let pids: Vec<i64> = pids
        .lines()
        .map(|line| line.parse().expect("a pid"))
        .collect();
    let (spans, _) = finish(agent, &receiver, &session.run, 4);
    for ((path, pid), name) in ["a", "b"].iter().zip(pids).zip(["named", "curl"]) {
        let span = client_of(&spans, &format!("/r/{}-{path}", session.run));
        assert_eq!(span.pid(), Some(pid), "{span:?}");
        assert_eq!(resource(span, "process.executable.name"), Some("curl"));
        let agent = span.text("user_agent.original").unwrap_or_default();
        assert!(agent.starts_with("curl/"), "{agent}");
        // Where nothing better is known, the convention's fallback names the program as well.
        let unnamed = name == "curl" && span.service() == Some("unknown_service:curl");
        assert!(unnamed || span.service() == Some(name), "{span:?}");
    }
}

/// A service whose name is to be found out.
struct Unnamed {
    service: Service,
    /// `telemetry.sdk.language`.
    language: Option<&'static str>,
    executable: &'static str,
}

fn copied(from: &str, to: &Path) {
    fs::create_dir_all(to.parent().expect("a directory")).expect("make the directory");
    fs::copy(services::source(from), to).expect("copy the service");
}

fn python(directory: &Path) -> Result<Service, String> {
    let file = directory.join("shop/app.py");
    copied("python/threaded.py", &file);
    let mut command = Command::new(services::python());
    command.arg(file);
    Service::unnamed("app", command)
}

fn node(directory: &Path) -> Result<Service, String> {
    let root = directory.join("web");
    copied("node/server.js", &root.join("server/index.js"));
    fs::write(root.join("package.json"), r#"{"name": "storefront"}"#).expect("package.json");
    let mut command = Command::new("node");
    command.arg("server/index.js").current_dir(&root);
    Service::unnamed("storefront", command)
}

fn java(directory: &Path) -> Result<Service, String> {
    let jar = directory.join("billing-1.2.jar");
    let mut make = Command::new("jar");
    make.args(["--create", "--main-class", "Server", "--file"])
        .arg(&jar)
        .arg("-C")
        .arg(services::java_classes()?)
        .arg(".");
    process::run(&mut make)?;
    let mut command = Command::new("java");
    command
        .args([
            "-XX:TieredStopAtLevel=1",
            "-Dsun.net.httpserver.nodelay=true",
            "-jar",
        ])
        .arg(&jar);
    // Its version is no part of the name.
    Service::unnamed("billing", command)
}

fn renamed(program: &Path, name: &str, directory: &Path) -> Result<Service, String> {
    let path = directory.join("bin").join(name);
    fs::create_dir_all(directory.join("bin")).map_err(|error| error.to_string())?;
    fs::copy(program, &path).map_err(|error| error.to_string())?;
    Service::unnamed(name, Command::new(path))
}

fn unnamed(directory: &Path) -> Vec<Result<Unnamed, String>> {
    let with = |service: Result<Service, String>, language, executable| {
        service.map(|service| Unnamed {
            service,
            language: Some(language),
            executable,
        })
    };
    vec![
        with(python(directory), "python", "python"),
        with(node(directory), "nodejs", "node"),
        with(java(directory), "java", "java"),
        with(
            services::go_service().and_then(|go| renamed(&go, "orders", directory)),
            "go",
            "orders",
        ),
        with(
            renamed(&services::own_binary("tracer-service"), "stock", directory),
            "rust",
            "stock",
        ),
    ]
}

fn ask(address: SocketAddr, run: &str) {
    let mut plan = Plan::load(address, run, 3, 1);
    plan.mix = Mix::Simple;
    assert_eq!(plan.run().failures(), Vec::<String>::new());
}

/// Names and languages found out, of processes that ran before the agent or started after it.
fn check(test: &str, agent_first: bool) {
    let Some(session) = Session::begin(test) else {
        return;
    };
    let directory = TempDir::new().expect("directory");
    let receiver = Receiver::start();
    let start = || Start::new().export_http(&receiver).ready();
    let early = agent_first.then(start);
    let mut services = Vec::new();
    for made in unnamed(directory.path()) {
        match made {
            Ok(service) => services.push(service),
            Err(reason) => skipped(test, &reason),
        }
    }
    assert!(services.len() >= 2, "Python and Rust at least");
    let agent = early.unwrap_or_else(start);
    for (number, unnamed) in services.iter().enumerate() {
        ask(
            unnamed.service.address,
            &format!("{}n{number}", session.run),
        );
    }
    let (spans, _) = finish(agent, &receiver, &session.run, 2 * 3 * services.len());
    let mut wrong = Vec::new();
    for (number, unnamed) in services.iter().enumerate() {
        let marker = format!("/r/{}n{number}-", session.run);
        let of_server: Vec<&Span> = spans
            .iter()
            .filter(|span| span.kind == Kind::Server && span.mentions(&marker))
            .collect();
        assert_eq!(of_server.len(), 3, "{}", unnamed.service.name);
        for span in of_server {
            let executable = resource(span, "process.executable.name").unwrap_or_default();
            let right = span.service() == Some(&unnamed.service.name)
                && resource(span, "telemetry.sdk.language") == unnamed.language
                && executable.starts_with(unnamed.executable)
                && span.pid() == Some(i64::from(unnamed.service.pids()[0]));
            if !right {
                wrong.push(format!("{}: {:#?}", unnamed.service.name, span.resource));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn names_and_languages_of_running_services() {
    check("metadata::names_and_languages_of_running_services", false);
}

#[test]
fn names_and_languages_of_new_services() {
    check("metadata::names_and_languages_of_new_services", true);
}
