//! The spans a scenario must give, and the comparison.

use super::{Played, SERVER_NAME, Scenario};
use crate::check::path_of;
use crate::span::{Kind, Span};

/// What a span must say of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Status unset, no `error.type`.
    None,
    /// Status Error, `error.type` is the status code.
    Code,
    /// Status Error, `error.type` says which.
    Some,
    /// Either of [`Fault::None`] and [`Fault::Some`]: who noticed first is a race.
    Any,
}

/// One request's spans: one SERVER, one CLIENT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    method: &'static str,
    /// Path behind `/r/<run>-`; empty if the request has no path.
    path: &'static str,
    status: Option<u16>,
    server: Fault,
    client: Fault,
}

impl Want {
    /// A request, its final status if there is one, and what each side says of failure.
    pub const fn new(
        method: &'static str,
        path: &'static str,
        status: Option<u16>,
        server: Fault,
        client: Fault,
    ) -> Self {
        Self { method, path, status, server, client }
    }
}

/// Everything wrong with the spans of a scenario, each line beginning with its name.
pub fn mismatches(scenario: &Scenario, played: &Played, spans: &[Span]) -> Vec<String> {
    let mut wrong = Vec::new();
    for kind in [Kind::Server, Kind::Client] {
        let mut left: Vec<&Span> =
            spans.iter().filter(|span| span.kind == kind && span.mentions(&played.run)).collect();
        for want in scenario.wants {
            let path = format!("/r/{}-{}", played.run, want.path);
            let fits = |span: &&Span| {
                span.text("http.request.method") == Some(want.method)
                    && (want.path.is_empty() || path_of(span) == path)
            };
            match left.iter().position(fits) {
                None => wrong.push(format!("no {kind:?} span of {} {path}", want.method)),
                Some(index) => wrong.extend(compare(want, played, left.remove(index))),
            }
        }
        wrong.extend(left.into_iter().map(|span| format!("extra {kind:?} span {span:?}")));
    }
    let other = spans.iter().filter(|span| matches!(span.kind, Kind::Other(_)) && span.mentions(&played.run));
    wrong.extend(other.map(|span| format!("neither server nor client: {span:?}")));
    wrong.into_iter().map(|text| format!("{}: {text}", scenario.name)).collect()
}

fn compare(want: &Want, played: &Played, span: &Span) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut must = |what: &str, right: bool, got: String| {
        if !right {
            wrong.push(format!("{:?} {} {}: {what} is {got}", span.kind, want.method, want.path));
        }
    };
    let server = span.kind == Kind::Server;
    let status = span.int("http.response.status_code");
    must("status", status == want.status.map(i64::from), format!("{status:?}"));
    let error = span.text("error.type");
    let fault = if server { want.server } else { want.client };
    let none = !span.error && error.is_none();
    let some = span.error && error.is_some_and(|text| !text.is_empty());
    let right = match fault {
        Fault::None => none,
        Fault::Code => span.error && error == want.status.map(|code| code.to_string()).as_deref(),
        Fault::Some => some,
        Fault::Any => none || some,
    };
    must("failure", right, format!("{} {error:?}, not {fault:?}", span.error));
    must("duration", span.duration_ns() >= 0, span.duration_ns().to_string());
    let pid = span.pid().and_then(|pid| u32::try_from(pid).ok());
    let name = if server { SERVER_NAME } else { played.client_name };
    must("service.name", span.service() == Some(name), format!("{:?}", span.service()));
    if server {
        must("pid", pid.is_some_and(|pid| played.server_pids.contains(&pid)), format!("{pid:?} of {played:?}"));
    } else {
        must("pid", pid == Some(played.client_pid), format!("{pid:?} of {played:?}"));
    }
    if let Ok(address) = played.address.parse::<std::net::SocketAddr>() {
        let peer = span.text("network.peer.address");
        must("peer", peer == Some(&address.ip().to_canonical().to_string()), format!("{peer:?}"));
        let port = span.int("network.peer.port");
        must("peer port", server || port == Some(address.port().into()), format!("{port:?}"));
    }
    wrong
}
