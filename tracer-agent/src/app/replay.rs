//! `tracer-agent replay FILE`: a capture through the same parsers, spans and exporters.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::outlet::Outlet;
use super::run::{exporting, report, settings};
use super::{AppError, span_builder};
use crate::config::Config;
use crate::replay::{Exchanges, Owner, Replay};
use crate::telemetry::ledger::Ledger;

/// Spans handed on at a time.
const BATCH: usize = 1024;
/// Spans that may wait for the exporters before the file is read on.
const AHEAD: u64 = 16 * 1024;
/// For the last spans to be exported.
const DRAIN: Duration = Duration::from_secs(30);

/// Sends a capture file through the pipeline. The summary goes to stderr.
pub async fn replay(config: Config, capture: &Path) -> Result<(), AppError> {
    let ledger = Arc::new(Ledger::default());
    let settings = settings(&config)?;
    let pipeline = exporting(&settings, &ledger)?;
    let (sink, counted, path) = (pipeline.sink(), Arc::clone(&ledger), capture.to_owned());
    let reading = tokio::task::spawn_blocking(move || {
        let mut builder = span_builder(&config);
        let mut outlet = Outlet::new(&config, None, sink, Arc::clone(&counted));
        let mut spans = Vec::with_capacity(BATCH);
        // Time is what the capture says it is.
        let mut now_ns = 0;
        let mut replay = Replay::new(Exchanges::new(|exchange, owner: &Owner| {
            // Times of a capture are wall-clock times already.
            let span = builder.build(exchange, &owner.connection, &owner.process, 0);
            now_ns = span.end_unix_ns.max(now_ns);
            spans.push(span);
            if spans.len() == BATCH {
                let batch = std::mem::replace(&mut spans, Vec::with_capacity(BATCH));
                outlet.take(batch, now_ns);
                outlet.tick(now_ns);
                wait_for_room(&counted);
            }
        }));
        let result = crate::replay::file(&path, &mut replay);
        let (handler, stats) = replay.finish();
        let outputs = handler.outputs();
        let (http1, http2) = (outputs.http1.counts.clone(), outputs.http2.counts.clone());
        let unfinished = handler.unfinished();
        drop(handler);
        outlet.take(spans, now_ns);
        outlet.finish();
        let exchanges = &counted.exchanges;
        exchanges.seen(http1.requests + http2.requests);
        exchanges.dropped("unfinished_at_end_of_capture", unfinished);
        for (reason, n) in http1.abandoned.into_iter().chain(http2.abandoned) {
            exchanges.dropped(reason, n);
        }
        (result, stats)
    });
    let (result, stats) = reading.await.map_err(|_| AppError::CaptureEnded)?;
    pipeline.drain(Instant::now() + DRAIN).await;
    if result.is_ok() || stats.packets > 0 {
        // A closed stderr is no reason to fail.
        let _ = writeln!(std::io::stderr(), "{stats}");
        report(&ledger);
    }
    result.map_err(|source| AppError::Replay {
        file: capture.display().to_string(),
        source,
    })
}

/// A file is read faster than spans are exported: unlike live traffic it can wait.
fn wait_for_room(ledger: &Ledger) {
    while ledger.spans.snapshot().pending > AHEAD {
        std::thread::sleep(Duration::from_millis(1));
    }
}
