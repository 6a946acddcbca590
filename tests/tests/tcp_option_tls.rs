//! Trace context in TCP options of programs that move the ciphertext of their TLS sessions themselves (Node, Python's
//! asyncio), between two hosts with an agent each: every request, the first one of a connection too.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tracer_tests::agent::{Agent, Start};
use tracer_tests::hosts::TwoHosts;
use tracer_tests::process;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{build, source};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};
use tracer_tests::tls::{Certificate, Client};

const ARRIVAL: Duration = Duration::from_secs(20);
/// Connections of a row at the same time, and requests of each.
const GROUPS: usize = 25;
const EACH: usize = 4;
/// Programs that ask.
const ASKING: [&str; 4] = ["node", "node-http2", "aiohttp", "httpx"];
/// Programs that answer. nginx moves its ciphertext in the library's calls.
const SERVING: [&str; 4] = ["node", "uvicorn", "aiohttp", "nginx"];

/// Ended when dropped.
struct Server {
    child: Child,
    base: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}

/// Starts one of [`SERVING`].
fn server(
    hosts: &TwoHosts,
    name: &str,
    mark: &str,
    files: &TempDir,
    tls: &Certificate,
) -> Result<Server, String> {
    let address = TwoHosts::ADDRESSES[1];
    let script = |name: &str| source("ciphertext").join(name);
    let [certificate, key] = tls.arguments();
    let mut command = hosts.command(1);
    if name == "nginx" {
        let root = files.path().join(mark);
        std::fs::create_dir_all(&root).map_err(|error| error.to_string())?;
        let config = std::fs::read_to_string(script("nginx.conf.in"))
            .map_err(|error| error.to_string())?
            .replace("@ROOT@", &root.display().to_string())
            .replace("@CERTIFICATE@", &certificate)
            .replace("@KEY@", &key)
            .replace("@ADDRESS@", address);
        let file = root.join("nginx.conf");
        std::fs::write(&file, config).map_err(|error| error.to_string())?;
        command
            .arg(build::nginx()?)
            .arg("-e")
            .arg(root.join("error.log"));
        command.arg("-p").arg(&root).arg("-c").arg(&file);
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.map_err(|error| error.to_string())?;
        let base = format!("https://{address}:8443");
        return Ok(Server { child, base });
    }
    match name {
        "node" => command.arg("node").arg(script("serve.js")),
        "uvicorn" => command
            .arg(build::https_python()?)
            .arg(script("serve_uvicorn.py")),
        _ => command
            .arg(build::https_python()?)
            .arg(script("serve_aiohttp.py")),
    };
    command.arg(address).args([certificate, key]).arg(mark);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let output = child.stdout.take().ok_or("stdout is piped")?;
    let mut server = Server {
        child,
        base: String::new(),
    };
    let port = process::first_line(output, ARRIVAL).map_err(|error| format!("{name}: {error}"))?;
    server.base = format!("https://{address}:{}", port.trim());
    Ok(server)
}

/// Starts one of [`ASKING`].
fn client(
    hosts: &TwoHosts,
    name: &str,
    base: &str,
    path: &str,
    groups: usize,
    mark: &str,
) -> Result<Client, String> {
    let script = |name: &str| source("ciphertext").join(name);
    let mut command: Command = hosts.command(0);
    match name {
        "node" => command.arg("node").arg(script("ask.js")).arg("1"),
        "node-http2" => command.arg("node").arg(script("ask.js")).arg("2"),
        _ => command
            .arg(build::https_python()?)
            .arg(script("ask.py"))
            .arg(name),
    };
    command.arg(base).arg(path);
    command.args([groups, EACH].map(|n| n.to_string()));
    Client::start({
        command.arg(mark);
        command
    })
}

/// Scenario: programs of one host ask programs of the other one for things under TLS; neither the clients nor three of the four
/// servers have their libraries write to sockets.
/// Guarantees: every SERVER span is below the CLIENT span of its request, by the TCP option alone, the first requests of
/// connections included.
#[test]
fn ciphertext_that_programs_move_themselves() {
    const TEST: &str = "tcp_option_tls::ciphertext_that_programs_move_themselves";
    let Some(session) = Session::begin(TEST) else {
        return;
    };
    let hosts = match TwoHosts::make() {
        Ok(hosts) => hosts,
        Err(reason) => return skipped(TEST, &format!("no network namespaces: {reason}")),
    };
    let marks = [0, 1].map(|host| format!("ciphertext-{}-at-{host}", session.run));
    let tls = Certificate::new().expect("a certificate");
    let files = TempDir::new().expect("a directory");
    let mut servers = Vec::new();
    for name in SERVING {
        match server(&hosts, name, &marks[1], &files, &tls) {
            Ok(server) => servers.push((name, server)),
            Err(reason) => skipped(TEST, &format!("{name}: {reason}")),
        }
    }
    let side = |host: usize| {
        let receiver = Receiver::start();
        let agent = Start::new()
            .arg("--propagate=option")
            .arg("--include-cmdline")
            .arg(&marks[host])
            .export_http(&receiver)
            .ready_for_tls();
        (receiver, agent)
    };
    let sides = [side(0), side(1)];
    let said = "trace context is written into outgoing requests: in TCP options";
    if !sides.iter().all(|(_, agent)| agent.stderr().contains(said)) {
        return skipped(TEST, "this kernel has no TCP options of programs");
    }
    let mut rows: Vec<(&str, &str, String)> = Vec::new();
    for (serving, server) in &servers {
        for asking in ASKING {
            let has_http2 = matches!(*serving, "node" | "nginx");
            if asking == "node-http2" && !has_http2 {
                continue;
            }
            let path = format!("/{asking}-{serving}-{}", session.run);
            let client = match client(&hosts, asking, &server.base, &path, GROUPS, &marks[0]) {
                Ok(client) => client,
                Err(reason) => {
                    skipped(TEST, &format!("{asking}: {reason}"));
                    continue;
                }
            };
            // That it is to be traced is known, and its library has its probes.
            let is_first = rows.iter().all(|(known, ..)| *known != asking);
            std::thread::sleep(Duration::from_millis(if is_first { 3000 } else { 500 }));
            client.finish();
            rows.push((asking, *serving, path));
        }
    }
    for (receiver, _) in &sides {
        for (.., path) in &rows {
            receiver.wait_count(path, GROUPS * EACH, ARRIVAL);
        }
    }
    let mut wrong = Vec::new();
    for (asking, serving, path) in &rows {
        let [clients, answered] = [0, 1].map(|host| sides[host].0.spans_of(path));
        let linked = linked(&clients, &answered);
        println!(
            "{asking} to {serving}: {} and {} spans, {linked} of {} below by an option",
            clients.len(),
            answered.len(),
            GROUPS * EACH
        );
        let all = [clients.len(), answered.len(), linked];
        if all != [GROUPS * EACH; 3] {
            wrong.push(format!("{asking} to {serving}: {all:?}"));
        }
    }
    let metrics = |agent: &Agent| {
        let text = agent.metrics();
        let lines = text.lines().filter(|line| line.contains("_propagated_"));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    let said = sides.each_ref().map(|(_, agent)| metrics(agent));
    println!("{}\n{}", said[0], said[1]);
    assert!(!rows.is_empty());
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (_, agent) in sides {
        drop(agent.stop());
    }
}

/// How many of the requests have both spans, one below the other by an option; a wrong parent is none of these.
fn linked(clients: &[Span], servers: &[Span]) -> usize {
    let is_below = |server: &&Span| {
        let mut above = clients.iter().filter(|client| {
            Some(&client.span_id) == server.parent.as_ref() && client.trace_id == server.trace_id
        });
        let (Some(client), None) = (above.next(), above.next()) else {
            return false;
        };
        client.kind == Kind::Client
            && server.kind == Kind::Server
            && path(client) == path(server)
            && server.text("tracer.parent.method") == Some("tcp-option")
    };
    servers.iter().filter(is_below).count()
}

fn path(span: &Span) -> &str {
    let place = span.text("url.path").or(span.text("url.full"));
    place
        .unwrap_or_default()
        .rsplit('/')
        .next()
        .unwrap_or_default()
}
