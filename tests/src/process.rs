//! Child processes with deadlines: waiting, ending by pid, first line of output, descendants.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::sys;

/// How often a deadline loop looks.
const POLL: Duration = Duration::from_millis(5);

/// How many times as long as on a machine of our own everything may take: `TRACER_TESTS_PATIENCE`, as `xtask vm` sets
/// it in emulated machines, whose time may be that of a busy host.
pub fn patience() -> u32 {
    let patience = std::env::var("TRACER_TESTS_PATIENCE");
    patience.map_or(1, |times| times.parse().expect("TRACER_TESTS_PATIENCE"))
}

/// Calls `done` until it gives something or `limit` (as often as [`patience`] says) is over.
pub fn poll_until<T>(limit: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit * patience();
    loop {
        if let Some(value) = done() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// Exit status of `child` if it ends within `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    poll_until(limit, || child.try_wait().expect("wait for a child"))
}

/// Ends `child`: end of its stdin, then SIGTERM, then SIGKILL, each with its time. Never fails.
pub fn end(child: &mut Child) {
    drop(child.stdin.take());
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        sys::signal(child.id(), signal);
        let _ = poll_until(Duration::from_secs(3), || child.try_wait().transpose());
    }
}

/// Reads one line of a child's output, or fails after `limit`. What follows is read and thrown
/// away by a thread, so that a talkative child never blocks.
pub fn first_line(
    output: impl Read + Send + 'static,
    limit: Duration,
) -> Result<String, mpsc::RecvTimeoutError> {
    lines(output).recv_timeout(limit)
}

/// The lines of a child's output, read by a thread.
pub fn lines(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = send.send(line);
        }
    });
    receive
}

/// Runs a build step to its end; its last words if it failed.
pub fn run(command: &mut Command) -> Result<(), String> {
    let name = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = text.lines().rev().take(5).collect();
    Err(format!(
        "{name}: {}: {}",
        output.status,
        tail.into_iter().rev().collect::<Vec<_>>().join(" | ")
    ))
}

/// `pid` exists and is not a zombie.
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may contain any.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// `pid` and everything it started that still runs.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        let Ok(threads) = std::fs::read_dir(format!("/proc/{parent}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children"));
            found.extend(
                children
                    .unwrap_or_default()
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_arrives_and_the_tree_has_the_children() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60 & echo started; wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let output = child.stdout.take().expect("stdout is piped");
        assert_eq!(
            first_line(output, Duration::from_secs(5)).as_deref(),
            Ok("started")
        );
        let tree = tree(child.id());
        assert_eq!(tree.len(), 2, "the shell and its sleep: {tree:?}");
        assert!(sys::signal(tree[1], libc::SIGTERM));
        end(&mut child);
        assert!(child.try_wait().expect("wait").is_some());
    }

    #[test]
    fn a_failed_step_says_why() {
        let error =
            run(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"])).expect_err("exit 3");
        assert!(error.contains("no luck"), "{error}");
    }
}
