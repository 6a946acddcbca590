//! wrk: the load, and what it says of it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::child::Guard;
use crate::sh;

/// What one run made.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// wrk's process.
    pub pid: u32,
    /// Answers it read.
    pub requests: u64,
    /// Answers per second.
    pub rate: f64,
    /// 99th percentile of its latencies.
    pub p99: Duration,
    /// What went wrong, in wrk's own words.
    pub errors: Option<String>,
}

/// Runs wrk with keep-alive connections.
pub fn run(url: &str, connections: u32, time: Duration) -> Result<Run> {
    let wrk = sh::which("wrk").context("there is no wrk: run `cargo xtask setup --tests`")?;
    let output = output(&wrk, url, connections, time)?;
    let (pid, text) = output;
    parse(pid, &text).with_context(|| format!("wrk says something odd: {text}"))
}

fn output(wrk: &Path, url: &str, connections: u32, time: Duration) -> Result<(u32, String)> {
    let mut command = Command::new(wrk);
    command
        .args([
            "--threads",
            "2",
            "--latency",
            "--connections",
            &connections.to_string(),
        ])
        .args(["--duration", &format!("{}s", time.as_secs())])
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut guard = Guard::start(&mut command)?;
    let pid = guard.pid();
    let stdout = guard
        .child()
        .stdout
        .take()
        .context("a pipe was asked for")?;
    let text = std::io::read_to_string(stdout).context("wrk's output cannot be read")?;
    match guard.wait_for(Duration::from_secs(10)) {
        Some(status) if status.success() => Ok((pid, text)),
        Some(status) => bail!("wrk failed ({status})"),
        None => bail!("wrk does not end"),
    }
}

fn parse(pid: u32, text: &str) -> Option<Run> {
    let mut run = Run {
        pid,
        requests: 0,
        rate: 0.0,
        p99: Duration::ZERO,
        errors: None,
    };
    let (mut has_rate, mut has_p99) = (false, false);
    for line in text.lines().map(str::trim) {
        let mut words = line.split_whitespace();
        if line.contains(" requests in ") {
            run.requests = words.next()?.parse().ok()?;
        } else if let Some(rate) = line.strip_prefix("Requests/sec:") {
            run.rate = rate.trim().parse().ok()?;
            has_rate = true;
        } else if let Some(time) = line.strip_prefix("99%") {
            run.p99 = duration(time.trim())?;
            has_p99 = true;
        } else if line.starts_with("Socket errors:") || line.starts_with("Non-2xx") {
            run.errors = Some(line.to_owned());
        }
    }
    (has_rate && has_p99 && run.requests > 0).then_some(run)
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match text.get(digits.len()..)? {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(digits.parse::<f64>().ok()? * seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Running 1s test @ http://127.0.0.1:9/\n  2 threads and 16 connections\n  \
        Thread Stats   Avg      Stdev     Max   +/- Stdev\n    Latency   201.21us  330.72us   9.65ms   94.34%\n  \
        Latency Distribution\n     50%  119.00us\n     99%    1.57ms\n  \
        102358 requests in 1.10s, 16.01MB read\nRequests/sec:  93049.07\nTransfer/sec:     14.55MB\n";

    #[test]
    fn a_report_is_read() {
        let run = parse(7, TEXT).expect("well-formed");
        assert_eq!((run.pid, run.requests, run.rate), (7, 102_358, 93_049.07));
        assert_eq!((run.p99, run.errors), (Duration::from_micros(1570), None));
        let broken = format!("{TEXT}  Socket errors: connect 0, read 3, write 0, timeout 0\n");
        assert!(parse(7, &broken).is_some_and(|run| run.errors.is_some()));
        assert_eq!(parse(7, "unable to connect"), None);
        assert_eq!(parse(7, ""), None);
    }

    #[test]
    fn durations_have_units() {
        let check = |text: &str, micros: Option<u64>| {
            assert_eq!(duration(text), micros.map(Duration::from_micros), "{text}");
        };
        check("119.00us", Some(119));
        check("1.50ms", Some(1500));
        check("2.00s", Some(2_000_000));
        check("1.00m", Some(60_000_000));
        check("1.00", None);
        check("xs", None);
        check("", None);
    }
}
