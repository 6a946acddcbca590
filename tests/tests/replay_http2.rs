//! `tracer-agent replay` of recorded HTTP/2 and gRPC tells of each stream what tshark's dissector
//! tells of it: with prior knowledge, upgraded, and every kind of gRPC call and outcome.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tracer_tests::agent::free_address;
use tracer_tests::check::path_of;
use tracer_tests::grpc::code_name;
use tracer_tests::process;
use tracer_tests::services::{Service, build, source, target_dir};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};
use tracer_tests::wire::{Stream, Tcpdump, has_tshark, http2_streams, replayed};

/// Requests of h2load, on so many connections.
const REQUESTS: usize = 600;
const CONNECTIONS: usize = 3;
const LIMIT: Duration = Duration::from_secs(120);

/// One exchange as both witnesses can tell it: client's port, method, path, status.
type Row = (u64, String, String, String);

fn counted(rows: impl Iterator<Item = Row>) -> BTreeMap<Row, usize> {
    let mut found = BTreeMap::new();
    for row in rows {
        *found.entry(row).or_default() += 1;
    }
    found
}

fn compare(replay: &[Span], tshark: impl Iterator<Item = Row>, of_span: fn(&Span) -> Row) {
    let (replay, tshark) = (counted(replay.iter().map(of_span)), counted(tshark));
    let only = |a: &BTreeMap<Row, usize>, b: &BTreeMap<Row, usize>| -> Vec<String> {
        let apart = a.iter().filter(|(row, n)| b.get(*row) != Some(*n));
        apart.map(|(row, n)| format!("{n} of {row:?}")).collect()
    };
    let apart = (only(&replay, &tshark), only(&tshark, &replay));
    assert!(
        apart.0.is_empty() && apart.1.is_empty(),
        "only replay: {:#?}, only tshark: {:#?}",
        apart.0,
        apart.1
    );
}

fn port_of(span: &Span) -> u64 {
    span.int("network.peer.port")
        .and_then(|port| u64::try_from(port).ok())
        .expect("a client's port")
}

fn http_span(span: &Span) -> Row {
    let text = |key| span.text(key).unwrap_or_default().to_owned();
    assert_eq!(
        (span.kind, &*text("network.protocol.version")),
        (Kind::Server, "2")
    );
    let status = span.int("http.response.status_code").unwrap_or_default();
    let method = text("http.request.method");
    (
        port_of(span),
        method,
        path_of(span).to_owned(),
        status.to_string(),
    )
}

fn http_stream(port: u64, stream: &Stream) -> Row {
    let of = |fields: &BTreeMap<String, String>, name: &str| {
        fields.get(name).cloned().unwrap_or_default()
    };
    let method = of(&stream.request, ":method");
    let path = of(&stream.request, ":path");
    (port, method, path, of(&stream.response, ":status"))
}

/// What a test needs beside its servers.
fn begin(test: &str) -> Option<Session> {
    if !has_tshark() {
        skipped(test, "tshark is not installed");
        return None;
    }
    Session::begin(test)
}

fn run(program: &str, arguments: &[String]) {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.expect(program);
    assert!(output.status.success(), "{program}: {output:?}");
}

fn nginx(files: &TempDir) -> Result<(Service, SocketAddr), String> {
    let (program, root, address) = (build::nginx()?, files.path(), free_address());
    let template = std::fs::read_to_string(source("nginx/http2.conf.in"));
    let config = template
        .map_err(|error| error.to_string())?
        .replace("@ROOT@", &root.display().to_string())
        .replace("@ADDRESS@", &address.to_string());
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(root.join(name), bytes).map_err(|error| error.to_string())
    };
    std::fs::create_dir(root.join("files")).map_err(|error| error.to_string())?;
    write("files/big", &vec![b'x'; 100_000])?;
    write("nginx.conf", config.as_bytes())?;
    let mut command = Command::new(program);
    command.arg("-p").arg(root).arg("-c");
    command.arg(root.join("nginx.conf"));
    Ok((Service::listening("nginx", command, address)?, address))
}

#[test]
fn nginx_and_upgrades() {
    let Some(session) = begin("replay_http2::nginx_and_upgrades") else {
        return;
    };
    let files = TempDir::new().expect("directory");
    let (_nginx, address) = match nginx(&files) {
        Ok(nginx) => nginx,
        Err(reason) => return skipped("replay_http2", &reason),
    };
    let upgrading = build::go_h2c().and_then(|program| {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped());
        Service::unnamed("go-h2c", command)
    });
    let upgrading = match upgrading {
        Ok(service) => service,
        Err(reason) => return skipped("replay_http2", &reason),
    };
    let ports = [address.port(), upgrading.address.port()];
    let tcpdump = match Tcpdump::start(files.path(), &ports) {
        Ok(tcpdump) => tcpdump,
        Err(reason) => return skipped("replay_http2", &reason),
    };

    // Each request of a connection has a path of its own.
    let run_id = &session.run;
    let kinds = ["small", "missing", "big"];
    let list: String = (0..REQUESTS / CONNECTIONS)
        .map(|n| {
            let kind = kinds[if n % 20 == 0 { 2 } else { n % 2 }];
            format!("http://{address}/{kind}/{run_id}/{n}\n")
        })
        .collect();
    let file = files.path().join("list");
    std::fs::write(&file, list).expect("a list");
    let mut arguments: Vec<String> = ["-n", "600", "-c", "3", "-m", "20", "-i"]
        .map(str::to_owned)
        .into();
    arguments.push(file.display().to_string());
    run("h2load", &arguments);
    let url = |address: SocketAddr, what: &str| format!("http://{address}/{what}/{run_id}");
    let curl = |more: &[&str], url: String| {
        let words = ["-s", "-o", "/dev/null"].into_iter();
        let mut arguments: Vec<_> = words
            .chain(more.iter().copied())
            .map(str::to_owned)
            .collect();
        arguments.push(url);
        run("curl", &arguments);
    };
    curl(&["--http2-prior-knowledge"], url(address, "small/curl"));
    curl(
        &["--http2-prior-knowledge", "-X", "OPTIONS"],
        url(address, "missing/curl"),
    );
    curl(&["--http2"], url(upgrading.address, "status/404"));
    let mut arguments = vec!["-u".to_owned(), "-n".to_owned()];
    arguments.extend((0..10).map(|n| url(upgrading.address, &format!("nghttp/{n}"))));
    run("nghttp", &arguments);

    let file = tcpdump.stop();
    let spans = replayed(&file, files.path(), run_id);
    let (upgraded, prior): (Vec<Span>, Vec<Span>) = spans
        .into_iter()
        .partition(|span| span.int("server.port") == Some(i64::from(ports[1])));
    let streams = http2_streams(&file, ports[0], "http2");
    assert_eq!((streams.len(), prior.len()), (REQUESTS + 2, REQUESTS + 2));
    let rows = streams
        .iter()
        .map(|((port, _), stream)| http_stream(*port, stream));
    compare(&prior, rows, http_span);

    // The request of an upgraded stream 1 is no frame.
    let streams = http2_streams(&file, ports[1], "http");
    assert_eq!((streams.len(), upgraded.len()), (11, 11));
    let firsts = upgraded_requests(&file, ports[1]);
    let rows = streams.iter().map(|((port, id), stream)| {
        let mut row = http_stream(*port, stream);
        if *id == 1 {
            let (method, path) = firsts.get(port).expect("the request that was upgraded");
            (row.1, row.2) = (method.clone(), path.clone());
        }
        row
    });
    compare(&upgraded, rows, http_span);
}

/// Method and path of the HTTP/1 requests by the client's port, by tshark.
fn upgraded_requests(file: &Path, server: u16) -> BTreeMap<u64, (String, String)> {
    let output = Command::new("tshark")
        .arg("-r")
        .arg(file)
        .arg("-d")
        .arg(format!("tcp.port=={server},http"))
        .arg("-Y")
        .arg(format!("http.request && tcp.dstport == {server}"))
        .args(["-T", "fields", "-e", "tcp.srcport"])
        .args(["-e", "http.request.method", "-e", "http.request.uri"])
        .stderr(Stdio::null())
        .output()
        .expect("run tshark");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines()
        .filter_map(|line| {
            let mut columns = line.split('\t');
            let port = columns.next()?.parse().ok()?;
            Some((
                port,
                (columns.next()?.to_owned(), columns.next()?.to_owned()),
            ))
        })
        .collect()
}

/// The status of a call that the client reset is on the wire only if the server was faster.
const RESET: &str = "reset";

fn unless_reset(status: &str) -> String {
    match status {
        "CANCELLED" | "DEADLINE_EXCEEDED" => RESET.to_owned(),
        status => status.to_owned(),
    }
}

fn call_span(span: &Span) -> Row {
    let text = |key| span.text(key).unwrap_or_default();
    assert_eq!((span.kind, text("rpc.system.name")), (Kind::Server, "grpc"));
    let method = match text("rpc.method") {
        "_OTHER" => text("rpc.method_original"),
        method => method,
    };
    let status = unless_reset(text("rpc.status_code"));
    (
        port_of(span),
        "POST".to_owned(),
        format!("/{method}"),
        status,
    )
}

fn call_stream(port: u64, stream: &Stream) -> Row {
    let mut row = http_stream(port, stream);
    row.3 = match stream.response.get("grpc-status") {
        Some(status) => unless_reset(code_name(status.parse().expect("a status"))),
        None if stream.reset => RESET.to_owned(),
        None => String::new(),
    };
    row
}

#[test]
fn grpc_calls() {
    let Some(session) = begin("replay_http2::grpc_calls") else {
        return;
    };
    let python = target_dir().join("venv/bin/python");
    let there = Command::new(&python).args(["-c", "import grpc"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        return skipped(
            "replay_http2",
            "there is no grpcio: run `cargo xtask setup --tests`",
        );
    }
    let mut child = Command::new(python)
        .arg(source("grpc-calls/calls.py"))
        .arg(&session.run)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python");
    let lines = process::lines(child.stdout.take().expect("stdout is piped"));
    let port: u16 = lines
        .recv_timeout(LIMIT)
        .expect("a port")
        .parse()
        .expect("a port");
    let directory = TempDir::new().expect("directory");
    let tcpdump = match Tcpdump::start(directory.path(), &[port]) {
        Ok(tcpdump) => tcpdump,
        Err(reason) => {
            process::end(&mut child);
            return skipped("replay_http2", &reason);
        }
    };
    writeln!(child.stdin.as_mut().expect("stdin is piped"), "go").expect("write");
    let done = lines.recv_timeout(LIMIT);
    let file = tcpdump.stop();
    process::end(&mut child);
    assert_eq!(done.as_deref(), Ok("done"));

    let spans = replayed(&file, directory.path(), &session.run);
    let streams = http2_streams(&file, port, "http2");
    assert_eq!((streams.len(), spans.len()), (109, 109));
    let rows = streams
        .iter()
        .map(|((port, _), stream)| call_stream(*port, stream));
    compare(&spans, rows, call_span);
    // What tshark cannot tell: which of the resets was the deadline's.
    for status in ["CANCELLED", "DEADLINE_EXCEEDED"] {
        let of_it = spans
            .iter()
            .filter(|span| span.text("rpc.status_code") == Some(status));
        assert_eq!(of_it.count(), 1, "{status}");
    }
    let traced = spans
        .iter()
        .filter(|span| span.trace_id == "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(traced.count(), 100);
}
