//! Compares the spans of a pair with what its client asked for.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use super::{KINDS, REQUESTS};
use crate::span::{Kind, Span};

/// How many mismatches are shown.
const SHOWN: usize = 20;

/// What a client sent, and which ends are to be seen.
#[derive(Clone, Debug)]
pub struct Sent {
    /// First part of the paths.
    pub tag: String,
    /// The server.
    pub server: SocketAddr,
    /// The client's processes, if it is seen; empty for any.
    pub client_pids: Option<Vec<u32>>,
    /// The server's processes, if it is seen; empty for any.
    pub server_pids: Option<Vec<u32>>,
    /// The version of HTTP, if all of it is of one.
    pub version: Option<&'static str>,
}

/// How many of a pair's ends have to be joined, though no header says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// Half of them at least. Where programs move the ciphertext themselves, the socket is known after a
    /// few requests of a connection only; and a server may have answered before its client, which waits
    /// for a processor, returns from the call that wrote.
    Most,
    /// None need be; none may be wrong.
    Any,
}

/// Path of the request.
pub fn path(span: &Span) -> &str {
    if let Some(path) = span.text("url.path") {
        return path;
    }
    let full = span.text("url.full").unwrap_or_default();
    let rest = full.split_once("://").map_or("", |(_, rest)| rest);
    rest.find('/').map_or("", |at| &rest[at..])
}

/// Whether it came over TLS.
pub fn is_https(span: &Span) -> bool {
    span.text("url.scheme") == Some("https")
        || span
            .text("url.full")
            .is_some_and(|url| url.starts_with("https://"))
}

impl Sent {
    /// How many spans there have to be.
    pub fn spans(&self) -> usize {
        let seen = [&self.client_pids, &self.server_pids];
        REQUESTS * seen.into_iter().flatten().count()
    }

    /// Panics unless there are all spans of all of these, and no others.
    pub fn check_all(sent: &[Self], spans: &[Span], log: &str) {
        let mut wrong = Vec::new();
        for sent in sent {
            sent.check(spans, &mut wrong);
        }
        assert!(wrong.is_empty(), "{wrong:#?}\n{log}");
        let count: usize = sent.iter().map(Self::spans).sum();
        assert_eq!(spans.len(), count, "none extra");
    }

    /// Adds what is wrong: not exactly one span for each request and end that is seen, or one with
    /// another path, status, scheme, method, peer or process.
    pub fn check(&self, spans: &[Span], wrong: &mut Vec<String>) {
        for (kind, pids) in [
            (Kind::Client, &self.client_pids),
            (Kind::Server, &self.server_pids),
        ] {
            let wanted = if pids.is_some() { REQUESTS } else { 0 };
            let any = Vec::new();
            let pids = pids.as_ref().unwrap_or(&any);
            let found = self.check_kind(spans, kind, pids, wrong);
            let twice = found.values().filter(|n| **n > 1).count();
            if (found.len(), twice) != (wanted, 0) {
                wrong.push(format!(
                    "{} {kind:?}: {} of {wanted}, {twice} more than once",
                    self.tag,
                    found.len()
                ));
            }
        }
    }

    /// Panics unless as many server's spans as that are below the client's span of the same request,
    /// and no other span is above one of them.
    pub fn check_joined(&self, spans: &[Span], joined: Joined) {
        let prefix = format!("/{}/", self.tag);
        let own = spans.iter().filter(|span| path(span).starts_with(&prefix));
        let (clients, servers): (Vec<&Span>, Vec<&Span>) =
            own.partition(|span| span.kind == Kind::Client);
        let clients: HashMap<&str, &Span> =
            clients.into_iter().map(|span| (path(span), span)).collect();
        let (mut right, mut roots) = (0, 0);
        for server in servers {
            let Some(parent) = &server.parent else {
                roots += 1;
                continue;
            };
            let client = clients.get(path(server));
            let is_right = client
                .is_some_and(|span| span.span_id == *parent && span.trace_id == server.trace_id);
            assert!(is_right, "{}: {server:?} is not below {client:?}", self.tag);
            right += 1;
        }
        println!("{}: {right} joined, {roots} not", self.tag);
        let most = match joined {
            Joined::Most => REQUESTS / 2,
            Joined::Any => usize::MAX,
        };
        assert!(roots <= most, "{}: {roots} are not joined", self.tag);
    }

    fn check_kind<'a>(
        &self,
        spans: &'a [Span],
        kind: Kind,
        pids: &[u32],
        wrong: &mut Vec<String>,
    ) -> BTreeMap<&'a str, usize> {
        let prefix = format!("/{}/", self.tag);
        let mut found: BTreeMap<&str, usize> = BTreeMap::new();
        for span in spans.iter().filter(|span| span.kind == kind) {
            let Some(rest) = path(span).strip_prefix(&prefix) else {
                continue;
            };
            let (what, number) = rest.split_once('/').unwrap_or_default();
            let number: usize = number.parse().unwrap_or(usize::MAX);
            let status = span.int("http.response.status_code");
            let peer = span.int("network.peer.port");
            let process = |pid: &u32| span.pid() == Some(i64::from(*pid));
            let is_right = number < REQUESTS
                && KINDS[number % 3] == (what, status.unwrap_or_default())
                && is_https(span)
                && span.text("network.peer.address") == Some("127.0.0.1")
                && (kind == Kind::Server || peer == Some(i64::from(self.server.port())))
                && self
                    .version
                    .is_none_or(|version| span.text("network.protocol.version") == Some(version))
                && (pids.is_empty() || pids.iter().any(process));
            if !is_right && wrong.len() < SHOWN {
                let of = span.pid();
                wrong.push(format!(
                    "{} {kind:?} of {of:?}, not {pids:?}: {:?}",
                    self.tag, span.attributes
                ));
            }
            *found.entry(rest).or_default() += 1;
        }
        found
    }
}
