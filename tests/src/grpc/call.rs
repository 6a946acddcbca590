//! What a call is: the lines a peer reads and prints, and the text of a request.

use axum::body::Bytes;

/// The peers' service.
pub const SERVICE: &str = "tracer.peers.v1.Peers";
/// Its methods, one of each kind.
pub const METHODS: [&str; 4] = ["Unary", "ClientStream", "ServerStream", "Bidi"];

/// A call that a client makes; `services/grpc/README.md` says what the fields mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the line")]
pub struct Call {
    pub index: usize,
    pub method: String,
    pub traceparent: Option<String>,
    pub code: i32,
    pub delay_ms: u64,
    pub count: usize,
    pub size: usize,
    pub messages: usize,
    pub gap_ms: u64,
    pub timeout_ms: u64,
    pub cancel_ms: u64,
}

impl Call {
    /// From the line that a client reads.
    pub fn of(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [
            "call",
            index,
            method,
            traceparent,
            code,
            delay_ms,
            count,
            size,
            rest @ ..,
        ] = &words[..]
        else {
            return None;
        };
        let [messages, gap_ms, timeout_ms, cancel_ms] = rest else {
            return None;
        };
        Some(Self {
            index: index.parse().ok()?,
            method: (*method).to_owned(),
            traceparent: (*traceparent != "-").then(|| (*traceparent).to_owned()),
            code: code.parse().ok()?,
            delay_ms: delay_ms.parse().ok()?,
            count: count.parse().ok()?,
            size: size.parse().ok()?,
            messages: messages.parse().ok()?,
            gap_ms: gap_ms.parse().ok()?,
            timeout_ms: timeout_ms.parse().ok()?,
            cancel_ms: cancel_ms.parse().ok()?,
        })
    }

    /// The line that a client reads.
    pub fn line(&self) -> String {
        let Self {
            index,
            method,
            traceparent,
            code,
            delay_ms,
            count,
            size,
            messages,
            gap_ms,
            timeout_ms,
            cancel_ms,
        } = self;
        let traceparent = traceparent.as_deref().unwrap_or("-");
        format!(
            "call {index} {method} {traceparent} {code} {delay_ms} {count} {size} {messages} {gap_ms} \
             {timeout_ms} {cancel_ms}"
        )
    }

    /// A request message.
    pub fn request(&self) -> Bytes {
        let mut text = format!(
            "{} {} {} {} ",
            self.code, self.delay_ms, self.count, self.size
        );
        let padding = self.size.saturating_sub(text.len());
        text.extend(std::iter::repeat_n('x', padding));
        text.into()
    }
}

/// What the first message of a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Status.
    pub code: i32,
    /// How long to wait before the end.
    pub delay_ms: u64,
    /// Messages of a server's stream.
    pub count: usize,
    /// Bytes of each message.
    pub size: usize,
}

impl Asked {
    /// From a request message.
    pub fn of(message: &[u8]) -> Option<Self> {
        let head = message.get(..message.len().min(64))?;
        let text = str::from_utf8(head).ok()?;
        let mut words = text.split(' ');
        Some(Self {
            code: words.next()?.parse().ok()?,
            delay_ms: words.next()?.parse().ok()?,
            count: words.next()?.parse().ok()?,
            size: words.next()?.parse().ok()?,
        })
    }

    /// A message of the answer.
    pub fn body(&self) -> Bytes {
        vec![b'y'; self.size].into()
    }
}

/// What a client says of a call it made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Of the call.
    pub index: usize,
    /// Status its library reports.
    pub code: i32,
    /// Wall clock before the call, nanoseconds since the epoch.
    pub start_ns: u64,
    /// Until the library reported the status.
    pub duration_ns: u64,
}

impl Done {
    /// From the line that a client prints.
    pub fn of(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("done ")?.split(' ');
        Some(Self {
            index: words.next()?.parse().ok()?,
            code: words.next()?.parse().ok()?,
            start_ns: words.next()?.parse().ok()?,
            duration_ns: words.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back() {
        let call = Call {
            index: 7,
            method: "Bidi".to_owned(),
            traceparent: Some("00-1-2-01".to_owned()),
            code: 5,
            delay_ms: 3,
            count: 2,
            size: 20,
            messages: 4,
            gap_ms: 1,
            timeout_ms: 300,
            cancel_ms: 9,
        };
        assert_eq!(Call::of(&call.line()), Some(call.clone()));
        let without = Call {
            traceparent: None,
            ..call.clone()
        };
        assert_eq!(Call::of(&without.line()), Some(without));
        assert_eq!(Call::of("call 1 Unary"), None);
        let request = call.request();
        assert_eq!(request.len(), 20);
        let asked = Asked {
            code: 5,
            delay_ms: 3,
            count: 2,
            size: 20,
        };
        assert_eq!(Asked::of(&request), Some(asked));
        let done = Done {
            index: 7,
            code: 0,
            start_ns: 5,
            duration_ns: 9,
        };
        assert_eq!(Done::of("done 7 0 5 9"), Some(done));
        assert_eq!(Done::of("done 7 0"), None);
    }
}
