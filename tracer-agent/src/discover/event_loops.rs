//! Processes that may serve with an event loop: which of them have to be looked at again.
//!
//! In: processes that start, fork and end. Out: candidates, which may turn out to serve with an event
//! loop and then get probes of their own; and whether one that ended may have some. Pure.

use rustc_hash::FxHashMap;

use super::Runtime;

/// Processes remembered; calls of more of them have no parents if they serve with an event loop.
const MOST: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Process {
    runtime: Runtime,
    /// Not seen to serve with an event loop so far.
    candidate: bool,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct EventLoops {
    /// What they fork runs the same.
    all: FxHashMap<u32, Process>,
}

impl EventLoops {
    /// A process runs this from now on.
    pub fn started(&mut self, tgid: u32, runtime: Runtime) {
        if self.all.len() < MOST {
            let candidate = true;
            self.all.insert(tgid, Process { runtime, candidate });
        }
    }

    /// A process was forked.
    pub fn forked(&mut self, tgid: u32, parent: u32) {
        if let Some(parent) = self.all.get(&parent) {
            self.started(tgid, parent.runtime);
        }
    }

    /// A process ended, or runs something else from now on. True if it may have probes, which are given back.
    pub fn ended(&mut self, tgid: u32) -> bool {
        self.all.remove(&tgid).is_some()
    }

    /// Candidates that stay ones.
    pub fn retain_candidates(&mut self, mut stays: impl FnMut(u32, Runtime) -> bool) {
        for (tgid, process) in &mut self.all {
            if process.candidate {
                process.candidate = stays(*tgid, process.runtime);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(processes: &mut EventLoops) -> Vec<u32> {
        let mut seen = Vec::new();
        processes.retain_candidates(|tgid, runtime| {
            assert_eq!(runtime, Runtime::Python);
            seen.push(tgid);
            true
        });
        seen.sort_unstable();
        seen
    }

    /// Scenario: a process forks workers, one of them is found to be an event loop, all end.
    /// Guarantees: workers are candidates as well, and all that ended are told.
    #[test]
    fn workers_and_ends() {
        let mut processes = EventLoops::default();
        processes.started(1, Runtime::Python);
        processes.forked(2, 1);
        processes.forked(3, 9);
        assert_eq!(candidates(&mut processes), [1, 2]);
        processes.retain_candidates(|tgid, _| tgid == 1);
        processes.forked(4, 2);
        assert_eq!(candidates(&mut processes), [1, 4]);
        assert!(processes.ended(1) && processes.ended(2));
        assert!(!processes.ended(2) && !processes.ended(9));
        assert_eq!(candidates(&mut processes), [4]);
        for tgid in 0..2 * MOST as u32 {
            processes.started(tgid, Runtime::Python);
        }
        assert_eq!(candidates(&mut processes).len(), MOST);
    }
}
