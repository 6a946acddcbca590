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
mod past;
mod settle;
mod wire;

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::protocol::{Connection, ExchangeId, Opened, Role};

use super::context::{Propagators, extract};
use super::ids::Ids;
use super::span::{Link, Span, SpanId};
use arrived::Arrivals;
pub use arrived::Arrived;
use caused::Causes;
pub use injected::Injected;
use injected::Injections;
use node::{Node, Parent, Trace};
use past::Past;
use wire::{WireKey, is_near};

/// How long a server's request waits for the client's call that wrote it to return, and a request
/// for the exchange that it is sent for.
const PATIENCE_NS: u64 = 150_000_000;
/// How long an ended exchange is remembered for what was called for it.
const MEMORY_NS: u64 = 10_000_000_000;
/// Spans that wait are looked at this often, and when ends were joined.
const LOOK_NS: u64 = 10_000_000;
/// So many exchanges that are gone may stay in the queue of those begun before they are taken out.
const GONE: usize = 64;

/// Bounds of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Exchanges that have begun; and at most as many that are over are remembered.
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
    /// What is going on: few enough to stay in the CPU's caches.
    nodes: FxHashMap<ExchangeId, Node>,
    /// What is over, for what is still called for it.
    past: Past,
    /// In the order in which they began; those that are gone are skipped.
    begun: VecDeque<ExchangeId>,
    /// Those that are over but whose other end may still be told of, and since when.
    ended: VecDeque<(u64, ExchangeId)>,
    /// Ends that wait for the other one.
    wires: FxHashMap<WireKey, (Role, ExchangeId)>,
    waiting: VecDeque<(ExchangeId, Box<Span>)>,
    /// When those that wait were looked at last.
    looked_ns: u64,
    /// Ends were joined since.
    stirred: bool,
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
            // 7/8 of a power of two is what a table of that many places takes.
            past: Past::new(limits.exchanges - limits.exchanges / 8, MEMORY_NS),
            begun: VecDeque::new(),
            ended: VecDeque::new(),
            wires: FxHashMap::default(),
            waiting: VecDeque::new(),
            looked_ns: 0,
            stirred: false,
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
        node.near = is_near(connection);
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
            node.trace = Some(Trace::from(context));
        } else if let Some(arrived) = wire
            .filter(|_| opened.role == Role::Server)
            .and_then(|wire| self.arrivals.take(&wire))
        {
            node.parent = Parent::Context(Some(arrived.span_id), Link::TcpOption);
            node.trace = Some(Trace {
                flags: arrived.flags,
                ..Trace::begin(arrived.trace_id, Some(arrived.is_sampled()))
            });
        } else if let Some(cause) = opened.cause.or(told) {
            node.parent = Parent::Exchange(cause.exchange, Link::Cause(cause.method));
            node.patience_ns = now_ns.saturating_add(PATIENCE_NS);
        } else if opened.role == Role::Server && node.near && wire.is_some() {
            node.patience_ns = now_ns.saturating_add(PATIENCE_NS);
        }
        node.wire = wire;
        self.begun.push_back(id);
        if let Some(Node {
            wire: Some(wire), ..
        }) = self.nodes.insert(id, node)
        {
            self.unplug(wire, id);
        }
        if let Some(wire) = wire {
            self.plug(wire, id, opened.role);
        }
        self.make_room();
    }

    /// The id that the span of an exchange has or will have.
    pub fn span_id(&self, id: ExchangeId) -> Option<SpanId> {
        self.known(&id).map(|(span_id, _)| span_id)
    }

    /// An exchange ended: its span, with the ids it has by itself. What is final comes out at once
    /// through `out`, what is not with [`Assembler::poll`].
    pub fn finished(&mut self, id: ExchangeId, mut span: Span, now_ns: u64, out: &mut Vec<Span>) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.ended = true;
        }
        if self.resolve(id, now_ns) {
            self.complete(id, &mut span, now_ns);
            out.push(span);
            return;
        }
        self.waiting.push_back((id, Box::new(span)));
        if self.waiting.len() > self.limits.waiting
            && let Some((id, mut span)) = self.waiting.pop_front()
        {
            self.counts.hurried += 1;
            self.resolve(id, u64::MAX);
            self.complete(id, &mut span, now_ns);
            out.push(*span);
        }
    }

    /// Hands out the spans that waited and are final now. `now_ns` of `u64::MAX`: nothing more will
    /// become known.
    pub fn poll(&mut self, now_ns: u64, out: &mut Vec<Span>) {
        if self.stirred || now_ns >= self.looked_ns.saturating_add(LOOK_NS) {
            self.stirred = false;
            self.looked_ns = now_ns;
            self.look(now_ns, out);
        }
        while let Some(&(ended_ns, id)) = self.ended.front() {
            if ended_ns.saturating_add(MEMORY_NS) > now_ns {
                break;
            }
            self.ended.pop_front();
            self.forget(id);
        }
        self.past.tick(now_ns);
    }

    fn look(&mut self, now_ns: u64, out: &mut Vec<Span>) {
        for _ in 0..self.waiting.len() {
            let Some((id, mut span)) = self.waiting.pop_front() else {
                break;
            };
            if self.resolve(id, now_ns) {
                self.complete(id, &mut span, now_ns);
                out.push(*span);
            } else {
                self.waiting.push_back((id, span));
            }
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
        if let Some(cause) = cause
            && let Some((above, known)) = self.known(&cause.exchange)
        {
            match known {
                Some(known) if known.trace_id == trace_id => trace = known.clone(),
                // It was settled otherwise before: the two stay apart.
                Some(_) => {
                    self.counts.conflicts += 1;
                    node.trace = Some(trace);
                    return;
                }
                None => {
                    if let Some(above) = self.nodes.get_mut(&cause.exchange) {
                        above.pin = Some(trace_id);
                    }
                }
            }
            node.parent = Parent::Exchange(cause.exchange, Link::Cause(cause.method));
            node.above = Some(above);
        }
        node.trace = Some(trace);
    }

    /// One end of an exchange on this host; the other may be known already.
    fn plug(&mut self, wire: WireKey, id: ExchangeId, role: Role) {
        let other = match self.wires.entry(wire) {
            Entry::Occupied(found) if found.get().0 != role => found.remove().1,
            Entry::Occupied(mut found) => {
                found.insert((role, id));
                return;
            }
            Entry::Vacant(place) => {
                place.insert((role, id));
                return;
            }
        };
        let (client, server) = match role {
            Role::Server => (other, id),
            Role::Client => (id, other),
        };
        // Both found what they looked for.
        for (end, peer) in [(client, server), (server, client)] {
            if let Some(node) = self.nodes.get_mut(&end) {
                node.wire = None;
                node.peer = Some(peer);
            }
        }
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
        self.stirred = true;
    }

    fn unplug(&mut self, wire: WireKey, id: ExchangeId) {
        if let Entry::Occupied(found) = self.wires.entry(wire)
            && found.get().1 == id
        {
            found.remove();
        }
    }

    fn forget(&mut self, id: ExchangeId) {
        if let Some(Node {
            wire: Some(wire), ..
        }) = self.nodes.remove(&id)
        {
            self.unplug(wire, id);
        }
    }

    /// Forgets ended exchanges, the oldest first, then begun ones.
    fn make_room(&mut self) {
        while self.nodes.len() > self.limits.exchanges {
            if let Some((_, id)) = self.ended.pop_front() {
                self.forget(id);
            } else if let Some(id) = self.begun.pop_front() {
                let open = self.nodes.get(&id).is_some_and(|node| !node.ended);
                self.counts.forgotten += u64::from(open);
                self.forget(id);
            } else {
                return;
            }
        }
        if self.begun.len() > self.nodes.len().saturating_mul(2).max(GONE) {
            let nodes = &self.nodes;
            self.begun.retain(|id| nodes.contains_key(id));
        }
    }
}

#[cfg(test)]
mod tests;
