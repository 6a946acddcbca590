//! A network backend with a spool behind it: what goes to disk, and when.
//!
//! While the backend keeps up, messages go to it straight from memory and the disk is not touched.
//! A message goes to disk when an attempt to send it failed in a way worth another one, when older
//! messages are there already (order), when the backend is so slow that half of the memory queue is
//! full, and when the agent ends before it is delivered. Then the disk is emptied first, oldest
//! first, for as long as it takes. A span on disk is "exported" in the ledger's `spans` stage and
//! "seen" in its `spool` stage.
//!
//! Two tasks: the intake takes batches off the queue and never waits for the backend while the disk
//! takes them; the sending one waits for the backend and for nothing else. A disk that is full or
//! broken leaves the memory path: batches wait in the queue, and the newest are dropped there.
//!
//! At least once: a message that was sent when the end came, or whose answer was lost, is sent again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::backend::Message;
use super::delivery::{Delivery, reason};
use super::network::Messages;
use super::queue::{Closing, Queue};
use super::sender::{Patience, Sender, Tally};
use super::spool::{Settled, Spool};
use super::stats::ExporterStats;

/// How long a disk that failed is left alone.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// How often a waiting intake looks whether it should still wait.
const LOOK: Duration = Duration::from_millis(50);

/// A message on its way from memory; one at a time.
struct Direct {
    message: Message,
    delivery: SharedDelivery,
    _turn: OwnedSemaphorePermit,
}

/// A delivery whose messages end in two tasks.
#[derive(Clone)]
struct SharedDelivery(Arc<Mutex<Delivery>>);

impl SharedDelivery {
    fn accept(&self, n: u64) {
        self.with(|delivery| delivery.accept(n));
    }

    fn lose(&self, reason: &'static str, n: u64) {
        self.with(|delivery| delivery.lose(reason, n));
    }

    fn with(&self, change: impl FnOnce(&mut Delivery)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Ends its task when dropped: the intake may be aborted.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Exports what comes from `queue` until that is closed.
pub(super) async fn run(sender: Sender, mut messages: Messages, spool: Spool, queue: Queue) {
    let Queue {
        mut deliveries,
        stats,
        closing,
        max_queue_size,
        ..
    } = queue;
    let (direct, from_intake) = mpsc::channel(1);
    let sending = Sending {
        sender,
        spool: spool.clone(),
        stats: Arc::clone(&stats),
        closing: closing.clone(),
    };
    let mut sending = AbortOnDrop(tokio::spawn(sending.run(from_intake)));
    let mut intake = Intake {
        turn: Arc::new(Semaphore::new(1)),
        direct,
        spool: spool.clone(),
        stats,
        closing,
        patient_until: max_queue_size as u64 / 2,
        disk_failing: false,
    };
    while let Some(delivery) = deliveries.recv().await {
        let messages = messages.of(&delivery);
        let delivery = SharedDelivery(Arc::new(Mutex::new(delivery)));
        for message in messages {
            intake.place(message, &delivery).await;
        }
    }
    drop(intake);
    // Ends with the disk empty, or shortly before the deadline with the rest left there.
    let _ = (&mut sending.0).await;
    spool.sync().await;
}

struct Intake {
    turn: Arc<Semaphore>,
    direct: mpsc::Sender<Direct>,
    spool: Spool,
    stats: Arc<ExporterStats>,
    closing: Closing,
    /// Spans that may wait in memory for a slow backend.
    patient_until: u64,
    disk_failing: bool,
}

impl Intake {
    /// Hands the message to the backend or to the disk.
    async fn place(&mut self, mut message: Message, delivery: &SharedDelivery) {
        loop {
            if self.spool.is_empty() && !self.closing.is_near() {
                match self.hand_over(message, delivery).await {
                    None => return,
                    Some(back) => message = back,
                }
                if self.stats.backlog() <= self.patient_until {
                    continue;
                }
            }
            let spans = u32::try_from(message.spans).unwrap_or(u32::MAX);
            match self.spool.append(spans, message.otlp.clone()).await {
                Ok(()) => {
                    if std::mem::take(&mut self.disk_failing) {
                        tracing::info!("the spool can be written again");
                    }
                    delivery.accept(message.spans);
                    return;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.disk_failing, true) {
                        tracing::warn!(%error, "cannot write to the spool; spans wait in memory, and what does not fit there is dropped and counted");
                    }
                    tokio::time::sleep(DISK_PAUSE).await;
                }
            }
        }
    }

    /// Gives the message back if its turn does not come soon, or if it must go to disk meanwhile.
    async fn hand_over(&self, message: Message, delivery: &SharedDelivery) -> Option<Message> {
        let turn = Arc::clone(&self.turn).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(LOOK, turn).await else {
            return Some(message);
        };
        if !self.spool.is_empty() {
            return Some(message);
        }
        let direct = Direct {
            message,
            delivery: delivery.clone(),
            _turn: turn,
        };
        // The sending task ends only shortly before the deadline.
        let sent = self.direct.send(direct).await;
        sent.err().map(|error| error.0.message)
    }
}

struct Sending {
    sender: Sender,
    spool: Spool,
    stats: Arc<ExporterStats>,
    closing: Closing,
}

impl Sending {
    async fn run(mut self, mut from_intake: mpsc::Receiver<Direct>) {
        loop {
            // What is on disk is older.
            while !self.spool.is_empty() {
                if !self.send_record().await {
                    return;
                }
            }
            tokio::select! {
                direct = from_intake.recv() => match direct {
                    Some(direct) => self.send_direct(direct).await,
                    None if self.spool.is_empty() => return,
                    None => {}
                },
                () = self.spool.grown() => {}
            }
        }
    }

    /// Sends the oldest message on disk. False: the end is near, the rest stays there.
    async fn send_record(&mut self) -> bool {
        let Some(record) = self.spool.next().await else {
            // Nothing readable, or a disk that hangs.
            tokio::select! {
                () = self.closing.near() => return false,
                () = tokio::time::sleep(LOOK) => return true,
            }
        };
        let message = Message {
            otlp: record.message.clone(),
            spans: u64::from(record.spans),
        };
        let mut tally = Tally::default();
        tokio::select! {
            _ = self.sender.send(message, Patience::Forever, &self.stats, &mut tally) => {}
            () = self.closing.near() => return false,
        }
        let Tally { accepted, rejected } = tally;
        self.spool.settle(&record, Settled { accepted, rejected });
        true
    }

    async fn send_direct(&mut self, direct: Direct) {
        let Direct {
            message,
            delivery,
            _turn,
        } = direct;
        let mut rest = vec![message];
        let mut patience = Patience::Once;
        while let Some(message) = rest.pop() {
            let mut tally = Tally::default();
            let attempt = self
                .sender
                .send(message.clone(), patience, &self.stats, &mut tally);
            let left = tokio::select! {
                left = attempt => left,
                () = self.closing.near() => {
                    // Parts that were taken already are sent twice.
                    tally = Tally::default();
                    vec![message]
                }
            };
            delivery.accept(tally.accepted);
            delivery.lose(reason::REJECTED, tally.rejected);
            for message in left {
                let spans = u32::try_from(message.spans).unwrap_or(u32::MAX);
                if self.spool.append(spans, message.otlp.clone()).await.is_ok() {
                    delivery.accept(message.spans);
                } else if self.closing.is_near() {
                    delivery.lose(reason::SHUTDOWN_TIMEOUT, message.spans);
                } else {
                    // Memory is all there is: try for a while, then look at the disk again.
                    patience = Patience::Until(Instant::now() + DISK_PAUSE);
                    rest.push(message);
                }
            }
        }
    }
}
