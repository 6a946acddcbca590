//! The capture thread: loads the kernel side, then moves records from the ring into the pipeline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::AppError;
use super::pipeline::{Parts, Pipeline};
use super::status::Status;
use crate::config::Config;
use crate::discover::{Discovery, Mode, Policy};
use crate::export::SpanSink;
use crate::kernel::clock;
use crate::meta::{ProcFs, ProcessTable};
use crate::probes::{Kernel, LoadError, Options, Reader};
use crate::telemetry::ledger::Ledger;

/// The reader looks this often; the kernel side wakes it earlier when much is pending. A wake-up
/// for every record would cost the traced programs more than all probes together.
const POLL: Duration = Duration::from_millis(10);
/// Once nothing came for a while.
const IDLE_POLL: Duration = Duration::from_millis(40);
/// Records handled before spans are handed on.
const BATCH: usize = 4096;
/// Clock work and counters this often.
const HOUSEKEEPING_NS: u64 = 100_000_000;

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
}

/// The running thread.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts it; returns when everything is attached, or why it is not.
    pub async fn start(start: Start) -> Result<Self, AppError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (attached, result) = oneshot::channel();
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || match load(start) {
                Ok(loaded) => {
                    // The receiver is gone only when the agent is ending already.
                    let _ = attached.send(Ok(()));
                    loaded.run(&stopping);
                }
                Err(error) => {
                    let _ = attached.send(Err(error));
                }
            })
            .map_err(|error| AppError::Start("start the capture thread", error))?;
        result.await.map_err(|_| AppError::CaptureEnded)??;
        Ok(Capture {
            stop,
            thread: Some(thread),
        })
    }

    /// True when the thread ended by itself, which it never should.
    pub fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Detaches the probes and hands on what is left in the ring.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the capture thread panicked; please report this");
        }
    }
}

struct Loaded {
    kernel: Kernel,
    reader: Reader,
    pipeline: Pipeline,
    ledger: Arc<Ledger>,
    status: Arc<Status>,
}

fn load(start: Start) -> Result<Loaded, AppError> {
    let Start {
        config,
        resource,
        admin,
        mode,
        sink,
        ledger,
        status,
    } = start;
    let agent = std::process::id();
    let policy = Policy::new(super::policy_config(&config), agent);
    let ports: Vec<u16> = excluded_ports(&config);
    let discovery = Discovery::new(policy, mode);
    let options = Options {
        ring_bytes: config.capture.ring_size,
        max_connections: config.capture.max_connections,
        agent_tgid: agent,
        policy_active: mode == Mode::Command || discovery.policy().has_rules(),
        policy_default: discovery.default_flags(),
        ports_active: !ports.is_empty(),
    };
    let mut kernel = Kernel::start(&options)?;
    for (hook, why) in &kernel.missing {
        tracing::warn!(%hook, %why, "not attached: what goes through it is not seen");
    }
    let reader = kernel.reader()?;
    let mut maps = kernel.maps()?;
    for port in ports {
        maps.ignore_port(port, false).map_err(LoadError::from)?;
        maps.ignore_port(port, true).map_err(LoadError::from)?;
    }
    if mode == Mode::Command {
        // The command inherits this entry at fork; the agent itself is never looked at.
        let flags = tracer_common::abi::policy::TRACE | tracer_common::abi::policy::INHERIT;
        maps.set_process(agent, flags).map_err(LoadError::from)?;
    }
    let proc = ProcFs::default();
    let processes = ProcessTable::new(proc.clone(), super::meta_options(&config, &resource));
    let mut pipeline = Pipeline::new(Parts {
        maps,
        proc,
        processes,
        discovery,
        builder: super::span_builder(&config),
        sink,
        ledger: Arc::clone(&ledger),
        admin,
        max_connections: config.capture.max_connections as usize,
    });
    if mode == Mode::Host {
        pipeline.apply_policy();
    }
    status.attached(kernel.attached.len(), kernel.missing.len(), reader.size());
    Ok(Loaded {
        kernel,
        reader,
        pipeline,
        ledger,
        status,
    })
}

/// Ports that the kernel side need not look at: excluded whatever the process is.
fn excluded_ports(config: &Config) -> Vec<u16> {
    const MOST: usize = 2048;
    let ranges = config.discovery.exclude.ports.iter().cloned();
    // More are left to user space, which knows the rules too.
    ranges.flatten().take(MOST).collect()
}

impl Loaded {
    fn run(mut self, stop: &AtomicBool) {
        let mut housekeeping_ns = 0;
        let mut idle = 0u32;
        loop {
            let stopping = stop.load(Ordering::Acquire);
            self.pipeline.begin();
            let pipeline = &mut self.pipeline;
            let n = self.reader.drain(BATCH, |record| pipeline.record(record));
            let now_ns = clock::boot_ns();
            let housekeeping = now_ns.saturating_sub(housekeeping_ns) >= HOUSEKEEPING_NS;
            if housekeeping {
                housekeeping_ns = now_ns;
                self.pipeline.tick(now_ns);
            }
            self.pipeline.commit(n);
            if housekeeping {
                self.count();
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
        self.end();
    }

    fn count(&mut self) {
        let (connections, processes) = self.pipeline.sizes();
        let records = self.pipeline.records();
        match self.pipeline.maps().counts() {
            Ok(counts) => {
                self.status.kernel(&self.ledger, &counts, records);
                self.status.sizes(connections, processes);
            }
            Err(error) => tracing::warn!(%error, "cannot read the kernel side's counters"),
        }
    }

    /// Detaches first, so that the ring runs dry.
    fn end(mut self) {
        self.kernel.detach();
        self.pipeline.begin();
        loop {
            let pipeline = &mut self.pipeline;
            let n = self.reader.drain(BATCH, |record| pipeline.record(record));
            self.pipeline.commit(n);
            if n == 0 {
                break;
            }
        }
        self.count();
        self.pipeline.finish();
    }
}
