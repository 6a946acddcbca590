//! HTTPS, live: real servers and clients of several TLS libraries, each pair with 2,000 requests over
//! 16 connections. Exactly one CLIENT and one SERVER span for each request, with its path, status,
//! scheme and the right peer; nothing twice.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tracer_tests::agent::{Agent, Start, free_address};
use tracer_tests::finish::finish;
use tracer_tests::process;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{Service, build, source};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};

const REQUESTS: usize = 2000;
const CONNECTIONS: usize = 16;
/// A pair on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// An agent whose queue holds what others on a busy machine ask besides.
fn start(receiver: &Receiver) -> Start {
    let room = "400000";
    Start::new()
        .export_http(receiver)
        .env("OTEL_BSP_MAX_QUEUE_SIZE", room)
}

/// A certificate for localhost, made by the test.
struct Certificate {
    files: TempDir,
}

impl Certificate {
    fn new() -> Result<Self, String> {
        let files = TempDir::new().map_err(|error| error.to_string())?;
        let made = Self { files };
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
        process::run(
            Command::new("openssl")
                .args([
                    "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                ])
                .args(["-subj", "/CN=localhost", "-addext", names, "-keyout"])
                .arg(made.key())
                .arg("-out")
                .arg(made.certificate()),
        )?;
        Ok(made)
    }

    fn certificate(&self) -> PathBuf {
        self.files.path().join("certificate.pem")
    }

    fn key(&self) -> PathBuf {
        self.files.path().join("key.pem")
    }

    fn arguments(&self) -> [PathBuf; 2] {
        [self.certificate(), self.key()]
    }
}

/// A server of the test's own that takes certificate and key and prints its port.
fn serve(program: &Path, first: &[&Path], certificate: &Certificate) -> Result<Service, String> {
    let mut command = Command::new(program);
    command.args(first).args(certificate.arguments());
    Service::unnamed("https", command)
}

/// A client that says that it is ready, waits for a line and ends with status 0.
struct Client(Child);

impl Client {
    fn start(program: &Path, arguments: &[String]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let output = child.stdout.take().expect("stdout is piped");
        let line = process::first_line(output, LIMIT).expect("first line");
        assert_eq!(line, "ready", "{}", program.display());
        Self(child)
    }

    fn finish(mut self) {
        let mut input = self.0.stdin.take().expect("stdin is piped");
        input.write_all(b"go\n").expect("write to the client");
        let status = process::wait(&mut self.0, LIMIT);
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        process::end(&mut self.0);
    }
}

/// Waits until the agent's log says that it sees into a file of this path.
fn seen_into(agent: &Agent, file: &Path) {
    let wanted = format!("{} ", file.display());
    let seen = process::poll_until(LIMIT, || {
        let log = agent.stderr();
        log.lines()
            .any(|line| line.contains("sees into") && line.contains(&wanted))
            .then_some(())
    });
    assert!(seen.is_some(), "{wanted}\n{}", agent.stderr());
}

fn path(span: &Span) -> &str {
    if let Some(path) = span.text("url.path") {
        return path;
    }
    let full = span.text("url.full").unwrap_or_default();
    let rest = full.split_once("://").map_or("", |(_, rest)| rest);
    rest.find('/').map_or("", |at| &rest[at..])
}

fn is_https(span: &Span) -> bool {
    span.text("url.scheme") == Some("https")
        || span
            .text("url.full")
            .is_some_and(|url| url.starts_with("https://"))
}

/// Compares the spans of one pair with its requests `/<tag>/<kind>/<i>`.
fn check(spans: &[Span], tag: &str, server: SocketAddr, wrong: &mut Vec<String>) {
    const KINDS: [(&str, i64); 3] = [("small", 200), ("missing", 404), ("big", 200)];
    let prefix = format!("/{tag}/");
    for kind in [Kind::Client, Kind::Server] {
        let mut found: BTreeMap<&str, usize> = BTreeMap::new();
        for span in spans.iter().filter(|span| span.kind == kind) {
            let Some(rest) = path(span).strip_prefix(&prefix) else {
                continue;
            };
            let (what, number) = rest.split_once('/').unwrap_or_default();
            let number: usize = number.parse().unwrap_or(usize::MAX);
            let status = span.int("http.response.status_code");
            let peer = span.int("network.peer.port");
            let is_right = number < REQUESTS
                && KINDS[number % 3].0 == what
                && Some(KINDS[number % 3].1) == status
                && is_https(span)
                && span.text("network.peer.address") == Some("127.0.0.1")
                && (kind == Kind::Server || peer == Some(i64::from(server.port())));
            if !is_right && wrong.len() < 20 {
                wrong.push(format!("{tag} {kind:?} {:?}", span.attributes));
            }
            *found.entry(rest).or_default() += 1;
        }
        let twice = found.values().filter(|n| **n > 1).count();
        if (found.len(), twice) != (REQUESTS, 0) {
            wrong.push(format!(
                "{tag} {kind:?}: {} of {REQUESTS}, {twice} more than once",
                found.len()
            ));
        }
    }
}

fn arguments(server: SocketAddr, tag: &str) -> [String; 4] {
    [
        server.port().to_string(),
        tag.to_owned(),
        REQUESTS.to_string(),
        CONNECTIONS.to_string(),
    ]
}

/// Scenario: the agent runs; pairs of server and client start, one after the other. Guarantees:
/// exact spans on both sides for OpenSSL on sockets and on memory, inside of an executable, and Go's
/// crypto/tls with and without symbols.
#[test]
fn pairs_of_servers_and_clients() {
    let Some(session) = Session::begin("tls::pairs_of_servers_and_clients") else {
        return;
    };
    let certificate = match Certificate::new() {
        Ok(certificate) => certificate,
        Err(reason) => return skipped("tls", &reason),
    };
    let receiver = Receiver::start();
    let agent = start(&receiver).ready();
    let tls = |file: &str| source("tls").join(file);
    let mut done: Vec<(String, SocketAddr)> = Vec::new();
    let mut pair = |name: &str, program: Result<PathBuf, String>, server: &Path, client: &Path| {
        let tag = format!("{}-{name}", session.run);
        let started = program.and_then(|program| {
            let service = serve(&program, &[server], &certificate)?;
            Ok((service, program))
        });
        let (service, program) = match started {
            Ok(started) => started,
            Err(reason) => return skipped(&format!("tls {name}"), &reason),
        };
        let mut words = vec![client.display().to_string()];
        words.extend(arguments(service.address, &tag));
        let client = Client::start(&program, &words);
        if name.starts_with("go") {
            seen_into(&agent, &program);
        }
        client.finish();
        done.push((tag, service.address));
    };
    let python = build::https_python();
    for (name, server, client) in [
        ("requests-ssl", "server.py", "client.py"),
        ("aiohttp", "aiohttp_server.py", "aiohttp_client.py"),
        ("requests-uvicorn", "uvicorn_server.py", "client.py"),
    ] {
        pair(name, python.clone(), &tls(server), &tls(client));
    }
    let node = process::run(Command::new("node").arg("--version"));
    let node = node.map(|()| PathBuf::from("node"));
    pair("node", node, &tls("server.js"), &tls("client.js"));
    for (name, flags) in [("go", ""), ("go-stripped", "-s -w")] {
        let (server, client) = (Path::new("server"), Path::new("client"));
        pair(name, build::go_tls(flags), server, client);
    }
    let count = 2 * REQUESTS * done.len();
    let (spans, stopped) = finish(agent, &receiver, &session.run, count);
    let mut wrong = Vec::new();
    for (tag, server) in &done {
        check(&spans, tag, *server, &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", stopped.stderr);
    assert_eq!(spans.len(), count, "none extra");
}

struct Nginx {
    child: Child,
    address: SocketAddr,
    _files: TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}

fn nginx(certificate: &Certificate) -> Result<Nginx, String> {
    let program = build::nginx()?;
    let files = TempDir::new().map_err(|error| error.to_string())?;
    let root = files.path();
    let address = free_address();
    let template = std::fs::read_to_string(source("nginx/tls.conf.in")).expect("template");
    let config = template
        .replace("@ROOT@", &root.display().to_string())
        .replace(
            "@CERTIFICATE@",
            &certificate.certificate().display().to_string(),
        )
        .replace("@KEY@", &certificate.key().display().to_string())
        .replace("@ADDRESS@", &address.to_string());
    std::fs::write(root.join("nginx.conf"), config).expect("configuration");
    let child = Command::new(program)
        .arg("-p")
        .arg(root)
        .arg("-c")
        .arg(root.join("nginx.conf"))
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut nginx = Nginx {
        child,
        address,
        _files: files,
    };
    let listens = process::poll_until(Duration::from_secs(10), || {
        std::net::TcpStream::connect(address).ok()
    });
    if listens.is_none() {
        let ended = nginx.child.try_wait();
        return Err(format!("nginx does not listen: {ended:?}"));
    }
    Ok(nginx)
}

fn count(spans: &[Span], kind: Kind, wanted: &str, version: &str, status: i64) -> usize {
    spans
        .iter()
        .filter(|span| span.kind == kind && path(span) == wanted && is_https(span))
        .filter(|span| span.int("http.response.status_code") == Some(status))
        .filter(|span| span.text("network.protocol.version") == Some(version))
        .filter(|span| span.text("network.peer.address") == Some("127.0.0.1"))
        .count()
}

/// Scenario: nginx with HTTP/1 and HTTP/2 over TLS, h2load for both, curl (OpenSSL) and wget (GnuTLS),
/// and clients whose connections were there before the agent. Guarantees: exact spans on both sides;
/// the peer of every span is the other end of its own connection.
#[test]
fn nginx_and_connections_opened_before() {
    let Some(session) = Session::begin("tls::nginx_and_connections_opened_before") else {
        return;
    };
    let started = Certificate::new().and_then(|certificate| {
        let nginx = nginx(&certificate)?;
        let other = serve(Path::new("node"), &[&source("tls/server.js")], &certificate)?;
        Ok((nginx, other, certificate))
    });
    let (nginx, node, _certificate) = match started {
        Ok(started) => started,
        Err(reason) => return skipped("tls nginx", &reason),
    };
    let run = &session.run;
    let python = PathBuf::from(tracer_tests::services::python());
    let raw = |tag: &str, more: &[&str]| {
        let ports = format!("{},{}", nginx.address.port(), node.address.port());
        let script = source("tls/raw_client.py").display().to_string();
        let mut words = vec![script, ports, format!("{run}-{tag}")];
        words.extend([REQUESTS, CONNECTIONS].map(|n| n.to_string()));
        words.extend(more.iter().map(|&word| word.to_owned()));
        Client::start(&python, &words)
    };
    let early = raw("early", &["early"]);
    let receiver = Receiver::start();
    let agent = start(&receiver).ready();
    early.finish();
    raw("late", &[]).finish();

    let url = |what: &str| format!("https://localhost:{}/{run}/{what}", nginx.address.port());
    let mut wanted = 4 * REQUESTS;
    let mut expected: Vec<(String, &str, i64, usize)> = Vec::new();
    let (all, own) = (REQUESTS.to_string(), CONNECTIONS.to_string());
    let (h1, h2, missing, gnutls) = (url("h1"), url("h2"), url("missing/x"), url("gnutls"));
    let load = ["-n", &all, "-c", &own];
    type Load<'a> = (&'a str, Vec<&'a str>, &'a str, &'a str, i64, usize);
    let commands: [Load<'_>; 4] = [
        (
            "h2load",
            [&load[..], &["--h1", &h1]].concat(),
            "h1",
            "1.1",
            200,
            REQUESTS,
        ),
        (
            "h2load",
            [&load[..], &["-m", "10", &h2]].concat(),
            "h2",
            "2",
            200,
            REQUESTS,
        ),
        (
            "curl",
            vec!["-sk", "--http2", &missing],
            "missing/x",
            "2",
            404,
            1,
        ),
        (
            "wget",
            vec!["-q", "--no-check-certificate", "-O", "/dev/null", &gnutls],
            "gnutls",
            "1.1",
            200,
            1,
        ),
    ];
    for (program, arguments, what, version, status, n) in commands {
        match Command::new(program).args(arguments).output() {
            Ok(output) if output.status.success() => {
                expected.push((format!("/{run}/{what}"), version, status, n));
                wanted += 2 * n;
            }
            Ok(output) => panic!("{program}: {output:?}"),
            Err(error) => skipped(program, &error.to_string()),
        }
    }
    let (spans, stopped) = finish(agent, &receiver, run, wanted);
    let mut wrong = Vec::new();
    for (path, version, status, n) in &expected {
        for kind in [Kind::Client, Kind::Server] {
            let found = count(&spans, kind, path, version, *status);
            if found != *n {
                wrong.push(format!("{path} {kind:?}: {found} of {n}"));
            }
        }
    }
    for tag in ["early", "late"] {
        peers(&spans, &format!("{run}-{tag}"), &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", stopped.stderr);
    assert_eq!(spans.len(), wanted, "none extra");
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

/// Scenario: a library file that nobody used yet is loaded by a program that runs already. Guarantees:
/// what is asked once the agent sees into it is traced; and the file is another one than the host's.
#[test]
fn a_library_loaded_late() {
    let Some(session) = Session::begin("tls::a_library_loaded_late") else {
        return;
    };
    let started = Certificate::new().and_then(|certificate| {
        let script = source("tls/server.py");
        let python = PathBuf::from(tracer_tests::services::python());
        Ok((serve(&python, &[&script], &certificate)?, certificate))
    });
    let (server, _certificate) = match started {
        Ok(started) => started,
        Err(reason) => return skipped("tls late", &reason),
    };
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.pids()[0]));
    let library = maps.expect("maps").lines().find_map(|line| {
        let path = line.get(line.find('/')?..)?;
        path.contains("libssl").then(|| PathBuf::from(path))
    });
    let Some(library) = library else {
        return skipped("tls late", "Python's OpenSSL is not a library of its own");
    };
    let files = TempDir::new().expect("directory");
    let copy = files.path().join(library.file_name().expect("a file"));
    std::fs::copy(&library, &copy).expect("copy");
    let receiver = Receiver::start();
    let agent = start(&receiver).ready();
    const LATE: &str = "import sys\nprint('ready', flush=True)\nsys.stdin.readline()\nimport ssl, http.client\n\
        print('loaded', flush=True)\nsys.stdin.readline()\n\
        c = http.client.HTTPSConnection('localhost', int(sys.argv[1]), context=ssl._create_unverified_context())\n\
        for i in range(100):\n c.request('GET', f'/{sys.argv[2]}/small/{i}'); c.getresponse().read()";
    let mut child = Command::new(tracer_tests::services::python())
        .args(["-c", LATE, &server.address.port().to_string(), &session.run])
        .env("LD_LIBRARY_PATH", files.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python");
    let output = child.stdout.take().expect("stdout is piped");
    let line = process::first_line(output, LIMIT).expect("first line");
    assert_eq!(line, "ready");
    let mut input = child.stdin.take().expect("stdin is piped");
    input.write_all(b"load\n").expect("write");
    seen_into(&agent, &copy);
    input.write_all(b"go\n").expect("write");
    let status = process::wait(&mut child, LIMIT);
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
    let (spans, stopped) = finish(agent, &receiver, &session.run, 200);
    let of = |kind| {
        spans
            .iter()
            .filter(move |span| span.kind == kind && is_https(span))
    };
    let found = (
        of(Kind::Client).count(),
        of(Kind::Server).count(),
        spans.len(),
    );
    assert_eq!(found, (100, 100, 200), "{}", stopped.stderr);
}

/// Scenario: 100,000 calls with probes attached, in a program that a seccomp filter would end for any
/// call it does not know, and in a Go program whose stacks move within the probed calls. Guarantees:
/// both end well, having compared every byte.
#[test]
fn strict_and_moving_programs_are_unharmed() {
    let Some(_session) = Session::begin("tls::strict_and_moving_programs_are_unharmed") else {
        return;
    };
    let certificate = match Certificate::new() {
        Ok(certificate) => certificate,
        Err(reason) => return skipped("tls", &reason),
    };
    let agent = Start::new().env("OTEL_TRACES_EXPORTER", "none").ready();
    let [file, key] = certificate
        .arguments()
        .map(|path| path.display().to_string());
    let calls = "100000".to_owned();
    match build::strict() {
        Ok(program) => {
            Client::start(&program, &[file.clone(), key.clone(), calls.clone()]).finish()
        }
        Err(reason) => skipped("tls strict", &reason),
    }
    match build::go_tls("") {
        Ok(program) => {
            let words = ["grow".to_owned(), file, key, calls];
            let client = Client::start(&program, &words);
            seen_into(&agent, &program);
            client.finish();
        }
        Err(reason) => skipped("tls moving", &reason),
    }
    let drops = agent.metrics();
    let busy = r#"kernel_drops_total{reason="tls_busy"} 0"#;
    assert!(drops.contains(busy), "{drops}");
    agent.stop();
}
