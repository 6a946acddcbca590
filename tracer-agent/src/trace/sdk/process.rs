//! What is known of the SDK of one process.

use std::collections::VecDeque;

use super::payload::{Class, Payload};
use super::settings::Mode;
use super::signal::Signal;
use crate::trace::span::{SpanId, SpanKind, TraceId};

/// Contexts of incoming requests remembered, to tell which outgoing ones are passed on.
const INCOMING: usize = 512;
/// Server spans of the SDK remembered, to hang calls below.
const SERVERS: usize = 1024;
/// Exports that were understood and had no such span, before a server is taken to be without.
const EXPORTS_WITHOUT: u32 = 2;

/// What the outside of a process says about an SDK in it. A hint, never a proof.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sign {
    /// Nothing.
    #[default]
    None,
    /// One may be loaded, or is configured to export.
    Maybe,
    /// It was told to load one: an agent, or a wrapper that instruments.
    Activated,
    /// That, and to export over TLS, which may not be seen.
    Hidden,
}

/// What is known about the exchanges of one side and protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coverage {
    /// Nothing yet.
    #[default]
    Unknown,
    /// The SDK reports them.
    Reported,
    /// It exports, but not these.
    Absent,
}

/// One process.
#[derive(Debug)]
pub struct Process {
    pub mode: Mode,
    sign: Sign,
    /// Its spans wait until then for the first export.
    suspect_until_ns: u64,
    /// When the first of them ended.
    began: bool,
    exports_traces: bool,
    exports_metrics: bool,
    /// It takes exports of others: what it sends is theirs.
    relays: bool,
    /// It writes contexts of its own into its requests.
    own_context: bool,
    /// Exports whose spans could be read.
    read: u32,
    /// Exports whose spans could not be read.
    unread: u32,
    /// The body of the export under way was seen.
    body_seen: bool,
    servers: [Coverage; 2],
    incoming: VecDeque<(TraceId, SpanId)>,
    /// SDK's server spans by their parent.
    reported: VecDeque<(TraceId, SpanId, SpanId)>,
    pub ended_ns: Option<u64>,
}

impl Process {
    pub fn new(mode: Mode, sign: Sign) -> Self {
        Process {
            mode,
            sign,
            suspect_until_ns: 0,
            began: false,
            exports_traces: false,
            exports_metrics: false,
            relays: false,
            own_context: false,
            read: 0,
            unread: 0,
            body_seen: false,
            servers: [Coverage::Unknown; 2],
            incoming: VecDeque::new(),
            reported: VecDeque::new(),
            ended_ns: None,
        }
    }

    /// Its SDK exports spans.
    pub fn is_active(&self) -> bool {
        // Exports through a TLS library without probes cannot be seen: then what was asked for has to do,
        // together with the contexts that are written.
        let unseen = self.sign == Sign::Hidden && self.own_context;
        !self.relays && (self.exports_traces || unseen)
    }

    /// It may turn out to be active.
    pub fn is_suspect(&self, now_ns: u64) -> bool {
        self.ended_ns.is_none() && !self.relays && now_ns < self.suspect_until_ns
    }

    pub fn exports_metrics(&self) -> bool {
        self.exports_metrics && !self.relays
    }

    /// Its first span ended, or it wrote its first context.
    pub fn begin(&mut self, now_ns: u64, wait_ns: u64) {
        if std::mem::replace(&mut self.began, true) {
            return;
        }
        // One that was activated gets the time of several exports.
        let rounds = match self.sign {
            Sign::None => 0,
            Sign::Maybe => 1,
            Sign::Activated | Sign::Hidden => 4,
        };
        self.suspect(now_ns.saturating_add(wait_ns.saturating_mul(rounds)));
    }

    fn suspect(&mut self, until_ns: u64) {
        self.suspect_until_ns = self.suspect_until_ns.max(until_ns);
    }

    /// A request that came in carried this context.
    pub fn received(&mut self, trace_id: TraceId, parent: SpanId) {
        if self.incoming.len() == INCOMING {
            self.incoming.pop_front();
        }
        self.incoming.push_back((trace_id, parent));
    }

    /// A request that went out carried this context. True if it was made in this process.
    pub fn sent(&mut self, trace_id: TraceId, parent: SpanId, now_ns: u64, wait_ns: u64) -> bool {
        if self.incoming.contains(&(trace_id, parent)) {
            return false;
        }
        if !std::mem::replace(&mut self.own_context, true) {
            self.suspect(now_ns.saturating_add(wait_ns));
        }
        true
    }

    /// It took an export.
    pub fn relays(&mut self) {
        self.relays = true;
    }

    /// It sent an export that was taken.
    pub fn exported(&mut self, signal: Signal) {
        match signal {
            Signal::Traces => {
                self.exports_traces = true;
                let unread = !std::mem::take(&mut self.body_seen);
                self.unread = self.unread.saturating_add(u32::from(unread));
            }
            Signal::Metrics => self.exports_metrics = true,
        }
    }

    /// What an export of spans said.
    pub fn payload(&mut self, payload: &Payload) {
        self.body_seen = true;
        if payload.whole {
            self.read = self.read.saturating_add(1);
        } else {
            self.unread = self.unread.saturating_add(1);
        }
        for span in &payload.spans {
            if span.kind != SpanKind::Server {
                continue;
            }
            self.servers[span.class as usize] = Coverage::Reported;
            if let Some(parent) = span.parent {
                if self.reported.len() == SERVERS {
                    self.reported.pop_front();
                }
                self.reported
                    .push_back((span.trace_id, parent, span.span_id));
            }
        }
    }

    /// The SDK's server span of a request that carried this context.
    pub fn server_span(&self, trace_id: TraceId, parent: SpanId) -> Option<SpanId> {
        let mut known = self.reported.iter().rev();
        known
            .find(|(trace, above, _)| *trace == trace_id && *above == parent)
            .map(|(_, _, span)| *span)
    }

    /// Whether server spans of a protocol are the SDK's. `Unknown` may be asked again later.
    pub fn server(&self, class: Class) -> Coverage {
        match self.servers[class as usize] {
            Coverage::Unknown if self.read == 0 && self.unread > 0 => Coverage::Reported,
            known => known,
        }
    }

    /// The time to learn about a server span is over.
    pub fn give_up(&mut self, class: Class) -> Coverage {
        let slot = &mut self.servers[class as usize];
        if *slot != Coverage::Unknown {
            return *slot;
        }
        if self.unread == 0 && self.read >= EXPORTS_WITHOUT {
            *slot = Coverage::Absent;
        }
        match (self.read, self.unread) {
            // Whole exports came, and none had such a span.
            (1.., 0) => Coverage::Absent,
            _ => Coverage::Reported,
        }
    }
}
