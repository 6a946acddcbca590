//! Header fields that carry trace context or name a request: the same for every version of HTTP.

use super::ContextHeaders;

/// Bytes of context header values kept per request.
const MAX_CONTEXT: usize = 8 * 1024;

/// Header fields kept in [`super::Request::context`].
const CONTEXT_FIELDS: [&str; 16] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
    "x-amzn-trace-id",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-datadog-tags",
    "x-request-id",
    "x-trace-id",
];

/// Collects context headers, bounded.
#[derive(Debug, Default)]
pub(super) struct Collector {
    fields: Vec<(Box<str>, Box<str>)>,
    bytes: usize,
}

impl Collector {
    /// Takes a field of any name; those that carry no context are ignored.
    pub(super) fn take(&mut self, name: &str, value: &[u8]) {
        if !matches!(
            name.as_bytes().first().map(u8::to_ascii_lowercase),
            Some(b't' | b'b' | b'x' | b'u')
        ) {
            return;
        }
        let known = CONTEXT_FIELDS
            .iter()
            .find(|known| name.eq_ignore_ascii_case(known));
        let (Some(known), Ok(value)) = (known, std::str::from_utf8(value)) else {
            return;
        };
        if self.bytes + value.len() + 1 > MAX_CONTEXT {
            return;
        }
        self.bytes += value.len() + 1;
        match self.fields.iter_mut().find(|(name, _)| **name == **known) {
            // Fields of the same name are one list (RFC 9110 section 5.3).
            Some((_, first)) => *first = [&**first, value].join(",").into(),
            None => self.fields.push(((*known).into(), value.into())),
        }
    }

    pub(super) fn finish(self) -> ContextHeaders {
        ContextHeaders(self.fields)
    }
}
