//! The replay row: the pipeline over a large capture file, exporter off, on one core.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::agent::last_line;
use super::report::{Target, median, mib, micros_per, row};
use crate::{sh, sys};

const RUNS: u32 = 3;

/// Measures and prints.
pub fn measure(binary: &Path, directory: &Path, exchanges: u64) -> Result<()> {
    let capture = directory.join(format!("{exchanges}.pcap"));
    if !capture.is_file() {
        // Under another name until it is whole.
        let part = capture.with_extension("part");
        sh::run(
            sh::cargo()
                .args(["run", "--quiet", "--release", "--package", "tracer-agent"])
                .args(["--example", "make_pcap", "--", &exchanges.to_string()])
                .arg(&part),
        )?;
        fs::rename(&part, &capture)
            .with_context(|| format!("cannot write {}", capture.display()))?;
    }
    let size = fs::metadata(&capture).context("the capture is gone")?.len();
    let mut runs = Vec::new();
    for run in 1..=RUNS {
        eprintln!("bench: replay, run {run} of {RUNS}");
        runs.push(replay(binary, directory, &capture)?);
    }
    let wall = median(runs.iter().map(|run| run.wall.as_secs_f64()));
    let cpu = median(runs.iter().map(|run| micros_per(run.usage.cpu, exchanges)));
    let rss = runs
        .iter()
        .map(|run| run.usage.max_rss)
        .max()
        .unwrap_or_default();
    println!(
        "replay: {exchanges} exchanges in a capture of {:.0} MiB, exporter off, one core, \
         median of {RUNS}",
        mib(size)
    );
    let rate = if wall > 0.0 {
        exchanges as f64 / wall
    } else {
        0.0
    };
    println!(
        "{}",
        row("exchanges/s", rate, "1/s", Target::AtLeast(300_000.0))
    );
    println!("{}", row("CPU per exchange", cpu, "µs", Target::None));
    println!("{}", row("RSS peak", mib(rss), "MiB", Target::None));
    println!(
        "  the agent's last line: {}",
        last_line(&directory.join("replay.log"))
    );
    Ok(())
}

struct Run {
    wall: Duration,
    usage: sys::Usage,
}

fn replay(binary: &Path, directory: &Path, capture: &Path) -> Result<Run> {
    let log = directory.join("replay.log");
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(binary);
    command
        .env_clear()
        .envs(sh::env_without(&["OTEL_", "RUST_"]))
        .env("OTEL_TRACES_EXPORTER", "none")
        .env("OTEL_METRICS_EXPORTER", "none")
        .arg("replay")
        .arg(capture)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file);
    let begin = Instant::now();
    let child = sys::pin(sys::die_with_us(&mut command), 0)
        .spawn()
        .with_context(|| format!("cannot start `{}`", sh::line(&command)))?;
    let usage = sys::wait_usage(child.id()).context("cannot wait for the replay")?;
    let wall = begin.elapsed();
    if !usage.success {
        bail!("the replay failed: {}", last_line(&log));
    }
    Ok(Run { wall, usage })
}
