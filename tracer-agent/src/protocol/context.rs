//! Header fields that carry trace context or name a request: the same for every version of HTTP.

use super::ContextHeaders;

/// Bytes kept of a list (`tracestate`: 32 members of 512 bytes and more would be allowed; W3C section
/// 3.3.1.5 asks for 512 in all). A longer one is left out as a whole, since half a list is another list.
const MAX_LIST: usize = 8 * 1024;

/// Bytes kept of any other field: more than any of the formats has, so that a longer one is malformed
/// for whoever reads it.
const MAX_VALUE: usize = 512;

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

/// Those of them that are lists.
const LISTS: [&str; 2] = ["tracestate", "x-datadog-tags"];

/// Collects context headers, bounded.
#[derive(Debug, Default)]
pub(super) struct Collector {
    fields: Vec<(Box<str>, Box<str>)>,
    /// Lists that are too long.
    left_out: Vec<&'static str>,
}

impl Collector {
    /// Takes a field of any name; those that carry no context are ignored. Bytes that are no text are
    /// replaced, which no format allows: a second field of a name must not go unnoticed.
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
        let Some(&known) = known else {
            return;
        };
        // Names of requests are shown as they are, or not at all.
        let shown = matches!(known, "x-request-id" | "x-trace-id");
        if self.left_out.contains(&known) || shown && std::str::from_utf8(value).is_err() {
            return;
        }
        let place = self.fields.iter().position(|(name, _)| **name == *known);
        let before = place
            .and_then(|place| self.fields.get(place))
            .map_or(0, |(_, value)| value.len() + 1);
        let is_list = LISTS.contains(&known);
        let limit = if is_list { MAX_LIST } else { MAX_VALUE };
        let room = limit.saturating_sub(before);
        if is_list && value.len() > room {
            self.left_out.push(known);
            place.map(|place| self.fields.remove(place));
            return;
        }
        let value = String::from_utf8_lossy(value.get(..room).unwrap_or(value));
        match place.and_then(|place| self.fields.get_mut(place)) {
            // Fields of the same name are one list (RFC 9110 section 5.3).
            Some((_, first)) if room > 0 => *first = [&**first, &*value].join(",").into(),
            Some(_) => {}
            None => self.fields.push((known.into(), value.into())),
        }
    }

    pub(super) fn finish(self) -> ContextHeaders {
        ContextHeaders(self.fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(fields: &[(&str, &[u8])], expected: &[(&str, &str)]) {
        let mut collector = Collector::default();
        for (name, value) in fields {
            collector.take(name, value);
        }
        let found = collector.finish();
        let found: Vec<(&str, &str)> = found.0.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn fields() {
        check(&[("Accept", b"x"), ("x-other", b"y"), ("", b"z")], &[]);
        check(
            &[
                ("TraceParent", b"a"),
                ("TRACESTATE", b"b=1"),
                ("X-B3-TraceId", b"c"),
            ],
            &[
                ("traceparent", "a"),
                ("tracestate", "b=1"),
                ("x-b3-traceid", "c"),
            ],
        );
        check(
            &[
                ("tracestate", b"a=1"),
                ("traceparent", b"x"),
                ("tracestate", b"b=2"),
            ],
            &[("tracestate", "a=1,b=2"), ("traceparent", "x")],
        );
        check(&[("b3", b"0"), ("b3", b"\xff")], &[("b3", "0,\u{fffd}")]);
    }

    #[test]
    fn one_long_field_does_not_push_out_another() {
        let long = vec![b'x'; 100_000];
        let kept = "x".repeat(MAX_VALUE);
        check(
            &[
                ("x-request-id", &long),
                ("tracestate", &long),
                ("traceparent", b"p"),
                ("traceparent", b"q"),
            ],
            &[("x-request-id", &kept), ("traceparent", "p,q")],
        );
        check(
            &[
                ("tracestate", b"a=1"),
                ("tracestate", &long),
                ("tracestate", b"b=2"),
            ],
            &[],
        );
        let full = "y".repeat(MAX_LIST);
        check(&[("tracestate", full.as_bytes())], &[("tracestate", &full)]);
        check(
            &[("uber-trace-id", &long), ("uber-trace-id", b"1")],
            &[("uber-trace-id", &kept)],
        );
    }
}
