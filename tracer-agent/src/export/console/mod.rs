//! Span trees for people, on a terminal or in a pipe.
//!
//! In: finished spans and the time. Out: lines, one per span, those of a trace together and below
//! their parents. [`ConsoleTree`] is pure; [`ConsoleWriter`] prints what it gives.
//!
//! A trace is printed when it has been quiet for a moment, and a while after its first span at the
//! latest. What comes later is printed as a tree of its own. It cannot see spans that were
//! exported by others: a span whose parent it does not have is a root.

mod exporter;
mod line;
mod text;
mod tree;

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::trace::{Span, TraceId};
pub use exporter::ConsoleExporter;
use line::Row;

/// How it looks and how long it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleOptions {
    /// Use ANSI colours.
    pub colour: bool,
    /// Cells of a line.
    pub width: usize,
    /// A trace is printed this long after its last span.
    pub quiet: Duration,
    /// A trace is printed this long after its first span, at the latest.
    pub longest_wait: Duration,
    /// Spans that take at least this long stand out.
    pub slow: Duration,
    /// Traces that wait at once, at most; the oldest one is printed early when there are more.
    pub max_traces: usize,
    /// Spans that wait at once, at most; likewise.
    pub max_spans: usize,
}

impl Default for ConsoleOptions {
    fn default() -> Self {
        ConsoleOptions {
            colour: false,
            width: 120,
            quiet: Duration::from_millis(250),
            longest_wait: Duration::from_secs(1),
            slow: Duration::from_millis(500),
            max_traces: 1_000,
            max_spans: 10_000,
        }
    }
}

impl ConsoleOptions {
    /// What suits this process's standard output: colours on a terminal, unless `NO_COLOR` is set
    /// (<https://no-color.org>) or `TERM` is `dumb`; the width from `COLUMNS`, else the terminal.
    pub fn for_stdout() -> ConsoleOptions {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        let columns = std::env::var("COLUMNS")
            .ok()
            .and_then(|columns| columns.parse().ok());
        let columns = columns.or_else(|| {
            let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
            Some(usize::from(size.ws_col))
        });
        let defaults = ConsoleOptions::default();
        ConsoleOptions {
            colour: wants_colour(
                terminal,
                std::env::var_os("NO_COLOR").as_deref(),
                std::env::var_os("TERM").as_deref(),
            ),
            width: columns
                .filter(|columns| *columns > 0)
                .unwrap_or(defaults.width),
            ..defaults
        }
    }
}

fn wants_colour(terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty) && term.is_none_or(|term| term != "dumb")
}

/// Collects spans by trace and turns them into lines.
#[derive(Debug)]
pub struct ConsoleTree {
    options: ConsoleOptions,
    waiting: HashMap<TraceId, Waiting>,
    /// The keys of `waiting`, oldest first.
    order: VecDeque<TraceId>,
    waiting_spans: usize,
    ready: Vec<String>,
    not_shown: u64,
    not_shown_told: u64,
    /// Cells of the column of trees and services: it only grows, so that traces stay aligned.
    services: usize,
}

/// A trace that is not printed yet.
#[derive(Debug)]
struct Waiting {
    rows: Vec<Row>,
    first: Instant,
    last: Instant,
}

/// Cells of the column of trees and services to begin with.
const MIN_SERVICES: usize = 16;

impl ConsoleTree {
    /// An empty one.
    pub fn new(options: ConsoleOptions) -> ConsoleTree {
        ConsoleTree {
            options,
            waiting: HashMap::new(),
            order: VecDeque::new(),
            waiting_spans: 0,
            ready: Vec::new(),
            not_shown: 0,
            not_shown_told: 0,
            services: MIN_SERVICES,
        }
    }

    /// Takes a span, which arrived `now`.
    pub fn add(&mut self, span: &Span, now: Instant) {
        if !self.waiting.contains_key(&span.trace_id) {
            if self.waiting.len() >= self.options.max_traces {
                self.print_oldest();
            }
            self.order.push_back(span.trace_id);
        }
        let waiting = self
            .waiting
            .entry(span.trace_id)
            .or_insert_with(|| Waiting {
                rows: Vec::new(),
                first: now,
                last: now,
            });
        waiting.rows.push(Row::new(span));
        waiting.last = now;
        self.waiting_spans += 1;
        if self.waiting_spans > self.options.max_spans {
            self.print_oldest();
        }
    }

    /// The lines that are due by `now`.
    pub fn poll(&mut self, now: Instant) -> Vec<String> {
        let is_due = |id: &&TraceId| {
            self.waiting
                .get(*id)
                .is_some_and(|waiting| due(waiting, &self.options).is_some_and(|due| due <= now))
        };
        let ids = self.order.iter().filter(is_due).copied().collect();
        self.print(ids);
        self.take_ready()
    }

    /// All lines, due or not: for the end.
    pub fn finish(&mut self) -> Vec<String> {
        self.print(self.order.iter().copied().collect());
        self.take_ready()
    }

    /// When [`ConsoleTree::poll`] will have lines; `None` if nothing waits for it.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting
            .values()
            .filter_map(|waiting| due(waiting, &self.options))
            .min()
    }

    /// Spans that were left out, ever, because nobody took the lines.
    pub fn not_shown(&self) -> u64 {
        self.not_shown
    }

    fn print_oldest(&mut self) {
        if let Some(&oldest) = self.order.front() {
            self.print(vec![oldest]);
        }
    }

    fn print(&mut self, ids: Vec<TraceId>) {
        let mut traces: Vec<Waiting> = ids
            .iter()
            .filter_map(|id| self.waiting.remove(id))
            .collect();
        if traces.is_empty() {
            return;
        }
        let Self { order, waiting, .. } = self;
        match ids.as_slice() {
            // The usual case of an overflow need not look at all others.
            [id] if order.front() == Some(id) => {
                order.pop_front();
            }
            _ => order.retain(|id| waiting.contains_key(id)),
        }
        traces.sort_by_key(|trace| trace.rows.iter().map(Row::start_unix_ns).min());
        for Waiting {
            rows,
            first: _,
            last: _,
        } in traces
        {
            self.waiting_spans -= rows.len();
            self.print_trace(&rows);
        }
    }

    fn print_trace(&mut self, rows: &[Row]) {
        // Room for the note of `take_ready` is not counted.
        let room = self.options.max_spans.saturating_sub(self.ready.len());
        let nodes: Vec<_> = rows.iter().map(Row::node).collect();
        let places = tree::arrange(&nodes);
        let wanted = places
            .iter()
            .map(|place| rows[place.index].wanted(place))
            .max()
            .unwrap_or(0);
        let most = (self.options.width / 4).max(MIN_SERVICES);
        self.services = wanted.min(most).max(self.services);
        for place in places.iter().take(room) {
            let line =
                rows[place.index].line(place, &rows[place.root], self.services, &self.options);
            self.ready.push(line);
        }
        self.not_shown += places.len().saturating_sub(room) as u64;
    }

    fn take_ready(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.ready);
        let untold = self.not_shown - self.not_shown_told;
        if untold > 0 {
            lines.push(format!(
                "… {untold} more spans, faster than they can be printed"
            ));
            self.not_shown_told = self.not_shown;
        }
        lines
    }
}

/// When it is to be printed; `None` if the options make that later than time goes.
fn due(waiting: &Waiting, options: &ConsoleOptions) -> Option<Instant> {
    let quiet = waiting.last.checked_add(options.quiet);
    let longest = waiting.first.checked_add(options.longest_wait);
    quiet.into_iter().chain(longest).min()
}

/// Prints the lines of a [`ConsoleTree`].
#[derive(Debug)]
pub struct ConsoleWriter<W> {
    tree: ConsoleTree,
    out: W,
}

impl<W: Write> ConsoleWriter<W> {
    /// Prints to `out`.
    pub fn new(options: ConsoleOptions, out: W) -> ConsoleWriter<W> {
        ConsoleWriter {
            tree: ConsoleTree::new(options),
            out,
        }
    }

    /// Takes spans, and prints what is due.
    ///
    /// # Errors
    /// What `out` fails with; a closed pipe is for the caller to end on.
    pub fn export(&mut self, spans: &[Span], now: Instant) -> std::io::Result<()> {
        for span in spans {
            self.tree.add(span, now);
        }
        self.tick(now)
    }

    /// Prints what is due; to be called at [`ConsoleWriter::deadline`].
    ///
    /// # Errors
    /// As [`ConsoleWriter::export`].
    pub fn tick(&mut self, now: Instant) -> std::io::Result<()> {
        let lines = self.tree.poll(now);
        self.print(&lines)
    }

    /// Prints all that is left.
    ///
    /// # Errors
    /// As [`ConsoleWriter::export`].
    pub fn finish(&mut self) -> std::io::Result<()> {
        let lines = self.tree.finish();
        self.print(&lines)
    }

    /// When to call [`ConsoleWriter::tick`] next; `None` if nothing waits.
    pub fn deadline(&self) -> Option<Instant> {
        self.tree.deadline()
    }

    /// Spans that were left out, ever (see [`ConsoleTree::not_shown`]).
    pub fn not_shown(&self) -> u64 {
        self.tree.not_shown()
    }

    fn print(&mut self, lines: &[String]) -> std::io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        // In one piece, so that what others print does not get in between.
        let mut text = lines.join("\n");
        text.push('\n');
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;
