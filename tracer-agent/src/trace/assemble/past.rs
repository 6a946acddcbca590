//! Exchanges that are over and settled, for what is still called for them.
//!
//! In: the ids of an exchange whose span went out. Out: the same, for about as long as somebody may ask.
//! It is kept apart from what is going on because it is a hundred times as many: what every record looks
//! at stays small enough for the CPU's caches, and this is written once and seldom read. Two generations
//! instead of a queue: the older one is given up as a whole, so that forgetting costs no lookups.

use rustc_hash::FxHashMap;

use super::node::Trace;
use crate::protocol::ExchangeId;
use crate::trace::span::SpanId;

/// The ids of an exchange that is over.
#[derive(Clone, Debug)]
pub struct Settled {
    /// Its span.
    pub span_id: SpanId,
    /// Its trace.
    pub trace: Trace,
}

/// See the module's text.
#[derive(Debug)]
pub struct Past {
    young: FxHashMap<ExchangeId, Settled>,
    old: FxHashMap<ExchangeId, Settled>,
    /// Of each generation.
    limit: usize,
    /// How long each generation lasts.
    memory_ns: u64,
    begun_ns: u64,
}

impl Past {
    /// Remembers each exchange for `memory_ns` to twice that, and at most `limit` of them: then for less.
    pub fn new(limit: usize, memory_ns: u64) -> Self {
        Past {
            young: FxHashMap::default(),
            old: FxHashMap::default(),
            limit: (limit / 2).max(1),
            memory_ns,
            begun_ns: 0,
        }
    }

    /// An exchange is over.
    pub fn insert(&mut self, id: ExchangeId, settled: Settled) {
        if self.young.len() >= self.limit {
            self.turn();
        }
        self.young.insert(id, settled);
    }

    /// What it was.
    pub fn get(&self, id: &ExchangeId) -> Option<&Settled> {
        self.young.get(id).or_else(|| self.old.get(id))
    }

    /// Time passed.
    pub fn tick(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.begun_ns) < self.memory_ns {
            return;
        }
        self.begun_ns = now_ns;
        if !self.young.is_empty() || !self.old.is_empty() {
            self.turn();
        }
        // What was a busy moment long ago need not keep its room.
        self.young.shrink_to(self.old.len());
    }

    /// Exchanges remembered.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    fn turn(&mut self) {
        std::mem::swap(&mut self.young, &mut self.old);
        self.young.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::span::TraceId;

    fn id(key: u64) -> ExchangeId {
        ExchangeId { connection: 1, key }
    }

    fn settled(key: u64) -> Settled {
        Settled {
            span_id: SpanId(key.to_be_bytes()),
            trace: Trace::begin(TraceId([1; 16]), None),
        }
    }

    #[test]
    fn the_last_ones_are_remembered_and_never_too_many() {
        let mut past = Past::new(20, 1_000);
        for key in 1..200 {
            past.insert(id(key), settled(key));
            assert!(past.len() <= 20);
            for near in key.saturating_sub(9).max(1)..=key {
                let found = past.get(&id(near)).map(|settled| settled.span_id);
                assert_eq!(
                    found,
                    Some(SpanId(near.to_be_bytes())),
                    "{near} after {key}"
                );
            }
        }
    }

    #[test]
    fn time_forgets() {
        let mut past = Past::new(20, 1_000);
        past.tick(5_000);
        past.insert(id(1), settled(1));
        past.tick(5_999);
        past.tick(6_000);
        assert!(past.get(&id(1)).is_some(), "it may be new");
        past.tick(7_000);
        assert!(past.get(&id(1)).is_none());
        assert_eq!(past.len(), 0);
    }
}
