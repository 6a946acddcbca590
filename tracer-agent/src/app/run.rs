//! `tracer-agent run`: the whole pipeline until a signal, or until the command ends.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::AppError;
use super::capture::{Capture, Start};
use super::command::{self, Launcher};
use super::notify::Notify;
use super::reload::{Load, Reloader};
use super::status::Status;
use super::takeover::{self, Place};
use crate::config::Config;
use crate::discover::Mode;
use crate::export::console::{ConsoleExporter, ConsoleOptions};
use crate::export::{
    self, ExportPipeline, ExportSettings, Exporter, ExporterStats, MetricsExporter, SpanSink,
    SpoolSettings,
};
use crate::meta::kubernetes::Kubernetes;
use crate::metrics::Recorded;
use crate::rights;
use crate::telemetry::admin::{Admin, Readiness, Sources};
use crate::telemetry::ledger::{Details, Ledger};
use crate::telemetry::metrics::render;
use crate::telemetry::snapshot::Snapshot;

/// From the signal to the end, export included (contract: 5 s).
const SHUTDOWN: Duration = Duration::from_millis(4500);
/// For telling an older agent that it reports again.
const LEAVING: Duration = Duration::from_secs(1);
/// After the command's end, for the last events to arrive.
const LAST_EVENTS: Duration = Duration::from_millis(100);

/// Traces the host, or `command` and its children only, until SIGINT or SIGTERM or the command's end.
/// With a command, the exit code is the command's.
/// On SIGHUP the configuration is asked for again, by `load`.
pub async fn run(
    config: Config,
    command: Option<Launcher>,
    load: Load,
) -> Result<ExitCode, AppError> {
    let mut signals = Signals::install()?;
    let ledger = Arc::new(Ledger::default());
    let mut settings = settings(&config)?;
    settings.spool = config.export.spool.clone().map(|directory| SpoolSettings {
        directory,
        max_bytes: config.export.spool_max_bytes,
    });
    let admin = match config.admin {
        Some(address) => Some(Admin::bind(address).await?),
        None => None,
    };
    if settings.metrics.prometheus && admin.is_none() {
        tracing::warn!(
            "OTEL_METRICS_EXPORTER asks for prometheus, but the admin endpoint that serves /metrics is off; set --admin"
        );
    }
    let pipeline = exporting(&settings, &ledger)?;
    let status = Arc::new(Status::default());
    let recorded = Arc::new(Recorded::default());
    let metrics_stats = Arc::new(ExporterStats::new("otlp_metrics"));
    let mut exporters = pipeline.stats();
    if settings.metrics.otlp.is_some() {
        exporters.push(Arc::clone(&metrics_stats));
    }
    let telemetry = Telemetry {
        status: Arc::clone(&status),
        ledger: Arc::clone(&ledger),
        sink: pipeline.sink(),
        exporters,
        recorded: Arc::clone(&recorded),
    };
    let own = telemetry.clone();
    let metrics = MetricsExporter::start(
        &settings.metrics,
        &settings.resource,
        Arc::clone(&recorded),
        Arc::new(move || own.snapshot()),
        metrics_stats,
    )?;
    let readiness = Readiness::waiting_for("the probes are being attached");
    let address = admin.as_ref().map(Admin::address);
    let admin = admin.map(|admin| serve(admin, &readiness, telemetry.clone()));

    let mode = if command.is_some() {
        Mode::Command
    } else {
        Mode::Host
    };
    let mut reloader = Reloader::new(load, config.clone(), mode);
    let environment = |name: &str| std::env::var(name).ok();
    // Its watches end with it.
    let kubernetes = Kubernetes::start(&config.kubernetes, &environment);
    // A command is traced by its own agent only.
    let name = config.takeover.clone().filter(|_| mode == Mode::Host);
    let place = Place::find(name.as_deref());
    let (gate, commands) = takeover::channel();
    let started = Capture::start(Start {
        asks: place.asks(),
        commands,
        resource: settings.resource.clone(),
        config,
        admin: address,
        mode,
        sink: pipeline.sink(),
        ledger: Arc::clone(&ledger),
        status,
        recorded,
        metrics_interval: settings.metrics.interval,
        pods: kubernetes.as_ref().map(|api| Arc::clone(api.store())),
    })
    .await;
    let mut capture = match started {
        Ok(capture) => capture,
        Err(error) => {
            pipeline.drain(Instant::now()).await;
            return Err(error);
        }
    };
    capture.tls_looked().await;
    let (leave, left) = oneshot::channel();
    let member = takeover::join(place, name.unwrap_or_default(), gate, left).await;
    readiness.ready();
    let notify = Notify::from_environment();
    notify.ready();
    // Loading took more than running needs.
    crate::sys::give_memory_back();
    crate::sys::keep_batches();
    tracing::info!("tracing; stop with SIGINT or SIGTERM");

    let ended = match command {
        Some(launcher) => follow(launcher, &mut signals, &capture, &mut reloader, &notify).await,
        None => wait(&mut signals, &capture, &mut reloader, &notify)
            .await
            .map(|()| ExitCode::SUCCESS),
    };
    let deadline = Instant::now() + SHUTDOWN;
    readiness.not_ready("the agent is shutting down");
    notify.stopping(SHUTDOWN);
    if let Some(member) = member {
        let _ = leave.send(());
        let _ = tokio::time::timeout(LEAVING, member).await;
    }
    let capture = tokio::task::spawn_blocking(move || capture.stop());
    if tokio::time::timeout_at(deadline, capture).await.is_err() {
        tracing::warn!("the ring could not be emptied in time");
    }
    let metrics = async {
        if let Some(metrics) = metrics {
            metrics.finish(deadline).await;
        }
    };
    tokio::join!(pipeline.drain(deadline), metrics);
    report(&ledger);
    if let Some((stop, serving)) = admin {
        let _ = stop.send(());
        let _ = tokio::time::timeout(Duration::from_millis(500), serving).await;
    }
    ended
}

/// The exporters' settings: the environment with the file's behind it.
pub(super) fn settings(config: &Config) -> Result<ExportSettings, AppError> {
    let environment = |name: &str| std::env::var(name).ok();
    let lookup = config.export.lookup(&environment);
    Ok(ExportSettings::from_variables(
        &lookup,
        config.export.otlp_file.clone(),
    )?)
}

/// Starts the queue and its exporters.
pub(super) fn exporting(
    settings: &ExportSettings,
    ledger: &Arc<Ledger>,
) -> Result<ExportPipeline, AppError> {
    let console = ConsoleExporter::start(ConsoleOptions::for_stdout())
        .map_err(|error| AppError::Start("start the console thread", error))?;
    let mut console = Some(console);
    let exporters = export::exporters(settings, || -> Box<dyn Exporter> {
        match console.take() {
            Some(console) => Box::new(console),
            // One console is all there ever is in a validated configuration.
            None => unreachable!("two consoles"),
        }
    })?;
    Ok(ExportPipeline::start(
        settings.queue,
        exporters,
        Arc::clone(ledger),
    ))
}

type Serving = (oneshot::Sender<()>, tokio::task::JoinHandle<()>);

/// Everything that is counted, wherever it is.
#[derive(Clone)]
struct Telemetry {
    status: Arc<Status>,
    ledger: Arc<Ledger>,
    sink: SpanSink,
    exporters: Vec<Arc<ExporterStats>>,
    recorded: Arc<Recorded>,
}

impl Telemetry {
    fn snapshot(&self) -> Snapshot {
        let mut snapshot = self
            .status
            .snapshot(&self.ledger, &self.exporters, &self.recorded);
        snapshot.queue_spans = self.sink.queued() as u64;
        snapshot
    }
}

fn serve(admin: Admin, readiness: &Readiness, telemetry: Telemetry) -> Serving {
    let (stop, stopped) = oneshot::channel::<()>();
    tracing::info!(address = %admin.address(), "admin endpoint");
    let sources = Sources {
        readiness: readiness.clone(),
        ledger: Arc::clone(&telemetry.ledger),
        open: telemetry.status.open(),
        metrics: Arc::new(move |format| render(&telemetry.snapshot(), &telemetry.recorded, format)),
    };
    let serving = admin.serve(sources, async move {
        let _ = stopped.await;
    });
    (stop, tokio::spawn(serving))
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    /// It was started from a terminal.
    had_terminal: bool,
}

impl Signals {
    fn install() -> Result<Self, AppError> {
        let install =
            |kind| signal(kind).map_err(|error| AppError::Start("install a signal handler", error));
        Ok(Signals {
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
            hangup: install(SignalKind::hangup())?,
            had_terminal: has_terminal(),
        })
    }

    async fn any(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.terminate.recv() => Asked::Stop,
            // The same signal says that the terminal is gone: nobody wants an agent without one.
            _ = self.hangup.recv() => match self.had_terminal && !has_terminal() {
                true => Asked::Stop,
                false => Asked::Reload,
            },
        }
    }
}

/// Whether this process has a terminal that controls it; it loses it when that one is closed.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// What a signal asks for.
enum Asked {
    Stop,
    Reload,
}

async fn wait(
    signals: &mut Signals,
    capture: &Capture,
    reloader: &mut Reloader,
    notify: &Notify,
) -> Result<(), AppError> {
    let mut watch = tokio::time::interval(Duration::from_secs(1));
    let mut told = std::collections::BTreeSet::new();
    loop {
        tokio::select! {
            asked = signals.any() => match asked {
                Asked::Stop => return Ok(()),
                Asked::Reload => {
                    notify.reloading();
                    reloader.reload(capture);
                    notify.ready();
                }
            },
            _ = watch.tick() => {
                if capture.ended() {
                    return Err(AppError::CaptureEnded);
                }
                for call in rights::take_refused() {
                    if told.insert(call.clone()) {
                        tracing::warn!(%call, "a system call that the agent never makes was refused; please report this");
                    }
                }
            }
        }
    }
}

/// Starts the command and waits for its end, or for a signal, which is passed on.
async fn follow(
    launcher: Launcher,
    signals: &mut Signals,
    capture: &Capture,
    reloader: &mut Reloader,
    notify: &Notify,
) -> Result<ExitCode, AppError> {
    let mut child = launcher.start().await?;
    tokio::select! {
        ended = wait(signals, capture, reloader, notify) => {
            child.end().await;
            ended?;
        }
        _ = child.wait() => tokio::time::sleep(LAST_EVENTS).await,
    }
    Ok(ExitCode::from(command::exit_code(child.wait().await?)))
}

/// The ledger in the log's last lines.
pub(super) fn report(ledger: &Ledger) {
    for (stage, counts) in ledger.snapshot() {
        tracing::info!(
            stage,
            seen = counts.seen,
            exported = counts.exported,
            sampled_out = counts.sampled_out,
            pending = counts.pending,
            dropped = ?counts.dropped,
            "ledger"
        );
    }
    let Details { bytes, services } = ledger.details();
    tracing::info!(
        seen = bytes.seen,
        parsed = bytes.parsed,
        skipped = bytes.skipped,
        lost = bytes.lost,
        "ledger of bytes"
    );
    for (service, counts) in services {
        tracing::info!(
            %service,
            seen = counts.seen,
            exported = counts.exported,
            sampled_out = counts.sampled_out,
            unknown = counts.unknown,
            pending = counts.pending,
            dropped = ?counts.dropped,
            "ledger of a service"
        );
    }
}
