//! The end of every live test: all spans arrived, nothing lost, the ledger adds up, a clean stop.

use std::time::Duration;

use crate::agent::{Agent, Stopped};
use crate::receiver::Receiver;
use crate::span::Span;

/// From the last response to its spans at the receiver.
const ARRIVAL: Duration = Duration::from_secs(120);
/// From there to an empty agent.
const DRAIN: Duration = Duration::from_secs(120);

/// Set in emulated machines: their CPUs are interrupted within programs so often that the kernel skips some
/// of their runs. Whether that lost a span the caller's comparison tells.
const SKIPS_ALLOWED: &str = "TRACER_TESTS_KERNEL_MAY_SKIP";

/// True for a loss that is nothing but runs of programs that the kernel skipped.
fn is_skip(loss: &str) -> bool {
    loss.starts_with("events dropped ") && loss.ends_with(": kernel_skipped")
}

/// Waits for `count` spans that mention `marker`, checks the ledger, stops the agent and gives back
/// all spans of the run: what the stop flushed included, so "none extra" is final.
pub fn finish(
    agent: Agent,
    receiver: &Receiver,
    marker: &str,
    count: usize,
) -> (Vec<Span>, Stopped) {
    finish_but_for(agent, receiver, marker, count, &[])
}

/// Like [`finish`], for runs that lose something on purpose: a stage in `may_lose` may.
pub fn finish_but_for(
    agent: Agent,
    receiver: &Receiver,
    marker: &str,
    count: usize,
    may_lose: &[&str],
) -> (Vec<Span>, Stopped) {
    let is_own = |span: &Span| span.mentions(marker);
    finish_own(agent, receiver, marker, count, may_lose, is_own)
}

/// The same for spans that `is_own` knows; `what` names them.
pub fn finish_own(
    agent: Agent,
    receiver: &Receiver,
    what: &str,
    count: usize,
    may_lose: &[&str],
    is_own: impl Fn(&Span) -> bool,
) -> (Vec<Span>, Stopped) {
    let arrived = receiver.wait_own(&is_own, count, ARRIVAL);
    if !arrived {
        // What is missing is told better by the caller's comparison; the ledger says where it went.
        let spans = receiver.own(&is_own).len();
        eprintln!(
            "{spans} of {count} spans of {what} arrived; ledger {:#?}; {}",
            agent.ledger(),
            kernel_drops(&agent.metrics())
        );
    }
    let ledger = agent.drained_ledger(DRAIN);
    let mut wrong = ledger.wrong_sums();
    wrong.extend(ledger.losses(may_lose));
    if std::env::var_os(SKIPS_ALLOWED).is_some() {
        wrong.retain(|loss| !is_skip(loss));
    }
    let exported = ledger.stage("spans").exported;
    if exported < count as u64 {
        wrong.push(format!("only {exported} spans exported"));
    }
    let stopped = agent.stop();
    if arrived {
        assert!(
            wrong.is_empty(),
            "{wrong:#?}\n{ledger:#?}\n{}",
            stopped.stderr
        );
    }
    (receiver.own(&is_own), stopped)
}

/// The lines of the metrics page that tell what the kernel side gave up.
fn kernel_drops(metrics: &str) -> String {
    let drops = metrics.lines().filter(|line| {
        line.starts_with("tracer_agent_kernel_drops_total") && !line.ends_with(" 0")
    });
    drops.collect::<Vec<_>>().join(", ")
}
