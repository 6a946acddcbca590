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
        Self {
            method,
            path,
            status,
            server,
            client,
        }
    }
}

/// Everything wrong with the spans of a scenario, each line beginning with its name.
pub fn mismatches(scenario: &Scenario, played: &Played, spans: &[Span]) -> Vec<String> {
    let mut wrong = Vec::new();
    for kind in [Kind::Server, Kind::Client] {
        let mut left: Vec<&Span> = spans
            .iter()
            .filter(|span| span.kind == kind && span.mentions(&played.run))
            .collect();
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
        wrong.extend(
            left.into_iter()
                .map(|span| format!("extra {kind:?} span {span:?}")),
        );
    }
    let other = spans
        .iter()
        .filter(|span| matches!(span.kind, Kind::Other(_)) && span.mentions(&played.run));
    wrong.extend(other.map(|span| format!("neither server nor client: {span:?}")));
    wrong
        .into_iter()
        .map(|text| format!("{}: {text}", scenario.name))
        .collect()
}

fn compare(want: &Want, played: &Played, span: &Span) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut must = |what: &str, right: bool, got: String| {
        if !right {
            wrong.push(format!(
                "{:?} {} {}: {what} is {got}",
                span.kind, want.method, want.path
            ));
        }
    };
    let server = span.kind == Kind::Server;
    let status = span.int("http.response.status_code");
    must(
        "status",
        status == want.status.map(i64::from),
        format!("{status:?}"),
    );
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
    must(
        "failure",
        right,
        format!("{} {error:?}, not {fault:?}", span.error),
    );
    must(
        "duration",
        span.duration_ns() >= 0,
        span.duration_ns().to_string(),
    );
    let pid = span.pid().and_then(|pid| u32::try_from(pid).ok());
    let name = if server {
        SERVER_NAME
    } else {
        played.client_name
    };
    must(
        "service.name",
        span.service() == Some(name),
        format!("{:?}", span.service()),
    );
    if server {
        must(
            "pid",
            pid.is_some_and(|pid| played.server_pids.contains(&pid)),
            format!("{pid:?} of {played:?}"),
        );
    } else {
        must(
            "pid",
            pid == Some(played.client_pid),
            format!("{pid:?} of {played:?}"),
        );
    }
    if let Ok(address) = played.address.parse::<std::net::SocketAddr>() {
        let peer = span.text("network.peer.address");
        must(
            "peer",
            peer == Some(&address.ip().to_canonical().to_string()),
            format!("{peer:?}"),
        );
        let port = span.int("network.peer.port");
        must(
            "peer port",
            server || port == Some(address.port().into()),
            format!("{port:?}"),
        );
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oddities::{Client, Server};
    use crate::span::{Attribute, Attributes, Via};

    const SCENARIO: Scenario = Scenario {
        name: "example",
        server: Server::Python(&[]),
        client: Client::Python("plain", &[]),
        wants: &[
            Want::new("GET", "a", Some(404), Fault::None, Fault::Code),
            Want::new("GET", "b", None, Fault::Some, Fault::Any),
        ],
    };

    fn span(kind: Kind, path: &str, status: Option<u16>, error: Option<&str>) -> Span {
        let text = |value: &str| Attribute::Text(value.to_owned());
        let (service, pid) = if kind == Kind::Server {
            (SERVER_NAME, 7)
        } else {
            ("odd-client", 8)
        };
        let mut attributes = Attributes::from([
            ("http.request.method".to_owned(), text("GET")),
            ("network.peer.address".to_owned(), text("127.0.0.1")),
            ("network.peer.port".to_owned(), Attribute::Int(80)),
        ]);
        let full = format!("http://127.0.0.1:80/r/x-{path}?bytes=1");
        attributes.insert(
            if kind == Kind::Server {
                "url.path"
            } else {
                "url.full"
            }
            .to_owned(),
            if kind == Kind::Server {
                text(&format!("/r/x-{path}"))
            } else {
                text(&full)
            },
        );
        attributes.extend(status.map(|status| {
            (
                "http.response.status_code".to_owned(),
                Attribute::Int(status.into()),
            )
        }));
        attributes.extend(error.map(|error| ("error.type".to_owned(), text(error))));
        Span {
            via: Via::Grpc,
            trace_id: String::new(),
            span_id: String::new(),
            parent: None,
            trace_state: String::new(),
            kind,
            name: "GET".to_owned(),
            start_ns: 1,
            end_ns: 2,
            error: error.is_some(),
            attributes,
            resource: Attributes::from([
                ("service.name".to_owned(), text(service)),
                ("process.pid".to_owned(), Attribute::Int(pid)),
            ]),
            schema_url: String::new(),
        }
    }

    fn check(change: impl FnOnce(&mut Vec<Span>), expected: &[&str]) {
        let mut spans = vec![
            span(Kind::Server, "a", Some(404), None),
            span(Kind::Client, "a", Some(404), Some("404")),
            span(Kind::Server, "b", None, Some("closed")),
            span(Kind::Client, "b", None, None),
        ];
        change(&mut spans);
        let played = Played {
            run: "x".to_owned(),
            address: "127.0.0.1:80".to_owned(),
            server_pids: vec![6, 7],
            client_pid: 8,
            client_name: "odd-client",
        };
        let wrong = mismatches(&SCENARIO, &played, &spans);
        assert_eq!(wrong.len(), expected.len(), "{wrong:#?}");
        for (got, expected) in wrong.iter().zip(expected) {
            assert!(got.contains(expected), "no {expected:?} in {got}");
        }
    }

    #[test]
    fn right_spans_pass_and_each_falsehood_is_found() {
        check(|_| {}, &[]);
        check(
            |spans| drop(spans.remove(0)),
            &["no Server span of GET /r/x-a"],
        );
        check(|spans| spans.push(spans[1].clone()), &["extra Client span"]);
        check(|spans| spans[1].error = false, &["failure is false"]);
        check(
            |spans| spans[2] = span(Kind::Server, "b", None, None),
            &["failure is false"],
        );
        check(
            |spans| spans[3] = span(Kind::Client, "b", Some(200), None),
            &["status is Some(200)"],
        );
        check(|spans| spans[3].end_ns = 0, &["duration is -1"]);
        check(|spans| spans[0].resource.clear(), &["service.name", "pid"]);
        check(
            |spans| {
                let mapped = Attribute::Text("::ffff:127.0.0.1".to_owned());
                spans[1]
                    .attributes
                    .insert("network.peer.address".to_owned(), mapped);
            },
            &["peer is"],
        );
        check(
            |spans| spans[1].kind = Kind::Other(1),
            &["no Client span", "neither server nor client"],
        );
    }
}
