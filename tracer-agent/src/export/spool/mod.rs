//! Messages of one exporter on disk while its backend is down.
//!
//! In: encoded OTLP messages with their numbers of spans. Out: the same in order, until each is
//! settled. A thread of its own does the I/O: a disk that hangs stalls this exporter only, and
//! neither the runtime nor its shutdown. What the files guarantee is said in [`log`]; the thread
//! syncs them every second and at the end, so a power failure costs a second at most.
//!
//! The ledger's `spool` stage is kept here: seen when on disk (what an earlier agent left included),
//! exported when the backend has it, dropped by the reasons of [`super::delivery::reason`].

pub mod log;
pub mod segment;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use super::delivery::reason;
use super::stats::ExporterStats;
use crate::telemetry::ledger::Ledger;
use log::{Log, Place, Record};

/// Longest time that what was appended stays in the page cache only.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Appends that may wait for the disk; each has somebody waiting for it.
const COMMANDS: usize = 16;

/// The door to the spool's thread.
#[derive(Clone, Debug)]
pub struct Spool {
    commands: mpsc::SyncSender<Command>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Spans that were not given out yet.
    unread: AtomicU64,
    /// Spans given out and not settled.
    in_hand: AtomicU64,
    grown: Notify,
    ledger: Arc<Ledger>,
    stats: Arc<ExporterStats>,
}

#[derive(Debug)]
enum Command {
    Append(u32, Bytes, oneshot::Sender<io::Result<()>>),
    Next(oneshot::Sender<Option<Record>>),
    Settle(Place),
    Sync(oneshot::Sender<()>),
}

/// How a record ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Spans that the backend took.
    pub accepted: u64,
    /// Spans that it refused.
    pub rejected: u64,
}

impl Spool {
    /// Starts the thread of an opened spool. An earlier agent's messages may be in it.
    pub fn start(
        log: Log,
        directory: &Path,
        ledger: Arc<Ledger>,
        stats: Arc<ExporterStats>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            unread: AtomicU64::new(0),
            in_hand: AtomicU64::new(0),
            grown: Notify::new(),
            ledger,
            stats,
        });
        let (commands, queue) = mpsc::sync_channel(COMMANDS);
        let worker = Worker {
            log,
            shared: Arc::clone(&shared),
        };
        let recovered = worker.recovered();
        if recovered > 0 {
            tracing::info!(
                spans = recovered,
                directory = %directory.display(),
                "spans of an earlier run are in the spool; they are sent first"
            );
        }
        std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || worker.run(&queue))?;
        Ok(Self { commands, shared })
    }

    /// True if nothing waits on disk or is being sent from there.
    pub fn is_empty(&self) -> bool {
        self.shared.unread.load(Ordering::Acquire) == 0
            && self.shared.in_hand.load(Ordering::Acquire) == 0
    }

    /// Returns when a message was appended since the last call.
    pub async fn grown(&self) {
        self.shared.grown.notified().await;
    }

    /// Puts a message on disk.
    pub async fn append(&self, spans: u32, message: Bytes) -> io::Result<()> {
        let (reply, done) = oneshot::channel();
        self.send(Command::Append(spans, message, reply))?;
        done.await.map_err(|_| gone())?
    }

    /// The oldest message. At most one is given out at a time: settle it before the next call.
    pub async fn next(&self) -> Option<Record> {
        let (reply, record) = oneshot::channel();
        self.send(Command::Next(reply)).ok()?;
        record.await.ok()?
    }

    /// The record's spans are delivered or refused.
    pub fn settle(&self, record: &Record, end: Settled) {
        let Settled { accepted, rejected } = end;
        let Shared { ledger, .. } = &*self.shared;
        ledger.spool.exported(accepted);
        ledger.spool.dropped(reason::REJECTED, rejected);
        self.shared.in_hand.store(0, Ordering::Release);
        // Without its thread nothing can be given out again.
        let _ = self.send(Command::Settle(record.place));
    }

    /// Returns when everything appended so far is on the disk itself.
    pub async fn sync(&self) {
        let (reply, done) = oneshot::channel();
        if self.send(Command::Sync(reply)).is_ok() {
            let _ = done.await;
        }
    }

    fn send(&self, command: Command) -> io::Result<()> {
        // Full only while the disk hangs.
        self.commands
            .try_send(command)
            .map_err(|error| match error {
                mpsc::TrySendError::Full(_) => {
                    io::Error::new(io::ErrorKind::WouldBlock, "the disk does not answer")
                }
                mpsc::TrySendError::Disconnected(_) => gone(),
            })
    }
}

fn gone() -> io::Error {
    io::Error::other("the spool's thread is gone")
}

struct Worker {
    log: Log,
    shared: Arc<Shared>,
}

impl Worker {
    /// Counts what was found on disk; the number of its spans.
    fn recovered(&self) -> u64 {
        let unread = self.log.unread();
        self.shared.ledger.spool.seen(unread);
        self.publish();
        unread
    }

    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        // Torn or dropped while it was looked through: seen and lost at once.
        let found = self.log.take_losses();
        self.shared.ledger.spool.seen(found.damaged + found.full);
        self.count(found);
        let mut unsynced: Option<Instant> = None;
        loop {
            let wait = unsynced.map_or(SYNC_EVERY, |since| {
                SYNC_EVERY.saturating_sub(since.elapsed())
            });
            match commands.recv_timeout(wait) {
                Ok(command) => self.obey(command),
                Err(mpsc::RecvTimeoutError::Timeout) => self.log.sync(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            if unsynced.is_some_and(|since| since.elapsed() >= SYNC_EVERY) {
                self.log.sync();
            }
            unsynced = match (self.log.is_dirty(), unsynced) {
                (false, _) => None,
                (true, since) => since.or_else(|| Some(Instant::now())),
            };
        }
        self.log.sync();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Append(spans, message, reply) => {
                let result = self.log.append(spans, &message);
                match &result {
                    Ok(()) => self.shared.ledger.spool.seen(u64::from(spans)),
                    Err(_) => self.shared.stats.spool_failure(),
                }
                self.publish();
                // What was dropped to make room is counted after the new was seen.
                let losses = self.log.take_losses();
                self.count(losses);
                let written = result.is_ok();
                let _ = reply.send(result);
                if written {
                    self.shared.grown.notify_one();
                }
            }
            Command::Next(reply) => {
                let record = self.log.take_next();
                let spans = record.as_ref().map_or(0, |record| u64::from(record.spans));
                self.shared.in_hand.store(spans, Ordering::Release);
                self.publish();
                let losses = self.log.take_losses();
                self.count(losses);
                let _ = reply.send(record);
            }
            Command::Settle(place) => {
                self.log.settle(place);
                self.publish();
            }
            Command::Sync(reply) => {
                self.log.sync();
                let _ = reply.send(());
            }
        }
    }

    fn publish(&self) {
        let unread = self.log.unread();
        self.shared.unread.store(unread, Ordering::Release);
        self.shared.stats.spool_holds(self.log.bytes());
    }

    fn count(&self, losses: log::Losses) {
        let log::Losses {
            full,
            damaged,
            segments,
        } = losses;
        let stage = &self.shared.ledger.spool;
        stage.dropped(reason::SPOOL_FULL, full);
        stage.dropped(reason::SPOOL_DAMAGED, damaged);
        if full > 0 {
            tracing::debug!(
                spans = full,
                "the spool is full; its oldest spans are dropped"
            );
        }
        if segments > 0 || damaged > 0 {
            self.shared.stats.spool_damage(segments);
            tracing::warn!(
                segments,
                spans = damaged,
                "part of the spool is damaged and skipped"
            );
        }
    }
}
