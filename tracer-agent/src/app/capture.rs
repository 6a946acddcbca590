//! The capture thread: loads the kernel side, then moves records from the ring into the pipeline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tracer_common::abi::kind_of_process;

use super::AppError;
use super::followers::Followers;
use super::limits::{self, memory::Step};
use super::outlet::Outlet;
use super::pipeline::{Parts, Pipeline};
use super::pods::PodStage;
use super::reload::Change;
use super::status::Status;
use super::takeover::Commands;
use super::takeover::gate::Gate;
use super::tls::Watch;

use crate::config::Config;
use crate::discover::{Discovery, Mode, Policy, Runtime};
use crate::export::SpanSink;
use crate::kernel::{clock, programs};
use crate::meta::kubernetes::Store;
use crate::meta::{ProcFs, ProcessTable};
use crate::metrics::{Recorded, Recorder};
use crate::probes::{Kernel, LoadError, Options, Propagation, Reader};
use crate::telemetry::ledger::Ledger;
use crate::telemetry::open::OpenExchanges;

/// The reader looks this often; the kernel side wakes it earlier when much is pending. A wake-up
/// for every record would cost the traced programs more than all probes together.
const POLL: Duration = Duration::from_millis(10);
/// Once nothing came for a while.
const IDLE_POLL: Duration = Duration::from_millis(40);
/// Records handled before spans are handed on: what becomes of so many is still in the CPU's caches when
/// the next stage takes it.
const BATCH: usize = 512;
/// The same at the end, where a batch has to be longer than records can be out of order.
const LAST_BATCH: usize = 4096;
/// Longest look for TLS libraries before the agent says that it is ready.
const TLS_LOOK: Duration = Duration::from_secs(15);
/// Clock work and counters this often.
const HOUSEKEEPING_NS: u64 = 100_000_000;
/// A program may be preempted between taking a record's time and submitting it.
const RING_LAG_NS: u64 = 200_000_000;
/// What takes a walk over everything this often.
const RARELY_NS: u64 = 2_000_000_000;

/// What the thread is started with.
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// The agent's resource attributes.
    pub resource: Vec<(String, String)>,
    /// Where the admin endpoint listens.
    pub admin: Option<SocketAddr>,
    /// Whole host, or one command.
    pub mode: Mode,
    /// Where spans go.
    pub sink: SpanSink,
    /// Where everything is counted.
    pub ledger: Arc<Ledger>,
    /// What the admin endpoint shows.
    pub status: Arc<Status>,
    /// Where durations are counted.
    pub recorded: Arc<Recorded>,
    /// How often somebody collects them.
    pub metrics_interval: Duration,
    /// What Kubernetes says, if it is asked.
    pub pods: Option<Arc<Store>>,
    /// Another agent has to be asked what it reports.
    pub asks: bool,
    /// What two agents agree on.
    pub commands: Commands,
}

/// The running thread.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    /// Told when what runs already has its probes in its TLS libraries.
    tls_looked: Option<oneshot::Receiver<()>>,
    /// Closed when everything was handed on.
    drained: Receiver<()>,
    /// Settings to follow from now on.
    changes: Sender<Change>,
}

impl Capture {
    /// Starts it; returns when everything is attached, or why it is not.
    pub async fn start(start: Start) -> Result<Self, AppError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (attached, result) = oneshot::channel();
        let (looked, tls_looked) = oneshot::channel();
        let stopping = Arc::clone(&stop);
        let (done, drained) = std::sync::mpsc::channel::<()>();
        let (changes, changed) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || match load(start, looked) {
                Ok(loaded) => {
                    // The receiver is gone only when the agent is ending already.
                    let _ = attached.send(Ok(()));
                    let kernel = loaded.run(&stopping, &changed);
                    leave_detaching();
                    drop(done);
                    drop(kernel);
                }
                Err(error) => {
                    let _ = attached.send(Err(error));
                }
            })
            .map_err(|error| AppError::Start("start the capture thread", error))?;
        result.await.map_err(|_| AppError::CaptureEnded)??;
        Ok(Capture {
            stop,
            thread,
            tls_looked: Some(tls_looked),
            drained,
            changes,
        })
    }

    /// Waits until what runs already has its probes in its TLS libraries.
    pub async fn tls_looked(&mut self) {
        let Some(looked) = self.tls_looked.take() else {
            return;
        };
        if tokio::time::timeout(TLS_LOOK, looked).await.is_err() {
            tracing::warn!("looking for TLS libraries takes long; what they carry is seen later");
        }
    }

    /// Has it follow other settings; it says in the log when it does.
    pub fn change(&self, change: Change) {
        // A thread that ended is told of elsewhere.
        let _ = self.changes.send(change);
    }

    /// True when the thread ended by itself, which it never should.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Hands on what is in the ring. The probes are detached behind the caller's back.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Closed is all that it ever is; also by a panic, which the panic handler told of.
        let _ = self.drained.recv();
    }
}

/// Detaching takes a grace period of the kernel's for every hook, one after the other: a second on
/// an idle host, many under load. A child of ours gets the last references and so the wait, and lets agents that start
/// go first (`probes::turn`).
fn leave_detaching() {
    let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let mut hooks: Vec<i32> = descriptors
        .flatten()
        .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| is_hook(&target)))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    hooks.sort_unstable();
    let turn = crate::probes::turn::open();
    if let Err(error) = crate::sys::leave_to_child(&hooks, turn.as_ref()) {
        tracing::debug!(%error, "cannot leave the detaching to a child");
    }
}

/// What `/proc/PID/fd` shows of attached programs.
fn is_hook(target: &std::path::Path) -> bool {
    let target = target.as_os_str().as_encoded_bytes();
    target.starts_with(b"anon_inode:bpf_link")
        || target.starts_with(b"anon_inode:[perf_event]")
        || target.starts_with(b"anon_inode:bpf-raw-tracepoint")
}

struct Loaded {
    kernel: Kernel,
    reader: Reader,
    pipeline: Pipeline,
    followers: Followers,
    tls: Option<Watch>,
    propagation: Option<Propagation>,
    ledger: Arc<Ledger>,
    status: Arc<Status>,
    open: Arc<OpenExchanges>,
    commands: Commands,
    limits: limits::Watch,
}

fn load(start: Start, looked: oneshot::Sender<()>) -> Result<Loaded, AppError> {
    let Start {
        config,
        resource,
        admin,
        mode,
        sink,
        ledger,
        status,
        recorded,
        metrics_interval,
        pods,
        asks,
        commands,
    } = start;
    let agent = std::process::id();
    let policy = Policy::new(super::policy_config(&config), agent);
    let ports = super::reload::excluded_ports(&config);
    let discovery = Discovery::new(policy, mode);
    let propagate = super::propagate::options(&config);
    let options = Options {
        propagate,
        ring_bytes: config.capture.ring_size,
        max_connections: config.capture.max_connections,
        bpf_stats: config.telemetry.bpf_stats,
        agent_tgid: agent,
        tier: config.capture.tier,
        tls: config.capture.tls && crate::rights::can_place_uprobes() != Some(false),
    };
    let switches = super::reload::switches(&discovery, &ports);
    let mut kernel = Kernel::start(&options)?;
    for (hook, why) in &kernel.missing {
        tracing::warn!(%hook, %why, "not attached: what goes through it is not seen");
    }
    let reader = kernel.reader()?;
    let mut maps = kernel.maps()?;
    maps.ignore_ports(&ports).map_err(LoadError::from)?;
    if mode == Mode::Command {
        // The command inherits this entry at fork; the agent itself is never looked at.
        let flags = tracer_common::abi::policy::TRACE | tracer_common::abi::policy::INHERIT;
        maps.set_process(agent, flags).map_err(LoadError::from)?;
    }
    let proc = ProcFs::default();
    let processes = ProcessTable::new(
        proc.clone(),
        super::meta_options(&config, &resource, pods.clone()),
    );
    let tls = if kernel.sees_tls() {
        let whole_host = mode == Mode::Host;
        Some(super::tls::start(
            kernel.tls()?,
            proc.clone(),
            whole_host,
            looked,
        )?)
    } else {
        // Nobody has to wait for a look that is not taken; who waits no more does not mind.
        let _ = looked.send(());
        None
    };
    let mut pipeline = Pipeline::new(Parts {
        maps,
        proc,
        processes,
        discovery,
        builder: super::span_builder(&config),
        pods: pods.map(|store| PodStage::new(store, config.kubernetes.peers)),
        outlet: Outlet::new(
            &config,
            Some(Recorder::new(recorded, metrics_interval)),
            sink,
            Arc::clone(&ledger),
        ),
        ledger: Arc::clone(&ledger),
        admin,
        tls: tls.clone(),
        max_connections: config.capture.max_connections as usize,
        sdk: config.sdk.clone(),
        gate: Gate::new(asks),
        ports: ports.clone(),
        id_secret: propagate.map(|options| options.secret),
    });
    pipeline.maps().begin(switches).map_err(LoadError::from)?;
    if mode == Mode::Host {
        pipeline.apply_policy();
        pipeline.find_runtimes();
    }
    let mut followers = Followers::start(kernel.follower(), ProcFs::default())?;
    follow(&mut followers, &mut pipeline);
    followers.wait(|tgid, kind| pipeline.set_kind(tgid, kind));
    let propagation = propagate
        .and_then(|options| super::propagate::start(&mut kernel, options, &config.sampling));
    status.attached(kernel.attached.len(), kernel.missing.len(), reader.size());
    // All at once, and somebody empties the ring from here on.
    pipeline.maps().switch(switches).map_err(LoadError::from)?;
    Ok(Loaded {
        kernel,
        reader,
        pipeline,
        followers,
        tls,
        propagation,
        ledger,
        open: status.open(),
        status,
        commands,
        limits: limits::Watch::new(config.limits, mode),
    })
}

/// Has the kernel side know how new processes run what they serve, as far as that is known by now.
fn follow(followers: &mut Followers, pipeline: &mut Pipeline) {
    for (tgid, may_have_probes) in pipeline.take_gone() {
        followers.gone(tgid, may_have_probes);
    }
    for (tgid, runtime) in pipeline.take_to_follow() {
        let kind = followers.program(tgid, runtime, || pipeline.exe_id(tgid));
        let may_hand_over = kind.is_some_and(|kind| kind & kind_of_process::WOKEN != 0);
        if may_hand_over || matches!(runtime, Runtime::Python | Runtime::Rust) {
            pipeline.event_loops().started(tgid, runtime);
        }
        if let Some(kind) = kind {
            pipeline.set_kind(tgid, kind);
        }
    }
    while let Some((tgid, kind)) = followers.answer() {
        pipeline.set_kind(tgid, kind);
    }
}

impl Loaded {
    fn run(mut self, stop: &AtomicBool, changes: &Receiver<Change>) -> Kernel {
        let mut housekeeping_ns = 0;
        let mut rarely_ns = 0;
        let mut idle = 0u32;
        let mut seen_ns = 0;
        loop {
            let stopping = stop.load(Ordering::Acquire);
            let begun_ns = clock::boot_ns();
            self.commands.follow(self.pipeline.gate(), seen_ns);
            self.pipeline.begin();
            let pipeline = &mut self.pipeline;
            let n = self.reader.drain(BATCH, |record| {
                pipeline.record(record);
            });
            if n < BATCH {
                // Records come out of the ring moments after their time.
                seen_ns = begun_ns.saturating_sub(RING_LAG_NS);
            }
            follow(&mut self.followers, &mut self.pipeline);
            let now_ns = clock::boot_ns();
            let housekeeping = now_ns.saturating_sub(housekeeping_ns) >= HOUSEKEEPING_NS;
            if housekeeping {
                housekeeping_ns = now_ns;
                self.pipeline.tick(now_ns);
                let followers = &mut self.followers;
                self.pipeline
                    .each_event_loop(|tgid, runtime| followers.tasks(tgid, runtime));
                self.pipeline
                    .each_with_pools(|tgid, runtime| followers.pools(tgid, runtime));
                self.pipeline
                    .each_with_strangers(|tgid, runtime| followers.wakes(tgid, runtime));
                match self.limits.memory() {
                    Step::GoOn => {}
                    Step::Shed => self.pipeline.shed(),
                    Step::Resume => self.pipeline.resume(),
                }
                if let Some(propagation) = &mut self.propagation {
                    propagation.tick();
                }
                if let Some(off) = self.limits.cpu(&self.kernel, Duration::from_nanos(now_ns)) {
                    if let Some(tls) = &self.tls {
                        tls.pause(off > 0);
                    }
                    self.pipeline.pause(off > 1);
                }
                if self.tls.as_ref().is_some_and(Watch::were_taken_out) {
                    self.pipeline.give_up_tls();
                }
                self.kernel.flush_log();
                self.open.answer(|| self.pipeline.unfinished(now_ns));
            }
            let counts = self.pipeline.commit(n);
            if n > 0 {
                self.status.sessions(&counts);
            }
            if housekeeping {
                self.count();
                // Behind the batch: what happened before is decided by the old settings.
                match changes.try_recv() {
                    Ok(change) => {
                        self.sample(&change.sampling);
                        self.pipeline.change(change);
                    }
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
                }
            }
            if now_ns.saturating_sub(rarely_ns) >= RARELY_NS {
                rarely_ns = now_ns;
                self.status.unfollowed(self.followers.unfollowed());
                let costs = self.kernel.program_costs();
                self.status.rarely(&self.pipeline.sessions(), costs);
                self.status.skipped_runs(programs::skipped_runs());
                let pipeline = &self.pipeline;
                self.followers
                    .sweep(|tgid| pipeline.runs(tgid), |tgid| pipeline.is_lost(tgid));
            }
            if stopping {
                // What is left in the ring is for the end, when no more can come.
                break;
            }
            if n < BATCH {
                idle = if n == 0 { idle.saturating_add(1) } else { 0 };
                self.reader.wait(if idle > 100 { IDLE_POLL } else { POLL });
            }
        }
        self.end()
    }

    fn sample(&mut self, settings: &crate::trace::sampling::Settings) {
        if let Some(propagation) = &mut self.propagation
            && let Err(error) = propagation.sample(super::propagate::sampled_from(settings))
        {
            tracing::warn!(%error, "the sampled flag that is written follows the old settings");
        }
    }

    fn count(&mut self) {
        let (connections, processes) = self.pipeline.sizes();
        let records = self.pipeline.records();
        let (joins, waiting) = self.pipeline.joins();
        self.status.joins(joins, waiting);
        self.status.sdks(self.pipeline.sdks());
        match self.pipeline.maps().counts() {
            Ok(counts) => {
                self.status.kernel(&self.ledger, &counts, records);
                self.status.sizes(connections, processes);
                if let Some(tls) = &self.tls {
                    self.status.tls(tls.counts());
                }
                self.status.outlet(self.pipeline.outlet());
                if let Some((stage, counts)) = self.pipeline.pods() {
                    self.status.pods(stage, counts);
                }
                self.status.limits(self.limits.counts());
                if let Some(propagation) = &self.propagation {
                    self.status.propagated(propagation.outcomes());
                }
            }
            Err(error) => tracing::warn!(%error, "cannot read the kernel side's counters"),
        }
    }

    /// Hands on what happened before now. Detaching comes afterwards: it takes a grace period of the
    /// kernel's for every hook, which is seconds on a busy host, while the ring fills.
    fn end(mut self) -> Kernel {
        if let Some(tls) = &self.tls {
            tls.stop();
        }
        if let Some(propagation) = &mut self.propagation
            && let Err(error) = propagation.stop()
        {
            tracing::debug!(%error, "headers are written until the programs are detached");
        }
        let cut_ns = clock::boot_ns();
        self.pipeline.cut(cut_ns);
        // Traced programs need not pay for the probes until those are gone.
        if let Err(error) = self.pipeline.maps().close() {
            tracing::debug!(%error, "what goes on is looked at until the programs are detached");
        }
        self.pipeline.begin();
        loop {
            let pipeline = &mut self.pipeline;
            let mut before = 0;
            let n = self.reader.drain(LAST_BATCH, |record| {
                before += usize::from(pipeline.record(record));
            });
            self.pipeline.commit(n);
            // Records of several CPUs are in order but for moments: a batch without any is the end.
            if n < LAST_BATCH || before == 0 {
                break;
            }
        }
        self.count();
        // What came since is left in the ring.
        let events = &self.ledger.events;
        events.dropped("after_stop", events.snapshot().pending);
        self.pipeline.finish();
        self.kernel
    }
}
