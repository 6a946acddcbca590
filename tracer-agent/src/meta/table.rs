//! The processes known now, and for a while those that ended.
//!
//! Owned by the one thread that handles capture records, so there are no locks. What the kernel
//! tells at exec is kept as it is; attributes are made when the first exchange asks for them,
//! because most processes of a host never have one.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;

mod describe;
mod pods;

use pods::InPod;
pub use pods::{PodCounts, Settled};

use super::facts::{ExecInfo, ProcessFacts};
use super::kubernetes::Store;
use super::{Host, ProcFs, Process, ServiceRule};

/// Of `/proc/PID/stat`: USER_HZ is 100 on every architecture we run on.
const NS_PER_TICK: u64 = 10_000_000;

/// How processes are described.
#[derive(Clone, Debug)]
pub struct Options {
    /// The user's rules for service names; the first that matches names the process.
    pub service_rules: Vec<ServiceRule>,
    /// Whether `process.command_args` is exported. Arguments may hold secrets.
    pub command_args: bool,
    /// Attributes for every resource (the agent's own `OTEL_RESOURCE_ATTRIBUTES`).
    pub resource_attributes: Vec<(String, String)>,
    /// Entries that are kept at most.
    pub max_entries: usize,
    /// How long a process is kept after its end, for spans that finish late.
    pub keep_ended_ns: u64,
    /// What Kubernetes says of the pods of this node, if it is asked.
    pub pods: Option<Arc<Store>>,
    /// How long spans wait for their pod at most, from the first one of its container.
    pub pod_wait_ns: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            service_rules: Vec::new(),
            command_args: false,
            resource_attributes: Vec::new(),
            max_entries: 16 * 1024,
            keep_ended_ns: 60_000_000_000,
            pods: None,
            pod_wait_ns: 0,
        }
    }
}

/// What happened to the table so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCounts {
    /// Processes that came by an exec record.
    pub execs: u64,
    /// Processes that were running before, or forked without exec, and were read from `/proc`.
    pub read: u64,
    /// Processes that were gone before anything could be learnt of them.
    pub unknown: u64,
    /// Entries of ended processes that were given up before their time for want of room.
    pub evicted_ended: u64,
    /// Entries of running processes that were given up for want of room (they are read again).
    pub evicted_running: u64,
}

/// All known processes.
#[derive(Debug)]
pub struct ProcessTable {
    proc: ProcFs,
    host: Host,
    options: Options,
    entries: FxHashMap<u32, Entry>,
    /// Ended processes by the time of their end. An item whose entry was replaced since says nothing.
    ended: VecDeque<(u64, u32, u64)>,
    /// Numbers entries; the lowest is the oldest.
    sequence: u64,
    counts: TableCounts,
    awaited: pods::Awaited,
}

#[derive(Debug)]
struct Entry {
    process: Option<Arc<Process>>,
    ended_ns: Option<u64>,
    sequence: u64,
    facts: Box<ProcessFacts>,
    /// There if the process runs in a container, Kubernetes is asked and somebody wanted the process.
    pod: Option<Box<InPod>>,
}

impl ProcessTable {
    /// An empty table over `proc`.
    pub fn new(proc: ProcFs, options: Options) -> Self {
        let host = Host::read(&proc);
        Self {
            proc,
            host,
            options,
            entries: FxHashMap::default(),
            ended: VecDeque::new(),
            sequence: 0,
            counts: TableCounts::default(),
            awaited: pods::Awaited::default(),
        }
    }

    /// The host it describes.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// What happened so far.
    pub fn counts(&self) -> TableCounts {
        self.counts
    }

    /// Number of entries now.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The process `tgid`, the running one or the one that ended last. A hash lookup, but for the
    /// first time.
    pub fn get(&mut self, tgid: u32) -> Arc<Process> {
        self.get_at(tgid, 0)
    }

    /// The process that was `tgid` at `time_ns` (`CLOCK_BOOTTIME`). After the end of the known one
    /// that is whichever has the pid now: forked processes come without an exec record.
    pub fn get_at(&mut self, tgid: u32, time_ns: u64) -> Arc<Process> {
        if let Some(Entry {
            process: Some(process),
            ended_ns,
            pod,
            ..
        }) = self.entries.get(&tgid)
            && ended_ns.is_none_or(|end| time_ns <= end)
        {
            return match pod {
                Some(pod) if !self.is_current(pod) => {
                    let process = Arc::clone(process);
                    self.renew(tgid).unwrap_or(process)
                }
                _ => Arc::clone(process),
            };
        }
        self.first_sight(tgid, time_ns)
    }

    /// What is known of the process `tgid`, read from `/proc` if it was never seen.
    pub fn facts(&mut self, tgid: u32) -> Option<&ProcessFacts> {
        if !self.entries.contains_key(&tgid) {
            let facts = self.read(tgid)?;
            self.insert(facts);
        }
        self.entries.get(&tgid).map(|entry| &*entry.facts)
    }

    /// A process started another program: whatever was known of its pid is no longer so.
    pub fn on_exec(&mut self, info: &ExecInfo<'_>) -> &ProcessFacts {
        self.expire(info.time_ns);
        self.counts.execs += 1;
        let facts = ProcessFacts::from_exec(&self.proc, info);
        &self.insert(facts).facts
    }

    /// A process made another one, which is the same program until it executes another, and may be
    /// gone before it is asked for.
    pub fn on_fork(&mut self, child: u32, parent: u32, time_ns: u64) {
        let Some(facts) = self.facts(parent) else {
            return;
        };
        let mut facts = facts.clone();
        facts.pid = child;
        facts.parent = parent;
        facts.start_ticks = Some(time_ns / NS_PER_TICK);
        self.insert(facts);
    }

    /// A process ended. Its entry stays for a while.
    pub fn on_exit(&mut self, tgid: u32, now_ns: u64) {
        if let Some(entry) = self.entries.get_mut(&tgid)
            && entry.ended_ns.is_none()
        {
            entry.ended_ns = Some(now_ns);
            self.ended.push_back((now_ns, tgid, entry.sequence));
        }
        // Entries that were replaced leave their items behind.
        if self.ended.len() > 2 * self.options.max_entries {
            let entries = &self.entries;
            self.ended.retain(|(_, tgid, sequence)| {
                entries
                    .get(tgid)
                    .is_some_and(|entry| entry.sequence == *sequence)
            });
        }
        self.expire(now_ns);
    }

    /// Forgets the processes that ended long enough ago.
    pub fn expire(&mut self, now_ns: u64) {
        while let Some((end, tgid, sequence)) = self.ended.front().copied() {
            let current = self
                .entries
                .get(&tgid)
                .is_some_and(|entry| entry.sequence == sequence);
            if current && now_ns.saturating_sub(end) < self.options.keep_ended_ns {
                return;
            }
            self.ended.pop_front();
            if current {
                self.entries.remove(&tgid);
            }
        }
    }

    #[cold]
    fn first_sight(&mut self, tgid: u32, time_ns: u64) -> Arc<Process> {
        let stale = self
            .entries
            .get(&tgid)
            .is_none_or(|entry| entry.ended_ns.is_some_and(|end| time_ns > end));
        if stale {
            let known = self.entries.get(&tgid).map(|entry| entry.facts.start_ticks);
            match self.read(tgid) {
                // Late words about the one that ended, which is not yet waited for.
                Some(facts) if known == Some(facts.start_ticks) => {}
                Some(facts) => {
                    self.insert(facts);
                }
                None if known.is_some() => {}
                None => return self.unknown(tgid, time_ns),
            }
        }
        let made = match self.entries.get(&tgid) {
            Some(Entry {
                process: Some(process),
                ..
            }) => return Arc::clone(process),
            Some(entry) => self.describe(&entry.facts),
            None => return self.unknown(tgid, time_ns),
        };
        let (made, pod) = self.place(made);
        if let Some(entry) = self.entries.get_mut(&tgid) {
            entry.process = Some(Arc::clone(&made));
            entry.pod = pod;
        }
        made
    }

    /// Kept like a process that ended, so that a later one with its pid is found.
    fn unknown(&mut self, tgid: u32, time_ns: u64) -> Arc<Process> {
        self.counts.unknown += 1;
        let facts = ProcessFacts {
            pid: tgid,
            ..ProcessFacts::default()
        };
        let process = Arc::new(self.process(&self.describe(&facts), None));
        // Without a time there is nothing to expire it by: it is not kept.
        if time_ns > 0 {
            let entry = self.insert(facts);
            entry.process = Some(Arc::clone(&process));
            self.on_exit(tgid, time_ns);
        }
        process
    }

    fn read(&mut self, tgid: u32) -> Option<ProcessFacts> {
        let mut facts = ProcessFacts::read(&self.proc, tgid)?;
        self.counts.read += 1;
        // A forked worker that gave itself a title has overwritten its environment with it; what
        // its parent was started with holds for it too.
        let titled = matches!(&facts.args[..], [title] if title.contains(' '));
        if titled
            && !facts.environment.declares()
            && let Some(parent) = self.entries.get(&facts.parent)
            && parent.facts.exe == facts.exe
        {
            facts.environment = parent.facts.environment.clone();
        }
        Some(facts)
    }

    fn insert(&mut self, facts: ProcessFacts) -> &mut Entry {
        let pid = facts.pid;
        if !self.entries.contains_key(&pid) && self.entries.len() >= self.options.max_entries.max(1)
        {
            self.make_room();
        }
        self.sequence += 1;
        let entry = Entry {
            process: None,
            ended_ns: None,
            sequence: self.sequence,
            facts: Box::new(facts),
            pod: None,
        };
        match self.entries.entry(pid) {
            std::collections::hash_map::Entry::Occupied(mut slot) => {
                slot.insert(entry);
                slot.into_mut()
            }
            std::collections::hash_map::Entry::Vacant(slot) => slot.insert(entry),
        }
    }

    fn make_room(&mut self) {
        while let Some((_, tgid, sequence)) = self.ended.pop_front() {
            if self
                .entries
                .get(&tgid)
                .is_some_and(|entry| entry.sequence == sequence)
            {
                self.entries.remove(&tgid);
                self.counts.evicted_ended += 1;
                return;
            }
        }
        // A walk over all entries costs less than the reads that first sight makes anyway.
        let oldest = self
            .entries
            .iter()
            .min_by_key(|(_, entry)| entry.sequence)
            .map(|(pid, _)| *pid);
        if let Some(pid) = oldest {
            self.entries.remove(&pid);
            self.counts.evicted_running += 1;
        }
    }
}

#[cfg(test)]
mod tests;
