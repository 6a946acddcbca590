//! The right to run one end-to-end test on this host.
//!
//! An agent traces the whole host, so tests must not run side by side, neither threads of one test
//! program nor two checkouts: a lock file shared by all of them serialises. Tests that need root and
//! an agent binary are skipped without them, and say so even when the output of tests is captured.

use std::fs::File;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::{agent, sys};

/// Held for the time of a test.
#[derive(Debug)]
pub struct Session {
    /// Unique text that the test puts into its requests to know its own spans.
    pub run: String,
    _lock: File,
}

impl Session {
    /// Takes the lock, or says why the test is skipped. With `TRACER_TESTS_REQUIRED` set (as
    /// `cargo xtask test` does) a missing condition is a failure instead.
    pub fn begin(test: &str) -> Option<Self> {
        match missing() {
            None => Some(Self {
                run: unique(),
                _lock: lock(),
            }),
            Some(reason) => {
                assert!(
                    std::env::var_os("TRACER_TESTS_REQUIRED").is_none(),
                    "{test}: {reason}"
                );
                skipped(test, &reason);
                None
            }
        }
    }
}

/// Says that a test is skipped, past the test program's capture of its output.
pub fn skipped(test: &str, reason: &str) {
    // eprintln! would be captured, and a skip must be seen.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}

/// Text that no other run on this host uses.
pub fn unique() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("run{:x}{:x}", std::process::id(), now.as_nanos())
}

fn missing() -> Option<String> {
    if sys::effective_user() != 0 {
        return Some("needs root to trace".to_owned());
    }
    let binary = agent::binary();
    (!binary.is_file())
        .then(|| format!("no agent at {}: run `cargo xtask build`", binary.display()))
}

/// The lock of all tests that start an agent, for those that only make traffic.
pub fn lock() -> File {
    let path = std::env::temp_dir().join("tracer-agent-e2e.lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.lock().expect("lock of the end-to-end tests");
    file
}

/// How much of `n` is done: all, or one in as many as `TRACER_TESTS_ONE_IN` says, where each takes long (emulated
/// machines).
pub fn share(n: usize) -> usize {
    let one_in = std::env::var("TRACER_TESTS_ONE_IN");
    let one_in = one_in.ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    (n / one_in.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_differ() {
        assert_ne!(unique(), unique());
    }
}
