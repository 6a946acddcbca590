//! gRPC spans by the semantic conventions 1.44 (CONVENTIONS.md).
//!
//! In: an exchange that is a gRPC call. Out: its name, what its status is called and whether that
//! is an error. A method that nobody implements is not known, so that a client cannot make up names.

use std::borrow::Cow;

use crate::protocol::{Exchange, Grpc, Outcome};

use super::super::span::SpanKind;

/// Names of the status codes, by number.
const STATUS_NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

const OK: u32 = 0;
const UNIMPLEMENTED: u32 = 12;

/// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
const SERVER_ERRORS: [u32; 6] = [2, 4, 12, 13, 14, 15];

/// What `rpc.method` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Method<'a> {
    /// Fully qualified; `None` if it is not known to exist.
    pub known: Option<&'a str>,
    /// As sent, if it was seen but is not known to exist.
    pub original: Option<&'a str>,
}

pub(super) fn method<'a>(exchange: &'a Exchange, grpc: &Grpc) -> Method<'a> {
    let target = &*exchange.request.target;
    let sent = target.strip_prefix('/').unwrap_or(target);
    let sent = Some(sent).filter(|sent| !sent.is_empty());
    let exists = grpc.status != Some(UNIMPLEMENTED);
    Method {
        known: sent.filter(|_| exists),
        original: sent.filter(|_| !exists),
    }
}

/// The method, or `grpc`.
pub(super) fn name<'a>(exchange: &'a Exchange, grpc: &Grpc) -> &'a str {
    method(exchange, grpc).known.unwrap_or("grpc")
}

/// `OK`, `UNAVAILABLE`, ...; the number of one that has no name.
pub fn status_name(status: u32) -> Cow<'static, str> {
    usize::try_from(status)
        .ok()
        .and_then(|status| STATUS_NAMES.get(status))
        .map_or_else(|| status.to_string().into(), |name| Cow::Borrowed(*name))
}

/// `error.type`: the status, where it is an error of this side.
pub(super) fn error_type(
    kind: SpanKind,
    exchange: &Exchange,
    grpc: &Grpc,
) -> Option<Cow<'static, str>> {
    let Some(status) = grpc.status else {
        let nothing_known = exchange.outcome == Outcome::Lost && exchange.response.is_none();
        return nothing_known.then_some(Cow::Borrowed("lost"));
    };
    let is_error = match kind {
        SpanKind::Client => status != OK,
        SpanKind::Server => SERVER_ERRORS.contains(&status),
    };
    is_error.then(|| status_name(status))
}
