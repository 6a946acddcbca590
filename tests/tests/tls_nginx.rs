//! HTTPS, live: nginx with HTTP/1 and HTTP/2, and clients that come as they are: h2load, curl
//! (OpenSSL), wget (GnuTLS), and one whose connections are older than the agent.

use std::io::Write as _;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tracer_tests::finish::finish;
use tracer_tests::process;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{Service, build, nginx, source};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};
use tracer_tests::tls::{
    CONNECTIONS, Certificate, Client, KINDS, LIMIT, Program, REQUESTS, Sent, is_https, path, start,
};

fn server(certificate: &Certificate) -> Result<Service, String> {
    let [file, key] = certificate.arguments();
    let values = [("CERTIFICATE", file.as_str()), ("KEY", key.as_str())];
    nginx::start("tls.conf.in", &[], &values)
}

/// The client whose paths tell its own ports.
fn raw(servers: &[&Service], tag: &str, more: &[&str]) -> Result<Client, String> {
    let ports: Vec<String> = servers
        .iter()
        .map(|server| server.address.port().to_string())
        .collect();
    let mut command = Command::new(tracer_tests::services::python());
    command
        .arg(source("tls/raw_client.py"))
        .arg(ports.join(","));
    command
        .arg(tag)
        .args([REQUESTS, CONNECTIONS].map(|n| n.to_string()));
    command.args(more);
    Client::start(command)
}

/// Processes that ask at the same time, each for its part over one connection.
struct Fleet<'a> {
    program: &'a str,
    words: &'a [&'a str],
    /// What a file with these URLs looks like.
    list: fn(&[String]) -> String,
    /// How the file is named.
    flag: &'a str,
    /// What it ends with if a response was 404.
    status: i32,
    version: &'static str,
}

const CURL: Fleet<'static> = Fleet {
    program: "curl",
    words: &["-sk", "--http1.1"],
    list: |urls| {
        let lines = urls.iter();
        let lines = lines.map(|url| format!("url = \"{url}\"\noutput = /dev/null\n"));
        lines.collect()
    },
    flag: "-K",
    status: 0,
    version: "1.1",
};

const FLEETS: [(&str, Fleet<'static>); 3] = [
    ("curl-h1", CURL),
    (
        "curl-h2",
        Fleet {
            words: &["-sk", "--http2"],
            version: "2",
            ..CURL
        },
    ),
    (
        "wget",
        Fleet {
            program: "wget",
            words: &["-q", "--no-check-certificate", "-O", "/dev/null"],
            list: |urls| urls.join("\n") + "\n",
            flag: "-i",
            status: 8,
            version: "1.1",
        },
    ),
];

impl Fleet<'_> {
    fn run(&self, server: &Service, tag: String) -> Result<Sent, String> {
        if !build::has(self.program) {
            return Err(format!("there is no {}", self.program));
        }
        let files = TempDir::new().expect("directory");
        let mut children = Vec::new();
        for first in 0..CONNECTIONS {
            let urls: Vec<String> = (first..REQUESTS)
                .step_by(CONNECTIONS)
                .map(|i| {
                    let port = server.address.port();
                    format!("https://localhost:{port}/{tag}/{}/{i}", KINDS[i % 3].0)
                })
                .collect();
            let file = files.path().join(first.to_string());
            let mut list = std::fs::File::create(&file).expect("list");
            list.write_all((self.list)(&urls).as_bytes()).expect("list");
            let mut command = Command::new(self.program);
            command.args(self.words).arg(self.flag).arg(&file);
            let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            children.push(child.expect(self.program));
        }
        let pids = children.iter().map(std::process::Child::id).collect();
        for child in &mut children {
            let status = process::wait(child, LIMIT).and_then(|status| status.code());
            if status != Some(self.status) {
                process::end(child);
                panic!("{} ended with {status:?}", self.program);
            }
        }
        Ok(Sent {
            tag,
            server: server.address,
            client_pids: Some(pids),
            server_pids: Some(server.pids()),
            version: Some(self.version),
        })
    }
}

/// Scenario: nginx serves curl and wget, 16 processes of each at a time, which are new and end soon.
/// Guarantees: exact spans on both sides, with HTTP/1 and HTTP/2, of OpenSSL and GnuTLS.
#[test]
fn nginx_curl_and_wget() {
    let Some(session) = Session::begin("tls_nginx::nginx_curl_and_wget") else {
        return;
    };
    let started = Certificate::new().and_then(|made| Ok((server(&made)?, made)));
    let (nginx, _certificate) = match started {
        Ok(started) => started,
        Err(reason) => return skipped("tls nginx", &reason),
    };
    let receiver = Receiver::start();
    let agent = start(&receiver).ready_for_tls();
    let mut sent = Vec::new();
    for (name, fleet) in FLEETS {
        match fleet.run(&nginx, format!("{}-{name}", session.run)) {
            Ok(done) => sent.push(done),
            Err(reason) => skipped(name, &reason),
        }
    }
    let count = sent.iter().map(Sent::spans).sum();
    let (spans, stopped) = finish(agent, &receiver, &session.run, count);
    Sent::check_all(&sent, &spans, &stopped.stderr);
}

/// Scenario: h2load with HTTP/1 and HTTP/2, and a client whose connections to two servers are older
/// than the agent, and one that opens and closes them again and again. Guarantees: exact spans on
/// both sides; the peer of every span is the other end of its own connection.
#[test]
fn nginx_and_connections_opened_before() {
    let Some(session) = Session::begin("tls_nginx::nginx_and_connections_opened_before") else {
        return;
    };
    let run = &session.run;
    let started = Certificate::new().and_then(|certificate| {
        let nginx = server(&certificate)?;
        let node = Program::Node.server(&certificate)?;
        let early = raw(&[&nginx, &node], &format!("{run}-early"), &["early"])?;
        Ok((nginx, node, early, certificate))
    });
    let (nginx, node, early, _certificate) = match started {
        Ok(started) => started,
        Err(reason) => return skipped("tls nginx", &reason),
    };
    let receiver = Receiver::start();
    let agent = start(&receiver).ready_for_tls();
    early.finish();
    let late = raw(&[&nginx, &node], &format!("{run}-late"), &[]);
    late.expect("it has started before").finish();

    let mut wanted = 4 * REQUESTS;
    let mut expected = Vec::new();
    let (all, own) = (REQUESTS.to_string(), CONNECTIONS.to_string());
    for (what, words, version) in [("h1", ["--h1", ""], "1.1"), ("h2", ["-m", "10"], "2")] {
        let url = format!("https://localhost:{}/{run}/{what}", nginx.address.port());
        let mut command = Command::new("h2load");
        command.args(["-n", &all, "-c", &own]);
        command.args(words.iter().filter(|word| !word.is_empty()));
        match command.arg(url).output() {
            Ok(output) if output.status.success() => {
                expected.push((format!("/{run}/{what}"), version));
                wanted += 2 * REQUESTS;
            }
            Ok(output) => panic!("h2load: {output:?}"),
            Err(error) => skipped("h2load", &error.to_string()),
        }
    }
    let (spans, stopped) = finish(agent, &receiver, run, wanted);
    let mut wrong = Vec::new();
    for (path, version) in &expected {
        for kind in [Kind::Client, Kind::Server] {
            let found = count(&spans, kind, path, version);
            if found != REQUESTS {
                wrong.push(format!("{path} {kind:?}: {found} of {REQUESTS}"));
            }
        }
    }
    for tag in ["early", "late"] {
        peers(&spans, &format!("{run}-{tag}"), &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", stopped.stderr);
    assert_eq!(spans.len(), wanted, "none extra");
}

fn count(spans: &[Span], kind: Kind, wanted: &str, version: &str) -> usize {
    spans
        .iter()
        .filter(|span| span.kind == kind && path(span) == wanted && is_https(span))
        .filter(|span| span.int("http.response.status_code") == Some(200))
        .filter(|span| span.text("network.protocol.version") == Some(version))
        .filter(|span| span.text("network.peer.address") == Some("127.0.0.1"))
        .count()
}

/// Paths end in the client's and the server's port: each end's peer is the other.
fn peers(spans: &[Span], tag: &str, wrong: &mut Vec<String>) {
    for kind in [Kind::Client, Kind::Server] {
        let mut right = 0;
        for span in spans.iter().filter(|span| span.kind == kind) {
            if !path(span).starts_with(&format!("/{tag}/")) {
                continue;
            }
            let mut ports = path(span).rsplit('/').map(|port| port.parse::<i64>().ok());
            let (server, client) = (ports.next().flatten(), ports.next().flatten());
            let other = if kind == Kind::Client { server } else { client };
            if other.is_some() && span.int("network.peer.port") == other {
                right += 1;
            } else if wrong.len() < 20 {
                wrong.push(format!("{kind:?} {:?}", span.attributes));
            }
        }
        if right != REQUESTS {
            wrong.push(format!("{tag} {kind:?}: {right} of {REQUESTS} right"));
        }
    }
}
