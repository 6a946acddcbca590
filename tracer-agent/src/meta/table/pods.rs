//! Processes in pods: what Kubernetes says of them may come late, and may change.
//!
//! A process is described once; what its pod adds is put on top when the API tells it. Until then its
//! spans may wait, for a time that begins with the first span of its container: a container that
//! nobody knows holds up its first spans, not all of them.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::ProcessTable;
use super::describe::Described;
use crate::meta::Process;
use crate::meta::kubernetes::ContainerFacts;

/// Containers that are waited for at a time.
const MAX_AWAITED: usize = 4096;
/// What a process was before its pod was known.
const MAX_BEFORE: usize = 4;

/// A process in a container.
#[derive(Debug)]
pub(super) struct InPod {
    described: Described,
    /// What is known of its container.
    place: Option<Arc<ContainerFacts>>,
    /// The store's answer is as old as this.
    generation: u64,
    /// What spans that wait may still hold.
    before: Vec<Arc<Process>>,
}

impl InPod {
    fn is_settled(&self) -> bool {
        let place = self.place.as_ref();
        place.is_some_and(|place| place.name.is_some())
    }
}

/// What a span's process is by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// As it was.
    Same,
    /// More is known of it.
    Renewed(Arc<Process>),
    /// More may become known of it.
    Waits,
}

/// Until when spans wait, by container.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    until_ns: FxHashMap<Box<str>, u64>,
    counts: PodCounts,
}

/// What spans asked for in pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodCounts {
    /// Processes whose pod and container were known when they were first asked for.
    pub known: u64,
    /// Containers whose spans waited.
    pub awaited: u64,
    /// Containers whose spans waited in vain.
    pub given_up: u64,
}

impl ProcessTable {
    /// Containers that spans waited for so far.
    pub fn pod_counts(&self) -> PodCounts {
        self.awaited.counts
    }

    /// The process of a span that was made a moment ago, with what became known since. `now_ns` of
    /// `u64::MAX`: nothing more will.
    pub fn settle(&mut self, process: &Arc<Process>, now_ns: u64) -> Settled {
        if self.options.pods.is_none() {
            return Settled::Same;
        }
        let tgid = process.pid;
        let Some(pod) = self.entries.get(&tgid).and_then(|entry| entry.pod.as_ref()) else {
            return Settled::Same;
        };
        if !self.is_current(pod) {
            self.renew(tgid);
        }
        let Some((current, pod)) = self.entries.get(&tgid).and_then(|entry| {
            let current = entry.process.as_ref()?;
            Some((Arc::clone(current), entry.pod.as_ref()?))
        }) else {
            return Settled::Same;
        };
        let is_current = Arc::ptr_eq(&current, process);
        if !is_current && !pod.before.iter().any(|before| Arc::ptr_eq(before, process)) {
            // A process of before, with the same id.
            return Settled::Same;
        }
        let facts = &pod.described.facts();
        if !pod.is_settled()
            && facts.pod_uid.is_some()
            && let Some(id) = facts.container_id.as_deref()
            && self.awaited.waits(id, now_ns, self.options.pod_wait_ns)
        {
            return Settled::Waits;
        }
        match is_current {
            true => Settled::Same,
            false => Settled::Renewed(current),
        }
    }

    /// Whether the store has said nothing new since it was asked.
    pub(super) fn is_current(&self, pod: &InPod) -> bool {
        let store = self.options.pods.as_ref();
        store.is_none_or(|store| store.generation() == pod.generation)
    }

    /// Puts what is known of the pod on top of what is known of the process.
    pub(super) fn place(&mut self, described: Described) -> (Arc<Process>, Option<Box<InPod>>) {
        let asked = self.ask(&described);
        let (place, generation) = match asked {
            Some(asked) => asked,
            None => return (Arc::new(self.process(&described, None)), None),
        };
        let process = Arc::new(self.process(&described, place.as_deref()));
        let pod = InPod {
            described,
            place,
            generation,
            before: Vec::new(),
        };
        self.awaited.counts.known += u64::from(pod.is_settled());
        (process, Some(Box::new(pod)))
    }

    /// Asks again. Returns the process if it became another. What is gone from the API stays.
    pub(super) fn renew(&mut self, tgid: u32) -> Option<Arc<Process>> {
        let pod = self.entries.get(&tgid)?.pod.as_ref()?;
        let (place, generation) = self.ask(&pod.described)?;
        let changed = match (&place, &pod.place) {
            (Some(new), Some(old)) => new != old,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let made = changed.then(|| Arc::new(self.process(&pod.described, place.as_deref())));
        let entry = self.entries.get_mut(&tgid)?;
        let pod = entry.pod.as_mut()?;
        pod.generation = generation;
        let made = made?;
        pod.place = place;
        let before = entry.process.replace(Arc::clone(&made));
        if pod.before.len() >= MAX_BEFORE {
            pod.before.remove(0);
        }
        pod.before.extend(before);
        Some(made)
    }

    /// What the store says, and as of when. `None` for what is in no container, or if nobody is asked.
    fn ask(&self, described: &Described) -> Option<(Option<Arc<ContainerFacts>>, u64)> {
        let store = self.options.pods.as_ref()?;
        let facts = described.facts();
        let id = facts.container_id.as_deref()?;
        // Before the answer: what changes in between is asked for again.
        let generation = store.generation();
        let place = store.container(Some(id), facts.pod_uid.as_deref());
        Some((place, generation))
    }
}

impl Awaited {
    fn waits(&mut self, container: &str, now_ns: u64, wait_ns: u64) -> bool {
        match self.until_ns.get_mut(container) {
            // Given up before.
            Some(until_ns) if *until_ns == u64::MAX => false,
            Some(until_ns) if now_ns < *until_ns => true,
            Some(until_ns) => {
                *until_ns = u64::MAX;
                self.counts.given_up += 1;
                false
            }
            None if now_ns == u64::MAX || wait_ns == 0 => false,
            None => {
                if self.until_ns.len() >= MAX_AWAITED {
                    // Their spans begin to wait anew, each for a bounded time.
                    self.until_ns.clear();
                }
                self.until_ns
                    .insert(container.into(), now_ns.saturating_add(wait_ns));
                self.counts.awaited += 1;
                true
            }
        }
    }
}
