//! Whose a span is, by what is known of its process now.

use super::payload::Class;
use super::process::{Coverage, Process};
use super::recent::Recent;
use super::settings::Mode;
use crate::trace::span::{Link, Span, SpanId, TraceId};

/// A span that is not decided yet.
#[derive(Debug)]
pub struct Held {
    pub due_ns: u64,
    pub span: Span,
    /// A client span whose request carries a context made in its process.
    pub own: bool,
}

/// What became of a server span.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    Reported,
    /// With the context that its request carried.
    Left(Option<(TraceId, SpanId)>),
}

/// What is done with a span.
pub enum Verdict {
    Report,
    /// Below another parent, which is another process's if the second is set.
    ReportBelow(Option<SpanId>, bool),
    Leave,
    Wait,
}

/// About a server span. `last`: nothing more will become known.
pub fn about_server(process: &mut Process, span: &Span, now_ns: u64, last: bool) -> Verdict {
    match process.mode {
        Mode::Trace => return Verdict::Report,
        Mode::Leave => return Verdict::Leave,
        Mode::Auto => {}
    }
    if process.is_active() {
        let class = class_of(span);
        let coverage = match process.server(class) {
            Coverage::Unknown if last => process.give_up(class),
            coverage => coverage,
        };
        return match coverage {
            Coverage::Reported => Verdict::Leave,
            Coverage::Absent => Verdict::Report,
            Coverage::Unknown => Verdict::Wait,
        };
    }
    wait_or_report(process, now_ns, last)
}

/// About a client span; `fates` are those of the server spans of its process.
pub fn about_client(
    process: &Process,
    fates: &Recent<Fate>,
    held: &Held,
    now_ns: u64,
    last: bool,
) -> Verdict {
    match process.mode {
        Mode::Trace => return Verdict::Report,
        Mode::Leave => return Verdict::Leave,
        Mode::Auto => {}
    }
    if !process.is_active() {
        return wait_or_report(process, now_ns, last);
    }
    if held.own {
        return Verdict::Leave;
    }
    let (Some(Link::Cause(_)), Some(parent)) = (held.span.link, held.span.parent) else {
        return Verdict::Report;
    };
    // A call that the SDK does not see, for a request that it may see.
    match fates.get(parent) {
        Some(Fate::Reported) => Verdict::Report,
        Some(Fate::Left(None)) => Verdict::ReportBelow(None, false),
        Some(Fate::Left(Some((trace_id, above)))) => {
            match process.server_span(*trace_id, *above) {
                Some(span) => Verdict::ReportBelow(Some(span), false),
                // The caller's span is not the parent but is above it.
                None if last => Verdict::ReportBelow(Some(*above), true),
                None => Verdict::Wait,
            }
        }
        None if !last => Verdict::Wait,
        // The request is still being answered, or was forgotten.
        None => Verdict::ReportBelow(None, false),
    }
}

fn wait_or_report(process: &Process, now_ns: u64, last: bool) -> Verdict {
    if !last && process.is_suspect(now_ns) {
        Verdict::Wait
    } else {
        Verdict::Report
    }
}

fn class_of(span: &Span) -> Class {
    match span.exchange.grpc {
        Some(_) => Class::Rpc,
        None => Class::Http,
    }
}
