//! Records of the kernel side to spans: ingest, metadata, policy, span building, in one thread.

use std::net::SocketAddr;
use std::sync::Arc;

use rustc_hash::FxHashSet;
use tracer_common::abi::{ExecEvent, ExitEvent, ForkEvent};

use super::tls::Watch;
use crate::discover::{Decision, Discovery, PolicyUpdate};
use crate::export::SpanSink;
use crate::export::otlp::USER_AGENT;
use crate::ingest::{Counts, Host, Ingest, Record};
use crate::kernel::clock;
use crate::meta::{ExecInfo, ProcFs, ProcessTable};
use crate::probes::Maps;
use crate::protocol::{Connection, Endpoint, Exchange};
use crate::telemetry::ledger::Ledger;
use crate::trace::{Span, SpanBuilder};

/// Everything between the ring and the export queue.
pub struct Pipeline {
    ingest: Ingest,
    host: Side,
    ledger: Arc<Ledger>,
    sink: SpanSink,
    /// Records used so far.
    records: u64,
    /// Records of later times are left out.
    cut_ns: u64,
}

/// What ingest asks of the rest.
struct Side {
    maps: Maps,
    proc: ProcFs,
    processes: ProcessTable,
    discovery: Discovery,
    builder: SpanBuilder,
    boot_to_unix_ns: i64,
    /// The agent's own endpoint.
    admin: Option<SocketAddr>,
    has_port_rules: bool,
    /// Who attaches to TLS libraries.
    tls: Option<Watch>,
    spans: Vec<Span>,
    /// Exchanges that are none of ours to report.
    foreign: u64,
}

/// What the pipeline is made of.
pub struct Parts {
    /// Doors to the kernel side.
    pub maps: Maps,
    /// Where processes are described.
    pub proc: ProcFs,
    /// The processes.
    pub processes: ProcessTable,
    /// Which of them are traced.
    pub discovery: Discovery,
    /// Makes spans.
    pub builder: SpanBuilder,
    /// Where spans go.
    pub sink: SpanSink,
    /// Where they are counted.
    pub ledger: Arc<Ledger>,
    /// The agent's own endpoint, whose clients are not reported.
    pub admin: Option<SocketAddr>,
    /// Who attaches to TLS libraries.
    pub tls: Option<Watch>,
    /// Connections tracked at a time.
    pub max_connections: usize,
}

impl Pipeline {
    /// An idle pipeline.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            maps,
            proc,
            processes,
            discovery,
            builder,
            sink,
            ledger,
            admin,
            tls,
            max_connections,
        } = parts;
        Pipeline {
            ingest: Ingest::new(max_connections.saturating_mul(2)),
            host: Side {
                maps,
                proc,
                processes,
                has_port_rules: discovery.policy().has_rules(),
                discovery,
                builder,
                admin,
                tls,
                boot_to_unix_ns: clock::boot_to_unix_ns(),
                spans: Vec::new(),
                foreign: 0,
            },
            ledger,
            sink,
            records: 0,
            cut_ns: u64::MAX,
        }
    }

    /// A batch of records begins: clocks are compared anew.
    pub fn begin(&mut self) {
        self.host.boot_to_unix_ns = clock::boot_to_unix_ns();
    }

    /// What happens after this time is left out.
    pub fn cut(&mut self, time_ns: u64) {
        self.cut_ns = time_ns;
    }

    /// Takes one record of the ring. Returns false if it was left out.
    pub fn record(&mut self, bytes: &[u8]) -> bool {
        if Record::time_ns(bytes).is_some_and(|time_ns| time_ns > self.cut_ns) {
            return false;
        }
        match Record::parse(bytes) {
            Some(Record::Data(event, captured)) => {
                self.ingest.data(event, captured, &mut self.host);
            }
            Some(Record::Connection(event)) => self.ingest.connection(event, &mut self.host),
            Some(Record::End(event)) => self.ingest.end(event, &mut self.host),
            Some(Record::Exec(event, tail)) => self.host.exec(event, tail),
            Some(Record::Fork(event)) => {
                let ForkEvent {
                    tgid,
                    parent_tgid,
                    time_ns,
                    ..
                } = *event;
                self.host.processes.on_fork(tgid, parent_tgid, time_ns);
            }
            Some(Record::Exit(event)) => self.exit(event),
            Some(Record::Mapped(event)) => {
                if let Some(tls) = &self.host.tls {
                    tls.mapped(event.tgid, event.file);
                }
            }
            None => self.ingest.refuse("malformed_record"),
        }
        true
    }

    fn exit(&mut self, event: &ExitEvent) {
        self.ingest.exit(event.tgid, event.time_ns, &mut self.host);
        self.host.processes.on_exit(event.tgid, event.time_ns);
        if let Some(tls) = &self.host.tls {
            tls.ended(event.tgid);
        }
        if let Some(update) = self.host.discovery.on_exit(event.tgid) {
            self.host.apply(update);
        }
    }

    /// A batch of `n` records ended: spans go to the exporters, counters to the ledger. Returns the
    /// counters of ingest, for the metrics.
    pub fn commit(&mut self, n: usize) -> Counts {
        let mut counts = self.ingest.take_counts();
        let (exchanges, events) = (&self.ledger.exchanges, &self.ledger.events);
        exchanges.seen(counts.http1.requests + counts.http2.requests);
        exchanges.retract(std::mem::take(&mut self.host.foreign));
        let abandoned = std::mem::take(&mut counts.http1.abandoned).into_iter();
        for (reason, n) in abandoned.chain(std::mem::take(&mut counts.http2.abandoned)) {
            exchanges.dropped(reason, n);
        }
        let mut refused = 0;
        for (reason, n) in std::mem::take(&mut counts.refused) {
            events.dropped(reason, n);
            refused += n;
        }
        self.records += (n as u64).saturating_sub(refused);
        if !self.host.spans.is_empty() {
            let room = self.host.spans.len();
            let spans = std::mem::replace(&mut self.host.spans, Vec::with_capacity(room));
            exchanges.exported(spans.len() as u64);
            self.sink.submit(spans);
        }
        counts
    }

    /// Time passed.
    pub fn tick(&mut self, now_ns: u64) {
        self.ingest.tick(now_ns, &mut self.host);
        self.host.processes.expire(now_ns);
    }

    /// The end: nothing more will come. What is still open has no end that we know.
    pub fn finish(&mut self) {
        self.ingest.tick(u64::MAX, &mut self.host);
        let open = self.ingest.abandon_all();
        self.commit(0);
        self.ledger
            .exchanges
            .dropped("unfinished_at_shutdown", open);
    }

    /// Records used so far. The ledger gets them together with the kernel side's counters, so that
    /// it never shows more taken out of the ring than was put in.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Doors to the kernel side.
    pub fn maps(&mut self) -> &mut Maps {
        &mut self.host.maps
    }

    /// Connections tracked, processes known.
    pub fn sizes(&self) -> (usize, usize) {
        (self.ingest.connections(), self.host.processes.len())
    }

    /// Applies the policy to the processes that run already.
    pub fn apply_policy(&mut self) {
        for update in self.host.discovery.start(&self.host.proc) {
            self.host.apply(update);
        }
    }
}

impl Side {
    fn exec(&mut self, event: &ExecEvent, tail: &[u8]) {
        if let Some(tls) = &self.tls {
            tls.started(event.tgid);
        }
        let facts = self.processes.on_exec(&ExecInfo::new(event, tail));
        if let Some(update) = self.discovery.on_exec(facts) {
            self.apply(update);
        }
    }

    fn apply(&mut self, update: PolicyUpdate) {
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

    fn exchange(&mut self, exchange: Exchange, connection: &Arc<Connection>) {
        if self.is_foreign(&exchange, connection) {
            self.foreign += 1;
            return;
        }
        let process = self.processes.get_at(exchange.tgid, exchange.end_ns);
        let span = self
            .builder
            .build(exchange, connection, &process, self.boot_to_unix_ns);
        self.spans.push(span);
    }
}
