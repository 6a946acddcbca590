//! The rows of HTTP/2 and gRPC: many streams on few connections, in alternating runs without and
//! with the agent. Runs are of a fixed number of requests, so that spans can be counted exactly.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::agent::{Agent, Sink};
use super::h2load::{self, CONNECTIONS, STREAMS};
use super::nginx::Nginx;
use super::procfs;
use super::report::{Target, median, micros_per, row};
use crate::child::Guard;
use crate::sh;

/// How long the last spans may take to arrive after the load.
const ARRIVAL: Duration = Duration::from_secs(30);
const HTTP2_REQUESTS: u64 = 300_000;
const GRPC_REQUESTS: u64 = 150_000;

/// What is loaded, and how.
struct Bed<'a> {
    name: &'a str,
    server: u32,
    port: u16,
    path: &'a str,
    options: Vec<&'a str>,
    requests: u64,
}

/// One run.
#[derive(Clone, Copy, Debug)]
struct Run {
    rate: f64,
    server_micros: f64,
    /// With an agent: its time per exchange, spans of the server and of the client.
    agent: Option<(f64, u64, u64)>,
}

/// nginx over HTTP/2.
pub fn http2(binary: &Path, directory: &Path, pairs: u32) -> Result<()> {
    let nginx = Nginx::start(directory, None)?;
    let bed = Bed {
        name: "h2load: one nginx worker",
        server: nginx.worker,
        port: nginx.http2,
        path: "/",
        options: Vec::new(),
        requests: HTTP2_REQUESTS,
    };
    measure(&bed, binary, directory, pairs)
}

/// Unary calls to the tests' server on grpc-go.
pub fn grpc(binary: &Path, directory: &Path, pairs: u32) -> Result<()> {
    let Some(go) = sh::which("go") else {
        eprintln!("bench: the gRPC row is skipped: there is no go");
        return Ok(());
    };
    let server = directory.join("grpc-server");
    sh::go_build(&go, "tests/services/grpc/go", &server)?;
    let log = File::create(directory.join("grpc.log")).context("cannot write grpc.log")?;
    let mut command = Command::new(server);
    command.arg("server").stderr(log);
    let mut guard = Guard::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let output = guard.child().stdout.take();
    let mut line = String::new();
    BufReader::new(output.context("a pipe was asked for")?)
        .read_line(&mut line)
        .context("the gRPC server says nothing")?;
    let port = line.trim().parse().context("the gRPC server has no port")?;
    // A message of the tests' service that asks for ten bytes at once, behind its prefix.
    let message = b"0 0 1 10 ";
    let length = u32::try_from(message.len()).unwrap_or_default();
    let data = directory.join("grpc.request");
    let bytes = [&[0][..], &length.to_be_bytes(), message].concat();
    fs::write(&data, bytes).context("cannot write grpc.request")?;
    let data = data.display().to_string();
    let bed = Bed {
        name: "grpc: unary calls to grpc-go",
        server: guard.pid(),
        port,
        path: "/tracer.peers.v1.Peers/Unary",
        options: vec![
            "-d",
            &data,
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
        ],
        requests: GRPC_REQUESTS,
    };
    measure(&bed, binary, directory, pairs)
}

fn measure(bed: &Bed<'_>, binary: &Path, directory: &Path, pairs: u32) -> Result<()> {
    let sink = Sink::start(directory)?;
    h2load::run(bed.port, bed.path, bed.requests / 10, &bed.options)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for pair in 1..=pairs {
        eprintln!(
            "bench: {}, pair {pair} of {pairs}: without the agent",
            bed.name
        );
        without.push(run(bed)?.0);
        eprintln!(
            "bench: {}, pair {pair} of {pairs}: with the agent",
            bed.name
        );
        with.push(traced(bed, binary, directory, &sink)?);
    }
    print(bed, &without, &with);
    Ok(())
}

/// One run and the client's process.
fn run(bed: &Bed<'_>) -> Result<(Run, u32)> {
    let before = procfs::cpu(bed.server)?;
    let load = h2load::run(bed.port, bed.path, bed.requests, &bed.options)?;
    let used = procfs::cpu(bed.server)?.saturating_sub(before);
    let run = Run {
        rate: load.rate,
        server_micros: micros_per(used, bed.requests),
        agent: None,
    };
    Ok((run, load.pid))
}

fn traced(bed: &Bed<'_>, binary: &Path, directory: &Path, sink: &Sink) -> Result<Run> {
    let spans_before = sink.counts()?;
    let agent = Agent::start(binary, directory, sink)?;
    let cpu_before = procfs::cpu(agent.pid())?;
    let (plain, client) = run(bed)?;
    let spans = |pid: u32| -> Result<u64> {
        let pid = u64::from(pid);
        let of = |counts: &super::sink::Counts| counts.get(&pid).copied().unwrap_or_default();
        Ok(of(&sink.counts()?).saturating_sub(of(&spans_before)))
    };
    let deadline = Instant::now() + ARRIVAL;
    while spans(bed.server)?.min(spans(client)?) < bed.requests && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    let used = procfs::cpu(agent.pid())?.saturating_sub(cpu_before);
    let ledger = agent.ledger()?;
    agent.stop()?;
    let (of_server, of_client) = (spans(bed.server)?, spans(client)?);
    if (of_server, of_client) != (bed.requests, bed.requests) {
        eprintln!("bench: {of_server} server and {of_client} client spans; ledger {ledger}");
    }
    Ok(Run {
        agent: Some((micros_per(used, bed.requests), of_server, of_client)),
        ..plain
    })
}

fn print(bed: &Bed<'_>, without: &[Run], with: &[Run]) {
    use Target::{AtLeast, AtMost, None as Shown};

    let middle = |runs: &[Run], value: fn(&Run) -> f64| median(runs.iter().map(value));
    let rate = (
        middle(without, |run| run.rate),
        middle(with, |run| run.rate),
    );
    let server = (
        middle(without, |run| run.server_micros),
        middle(with, |run| run.server_micros),
    );
    let agents = || with.iter().filter_map(|run| run.agent);
    let agent = median(agents().map(|(micros, ..)| micros));
    let percent = |spans: u64| spans as f64 / bed.requests as f64 * 100.0;
    let found = agents()
        .map(|(_, server, client)| percent(server.min(client)))
        .fold(f64::INFINITY, f64::min);
    let surplus = agents()
        .map(|(_, server, client)| server.max(client).saturating_sub(bed.requests) as f64)
        .fold(0.0, f64::max);
    println!(
        "{}, {} requests over {CONNECTIONS} connections of {STREAMS} streams, medians of {} pairs",
        bed.name,
        bed.requests,
        with.len()
    );
    let lines: [(&str, f64, &str, Target); 7] = [
        ("requests/s without the agent", rate.0, "1/s", Shown),
        ("requests/s with the agent", rate.1, "1/s", Shown),
        (
            "CPU of the server per request without",
            server.0,
            "µs",
            Shown,
        ),
        (
            "CPU added inside the server per request",
            server.1 - server.0,
            "µs",
            Shown,
        ),
        ("CPU of the agent per exchange", agent, "µs", AtMost(10.0)),
        ("spans of requests, worst run", found, "%", AtLeast(100.0)),
        ("spans too many, worst run", surplus, "", AtMost(0.0)),
    ];
    for (name, value, unit, target) in lines {
        println!("{}", row(name, value, unit, target));
    }
}
