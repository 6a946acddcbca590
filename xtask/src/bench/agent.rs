//! The agent under measurement, and the null receiver it exports to.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::sink::Counts;
use crate::child::Guard;
use crate::{http, sh};

const START: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);

/// The null receiver in a process of its own.
#[derive(Debug)]
pub struct Sink {
    port: u16,
    _guard: Guard,
}

impl Sink {
    /// Starts it.
    pub fn start(directory: &Path) -> Result<Self> {
        let port_file = directory.join("sink.port");
        // A file of an earlier run must not be taken for this one's.
        let _ = fs::remove_file(&port_file);
        let log = File::create(directory.join("sink.log")).context("cannot write sink.log")?;
        let itself = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(itself);
        command.args(["otlp-sink", "--port-file"]).arg(&port_file);
        let mut guard = Guard::start(command.stdin(Stdio::null()).stderr(log))?;
        let deadline = Instant::now() + START;
        loop {
            if let Some(port) = fs::read_to_string(&port_file)
                .ok()
                .and_then(|t| t.parse().ok())
            {
                return Ok(Self {
                    port,
                    _guard: guard,
                });
            }
            if guard.ended().is_some() || Instant::now() >= deadline {
                bail!("the null OTLP receiver does not start; see target/bench/sink.log");
            }
            thread::sleep(LOOK);
        }
    }

    /// Spans it ever counted, by process.
    pub fn counts(&self) -> Result<Counts> {
        let (_, text) = http::get(self.port, "/counts")?;
        let counts: std::collections::BTreeMap<String, u64> =
            serde_json::from_str(&text).context("the null receiver's counts are odd")?;
        Ok(counts
            .iter()
            .filter_map(|(pid, &spans)| Some((pid.parse().ok()?, spans)))
            .collect())
    }
}

/// A tracing agent; ended when this is dropped.
#[derive(Debug)]
pub struct Agent {
    guard: Guard,
    admin: u16,
    /// From its start until /readyz said 200.
    pub start: Duration,
}

impl Agent {
    /// Starts it, exporting to the sink, and waits until it is ready.
    pub fn start(binary: &Path, directory: &Path, sink: &Sink) -> Result<Self> {
        let admin = http::free_port()?;
        let log = directory.join("agent.log");
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(binary);
        command
            .env_clear()
            .envs(sh::env_without(&["OTEL_", "RUST_"]))
            // Whoever else traces this host goes on.
            .env("TRACER_TAKEOVER", "off")
            .env("OTEL_TRACES_EXPORTER", "otlp")
            .env("OTEL_METRICS_EXPORTER", "none")
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            .env(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                format!("http://127.0.0.1:{}", sink.port),
            )
            .args(["run", "--admin", &format!("127.0.0.1:{admin}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let begin = Instant::now();
        let mut guard = Guard::start(&mut command)?;
        loop {
            if http::get(admin, "/readyz").is_ok_and(|(status, _)| status == 200) {
                return Ok(Self {
                    guard,
                    admin,
                    start: begin.elapsed(),
                });
            }
            if let Some(status) = guard.ended() {
                bail!("the agent ended ({status}): {}", last_line(&log));
            }
            if begin.elapsed() >= START {
                bail!("the agent does not become ready; see {}", log.display());
            }
            thread::sleep(LOOK);
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.guard.pid()
    }

    /// The loss ledger.
    pub fn ledger(&self) -> Result<serde_json::Value> {
        let (_, text) = http::get(self.admin, "/ledger")?;
        serde_json::from_str(&text).with_context(|| format!("the ledger is odd: {text}"))
    }

    /// Ends it; returns how long that took.
    pub fn stop(mut self) -> Result<Duration> {
        let begin = Instant::now();
        let status = self.guard.stop()?;
        if !status.success() {
            eprintln!("bench: the agent ended with {status}");
        }
        Ok(begin.elapsed())
    }
}

/// The last line of a log that says something.
pub fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("it said nothing")
        .to_owned()
}
