//! The stage itself: buffers traces where it must, decides each once, and lets late spans follow.

use rustc_hash::{FxHashMap, FxHashSet};

use super::budget::Budgets;
use super::head::Head;
use super::memory::{Decision, Memory};
use super::settings::Settings;
use super::threshold::{Randomness, Threshold};
use super::tracestate;
use crate::trace::{FLAG_SAMPLED, Span, TraceId};

/// Spans of a trace are not finished in the order of their starts: once a root is known its trace
/// stays open this long after its last span, for those that are on their way.
const LINGER_NS: u64 = 250_000_000;
/// When too many spans wait, this share of the traces is decided at once, oldest first.
const RELIEF: usize = 8;

/// Decides about spans. Pure: times are the caller's, of any one clock that does not go back.
#[derive(Debug)]
pub struct Sampler {
    settings: Settings,
    mode: Mode,
    pending: FxHashMap<TraceId, Pending>,
    /// Spans in `pending`.
    buffered: usize,
    memory: Memory,
    budgets: Budgets,
    counts: SamplerCounts,
    /// Sampled out, until somebody asks.
    left_out: Vec<Span>,
}

/// What was counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SamplerCounts {
    /// Spans handed on.
    pub kept: u64,
    /// Spans left out.
    pub sampled_out: u64,
    /// Traces decided because their root was known.
    pub by_root: u64,
    /// Traces decided at the deadline, without a root.
    pub by_deadline: u64,
    /// Traces decided early because too many spans waited.
    pub by_bound: u64,
    /// Spans that came after their trace was decided.
    pub late: u64,
    /// Spans whose `tracestate` had no room for what is to be said.
    pub tracestate_full: u64,
}

/// How much has to be known before a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Everything is kept, but what somebody else decided against.
    Open,
    /// The head of the trace says it.
    Head,
    /// The outcome of the trace says it.
    Outcome,
}

/// A trace that is not decided yet.
#[derive(Debug)]
struct Pending {
    spans: Vec<Span>,
    first_ns: u64,
    last_ns: u64,
    /// Spans came since `has_root` was found out.
    stale: bool,
    has_root: bool,
}

impl Mode {
    fn of(settings: &Settings) -> Mode {
        if settings.needs_outcome() {
            Mode::Outcome
        } else if settings.standard.root == Threshold::ALWAYS {
            Mode::Open
        } else {
            Mode::Head
        }
    }
}

impl Sampler {
    /// A sampler that has seen nothing yet.
    pub fn new(settings: Settings) -> Sampler {
        Sampler {
            mode: Mode::of(&settings),
            settings,
            pending: FxHashMap::default(),
            buffered: 0,
            memory: Memory::default(),
            budgets: Budgets::default(),
            counts: SamplerCounts::default(),
            left_out: Vec::new(),
        }
    }

    /// Follows other settings from now on. What is decided stays so; what waits is decided by them.
    pub fn reload(&mut self, settings: Settings) {
        self.mode = Mode::of(&settings);
        self.settings = settings;
    }

    /// What was counted so far.
    pub fn counts(&self) -> SamplerCounts {
        self.counts
    }

    /// What was sampled out since the last call.
    pub fn take_left_out(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.left_out)
    }

    /// Spans that wait for a decision.
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    /// True for a span that is kept, whatever its trace: then it is as it has to be.
    pub fn keeps(&mut self, span: &mut Span) -> bool {
        self.mode == Mode::Open && self.pending.is_empty() && self.open(span)
    }

    /// Takes a span; what is decided now goes to `out`.
    pub fn push(&mut self, mut span: Span, now_ns: u64, out: &mut Vec<Span>) {
        if self.mode == Mode::Open && self.pending.is_empty() {
            if self.open(&mut span) {
                out.push(span);
            } else {
                self.leave_out(span);
            }
            return;
        }
        let trace = span.trace_id;
        if let Some(pending) = self.pending.get_mut(&trace) {
            let decides = self.mode != Mode::Outcome && !lacks_a_word(&span);
            pending.spans.push(span);
            pending.last_ns = now_ns;
            pending.stale = true;
            self.buffered += 1;
            if decides {
                self.release(trace, out);
            }
        } else if let Some(decision) = self.memory.get(&trace) {
            self.follow(span, decision, out);
        } else if self.waits(&span) {
            let pending = Pending {
                spans: vec![span],
                first_ns: now_ns,
                last_ns: now_ns,
                stale: true,
                has_root: false,
            };
            self.pending.insert(trace, pending);
            self.buffered += 1;
        } else {
            self.decide(trace, vec![span], out);
        }
        if self.buffered > self.settings.max_buffered {
            self.relieve(out);
        }
    }

    /// Time passed: decides what is due.
    pub fn tick(&mut self, now_ns: u64, out: &mut Vec<Span>) {
        self.budgets.tick(now_ns);
        let wait_ns = u64::try_from(self.settings.decision_wait.as_nanos()).unwrap_or(u64::MAX);
        let mut due = Vec::new();
        for (trace, pending) in &mut self.pending {
            if std::mem::take(&mut pending.stale) {
                pending.has_root = has_root(&pending.spans);
            }
            let deadline_ns = pending.first_ns.saturating_add(wait_ns);
            let rooted_ns = pending.last_ns.saturating_add(LINGER_NS);
            let by_root = pending.has_root && rooted_ns <= now_ns;
            if by_root || deadline_ns <= now_ns {
                due.push((pending.first_ns, trace.0, by_root));
            }
        }
        due.sort_unstable();
        for (_, trace, by_root) in due {
            if by_root {
                self.counts.by_root += 1;
            } else {
                self.counts.by_deadline += 1;
            }
            self.release(TraceId(trace), out);
        }
    }

    /// The end: decides everything by what is known.
    pub fn finish(&mut self, out: &mut Vec<Span>) {
        let mut rest: Vec<_> = self
            .pending
            .iter()
            .map(|(id, p)| (p.first_ns, id.0))
            .collect();
        rest.sort_unstable();
        for (_, trace) in rest {
            self.release(TraceId(trace), out);
        }
    }

    /// Nothing is left out but by somebody else's decision, which is false; nothing is written that is not
    /// wrong.
    fn open(&mut self, span: &mut Span) -> bool {
        let dropped = self.settings.standard.parent_based
            && match span.sampled {
                Some(false) => {
                    self.memory.put(span.trace_id, Decision::DROP);
                    true
                }
                Some(true) => false,
                None => {
                    !self.memory.is_empty()
                        && lacks_a_word(span)
                        && self.memory.get(&span.trace_id).is_some_and(|d| !d.keep)
                }
            };
        if dropped {
            return false;
        }
        if let Some(state) = span.trace_state.as_deref() {
            let ot = tracestate::read(Some(state));
            let randomness = randomness_of(span, ot.randomness);
            let head = self.settings.standard.decide(span.sampled, ot, randomness);
            let threshold = match head {
                Head::At(threshold) => Some(threshold),
                Head::Unknown | Head::Drop => None,
            };
            if ot.threshold.is_some() && ot.threshold != threshold {
                self.write(span, threshold, None);
            }
        }
        span.flags |= FLAG_SAMPLED;
        self.counts.kept += 1;
        true
    }

    /// True if the trace of this span cannot be decided by this span.
    fn waits(&self, span: &Span) -> bool {
        match self.mode {
            Mode::Open => false,
            Mode::Head => self.settings.standard.parent_based && lacks_a_word(span),
            Mode::Outcome => {
                let ot = tracestate::read(span.trace_state.as_deref());
                let randomness = randomness_of(span, ot.randomness);
                // What is kept for certain needs no reason, unless a budget may still forbid it.
                let head = self.settings.standard.decide(span.sampled, ot, randomness);
                head != Head::At(Threshold::ALWAYS)
                    || self.settings.standard.parent_based && lacks_a_word(span)
                    || self.settings.budget(&span.process.service_name).is_some()
            }
        }
    }

    /// Decides a trace that waits.
    fn release(&mut self, trace: TraceId, out: &mut Vec<Span>) {
        if let Some(pending) = self.pending.remove(&trace) {
            self.buffered -= pending.spans.len();
            self.decide(trace, pending.spans, out);
        }
    }

    /// Too many spans wait: the oldest traces are decided by what is known.
    fn relieve(&mut self, out: &mut Vec<Span>) {
        let mut ages: Vec<_> = self
            .pending
            .iter()
            .map(|(id, p)| (p.first_ns, id.0))
            .collect();
        ages.sort_unstable();
        let share = ages.len().div_ceil(RELIEF);
        for (_, trace) in ages.into_iter().take(share) {
            self.counts.by_bound += 1;
            self.release(TraceId(trace), out);
        }
    }

    fn decide(&mut self, trace: TraceId, spans: Vec<Span>, out: &mut Vec<Span>) {
        let Some(decider) = spans.iter().min_by_key(|span| seniority(span)) else {
            return;
        };
        let ot = tracestate::read(decider.trace_state.as_deref());
        let randomness = randomness_of(decider, ot.randomness);
        let head = self
            .settings
            .standard
            .decide(decider.sampled, ot, randomness);
        let certain = self.mode == Mode::Outcome
            && spans
                .iter()
                .any(|span| self.settings.is_kept_for_itself(span));
        let decision = if certain {
            Decision {
                keep: true,
                threshold: Some(Threshold::ALWAYS),
                randomness: ot.randomness,
                certain,
                offered: 1.0,
            }
        } else {
            let budget = self.budget(&spans);
            let (keep, threshold, offered) = match head {
                Head::Drop => (false, None, 0.0),
                Head::Unknown => (budget.keeps(randomness), None, 1.0),
                Head::At(head) => {
                    let threshold = head.max(budget);
                    let keep = threshold.keeps(randomness);
                    (keep, Some(threshold), head.probability())
                }
            };
            Decision {
                keep,
                threshold,
                randomness: ot.randomness,
                certain,
                offered,
            }
        };
        // Others can find out the same from the id, unless it was not the id that decided.
        let standard = self.settings.standard;
        if self.mode == Mode::Outcome || standard.parent_based || ot.randomness.is_some() {
            self.memory.put(trace, decision);
        }
        for span in spans {
            self.apply(span, decision, out);
        }
    }

    /// The highest threshold of the services that take part.
    fn budget(&mut self, spans: &[Span]) -> Threshold {
        let mut highest = Threshold::ALWAYS;
        let mut last: Option<&str> = None;
        for span in spans {
            let service = &*span.process.service_name;
            if last == Some(service) {
                continue;
            }
            last = Some(service);
            if let Some(goal) = self.settings.budget(service) {
                highest = highest.max(self.budgets.threshold(service, goal));
            }
        }
        highest
    }

    /// A span of a trace that is decided. One that is reason enough to be kept is kept, and so is
    /// what comes behind it: that does not depend on the randomness either.
    fn follow(&mut self, span: Span, mut decision: Decision, out: &mut Vec<Span>) {
        if self.mode == Mode::Outcome {
            self.counts.late += 1;
            if !decision.certain && self.settings.is_kept_for_itself(&span) {
                decision = Decision {
                    keep: true,
                    threshold: Some(Threshold::ALWAYS),
                    randomness: decision.randomness,
                    certain: true,
                    offered: 1.0,
                };
                self.memory.put(span.trace_id, decision);
            }
        }
        self.apply(span, decision, out);
    }

    fn apply(&mut self, mut span: Span, decision: Decision, out: &mut Vec<Span>) {
        let Decision {
            keep,
            threshold,
            randomness,
            certain,
            offered,
        } = decision;
        let service = &*span.process.service_name;
        if offered > 0.0
            && let Some(goal) = self.settings.budget(service)
        {
            self.budgets.note(service, goal, certain, offered);
        }
        if !keep {
            return self.leave_out(span);
        }
        self.write(&mut span, threshold, randomness);
        span.flags |= FLAG_SAMPLED;
        self.counts.kept += 1;
        out.push(span);
    }

    fn leave_out(&mut self, span: Span) {
        self.counts.sampled_out += 1;
        self.left_out.push(span);
    }

    fn write(
        &mut self,
        span: &mut Span,
        threshold: Option<Threshold>,
        randomness: Option<Randomness>,
    ) {
        let state = span.trace_state.as_deref();
        let said = tracestate::read(state);
        if said.threshold == threshold && (randomness.is_none() || said.randomness == randomness) {
            return;
        }
        let written = tracestate::with(state, threshold, randomness).or_else(|full| {
            self.counts.tracestate_full += 1;
            // Nothing is better than a threshold that was not applied.
            tracestate::with(state, None, None).map_err(|_| full)
        });
        span.trace_state = written.unwrap_or(None);
    }
}

/// Whether the span's parent is on this host, so that it will come, or came, by here too if it is a
/// span of ours.
fn parent_is_here(span: &Span) -> bool {
    span.parent.is_some() && !span.parent_is_remote
}

/// A span that somebody else on this host has to speak for: its parent is here, and it came without
/// a decision.
fn lacks_a_word(span: &Span) -> bool {
    span.sampled.is_none() && parent_is_here(span)
}

fn randomness_of(span: &Span, explicit: Option<Randomness>) -> Randomness {
    explicit.unwrap_or_else(|| Randomness::of_trace(span.trace_id))
}

/// Whose word counts for the trace, lowest first: one that came with a decision, then a root, then
/// the one that began first.
fn seniority(span: &Span) -> (bool, bool, u64, [u8; 8]) {
    (
        span.sampled.is_none(),
        parent_is_here(span),
        span.start_unix_ns,
        span.span_id.0,
    )
}

/// Whether every span leads to one that has no parent on this host.
fn has_root(spans: &[Span]) -> bool {
    if let [span] = spans {
        return !parent_is_here(span);
    }
    let ids: FxHashSet<_> = spans.iter().map(|span| span.span_id).collect();
    spans.iter().all(|span| {
        !parent_is_here(span) || span.parent.is_some_and(|parent| ids.contains(&parent))
    })
}
