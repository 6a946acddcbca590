//! The parents of what Node calls after timers and after work of libuv's threads, with the ids in the paths as the truth.
//!
//! Each service also calls in the background, from timers, from `setImmediate` and after files were read: those calls
//! never have a parent.

use std::process::Command;

use tracer_tests::scene::{FOLLOWED, Outcome, REQUESTS, at_least, front, play};
use tracer_tests::session::skipped;

/// Plays what comes between a request and its calls, one after another; connections are kept or not.
fn between(test: &str, ways: &[&str], fresh: &str) -> Option<Outcome> {
    let node = Command::new("node").arg("--version").output();
    if !node.is_ok_and(|output| output.status.success()) {
        skipped(test, "there is no node");
        return None;
    }
    let script = front("timers.js").display().to_string();
    let env = [("WAY", ways.join(",")), ("FRESH", fresh.to_owned())];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let query = format!("row={}", ways.len());
    play(test, &query, &["node", &script], &env, FOLLOWED)
}

/// Scenario: a timer, one made by a timer, `setImmediate` and an interval between a request and its calls, eight at a time, connections kept
/// and not. Guarantees: the calls are the request's children.
#[test]
fn timers() {
    let test = "causality_node::timers";
    for fresh in ["0", "1"] {
        let ways = ["timer", "nested", "immediate", "interval"];
        let Some(outcome) = between(test, &ways, fresh) else {
            return;
        };
        at_least(test, &outcome, ways.len(), 90);
    }
}

/// Scenario: files, `crypto` and `zlib` between a request and its calls, with callbacks and promises. Guarantees: as above.
#[test]
fn work_of_other_threads() {
    let test = "causality_node::work_of_other_threads";
    let ways = ["file", "promisedFile", "key", "promisedKey", "zip"];
    let Some(outcome) = between(test, &ways, "0") else {
        return;
    };
    at_least(test, &outcome, ways.len(), 90);
}

/// Scenario: a call that goes on with a timer's promise, behind one that does not. Guarantees: the second one has no parent,
/// since nothing tells which of the timers that ran kept its promise.
#[test]
fn promises_of_timers() {
    let test = "causality_node::promises_of_timers";
    let Some(outcome) = between(test, &["nextTick", "sleep"], "0") else {
        return;
    };
    assert!(outcome.right <= REQUESTS, "{outcome:?}");
    assert!(outcome.right * 100 >= REQUESTS * 90, "{outcome:?}");
}
