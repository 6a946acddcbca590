//! Exchanges become spans here.
//!
//! In: an exchange with its connection and process, and the distance from the boot clock to the
//! wall clock. Out: one span. Ids and parents come from the trace context that the request
//! carried, else a new trace begins. Secrets are taken out before the span exists, so that nothing
//! behind this room ever holds one.

use std::sync::Arc;

use crate::meta::Process;
use crate::protocol::{Connection, Exchange, Role};

use super::context::{Extraction, Format, Propagators, RequestContext, extract};
use super::ids::Ids;
use super::redact::Redaction;
use super::span::{Link, Span, SpanKind};
use super::{FLAG_RANDOM, FLAG_SAMPLED};

/// Makes spans of exchanges.
#[derive(Debug)]
pub struct SpanBuilder {
    propagators: Propagators,
    redaction: Redaction,
    ids: Ids,
    counts: ContextCounts,
}

impl SpanBuilder {
    /// A builder that reads the formats of `propagators`, hides what `redaction` says and draws new
    /// ids from `rng` (see [`Ids::new`] for its seed).
    pub fn new(propagators: Propagators, redaction: Redaction, rng: fastrand::Rng) -> SpanBuilder {
        SpanBuilder {
            propagators,
            redaction,
            ids: Ids::new(rng),
            counts: ContextCounts::default(),
        }
    }

    /// The span of `exchange`; `boot_to_unix_offset_ns` is what makes wall clock of its times.
    ///
    /// A server span continues what its request carried. So does a client span: the header was
    /// written by the client's own SDK (or by whoever it forwards a request for), so the span named
    /// in it is the parent here too, but not a remote one.
    pub fn build(
        &mut self,
        mut exchange: Exchange,
        connection: &Arc<Connection>,
        process: &Arc<Process>,
        boot_to_unix_offset_ns: i64,
    ) -> Span {
        let extraction = extract(&exchange.request.context, &self.propagators);
        self.counts.add(&extraction);
        let Extraction {
            context,
            decision,
            malformed: _,
        } = extraction;
        let RequestContext {
            trace_id,
            parent,
            sampled,
            flags,
            trace_state,
        } = match context {
            Some((_, context)) => context,
            None => RequestContext {
                trace_id: self.ids.trace_id(),
                parent: None,
                sampled: decision.map(|(_, sampled)| sampled),
                flags: FLAG_RANDOM,
                trace_state: None,
            },
        };
        // A decision that was left to us is for the sampler; until then the span is wanted.
        let sampled_flag = if sampled.unwrap_or(true) {
            FLAG_SAMPLED
        } else {
            0
        };
        let kind = match exchange.role {
            Role::Server => SpanKind::Server,
            Role::Client => SpanKind::Client,
        };
        self.redact(&mut exchange);
        let start_unix_ns = unix_ns(exchange.start_ns, boot_to_unix_offset_ns);
        Span {
            trace_id,
            span_id: self.ids.span_id(),
            parent,
            link: parent.map(|_| Link::Context),
            parent_is_remote: parent.is_some() && kind == SpanKind::Server,
            flags: flags & !FLAG_SAMPLED | sampled_flag,
            sampled,
            trace_state,
            kind,
            start_unix_ns,
            end_unix_ns: unix_ns(exchange.end_ns, boot_to_unix_offset_ns).max(start_unix_ns),
            process: Arc::clone(process),
            exchange,
            connection: Arc::clone(connection),
            template: None,
            peer: None,
        }
    }

    /// The formats that are read.
    pub fn propagators(&self) -> &Propagators {
        &self.propagators
    }

    /// What was found in the requests so far.
    pub fn counts(&self) -> &ContextCounts {
        &self.counts
    }

    fn redact(&self, exchange: &mut Exchange) {
        let request = &mut exchange.request;
        if let Some(target) = self.redaction.target(&request.target) {
            request.target = target.into_boxed_str();
        }
        if let Some(authority) = request
            .authority
            .as_deref()
            .and_then(|authority| self.redaction.authority(authority))
        {
            request.authority = Some(authority.into_boxed_str());
        }
    }
}

/// How often requests carried which trace context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContextCounts {
    read: [u64; Format::ALL.len()],
    malformed: [u64; Format::ALL.len()],
    malformed_trace_state: u64,
}

impl ContextCounts {
    /// Requests whose context (or whose decision not to have one) was taken from this format.
    pub fn read(&self, format: Format) -> u64 {
        self.read[format as usize]
    }

    /// Requests in which this format was there but malformed, and so ignored.
    pub fn malformed(&self, format: Format) -> u64 {
        self.malformed[format as usize]
    }

    /// Requests whose `tracestate` was dropped beside a good `traceparent`.
    pub fn malformed_trace_state(&self) -> u64 {
        self.malformed_trace_state
    }

    fn add(&mut self, extraction: &Extraction) {
        let Extraction {
            context,
            decision,
            malformed,
        } = extraction;
        let format = context
            .as_ref()
            .map(|(format, _)| *format)
            .or(decision.map(|(format, _)| format));
        if let Some(format) = format {
            self.read[format as usize] += 1;
        }
        if malformed.is_empty() {
            return;
        }
        for format in Format::ALL
            .into_iter()
            .filter(|format| malformed.contains(*format))
        {
            self.malformed[format as usize] += 1;
        }
        self.malformed_trace_state += u64::from(malformed.trace_state());
    }
}

/// Boot time to wall clock; times out of range end at the range's ends.
pub fn unix_ns(boot_ns: u64, boot_to_unix_offset_ns: i64) -> u64 {
    boot_ns.saturating_add_signed(boot_to_unix_offset_ns)
}

#[cfg(test)]
mod tests;
