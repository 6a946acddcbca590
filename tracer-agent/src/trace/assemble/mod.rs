//! Joins the spans of this host: every exchange gets its ids when its request is first seen, and its
//! trace and parent as soon as they are certain.
//!
//! In: exchanges that begin ([`Opened`], with the context they carry and the cause the kernel side
//! found) and the spans of those that ended. Out: the same spans with their final ids. Pure: times
//! are arguments, random numbers come from a generator that the caller seeds.
//!
//! A parent comes, in this order, from
//! 1. the context that the request carries, then the one that came in a TCP option,
//! 2. a client span: the server span that the kernel side names as its cause,
//! 3. a server span: the client span at the other end of the same connection on this host, told by
//!    what only the two ends share ([`wire`]).
//!
//! What may still become known is waited for, bounded in time and number: a server's request is often
//! seen before the client's call that wrote it has returned. With nothing to wait for, spans pass at
//! once. It cannot see calls between hosts without context in the request.

mod arrived;
mod caused;
mod injected;
mod node;
mod wire;

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::protocol::{Connection, ExchangeId, Opened, Role};

use super::FLAG_SAMPLED;
use super::context::{Propagators, extract};
use super::ids::Ids;
use super::span::{Link, Span, SpanId, TraceId};
use arrived::Arrivals;
pub use arrived::Arrived;
use caused::Causes;
pub use injected::Injected;
use injected::Injections;
use node::{Node, Parent, Trace};
use wire::{Ends, WireKey, is_near};

/// How long a server's request waits for the client's call that wrote it to return, and a request
/// for the exchange that it is sent for.
const PATIENCE_NS: u64 = 150_000_000;
/// How long an ended exchange is remembered for what was called for it.
const MEMORY_NS: u64 = 10_000_000_000;
/// Steps up a chain of parents in one go; a longer one is followed when more of it is settled.
const MAX_DEPTH: usize = 64;

/// Bounds of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Exchanges remembered, begun and ended ones together.
    pub exchanges: usize,
    /// Spans that wait for what their trace is.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            exchanges: 65_536,
            waiting: 16_384,
        }
    }
}

/// What was joined, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinCounts {
    /// Spans by how their parent was found; [`Link::ALL`] is the order.
    pub parents: [u64; Link::ALL.len()],
    /// Spans that begin a trace.
    pub roots: u64,
    /// Spans that were let go before their trace was certain, because too many waited.
    pub hurried: u64,
    /// Exchanges forgotten before they ended, because there were too many.
    pub forgotten: u64,
    /// Ends of one connection that were found when one of the spans was gone already.
    pub late: u64,
    /// Spans whose trace was on the wire already when it turned out to be another one's part.
    pub conflicts: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Assembler {
    limits: Limits,
    propagators: Propagators,
    ids: Ids,
    nodes: FxHashMap<ExchangeId, Node>,
    /// In the order in which they began; those that are gone are skipped.
    begun: VecDeque<ExchangeId>,
    /// When they ended.
    ended: VecDeque<(u64, ExchangeId)>,
    wires: FxHashMap<WireKey, Ends>,
    waiting: VecDeque<(u64, ExchangeId, Span)>,
    injections: Injections,
    causes: Causes,
    arrivals: Arrivals,
    /// What the kernel side makes ids from, where it does.
    secret: Option<[u64; 2]>,
    counts: JoinCounts,
}

impl Assembler {
    /// Reads the formats of `propagators`; draws ids from `rng`.
    pub fn new(limits: Limits, propagators: Propagators, rng: fastrand::Rng) -> Self {
        Assembler {
            limits,
            propagators,
            ids: Ids::new(rng),
            nodes: FxHashMap::default(),
            begun: VecDeque::new(),
            ended: VecDeque::new(),
            wires: FxHashMap::default(),
            waiting: VecDeque::new(),
            injections: Injections::new(limits.waiting),
            causes: Causes::new(limits.waiting),
            arrivals: Arrivals::new(limits.waiting),
            secret: None,
            counts: JoinCounts::default(),
        }
    }

    /// Traces that begin with a request to a server get the ids that the kernel side would write into
    /// what is sent for it.
    pub fn derive_ids(&mut self, secret: [u64; 2]) {
        self.secret = Some(secret);
    }

    /// A request is about to be read that came with this context in a TCP option.
    pub fn arrived(&mut self, arrived: Arrived) {
        self.arrivals.insert(arrived);
    }

    /// A stream of HTTP/2 is about to be seen, which is begun for an exchange.
    pub fn caused(&mut self, event: &tracer_common::abi::CausedEvent) {
        self.causes.insert(event);
    }

    /// The kernel side is about to send a request's context. Its exchange, when it opens, has these
    /// ids; what it is sent for is in the same trace.
    pub fn injected(&mut self, injected: Injected) {
        self.injections.insert(injected);
    }

    /// What was joined so far.
    pub fn counts(&self) -> &JoinCounts {
        &self.counts
    }

    /// Spans that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// An exchange has begun.
    pub fn opened(&mut self, opened: Opened, connection: &Arc<Connection>, now_ns: u64) {
        let id = ExchangeId {
            connection: connection.id,
            key: opened.key,
        };
        let extraction = extract(&opened.context, &self.propagators);
        let sampled = extraction.decision.map(|(_, sampled)| sampled);
        let mut node = Node::new(&opened, self.ids.span_id(), now_ns, sampled);
        // What the process itself sends in the request goes before what is sent beside it.
        let injected = self
            .injections
            .take(id)
            .filter(|injected| injected.bytes > 0 || extraction.context.is_none());
        let shift = match (&injected, opened.role, opened.position) {
            (Some(injected), ..) => injected.shift,
            (None, Role::Client, Some(position)) => self.injections.shift(id.connection, position),
            _ => 0,
        };
        let wire = WireKey::new(&opened, connection, shift);
        let told = self.causes.take(id);
        if let Some(injected) = injected {
            self.adopt(&mut node, injected);
        } else if let Some((_, context)) = extraction.context {
            node.parent = Parent::Context(context.parent, Link::Context);
            node.trace = Some(Arc::new(Trace::from(context)));
        } else if let Some(arrived) = wire
            .filter(|_| opened.role == Role::Server)
            .and_then(|wire| self.arrivals.take(&wire))
        {
            node.parent = Parent::Context(Some(arrived.span_id), Link::TcpOption);
            node.trace = Some(Arc::new(Trace {
                flags: arrived.flags,
                ..Trace::begin(arrived.trace_id, Some(arrived.is_sampled()))
            }));
        } else if let Some(cause) = opened.cause.or(told) {
            node.parent = Parent::Exchange(cause.exchange, Link::Cause(cause.method));
            node.patience_ns = now_ns.saturating_add(PATIENCE_NS);
        } else if opened.role == Role::Server && wire.is_some() && is_near(connection) {
            node.patience_ns = now_ns.saturating_add(PATIENCE_NS);
        }
        node.wire = wire;
        self.begun.push_back(id);
        if let Some(old) = self.nodes.insert(id, node) {
            self.unplug(&old, id);
        }
        if let Some(wire) = wire {
            self.plug(wire, id, opened.role);
        }
        self.make_room();
    }

    /// The id that the span of an exchange has or will have.
    pub fn span_id(&self, id: ExchangeId) -> Option<SpanId> {
        self.nodes.get(&id).map(|node| node.span_id)
    }

    /// An exchange ended: its span, with the ids it has by itself. What is final comes out at once
    /// through `out`, what is not with [`Assembler::poll`].
    pub fn finished(&mut self, id: ExchangeId, span: Span, now_ns: u64, out: &mut Vec<Span>) {
        if let Some(node) = self.nodes.get_mut(&id)
            && node.ended_ns.replace(now_ns).is_none()
        {
            self.ended.push_back((now_ns, id));
        }
        if self.resolve(id, now_ns) {
            let span = self.complete(id, span);
            out.push(span);
            return;
        }
        self.waiting.push_back((now_ns, id, span));
        if self.waiting.len() > self.limits.waiting
            && let Some((_, id, span)) = self.waiting.pop_front()
        {
            self.counts.hurried += 1;
            self.resolve(id, u64::MAX);
            let span = self.complete(id, span);
            out.push(span);
        }
    }

    /// Hands out the spans that waited and are final now. `now_ns` of `u64::MAX`: nothing more will
    /// become known.
    pub fn poll(&mut self, now_ns: u64, out: &mut Vec<Span>) {
        for _ in 0..self.waiting.len() {
            let Some((since_ns, id, span)) = self.waiting.pop_front() else {
                break;
            };
            if self.resolve(id, now_ns) {
                let span = self.complete(id, span);
                out.push(span);
            } else {
                self.waiting.push_back((since_ns, id, span));
            }
        }
        while let Some(&(ended_ns, id)) = self.ended.front() {
            if ended_ns.saturating_add(MEMORY_NS) > now_ns {
                break;
            }
            self.ended.pop_front();
            self.forget(id);
        }
        while self
            .begun
            .front()
            .is_some_and(|id| !self.nodes.contains_key(id))
        {
            self.begun.pop_front();
        }
    }

    /// Gives a request the ids that went out with it.
    fn adopt(&mut self, node: &mut Node, injected: Injected) {
        let Injected {
            trace_id,
            span_id,
            flags,
            cause,
            ..
        } = injected;
        node.span_id = span_id;
        let mut trace = Trace::begin(trace_id, None);
        trace.flags = flags;
        let mut trace = Arc::new(trace);
        if let Some(cause) = cause
            && let Some(above) = self.nodes.get_mut(&cause.exchange)
        {
            match &above.trace {
                Some(known) if known.trace_id == trace_id => trace = Arc::clone(known),
                // It was settled otherwise before: the two stay apart.
                Some(_) => {
                    self.counts.conflicts += 1;
                    node.trace = Some(trace);
                    return;
                }
                None => above.pin = Some(trace_id),
            }
            node.parent = Parent::Exchange(cause.exchange, Link::Cause(cause.method));
            node.above = Some(above.span_id);
        }
        node.trace = Some(trace);
    }

    /// The id of a trace that begins with this exchange.
    fn new_trace(&mut self, id: ExchangeId, role: Role) -> TraceId {
        use tracer_common::ids::{derive, purpose};
        let Some(secret) = self.secret.filter(|_| role == Role::Server) else {
            return self.ids.trace_id();
        };
        let half = |purpose| derive(secret, id.connection, id.key, purpose).to_be_bytes();
        let mut bytes = [0; 16];
        let (high, low) = bytes.split_at_mut(8);
        high.copy_from_slice(&half(purpose::TRACE_HIGH));
        low.copy_from_slice(&half(purpose::TRACE_LOW));
        TraceId(bytes)
    }

    /// Makes the trace of an exchange known, if it is certain. False while it is not.
    fn resolve(&mut self, id: ExchangeId, now_ns: u64) -> bool {
        let mut chain: Vec<(ExchangeId, Option<SpanId>)> = Vec::new();
        let mut at = id;
        let trace = loop {
            let Some(node) = self.nodes.get(&at) else {
                // Its own exchange is unknown: nothing will be learnt. A parent that is gone leaves
                // its child without one.
                break None;
            };
            if let Some(trace) = &node.trace {
                break Some(Arc::clone(trace));
            }
            let above = match node.parent {
                Parent::Exchange(parent, _) => self.nodes.get(&parent).map(|node| (parent, node)),
                Parent::None | Parent::Context(..) => None,
            };
            let too_deep = chain.len() >= MAX_DEPTH;
            match above.filter(|(parent, _)| !too_deep && !is_in(&chain, *parent)) {
                Some((parent, above)) => {
                    chain.push((at, Some(above.span_id)));
                    at = parent;
                }
                // The parent has to be known before it is followed.
                None if now_ns < node.patience_ns => return false,
                None => {
                    chain.push((at, None));
                    break None;
                }
            }
        };
        // On the wire already, further down: then it is that of all above it.
        let mut pinned = chain
            .iter()
            .find_map(|(id, _)| self.nodes.get(id).and_then(|node| node.pin));
        // From the top down: the first one without a parent begins the trace.
        let mut trace = trace;
        for (id, above) in chain.into_iter().rev() {
            let Some(role) = self.nodes.get(&id).map(|node| node.role) else {
                continue;
            };
            let fresh = match (&trace, pinned.take()) {
                (Some(_), _) => None,
                (None, Some(pinned)) => Some(pinned),
                (None, None) => Some(self.new_trace(id, role)),
            };
            let Some(node) = self.nodes.get_mut(&id) else {
                continue;
            };
            node.above = above;
            let mut known = match (trace.take(), fresh) {
                (Some(known), _) => known,
                (None, Some(fresh)) => Arc::new(Trace::begin(fresh, node.sampled)),
                (None, None) => continue,
            };
            if let Some(pin) = node.pin
                && pin != known.trace_id
            {
                self.counts.conflicts += 1;
                node.parent = Parent::None;
                node.above = None;
                known = Arc::new(Trace::begin(pin, node.sampled));
            }
            node.trace = Some(Arc::clone(&known));
            trace = Some(known);
        }
        true
    }

    /// Gives a span the ids that were settled for its exchange.
    fn complete(&mut self, id: ExchangeId, mut span: Span) -> Span {
        let Some(node) = self.nodes.get(&id) else {
            // It began before this, or was forgotten: what it has by itself is all there is.
            self.count(span.link);
            return span;
        };
        let Some(trace) = &node.trace else {
            return span;
        };
        span.span_id = node.span_id;
        span.trace_id = trace.trace_id;
        span.trace_state.clone_from(&trace.trace_state);
        let sampled = if trace.sampled.unwrap_or(true) {
            FLAG_SAMPLED
        } else {
            0
        };
        span.flags = trace.flags & !FLAG_SAMPLED | sampled;
        let server = node.role == Role::Server;
        (span.parent, span.link) = match node.parent {
            Parent::Context(parent, link) => (parent, parent.map(|_| link)),
            Parent::Exchange(_, link) => (node.above, node.above.map(|_| link)),
            Parent::None => (None, None),
        };
        span.parent_is_remote = span.parent.is_some() && server;
        self.count(span.link);
        span
    }

    fn count(&mut self, link: Option<Link>) {
        let Some(link) = link else {
            self.counts.roots += 1;
            return;
        };
        let place = Link::ALL.iter().position(|other| *other == link);
        if let Some(count) = place.and_then(|place| self.counts.parents.get_mut(place)) {
            *count += 1;
        }
    }

    /// One end of an exchange on this host; the other may be known already.
    fn plug(&mut self, wire: WireKey, id: ExchangeId, role: Role) {
        let ends = self.wires.entry(wire).or_default();
        match role {
            Role::Server => ends.server = Some(id),
            Role::Client => ends.client = Some(id),
        }
        let (Some(client), Some(server)) = (ends.client, ends.server) else {
            return;
        };
        let Some(sent_ns) = self.nodes.get(&client).map(|node| node.start_ns) else {
            return;
        };
        let Some(node) = self.nodes.get_mut(&server) else {
            return;
        };
        // A request cannot have been read before it was written.
        if node.start_ns < sent_ns || !matches!(node.parent, Parent::None) {
            return;
        }
        if node.trace.is_some() {
            self.counts.late += 1;
            return;
        }
        node.parent = Parent::Exchange(client, Link::LocalConnection);
    }

    fn unplug(&mut self, node: &Node, id: ExchangeId) {
        let Some(wire) = node.wire else {
            return;
        };
        if let Some(ends) = self.wires.get_mut(&wire) {
            ends.remove(id);
            if ends.is_empty() {
                self.wires.remove(&wire);
            }
        }
    }

    fn forget(&mut self, id: ExchangeId) {
        if let Some(node) = self.nodes.remove(&id) {
            self.unplug(&node, id);
        }
    }

    /// Forgets ended exchanges, the oldest first, then begun ones.
    fn make_room(&mut self) {
        while self.nodes.len() > self.limits.exchanges {
            if let Some((_, id)) = self.ended.pop_front() {
                self.forget(id);
            } else if let Some(id) = self.begun.pop_front() {
                self.counts.forgotten += u64::from(self.nodes.contains_key(&id));
                self.forget(id);
            } else {
                return;
            }
        }
        // Old ones that never end would keep the queue from being trimmed.
        while self.begun.len() > self.limits.exchanges.saturating_mul(2) {
            if let Some(id) = self.begun.pop_front()
                && self
                    .nodes
                    .get(&id)
                    .is_some_and(|node| node.ended_ns.is_none())
            {
                self.begun.push_back(id);
            }
        }
    }
}

fn is_in(chain: &[(ExchangeId, Option<SpanId>)], id: ExchangeId) -> bool {
    chain.iter().any(|(other, _)| *other == id)
}

#[cfg(test)]
mod tests;
