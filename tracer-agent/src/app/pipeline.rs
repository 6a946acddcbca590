//! Records of the kernel side to spans: ingest, metadata, policy, span building, in one thread.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tracer_common::abi::{ExitEvent, ForkEvent, kind_of_process, policy as flag};

use super::side::{Side, path_of};
use super::takeover::gate::Gate;
use super::tls::Watch;
use crate::discover::{
    Discovery, EventLoops, Mode, Policy, PolicyConfig, PolicyUpdate, Rule, Runtime, Runtimes,
};
use crate::ingest::{Counts, Ingest, Record};
use crate::kernel::clock;
use crate::meta::table::PodCounts;
use crate::meta::{ProcFs, ProcessTable};
use crate::probes::Maps;
use crate::protocol::{Connection, Role};
use crate::telemetry::ledger::Ledger;
use crate::telemetry::open::{MOST_OPEN, OpenExchange};
use crate::trace::assemble::Limits;
use crate::trace::sdk::{SdkCounts, Settings as SdkSettings};
use crate::trace::{Assembler, JoinCounts, SpanBuilder};

use super::beside::{self, Sdks};
use super::denied::Denied;
use super::outlet::Outlet;
use super::pods::PodStage;
use super::reload::{self, Change};

/// After a change of policy, for records of what was before it to come out of the ring.
const SETTLE_NS: u64 = 100_000_000;

/// Why something was given up.
const MEMORY_LIMIT: &str = "memory_limit";
const CPU_LIMIT: &str = "cpu_limit";

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

/// A policy that changed: what its processes are looked at for, and since when.
struct Settling {
    flags: FxHashMap<u32, u32>,
    default: u32,
    since_ns: u64,
    reason: &'static str,
}

impl Settling {
    fn is_ignored(&self, tgid: u32) -> bool {
        let flags = self.flags.get(&tgid).copied();
        flags.unwrap_or(self.default) & flag::IGNORE != 0
    }
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
                self.ingest.refuse(MEMORY_LIMIT);
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
                self.host.decide_child(tgid);
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
        self.host.event_loops.ended(event.tgid);
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
        let is_due = |settling: &mut Settling| now_ns >= settling.since_ns + SETTLE_NS;
        if let Some(settling) = self.settling.take_if(is_due) {
            self.settle(&settling);
        }
    }

    /// Follows other settings from now on.
    pub fn change(&mut self, change: Change) {
        let Change {
            policy,
            ports,
            sampling,
            routes,
        } = change;
        self.outlet.reload(sampling, routes);
        let discovery = &self.host.discovery;
        // What a command may be followed to is fixed with its start.
        if discovery.mode() == Mode::Host && *discovery.policy().config() != policy {
            match &mut self.paused {
                // In force when tracing goes on.
                Some(paused) => {
                    *paused = (policy, ports);
                    tracing::info!("settings reloaded; they are followed when tracing goes on");
                }
                None => self.change_policy(policy, &ports, "policy_changed"),
            }
        } else {
            tracing::info!("settings reloaded");
        }
    }

    /// The order matters: a process that is traced before and after is traced all the time.
    fn change_policy(&mut self, policy: PolicyConfig, ports: &[u16], reason: &'static str) {
        self.ports = ports.to_vec();
        let host = &mut self.host;
        let policy = Policy::new(policy, host.discovery.policy().agent());
        host.discovery = Discovery::new(policy, Mode::Host);
        host.has_port_rules = host.discovery.policy().has_rules();
        let switches = reload::switches(&host.discovery, ports);
        let mut flags = FxHashMap::default();
        // Twice: processes that began during the first round may have the old entry of their parent.
        for round in 0..2 {
            let updates = host.discovery.restart(&host.proc);
            let is_set = |update: &PolicyUpdate| matches!(update, PolicyUpdate::Set { .. });
            let (set, removed): (Vec<_>, Vec<_>) = updates.into_iter().partition(is_set);
            for update in set {
                if let PolicyUpdate::Set { tgid, flags: new } = update {
                    flags.insert(tgid, new);
                }
                host.apply(update);
            }
            if round == 0 {
                let switched = host.maps.ignore_ports(ports);
                if let Err(error) = switched.and_then(|()| host.maps.switch(switches)) {
                    tracing::warn!(%error, "cannot tell the kernel side of the new policy");
                }
            }
            removed.into_iter().for_each(|update| host.apply(update));
        }
        self.settling = Some(Settling {
            flags,
            default: switches.policy_default,
            since_ns: clock::boot_ns(),
            reason,
        });
    }

    /// What happened before the policy changed has been told by now: what is still open at processes
    /// that are not traced any more has no end that we will see.
    fn settle(&mut self, settling: &Settling) {
        let ignored = |tgid, _: &Connection| settling.is_ignored(tgid);
        let reason = settling.reason;
        let open = self.ingest.forget(ignored, reason, &mut self.host);
        self.ledger.exchanges.dropped(reason, open);
        let ingest = &self.ingest;
        let maps = &mut self.host.maps;
        maps.forget_connections(settling.since_ns, |id| ingest.knows(id));
        if reason != CPU_LIMIT {
            tracing::info!("settings reloaded");
        }
    }

    /// Traces nothing, or again what the policy says. What a command may be followed to is fixed with its
    /// start: then this does nothing.
    pub fn pause(&mut self, pause: bool) {
        if self.host.discovery.mode() != Mode::Host {
            return;
        }
        if !pause {
            if let Some((policy, ports)) = self.paused.take() {
                self.change_policy(policy, &ports, CPU_LIMIT);
            }
            return;
        }
        if self.paused.is_some() {
            return;
        }
        let policy = self.host.discovery.policy().config().clone();
        let ports = self.ports.clone();
        // What only includes a process that cannot be is decided by the kernel side's default alone.
        let nothing = PolicyConfig {
            include: vec![Rule {
                pid: Some(u32::MAX),
                ..Rule::default()
            }],
            exclude: Vec::new(),
        };
        self.change_policy(nothing, &ports, CPU_LIMIT);
        self.paused = Some((policy, ports));
    }

    /// The probes of TLS libraries are gone: what their sessions have open has no end that is seen.
    pub fn give_up_tls(&mut self) {
        let is_tls = |_, connection: &Connection| connection.tls;
        let open = self.ingest.forget(is_tls, CPU_LIMIT, &mut self.host);
        self.ledger.exchanges.dropped(CPU_LIMIT, open);
    }

    /// There is too little memory: gives up what is open, and takes nothing more until [`resume`](Self::resume).
    pub fn shed(&mut self) {
        self.shedding = true;
        let open = self
            .ingest
            .forget(|_, _| true, MEMORY_LIMIT, &mut self.host);
        let held = self.host.gate.give_up_held();
        self.ledger.exchanges.dropped(MEMORY_LIMIT, open + held);
        // What waits for a word of an SDK, or for a decision, gets it now.
        let left = self.host.sdks.hurry(&mut self.host.spans);
        if !left.is_empty() {
            beside::count(&left, &self.ledger);
            self.outlet.left(&left);
        }
        let spans = std::mem::take(&mut self.host.spans);
        self.outlet.take(spans, self.now_ns);
        self.outlet.finish();
        crate::sys::give_memory_back();
    }

    /// There is enough again. What was not looked at is joined in the middle when it speaks.
    pub fn resume(&mut self) {
        self.shedding = false;
        let ingest = &self.ingest;
        let now_ns = clock::boot_ns();
        self.host
            .maps
            .forget_connections(now_ns, |id| ingest.knows(id));
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

    /// Records used so far. The ledger gets them together with the kernel side's counters, so that
    /// it never shows more taken out of the ring than was put in.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// What decides who reports.
    pub fn gate(&mut self) -> &mut Gate {
        &mut self.host.gate
    }

    /// Doors to the kernel side.
    pub fn maps(&mut self) -> &mut Maps {
        &mut self.host.maps
    }

    /// What was joined so far.
    pub fn joins(&self) -> (&JoinCounts, usize) {
        let assembler = &self.host.assembler;
        (assembler.counts(), assembler.waiting())
    }

    /// What was left to SDKs so far.
    pub fn sdks(&self) -> SdkCounts {
        self.host.sdks.stage.counts()
    }

    /// Where spans wait for what Kubernetes says, and the processes that it says it of.
    pub fn pods(&self) -> Option<(&PodStage, PodCounts)> {
        let pods = self.pods.as_ref()?;
        Some((pods, self.host.processes.pod_counts()))
    }

    /// The stages behind this.
    pub fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// Connections tracked, processes known.
    pub fn sizes(&self) -> (usize, usize) {
        (self.ingest.connections(), self.host.processes.len())
    }

    /// Processes whose runtimes are to be followed, since the last call: they and those that ran
    /// already when tracing began.
    pub fn take_to_follow(&mut self) -> Vec<(u32, Runtime)> {
        std::mem::take(&mut self.host.to_follow)
    }

    /// Processes that may have been followed and ended, or run something else now, since the last call.
    pub fn take_ended(&mut self) -> impl Iterator<Item = u32> + use<> {
        self.host.event_loops.take_ended().into_iter()
    }

    /// Processes that were seen to serve with an event loop, since the last call.
    pub fn take_event_loops(&mut self) -> Vec<(u32, Runtime)> {
        let Side {
            event_loops, maps, ..
        } = &mut self.host;
        let mut serving = Vec::new();
        event_loops.retain_candidates(|tgid, runtime| {
            let Some(kind) = maps.kind(tgid) else {
                return false;
            };
            let serves = kind & kind_of_process::MULTIPLEXED != 0;
            if serves {
                serving.push((tgid, runtime));
            }
            !serves
        });
        serving
    }

    /// Says how a process runs what it serves.
    pub fn set_kind(&mut self, tgid: u32, kind: u32) {
        if let Err(error) = self.host.maps.set_kind(tgid, kind) {
            tracing::warn!(tgid, %error, "cannot say how a process runs: its calls get no parents");
        }
    }

    /// Looks at the processes that run already.
    pub fn find_runtimes(&mut self) {
        let Side {
            proc,
            runtimes,
            to_follow,
            ..
        } = &mut self.host;
        for pid in proc.pids() {
            to_follow.extend(runtimes.of(proc, pid).map(|runtime| (pid, runtime)));
        }
    }

    /// The processes that may serve with an event loop.
    pub fn event_loops(&mut self) -> &mut EventLoops {
        &mut self.host.event_loops
    }

    /// Where a process's program can be opened.
    pub fn exe_path(&self, tgid: u32) -> PathBuf {
        self.host.proc.exe_path(tgid)
    }

    /// Connections by the protocol they are parsed as.
    pub fn sessions(&self) -> [(&'static str, u64); 3] {
        self.ingest.sessions()
    }

    /// Exchanges that have begun and not ended, as far as there is room to show them.
    pub fn unfinished(&mut self, now_ns: u64) -> Vec<OpenExchange> {
        let processes = &mut self.host.processes;
        let open = self.ingest.unfinished().take(MOST_OPEN);
        open.map(|(one, connection)| OpenExchange {
            service: processes.get(one.tgid).service_name.clone(),
            pid: one.tgid,
            role: one.role.map(|role| match role {
                Role::Server => "server",
                Role::Client => "client",
            }),
            method: one.request.method.clone(),
            path: path_of(&one.request.target).into(),
            peer: connection.remote.to_string().into(),
            seconds: now_ns.saturating_sub(one.began_ns) as f64 / 1e9,
            answered: one.answered,
        })
        .collect()
    }

    /// Applies the policy to the processes that run already.
    pub fn apply_policy(&mut self) {
        for update in self.host.discovery.start(&self.host.proc) {
            self.host.apply(update);
        }
    }
}
