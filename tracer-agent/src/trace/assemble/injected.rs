//! Requests that got a header, or a TCP option, from the kernel side: what it says is what their spans have
//! to be.
//!
//! In: the kernel side's word, before the request itself is seen. Out: ids for the request's exchange,
//! and how far the bytes on the wire are ahead of what the process counts. Bounded: what does not come
//! (the write failed) goes with the oldest.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::protocol::{Cause, CauseMethod, ExchangeId};
use crate::trace::span::{SpanId, TraceId};

/// Context that goes out with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected {
    /// The request's exchange.
    pub exchange: ExchangeId,
    /// Its trace on the wire.
    pub trace_id: TraceId,
    /// Its span on the wire.
    pub span_id: SpanId,
    /// Flags on the wire.
    pub flags: u8,
    /// What it is sent for.
    pub cause: Option<Cause>,
    /// Bytes that were added to the connection before this request.
    pub shift: u32,
    /// Bytes that were added to it: 0 for a TCP option.
    pub bytes: u32,
}

impl From<&tracer_common::abi::InjectedEvent> for Injected {
    fn from(event: &tracer_common::abi::InjectedEvent) -> Self {
        let mut trace = [0; 16];
        let (high, low) = trace.split_at_mut(8);
        high.copy_from_slice(&event.trace[0].to_be_bytes());
        low.copy_from_slice(&event.trace[1].to_be_bytes());
        Injected {
            exchange: ExchangeId {
                connection: event.connection,
                key: event.position,
            },
            trace_id: TraceId(trace),
            span_id: SpanId(event.span.to_be_bytes()),
            flags: event.flags as u8,
            cause: CauseMethod::from_abi(event.cause_method).map(|method| Cause {
                exchange: ExchangeId {
                    connection: event.cause_connection,
                    key: event.cause_key,
                },
                method,
            }),
            shift: event.shift,
            bytes: event.header.value,
        }
    }
}

/// Headers of one connection that are remembered; requests come in order.
const REMEMBERED: usize = 16;

/// Those whose requests were not seen yet, and where bytes were added.
#[derive(Debug)]
pub struct Injections {
    limit: usize,
    pending: FxHashMap<ExchangeId, Injected>,
    order: VecDeque<ExchangeId>,
    /// By connection: positions of requests with a header, and the bytes added up to their ends.
    added: FxHashMap<u64, VecDeque<(u64, u32)>>,
    connections: VecDeque<u64>,
}

impl Injections {
    /// Remembers so many requests, and so many connections.
    pub fn new(limit: usize) -> Self {
        Injections {
            limit,
            pending: FxHashMap::default(),
            order: VecDeque::new(),
            added: FxHashMap::default(),
            connections: VecDeque::new(),
        }
    }

    /// A request that is about to be seen.
    pub fn insert(&mut self, injected: Injected) {
        let ExchangeId { connection, key } = injected.exchange;
        if self.pending.insert(injected.exchange, injected).is_none() {
            self.order.push_back(injected.exchange);
        }
        while self.order.len() > self.limit {
            if let Some(oldest) = self.order.pop_front() {
                self.pending.remove(&oldest);
            }
        }
        let ahead = injected.shift.wrapping_add(injected.bytes);
        if ahead == 0 {
            return;
        }
        let connections = &mut self.connections;
        let added = self.added.entry(connection).or_insert_with(|| {
            connections.push_back(connection);
            VecDeque::with_capacity(2)
        });
        added.push_back((key, ahead));
        if added.len() > REMEMBERED {
            added.pop_front();
        }
        while self.connections.len() > self.limit {
            if let Some(oldest) = self.connections.pop_front() {
                self.added.remove(&oldest);
            }
        }
    }

    /// The header of a request that is seen now.
    pub fn take(&mut self, exchange: ExchangeId) -> Option<Injected> {
        if self.pending.is_empty() {
            return None;
        }
        self.pending.remove(&exchange)
    }

    /// Requests and connections that are remembered.
    #[cfg(test)]
    pub fn len(&self) -> (usize, usize) {
        (self.pending.len().max(self.order.len()), self.added.len())
    }

    /// Bytes that were added before this position of what a process wrote.
    pub fn shift(&self, connection: u64, position: u64) -> u32 {
        if self.added.is_empty() {
            return 0;
        }
        let Some(added) = self.added.get(&connection) else {
            return 0;
        };
        let before = added.iter().rev().find(|(at, _)| *at < position);
        before.map_or(0, |(_, shift)| *shift)
    }
}
