//! What header blocks and ends of streams mean for the exchanges.
//!
//! In: the fields of requests, responses and trailers; bodies; ends of streams. Out: open streams,
//! exchanges.

use super::super::{At, Direction, Outcome, Role};
use super::fields::Fields;
use super::session::{Kind, Session};
use super::stream::{Answer, Flow, Stream};
use super::{Output, reason};

/// Streams of one connection that may be open.
const MAX_STREAMS: usize = 8192;
/// What their texts may cost together.
const MAX_COST: usize = 2 * 1024 * 1024;
/// Responses that may wait for their requests.
const MAX_EARLY: usize = 64;
/// How long they wait: a write may return after its answer was read, but not long after.
const MAX_EARLY_NS: u64 = 1_000_000_000;

impl Session {
    /// A header block from the client.
    #[allow(
        clippy::too_many_arguments,
        reason = "all of it is the block's place and time"
    )]
    pub(super) fn request(
        &mut self,
        direction: Direction,
        id: u32,
        fields: Fields,
        end: bool,
        began_ns: u64,
        first: &At,
        at: &At,
        out: &mut Output,
    ) {
        if self.streams.contains_key(&id) {
            // Trailers.
            if end {
                self.direction_of_stream_ends(direction, id, at, out);
            }
            return;
        }
        if id <= self.newest {
            // Streams are opened in order: this one has ended.
            return;
        }
        // With every field unknown it may be the trailers of a stream from before.
        if !fields.is_request && end && !self.lane(direction).whole {
            out.counts.undecided_blocks += 1;
            return;
        }
        self.newest = id;
        out.counts.requests += 1;
        let mut stream = Stream::new(id, fields, end, began_ns, first);
        let opened = stream.opened(Self::role_with_requests(direction), first.cause);
        self.make_room(stream.cost, out);
        if self.streams.len() >= MAX_STREAMS || self.cost.saturating_add(stream.cost) > MAX_COST {
            out.abandon(reason::STREAMS_FULL, 1);
            return;
        }
        out.opened.push(opened);
        let early = self
            .early
            .remove(&id)
            .filter(|answer| answer.seen_ns >= stream.began_ns());
        if let Some(answer) = early {
            stream.answer = answer;
        }
        let ended = stream.answer.ended;
        self.cost += stream.cost;
        self.streams.insert(id, stream);
        if let Some((outcome, end_ns)) = ended {
            self.finish(id, outcome, end_ns, out);
        }
    }

    /// Gives streams up whose reset may have been lost, if there is no room otherwise.
    fn make_room(&mut self, cost: usize, out: &mut Output) {
        let full = self.streams.len() >= MAX_STREAMS || self.cost.saturating_add(cost) > MAX_COST;
        if full && self.doubtful > 0 {
            let before = self.streams.len();
            self.streams.retain(|_, stream| !stream.doubtful);
            out.abandon(reason::LOST, (before - self.streams.len()) as u64);
            self.cost = self.streams.values().map(|stream| stream.cost).sum();
            self.doubtful = 0;
        }
    }

    /// A header block from the server.
    #[allow(
        clippy::too_many_arguments,
        reason = "all of it is the block's place and time"
    )]
    pub(super) fn response(
        &mut self,
        direction: Direction,
        id: u32,
        fields: &Fields,
        end: bool,
        began_ns: u64,
        first: &At,
        at: &At,
        out: &mut Output,
    ) {
        if !end
            && fields
                .status
                .is_some_and(|status| (100..200).contains(&status))
        {
            // Interim.
            return;
        }
        let Some(answer) = self.answer(id) else {
            let is_head = fields.status.is_some() || !end;
            if is_head && id > self.newest && self.role == Some(Role::Client) {
                let mut answer = Answer::seen_at(at.time_ns);
                answer.headers(fields, end, began_ns, first, at);
                self.keep_early(id, answer, out);
                if end {
                    self.direction_of_stream_ends(direction, id, at, out);
                }
            } else if is_head {
                out.counts.responses_without_request += 1;
            }
            return;
        };
        answer.headers(fields, end, began_ns, first, at);
        if end {
            self.direction_of_stream_ends(direction, id, at, out);
        }
    }

    /// Keeps a response whose request may not have been told yet.
    fn keep_early(&mut self, id: u32, answer: Answer, out: &mut Output) {
        let now_ns = answer.seen_ns;
        let before = self.early.len();
        self.early
            .retain(|_, answer| answer.seen_ns.saturating_add(MAX_EARLY_NS) >= now_ns);
        out.counts.responses_without_request += (before - self.early.len()) as u64;
        if self.early.len() >= MAX_EARLY {
            out.counts.responses_without_request += 1;
            return;
        }
        self.early.insert(id, answer);
    }

    /// What is known of a stream's response.
    fn answer(&mut self, id: u32) -> Option<&mut Answer> {
        match self.streams.get_mut(&id) {
            Some(stream) => Some(&mut stream.answer),
            None => self
                .early
                .get_mut(&id)
                .filter(|answer| answer.ended.is_none()),
        }
    }

    /// The body that this direction of a stream carries.
    pub(super) fn flow(&mut self, direction: Direction, id: u32, at: &At) -> Option<&mut Flow> {
        match self.kind(direction)? {
            Kind::Requests => self.streams.get_mut(&id).map(|stream| &mut stream.sent),
            Kind::Responses => self.answer(id).map(|answer| answer.received(at)),
        }
    }

    /// END_STREAM.
    pub(super) fn direction_of_stream_ends(
        &mut self,
        direction: Direction,
        id: u32,
        at: &At,
        out: &mut Output,
    ) {
        match self.kind(direction) {
            Some(Kind::Requests) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.sent.ended = true;
                }
            }
            // The response is over, whatever the client still sends.
            Some(Kind::Responses) => {
                let outcome = if self.answer(id).is_some_and(|answer| answer.has_head()) {
                    Outcome::Complete
                } else {
                    // A body without a head: the head was not seen.
                    Outcome::Lost
                };
                self.stream_ends(direction, id, outcome, at, out);
            }
            None => {}
        }
    }

    /// A stream is over.
    pub(super) fn stream_ends(
        &mut self,
        direction: Direction,
        id: u32,
        outcome: Outcome,
        at: &At,
        out: &mut Output,
    ) {
        if self.streams.contains_key(&id) {
            self.finish(id, outcome, at.time_ns, out);
        } else if self.kind(direction) == Some(Kind::Responses)
            && let Some(answer) = self.early.get_mut(&id)
        {
            answer.ended.get_or_insert((outcome, at.time_ns));
        }
    }

    /// Takes a stream out as an exchange.
    pub(super) fn finish(&mut self, id: u32, outcome: Outcome, end_ns: u64, out: &mut Output) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        self.forget_cost(&stream);
        let Some(role) = self.role else {
            // Streams are only opened once the role is known.
            out.abandon(reason::LOST, 1);
            return;
        };
        let mut exchange = stream.into_exchange(role, outcome, end_ns, &mut self.custom);
        exchange.stream = id;
        out.exchanges.push(exchange);
    }

    fn forget_cost(&mut self, stream: &Stream) {
        self.cost = self.cost.saturating_sub(stream.cost);
        self.doubtful -= usize::from(stream.doubtful).min(self.doubtful);
    }
}
