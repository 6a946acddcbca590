//! Sends messages to one backend until each is taken, refused or given up.
//!
//! A change of the backend's health is worth a line in the log, the rest is in the counters. A
//! backend that says when to come back is obeyed even beyond the time a message has: meanwhile the
//! queue holds the spans, up to its bound. Nothing here is fatal to the agent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::backend::{Backend, Limit, Message};
use super::retry::{Backoff, Verdict};
use super::stats::ExporterStats;

/// How long a message is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// One attempt.
    Once,
    /// The last attempt ends then, unless the backend asked to be left alone for longer.
    Until(Instant),
    /// Until the backend says yes or no.
    Forever,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The backend has it.
    Taken {
        /// But for so many spans.
        rejected: u64,
    },
    /// The backend does not want it.
    Refused,
    /// It is worth another attempt, but the patience is over.
    GivenUp,
}

/// Counts of a message that was sent in parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Spans taken.
    pub accepted: u64,
    /// Spans refused.
    pub rejected: u64,
}

/// One backend and what is known of it.
#[derive(Debug)]
pub struct Sender {
    backend: Backend,
    /// For log lines.
    endpoint: String,
    attempt_timeout: Duration,
    limit: Arc<Limit>,
    backoff: Backoff,
    /// Not to be asked before then.
    not_before: Option<NotBefore>,
    health: Health,
    rejections_said: bool,
    splits_said: bool,
}

#[derive(Clone, Copy, Debug)]
struct NotBefore {
    at: Instant,
    /// The backend said so itself.
    asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Working,
    Failing,
    Refused,
}

impl Sender {
    /// Nothing is known of `backend` yet.
    pub fn new(backend: Backend, endpoint: String, attempt_timeout: Duration) -> Self {
        Self {
            limit: Arc::new(backend.limit()),
            backend,
            endpoint,
            attempt_timeout,
            backoff: Backoff::new(),
            not_before: None,
            health: Health::Working,
            rejections_said: false,
            splits_said: false,
        }
    }

    /// The exporter's name.
    pub fn name(&self) -> &'static str {
        self.backend.name()
    }

    /// How large messages may be.
    pub fn limit(&self) -> &Arc<Limit> {
        &self.limit
    }

    /// Sends `message`, in halves of halves if it is too large. What is left when the patience ends
    /// is given back.
    pub async fn send(
        &mut self,
        message: Message,
        patience: Patience,
        stats: &ExporterStats,
        tally: &mut Tally,
    ) -> Vec<Message> {
        let mut parts = vec![message];
        while let Some(part) = parts.pop() {
            let written = match self.backend.write(&part) {
                Ok(written) => written,
                Err(why) => {
                    self.refused(&why);
                    tally.rejected += part.spans;
                    continue;
                }
            };
            match self.send_part(written, patience, stats).await {
                Some(Sent::Taken { rejected }) => {
                    let rejected = rejected.min(part.spans);
                    tally.rejected += rejected;
                    tally.accepted += part.spans - rejected;
                }
                Some(Sent::Refused) => tally.rejected += part.spans,
                Some(Sent::GivenUp) => {
                    parts.push(part);
                    break;
                }
                None => {
                    self.limit.refused(part.otlp.len());
                    match part.split() {
                        Some((first, second)) => parts.extend([second, first]),
                        None => {
                            self.refused("a single span is too large for it");
                            tally.rejected += part.spans;
                        }
                    }
                }
            }
        }
        parts
    }

    /// `None`: too large.
    async fn send_part(
        &mut self,
        written: Bytes,
        patience: Patience,
        stats: &ExporterStats,
    ) -> Option<Sent> {
        loop {
            let mut timeout = self.attempt_timeout;
            let waited = self.not_before;
            if let Some(NotBefore { at, .. }) = waited {
                tokio::time::sleep_until(at).await;
                self.not_before = None;
            }
            if let Patience::Until(give_up) = patience
                && !waited.is_some_and(|waited| waited.asked)
            {
                let left = give_up.saturating_duration_since(Instant::now());
                timeout = timeout.min(left.max(Duration::from_millis(1)));
            }
            let started = Instant::now();
            let verdict = self.backend.send(written.clone(), timeout).await;
            let accepted = matches!(verdict, Verdict::Accepted { .. });
            stats.attempt(started.elapsed(), accepted);
            match verdict {
                Verdict::Accepted { rejected, message } => {
                    self.accepted(rejected, &message);
                    return Some(Sent::Taken { rejected });
                }
                Verdict::Refused { why } => {
                    self.backoff = Backoff::new();
                    self.refused(&why);
                    return Some(Sent::Refused);
                }
                Verdict::TooLarge { why } => {
                    self.too_large(&why);
                    return None;
                }
                Verdict::Retry { after, why } => {
                    self.failed(&why);
                    let now = Instant::now();
                    // Never sooner than asked for, and never in a tight loop.
                    let wait = match after {
                        Some(after) => after.max(self.backoff.wait(0.0)),
                        None => self.backoff.wait(fastrand::f64()),
                    };
                    let asked = after.is_some();
                    self.not_before = Some(NotBefore {
                        at: now + wait,
                        asked,
                    });
                    let over = match patience {
                        Patience::Once => true,
                        Patience::Until(give_up) if asked => now >= give_up,
                        Patience::Until(give_up) => now + wait >= give_up,
                        Patience::Forever => false,
                    };
                    if over {
                        return Some(Sent::GivenUp);
                    }
                    stats.retry();
                }
            }
        }
    }

    fn accepted(&mut self, rejected: u64, message: &str) {
        self.backoff = Backoff::new();
        let Self { endpoint, .. } = self;
        if std::mem::replace(&mut self.health, Health::Working) != Health::Working {
            tracing::info!(endpoint, "the endpoint takes spans again");
        }
        if rejected > 0 && !std::mem::replace(&mut self.rejections_said, true) {
            tracing::warn!(
                endpoint,
                rejected,
                message,
                "the endpoint rejected spans; from now on they are only counted"
            );
        } else if rejected > 0 || !message.is_empty() {
            tracing::debug!(
                endpoint,
                rejected,
                message,
                "the endpoint has something to say"
            );
        }
    }

    fn failed(&mut self, why: &str) {
        let Self { endpoint, .. } = self;
        if std::mem::replace(&mut self.health, Health::Failing) == Health::Failing {
            tracing::debug!(endpoint, why, "cannot export spans, still");
        } else {
            tracing::warn!(
                endpoint,
                why,
                "cannot export spans; trying again, what does not fit into the queue or the spool is dropped and counted"
            );
        }
    }

    fn refused(&mut self, why: &str) {
        let Self { endpoint, .. } = self;
        if std::mem::replace(&mut self.health, Health::Refused) == Health::Refused {
            tracing::debug!(endpoint, why, "spans refused, still");
        } else {
            tracing::warn!(
                endpoint,
                why,
                "the endpoint refuses spans; they are dropped and counted as rejected"
            );
        }
    }

    fn too_large(&mut self, why: &str) {
        let Self { endpoint, .. } = self;
        if !std::mem::replace(&mut self.splits_said, true) {
            tracing::info!(
                endpoint,
                why,
                "a request was too large; it is sent in parts, and later ones are made smaller"
            );
        }
    }
}
