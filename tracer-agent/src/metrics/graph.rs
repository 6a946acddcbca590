//! The service graph: which service asked which, how often, how fast, how often in vain.
//!
//! In: spans of both roles. The two ends of an exchange are joined when both were seen on this host:
//! their connections have each other's addresses, the stream (HTTP/2) or the method, target and
//! status (HTTP/1) are the same, and the server's part lies within the client's time. If two would
//! fit, none is taken. Out: one [`Edge`] per pair of services.
//!
//! An end whose other end does not come within [`PATIENCE_NS`] is forgotten, as is the oldest when
//! [`MAX_WAITING`] wait. Not seen: unix sockets (their clients have no name), other hosts, and
//! whatever is behind address translation.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustc_hash::{FxHashMap, FxHasher};

use super::histogram::Histogram;
use super::recorder::lock;
use crate::meta::Process;
use crate::protocol::Endpoint;
use crate::trace::{Span, SpanKind};

/// How long one end waits for the other. They end together; connections that linger take 300 ms.
const PATIENCE_NS: u64 = 3_000_000_000;
/// Ends that wait at a time.
const MAX_WAITING: usize = 8192;
/// Pairs of services; those beyond share one edge that says so.
const MAX_EDGES: usize = 1000;
/// An edge that nothing went over for so long is forgotten.
const KEEP_EDGE_NS: u64 = 900_000_000_000;

/// A client service and a server service.
#[derive(Debug)]
pub struct Edge {
    /// Who asked; `None` on the edge of all pairs beyond the bound.
    pub services: Option<(Box<str>, Box<str>)>,
    /// When it began, wall clock.
    pub start_unix_ns: u64,
    /// Durations as the clients saw them.
    pub client: Histogram,
    /// Durations as the servers saw them.
    pub server: Histogram,
    failed: AtomicU64,
    used_ns: AtomicU64,
}

impl Edge {
    /// Exchanges.
    pub fn requests(&self) -> u64 {
        self.client.counts().count()
    }

    /// Exchanges that failed, by either end.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// What became of the ends of exchanges so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GraphCounts {
    /// Exchanges of which both ends were joined.
    pub paired: u64,
    /// Ends whose other end was not seen.
    pub unpaired: u64,
    /// Ends that fit more than one other.
    pub ambiguous: u64,
}

/// What readers see.
#[derive(Debug, Default)]
pub(super) struct SharedGraph {
    edges: Mutex<Vec<Arc<Edge>>>,
    paired: AtomicU64,
    unpaired: AtomicU64,
    ambiguous: AtomicU64,
}

impl SharedGraph {
    pub(super) fn edges(&self) -> Vec<Arc<Edge>> {
        lock(&self.edges).clone()
    }

    pub(super) fn counts(&self) -> GraphCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GraphCounts {
            paired: load(&self.paired),
            unpaired: load(&self.unpaired),
            ambiguous: load(&self.ambiguous),
        }
    }
}

/// Addresses of a connection: the client's, the server's.
type Pair = (SocketAddr, SocketAddr);

/// One end of an exchange.
#[derive(Debug)]
struct End {
    id: u64,
    kind: SpanKind,
    stream: u32,
    /// Method and target.
    request: u64,
    status: Option<u16>,
    start_ns: u64,
    response_start_ns: Option<u64>,
    end_ns: u64,
    duration_ns: u64,
    failed: bool,
    process: Arc<Process>,
}

/// The ends that wait, and the edges.
#[derive(Debug, Default)]
pub(super) struct Graph {
    waiting: FxHashMap<Pair, Vec<End>>,
    /// In the order in which they came. An item whose end was joined says nothing.
    order: VecDeque<(u64, Pair, u64)>,
    count: usize,
    next: u64,
    edges: FxHashMap<Box<str>, FxHashMap<Box<str>, Arc<Edge>>>,
    edge_count: usize,
    overflow: Option<Arc<Edge>>,
    swept_ns: u64,
}

impl Graph {
    /// Takes one end; counts the exchange if the other is here.
    pub(super) fn observe(
        &mut self,
        span: &Span,
        duration_ns: u64,
        failed: bool,
        shared: &SharedGraph,
    ) {
        let (Endpoint::Ip(local), Endpoint::Ip(remote)) =
            (&span.connection.local, &span.connection.remote)
        else {
            return;
        };
        let pair = match span.kind {
            SpanKind::Client => (*local, *remote),
            SpanKind::Server => (*remote, *local),
        };
        self.next += 1;
        let end = End::new(self.next, span, duration_ns, failed);
        let mut fit = 0;
        let mut found = None;
        let ends = self.waiting.entry(pair).or_default();
        for (position, other) in ends.iter().enumerate() {
            if end.answers(other) {
                fit += 1;
                found = Some(position);
            }
        }
        match (fit, found) {
            (1, Some(position)) => {
                let other = ends.swap_remove(position);
                if ends.is_empty() {
                    self.waiting.remove(&pair);
                }
                self.count -= 1;
                shared.paired.fetch_add(1, Ordering::Relaxed);
                self.join(end, other, span, shared);
            }
            (0, _) => {
                self.order.push_back((span.exchange.end_ns, pair, end.id));
                ends.push(end);
                self.count += 1;
                if self.order.len() > 4 * MAX_WAITING {
                    // Items of joined ends, held up by one in front that still waits.
                    let waiting = &self.waiting;
                    self.order.retain(|(_, pair, id)| {
                        let ends = waiting.get(pair);
                        ends.is_some_and(|ends| ends.iter().any(|end| end.id == *id))
                    });
                }
                while self.count > MAX_WAITING && self.forget_oldest(shared) {}
            }
            // Left to wait in vain, since none of them is certain.
            _ => {
                shared.ambiguous.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Forgets the ends that waited too long, and the edges out of use.
    pub(super) fn expire(&mut self, now_ns: u64, shared: &SharedGraph) {
        while let Some((since_ns, pair, id)) = self.order.front() {
            let gone = !self.is_waiting(pair, *id);
            if !gone && now_ns.saturating_sub(*since_ns) < PATIENCE_NS {
                break;
            }
            self.forget_oldest(shared);
        }
        if now_ns.saturating_sub(self.swept_ns) < KEEP_EDGE_NS / 10 {
            return;
        }
        self.swept_ns = now_ns;
        let is_used = |edge: &Arc<Edge>| {
            now_ns.saturating_sub(edge.used_ns.load(Ordering::Relaxed)) < KEEP_EDGE_NS
        };
        self.edges.retain(|_, servers| {
            servers.retain(|_, edge| is_used(edge));
            !servers.is_empty()
        });
        self.edge_count = self.edges.values().map(FxHashMap::len).sum();
        lock(&shared.edges).retain(|edge| edge.services.is_none() || is_used(edge));
    }

    fn is_waiting(&self, pair: &Pair, id: u64) -> bool {
        let ends = self.waiting.get(pair);
        ends.is_some_and(|ends| ends.iter().any(|end| end.id == id))
    }

    /// Takes the oldest item off; false when there is none.
    fn forget_oldest(&mut self, shared: &SharedGraph) -> bool {
        let Some((_, pair, id)) = self.order.pop_front() else {
            return false;
        };
        if let Some(ends) = self.waiting.get_mut(&pair)
            && let Some(position) = ends.iter().position(|end| end.id == id)
        {
            ends.swap_remove(position);
            if ends.is_empty() {
                self.waiting.remove(&pair);
            }
            self.count -= 1;
            shared.unpaired.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn join(&mut self, one: End, other: End, span: &Span, shared: &SharedGraph) {
        let (client, server) = match one.kind {
            SpanKind::Client => (one, other),
            SpanKind::Server => (other, one),
        };
        let names = (&*client.process.service_name, &*server.process.service_name);
        let edge = self.edge(names, span.start_unix_ns, shared);
        if client.failed || server.failed {
            edge.failed.fetch_add(1, Ordering::Relaxed);
        }
        edge.used_ns.store(client.end_ns, Ordering::Relaxed);
        edge.server.record(server.duration_ns);
        edge.client.record(client.duration_ns);
    }

    fn edge(
        &mut self,
        (client, server): (&str, &str),
        unix_ns: u64,
        shared: &SharedGraph,
    ) -> Arc<Edge> {
        let known = self
            .edges
            .get(client)
            .and_then(|servers| servers.get(server));
        if let Some(edge) = known {
            return Arc::clone(edge);
        }
        let make = |services| {
            let edge = Arc::new(Edge {
                services,
                start_unix_ns: unix_ns,
                client: Histogram::default(),
                server: Histogram::default(),
                failed: AtomicU64::new(0),
                used_ns: AtomicU64::new(0),
            });
            lock(&shared.edges).push(Arc::clone(&edge));
            edge
        };
        if self.edge_count >= MAX_EDGES {
            return Arc::clone(self.overflow.get_or_insert_with(|| make(None)));
        }
        self.edge_count += 1;
        let edge = make(Some((client.into(), server.into())));
        self.edges
            .entry(client.into())
            .or_default()
            .insert(server.into(), Arc::clone(&edge));
        edge
    }
}

impl End {
    fn new(id: u64, span: &Span, duration_ns: u64, failed: bool) -> Self {
        let exchange = &span.exchange;
        let mut hasher = FxHasher::default();
        (&exchange.request.method, &exchange.request.target).hash(&mut hasher);
        End {
            id,
            kind: span.kind,
            stream: exchange.stream,
            request: hasher.finish(),
            status: exchange
                .response
                .as_ref()
                .map(|response| response.status)
                .filter(|status| *status != 0),
            start_ns: exchange.start_ns,
            response_start_ns: exchange.response_start_ns,
            end_ns: exchange.end_ns,
            duration_ns,
            failed,
            process: Arc::clone(&span.process),
        }
    }

    /// True if both are ends of one exchange, as far as one can tell from these two.
    fn answers(&self, other: &End) -> bool {
        let (client, server) = match (self.kind, other.kind) {
            (SpanKind::Client, SpanKind::Server) => (self, other),
            (SpanKind::Server, SpanKind::Client) => (other, self),
            (SpanKind::Client, SpanKind::Client) | (SpanKind::Server, SpanKind::Server) => {
                return false;
            }
        };
        // A header may be known at one end of an HTTP/2 connection only; a stream is enough there.
        let same = client.stream == server.stream
            && (client.stream != 0 || client.request == server.request)
            && client
                .status
                .zip(server.status)
                .is_none_or(|(client, server)| client == server);
        // Written before it was read, answered before the answer was read: calls are stamped with
        // one clock, at entry for writes and at return for reads. The end of the server's last write
        // may be behind the client's last read.
        let answered = server
            .response_start_ns
            .zip(client.response_start_ns)
            .is_none_or(|(server, client)| server <= client);
        same && answered && client.start_ns <= server.start_ns && server.start_ns <= client.end_ns
    }
}
