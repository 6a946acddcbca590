//! Records of the kernel side to spans: ingest, metadata, policy, span building, in one thread.

mod changes;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;

use tracer_common::abi::{ExitEvent, ForkEvent};

use super::side::Side;
use super::takeover::gate::Gate;
use super::tls::Watch;
use crate::discover::{Discovery, EventLoops, Mode, PolicyConfig, Runtimes};
use crate::ingest::{Counts, Ingest, Record};
use crate::kernel::clock;
use crate::meta::{ProcFs, ProcessTable};
use crate::probes::Maps;
use crate::telemetry::ledger::Ledger;
use crate::trace::assemble::Limits;
use crate::trace::sdk::Settings as SdkSettings;
use crate::trace::{Assembler, SpanBuilder};

use super::beside::{self, Sdks};
use super::denied::Denied;
use super::outlet::Outlet;
use super::pods::PodStage;
use changes::Settling;

/// Everything between the ring and the export queue.
pub struct Pipeline {
    ingest: Ingest,
    host: Side,
    ledger: Arc<Ledger>,
    /// There if Kubernetes is asked.
    pods: Option<PodStage>,
    outlet: Outlet,
    /// Boot time of this batch.
    now_ns: u64,
    /// A new policy that is in force, but for what happened before.
    settling: Option<Settling>,
    /// Records used so far.
    records: u64,
    /// Records of later times are left out.
    cut_ns: u64,
    /// There is no memory for connections.
    shedding: bool,
    /// Nothing is traced; the policy and the ports that are in force otherwise.
    paused: Option<(PolicyConfig, Vec<u16>)>,
    /// Ports that the kernel side need not look at.
    ports: Vec<u16>,
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
    /// Where spans wait for what Kubernetes says, if it is asked.
    pub pods: Option<PodStage>,
    /// Where spans go.
    pub outlet: Outlet,
    /// Where they are counted.
    pub ledger: Arc<Ledger>,
    /// The agent's own endpoint, whose clients are not reported.
    pub admin: Option<SocketAddr>,
    /// Who attaches to TLS libraries.
    pub tls: Option<Watch>,
    /// Connections tracked at a time.
    pub max_connections: usize,
    /// What is done about processes with an SDK.
    pub sdk: SdkSettings,
    /// Which exchanges are this agent's to report.
    pub gate: Gate,
    /// What the kernel side makes ids from, where it writes trace context.
    pub id_secret: Option<[u64; 2]>,
    /// Ports that the kernel side need not look at.
    pub ports: Vec<u16>,
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
            pods,
            outlet,
            ledger,
            admin,
            tls,
            max_connections,
            sdk,
            gate,
            id_secret,
            ports,
        } = parts;
        let inherited = discovery.mode() == Mode::Command;
        let mut assembler = Assembler::new(
            Limits::default(),
            builder.propagators().clone(),
            fastrand::Rng::new(),
        );
        if let Some(secret) = id_secret {
            assembler.derive_ids(secret);
        }
        Pipeline {
            ingest: Ingest::new(max_connections.saturating_mul(2)),
            host: Side {
                maps,
                proc,
                processes,
                has_port_rules: discovery.policy().has_rules(),
                discovery,
                assembler,
                builder,
                sdks: Sdks::new(sdk, inherited),
                admin,
                tls,
                now_ns: clock::boot_ns(),
                boot_to_unix_ns: clock::boot_to_unix_ns(),
                spans: Vec::new(),
                gate,
                denied: Denied::default(),
                runtimes: Runtimes::default(),
                event_loops: EventLoops::default(),
                to_follow: Vec::new(),
                gone: Vec::new(),
                foreign: 0,
                ledger: Arc::clone(&ledger),
            },
            ledger,
            pods,
            outlet,
            now_ns: clock::boot_ns(),
            settling: None,
            records: 0,
            cut_ns: u64::MAX,
            shedding: false,
            paused: None,
            ports,
        }
    }

    /// A batch of records begins: clocks are compared anew.
    pub fn begin(&mut self) {
        self.host.boot_to_unix_ns = clock::boot_to_unix_ns();
        self.host.now_ns = clock::boot_ns();
        self.now_ns = clock::boot_ns();
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
        let record = Record::parse(bytes);
        if let Some(record) = &record
            && self.host.leaves_out(record)
        {
            return true;
        }
        match record {
            Some(Record::Data(..) | Record::Connection(_)) if self.shedding => {
                self.ingest.refuse(changes::MEMORY_LIMIT);
            }
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
                self.host.decide_child(tgid, parent_tgid);
                self.host.event_loops.forked(tgid, parent_tgid);
                // Its parent may have forked it before its own kind was said.
                self.host.follow(tgid);
            }
            Some(Record::Exit(event)) => self.exit(event),
            Some(Record::Injected(event)) => self.host.assembler.injected(event.into()),
            Some(Record::Caused(event)) => self.host.assembler.caused(event),
            Some(Record::Carried(event)) => self.host.assembler.arrived(event.into()),
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
        self.host.gone(event.tgid);
        self.host.maps.remove_kind(event.tgid);
        self.host.denied.ended(event.tgid);
        self.host.sdks.stage.exited(event.tgid, self.host.now_ns);
        if let Some(tls) = &self.host.tls {
            tls.ended(event.tgid);
        }
        self.outlet.process_ended(event.tgid, event.time_ns);
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
        self.ledger.bytes.add(counts.bytes);
        let mut refused = 0;
        for (reason, n) in std::mem::take(&mut counts.refused) {
            events.dropped(reason, n);
            refused += n;
        }
        self.records += (n as u64).saturating_sub(refused);
        let Side {
            assembler,
            sdks,
            spans,
            now_ns,
            ..
        } = &mut self.host;
        assembler.poll(*now_ns, spans);
        let left = sdks.sort(spans, *now_ns);
        if !left.is_empty() {
            beside::count(&left, &self.ledger);
            self.outlet.left(&left);
        }
        let mut spans = Vec::new();
        if !self.host.spans.is_empty() {
            let room = self.host.spans.len();
            spans = std::mem::replace(&mut self.host.spans, Vec::with_capacity(room));
        }
        if let Some(pods) = &mut self.pods {
            let Side {
                processes, now_ns, ..
            } = &mut self.host;
            spans = pods.pass(spans, processes, *now_ns);
        }
        if !spans.is_empty() {
            self.outlet.take(spans, self.now_ns);
        }
        counts
    }

    /// Time passed.
    pub fn tick(&mut self, now_ns: u64) {
        self.ingest.tick(now_ns, &mut self.host);
        self.host.processes.expire(now_ns);
        self.host.denied.expire(now_ns);
        self.host.release();
        self.outlet.tick(now_ns);
        let is_due = |settling: &mut Settling| now_ns >= settling.since_ns + changes::SETTLE_NS;
        if let Some(settling) = self.settling.take_if(is_due) {
            self.settle(&settling);
        }
    }

    /// The end: nothing more will come. What is still open has no end that we know.
    pub fn finish(&mut self) {
        self.ingest.tick(u64::MAX, &mut self.host);
        self.host.release();
        // What a newer agent reports is among them, and cannot be told from what nobody does.
        let reason = match self.host.gate.is_handed_over() {
            true => "unfinished_after_takeover",
            false => "unfinished_at_shutdown",
        };
        let open = self.ingest.abandon_all(reason, &mut self.host);
        // What still waits will learn nothing more.
        self.host.now_ns = u64::MAX;
        self.commit(0);
        self.ledger.exchanges.dropped(reason, open);
        self.outlet.finish();
    }
}
