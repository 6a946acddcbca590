//! Between the live pipeline and [`Beside`]: who has an SDK, what it exports, and what is counted of
//! what is left to it.

use std::sync::Arc;

use super::side::Side;
use crate::discover::sdk::sign;
use crate::protocol::{Exchange, ExchangeId, ExportBody, Opened, Role};
use crate::telemetry::ledger::Ledger;
use crate::telemetry::services::Outcome;
use crate::trace::Span;
use crate::trace::context::{RequestContext, extract};
use crate::trace::sdk::{Beside, Left, Mode, Settings, Sign, Signal, payload, was_taken};

/// Why an exchange has no span of ours: the process's own SDK has one.
pub const REPORTED_BY_SDK: &str = "reported_by_sdk";

/// Held spans that only time can decide are looked at this often.
const LOOK_NS: u64 = 250_000_000;

/// The stage and what belongs to it.
#[derive(Debug)]
pub struct Sdks {
    pub stage: Beside,
    settings: Settings,
    /// `run -- CMD`: the command has this agent's environment.
    inherited: bool,
    looked_ns: u64,
}

impl Sdks {
    /// Nothing known yet.
    pub fn new(settings: Settings, inherited: bool) -> Self {
        Sdks {
            stage: Beside::new(&settings),
            settings,
            inherited,
            looked_ns: 0,
        }
    }

    /// What of `spans` is ours to report stays there, in time; what is left to SDKs is returned.
    pub fn sort(&mut self, spans: &mut Vec<Span>, now_ns: u64) -> Vec<Left> {
        let mut left = Vec::new();
        if spans.is_empty() && self.stage.is_idle() {
            return left;
        }
        // Most spans have nothing to do with an SDK: they stay where they are.
        let other = spans
            .iter_mut()
            .position(|span| !self.stage.passes(span, now_ns));
        if let Some(first) = other {
            for span in spans.split_off(first) {
                self.stage.push(span, now_ns, spans, &mut left);
            }
        }
        let all = now_ns >= self.looked_ns.saturating_add(LOOK_NS);
        if all {
            self.looked_ns = now_ns;
        }
        self.stage.poll(now_ns, all, spans, &mut left);
        left
    }

    /// What is held goes on now, by what is known.
    pub fn hurry(&mut self, spans: &mut Vec<Span>) -> Vec<Left> {
        let mut left = Vec::new();
        self.stage.poll(u64::MAX, true, spans, &mut left);
        left
    }
}

/// Counts what was left: it is over for the ledger.
pub fn count(left: &[Left], ledger: &Ledger) {
    ledger.exchanges.dropped(REPORTED_BY_SDK, left.len() as u64);
    for Left { span, .. } in left {
        let service = &span.process.service_name;
        ledger
            .services
            .ended(service, Outcome::Dropped(REPORTED_BY_SDK), 1);
    }
}

impl Side {
    /// Makes a process known to the stage when its first exchange begins.
    fn begin_beside(&mut self, tgid: u32) {
        if tgid == 0 || self.sdks.stage.knows(tgid) {
            return;
        }
        let service = Arc::clone(&self.processes.get(tgid));
        let mode = self.sdks.settings.mode_of(&service.service_name);
        let inherited = self.sdks.inherited;
        let own = |name: &str, value: &str| {
            inherited && std::env::var(name).is_ok_and(|own| own.trim() == value)
        };
        let sign = match mode {
            Mode::Auto => sign(&self.proc, tgid, own),
            Mode::Trace | Mode::Leave => Sign::None,
        };
        self.sdks.stage.begin(tgid, mode, sign);
    }

    /// An exchange has begun: the context that it carries.
    pub fn context_of(&self, opened: &Opened) -> Option<RequestContext> {
        if opened.context.0.is_empty() {
            return None;
        }
        let extraction = extract(&opened.context, self.builder.propagators());
        extraction.context.map(|(_, context)| context)
    }

    /// An exchange of `tgid` has begun, and the assembler knows it.
    pub fn opened_beside(
        &mut self,
        id: ExchangeId,
        role: Role,
        tgid: u32,
        context: Option<&RequestContext>,
    ) {
        self.begin_beside(tgid);
        match (role, context) {
            (Role::Server, Some(context)) => self.sdks.stage.received(tgid, context),
            (Role::Server, None) => {}
            (Role::Client, context) => {
                if let Some(span_id) = self.assembler.span_id(id) {
                    self.sdks.stage.sent(tgid, span_id, context, self.now_ns);
                }
            }
        }
    }

    /// An exchange ended; it may have been an export.
    pub fn ended_beside(&mut self, exchange: &Exchange) {
        let Some(signal) = Signal::of_request(&exchange.request) else {
            return;
        };
        match exchange.role {
            Role::Server => self.sdks.stage.relays(exchange.tgid),
            Role::Client if was_taken(exchange) => self.sdks.stage.exported(exchange.tgid, signal),
            Role::Client => {}
        }
    }

    /// An export of a process: what its body names.
    pub fn exported_beside(&mut self, body: &ExportBody) {
        let ExportBody {
            tgid,
            bytes,
            chunked,
            whole,
        } = body;
        let payload = payload::read(bytes, *chunked, *whole);
        tracing::debug!(
            tgid,
            spans = payload.spans.len(),
            whole = payload.whole,
            "a process exports spans of its own"
        );
        self.sdks.stage.payload(*tgid, &payload);
    }
}
