//! From the capture threads to the exporters: a bounded queue, batches, one worker per exporter.
//!
//! In: finished spans, from any thread, without waiting ([`SpanSink::submit`]). Out: batches to
//! every [`Exporter`], each at its own pace: one that is slow or unreachable holds up no other.
//! Bounds: `max_queue_size` spans wait to be batched, and as many wait for each exporter; the
//! exporters of one batch share its spans. What does not fit is dropped and counted, newest first.
//!
//! The ledger's `spans` stage is kept here (seen, queue_full) and in `super::delivery` (the rest).

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::delivery::{Delivery, reason};
use super::settings::QueueSettings;
use super::stats::ExporterStats;
use crate::telemetry::ledger::Ledger;
use crate::trace::Span;

/// A destination of spans. Its worker calls it from one task, never twice at a time.
pub trait Exporter: Send + 'static {
    /// Labels its metrics and log lines.
    fn name(&self) -> &'static str;

    /// Delivers a batch and says in `delivery` what became of its spans. May take long; may be
    /// cancelled at any await when the time to shut down is over.
    fn export<'a>(
        &'a mut self,
        delivery: &'a mut Delivery,
        stats: &'a ExporterStats,
    ) -> ExportFuture<'a>;

    /// Exports everything that comes from the queue; returns when that is closed and empty.
    fn run(self: Box<Self>, queue: Queue) -> ExportFuture<'static> {
        Box::pin(one_by_one(self, queue))
    }

    /// How often [`Exporter::tick`] wants to be called.
    fn tick_every(&self) -> Option<Duration> {
        None
    }

    /// Time has passed: an exporter that holds output back (for a trace to be complete) writes it.
    fn tick(&mut self) {}

    /// After the last batch: write what was held back.
    fn finish(&mut self) {}
}

/// The work of one batch.
pub type ExportFuture<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// One exporter's end of the queue.
#[derive(Debug)]
pub struct Queue {
    /// Batches for it.
    pub deliveries: mpsc::UnboundedReceiver<Delivery>,
    /// Its counters.
    pub stats: Arc<ExporterStats>,
    /// Where spans are counted.
    pub ledger: Arc<Ledger>,
    /// Says when the time to shut down is nearly over.
    pub closing: Closing,
    /// Spans that may wait for it.
    pub max_queue_size: usize,
}

/// When an exporter should put what it holds into safety: most of the time to shut down is for
/// delivering, the last part for that.
#[derive(Clone, Debug)]
pub struct Closing(watch::Receiver<Option<Instant>>);

impl Closing {
    /// Whether the time has come.
    pub fn is_near(&self) -> bool {
        self.0.borrow().is_some_and(|near| near <= Instant::now())
    }

    /// Returns when the time has come.
    pub async fn near(&self) {
        let mut closing = self.0.clone();
        let near = match closing.wait_for(Option::is_some).await {
            Ok(near) => *near,
            // The pipeline was dropped without a drain: its tasks are left to themselves.
            Err(_) => None,
        };
        match near {
            Some(near) => tokio::time::sleep_until(near).await,
            None => std::future::pending().await,
        }
    }
}

/// Takes spans in. Cheap to clone; never waits.
#[derive(Clone, Debug)]
pub struct SpanSink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    intake: Mutex<Intake>,
    /// Wakes the batcher when there is a full batch, or when the queue was closed.
    wake: Notify,
    settings: QueueSettings,
    ledger: Arc<Ledger>,
}

#[derive(Debug, Default)]
struct Intake {
    chunks: Vec<Vec<Span>>,
    /// Spans in the chunks and in the batcher's hands.
    queued: usize,
    closed: bool,
}

impl SpanSink {
    /// Spans that wait to be put into a batch.
    pub fn queued(&self) -> usize {
        self.shared.intake().queued
    }

    /// Queues `spans`, or as many of them as there is room for.
    pub fn submit(&self, mut spans: Vec<Span>) {
        if spans.is_empty() {
            return;
        }
        let Shared {
            settings, ledger, ..
        } = &*self.shared;
        ledger.spans.seen(spans.len() as u64);
        ledger.services.entered(&spans);
        let mut intake = self.shared.intake();
        if intake.closed {
            drop(intake);
            ledger.dropped_spans(&spans, reason::SHUTDOWN);
            return;
        }
        let room = settings.max_queue_size.saturating_sub(intake.queued);
        // Freed after the lock is.
        let over = if spans.len() > room {
            spans.split_off(room)
        } else {
            Vec::new()
        };
        let before = intake.queued;
        intake.queued += spans.len();
        // A wake-up is a system call: one per batch, not one per call. The rest waits for the tick.
        let wake = settings.schedule_delay.is_zero()
            || before < settings.max_export_batch_size
                && intake.queued >= settings.max_export_batch_size;
        if !spans.is_empty() {
            intake.chunks.push(spans);
        }
        drop(intake);
        ledger.dropped_spans(&over, reason::QUEUE_FULL);
        if wake {
            self.shared.wake.notify_one();
        }
    }
}

impl Shared {
    fn intake(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running queue.
#[derive(Debug)]
pub struct ExportPipeline {
    shared: Arc<Shared>,
    batcher: JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
    closing: watch::Sender<Option<Instant>>,
    stats: Vec<Arc<ExporterStats>>,
}

impl ExportPipeline {
    /// Starts the tasks; must be called on a tokio runtime. Without exporters every span counts as
    /// exported as soon as it is batched.
    pub fn start(
        settings: QueueSettings,
        exporters: Vec<Box<dyn Exporter>>,
        ledger: Arc<Ledger>,
    ) -> Self {
        let shared = Arc::new(Shared {
            intake: Mutex::default(),
            wake: Notify::new(),
            settings,
            ledger,
        });
        let (closing, closes) = watch::channel(None);
        let mut stats = Vec::with_capacity(exporters.len());
        let mut workers = Vec::with_capacity(exporters.len());
        let mut queues = Vec::with_capacity(exporters.len());
        for exporter in exporters {
            let counters = Arc::new(ExporterStats::new(exporter.name()));
            // Unbounded in batches, bounded in spans: the batcher looks at the backlog.
            let (queue, deliveries) = mpsc::unbounded_channel();
            workers.push(tokio::spawn(exporter.run(Queue {
                deliveries,
                stats: Arc::clone(&counters),
                ledger: Arc::clone(&shared.ledger),
                closing: Closing(closes.clone()),
                max_queue_size: settings.max_queue_size,
            })));
            stats.push(counters);
            queues.push(queue);
        }
        let batcher = Batcher {
            shared: Arc::clone(&shared),
            queues,
            stats: stats.clone(),
            carry: Vec::new(),
        };
        Self {
            shared,
            batcher: tokio::spawn(batcher.run()),
            workers,
            closing,
            stats,
        }
    }

    /// Where spans go in.
    pub fn sink(&self) -> SpanSink {
        SpanSink {
            shared: Arc::clone(&self.shared),
        }
    }

    /// The counters of every exporter, in the order they were given.
    pub fn stats(&self) -> Vec<Arc<ExporterStats>> {
        self.stats.clone()
    }

    /// Takes no more spans, exports what is queued, and returns when that is done or `deadline` has
    /// come; what is left then is dropped as `shutdown_timeout`.
    pub async fn drain(mut self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        self.closing.send_replace(Some(deadline - left / 4));
        self.shared.intake().closed = true;
        self.shared.wake.notify_one();
        let mut tasks = std::mem::take(&mut self.workers);
        tasks.push(self.batcher);
        for task in &mut tasks {
            if tokio::time::timeout_at(deadline, &mut *task).await.is_err() {
                break;
            }
        }
        let unfinished: Vec<_> = tasks
            .into_iter()
            .filter(|task| !task.is_finished())
            .collect();
        for task in &unfinished {
            task.abort();
        }
        // An aborted task counts what it held when it is dropped, which is at its next await. One
        // that blocks its thread has none; it must not block the shutdown too.
        let grace = Instant::now() + Duration::from_millis(100);
        for task in unfinished {
            if tokio::time::timeout_at(grace, task).await.is_err() {
                tracing::warn!(
                    "an exporter blocks and was left behind; its spans stay pending in the ledger"
                );
            }
        }
        let mut intake = self.shared.intake();
        for chunk in intake.chunks.drain(..) {
            let ledger = &self.shared.ledger;
            ledger.dropped_spans(&chunk, reason::SHUTDOWN_TIMEOUT);
        }
    }
}

/// Spans that a batch has room for from the start: what is not used of it costs addresses, not memory.
const RESERVED: usize = 2048;

/// Cuts the intake into batches. Never waits for an exporter.
struct Batcher {
    shared: Arc<Shared>,
    queues: Vec<mpsc::UnboundedSender<Delivery>>,
    stats: Vec<Arc<ExporterStats>>,
    /// Less than a batch, waiting for more or for the tick.
    carry: Vec<Span>,
}

impl Batcher {
    async fn run(mut self) {
        // A zero period is not allowed; with a zero delay every submit wakes the batcher anyway.
        let period = self
            .shared
            .settings
            .schedule_delay
            .max(Duration::from_millis(1));
        let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let flush_always = self.shared.settings.schedule_delay.is_zero();
        loop {
            let shared = Arc::clone(&self.shared);
            let ticked = tokio::select! {
                () = shared.wake.notified() => false,
                _ = ticks.tick(), if !flush_always => true,
            };
            loop {
                let (chunks, closed) = {
                    let mut intake = shared.intake();
                    (std::mem::take(&mut intake.chunks), intake.closed)
                };
                self.cut(chunks, ticked || closed || flush_always);
                if closed {
                    return;
                }
                // Spans that came meanwhile woke nobody: there was a full batch already. From
                // below one on, the submit that completes it does.
                if shared.intake().queued < shared.settings.max_export_batch_size {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    fn cut(&mut self, chunks: Vec<Vec<Span>>, flush: bool) {
        let size = self.shared.settings.max_export_batch_size;
        for chunk in chunks {
            for span in chunk {
                if self.carry.capacity() == 0 {
                    // A batch that grows is copied each time.
                    self.carry.reserve_exact(size.min(RESERVED));
                }
                self.carry.push(span);
                if self.carry.len() >= size {
                    self.hand_over();
                }
            }
        }
        if flush && !self.carry.is_empty() {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        let spans = std::mem::take(&mut self.carry);
        let count = spans.len();
        let bound = self.shared.settings.max_queue_size as u64;
        let full: Vec<bool> = self
            .stats
            .iter()
            .map(|stats| stats.backlog() + count as u64 > bound)
            .collect();
        let deliveries = Delivery::fan_out(spans, &self.stats, &self.shared.ledger);
        for ((mut delivery, queue), full) in deliveries.into_iter().zip(&self.queues).zip(full) {
            if full {
                delivery.lose(reason::QUEUE_FULL, count as u64);
            } else if let Err(mpsc::error::SendError(mut delivery)) = queue.send(delivery) {
                // The worker is gone: it panicked.
                delivery.lose(reason::EXPORT_FAILED, count as u64);
            }
        }
        self.shared.intake().queued -= count;
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        let ledger = &self.shared.ledger;
        ledger.dropped_spans(&self.carry, reason::SHUTDOWN_TIMEOUT);
    }
}

/// Feeds one exporter until the batcher is gone and its queue is empty.
pub(super) async fn one_by_one<E: Exporter + ?Sized>(mut exporter: Box<E>, queue: Queue) {
    let Queue {
        mut deliveries,
        stats,
        ..
    } = queue;
    loop {
        let next = match exporter.tick_every() {
            None => deliveries.recv().await,
            Some(period) => match tokio::time::timeout(period, deliveries.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    exporter.tick();
                    continue;
                }
            },
        };
        let Some(mut delivery) = next else { break };
        exporter.export(&mut delivery, &stats).await;
    }
    exporter.finish();
}
