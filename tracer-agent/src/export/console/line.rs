//! One span as one line in columns.
//!
//! In: a span, reduced to what is shown, and its place in the tree. Out: the line, with or without
//! colours. All text from outside goes through [`fit`] when the row is made.

use std::borrow::Cow;

use crate::protocol::Endpoint;
use crate::trace::target::Target;
use crate::trace::{Span, SpanId, SpanKind, grpc_status_name};

use super::ConsoleOptions;
use super::text::{cells, duration, fit, time_of_day};
use super::tree::{Node, Place};

/// Cells of the column of times.
const TIME: usize = 13;

/// Cells of the column of status codes.
const STATUS: usize = 3;

/// Cells of the column of durations.
const DURATION: usize = 8;

/// Cells between two columns.
const GAP: usize = 2;

/// Cells of the arrow and the space after it.
const ARROW: usize = 2;

/// Cells that a line of 80 leaves free for what went wrong, and who was asked. A wider line gives
/// a third of the rest to it too.
const NOTE: usize = 14;

/// Cells of a peer that are worth showing.
const MIN_PEER: usize = 10;

/// Stands for a method or path that was not seen.
const UNKNOWN: &str = "?";

/// Bounds of the column of requests: a wider one would tear the line apart.
const REQUEST: std::ops::RangeInclusive<usize> = 12..=72;

/// Cells of a service name, or of a peer, at most.
const MAX_NAME: usize = 40;

/// What is kept of a span until its trace is printed: bounded, and safe to print.
#[derive(Debug)]
pub(super) struct Row {
    id: SpanId,
    parent: Option<SpanId>,
    kind: SpanKind,
    service: String,
    method: String,
    path: String,
    peer: String,
    start_unix_ns: u64,
    duration_ns: u64,
    status: Status,
    error_type: Option<Cow<'static, str>>,
}

/// How it was answered.
#[derive(Clone, Copy, Debug)]
enum Status {
    /// Not at all.
    None,
    /// Somehow: what was said was not seen.
    Unknown,
    Http(u16),
    Grpc(u32),
}

impl Status {
    fn of(span: &Span) -> Status {
        match (&span.exchange.grpc, &span.exchange.response) {
            (Some(grpc), _) => grpc.status.map_or(Status::Unknown, Status::Grpc),
            (None, None) => Status::None,
            (None, Some(response)) if response.status == 0 => Status::Unknown,
            (None, Some(response)) => Status::Http(response.status),
        }
    }

    /// What stands in the column.
    fn text(self) -> Cow<'static, str> {
        match self {
            Status::None => "---".into(),
            Status::Unknown => "?".into(),
            Status::Grpc(0) => "OK".into(),
            Status::Http(status) => status.to_string().into(),
            Status::Grpc(status) => status.to_string().into(),
        }
    }
}

impl Row {
    pub(super) fn new(span: &Span) -> Row {
        let request = &span.exchange.request;
        let target = Target::parse(&request.method, &request.target);
        let path = match target.authority {
            Some(authority) if target.path.is_empty() => authority,
            _ => target.path,
        };
        let peer = match (
            span.kind,
            target.authority.or(request.authority.as_deref()),
            &span.connection.remote,
        ) {
            (SpanKind::Server, _, _) => String::new(),
            // The authority form names it already.
            _ if target.path.is_empty() => String::new(),
            (SpanKind::Client, _, Endpoint::Unix(Some(socket))) => fit(socket, MAX_NAME),
            (SpanKind::Client, Some(authority), _) => fit(authority, MAX_NAME),
            (SpanKind::Client, None, Endpoint::Ip(address)) => address.to_string(),
            (SpanKind::Client, None, Endpoint::Unix(None) | Endpoint::Unknown) => String::new(),
        };
        let method = match &span.exchange.grpc {
            Some(_) => "grpc",
            None if request.method.is_empty() => UNKNOWN,
            None => &*request.method,
        };
        let path = match &span.exchange.grpc {
            _ if request.target.is_empty() => UNKNOWN,
            Some(_) => path.strip_prefix('/').unwrap_or(path),
            None => path,
        };
        Row {
            id: span.span_id,
            parent: span.parent,
            kind: span.kind,
            service: fit(&span.process.service_name, MAX_NAME),
            method: fit(method, 10),
            path: fit(path, *REQUEST.end()),
            peer,
            start_unix_ns: span.start_unix_ns,
            duration_ns: span.end_unix_ns.saturating_sub(span.start_unix_ns),
            status: Status::of(span),
            error_type: span.error_type(),
        }
    }

    pub(super) fn node(&self) -> Node {
        Node {
            id: self.id,
            parent: self.parent,
            start_unix_ns: self.start_unix_ns,
        }
    }

    pub(super) fn start_unix_ns(&self) -> u64 {
        self.start_unix_ns
    }

    /// Cells that lines and service want in the first column.
    pub(super) fn wanted(&self, place: &Place) -> usize {
        cells(&place.lines) + cells(&self.service)
    }

    /// The line. `services` are the cells of the column of trees and services; `root` is the first
    /// row of the tree, whose start the others are told from.
    pub(super) fn line(
        &self,
        place: &Place,
        root: &Row,
        services: usize,
        options: &ConsoleOptions,
    ) -> String {
        let note = NOTE + options.width.saturating_sub(80) / 3;
        let fixed = TIME + services + ARROW + STATUS + DURATION + note + 5 * GAP;
        let request = options
            .width
            .saturating_sub(fixed)
            .clamp(*REQUEST.start(), *REQUEST.end());
        let mut line = Line::new(options.colour);

        let start = if place.lines.is_empty() {
            time_of_day(self.start_unix_ns)
        } else {
            let sign = if self.start_unix_ns < root.start_unix_ns {
                '-'
            } else {
                '+'
            };
            format!(
                "{sign}{}",
                duration(self.start_unix_ns.abs_diff(root.start_unix_ns))
            )
        };
        line.right(Style::Dim, &start, TIME);
        line.gap(GAP);

        let tree = cells(&place.lines);
        line.put(Style::Dim, &place.lines);
        line.left(
            Style::Plain,
            &fit(&self.service, services.saturating_sub(tree)),
            services.saturating_sub(tree),
        );
        line.gap(GAP);
        match self.kind {
            SpanKind::Server => line.put(Style::Blue, "←"),
            SpanKind::Client => line.put(Style::Magenta, "→"),
        }
        line.gap(1);

        let method = cells(&self.method) + 1;
        line.put(Style::Bold, &self.method);
        line.gap(1);
        let path = request.saturating_sub(method);
        line.left(Style::Plain, &fit(&self.path, path), path);
        line.gap(GAP);

        let status = self.status.text();
        line.right(self.status_style(), &status, STATUS);
        line.gap(GAP);
        let slow = u128::from(self.duration_ns) >= options.slow.as_nanos();
        line.right(
            if slow { Style::Slow } else { Style::Plain },
            &duration(self.duration_ns),
            DURATION,
        );

        let note = match (&self.error_type, self.status) {
            (Some(error_type), _) if **error_type != *status => {
                Some((Style::Error, error_type.clone()))
            }
            (None, Status::Grpc(code @ 1..)) => Some((Style::Plain, grpc_status_name(code))),
            _ => None,
        };
        if let Some((style, note)) = note {
            line.gap(GAP);
            line.put(style, &note);
        }
        // Who answers is said by the span below, if there is one.
        let room = options.width.saturating_sub(line.cells + GAP);
        if place.leaf && room >= MIN_PEER.min(cells(&self.peer)) {
            line.gap(GAP);
            line.put(Style::Dim, &fit(&self.peer, room));
        }
        line.text
    }

    fn status_style(&self) -> Style {
        match self.status {
            Status::None | Status::Http(500..) => Style::Error,
            Status::Http(400..500) => Style::Yellow,
            Status::Http(200..300) | Status::Grpc(0) => Style::Green,
            Status::Grpc(_) if self.error_type.is_some() => Style::Error,
            Status::Grpc(_) => Style::Yellow,
            Status::Unknown | Status::Http(_) => Style::Cyan,
        }
    }
}

/// How a piece of a line looks on a terminal.
#[derive(Clone, Copy)]
enum Style {
    Plain,
    Bold,
    Dim,
    Green,
    Cyan,
    Yellow,
    Blue,
    Magenta,
    Slow,
    Error,
}

impl Style {
    /// ECMA-48 parameters of "select graphic rendition".
    fn parameters(self) -> Option<&'static str> {
        Some(match self {
            Style::Plain => return None,
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Green => "32",
            Style::Cyan => "36",
            Style::Yellow => "33",
            Style::Blue => "34",
            Style::Magenta => "35",
            Style::Slow => "1;33",
            Style::Error => "1;31",
        })
    }
}

/// A line that grows, and the cells it takes.
struct Line {
    text: String,
    cells: usize,
    /// Cells owed since the last text: a line does not end in spaces.
    owed: usize,
    colour: bool,
}

impl Line {
    fn new(colour: bool) -> Line {
        Line {
            text: String::with_capacity(256),
            cells: 0,
            owed: 0,
            colour,
        }
    }

    fn gap(&mut self, cells: usize) {
        self.owed += cells;
        self.cells += cells;
    }

    fn put(&mut self, style: Style, text: &str) {
        if text.is_empty() {
            return;
        }
        self.text
            .extend(std::iter::repeat_n(' ', std::mem::take(&mut self.owed)));
        self.cells += cells(text);
        match style.parameters().filter(|_| self.colour) {
            Some(parameters) => {
                self.text
                    .extend(["\x1b[", parameters, "m", text, "\x1b[0m"]);
            }
            None => self.text.push_str(text),
        }
    }

    fn left(&mut self, style: Style, text: &str, width: usize) {
        self.put(style, text);
        self.gap(width.saturating_sub(cells(text)));
    }

    fn right(&mut self, style: Style, text: &str, width: usize) {
        self.gap(width.saturating_sub(cells(text)));
        self.put(style, text);
    }
}
