//! The calls of a run: every kind of method with every kind of end.

use super::call::{Call, METHODS};

/// For ever, as far as a call is concerned that somebody ends.
const NEVER_MS: u64 = 60_000;
/// When somebody ends it: long after a loaded machine has sent it.
const PATIENCE_MS: u64 = 300;

const NOT_FOUND: i32 = 5;
const RESOURCE_EXHAUSTED: i32 = 8;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;

/// How a call is meant to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// With the status that was asked for.
    Status(i32),
    /// By its deadline.
    Deadline,
    /// By the client.
    Cancelled,
    /// There is no such method.
    Missing,
}

impl Call {
    /// How it is meant to end.
    pub fn end(&self) -> End {
        if !METHODS.contains(&self.method.as_str()) {
            End::Missing
        } else if self.cancel_ms > 0 {
            End::Cancelled
        } else if self.delay_ms == NEVER_MS {
            End::Deadline
        } else {
            End::Status(self.code)
        }
    }

    /// The trace id it was sent with.
    pub fn trace_id(&self) -> Option<&str> {
        self.traceparent.as_deref()?.get(3..35)
    }

    /// The id of the span it was sent with.
    pub fn span_id(&self) -> Option<&str> {
        self.traceparent.as_deref()?.get(36..52)
    }
}

/// A `traceparent` that no other call has.
fn traceparent(run: u64, index: usize) -> String {
    format!("00-{run:016x}{index:016x}-{:016x}-01", index + 1)
}

/// Calls from `first` on: all methods in turn, and for each in turn every way to end, sizes up to
/// more than a flow control window.
pub fn mixed(run: u64, first: usize, count: usize) -> Vec<Call> {
    let calls = (first..first + count).map(|index| {
        let kind = index % METHODS.len();
        let turn = index / METHODS.len();
        let mut call = Call {
            index,
            method: METHODS[kind].to_owned(),
            traceparent: Some(traceparent(run, index)),
            count: 1 + turn % 3,
            messages: if kind % 2 == 1 { 1 + turn % 3 } else { 1 },
            delay_ms: if turn.is_multiple_of(7) { 5 } else { 0 },
            timeout_ms: if turn.is_multiple_of(2) { NEVER_MS } else { 0 },
            size: match turn % 125 {
                124 => 100_000,
                99 => 20_000,
                some => [0, 10, 100, 1_000][some % 4],
            },
            ..Call::default()
        };
        match turn % 50 {
            10 => (call.delay_ms, call.timeout_ms) = (NEVER_MS, PATIENCE_MS),
            20 => {
                (call.delay_ms, call.timeout_ms) = (NEVER_MS, 0);
                call.cancel_ms = PATIENCE_MS;
            }
            25 => call.code = RESOURCE_EXHAUSTED,
            30 => call.code = NOT_FOUND,
            35 => call.code = INTERNAL,
            40 => call.code = UNAVAILABLE,
            45 => call.method = "Missing".to_owned(),
            _ => {}
        }
        call
    });
    calls.collect()
}

/// Plain calls of these methods in turn.
pub fn plain(run: u64, first: usize, count: usize, methods: &[&str]) -> Vec<Call> {
    let calls = methods.iter().cycle().zip(first..first + count);
    let calls = calls.map(|(method, index)| Call {
        index,
        method: (*method).to_owned(),
        traceparent: Some(traceparent(run, index)),
        count: 1,
        messages: 1,
        size: 10,
        ..Call::default()
    });
    calls.collect()
}

/// A call of a stream in both directions that lasts.
pub fn long(run: u64, index: usize, seconds: u64) -> Call {
    Call {
        index,
        method: "Bidi".to_owned(),
        traceparent: Some(traceparent(run, index)),
        size: 100,
        messages: usize::try_from(seconds * 2).unwrap_or(usize::MAX) + 1,
        gap_ms: 500,
        ..Call::default()
    }
}
