//! What becomes of an exchange's trace once it is certain: its span gets its ids, and it is put among what
//! is over.

use crate::protocol::{ExchangeId, Role};
use crate::trace::FLAG_SAMPLED;
use crate::trace::span::{Link, Span, SpanId, TraceId};

use super::Assembler;
use super::node::{Parent, Trace};
use super::past::Settled;

/// Steps up a chain of parents in one go; a longer one is followed when more of it is settled.
const MAX_DEPTH: usize = 64;

/// Exchanges from one up to where its trace is known, each with the span above it.
type Chain = Vec<(ExchangeId, Option<SpanId>)>;

impl Assembler {
    /// The span of an exchange that is going on or was, and its trace if that is settled.
    pub(super) fn known(&self, id: &ExchangeId) -> Option<(SpanId, Option<&Trace>)> {
        if let Some(node) = self.nodes.get(id) {
            return Some((node.span_id, node.trace.as_ref()));
        }
        let settled = self.past.get(id)?;
        Some((settled.span_id, Some(&settled.trace)))
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
    pub(super) fn resolve(&mut self, id: ExchangeId, now_ns: u64) -> bool {
        let Some(node) = self.nodes.get(&id) else {
            // Its own exchange is unknown: nothing will be learnt.
            return true;
        };
        if node.trace.is_some() {
            return true;
        }
        // Nearly always there is no parent, or it is settled: no chain has to be made.
        let (above, trace) = match node.parent {
            Parent::Exchange(parent, _) => match self.known(&parent) {
                Some((above, Some(trace))) => (Some(above), Some(trace.clone())),
                Some((_, None)) => return self.resolve_chain(id, now_ns),
                None if now_ns < node.patience_ns => return false,
                // A parent that is gone leaves its child without one.
                None => (None, None),
            },
            // The parent has to be known before it is followed.
            Parent::None | Parent::Context(..) if now_ns < node.patience_ns => return false,
            Parent::None | Parent::Context(..) => (None, None),
        };
        let pinned = node.pin;
        self.give(id, above, trace, pinned);
        true
    }

    fn resolve_chain(&mut self, id: ExchangeId, now_ns: u64) -> bool {
        let mut chain = Chain::new();
        let mut at = id;
        let mut trace = loop {
            let Some(node) = self.nodes.get(&at) else {
                break self.past.get(&at).map(|settled| settled.trace.clone());
            };
            if let Some(trace) = &node.trace {
                break Some(trace.clone());
            }
            let above = match node.parent {
                Parent::Exchange(parent, _) => {
                    self.known(&parent).map(|(span_id, _)| (parent, span_id))
                }
                Parent::None | Parent::Context(..) => None,
            };
            let too_deep = chain.len() >= MAX_DEPTH;
            match above.filter(|(parent, _)| !too_deep && !is_in(&chain, *parent)) {
                Some((parent, span_id)) => {
                    chain.push((at, Some(span_id)));
                    at = parent;
                }
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
        for (id, above) in chain.into_iter().rev() {
            trace = self.give(id, above, trace, pinned.take());
        }
        true
    }

    /// Settles one exchange: its trace is `known`, or begins with it, then with the id that is on the wire
    /// already if one is.
    fn give(
        &mut self,
        id: ExchangeId,
        above: Option<SpanId>,
        known: Option<Trace>,
        pinned: Option<TraceId>,
    ) -> Option<Trace> {
        let node = self.nodes.get(&id)?;
        let (role, sampled) = (node.role, node.sampled);
        let mut trace = known.unwrap_or_else(|| {
            let trace_id = pinned.unwrap_or_else(|| self.new_trace(id, role));
            Trace::begin(trace_id, sampled)
        });
        let node = self.nodes.get_mut(&id)?;
        node.above = above;
        if let Some(pin) = node.pin
            && pin != trace.trace_id
        {
            self.counts.conflicts += 1;
            node.parent = Parent::None;
            node.above = None;
            trace = Trace::begin(pin, sampled);
        }
        node.trace = Some(trace.clone());
        Some(trace)
    }

    /// Gives a span the ids that were settled for its exchange, which is over.
    pub(super) fn complete(&mut self, id: ExchangeId, span: &mut Span, now_ns: u64) {
        let Some(node) = self.nodes.get(&id) else {
            // It began before this, or was forgotten: what it has by itself is all there is.
            self.count(span.link);
            return;
        };
        let Some(trace) = &node.trace else {
            return;
        };
        span.span_id = node.span_id;
        span.trace_id = trace.trace_id;
        span.trace_state = trace.trace_state.as_deref().map(Box::from);
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
        self.put_away(id, now_ns);
    }

    /// An exchange whose span is final goes to what is over, unless its other end is still looked for: that
    /// of a client always, since a server may read late what its client has given up already; that of
    /// a server where it is likely on this host.
    fn put_away(&mut self, id: ExchangeId, now_ns: u64) {
        let Some(node) = self.nodes.get(&id) else {
            return;
        };
        if node.wire.is_some() && (node.role == Role::Client || node.near) {
            self.ended.push_back((now_ns, id));
            return;
        }
        // A server's exchange that is open still finds here what it is below of.
        if let (Role::Client, Some(server)) = (node.role, node.peer) {
            self.inherit(server, id, now_ns);
        }
        let Some(node) = self.nodes.remove(&id) else {
            return;
        };
        if let Some(wire) = node.wire {
            self.unplug(wire, id);
        }
        // Nothing but what came in is the cause of anything.
        if let (Role::Server, Some(trace)) = (node.role, node.trace) {
            let span_id = node.span_id;
            self.past.insert(id, Settled { span_id, trace });
        }
    }

    fn inherit(&mut self, server: ExchangeId, client: ExchangeId, now_ns: u64) {
        let is_below = self.nodes.get(&server).is_some_and(|node| {
            node.trace.is_none()
                && matches!(node.parent, Parent::Exchange(parent, _) if parent == client)
        });
        if is_below {
            self.resolve(server, now_ns);
        }
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
}

fn is_in(chain: &[(ExchangeId, Option<SpanId>)], id: ExchangeId) -> bool {
    chain.iter().any(|(other, _)| *other == id)
}
