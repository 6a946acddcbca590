//! Context that came in TCP options, until the requests that it belongs to are seen.
//!
//! In: the kernel side's word, before the data of the segment is read. Out: the context of a server's
//! exchange, told by what only the two ends and the option share: addresses, and which request of the
//! connection. Bounded: what no request is seen for (another protocol, a process that is not traced) goes
//! with the oldest.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustc_hash::FxHashMap;
use tracer_common::abi::CarriedEvent;
use tracer_common::option::flag;

use super::wire::WireKey;
use crate::trace::FLAG_SAMPLED;
use crate::trace::span::{SpanId, TraceId};

const AF_INET: u16 = 2;

/// A request's context as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Which request.
    pub place: Place,
    /// Its trace.
    pub trace_id: TraceId,
    /// The client's span.
    pub span_id: SpanId,
    /// Flags of `traceparent`.
    pub flags: u8,
}

/// A request, as both ends of its connection know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The client's address.
    pub client: SocketAddr,
    /// The server's address.
    pub server: SocketAddr,
    /// `tracer_common::option::Carried::place`.
    pub place: u32,
    /// Of HTTP/2.
    pub is_stream: bool,
}

impl Place {
    /// That of an exchange; `None` for one that did not come over TCP.
    pub fn of(wire: &WireKey) -> Option<Self> {
        let &WireKey::Tcp {
            client,
            server,
            sequence,
            stream,
        } = wire
        else {
            return None;
        };
        Some(Place {
            client,
            server,
            // Counted modulo 2^32.
            place: sequence.wrapping_add(stream.unwrap_or(0) as u32),
            is_stream: stream.is_some(),
        })
    }
}

impl Arrived {
    /// The decision that came with it.
    pub fn is_sampled(&self) -> bool {
        self.flags & FLAG_SAMPLED != 0
    }
}

impl From<&CarriedEvent> for Arrived {
    fn from(event: &CarriedEvent) -> Self {
        let mut trace = [0; 16];
        let (high, low) = trace.split_at_mut(8);
        high.copy_from_slice(&event.trace[0].to_be_bytes());
        low.copy_from_slice(&event.trace[1].to_be_bytes());
        let ip = |bytes: &[u8; 16]| {
            if event.family == AF_INET {
                IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
            } else {
                Ipv6Addr::from(*bytes).to_canonical()
            }
        };
        Arrived {
            place: Place {
                client: SocketAddr::new(ip(&event.remote), event.remote_port),
                server: SocketAddr::new(ip(&event.local), event.local_port),
                place: event.place,
                is_stream: event.flags & flag::STREAM != 0,
            },
            trace_id: TraceId(trace),
            span_id: SpanId(event.span.to_be_bytes()),
            flags: (event.flags & flag::TRACEPARENT) as u8,
        }
    }
}

/// Those whose requests were not seen yet.
#[derive(Debug)]
pub struct Arrivals {
    limit: usize,
    pending: FxHashMap<Place, Arrived>,
    order: VecDeque<Place>,
}

impl Arrivals {
    /// Remembers so many.
    pub fn new(limit: usize) -> Self {
        Arrivals {
            limit,
            pending: FxHashMap::default(),
            order: VecDeque::new(),
        }
    }

    /// A request is about to be read.
    pub fn insert(&mut self, arrived: Arrived) {
        if self.pending.insert(arrived.place, arrived).is_none() {
            self.order.push_back(arrived.place);
        }
        while self.order.len() > self.limit {
            if let Some(oldest) = self.order.pop_front() {
                self.pending.remove(&oldest);
            }
        }
    }

    /// Requests that are remembered.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.pending.len().max(self.order.len())
    }

    /// The context of a request that is seen now.
    pub fn take(&mut self, wire: &WireKey) -> Option<Arrived> {
        if self.pending.is_empty() {
            return None;
        }
        self.pending.remove(&Place::of(wire)?)
    }
}
