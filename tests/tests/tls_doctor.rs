//! `doctor` lists each running process with its TLS library, its version, and whether its plaintext
//! is seen, or why not.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tracer_tests::agent::binary;
use tracer_tests::grpc::Peer;
use tracer_tests::process;
use tracer_tests::services::{Language, Service, python};
use tracer_tests::session::{Session, skipped};
use tracer_tests::tls::{Certificate, Client, LIMIT, Program, other_libssl};

/// A process, and what is to be said of it.
struct Wanted {
    what: &'static str,
    pids: Vec<u32>,
    library: &'static str,
    /// How its version begins; `None` if there is none.
    version: Option<&'static str>,
    seen: bool,
    /// Keeps it running.
    _process: Process,
}

#[allow(dead_code, reason = "they are kept running, no more")]
enum Process {
    Service(Service),
    Client(Client),
}

/// Python with a library that it does not use, and where that finds what it needs.
fn python_with(library: &Path) -> Result<Process, String> {
    let mut command = Command::new(python());
    let script = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); \
                  print('ready', flush=True); sys.stdin.read()";
    command.args(["-c", script]).arg(library);
    if let Some(directory) = library.parent().filter(|path| path.is_dir()) {
        command.env("LD_LIBRARY_PATH", directory);
    }
    Client::start(command).map(Process::Client)
}

fn wanted(certificate: &Certificate) -> Vec<Wanted> {
    let mut all = Vec::new();
    let mut add = |what, started: Result<Process, String>, library, version, seen| match started {
        Ok(process) => all.push(Wanted {
            what,
            pids: match &process {
                Process::Service(service) => service.pids(),
                Process::Client(client) => vec![client.pid()],
            },
            library,
            version,
            seen,
            _process: process,
        }),
        Err(reason) => skipped(what, &reason),
    };
    for (program, library, version) in [
        (Program::PythonSsl, "OpenSSL", Some("")),
        (Program::Gunicorn, "OpenSSL", Some("")),
        (Program::Node, "OpenSSL", Some("")),
        (Program::Go, "Go crypto/tls", Some("go1.")),
        (Program::GoStripped, "Go crypto/tls", Some("go1.")),
        (Program::NativeTls, "OpenSSL", Some("")),
        (Program::Rustls, "rustls", Some("0.")),
    ] {
        let facts = program.facts();
        let started = program.server(certificate).map(Process::Service);
        let seen = facts.server == Some(true);
        add(facts.name, started, library, version, seen);
    }
    let java = Language::Java.start().map(Process::Service);
    add("Java", java, "Java JSSE", None, false);
    let grpcio = Peer::PythonSync.server_with(Some(certificate));
    add(
        "grpcio",
        grpcio.map(Process::Service),
        "BoringSSL",
        None,
        false,
    );
    let gnutls = python_with(Path::new("libgnutls.so.30"));
    add("GnuTLS", gnutls, "GnuTLS", Some("3."), true);
    let other = other_libssl().and_then(|path| python_with(&path));
    let version = Some("1.1.1");
    add("OpenSSL of a wheel", other, "OpenSSL", version, true);
    all
}

#[test]
fn lists_each_process() {
    let Some(_session) = Session::begin("tls_doctor::lists_each_process") else {
        return;
    };
    let certificate = match Certificate::new() {
        Ok(certificate) => certificate,
        Err(reason) => return skipped("tls_doctor", &reason),
    };
    let wanted = wanted(&certificate);
    // It has a limit of time for all processes of the host.
    let mut last = String::new();
    let right = process::poll_until(LIMIT, || {
        last = look(&wanted);
        last.is_empty().then_some(())
    });
    assert!(right.is_some(), "{last}");
}

fn doctor(words: &[&str]) -> String {
    let output = Command::new(binary()).args(words).output().expect("doctor");
    String::from_utf8(output.stdout).expect("text")
}

/// What is wrong in what `doctor` says now.
fn look(wanted: &[Wanted]) -> String {
    let lines: Value = serde_json::from_str(&doctor(&["doctor", "--json"])).expect("JSON");
    let lines = lines.as_array().expect("an array");
    let text = doctor(&["doctor"]);
    let mut wrong = String::new();
    for one in wanted {
        for pid in &one.pids {
            let of_it = |line: &&Value| line["check"] == "tls" && line["pid"] == *pid;
            let own: Vec<&Value> = lines.iter().filter(of_it).collect();
            if !own.iter().any(|line| one.is(line)) {
                wrong += &format!("{} {pid}: {own:#?}\n", one.what);
            }
            let shown = text
                .lines()
                .find(|line| line.contains(&format!(" {pid} ")) && line.contains(one.library));
            let word = if one.seen { "seen" } else { "not seen" };
            if shown.is_none_or(|line| !line.trim_start().starts_with(word)) {
                wrong += &format!("{} {pid} in the text: {shown:?}\n", one.what);
            }
        }
    }
    wrong
}

impl Wanted {
    fn is(&self, line: &Value) -> bool {
        let version = line["version"].as_str();
        let reason = line["reason"].as_str().unwrap_or_default();
        let status = if self.seen { "ok" } else { "missing" };
        line["library"] == self.library
            && line["status"] == status
            && reason.is_empty() == self.seen
            && match (self.version, version) {
                (None, version) => version.is_none(),
                (Some(""), version) => {
                    version.is_some_and(|it| it.starts_with(|c: char| c.is_ascii_digit()))
                }
                (Some(start), version) => version.is_some_and(|it| it.starts_with(start)),
            }
    }
}
