//! A bounded memory of spans.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::trace::span::SpanId;

/// Spans remembered.
const MAX: usize = 16_384;

/// The newest entries by span.
#[derive(Debug)]
pub struct Recent<T> {
    entries: FxHashMap<SpanId, T>,
    order: VecDeque<SpanId>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Recent {
            entries: FxHashMap::default(),
            order: VecDeque::new(),
        }
    }
}

impl<T> Recent<T> {
    /// Adds one; the oldest goes when there are too many.
    pub fn insert(&mut self, span_id: SpanId, value: T) {
        if self.entries.insert(span_id, value).is_none() {
            self.order.push_back(span_id);
        }
        if self.order.len() > MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }

    /// The one of a span.
    pub fn get(&self, span_id: SpanId) -> Option<&T> {
        self.entries.get(&span_id)
    }
}
