//! One stream: a request, what is known of its response, and the exchange they become.

use super::super::{
    At, Cause, Exchange, Grpc, Opened, Outcome, Protocol, Request, Response, Role, Unfinished,
};
use super::fields::{Content, Fields};
use super::grpc::{Ended, Messages};

/// A request without a finished exchange.
#[derive(Debug)]
pub(super) struct Stream {
    key: u64,
    request: Request,
    began_ns: u64,
    tgid: u32,
    tid: u32,
    content: Content,
    timeout_ns: Option<u64>,
    /// Some fields of the request are not known.
    unknown: bool,
    pub sent: Flow,
    /// Its reset may have been in bytes that were lost.
    pub doubtful: bool,
    pub answer: Answer,
    /// What its texts cost.
    pub cost: usize,
}

/// What was seen of a response.
#[derive(Debug, Default)]
pub(super) struct Answer {
    head: Option<Head>,
    content: Content,
    grpc_status: Option<u32>,
    trailers: bool,
    unknown: bool,
    received: Flow,
    /// How and when it ended, if that was seen before the request.
    pub ended: Option<(Outcome, u64)>,
    /// When its first frame came.
    pub seen_ns: u64,
    /// When its last bytes came.
    last_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    /// 0 if not known.
    status: u16,
    began_ns: u64,
    tgid: u32,
    tid: u32,
}

/// A body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    /// `None` when padding or a loss hides how much is content.
    bytes: Option<u64>,
    messages: Messages,
    pub ended: bool,
}

impl Default for Flow {
    fn default() -> Self {
        Flow {
            bytes: Some(0),
            messages: Messages::default(),
            ended: false,
        }
    }
}

impl Flow {
    /// A piece of the body; without its bytes if they were left out.
    pub(super) fn take(&mut self, bytes: Option<&[u8]>, length: u64) {
        self.bytes = self.bytes.map(|sum| sum.saturating_add(length));
        match bytes {
            Some(bytes) => self.messages.bytes(bytes),
            None => self.messages.unseen(),
        }
    }

    /// How much of what comes is content is not known.
    pub(super) fn unknown(&mut self) {
        self.bytes = None;
        self.messages.unseen();
    }
}

impl Answer {
    /// Of which the first frame came at this time.
    pub(super) fn seen_at(seen_ns: u64) -> Self {
        Answer {
            seen_ns,
            ..Answer::default()
        }
    }

    /// A header block of the response, not an interim one that says so.
    pub(super) fn headers(
        &mut self,
        fields: &Fields,
        end: bool,
        began_ns: u64,
        first: &At,
        at: &At,
    ) {
        self.last_ns = at.time_ns;
        // Without its status known, what looked like the response was an interim one if this is
        // another head: only trailers, which are the last, have no status.
        let interim = self
            .head
            .is_some_and(|head| head.status == 0 && (fields.status.is_some() || !end));
        if self.head.is_none() || interim {
            self.head = Some(Head {
                status: fields.status.unwrap_or(0),
                began_ns,
                tgid: first.tgid,
                tid: first.tid,
            });
            self.unknown = false;
        } else {
            // gRPC always answers 200; without a status this may be the head behind an interim one.
            self.trailers |= self.head.is_some_and(|head| head.status == 200);
        }
        if fields.content != Content::Unseen {
            self.content = fields.content;
        }
        self.grpc_status = fields.grpc_status.or(self.grpc_status);
        self.unknown |= fields.unknown > 0;
    }

    /// Everything that it said is known.
    fn is_known(&self) -> bool {
        self.head.is_some_and(|head| head.status != 0) && !self.unknown
    }

    pub(super) fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Its body, of which more came.
    pub(super) fn received(&mut self, at: &At) -> &mut Flow {
        self.last_ns = at.time_ns;
        &mut self.received
    }

    /// When its last bytes came.
    pub(super) fn last_ns(&self) -> u64 {
        self.last_ns
    }
}

/// What the connection was seen to carry: tells what to take a call for of which nothing tells.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Custom {
    grpc: bool,
    other: bool,
}

impl Stream {
    /// As it is now.
    pub(super) fn unfinished(&self, role: Option<Role>) -> Unfinished<'_> {
        Unfinished {
            role,
            request: &self.request,
            began_ns: self.began_ns,
            tgid: self.tgid,
            answered: self.answer.head.is_some(),
        }
    }

    pub(super) fn new(id: u32, fields: Fields, ended: bool, began_ns: u64, first: &At) -> Self {
        let content = fields.content;
        let timeout_ns = fields.grpc_timeout_ns;
        let unknown = fields.unknown > 0;
        let request = fields.into_request();
        Stream {
            cost: super::fields::cost(&request),
            key: u64::from(id),
            request,
            began_ns,
            tgid: first.tgid,
            tid: first.tid,
            content,
            timeout_ns,
            unknown,
            sent: Flow {
                ended,
                ..Flow::default()
            },
            doubtful: false,
            answer: Answer::default(),
        }
    }

    /// A request that was sent whole over HTTP/1.1 and is answered here (RFC 7540, section 3.2).
    pub(super) fn upgraded(exchange: Exchange) -> Self {
        let body_bytes = exchange.request.body_bytes;
        Stream {
            cost: super::fields::cost(&exchange.request),
            key: exchange.key,
            request: exchange.request,
            began_ns: exchange.start_ns,
            tgid: exchange.tgid,
            tid: exchange.tid,
            content: Content::Other,
            timeout_ns: None,
            unknown: false,
            sent: Flow {
                bytes: body_bytes,
                ended: true,
                ..Flow::default()
            },
            doubtful: false,
            answer: Answer::default(),
        }
    }

    /// That the exchange has begun.
    pub(super) fn opened(&self, role: Role, cause: Option<Cause>) -> Opened {
        Opened {
            key: self.key,
            role,
            position: None,
            start_ns: self.began_ns,
            tgid: self.tgid,
            cause,
            context: self.request.context.clone(),
        }
    }

    /// When the request began.
    pub(super) fn began_ns(&self) -> u64 {
        self.began_ns
    }

    /// Whether this is gRPC. Content types tell. Where they refer to what was not seen, a POST is
    /// taken for gRPC that is answered with trailers, which next to nothing else uses, or that is
    /// on a connection on which only gRPC was seen.
    fn is_grpc(&self, custom: &mut Custom) -> bool {
        let told = match (self.content, self.answer.content) {
            (Content::Grpc, _) => Some(true),
            (Content::Other, _) => Some(false),
            (Content::Unseen, _) if !self.unknown => Some(false),
            (Content::Unseen, Content::Grpc) => Some(true),
            (Content::Unseen, _) if self.answer.grpc_status.is_some() => Some(true),
            (Content::Unseen, _) if self.timeout_ns.is_some() => Some(true),
            (Content::Unseen, Content::Other) => Some(false),
            // All is known of the response, and it has no content type.
            (Content::Unseen, _) if self.answer.is_known() => Some(false),
            (Content::Unseen, Content::Unseen) => None,
        };
        match told {
            Some(true) => custom.grpc = true,
            Some(false) => custom.other = true,
            None => {}
        }
        told.unwrap_or_else(|| {
            let post = matches!(&*self.request.method, "POST" | "");
            post && (self.answer.trailers || (custom.grpc && !custom.other))
        })
    }

    pub(super) fn into_exchange(
        self,
        role: Role,
        outcome: Outcome,
        end_ns: u64,
        custom: &mut Custom,
    ) -> Exchange {
        let is_grpc = self.is_grpc(custom);
        let Stream {
            key,
            mut request,
            began_ns,
            tgid,
            tid,
            content: _,
            timeout_ns,
            unknown: _,
            sent,
            doubtful: _,
            answer,
            cost: _,
        } = self;
        // Calls are timed on different threads: never let an end precede its beginning.
        let response_start_ns = answer.head.map(|head| head.began_ns.max(began_ns));
        let end_ns = end_ns.max(response_start_ns.unwrap_or(began_ns));
        request.body_bytes = sent.bytes.filter(|_| sent.ended);
        let whole = |flow: &Flow| flow.messages.count().filter(|_| flow.bytes.is_some());
        let grpc = is_grpc.then(|| Grpc {
            status: answer.grpc_status.or_else(|| {
                Ended {
                    role,
                    outcome,
                    http_status: answer.head.map(|head| head.status),
                    unknown_fields: answer.unknown,
                    elapsed_ns: end_ns.saturating_sub(began_ns),
                    timeout_ns,
                }
                .status()
            }),
            timeout_ns,
            request_messages: whole(&sent),
            response_messages: whole(&answer.received),
        });
        // Who answered knows better than nobody.
        let (tgid, tid) = match answer.head {
            Some(head) if tgid == 0 && role == Role::Server => (head.tgid, head.tid),
            _ => (tgid, tid),
        };
        Exchange {
            key,
            role,
            protocol: Protocol::Http2,
            request,
            response: answer.head.map(|head| Response {
                status: head.status,
                body_bytes: answer.received.bytes,
            }),
            grpc,
            outcome,
            start_ns: began_ns,
            response_start_ns,
            end_ns,
            // Known to the session, which numbers the streams.
            stream: 0,
            tgid,
            tid,
        }
    }
}
