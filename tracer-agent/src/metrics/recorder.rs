//! The processes and their series: what the recording thread owns, and what readers share of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::graph::{Edge, Graph, GraphCounts, SharedGraph};
use super::series::{Found, Series, Table, exemplar_of};
use crate::meta::Process;
use crate::trace::semconv::metric::MetricAttributes;
use crate::trace::{FLAG_SAMPLED, Span, SpanId};

/// Processes with series at a time.
const MAX_PROCESSES: usize = 4096;
/// Series of all processes together.
const MAX_SERIES: usize = 8192;
/// Spans whose series are remembered for their examples: a batch of them.
const RECENT: usize = 1024;
/// How long the series of an ended process stay: two rounds of the usual exports and scrapes.
pub const KEEP_ENDED_NS: u64 = 120_000_000_000;

/// The series of one process, as readers see them.
#[derive(Debug)]
pub struct ProcessSeries {
    /// Whose they are.
    pub process: Arc<Process>,
    series: Mutex<Vec<Arc<Series>>>,
}

impl ProcessSeries {
    /// The series now, in the order in which they began.
    pub fn series(&self) -> Vec<Arc<Series>> {
        lock(&self.series).clone()
    }
}

/// What happened to the bounds so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecorderCounts {
    /// Processes with series.
    pub processes: u64,
    /// Series.
    pub series: u64,
    /// Measurements that went to an overflow series.
    pub overflowed: u64,
    /// Processes whose series were given up for want of room.
    pub evicted: u64,
}

/// What was recorded; shared by all readers.
#[derive(Debug, Default)]
pub struct Recorded {
    processes: Mutex<BTreeMap<u64, Arc<ProcessSeries>>>,
    graph: SharedGraph,
    series: AtomicU64,
    overflowed: AtomicU64,
    evicted: AtomicU64,
}

impl Recorded {
    /// The processes now, in the order in which they came.
    pub fn processes(&self) -> Vec<Arc<ProcessSeries>> {
        lock(&self.processes).values().cloned().collect()
    }

    /// The edges of the service graph now.
    pub fn edges(&self) -> Vec<Arc<Edge>> {
        self.graph.edges()
    }

    /// How full it is.
    pub fn counts(&self) -> RecorderCounts {
        RecorderCounts {
            processes: lock(&self.processes).len() as u64,
            series: self.series.load(Ordering::Relaxed),
            overflowed: self.overflowed.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }

    /// What became of the ends of exchanges.
    pub fn graph_counts(&self) -> GraphCounts {
        self.graph.counts()
    }
}

/// Records. Owned by the thread that makes spans.
#[derive(Debug)]
pub struct Recorder {
    recorded: Arc<Recorded>,
    /// By process id. More than one entry after an exec, or when a pid was used again.
    slots: FxHashMap<u32, Vec<Slot>>,
    ended: VecDeque<(u64, u32, u64)>,
    /// Series of the spans counted last, in order: sampling usually keeps them in the same order at once.
    recent: VecDeque<(SpanId, Arc<Series>)>,
    graph: Graph,
    /// Numbers the processes.
    next: u64,
    processes: usize,
    series: usize,
    keep_ended_ns: u64,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    shared: Arc<ProcessSeries>,
    table: Table,
    used_ns: u64,
    ended: bool,
}

impl Recorder {
    /// An empty one that shows what it has in `recorded`. The series of an ended process stay for at
    /// least two of the intervals at which somebody collects.
    pub fn new(recorded: Arc<Recorded>, interval: Duration) -> Self {
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        Recorder {
            graph: Graph::default(),
            recorded,
            slots: FxHashMap::default(),
            ended: VecDeque::new(),
            recent: VecDeque::new(),
            next: 0,
            processes: 0,
            series: 0,
            keep_ended_ns: interval_ns.saturating_mul(2).max(KEEP_ENDED_NS),
        }
    }

    /// Counts a span, whatever becomes of it.
    pub fn record(&mut self, span: &Span) {
        let duration_ns = span.end_unix_ns.saturating_sub(span.start_unix_ns);
        let attributes = MetricAttributes::of(span);
        let failed = attributes.error_type.is_some();
        let room = self.series < MAX_SERIES;
        let slot = self.slot(span);
        slot.used_ns = span.exchange.end_ns;
        let found = slot.table.find(attributes, span.start_unix_ns, room);
        let (series, is_new) = match found {
            Found::Series(series) => (series, false),
            Found::New(series) => (series, true),
        };
        series.histogram.record(duration_ns);
        let counted = Arc::clone(&series);
        let overflow = matches!(series.key, super::SeriesKey::Overflow(_));
        if is_new {
            // Shown once it counts something.
            lock(&slot.shared.series).push(series);
            self.series += 1;
            self.recorded
                .series
                .store(self.series as u64, Ordering::Relaxed);
        }
        if overflow {
            self.recorded.overflowed.fetch_add(1, Ordering::Relaxed);
        }
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((span.span_id, counted));
        self.graph
            .observe(span, duration_ns, failed, &self.recorded.graph);
    }

    /// A span that was recorded before is kept by sampling: it may stand for its bucket. Spans whose
    /// flag says that they are not sampled are passed over.
    pub fn exemplar(&mut self, span: &Span) {
        if span.flags & FLAG_SAMPLED == 0 {
            return;
        }
        let duration_ns = span.end_unix_ns.saturating_sub(span.start_unix_ns);
        while let Some((id, series)) = self.recent.pop_front() {
            if id == span.span_id {
                series.histogram.exemplar(exemplar_of(span, duration_ns));
                return;
            }
        }
        let slots = self.slots.get(&span.process.pid);
        let slot = slots.and_then(|slots| slots.iter().find(|slot| slot.is(&span.process)));
        if let Some(series) = slot.and_then(|slot| slot.table.get(&MetricAttributes::of(span))) {
            series.histogram.exemplar(exemplar_of(span, duration_ns));
        }
    }

    /// A process ended; its series stay for a while.
    pub fn process_ended(&mut self, tgid: u32, now_ns: u64) {
        for slot in self.slots.get_mut(&tgid).into_iter().flatten() {
            if !std::mem::replace(&mut slot.ended, true) {
                self.ended.push_back((now_ns, tgid, slot.id));
            }
        }
    }

    /// Forgets what ended long enough ago; to be called every so often.
    pub fn expire(&mut self, now_ns: u64) {
        while let Some(&(ended_ns, tgid, id)) = self.ended.front() {
            if now_ns.saturating_sub(ended_ns) < self.keep_ended_ns {
                break;
            }
            self.ended.pop_front();
            self.remove(tgid, id);
        }
        self.graph.expire(now_ns, &self.recorded.graph);
    }

    fn slot(&mut self, span: &Span) -> &mut Slot {
        let process = &span.process;
        let known = self
            .slots
            .get(&process.pid)
            .and_then(|slots| slots.iter().position(|slot| slot.is(process)));
        if known.is_none() {
            self.make_room();
            // Another program in the same process: the one before is over.
            self.process_ended(process.pid, span.exchange.end_ns);
        }
        let slots = self.slots.entry(process.pid).or_default();
        let position = match known {
            Some(position) => position,
            None => {
                self.next += 1;
                self.processes += 1;
                let shared = Arc::new(ProcessSeries {
                    process: Arc::clone(process),
                    series: Mutex::default(),
                });
                lock(&self.recorded.processes).insert(self.next, Arc::clone(&shared));
                slots.push(Slot {
                    id: self.next,
                    shared,
                    table: Table::default(),
                    used_ns: span.exchange.end_ns,
                    ended: false,
                });
                slots.len() - 1
            }
        };
        // Found or pushed above.
        &mut slots[position]
    }

    /// Gives up the process that ended first, else the one unused for longest.
    fn make_room(&mut self) {
        while self.processes >= MAX_PROCESSES {
            let victim = match self.ended.pop_front() {
                Some((_, tgid, id)) => Some((tgid, id)),
                None => {
                    let all = self.slots.iter();
                    let all =
                        all.flat_map(|(tgid, slots)| slots.iter().map(move |slot| (*tgid, slot)));
                    all.min_by_key(|(_, slot)| slot.used_ns)
                        .map(|(tgid, slot)| (tgid, slot.id))
                }
            };
            let Some((tgid, id)) = victim else { return };
            if self.remove(tgid, id) {
                self.recorded.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn remove(&mut self, tgid: u32, id: u64) -> bool {
        let Some(slots) = self.slots.get_mut(&tgid) else {
            return false;
        };
        let Some(position) = slots.iter().position(|slot| slot.id == id) else {
            return false;
        };
        let slot = slots.swap_remove(position);
        if slots.is_empty() {
            self.slots.remove(&tgid);
        }
        lock(&self.recorded.processes).remove(&id);
        self.processes -= 1;
        self.series -= slot.table.len();
        self.recorded
            .series
            .store(self.series as u64, Ordering::Relaxed);
        true
    }
}

impl Slot {
    /// Facts of a process are made anew when they were forgotten: the same ones are the same process.
    fn is(&self, process: &Arc<Process>) -> bool {
        Arc::ptr_eq(&self.shared.process, process) || *self.shared.process == **process
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
