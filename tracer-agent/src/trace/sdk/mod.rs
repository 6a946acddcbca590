//! Beside the SDKs of traced processes: what an SDK reports is left to it.
//!
//! In: spans with their final ids, in the order in which they end; contexts of requests as they begin;
//! exports that processes send, and what their bodies name. Out: the same spans, either to report or
//! left ([`Left`]), some of them later. Pure: times are arguments.
//!
//! | what | decides |
//! | --- | --- |
//! | a client span whose request carries a context made in its process | the SDK's, once the process is seen to export spans |
//! | a client span without, or with a context that is passed on | ours |
//! | a server span | the SDK's, if its exports have server spans of that protocol (or cannot be read) |
//! | anything of a process that exports no spans | ours |
//!
//! SDKs export seconds after the first request. So spans of a process wait, for a bounded time and once,
//! if something hints at an SDK: a context of its own in a request, or a [`Sign`]. Signs alone decide
//! nothing. Children of a span that is left go below the SDK's span, which is in the headers or in
//! the exports; never below one that nobody gets.
//!
//! It cannot see exports over TLS libraries without probes, and whether a collector keeps what it took.

pub mod payload;
mod process;
mod recent;
pub mod settings;
pub mod signal;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::context::RequestContext;
use super::span::{Link, Span, SpanId, SpanKind};
use payload::Payload;
use process::Process;
pub use process::Sign;
use recent::Recent;
pub use settings::{MODES, Mode, ServiceMode, Settings};
pub use signal::{Signal, was_taken};
use verdict::{Fate, Held, Verdict, about_client, about_server};

/// Processes known at a time; of more nothing is held or left.
const MAX_PROCESSES: usize = 16_384;
/// Spans that wait at a time; with more the oldest is decided early.
const MAX_HELD: usize = 16_384;
/// How long a process that ended is remembered: its last spans come a little later.
const AFTER_EXIT_NS: u64 = 10_000_000_000;

/// What was done so far, and how much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SdkCounts {
    /// Spans left to an SDK.
    pub left: u64,
    /// Spans decided early, because too many waited.
    pub hurried: u64,
    /// Spans that wait.
    pub waiting: u64,
    /// Processes whose SDK exports spans.
    pub processes: u64,
}

/// A span that its process's SDK reports.
#[derive(Clone, Debug)]
pub struct Left {
    /// The span as it would have been.
    pub span: Span,
    /// Its duration belongs into our metrics: the SDK exports none.
    pub counted: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Beside {
    wait_ns: u64,
    processes: FxHashMap<u32, Process>,
    ended: VecDeque<(u64, u32)>,
    held: VecDeque<Held>,
    /// Something was learnt since the held spans were last looked at.
    learnt: bool,
    /// Server spans of processes with an SDK: what became of them.
    fates: Recent<Fate>,
    /// Client spans that nobody gets, and what stands for them as a parent.
    gone: Recent<Option<SpanId>>,
    left: u64,
    hurried: u64,
}

impl Beside {
    /// With nothing known.
    pub fn new(settings: &Settings) -> Self {
        Beside {
            wait_ns: u64::try_from(settings.wait.as_nanos()).unwrap_or(u64::MAX),
            processes: FxHashMap::default(),
            ended: VecDeque::new(),
            held: VecDeque::new(),
            learnt: false,
            fates: Recent::default(),
            gone: Recent::default(),
            left: 0,
            hurried: 0,
        }
    }

    /// Whether a process was told of by [`Beside::begin`].
    pub fn knows(&self, tgid: u32) -> bool {
        let process = self.processes.get(&tgid);
        process.is_some_and(|process| process.ended_ns.is_none())
            || process.is_none() && self.processes.len() >= MAX_PROCESSES
    }

    /// A process has its first exchange.
    pub fn begin(&mut self, tgid: u32, mode: Mode, sign: Sign) {
        if self.processes.len() < MAX_PROCESSES || self.processes.contains_key(&tgid) {
            self.processes.insert(tgid, Process::new(mode, sign));
        }
    }

    /// A process runs another program now.
    pub fn restarted(&mut self, tgid: u32) {
        if self.processes.remove(&tgid).is_some() {
            self.learnt = true;
        }
    }

    /// A process ended.
    pub fn exited(&mut self, tgid: u32, now_ns: u64) {
        if let Some(process) = self.processes.get_mut(&tgid) {
            process.ended_ns = Some(now_ns);
            self.ended.push_back((now_ns, tgid));
            self.learnt = true;
        }
    }

    /// A request came in, with this context.
    pub fn received(&mut self, tgid: u32, context: &RequestContext) {
        if let (Some(process), Some(parent)) = (self.processes.get_mut(&tgid), context.parent) {
            process.received(context.trace_id, parent);
        }
    }

    /// A request went out with this context or none; its span will be `span_id`. What is certain not
    /// to be reported is no parent for the other end.
    pub fn sent(
        &mut self,
        tgid: u32,
        span_id: SpanId,
        context: Option<&RequestContext>,
        now_ns: u64,
    ) {
        let Some(process) = self.processes.get_mut(&tgid) else {
            return;
        };
        let parent = context.and_then(|context| context.parent);
        let own = match (context, parent) {
            (Some(context), Some(parent)) => {
                process.sent(context.trace_id, parent, now_ns, self.wait_ns)
            }
            _ => false,
        };
        let leaves = match process.mode {
            Mode::Auto => own && process.is_active(),
            Mode::Trace => false,
            Mode::Leave => true,
        };
        if leaves {
            self.gone.insert(span_id, parent);
        }
    }

    /// An export of spans that a process sends: what its body names.
    pub fn payload(&mut self, tgid: u32, payload: &Payload) {
        if let Some(process) = self.processes.get_mut(&tgid) {
            process.payload(payload);
            self.learnt = true;
        }
    }

    /// An export was sent and taken by its receiver.
    pub fn exported(&mut self, tgid: u32, signal: Signal) {
        if let Some(process) = self.processes.get_mut(&tgid) {
            process.exported(signal);
            self.learnt = true;
        }
    }

    /// A process took an export: what it sends is not its own.
    pub fn relays(&mut self, tgid: u32) {
        if let Some(process) = self.processes.get_mut(&tgid) {
            process.relays();
            self.learnt = true;
        }
    }

    /// True for a span that is reported whatever becomes known: that of a process without a sign of an SDK.
    /// Nothing has to be done with it then.
    pub fn passes(&mut self, span: &mut Span, now_ns: u64) -> bool {
        // A context in what a process sends may be its own.
        if span.kind == SpanKind::Client && span.link == Some(Link::Context) {
            return false;
        }
        if let Some(process) = self.processes.get_mut(&span.exchange.tgid) {
            process.begin(now_ns, self.wait_ns);
            if process.mode != Mode::Auto || process.is_active() || process.is_suspect(now_ns) {
                return false;
            }
        }
        self.above_gone(span);
        true
    }

    /// Takes a finished span. What is decided goes to `report` or `left`.
    pub fn push(
        &mut self,
        mut span: Span,
        now_ns: u64,
        report: &mut Vec<Span>,
        left: &mut Vec<Left>,
    ) {
        let Some(process) = self.processes.get_mut(&span.exchange.tgid) else {
            self.above_gone(&mut span);
            report.push(span);
            return;
        };
        process.begin(now_ns, self.wait_ns);
        let own = span.kind == SpanKind::Client
            && span.link == Some(Link::Context)
            && span
                .parent
                .is_some_and(|parent| process.sent(span.trace_id, parent, now_ns, self.wait_ns));
        let held = Held {
            due_ns: now_ns.saturating_add(self.wait_ns),
            span,
            own,
        };
        if let Some(held) = self.settle(held, now_ns, false, report, left) {
            self.held.push_back(held);
        }
        if self.held.len() > MAX_HELD
            && let Some(held) = self.held.pop_front()
        {
            self.hurried += 1;
            self.settle(held, now_ns, true, report, left);
        }
    }

    /// Decides what can be decided now. `now_ns` of `u64::MAX`: nothing more will become known.
    /// `all`: time alone may have changed something.
    pub fn poll(&mut self, now_ns: u64, all: bool, report: &mut Vec<Span>, left: &mut Vec<Left>) {
        while let Some(&(ended_ns, tgid)) = self.ended.front() {
            if ended_ns.saturating_add(AFTER_EXIT_NS) > now_ns {
                break;
            }
            self.ended.pop_front();
            let gone = |process: &Process| process.ended_ns == Some(ended_ns);
            if self.processes.get(&tgid).is_some_and(gone) {
                self.processes.remove(&tgid);
            }
        }
        let due = self.held.front().is_some_and(|held| held.due_ns <= now_ns);
        // Servers first: what is decided about a request decides about the calls made for it.
        for kind in [SpanKind::Server, SpanKind::Client] {
            if self.held.is_empty() || !(due || all || self.learnt) {
                return;
            }
            self.learnt = false;
            for _ in 0..self.held.len() {
                let Some(held) = self.held.pop_front() else {
                    break;
                };
                let in_turn = kind == SpanKind::Client || held.span.kind == kind;
                let last = held.due_ns <= now_ns && in_turn;
                if let Some(held) = self.settle(held, now_ns, last, report, left) {
                    self.held.push_back(held);
                }
            }
        }
    }

    /// Nothing waits, and no process that ended is remembered.
    pub fn is_idle(&self) -> bool {
        self.held.is_empty() && self.ended.is_empty()
    }

    /// What was done so far.
    pub fn counts(&self) -> SdkCounts {
        let active = |process: &&Process| process.is_active() && process.ended_ns.is_none();
        SdkCounts {
            left: self.left,
            hurried: self.hurried,
            waiting: self.held.len() as u64,
            processes: self.processes.values().filter(active).count() as u64,
        }
    }

    /// Hands a span on, or back if it has to wait. `last`: it has waited long enough.
    fn settle(
        &mut self,
        mut held: Held,
        now_ns: u64,
        last: bool,
        report: &mut Vec<Span>,
        left: &mut Vec<Left>,
    ) -> Option<Held> {
        let Some(process) = self.processes.get_mut(&held.span.exchange.tgid) else {
            self.above_gone(&mut held.span);
            report.push(held.span);
            return None;
        };
        let last = last || process.ended_ns.is_some();
        let verdict = match held.span.kind {
            SpanKind::Server => about_server(process, &held.span, now_ns, last),
            SpanKind::Client => about_client(process, &self.fates, &held, now_ns, last),
        };
        let counted = !process.exports_metrics();
        let watched = process.is_active() || process.mode != Mode::Auto;
        if held.span.kind == SpanKind::Server && watched && !matches!(verdict, Verdict::Wait) {
            let carried = held
                .span
                .parent
                .filter(|_| held.span.link == Some(Link::Context));
            let fate = match verdict {
                Verdict::Leave => Fate::Left(carried.map(|parent| (held.span.trace_id, parent))),
                _ => Fate::Reported,
            };
            self.fates.insert(held.span.span_id, fate);
            self.learnt |= !self.held.is_empty();
        }
        match verdict {
            Verdict::Wait => return Some(held),
            Verdict::Report => {
                self.above_gone(&mut held.span);
                report.push(held.span);
            }
            Verdict::ReportBelow(parent, remote) => {
                held.span.parent = parent;
                held.span.link = parent.map(|_| Link::Context);
                held.span.parent_is_remote = parent.is_some() && remote;
                report.push(held.span);
            }
            Verdict::Leave => {
                self.left += 1;
                left.push(Left {
                    span: held.span,
                    counted,
                });
            }
        }
        None
    }

    /// A server's span whose caller's span nobody gets goes below what stands for that.
    fn above_gone(&self, span: &mut Span) {
        if span.link == Some(Link::LocalConnection)
            && let Some(parent) = span.parent
            && let Some(instead) = self.gone.get(parent)
        {
            span.parent = *instead;
            span.link = instead.map(|_| Link::Context);
            span.parent_is_remote = instead.is_some();
        }
    }
}
