//! `--otlp-file`: OTLP/JSON, one `ExportTraceServiceRequest` per line, flushed per batch.
//!
//! A thread of its own does the writing: a pipe that nobody reads blocks this exporter, and
//! neither the runtime nor its shutdown. A failure to write is said once, its spans counted, and
//! the next batch is tried again (a disk can be freed).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::delivery::{Delivery, reason};
use super::queue::{ExportFuture, Exporter};
use super::resource::ResourceDefaults;
use super::stats::ExporterStats;
use super::{ExportError, proto};

/// Writes lines to a file or to standard output.
#[derive(Debug)]
pub struct FileExporter {
    path: PathBuf,
    lines: mpsc::SyncSender<Line>,
    defaults: Arc<ResourceDefaults>,
    failing: bool,
}

/// A line to write, and where to say how that went.
type Line = (Vec<u8>, oneshot::Sender<io::Result<()>>);

#[derive(Debug)]
enum Sink {
    File(File),
    Stdout,
}

impl FileExporter {
    /// Opens `path` for appending, made if absent; `-` is standard output.
    pub fn new(path: &Path, defaults: Arc<ResourceDefaults>) -> Result<Self, ExportError> {
        let failed = |source| ExportError::File {
            path: path.to_owned(),
            source,
        };
        let sink = if path == Path::new("-") {
            Sink::Stdout
        } else {
            Sink::File(
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .map_err(failed)?,
            )
        };
        let (lines, queue) = mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("otlp-file".to_owned())
            .spawn(move || write_lines(sink, &queue))
            .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            lines,
            defaults,
            failing: false,
        })
    }

    async fn write(&mut self, delivery: &mut Delivery, stats: &ExporterStats) {
        let started = Instant::now();
        let result = match proto::json(delivery.spans(), &self.defaults) {
            Ok(mut line) => {
                line.push(b'\n');
                self.write_line(line).await
            }
            Err(error) => Err(error.into()),
        };
        stats.attempt(started.elapsed(), result.is_ok());
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!(path = %self.path.display(), "spans are written again");
                }
                delivery.accept_rest();
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(path = %self.path.display(), %error, "cannot write spans; they are dropped and counted as write_failed");
                }
                delivery.lose(reason::WRITE_FAILED, delivery.unsettled());
            }
        }
    }

    async fn write_line(&self, line: Vec<u8>) -> io::Result<()> {
        let gone = || io::Error::other("the writing thread is gone");
        let (done, result) = oneshot::channel();
        // One line at a time: there is room unless an earlier batch was cancelled while blocked.
        self.lines.try_send((line, done)).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

impl Exporter for FileExporter {
    fn name(&self) -> &'static str {
        "file"
    }

    fn export<'a>(
        &'a mut self,
        delivery: &'a mut Delivery,
        stats: &'a ExporterStats,
    ) -> ExportFuture<'a> {
        Box::pin(self.write(delivery, stats))
    }
}

fn write_lines(mut sink: Sink, lines: &mpsc::Receiver<Line>) {
    let mut torn = false;
    while let Ok((line, done)) = lines.recv() {
        let result = sink.write(&line, torn);
        torn = result.is_err();
        // Nobody waits any more if the export was cancelled.
        let _ = done.send(result);
    }
}

impl Sink {
    /// `torn`: the last line may have been written in part, so end it first.
    fn write(&mut self, line: &[u8], torn: bool) -> io::Result<()> {
        let write = |out: &mut dyn Write| {
            if torn {
                out.write_all(b"\n")?;
            }
            out.write_all(line)?;
            out.flush()
        };
        match self {
            Self::File(file) => write(file),
            Self::Stdout => write(&mut io::stdout().lock()),
        }
    }
}
