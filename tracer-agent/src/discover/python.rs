//! Processes that run Python: which of them have to be looked at again.
//!
//! In: processes that start, fork and end. Out: candidates, which may turn out to serve with an event
//! loop and then get probes of their own; and those that ended, whose probes are given back. Pure.

use rustc_hash::FxHashSet;

/// Processes remembered; calls of more of them have no parents if they serve with an event loop.
const MOST: usize = 4096;

/// See the module's text.
#[derive(Debug, Default)]
pub struct PythonProcesses {
    /// Not seen to serve with an event loop so far.
    candidates: FxHashSet<u32>,
    /// All that run Python: what they fork runs Python too.
    all: FxHashSet<u32>,
    ended: Vec<u32>,
}

impl PythonProcesses {
    /// A process runs Python from now on.
    pub fn started(&mut self, tgid: u32) {
        if self.all.len() < MOST {
            self.all.insert(tgid);
            self.candidates.insert(tgid);
        }
    }

    /// A process was forked.
    pub fn forked(&mut self, tgid: u32, parent: u32) {
        if self.all.contains(&parent) {
            self.started(tgid);
        }
    }

    /// A process ended, or runs something else from now on.
    pub fn ended(&mut self, tgid: u32) {
        if self.all.remove(&tgid) && !self.candidates.remove(&tgid) {
            self.ended.push(tgid);
        }
    }

    /// Candidates that stay ones.
    pub fn retain_candidates(&mut self, mut stays: impl FnMut(u32) -> bool) {
        self.candidates.retain(|tgid| stays(*tgid));
    }

    /// Ended ones whose probes are still to be given back.
    pub fn retain_ended(&mut self, mut stays: impl FnMut(u32) -> bool) {
        self.ended.retain(|tgid| stays(*tgid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(processes: &mut PythonProcesses) -> Vec<u32> {
        let mut seen = Vec::new();
        processes.retain_candidates(|tgid| {
            seen.push(tgid);
            true
        });
        seen.sort_unstable();
        seen
    }

    /// Scenario: a process forks workers, one of them is found to be an event loop, all end.
    /// Guarantees: workers are candidates as well, and only what has probes is told to have ended.
    #[test]
    fn workers_and_ends() {
        let mut processes = PythonProcesses::default();
        processes.started(1);
        processes.forked(2, 1);
        processes.forked(3, 9);
        assert_eq!(candidates(&mut processes), [1, 2]);
        processes.retain_candidates(|tgid| tgid == 1);
        processes.forked(4, 2);
        assert_eq!(candidates(&mut processes), [1, 4]);
        processes.ended(1);
        processes.ended(2);
        let mut ended = Vec::new();
        processes.retain_ended(|tgid| {
            ended.push(tgid);
            false
        });
        assert_eq!(ended, [2]);
        assert_eq!(candidates(&mut processes), [4]);
        for tgid in 0..2 * MOST as u32 {
            processes.started(tgid);
        }
        assert_eq!(candidates(&mut processes).len(), MOST);
    }
}
