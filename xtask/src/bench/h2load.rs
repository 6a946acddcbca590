//! h2load: the load of many streams on few connections, and what it says of it.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::child::Guard;
use crate::sh;

/// Connections.
pub const CONNECTIONS: u32 = 8;
/// Streams at a time on each.
pub const STREAMS: u32 = 100;

/// What one run made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// h2load's process.
    pub pid: u32,
    /// Answers per second.
    pub rate: f64,
}

/// Makes exactly so many requests, all of which must succeed.
pub fn run(port: u16, path: &str, requests: u64, options: &[&str]) -> Result<Run> {
    let h2load =
        sh::which("h2load").context("there is no h2load: run `cargo xtask setup --tests`")?;
    let mut command = Command::new(h2load);
    command
        .args(["-n", &requests.to_string()])
        .args(["-c", &CONNECTIONS.to_string(), "-m", &STREAMS.to_string()])
        .args(options)
        .arg(format!("http://127.0.0.1:{port}{path}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut guard = Guard::start(&mut command)?;
    let pid = guard.pid();
    let stdout = guard
        .child()
        .stdout
        .take()
        .context("a pipe was asked for")?;
    let text = std::io::read_to_string(stdout).context("h2load's output cannot be read")?;
    match guard.wait_for(Duration::from_secs(10)) {
        Some(status) if status.success() => {}
        Some(status) => bail!("h2load failed ({status})"),
        None => bail!("h2load does not end"),
    }
    let (rate, succeeded) =
        parse(&text).with_context(|| format!("h2load says something odd: {text}"))?;
    ensure!(
        succeeded == requests,
        "only {succeeded} of {requests} requests succeeded"
    );
    Ok(Run { pid, rate })
}

/// Requests per second, and how many succeeded.
fn parse(text: &str) -> Option<(f64, u64)> {
    // "finished in 1.23s, 40650.41 req/s, 1.32MB/s"
    let finished = text.lines().find(|line| line.starts_with("finished in "))?;
    let rate = finished
        .split(", ")
        .find_map(|part| part.strip_suffix(" req/s"))?;
    // "requests: 50000 total, 50000 started, 50000 done, 50000 succeeded, 0 failed, ..."
    let requests = text.lines().find(|line| line.starts_with("requests: "))?;
    let succeeded = requests
        .split(", ")
        .find_map(|part| part.strip_suffix(" succeeded"))?;
    Some((rate.parse().ok()?, succeeded.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let text = "starting benchmark...\nprogress: 100% done\n\n\
            finished in 1.23s, 40650.41 req/s, 1.32MB/s\n\
            requests: 50000 total, 50000 started, 50000 done, 49990 succeeded, 10 failed, 10 errored, 0 timeout\n";
        assert_eq!(parse(text), Some((40_650.41, 49_990)));
        assert_eq!(parse("finished in 1s"), None);
        assert_eq!(parse(""), None);
    }
}
