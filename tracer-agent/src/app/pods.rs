//! Spans of containers that are being looked up wait here, and peers get their names.
//!
//! In: spans with final ids. Out: the same spans, with their pod as far as it became known. Bounded in
//! time (`kubernetes.wait_ms`, from the first span of a container) and in number; nothing is dropped:
//! a span that waited in vain goes on as it came. What waits is pending in the ledger's exchanges.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::meta::ProcessTable;
use crate::meta::kubernetes::{Peer, Store};
use crate::meta::table::Settled;
use crate::protocol::Endpoint;
use crate::trace::{Span, SpanKind};

/// Spans that wait at most.
const MAX_WAITING: usize = 8192;
/// Those that wait are looked at again this often.
const AGAIN_NS: u64 = 50_000_000;

/// See the module's text.
#[derive(Debug)]
pub struct PodStage {
    store: Arc<Store>,
    peers: bool,
    waiting: VecDeque<Span>,
    looked_ns: u64,
    /// Let go before their time, because too many waited.
    hurried: u64,
}

impl PodStage {
    /// Names peers too if `peers`.
    pub fn new(store: Arc<Store>, peers: bool) -> Self {
        PodStage {
            store,
            peers,
            waiting: VecDeque::new(),
            looked_ns: 0,
            hurried: 0,
        }
    }

    /// Spans that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Spans that were let go early.
    pub fn hurried(&self) -> u64 {
        self.hurried
    }

    /// What is known of the cluster.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Takes new spans and returns those that need not wait, also of those that came before.
    /// `now_ns` of `u64::MAX`: all of them.
    pub fn pass(
        &mut self,
        mut spans: Vec<Span>,
        processes: &mut ProcessTable,
        now_ns: u64,
    ) -> Vec<Span> {
        if self.peers {
            for span in &mut spans {
                span.peer = self.peer(span);
            }
        }
        let mut ready = Vec::with_capacity(spans.len());
        // Earlier ones first.
        if !self.waiting.is_empty() && now_ns.saturating_sub(self.looked_ns) >= AGAIN_NS {
            self.looked_ns = now_ns;
            for span in std::mem::take(&mut self.waiting) {
                self.settle(span, processes, now_ns, &mut ready);
            }
        }
        for span in spans {
            self.settle(span, processes, now_ns, &mut ready);
        }
        while self.waiting.len() > MAX_WAITING
            && let Some(span) = self.waiting.pop_front()
        {
            self.hurried += 1;
            ready.push(span);
        }
        ready
    }

    fn settle(
        &mut self,
        mut span: Span,
        processes: &mut ProcessTable,
        now_ns: u64,
        ready: &mut Vec<Span>,
    ) {
        match processes.settle(&span.process, now_ns) {
            Settled::Same => {}
            Settled::Renewed(process) => span.process = process,
            Settled::Waits => {
                self.waiting.push_back(span);
                return;
            }
        }
        ready.push(span);
    }

    fn peer(&self, span: &Span) -> Option<Arc<Peer>> {
        let Endpoint::Ip(address) = span.connection.remote else {
            return None;
        };
        match span.kind {
            SpanKind::Client => self.store.server(address),
            SpanKind::Server => self.store.client(address.ip()),
        }
    }
}
