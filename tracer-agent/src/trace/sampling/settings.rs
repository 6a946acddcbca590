//! What the user asked the sampler for.

use std::time::Duration;

use crate::discover::pattern::matches;
use crate::trace::Span;
use crate::trace::routes::Pattern;
use crate::trace::span::SpanStatus;
use crate::trace::target::Target;

use super::head::Standard;

/// All of it; `parentbased_always_on` and nothing else by default.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The standard sampler.
    pub standard: Standard,
    /// Keep every trace in which a span has the status Error.
    pub keep_errors: bool,
    /// Keep every trace in which a span took longer than this; rules come before it.
    pub keep_slower_than: Option<Duration>,
    /// Spans per second of each service, a goal that the threshold follows; rules come before it.
    pub spans_per_second: Option<f64>,
    /// For single services and routes; of each kind of limit the first that matches holds.
    pub rules: Vec<Rule>,
    /// A trace whose root does not show up is decided this long after its first span.
    pub decision_wait: Duration,
    /// Spans that may wait for decisions.
    pub max_buffered: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            standard: Standard::default(),
            keep_errors: false,
            keep_slower_than: None,
            spans_per_second: None,
            rules: Vec::new(),
            decision_wait: Duration::from_secs(5),
            max_buffered: 16_384,
        }
    }
}

/// Limits for the services and routes that it matches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// Glob over `service.name`; any service without one.
    pub service: Option<Box<str>>,
    /// Paths; any path without one.
    pub route: Option<Pattern>,
    /// See [`Settings::keep_slower_than`].
    pub keep_slower_than: Option<Duration>,
    /// See [`Settings::spans_per_second`]; of no effect beside a route.
    pub spans_per_second: Option<f64>,
}

impl Settings {
    /// True if something beside the standard sampler has to be known before a trace is decided.
    pub(super) fn needs_outcome(&self) -> bool {
        self.keep_errors
            || self.keep_slower_than.is_some()
            || self.spans_per_second.is_some()
            || !self.rules.is_empty()
    }

    /// True if `span` is reason enough to keep its trace.
    pub(super) fn is_kept_for_itself(&self, span: &Span) -> bool {
        self.keep_errors && span.status() == SpanStatus::Error
            || self.slow_from(span).is_some_and(|limit| {
                let took_ns = span.end_unix_ns.saturating_sub(span.start_unix_ns);
                u128::from(took_ns) > limit.as_nanos()
            })
    }

    fn slow_from(&self, span: &Span) -> Option<Duration> {
        let of_rule = self
            .rules
            .iter()
            .filter(|rule| rule.keep_slower_than.is_some())
            .find(|rule| rule.is_for(&span.process.service_name) && rule.has_route_of(span))
            .and_then(|rule| rule.keep_slower_than);
        of_rule.or(self.keep_slower_than)
    }

    /// Spans per second that `service` may have; `None` for any number.
    pub(super) fn budget(&self, service: &str) -> Option<f64> {
        let of_rule = self
            .rules
            .iter()
            .filter(|rule| rule.spans_per_second.is_some() && rule.route.is_none())
            .find(|rule| rule.is_for(service))
            .and_then(|rule| rule.spans_per_second);
        of_rule.or(self.spans_per_second)
    }
}

impl Rule {
    fn is_for(&self, service: &str) -> bool {
        let glob = self.service.as_deref();
        glob.is_none_or(|glob| matches(glob, service))
    }

    fn has_route_of(&self, span: &Span) -> bool {
        self.route.as_ref().is_none_or(|route| {
            let request = &span.exchange.request;
            let path = Target::parse(&request.method, &request.target).path;
            !request.target.is_empty() && route.matches(path)
        })
    }
}
