//! What the agent may use of the host, and what it gives up beyond.

pub mod cpu;
pub mod memory;
mod meter;

use std::time::Duration;

use crate::config;
use crate::discover::Mode;
use crate::probes::Kernel;
use crate::telemetry::snapshot::Limits;

use memory::{MemoryLimit, Shedder, Step};
use meter::Meter;

/// Looks at what is used, and says what to do.
#[derive(Debug, Default)]
pub struct Watch {
    memory: Option<(MemoryLimit, Shedder)>,
    cpu: Option<Meter>,
}

impl Watch {
    /// For a configured bound of memory, or the cgroup's, and a budget of CPUs.
    /// What a command may be followed to is fixed with its start: its tracing is not switched off.
    pub fn new(limits: config::Limits, mode: Mode) -> Self {
        let config::Limits { memory, cpu: cpus } = limits;
        let memory = MemoryLimit::of(memory).map(|limit| {
            tracing::info!(bytes = limit.bytes(), "memory is bounded");
            let shedder = Shedder::new(limit.bytes());
            (limit, shedder)
        });
        let most = match mode {
            Mode::Host => cpu::ORDER.len(),
            Mode::Command => 1,
        };
        let cpu = cpus.map(|cpus| Meter::new(cpus, most));
        Watch { memory, cpu }
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

    /// Goes on measuring CPU time; how many of [`cpu::ORDER`] are to be off, when that has changed.
    pub fn cpu(&mut self, kernel: &Kernel, now: Duration) -> Option<usize> {
        self.cpu.as_mut()?.step(kernel, now)
    }

    /// For the metrics.
    pub fn counts(&self) -> Limits {
        let memory = self.memory.as_ref();
        Limits {
            memory_bytes: memory.map(|(limit, _)| limit.bytes()),
            memory_sheds: memory.map_or(0, |(_, shedder)| shedder.sheds()),
            cpu: self.cpu.as_ref().map(Meter::counts),
        }
    }
}
