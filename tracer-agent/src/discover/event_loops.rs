//! Processes that may serve with an event loop: which of them have to be looked at again.
//!
//! In: processes that start, fork and end. Out: candidates, which may turn out to serve with an event
//! loop and then get probes of their own; those that serve and may have loaded something since; and whether one that
//! ended may have probes. Pure.

use rustc_hash::FxHashMap;

use super::Runtime;

/// Processes remembered; calls of more of them have no parents if they serve with an event loop.
const MOST: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Process {
    runtime: Runtime,
    /// Not seen to serve with an event loop so far.
    candidate: bool,
    /// How often it was looked into, and turns until that is due again.
    looks: u32,
    wait: u32,
}

/// Looks into a process become rarer up to one in this many turns, as a power of two.
const RAREST: u32 = 9;
/// Looks, of about a second in all.
const SETTLED: u32 = 3;

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
            let process = Process {
                runtime,
                candidate: true,
                looks: 0,
                wait: 0,
            };
            self.all.insert(tgid, process);
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

    /// Those that were looked into several times ([`EventLoops::look`]): what is seen then need not wait for what comes of others.
    pub fn settled(&self) -> impl Iterator<Item = (u32, Runtime)> {
        let settled = self
            .all
            .iter()
            .filter(|(_, process)| process.looks >= SETTLED);
        settled.map(|(tgid, process)| (*tgid, process.runtime))
    }

    /// Candidates that stay ones.
    pub fn retain_candidates(&mut self, mut stays: impl FnMut(u32, Runtime) -> bool) {
        for (tgid, process) in &mut self.all {
            if process.candidate {
                process.candidate = stays(*tgid, process.runtime);
            }
        }
    }

    /// A turn: those that are worth it are looked into, each less often from time to time.
    pub fn look(
        &mut self,
        mut is_worth: impl FnMut(u32, Runtime) -> bool,
        mut look: impl FnMut(u32, Runtime),
    ) {
        for (tgid, process) in &mut self.all {
            if process.wait > 0 {
                process.wait -= 1;
            } else if is_worth(*tgid, process.runtime) {
                look(*tgid, process.runtime);
                process.wait = 1 << process.looks;
                process.looks = (process.looks + 1).min(RAREST);
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

    /// Scenario: a process serves from some turn on, another one never. Guarantees: the first is looked into at once and
    /// then ever more seldom, up to a limit, the other never.
    #[test]
    fn looks_become_rarer() {
        let mut processes = EventLoops::default();
        processes.started(1, Runtime::Python);
        processes.started(2, Runtime::Python);
        let mut turns = Vec::new();
        for turn in 0..4000u32 {
            processes.look(
                |tgid, _| tgid != 2 && turn >= 5,
                |tgid, runtime| {
                    assert_eq!((tgid, runtime), (1, Runtime::Python));
                    turns.push(turn);
                },
            );
        }
        assert_eq!(turns[..5], [5, 7, 10, 15, 24]);
        let settled: Vec<_> = processes.settled().collect();
        assert_eq!(settled, [(1, Runtime::Python)]);
        let last: Vec<u32> = turns.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(last.iter().max(), Some(&(1 + (1 << RAREST))));
    }
}
