//! What streams of HTTP/2 are begun for, as the kernel side tells ahead of their heads.
//!
//! In: the kernel side's word. Out: the cause of an exchange that opens. Bounded: what does not come goes with
//! the oldest.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use tracer_common::abi::CausedEvent;

use crate::protocol::{Cause, CauseMethod, ExchangeId};

/// Those whose heads were not seen yet.
#[derive(Debug)]
pub struct Causes {
    limit: usize,
    pending: FxHashMap<ExchangeId, Cause>,
    order: VecDeque<ExchangeId>,
}

impl Causes {
    /// Remembers so many.
    pub fn new(limit: usize) -> Self {
        Causes {
            limit,
            pending: FxHashMap::default(),
            order: VecDeque::new(),
        }
    }

    /// A stream is about to be seen.
    pub fn insert(&mut self, event: &CausedEvent) {
        let Some(method) = CauseMethod::from_abi(event.header.value) else {
            return;
        };
        let stream = ExchangeId {
            connection: event.connection,
            key: event.stream,
        };
        let exchange = ExchangeId {
            connection: event.cause_connection,
            key: event.cause_key,
        };
        let cause = Cause { exchange, method };
        if self.pending.insert(stream, cause).is_none() {
            self.order.push_back(stream);
        }
        while self.order.len() > self.limit {
            if let Some(oldest) = self.order.pop_front() {
                self.pending.remove(&oldest);
            }
        }
    }

    /// What the stream that opens is for.
    pub fn take(&mut self, stream: ExchangeId) -> Option<Cause> {
        if self.pending.is_empty() {
            return None;
        }
        let cause = self.pending.remove(&stream);
        while self
            .order
            .front()
            .is_some_and(|stream| !self.pending.contains_key(stream))
        {
            self.order.pop_front();
        }
        cause
    }
}

#[cfg(test)]
mod tests {
    use tracer_common::abi::{Header, cause_method};

    use super::*;

    fn event(stream: u64, method: u32) -> CausedEvent {
        CausedEvent {
            header: Header {
                kind: tracer_common::abi::kind::CAUSED,
                selector: 0,
                flags: 0,
                reserved: 0,
                value: method,
            },
            time_ns: 1,
            connection: 7,
            stream,
            cause_connection: 8,
            cause_key: stream + 100,
        }
    }

    fn id(connection: u64, key: u64) -> ExchangeId {
        ExchangeId { connection, key }
    }

    #[test]
    fn each_stream_has_its_own() {
        let mut causes = Causes::new(4);
        for stream in [1, 3] {
            causes.insert(&event(stream, cause_method::GOROUTINE));
        }
        causes.insert(&event(5, cause_method::NONE));
        for (stream, expected) in [
            (id(7, 3), Some(id(8, 103))),
            (id(7, 3), None),
            (id(7, 1), Some(id(8, 101))),
            (id(7, 5), None),
            (id(8, 1), None),
        ] {
            let found = causes.take(stream).map(|cause| cause.exchange);
            assert_eq!(found, expected, "{stream:?}");
        }
        assert!(causes.order.is_empty());
    }

    #[test]
    fn the_oldest_goes() {
        let mut causes = Causes::new(2);
        for stream in [1, 3, 5] {
            causes.insert(&event(stream, cause_method::TURN));
        }
        assert_eq!(causes.take(id(7, 1)), None);
        assert!(causes.take(id(7, 3)).is_some());
        assert!(causes.take(id(7, 5)).is_some());
    }
}
