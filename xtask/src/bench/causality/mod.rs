//! `cargo xtask bench causality`: of the calls that a service makes while it serves a request, how
//! many get that request's span for a parent, and is any given a wrong one?
//!
//! A row is one kind of service. It runs as the command of `tracer-agent run -- CMD`: a driver sends
//! requests with a unique id in their paths, the service calls a backend with the same id and does
//! work in the background that belongs to no request. The ids in the spans are the truth.

mod fronts;
mod scene;
mod truth;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::child::Guard;
use crate::sh;
use fronts::{FRONTS, Front};
pub use scene::{SceneArgs, play};
use truth::Score;

/// Longest run of one row at one concurrency.
const LONGEST: Duration = Duration::from_secs(120);

/// Runs every row whose name contains `only`, and prints the table.
pub fn measure(
    agent: &Path,
    directory: &Path,
    requests: u32,
    only: Option<&str>,
    concurrencies: &[u32],
) -> Result<()> {
    let directory = directory.join("causality");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    println!(
        "causality: {requests} requests per run, 2 calls in a row and 3 at the same time for each; \
         calls in the background must have no parent"
    );
    println!(
        "  {:<38} {:>4} {:>7} {:>7} {:>7} {:>6} {:>8} {:>9} {:>8}",
        "service", "conc", "calls", "right", "missing", "wrong", "recall", "precision", "ends"
    );
    let mut bad = Vec::new();
    for front in FRONTS
        .iter()
        .filter(|front| only.is_none_or(|only| front.name.contains(only)))
    {
        let ready = match front.prepare(&directory) {
            Ok(ready) => ready,
            Err(error) => {
                println!("  {:<38} skipped: {error:#}", front.name);
                continue;
            }
        };
        for &concurrency in concurrencies {
            let score = run(agent, &directory, front, &ready, concurrency, requests);
            match score {
                Ok(score) => {
                    println!("  {:<38} {concurrency:>4} {score}", front.name);
                    if score.wrong > 0 || score.recall() < front.target {
                        bad.push(format!("{} at {concurrency}", front.name));
                    }
                }
                Err(error) => println!("  {:<38} {concurrency:>4} failed: {error:#}", front.name),
            }
        }
    }
    if !bad.is_empty() {
        println!("  below the target: {}", bad.join(", "));
    }
    Ok(())
}

fn run(
    agent: &Path,
    directory: &Path,
    front: &Front,
    ready: &fronts::Ready,
    concurrency: u32,
    requests: u32,
) -> Result<Score> {
    let spans = directory.join("spans.jsonl");
    let _ = fs::remove_file(&spans);
    let log = fs::File::create(directory.join("agent.log")).context("cannot write agent.log")?;
    let itself = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(agent);
    command
        .env_clear()
        .envs(sh::env_without(&["OTEL_", "RUST_"]))
        .env("OTEL_TRACES_EXPORTER", "none")
        .env("OTEL_METRICS_EXPORTER", "none")
        .args(["run", "--admin", "off", "--otlp-file"])
        .arg(&spans)
        .arg("--")
        .arg(itself)
        .args(["causality-scene", front.name, "--directory"])
        .arg(directory)
        .arg("--program")
        .arg(&ready.program)
        .args(["--concurrency", &concurrency.to_string()])
        .args(["--requests", &requests.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let mut guard = Guard::start(&mut command)?;
    match guard.wait_for(LONGEST) {
        Some(status) if status.success() => {}
        Some(status) => bail!("{status}; see {}", directory.join("agent.log").display()),
        None => bail!("it takes too long"),
    }
    let text = fs::read_to_string(&spans).context("there are no spans")?;
    truth::score(&text, front)
}
