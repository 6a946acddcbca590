//! What ingest asks of the rest: policy, metadata, spans of exchanges, the doors to the kernel side.
//!
//! In: exchanges that begin and end, with their connections; processes that start. Out: spans, in
//! [`Side::spans`], once whose they are and who reports them is known.

use std::net::SocketAddr;
use std::sync::Arc;

use rustc_hash::FxHashSet;
use tracer_common::abi::{ExecEvent, policy};

use super::beside::Sdks;
use super::denied::Denied;
use super::takeover::gate::{Gate, Verdict};
use super::tls::Watch;
use crate::discover::{Decision, Discovery, EventLoops, Mode, PolicyUpdate, Runtime, Runtimes};
use crate::export::USER_AGENT;
use crate::ingest::{Host, Record};
use crate::meta::{ExecInfo, ProcFs, ProcessTable};
use crate::probes::Maps;
use crate::protocol::{Connection, Endpoint, Exchange, ExchangeId, ExportBody, Opened};
use crate::telemetry::ledger::Ledger;
use crate::telemetry::services::Outcome;
use crate::trace::{Assembler, Span, SpanBuilder};

/// What ingest asks of the rest.
pub struct Side {
    pub(super) maps: Maps,
    pub(super) proc: ProcFs,
    pub(super) processes: ProcessTable,
    pub(super) discovery: Discovery,
    pub(super) builder: SpanBuilder,
    pub(super) assembler: Assembler,
    /// What the processes' own SDKs report.
    pub(super) sdks: Sdks,
    pub(super) now_ns: u64,
    pub(super) boot_to_unix_ns: i64,
    /// The agent's own endpoint.
    pub(super) admin: Option<SocketAddr>,
    pub(super) has_port_rules: bool,
    /// Who attaches to TLS libraries.
    pub(super) tls: Option<Watch>,
    pub(super) spans: Vec<Span>,
    /// Which exchanges are this agent's to report.
    pub(super) gate: Gate,
    pub(super) denied: Denied,
    pub(super) runtimes: Runtimes,
    pub(super) event_loops: EventLoops,
    /// Processes whose runtimes are to be followed.
    pub(super) to_follow: Vec<(u32, Runtime)>,
    /// Processes that ended or run something else now, and whether their event loops may have been followed.
    pub(super) gone: Vec<(u32, bool)>,
    /// Exchanges that are none of ours to report.
    pub(super) foreign: u64,
    pub(super) ledger: Arc<Ledger>,
}

impl Side {
    pub(super) fn follow(&mut self, tgid: u32) {
        let runtime = self.runtimes.of(&self.proc, tgid);
        self.to_follow
            .extend(runtime.map(|runtime| (tgid, runtime)));
    }

    /// A process ended, or runs something else from now on.
    pub(super) fn gone(&mut self, tgid: u32) {
        let may_have_probes = self.event_loops.ended(tgid);
        self.gone.push((tgid, may_have_probes));
        self.to_follow.retain(|(other, _)| *other != tgid);
    }

    pub(super) fn exec(&mut self, event: &ExecEvent, tail: &[u8]) {
        self.gone(event.tgid);
        self.follow(event.tgid);
        self.sdks.stage.restarted(event.tgid);
        if let Some(tls) = &self.tls {
            tls.started(event.tgid);
        }
        let facts = self.processes.on_exec(&ExecInfo::new(event, tail));
        if let Some(update) = self.discovery.on_exec(facts) {
            // What comes from it now may be of a program that it started since: that one's record comes too.
            let is_newest = !self.maps.has_newer_program(event.tgid, event.time_ns);
            self.decide(event.tgid, update, is_newest);
        }
    }

    /// Decides about a forked process, if its parent's program was undecided when it was forked.
    pub(super) fn decide_child(&mut self, tgid: u32, parent: u32) {
        if self.discovery.mode() != Mode::Host || !self.discovery.policy().has_rules() {
            return;
        }
        if !self.maps.is_undecided_child(tgid) {
            if self.denied.has(parent) {
                // It may have started a program since; about that will be decided.
                self.denied.decided(tgid, false, self.now_ns);
            }
            return;
        }
        let facts = self.processes.facts(tgid);
        let update = facts.and_then(|facts| self.discovery.on_exec(facts));
        self.decide(tgid, update.unwrap_or(PolicyUpdate::Remove { tgid }), true);
    }

    /// The kernel side looked at a new program until now; of one that is not traced nothing is kept.
    fn decide(&mut self, tgid: u32, update: PolicyUpdate, is_newest: bool) {
        let is_traced = self.traces(&update);
        if is_newest {
            self.apply(update);
        }
        if self.discovery.mode() == Mode::Host {
            self.denied.decided(tgid, is_traced, self.now_ns);
        }
    }

    /// The rules changed: what is traced from now on is not left out any more.
    pub(super) fn apply_change(&mut self, update: PolicyUpdate) {
        if self.traces(&update) {
            let (PolicyUpdate::Set { tgid, .. } | PolicyUpdate::Remove { tgid }) = update;
            self.denied.decided(tgid, true, self.now_ns);
        }
        self.apply(update);
    }

    /// Whether a process is traced behind this.
    pub(super) fn traces(&self, update: &PolicyUpdate) -> bool {
        let flags = match update {
            PolicyUpdate::Set { flags, .. } => *flags,
            PolicyUpdate::Remove { .. } => self.discovery.default_flags(),
        };
        flags & policy::IGNORE == 0
    }

    /// Whether what a process did is to be left out. Of its connections the kernel side forgets what it
    /// knows, should somebody else go on with them.
    pub(super) fn leaves_out(&mut self, record: &Record<'_>) -> bool {
        if self.denied.is_empty() {
            return false;
        }
        match record {
            Record::Data(event, _) => self.denied.has(event.tgid),
            Record::Connection(event) if self.denied.has(event.tgid) => {
                self.maps.forget_connection(event.socket, event.connection);
                true
            }
            _ => false,
        }
    }

    pub(super) fn apply(&mut self, update: PolicyUpdate) {
        match update {
            PolicyUpdate::Set { tgid, flags } => {
                if let Err(error) = self.maps.set_process(tgid, flags) {
                    tracing::warn!(tgid, %error, "cannot set the policy of a process");
                }
            }
            PolicyUpdate::Remove { tgid } => self.maps.remove_process(tgid),
        }
    }

    /// True for the agent's own export traffic, seen at whoever receives or forwards it, and for
    /// ports that policy leaves out.
    fn is_foreign(&mut self, exchange: &Exchange, connection: &Connection) -> bool {
        if exchange.request.user_agent.as_deref().is_some_and(is_own) {
            return true;
        }
        if !self.has_port_rules {
            return false;
        }
        let (Endpoint::Ip(local), Endpoint::Ip(remote)) = (&connection.local, &connection.remote)
        else {
            return false;
        };
        let Some(facts) = self.processes.facts(exchange.tgid) else {
            return false;
        };
        let policy = self.discovery.policy();
        let role = Some(exchange.role);
        policy.decide_ports(facts, local.port(), remote.port(), role) != Decision::Trace
    }
}

/// Path of a target in origin form; in any other form it may hold more than that.
pub(super) fn path_of(target: &str) -> &str {
    let path = target.split(['?', '#']).next();
    path.filter(|path| path.starts_with('/')).unwrap_or("")
}

/// The exporters' `User-Agent`; libraries may append their own.
fn is_own(user_agent: &str) -> bool {
    user_agent.starts_with(USER_AGENT)
}

impl Host for Side {
    fn sockets_of(&self, tgid: u32) -> Option<FxHashSet<u64>> {
        self.proc.sockets_of(tgid)
    }

    fn tracks(&self, socket: u64, connection: u64) -> bool {
        self.maps.tracks_connection(socket, connection)
    }

    fn is_own(&self, connection: &Connection) -> bool {
        let (Some(admin), Endpoint::Ip(local), Endpoint::Ip(remote)) =
            (self.admin, &connection.local, &connection.remote)
        else {
            return false;
        };
        // A client of the admin endpoint: same port, and an address of this host.
        remote.port() == admin.port()
            && (remote.ip() == admin.ip()
                || admin.ip().is_unspecified()
                    && (remote.ip().is_loopback() || remote.ip() == local.ip()))
    }

    fn forget(&mut self, socket: u64, connection: u64) {
        self.maps.forget_connection(socket, connection);
    }

    fn ignore(&mut self, socket: u64, connection: u64) {
        self.maps.ignore_connection(socket, connection);
    }

    fn opened(&mut self, opened: Opened, connection: &Arc<Connection>) {
        let id = ExchangeId {
            connection: connection.id,
            key: opened.key,
        };
        let (role, tgid, context) = (opened.role, opened.tgid, self.context_of(&opened));
        self.gate.opened(&opened, connection);
        self.assembler.opened(opened, connection, self.now_ns);
        self.opened_beside(id, role, tgid, context.as_ref());
    }

    fn exported(&mut self, body: ExportBody) {
        self.exported_beside(&body);
    }

    fn exchange(&mut self, exchange: Exchange, connection: &Arc<Connection>) {
        if self.is_foreign(&exchange, connection) {
            self.foreign += 1;
            return;
        }
        self.ended_beside(&exchange);
        match self.gate.judge(&exchange, connection) {
            Verdict::Report => self.report(exchange, connection),
            Verdict::Leave => self.foreign += 1,
            Verdict::Wait => self.gate.hold(exchange, Arc::clone(connection)),
        }
    }

    fn abandoned(&mut self, tgid: u32, reason: &'static str, n: u64) {
        let process = self.processes.get(tgid);
        let services = &self.ledger.services;
        services.ended(&process.service_name, Outcome::Dropped(reason), n);
    }
}

impl Side {
    /// What waited for another agent's word and need not any more.
    pub(super) fn release(&mut self) {
        for (exchange, connection) in self.gate.take_held() {
            match self.gate.judge(&exchange, &connection) {
                Verdict::Report => self.report(exchange, &connection),
                Verdict::Leave => self.foreign += 1,
                Verdict::Wait => self.gate.hold(exchange, connection),
            }
        }
        let lost = self.gate.take_overflowed();
        self.ledger.exchanges.dropped("takeover_full", lost);
    }

    fn report(&mut self, exchange: Exchange, connection: &Arc<Connection>) {
        let process = self.processes.get_at(exchange.tgid, exchange.end_ns);
        let id = ExchangeId {
            connection: connection.id,
            key: exchange.key,
        };
        let span = self
            .builder
            .build(exchange, connection, &process, self.boot_to_unix_ns);
        self.assembler
            .finished(id, span, self.now_ns, &mut self.spans);
    }
}
