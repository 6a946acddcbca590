//! Requests that wait for their responses, in order.
//!
//! In: recognised requests. Out: exchanges, once both messages have ended. Responses come in the
//! order of the requests (RFC 9112 section 9.3), so the front is the one that is answered next.

use std::collections::VecDeque;

use super::super::{At, Exchange, Outcome, Request, Response, Role, Unfinished};
use super::export::Export;
use super::head::RequestHead;
use crate::trace::sdk::Signal;

/// Most requests of one connection that may wait.
pub(super) const MAX_OUTSTANDING: usize = 1024;

/// A request without a finished exchange.
#[derive(Debug)]
pub(super) struct Pending {
    head: RequestHead,
    key: u64,
    pub began_ns: u64,
    tgid: u32,
    tid: u32,
    /// The request was received to its end.
    pub sent: bool,
    /// What may have been lost right before it.
    pub hole: Hole,
    pub response: Option<Answer>,
}

/// The final response of a request, from its head on.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    body_bytes: Option<u64>,
    began_ns: u64,
    /// Its last byte so far.
    pub last_ns: u64,
    /// It was received to its end.
    pub complete: bool,
}

/// Whether requests were lost between a request and the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hole {
    #[default]
    None,
    /// None need be missing: the loss began inside a request's body.
    Maybe,
    /// One or more are missing: the loss began where a request had to start.
    Sure,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pending: VecDeque<Pending>,
    /// The newest request's body is being received.
    open: bool,
}

impl Pending {
    pub(super) fn new(head: RequestHead, key: u64, began_ns: u64, first: &At, hole: Hole) -> Self {
        Pending {
            head,
            key,
            began_ns,
            tgid: first.tgid,
            tid: first.tid,
            sent: false,
            hole,
            response: None,
        }
    }

    pub(super) fn is_head(&self) -> bool {
        &*self.head.request.method == "HEAD"
    }

    pub(super) fn is_connect(&self) -> bool {
        &*self.head.request.method == "CONNECT"
    }

    /// What takes its body, if that is an export of spans.
    pub(super) fn exports_spans(&self, chunked: bool) -> Option<Box<Export>> {
        let signal = Signal::of_request(&self.head.request);
        (signal == Some(Signal::Traces)).then(|| Box::new(Export::new(self.tgid, chunked)))
    }

    /// An interim response is likely still to come.
    pub(super) fn expects_continue(&self) -> bool {
        self.head.expects_continue
    }

    pub(super) fn got_continue(&mut self) {
        self.head.expects_continue = false;
    }

    /// The final response's head was seen.
    pub(super) fn answer(
        &mut self,
        role: Role,
        status: u16,
        began_ns: u64,
        first: &At,
        last_ns: u64,
    ) {
        if role == Role::Server && self.tgid == 0 {
            (self.tgid, self.tid) = (first.tgid, first.tid);
        }
        self.response = Some(Answer {
            status,
            body_bytes: Some(0),
            began_ns,
            last_ns,
            complete: false,
        });
    }

    /// The exchange; `end_ns` is when it ended if it has no response.
    fn into_exchange(self, role: Role, outcome: Outcome, end_ns: u64) -> Exchange {
        let Pending {
            head,
            key,
            began_ns,
            tgid,
            tid,
            sent: _,
            hole: _,
            response,
        } = self;
        let RequestHead {
            request,
            protocol,
            declared: _,
            expects_continue: _,
        } = head;
        let complete = response.as_ref().is_some_and(|response| response.complete);
        // Calls are timed on different threads: never let an end precede its beginning.
        let response_start_ns = response
            .as_ref()
            .map(|response| response.began_ns.max(began_ns));
        let end_ns = response
            .as_ref()
            .map_or(end_ns, |response| response.last_ns);
        Exchange {
            key,
            role,
            protocol,
            request,
            response: response.map(
                |Answer {
                     status,
                     body_bytes,
                     began_ns: _,
                     last_ns: _,
                     complete: _,
                 }| Response { status, body_bytes },
            ),
            grpc: None,
            outcome: if complete { Outcome::Complete } else { outcome },
            start_ns: began_ns,
            response_start_ns,
            end_ns: end_ns.max(response_start_ns.unwrap_or(began_ns)),
            stream: 0,
            tgid,
            tid,
        }
    }
}

impl Answer {
    /// Content was received; `None`: how much is unknown from here on.
    pub(super) fn content(&mut self, bytes: Option<u64>) {
        self.body_bytes = self
            .body_bytes
            .zip(bytes)
            .map(|(sum, bytes)| sum.saturating_add(bytes));
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// All of them, oldest first.
    pub(super) fn iter(&self, role: Option<Role>) -> impl Iterator<Item = Unfinished<'_>> {
        self.pending.iter().map(move |pending| Unfinished {
            role,
            request: &pending.head.request,
            began_ns: pending.began_ns,
            tgid: pending.tgid,
            answered: pending.response.is_some(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn push(&mut self, pending: Pending) {
        self.open = !pending.sent;
        self.pending.push_back(pending);
    }

    pub(super) fn front(&mut self) -> Option<&mut Pending> {
        self.pending.front_mut()
    }

    /// The request that is answered next: the front, unless its response is there already.
    pub(super) fn unanswered(&mut self) -> Option<&mut Pending> {
        self.pending
            .front_mut()
            .filter(|pending| pending.response.is_none())
    }

    /// The response that is being received.
    pub(super) fn answering(&mut self) -> Option<&mut Answer> {
        self.pending
            .front_mut()
            .and_then(|pending| pending.response.as_mut())
            .filter(|answer| !answer.complete)
    }

    /// The newest request's body grew; `None`: by how much is unknown.
    pub(super) fn request_content(&mut self, bytes: Option<u64>) {
        if let Some(pending) = self.pending.back_mut().filter(|_| self.open) {
            let request: &mut Request = &mut pending.head.request;
            request.body_bytes = request
                .body_bytes
                .zip(bytes)
                .map(|(sum, bytes)| sum.saturating_add(bytes));
        }
    }

    /// The newest request was received to its end.
    pub(super) fn request_sent(&mut self) {
        if let Some(pending) = self.pending.back_mut().filter(|_| self.open) {
            pending.sent = true;
        }
        self.open = false;
    }

    /// Takes the front out as an exchange.
    pub(super) fn finish(&mut self, role: Role, outcome: Outcome, end_ns: u64) -> Option<Exchange> {
        let exchange = self
            .pending
            .pop_front()?
            .into_exchange(role, outcome, end_ns);
        self.open &= !self.pending.is_empty();
        Some(exchange)
    }

    /// Takes the front out without an exchange.
    pub(super) fn drop_front(&mut self) {
        self.pending.pop_front();
        self.open &= !self.pending.is_empty();
    }
}
