//! Which answers of a backend are worth another attempt, and when.
//!
//! Rules: the OTLP specification, "OTLP/gRPC Throttling" and "OTLP/HTTP Response" (failures,
//! retryable response codes). No I/O and no clock here: times are arguments.

use std::time::{Duration, SystemTime};

use prost::Message;
use tonic::Code;

/// What one attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The backend has it, except for the spans it rejected: those are not sent again.
    Accepted {
        /// Spans it rejected.
        rejected: u64,
        /// What it says about them.
        message: String,
    },
    /// Worth another attempt.
    Retry {
        /// The backend said when to come back.
        after: Option<Duration>,
        /// What happened.
        why: String,
    },
    /// Too many bytes in one request: its halves may be taken.
    TooLarge {
        /// What happened.
        why: String,
    },
    /// Sending it again would not help.
    Refused {
        /// What happened.
        why: String,
    },
}

/// Longest time a backend can make the exporter wait: a mistaken date must not end exporting.
const MAX_SERVER_DELAY: Duration = Duration::from_secs(300);

/// HTTP statuses that say "later".
pub fn http_is_retryable(status: u16) -> bool {
    matches!(status, 429 | 502 | 503 | 504)
}

/// gRPC codes that say "later". `RESOURCE_EXHAUSTED` does so only if it says when.
pub fn grpc_is_retryable(code: Code, has_retry_info: bool) -> bool {
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::ResourceExhausted => has_retry_info,
        _ => false,
    }
}

/// Whether a gRPC status says that the message is larger than the server takes. There is no code for
/// it: these are the words of grpc-go, C++ and Java (`RESOURCE_EXHAUSTED`), and of tonic
/// (`OUT_OF_RANGE`, which would be retryable else).
pub fn grpc_says_too_large(code: Code, message: &str) -> bool {
    let says = |words: &str| message.to_ascii_lowercase().contains(words);
    match code {
        Code::ResourceExhausted => says("larger than max") || says("exceeds maximum size"),
        Code::OutOfRange => says("message length too large"),
        _ => false,
    }
}

/// An `Export*ServiceResponse` of any signal: they differ in the names of their fields only.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExportAnswer {
    /// There if the server has something to say.
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

/// An `Export*PartialSuccess`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PartialSuccess {
    /// Spans, data points or log records that were not taken.
    #[prost(int64, tag = "1")]
    pub rejected: i64,
    /// Why, or a warning if none were.
    #[prost(string, tag = "2")]
    pub error_message: String,
}

impl ExportAnswer {
    /// The verdict of an answer that is a success. A negative number is none.
    pub fn verdict(self) -> Verdict {
        let partial = self.partial_success.unwrap_or_default();
        Verdict::Accepted {
            rejected: u64::try_from(partial.rejected).unwrap_or_default(),
            message: partial.error_message,
        }
    }
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds or a date. Unreadable is absent.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let delay = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        let date = httpdate::parse_http_date(value).ok()?;
        date.duration_since(now).unwrap_or_default()
    };
    Some(delay.min(MAX_SERVER_DELAY))
}

/// `google.rpc.Status`, as in `grpc-status-details-bin`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    pub(super) details: Vec<RpcAny>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RpcAny {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    pub(super) retry_delay: Option<RpcDuration>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RpcDuration {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

/// Whether the details of a gRPC status hold a `RetryInfo`, and its delay.
pub fn grpc_retry_info(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let info = status
        .details
        .iter()
        .find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice())
        .ok()?
        .retry_delay
        .unwrap_or_default();
    let seconds = Duration::from_secs(u64::try_from(delay.seconds).unwrap_or_default());
    let nanos = Duration::from_nanos(u64::try_from(delay.nanos).unwrap_or_default());
    Some(seconds.saturating_add(nanos).min(MAX_SERVER_DELAY))
}

/// Waits that double up to a bound, each shortened at random by up to half, so that many agents do
/// not come back to a restarted backend at the same moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(250);
    const MAX: Duration = Duration::from_secs(5);

    /// Before the first failure.
    pub fn new() -> Self {
        Self { next: Self::FIRST }
    }

    /// How long to wait after one more failure; `random` is from 0 to 1.
    pub fn wait(&mut self, random: f64) -> Duration {
        let wait = self.next.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0));
        self.next = self.next.saturating_mul(2).min(Self::MAX);
        wait
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_statuses() {
        for status in [429, 502, 503, 504] {
            assert!(http_is_retryable(status), "{status}");
        }
        for status in [200, 301, 400, 401, 403, 404, 408, 413, 500, 501, 505] {
            assert!(!http_is_retryable(status), "{status}");
        }
    }

    #[test]
    fn grpc_codes() {
        #[track_caller]
        fn check(code: Code, without_info: bool, with_info: bool) {
            assert_eq!(
                (
                    grpc_is_retryable(code, false),
                    grpc_is_retryable(code, true)
                ),
                (without_info, with_info),
                "{code:?}"
            );
        }
        check(Code::Cancelled, true, true);
        check(Code::DeadlineExceeded, true, true);
        check(Code::Aborted, true, true);
        check(Code::OutOfRange, true, true);
        check(Code::Unavailable, true, true);
        check(Code::DataLoss, true, true);
        check(Code::ResourceExhausted, false, true);
        check(Code::Unknown, false, false);
        check(Code::InvalidArgument, false, false);
        check(Code::NotFound, false, false);
        check(Code::AlreadyExists, false, false);
        check(Code::PermissionDenied, false, false);
        check(Code::FailedPrecondition, false, false);
        check(Code::Unimplemented, false, false);
        check(Code::Internal, false, false);
        check(Code::Unauthenticated, false, false);
    }

    #[test]
    fn too_large_is_known_by_its_words() {
        #[track_caller]
        fn check(code: Code, message: &str, expected: bool) {
            assert_eq!(grpc_says_too_large(code, message), expected, "{message}");
        }
        let go = "grpc: received message larger than max (5000000 vs. 4194304)";
        check(Code::ResourceExhausted, go, true);
        let cpp = "CLIENT: Received message larger than max (5 vs. 4)";
        check(Code::ResourceExhausted, cpp, true);
        let java = "gRPC message exceeds maximum size 4194304: 5000000";
        check(Code::ResourceExhausted, java, true);
        let tonic = "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes";
        check(Code::OutOfRange, tonic, true);
        check(Code::ResourceExhausted, "quota", false);
        check(Code::OutOfRange, "", false);
        check(Code::Internal, go, false);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        #[track_caller]
        fn check(value: &str, expected: Option<u64>) {
            // Sun, 06 Nov 1994 08:49:37 GMT
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
            assert_eq!(
                retry_after(value, now),
                expected.map(Duration::from_secs),
                "{value:?}"
            );
        }
        check("0", Some(0));
        check(" 7 ", Some(7));
        check("120", Some(120));
        check("86400", Some(300));
        check("99999999999999999999999", Some(300));
        check("Sun, 06 Nov 1994 08:49:47 GMT", Some(10));
        check("Sunday, 06-Nov-94 08:49:47 GMT", Some(10));
        check("Sun Nov  6 08:49:47 1994", Some(10));
        check("Sun, 06 Nov 1994 08:49:27 GMT", Some(0));
        check("Sat, 06 Nov 2094 08:49:27 GMT", Some(300));
        check("", None);
        check("-1", None);
        check("1.5", None);
        check("soon", None);
    }

    #[test]
    fn retry_info_is_found_among_the_details() {
        #[track_caller]
        fn check(details: &[(&str, Vec<u8>)], expected: Option<Duration>) {
            let details = details.iter().map(|(url, value)| RpcAny {
                type_url: (*url).to_owned(),
                value: value.clone(),
            });
            let status = RpcStatus {
                details: details.collect(),
            };
            assert_eq!(grpc_retry_info(&status.encode_to_vec()), expected);
        }
        const URL: &str = "type.googleapis.com/google.rpc.RetryInfo";
        let info = |seconds, nanos| {
            RetryInfo {
                retry_delay: Some(RpcDuration { seconds, nanos }),
            }
            .encode_to_vec()
        };
        check(&[], None);
        check(
            &[("type.googleapis.com/google.rpc.DebugInfo", vec![1, 2])],
            None,
        );
        check(
            &[(URL, info(1, 500_000_000))],
            Some(Duration::from_millis(1500)),
        );
        check(
            &[("x/y", vec![]), (URL, info(2, 0))],
            Some(Duration::from_secs(2)),
        );
        check(&[(URL, vec![])], Some(Duration::ZERO));
        check(&[(URL, info(-5, -5))], Some(Duration::ZERO));
        check(&[(URL, info(i64::MAX, i32::MAX))], Some(MAX_SERVER_DELAY));
        check(&[(URL, vec![0xff])], None);
        assert_eq!(grpc_retry_info(b"\xff\xff\xff"), None);
        assert_eq!(grpc_retry_info(b""), None);
    }

    #[test]
    fn backoff_doubles_to_its_bound_within_the_jitter() {
        let waits = |random: f64| {
            let mut backoff = Backoff::new();
            std::array::from_fn::<u128, 7, _>(|_| backoff.wait(random).as_millis())
        };
        assert_eq!(waits(1.0), [250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(waits(0.0), [125, 250, 500, 1000, 2000, 2500, 2500]);
    }
}
