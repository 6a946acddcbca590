//! What heads and bodies mean for the exchanges: who is answered by what, and when both are over.
//!
//! In: whole heads and steps of bodies. Out: requests in the queue, exchanges out of it.

use super::super::{At, Direction, Opened, Outcome, Role};
use super::super::{began_ns, opposite};
use super::body::{Body, Chunk};
use super::direction::State;
use super::head::{Declared, Kind, RequestHead, ResponseHead};
use super::held::Held;
use super::pairing::{Hole, MAX_OUTSTANDING, Pending};
use super::session::{Phase, Session};
use super::{Output, reason};

/// Exchanges one after the other that show that a client does not pipeline.
const SERIAL_EVIDENCE: u64 = 8;

impl Session {
    /// A piece of a body was taken.
    pub(super) fn body_step(
        &mut self,
        direction: Direction,
        content: u64,
        unknown: bool,
        ended: bool,
        at: &At,
        out: &mut Output,
    ) {
        let content = (!unknown).then_some(content);
        self.lane(direction).last_ns = at.time_ns;
        if self.kind(direction) == Some(Kind::Request) {
            self.request_ns = at.time_ns;
            self.queue.request_content(content);
            if ended {
                self.lane(direction).state = State::Start;
                self.request_sent(out);
            }
        } else {
            if self.queue.len() > 1 {
                self.pipelining = true;
            }
            if let Some(answer) = self.queue.answering() {
                answer.last_ns = at.time_ns;
                answer.content(content);
            }
            if ended {
                self.response_complete(direction, out);
            }
        }
    }

    /// A request's head.
    pub(super) fn request(
        &mut self,
        direction: Direction,
        head: RequestHead,
        first: &At,
        at: &At,
        out: &mut Output,
    ) {
        let role = *self
            .role
            .get_or_insert(Self::role_of(Kind::Request, direction));
        out.counts.requests += 1;
        self.requests = true;
        self.fruitless = 0;
        let began_ns = began_ns(direction, first);
        self.settle_before_request(role, direction, out);
        if !self.queue.is_empty() && first.time_ns == self.request_ns {
            self.pipelining = true;
        }
        let declared = head.declared;
        let key = self.lane(direction).head_position;
        let opened = Opened {
            key,
            role,
            position: Some(key),
            start_ns: began_ns,
            tgid: first.tgid,
            cause: first.cause,
            context: head.request.context.clone(),
        };
        let mut pending = Pending::new(head, key, began_ns, first, std::mem::take(&mut self.hole));
        let body = match declared {
            Declared::Nothing | Declared::Length(0) => None,
            Declared::Length(length) => Some(Body::Length(length)),
            Declared::Chunked => Some(Body::Chunked(Chunk::START)),
            Declared::Unclear => Some(Body::Unknown),
        };
        self.export = match (role, body) {
            (Role::Client, Some(body)) => {
                pending.exports_spans(body == Body::Chunked(Chunk::START))
            }
            _ => None,
        };
        let connect = pending.is_connect();
        pending.sent = connect || body.is_none();
        let lane = self.lane(direction);
        lane.synced = true;
        lane.state = match body {
            _ if connect => State::Waiting { received: false },
            Some(body) => State::Body(body),
            None => State::Start,
        };
        self.request_ns = at.time_ns;
        if let Some(reason) = self.unpairable(began_ns) {
            out.abandon(reason, 1);
            self.stop_waiting(direction);
            return;
        }
        self.ghosts = 0;
        out.opened.push(opened);
        self.queue.push(pending);
        if declared == Declared::Unclear {
            self.queue.request_content(None);
        }
        self.resume_held(role, direction, began_ns, out);
    }

    /// What a new request's beginning says about the ones before it.
    fn settle_before_request(&mut self, role: Role, direction: Direction, out: &mut Output) {
        let other = opposite(direction);
        if self.queue.front().is_some_and(|front| {
            front
                .response
                .as_ref()
                .is_some_and(|answer| answer.complete)
        }) {
            self.finish(role, Outcome::Complete, 0, out);
        }
        if self.lane(other).state == State::Body(Body::Unknown) {
            // Only the client's next request tells that the response ended.
            self.lane(other).state = State::Seeking;
            self.lane(other).synced = false;
            if let Some(answer) = self.queue.answering() {
                answer.complete = true;
                self.finish(role, Outcome::Complete, 0, out);
                self.ghosts += self.abandon_all(reason::PAIRING_UNKNOWN, out);
            }
        }
    }

    /// Whether the client has shown that it waits for every response before it goes on.
    fn is_serial(&self) -> bool {
        !self.pipelining && self.completed >= SERIAL_EVIDENCE
    }

    /// Why a request cannot be paired, if so.
    fn unpairable(&mut self, began_ns: u64) -> Option<&'static str> {
        let serial = self.is_serial();
        // A response that came after it began was dropped: that may have been its own.
        let missed = self.orphan_ns.is_some_and(|orphan_ns| began_ns < orphan_ns);
        if (self.ghosts > 0 && !serial) || missed {
            self.ghosts = self.ghosts.saturating_add(u64::from(!missed));
            return Some(reason::PAIRING_UNKNOWN);
        }
        if self.queue.len() >= MAX_OUTSTANDING {
            self.hole = Hole::Sure;
            self.pipelining = true;
            return Some(reason::PIPELINE_FULL);
        }
        None
    }

    /// The newest request was received to its end.
    pub(super) fn request_sent(&mut self, out: &mut Output) {
        self.queue.request_sent();
        self.finish_complete(out);
    }

    /// A response's head.
    pub(super) fn response_head(
        &mut self,
        direction: Direction,
        head: ResponseHead,
        first: &At,
        at: &At,
        out: &mut Output,
    ) {
        self.role
            .get_or_insert(Self::role_of(Kind::Response, direction));
        self.responses = true;
        self.fruitless = 0;
        if (100..200).contains(&head.status) && head.status != 101 {
            if let Some(front) = self.queue.unanswered() {
                front.got_continue();
            }
            return;
        }
        let began_ns = began_ns(direction, first);
        if self.queue.unanswered().is_some() {
            self.answer(direction, head, first, at, began_ns, out);
        } else if self.hole == Hole::None
            && self.lane(direction).synced
            && self.lane(opposite(direction)).synced
        {
            self.held = Some(Box::new(Held::new(head, *first, *at, began_ns)));
        } else {
            self.orphan(direction, began_ns, out);
        }
    }

    /// The final response's head of the request that is answered next.
    pub(super) fn answer(
        &mut self,
        direction: Direction,
        head: ResponseHead,
        first: &At,
        at: &At,
        began_ns: u64,
        out: &mut Output,
    ) {
        if self.queue.len() > 1 {
            self.pipelining = true;
        }
        let orphans = std::mem::take(&mut self.orphans);
        let (pipelining, serial) = (self.pipelining, self.is_serial());
        let Some(front) = self.queue.unanswered() else {
            return;
        };
        let doubtful = match front.hole {
            Hole::None => false,
            Hole::Maybe => !serial && (pipelining || orphans > 0),
            Hole::Sure => !serial,
        };
        if doubtful {
            // It answers a request that was lost, so from here on nothing can be told apart.
            self.abandon_all(reason::PAIRING_UNKNOWN, out);
            self.ghosts = u64::MAX;
            self.orphan(direction, began_ns, out);
            return;
        }
        let role = Self::role_of(Kind::Response, direction);
        front.answer(role, head.status, began_ns, first, at.time_ns);
        let success = (200..300).contains(&head.status);
        let tunnel = front.is_connect() && success;
        let bodiless = front.is_head() || matches!(head.status, 204 | 304);
        if head.status == 101 && head.upgrades_to_h2c && self.queue.len() == 1 {
            if let Some(answer) = self.queue.answering() {
                answer.complete = true;
            }
            self.phase = Phase::Upgrading;
            self.upgrade = Some(Box::default());
            self.finish_complete(out);
            return;
        }
        if head.status == 101 || tunnel {
            if let Some(answer) = self.queue.answering() {
                answer.complete = true;
            }
            self.finish(role, Outcome::Complete, at.time_ns, out);
            self.abandon_all(reason::UPGRADED, out);
            self.phase = Phase::Upgraded;
            let kept = self.lane(opposite(direction)).forget();
            out.unparsed(kept);
            return;
        }
        self.stop_waiting(opposite(direction));
        let lane = self.lane(direction);
        lane.synced = true;
        lane.last_ns = at.time_ns;
        let body = match head.declared {
            _ if bodiless => None,
            Declared::Length(0) => None,
            Declared::Length(length) => Some(Body::Length(length)),
            Declared::Chunked => Some(Body::Chunked(Chunk::START)),
            Declared::Nothing | Declared::Unclear => Some(Body::UntilClose),
        };
        match body {
            Some(body) => lane.state = State::Body(body),
            None => self.response_complete(direction, out),
        }
    }

    /// A CONNECT was refused or given up: its direction carries requests again.
    pub(super) fn stop_waiting(&mut self, direction: Direction) {
        let lane = self.lane(direction);
        match lane.state {
            State::Waiting { received: false } => lane.state = State::Start,
            State::Waiting { received: true } => {
                lane.state = State::Seeking;
                lane.synced = false;
            }
            _ => {}
        }
    }

    /// The response was received to its end.
    fn response_complete(&mut self, direction: Direction, out: &mut Output) {
        self.lane(direction).state = State::Start;
        let request_end_unknown =
            self.lane(opposite(direction)).state == State::Body(Body::Unknown);
        if let Some(answer) = self.queue.answering() {
            answer.complete = true;
            self.completed += 1;
        }
        if request_end_unknown {
            self.queue.request_sent();
        }
        self.finish_complete(out);
    }

    /// Pushes the front if both its messages have ended.
    fn finish_complete(&mut self, out: &mut Output) {
        let Some(role) = self.role else {
            return;
        };
        let complete = |front: &mut Pending| {
            front.sent
                && front
                    .response
                    .as_ref()
                    .is_some_and(|answer| answer.complete)
        };
        if self.queue.front().is_some_and(complete) {
            self.finish(role, Outcome::Complete, 0, out);
        }
    }

    pub(super) fn finish(&mut self, role: Role, outcome: Outcome, end_ns: u64, out: &mut Output) {
        let exchange = self.queue.finish(role, outcome, end_ns);
        match &mut self.upgrade {
            Some(upgrade) if upgrade.exchange.is_none() => {
                upgrade.exchange = exchange;
                self.phase = Phase::Upgraded;
            }
            _ => out.exchanges.extend(exchange),
        }
    }
}
