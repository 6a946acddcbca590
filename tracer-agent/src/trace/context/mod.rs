//! Trace context that a request carries, in the formats of CONVENTIONS.md.
//!
//! In: the raw headers. Out: the first valid context in the order of the [`Propagators`], and which
//! formats before it were malformed, for the caller to count. A malformed value is never half-used:
//! its format counts as not there. It cannot see who wrote a header: whether the parent it names is
//! this process's own SDK or another host is for the caller to know.

mod b3;
mod datadog;
mod hex;
mod jaeger;
mod propagators;
mod w3c;
mod xray;

use crate::protocol::ContextHeaders;

use super::span::{SpanId, TraceId};
pub use propagators::Propagators;

/// A way to write trace context into headers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// `traceparent`, `tracestate` (W3C Trace Context, level 2).
    TraceContext,
    /// `b3`.
    B3Single,
    /// `X-B3-TraceId` and its siblings.
    B3Multi,
    /// `uber-trace-id`.
    Jaeger,
    /// `X-Amzn-Trace-Id`.
    XRay,
    /// `x-datadog-trace-id` and its siblings.
    Datadog,
}

impl Format {
    /// All formats, in the order in which they are tried by default.
    pub const ALL: [Format; 6] = [
        Format::TraceContext,
        Format::B3Single,
        Format::B3Multi,
        Format::Jaeger,
        Format::XRay,
        Format::Datadog,
    ];

    /// Name as in `OTEL_PROPAGATORS` and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Format::TraceContext => "tracecontext",
            Format::B3Single => "b3",
            Format::B3Multi => "b3multi",
            Format::Jaeger => "jaeger",
            Format::XRay => "xray",
            Format::Datadog => "datadog",
        }
    }

    fn read(self, headers: &ContextHeaders) -> Reading {
        match self {
            Format::TraceContext => w3c::read(headers),
            Format::B3Single => b3::read_single(headers),
            Format::B3Multi => b3::read_multi(headers),
            Format::Jaeger => jaeger::read(headers),
            Format::XRay => xray::read(headers),
            Format::Datadog => datadog::read(headers),
        }
    }
}

/// Where a request says it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestContext {
    /// Trace.
    pub trace_id: TraceId,
    /// Span that sent the request; `None` where the format may leave it out (X-Ray, Datadog).
    pub parent: Option<SpanId>,
    /// The sender's sampling decision; `None` if it left the decision to others.
    pub sampled: Option<bool>,
    /// W3C flags: sampled (01) as above, random (02) only if the format told it.
    pub flags: u8,
    /// `tracestate` by the rules of W3C: in order, members joined by commas, empty ones left out.
    pub trace_state: Option<Box<str>>,
}

/// Everything that was learnt from the headers of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extraction {
    /// The first valid context and its format.
    pub context: Option<(Format, RequestContext)>,
    /// A sampling decision without ids (`b3: 0`), and its format; only if there is no context.
    pub decision: Option<(Format, bool)>,
    /// Formats that were there but malformed, of those tried before a valid one.
    pub malformed: Malformed,
}

/// A set of formats, and whether a `tracestate` was refused beside a good `traceparent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Malformed {
    formats: u8,
    trace_state: bool,
}

impl Malformed {
    /// Was this format malformed?
    pub fn contains(self, format: Format) -> bool {
        self.formats & 1 << format as u8 != 0
    }

    /// Was `tracestate` dropped although its `traceparent` is good?
    pub fn trace_state(self) -> bool {
        self.trace_state
    }

    /// Was nothing malformed?
    pub fn is_empty(self) -> bool {
        self == Malformed::default()
    }
}

/// Reads the context from `headers`, first valid one in the order of `propagators`.
pub fn extract(headers: &ContextHeaders, propagators: &Propagators) -> Extraction {
    let mut extraction = Extraction::default();
    if headers.0.is_empty() {
        return extraction;
    }
    for &format in propagators.formats() {
        match format.read(headers) {
            Reading::Absent => {}
            Reading::Malformed => extraction.malformed.formats |= 1 << format as u8,
            Reading::Decision(sampled) => {
                extraction.decision.get_or_insert((format, sampled));
            }
            Reading::Context {
                context,
                trace_state_malformed,
            } => {
                extraction.malformed.trace_state = trace_state_malformed;
                extraction.context = Some((format, context));
                extraction.decision = None;
                break;
            }
        }
    }
    extraction
}

/// What one format says in one request.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reading {
    /// None of its headers is there.
    Absent,
    /// Its headers are there but break its rules.
    Malformed,
    /// To sample or not, without ids.
    Decision(bool),
    /// A whole context.
    Context {
        context: RequestContext,
        trace_state_malformed: bool,
    },
}

impl Reading {
    /// A context of a format that knows neither W3C flags nor `tracestate`.
    fn context(trace_id: TraceId, parent: Option<SpanId>, sampled: Option<bool>) -> Reading {
        let flags = if sampled == Some(true) {
            super::FLAG_SAMPLED
        } else {
            0
        };
        let context = RequestContext {
            trace_id,
            parent,
            sampled,
            flags,
            trace_state: None,
        };
        Reading::Context {
            context,
            trace_state_malformed: false,
        }
    }
}

/// A header that may be there once only.
enum Field<'a> {
    Absent,
    One(&'a str),
    /// More than once: which one holds is unknown.
    Repeated,
}

fn field<'a>(headers: &'a ContextHeaders, name: &str) -> Field<'a> {
    let mut values = fields(headers, name);
    match (values.next(), values.next()) {
        (None, _) => Field::Absent,
        (Some(value), None) => Field::One(value),
        (Some(_), Some(_)) => Field::Repeated,
    }
}

/// All values of a header, in order, without the white space around them.
fn fields<'a>(headers: &'a ContextHeaders, name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .0
        .iter()
        .filter(move |(key, _)| **key == *name)
        .map(|(_, value)| value.trim_matches([' ', '\t']))
}

fn trace_id(bytes: [u8; 16]) -> Option<TraceId> {
    (bytes != [0; 16]).then_some(TraceId(bytes))
}

fn span_id(bytes: [u8; 8]) -> Option<SpanId> {
    (bytes != [0; 8]).then_some(SpanId(bytes))
}

#[cfg(test)]
mod tests;
