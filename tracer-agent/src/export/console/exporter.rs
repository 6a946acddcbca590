//! The console as an exporter: a thread of its own prints, so that a stopped terminal holds up
//! nothing but the console.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use super::{ConsoleOptions, ConsoleWriter};
use crate::export::{Delivery, ExportFuture, Exporter, ExporterStats};
use crate::trace::Span;

/// Batches that wait for the printing thread at most.
const QUEUE: usize = 64;
/// How long the end waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Prints span trees to standard output.
#[derive(Debug)]
pub struct ConsoleExporter {
    batches: SyncSender<Message>,
}

#[derive(Debug)]
enum Message {
    Spans(Vec<Span>),
    /// Print what is left, then say so.
    Finish(SyncSender<()>),
}

impl ConsoleExporter {
    /// Starts the printing thread.
    pub fn start(options: ConsoleOptions) -> std::io::Result<Self> {
        let (batches, queue) = mpsc::sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("console".into())
            .spawn(move || print(ConsoleWriter::new(options, std::io::stdout()), &queue))?;
        Ok(ConsoleExporter { batches })
    }

    fn hand_over(&self, delivery: &mut Delivery, stats: &ExporterStats) {
        let started = Instant::now();
        let sent = self
            .batches
            .try_send(Message::Spans(delivery.spans().to_vec()));
        stats.attempt(started.elapsed(), sent.is_ok());
        match sent {
            Ok(()) => delivery.accept_rest(),
            Err(TrySendError::Full(_)) => delivery.lose("console_stalled", delivery.unsettled()),
            Err(TrySendError::Disconnected(_)) => {
                delivery.lose("console_closed", delivery.unsettled());
            }
        }
    }
}

impl Exporter for ConsoleExporter {
    fn name(&self) -> &'static str {
        "console"
    }

    fn export<'a>(
        &'a mut self,
        delivery: &'a mut Delivery,
        stats: &'a ExporterStats,
    ) -> ExportFuture<'a> {
        Box::pin(async move { self.hand_over(delivery, stats) })
    }

    fn finish(&mut self) {
        let (done, finished) = mpsc::sync_channel(1);
        if self.batches.try_send(Message::Finish(done)).is_ok() {
            // A terminal that does not take the lines is no reason to stay.
            let _ = finished.recv_timeout(LAST_LINES);
        }
    }
}

/// Ends when standard output is closed or the exporter is gone.
fn print(mut console: ConsoleWriter<std::io::Stdout>, queue: &Receiver<Message>) {
    loop {
        let wait = console.deadline().map_or(Duration::from_secs(3600), |at| {
            at.saturating_duration_since(Instant::now())
        });
        let printed = match queue.recv_timeout(wait) {
            Ok(Message::Spans(spans)) => console.export(&spans, Instant::now()),
            Ok(Message::Finish(done)) => {
                let printed = console.finish();
                // Nobody waits any more if the time was over.
                let _ = done.send(());
                printed
            }
            Err(RecvTimeoutError::Timeout) => console.tick(Instant::now()),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if printed.is_err() {
            return;
        }
    }
}
