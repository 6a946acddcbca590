//! The row of TLS: what probes in TLS libraries cost the programs that use them. One nginx worker
//! (OpenSSL) and an HTTPS server of Go's standard library under wrk, small responses over HTTP/1.1, in
//! alternating runs without and with the agent.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::agent::{Agent, Sink};
use super::live::Load;
use super::nginx::Nginx;
use super::report::{Target, median, micros_per, row};
use super::{procfs, wrk};
use crate::child::Guard;
use crate::sh;

/// How long the last spans may take to arrive after the load.
const ARRIVAL: Duration = Duration::from_secs(30);
const WARM_UP: Duration = Duration::from_secs(1);

/// A certificate for 127.0.0.1 and its key.
#[derive(Debug)]
pub struct Certificate {
    /// PEM file.
    pub certificate: PathBuf,
    /// PEM file.
    pub key: PathBuf,
}

impl Certificate {
    fn make(directory: &Path) -> Result<Self> {
        let openssl =
            sh::which("openssl").context("there is no openssl: run `cargo xtask setup --tests`")?;
        let made = Self {
            certificate: directory.join("certificate.pem"),
            key: directory.join("key.pem"),
        };
        let mut command = Command::new(openssl);
        command
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days"])
            .args(["2", "-subj", "/CN=localhost", "-keyout"])
            .arg(&made.key)
            .arg("-out")
            .arg(&made.certificate)
            .stderr(Stdio::null());
        sh::run(&mut command)?;
        Ok(made)
    }
}

/// One run.
#[derive(Clone, Copy, Debug)]
struct Run {
    rate: f64,
    server_micros: f64,
    requests: u64,
    client: u32,
    /// With an agent: of the spans that must be there, percent of the side that lacks more.
    complete: f64,
}

/// Measures and prints.
pub fn measure(binary: &Path, directory: &Path, load: &Load) -> Result<()> {
    let certificate = Certificate::make(directory)?;
    let nginx = Nginx::start(directory, Some(&certificate))?;
    let https = nginx.https.context("it was given a certificate")?;
    bed(
        "nginx (OpenSSL)",
        nginx.worker,
        https,
        binary,
        directory,
        load,
    )?;
    drop(nginx);
    let Some(go) = sh::which("go") else {
        eprintln!("bench: TLS in Go is skipped: there is no go");
        return Ok(());
    };
    let program = directory.join("go-tls");
    sh::go_build(&go, "tests/services/go-tls", &program)?;
    let log = File::create(directory.join("go-tls.log")).context("cannot write go-tls.log")?;
    let mut command = Command::new(program);
    command
        .arg("server")
        .args([&certificate.certificate, &certificate.key])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    let mut guard = Guard::start(&mut command)?;
    let output = guard.child().stdout.take();
    let mut line = String::new();
    BufReader::new(output.context("a pipe was asked for")?)
        .read_line(&mut line)
        .context("the Go server says nothing")?;
    let port = line.trim().parse().context("the Go server has no port")?;
    bed("Go's net/http", guard.pid(), port, binary, directory, load)
}

fn bed(
    name: &str,
    server: u32,
    port: u16,
    binary: &Path,
    directory: &Path,
    load: &Load,
) -> Result<()> {
    let sink = Sink::start(directory)?;
    run(server, port, load, WARM_UP)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for pair in 1..=load.pairs {
        eprintln!("bench: tls, {name}, pair {pair} of {}", load.pairs);
        without.push(run(server, port, load, load.time)?);
        with.push(traced(server, port, load, binary, directory, &sink)?);
    }
    print(name, load, &without, &with);
    Ok(())
}

fn run(server: u32, port: u16, load: &Load, time: Duration) -> Result<Run> {
    let before = procfs::cpu(server)?;
    let url = format!("https://127.0.0.1:{port}/");
    let done = wrk::run(&url, load.connections, time)?;
    let used = procfs::cpu(server)?.saturating_sub(before);
    if let Some(errors) = &done.errors {
        eprintln!("bench: wrk: {errors}");
    }
    Ok(Run {
        rate: done.rate,
        server_micros: micros_per(used, done.requests),
        requests: done.requests,
        client: done.pid,
        complete: 0.0,
    })
}

fn traced(
    server: u32,
    port: u16,
    load: &Load,
    binary: &Path,
    directory: &Path,
    sink: &Sink,
) -> Result<Run> {
    let before = sink.counts()?;
    let agent = Agent::start(binary, directory, sink)?;
    // Connections of this run are made before the first request, with the probes in place.
    let run = run(server, port, load, load.time)?;
    let spans = |pid: u32| -> Result<u64> {
        let pid = u64::from(pid);
        let of = |counts: &super::sink::Counts| counts.get(&pid).copied().unwrap_or_default();
        Ok(of(&sink.counts()?).saturating_sub(of(&before)))
    };
    let deadline = Instant::now() + ARRIVAL;
    let mut found = 0;
    while found < run.requests && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
        found = spans(server)?.min(spans(run.client)?);
    }
    agent.stop()?;
    let complete = found.min(run.requests) as f64 / run.requests as f64 * 100.0;
    Ok(Run { complete, ..run })
}

fn print(name: &str, load: &Load, without: &[Run], with: &[Run]) {
    use Target::{AtLeast, None as Shown};

    let middle = |runs: &[Run], value: fn(&Run) -> f64| median(runs.iter().map(value));
    let rate = (
        middle(without, |run| run.rate),
        middle(with, |run| run.rate),
    );
    let server = (
        middle(without, |run| run.server_micros),
        middle(with, |run| run.server_micros),
    );
    let least = with.iter().map(|run| run.complete);
    let complete = least.fold(f64::INFINITY, f64::min);
    println!(
        "tls: {name}, wrk with {} keep-alive connections, medians of {} pairs of {} s",
        load.connections,
        load.pairs,
        load.time.as_secs()
    );
    let lines: [(&str, f64, &str, Target); 6] = [
        ("requests/s without the agent", rate.0, "1/s", Shown),
        ("requests/s with the agent", rate.1, "1/s", Shown),
        ("throughput with / without", rate.1 / rate.0, "", Shown),
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
        (
            "spans of requests, worst run",
            complete,
            "%",
            AtLeast(100.0),
        ),
    ];
    for (name, value, unit, target) in lines {
        println!("{}", row(name, value, unit, target));
    }
}
