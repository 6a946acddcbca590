//! What is pending: exchanges that have begun and not ended, made on request for `/ledger/open`.
//!
//! The capture thread owns them and may be busy, so it is asked, and answers when it gets to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Exchanges that are shown; there may be more.
pub const MOST_OPEN: usize = 1000;
/// How long the page waits for the capture thread.
const PATIENCE: Duration = Duration::from_secs(2);

/// An exchange that has begun and not ended.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct OpenExchange {
    /// The service at this end.
    pub service: Box<str>,
    /// Its process; 0 when not known.
    pub pid: u32,
    /// `server` or `client`; `None` when not known.
    pub role: Option<&'static str>,
    /// Method; empty when not known.
    pub method: Box<str>,
    /// Path, without the query.
    pub path: Box<str>,
    /// The other end.
    pub peer: Box<str>,
    /// Time since it began, seconds.
    pub seconds: f64,
    /// The head of its response was seen.
    pub answered: bool,
}

/// The question and its answer.
#[derive(Debug, Default)]
pub struct OpenExchanges {
    asked: AtomicBool,
    answer: Mutex<Vec<OpenExchange>>,
    answered: Notify,
}

impl OpenExchanges {
    /// Asks, and waits a moment for the answer.
    pub async fn ask(&self) -> Option<Vec<OpenExchange>> {
        let answered = self.answered.notified();
        tokio::pin!(answered);
        // From here on no answer is missed.
        answered.as_mut().enable();
        self.asked.store(true, Ordering::Release);
        tokio::time::timeout(PATIENCE, answered).await.ok()?;
        Some(
            self.answer
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        )
    }

    /// The other side: answers if somebody has asked.
    pub fn answer(&self, list: impl FnOnce() -> Vec<OpenExchange>) {
        if self.asked.swap(false, Ordering::AcqRel) {
            *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = list();
            self.answered.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn who_asks_is_answered_and_nobody_else_makes_work() {
        let open = Arc::new(OpenExchanges::default());
        open.answer(|| unreachable!("nobody asked"));
        let asking = tokio::spawn({
            let open = Arc::clone(&open);
            async move { open.ask().await }
        });
        while !asking.is_finished() {
            open.answer(Vec::new);
            tokio::task::yield_now().await;
        }
        assert_eq!(asking.await.expect("asked"), Some(Vec::new()));
    }

    #[tokio::test]
    async fn a_busy_thread_is_not_waited_for_forever() {
        assert_eq!(OpenExchanges::default().ask().await, None);
    }
}
