//! The queue with exporters made for the test, and the file exporter.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::*;
use crate::export::delivery::reason;
use crate::export::{
    Delivery, ExportFuture, ExportPipeline, Exporter, ExporterStats, QueueSettings,
};
use crate::telemetry::ledger::Ledger;

/// Takes a batch per permit, and remembers its size.
#[derive(Clone)]
struct Gate {
    permits: Arc<Semaphore>,
    batches: Arc<Mutex<Vec<usize>>>,
    ticks: Arc<Mutex<(u32, u32)>>,
    tick_every: Option<Duration>,
}

impl Gate {
    fn new(permits: usize) -> Self {
        let permits = Arc::new(Semaphore::new(permits));
        Self {
            permits,
            batches: Arc::default(),
            ticks: Arc::default(),
            tick_every: None,
        }
    }
}

impl Exporter for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn export<'a>(
        &'a mut self,
        delivery: &'a mut Delivery,
        _: &'a ExporterStats,
    ) -> ExportFuture<'a> {
        Box::pin(async move {
            self.permits.acquire().await.expect("open").forget();
            self.batches
                .lock()
                .expect("lock")
                .push(delivery.spans().len());
            delivery.accept_rest();
        })
    }

    fn tick_every(&self) -> Option<Duration> {
        self.tick_every
    }

    fn tick(&mut self) {
        self.ticks.lock().expect("lock").0 += 1;
    }

    fn finish(&mut self) {
        self.ticks.lock().expect("lock").1 += 1;
    }
}

/// Panics on the first batch.
struct Broken;

impl Exporter for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn export<'a>(&'a mut self, _: &'a mut Delivery, _: &'a ExporterStats) -> ExportFuture<'a> {
        panic!("on purpose")
    }
}

fn settings(queue: usize, batch: usize, delay_ms: u64) -> QueueSettings {
    QueueSettings {
        schedule_delay: Duration::from_millis(delay_ms),
        max_queue_size: queue,
        max_export_batch_size: batch,
        ..QueueSettings::default()
    }
}

fn start(
    settings: QueueSettings,
    exporters: Vec<Box<dyn Exporter>>,
) -> (ExportPipeline, Arc<Ledger>) {
    let ledger = Arc::new(Ledger::default());
    (
        ExportPipeline::start(settings, exporters, Arc::clone(&ledger)),
        ledger,
    )
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !reached() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[tokio::test]
async fn full_batches_go_at_once_and_the_rest_with_the_delay() {
    let gate = Gate::new(100);
    let (pipeline, ledger) = start(settings(100, 10, 60_000), vec![Box::new(gate.clone())]);
    let sink = pipeline.sink();
    for _ in 0..5 {
        sink.submit(spans(5));
    }
    until("full batches", || {
        gate.batches.lock().expect("lock").len() == 2
    })
    .await;
    assert_eq!(*gate.batches.lock().expect("lock"), [10, 10]);
    assert_eq!(ledger.spans.snapshot().pending, 5);
    pipeline.drain(soon()).await;
    assert_eq!(*gate.batches.lock().expect("lock"), [10, 10, 5]);
    assert_eq!(ledger.spans.snapshot().exported, 25);
    assert_eq!(
        *gate.ticks.lock().expect("lock"),
        (0, 1),
        "finish is called once"
    );

    for delay_ms in [0, 20] {
        let gate = Gate::new(100);
        let (pipeline, ledger) = start(settings(100, 10, delay_ms), vec![Box::new(gate.clone())]);
        pipeline.sink().submit(spans(3));
        until("a part of a batch", || {
            ledger.spans.snapshot().exported == 3
        })
        .await;
        pipeline.drain(soon()).await;
    }
}

#[tokio::test]
async fn overflow_is_counted_at_both_bounds() {
    let gate = Gate::new(0);
    let (pipeline, ledger) = start(settings(100, 10, 60_000), vec![Box::new(gate.clone())]);
    let (sink, stats) = (pipeline.sink(), pipeline.stats());
    // The batcher has not run yet: the intake itself is full.
    sink.submit(spans(250));
    let snapshot = ledger.spans.snapshot();
    assert_eq!(
        (
            snapshot.seen,
            snapshot.pending,
            snapshot.dropped["queue_full"]
        ),
        (250, 100, 150)
    );
    until("batched", || stats[0].snapshot().backlog == 100).await;
    // Now the exporter's own backlog is full.
    sink.submit(spans(20));
    until("dropped", || {
        ledger.spans.snapshot().dropped["queue_full"] == 170
    })
    .await;
    assert_eq!(ledger.spans.snapshot().pending, 100);
    gate.permits.add_permits(1000);
    pipeline.drain(soon()).await;
    let snapshot = ledger.spans.snapshot();
    assert_eq!(
        (snapshot.seen, snapshot.exported, snapshot.pending),
        (270, 100, 0)
    );
}

#[tokio::test]
async fn a_stuck_exporter_holds_up_no_other() {
    let (stuck, free) = (Gate::new(0), Gate::new(1000));
    let (pipeline, ledger) = start(
        settings(20, 10, 10),
        vec![Box::new(stuck), Box::new(free.clone())],
    );
    let sink = pipeline.sink();
    for round in 1..=10 {
        sink.submit(spans(10));
        until("the free one has it", || {
            free.batches.lock().expect("lock").len() == round
        })
        .await;
    }
    pipeline
        .drain(Instant::now() + Duration::from_millis(100))
        .await;
    let snapshot = ledger.spans.snapshot();
    assert_eq!(
        (snapshot.seen, snapshot.exported, snapshot.pending),
        (100, 0, 0)
    );
    assert_eq!(
        snapshot.dropped,
        [(reason::QUEUE_FULL, 80), (reason::SHUTDOWN_TIMEOUT, 20)].into()
    );
}

#[tokio::test]
async fn without_exporters_every_span_is_done() {
    let (pipeline, ledger) = start(settings(100, 10, 10), vec![]);
    pipeline.sink().submit(spans(25));
    pipeline.drain(soon()).await;
    let snapshot = ledger.spans.snapshot();
    assert_eq!(
        (snapshot.seen, snapshot.exported, snapshot.pending),
        (25, 25, 0)
    );
}

#[tokio::test]
async fn a_broken_exporter_loses_its_spans_and_no_count() {
    let (pipeline, ledger) = start(settings(100, 10, 10), vec![Box::new(Broken)]);
    let sink = pipeline.sink();
    sink.submit(spans(10));
    until("settled", || ledger.spans.snapshot().pending == 0).await;
    sink.submit(spans(10));
    pipeline.drain(soon()).await;
    let snapshot = ledger.spans.snapshot();
    assert_eq!(
        (snapshot.seen, snapshot.exported, snapshot.pending),
        (20, 0, 0)
    );
}

#[tokio::test]
async fn an_exporter_that_asks_for_ticks_gets_them() {
    let gate = Gate {
        tick_every: Some(Duration::from_millis(5)),
        ..Gate::new(10)
    };
    let (pipeline, _) = start(settings(100, 10, 10), vec![Box::new(gate.clone())]);
    until("ticks", || gate.ticks.lock().expect("lock").0 >= 3).await;
    pipeline.drain(soon()).await;
    assert_eq!(gate.ticks.lock().expect("lock").1, 1);
}

#[tokio::test]
async fn many_threads_and_a_ledger_that_adds_up() {
    let gate = Gate::new(1_000_000);
    let (pipeline, ledger) = start(settings(500, 64, 5), vec![Box::new(gate.clone())]);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let sink = pipeline.sink();
            std::thread::spawn(move || {
                for count in 0..200 {
                    sink.submit(spans(count % 7));
                }
            })
        })
        .collect();
    tokio::task::spawn_blocking(move || {
        threads
            .into_iter()
            .for_each(|thread| thread.join().expect("submits"))
    })
    .await
    .expect("joins");
    pipeline.drain(soon()).await;
    let snapshot = ledger.spans.snapshot();
    let expected: u64 = 4 * (0..200).map(|count| count % 7).sum::<u64>();
    assert_eq!((snapshot.seen, snapshot.pending), (expected, 0));
    assert_eq!(
        gate.batches.lock().expect("lock").iter().sum::<usize>() as u64,
        snapshot.exported
    );
}

/// Only full batches wake the batcher here: a wake-up that gets lost leaves one lying.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_full_batch_is_left_lying() {
    let gate = Gate::new(1_000_000);
    let (pipeline, ledger) = start(settings(1_000_000, 16, 600_000), vec![Box::new(gate)]);
    for round in 1..=4 {
        let sink = pipeline.sink();
        let chunks: Vec<_> = (0..3000).map(|_| spans(15)).collect();
        let submit = move || {
            for chunk in chunks {
                sink.submit(chunk);
                // Let the batcher run between, so that they meet in the middle of its work.
                std::thread::yield_now();
            }
        };
        tokio::task::spawn_blocking(submit).await.expect("submits");
        until("full batches are gone", || {
            ledger.spans.snapshot().pending < 16
        })
        .await;
        assert_eq!(ledger.spans.snapshot().seen, round * 45_000);
    }
    pipeline.drain(soon()).await;
    assert_eq!(ledger.spans.snapshot().exported, 4 * 45_000);
}
