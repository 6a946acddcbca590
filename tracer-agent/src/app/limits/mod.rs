//! What the agent may use of the host, and what it gives up beyond.

pub mod memory;

use crate::telemetry::metrics::Limits;

use memory::{MemoryLimit, Shedder, Step};

/// Looks at what is used, and says what to do.
#[derive(Debug, Default)]
pub struct Watch {
    memory: Option<(MemoryLimit, Shedder)>,
}

impl Watch {
    /// For a configured bound of memory, or the cgroup's.
    pub fn new(memory: Option<u64>) -> Self {
        let memory = MemoryLimit::of(memory).map(|limit| {
            tracing::info!(bytes = limit.bytes(), "memory is bounded");
            let shedder = Shedder::new(limit.bytes());
            (limit, shedder)
        });
        Watch { memory }
    }

    /// Looks at memory.
    pub fn memory(&mut self) -> Step {
        let Some((limit, shedder)) = &mut self.memory else {
            return Step::GoOn;
        };
        let Some(used) = limit.used() else {
            return Step::GoOn;
        };
        let before = shedder.sheds();
        let step = shedder.step(used);
        if shedder.sheds() > before {
            tracing::warn!(
                used,
                limit = limit.bytes(),
                "more memory than allowed: open exchanges are given up and counted (memory_limit)"
            );
        }
        if step == Step::Resume {
            tracing::info!(used, "there is enough memory again");
        }
        step
    }

    /// For the metrics.
    pub fn counts(&self) -> Limits {
        let memory = self.memory.as_ref();
        Limits {
            memory_bytes: memory.map(|(limit, _)| limit.bytes()),
            memory_sheds: memory.map_or(0, |(_, shedder)| shedder.sheds()),
        }
    }
}
