//! One end of one connection: its two directions, and what is known of their pairing.
//!
//! In: pieces of both directions. Out: exchanges and counts, in [`Output`]. Every recognised
//! request becomes exactly one exchange or is counted as abandoned, or is still in flight.

use super::super::opposite;
use super::super::{At, Direction, Input, Role, Unfinished};
use super::body::Body;
use super::direction::{Found, Lane, State};
use super::export::Export;
use super::head::{Head, Kind};
use super::held::Held;
use super::pairing::{Hole, Queue};
use super::upgrade::Upgrade;
use super::{Output, reason};

/// Turns in a row that may start with garbage before the connection is taken for something else.
const MAX_FRUITLESS_TURNS: u32 = 64;

/// One end of one HTTP/1 connection.
#[derive(Debug)]
pub struct Session {
    pub(super) role: Option<Role>,
    from_start: bool,
    pub(super) phase: Phase,
    read: Lane,
    write: Lane,
    /// Direction of the last piece.
    last: Option<Direction>,
    pub(super) queue: Queue,
    pub(super) held: Option<Box<Held>>,
    /// Requests that were given up and may still be answered.
    pub(super) ghosts: u64,
    /// What may be missing before the next request.
    pub(super) hole: Hole,
    /// Responses without a request since the last one with.
    pub(super) orphans: u64,
    /// When the last of them began.
    pub(super) orphan_ns: Option<u64>,
    /// The client was seen to send a request before it had the response to the one before.
    pub(super) pipelining: bool,
    /// When the last byte of a request was seen.
    pub(super) request_ns: u64,
    /// Exchanges that were seen to their ends.
    pub(super) completed: u64,
    pub(super) requests: bool,
    pub(super) responses: bool,
    pub(super) fruitless: u32,
    /// The peer was seen to end first.
    pub(super) peer_ended: bool,
    /// The connection goes on as HTTP/2.
    pub(super) upgrade: Option<Box<Upgrade>>,
    /// The body of a request that exports spans is being sent.
    pub(super) export: Option<Box<Export>>,
}

/// What the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Http,
    /// HTTP/2 once the request is received to its end; the other direction is already.
    Upgrading,
    /// Something else now (101, CONNECT).
    Upgraded,
    /// It never was HTTP/1, or no message was found for too long.
    Dead,
    /// Ended.
    Closed,
}

impl Session {
    /// `role` if the kernel saw who opened the connection; `from_start` if no byte was missed.
    pub fn new(role: Option<Role>, from_start: bool) -> Self {
        Session {
            role,
            from_start,
            phase: Phase::Http,
            read: Lane::new(from_start),
            write: Lane::new(from_start),
            last: None,
            queue: Queue::default(),
            held: None,
            ghosts: 0,
            hole: Hole::None,
            orphans: 0,
            orphan_ns: None,
            pipelining: false,
            request_ns: 0,
            completed: 0,
            requests: false,
            responses: false,
            fruitless: 0,
            peer_ended: false,
            upgrade: None,
            export: None,
        }
    }

    /// Takes the next piece of one direction.
    pub fn receive(&mut self, direction: Direction, input: Input<'_>, at: &At, out: &mut Output) {
        let length = match input {
            Input::Bytes(bytes) => bytes.len() as u64,
            Input::Skipped(length) | Input::Lost(length) => length,
        };
        if length == 0 {
            return;
        }
        if self.phase != Phase::Http && !self.is_upgrading(direction) {
            self.behind_upgrade(direction, input, at, out);
            return;
        }
        self.expire_held(direction, at, out);
        let lane = self.lane(direction);
        lane.position = lane.position.saturating_add(length);
        if self.last != Some(direction) {
            self.last = Some(direction);
            self.turn(direction, out);
        }
        match input {
            Input::Bytes(bytes) => self.bytes(direction, bytes, at, out),
            Input::Skipped(length) => self.skipped(direction, length, at, out),
            Input::Lost(length) => self.lost(direction, length, at, out),
        }
    }

    /// Requests without a finished exchange (for the ledger's `pending`).
    pub fn in_flight(&self) -> usize {
        self.queue.len() + usize::from(self.upgrade.as_ref().is_some_and(|u| u.exchange.is_some()))
    }

    /// Requests without a finished exchange; one that asked for an upgrade is left out.
    pub fn unfinished(&self) -> impl Iterator<Item = Unfinished<'_>> {
        self.queue.iter(self.role)
    }

    /// Nothing was received yet.
    pub fn is_fresh(&self) -> bool {
        self.last.is_none()
    }

    /// The connection speaks no HTTP/1: nothing will come of it any more.
    pub fn is_dead(&self) -> bool {
        self.phase == Phase::Dead
    }

    /// The connection speaks a protocol since a 101 or a CONNECT that nobody parses.
    pub fn is_upgraded(&self) -> bool {
        self.phase == Phase::Upgraded
    }

    pub(super) fn lane(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        }
    }

    /// What a direction carries, if the role is known.
    pub(super) fn kind(&self, direction: Direction) -> Option<Kind> {
        self.role.map(|role| match (role, direction) {
            (Role::Server, Direction::Read) | (Role::Client, Direction::Write) => Kind::Request,
            (Role::Server, Direction::Write) | (Role::Client, Direction::Read) => Kind::Response,
        })
    }

    /// The role of the end at which this kind of message has this direction.
    pub(super) fn role_of(kind: Kind, direction: Direction) -> Role {
        match (kind, direction) {
            (Kind::Request, Direction::Read) | (Kind::Response, Direction::Write) => Role::Server,
            (Kind::Request, Direction::Write) | (Kind::Response, Direction::Read) => Role::Client,
        }
    }

    /// Whether the body of a request is being received in this direction.
    pub(super) fn is_within_request(&self, direction: Direction) -> bool {
        let lane = match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        };
        self.kind(direction) == Some(Kind::Request) && lane.body().is_some()
    }

    /// The peer spoke in between: a message may start here, if anywhere.
    fn turn(&mut self, direction: Direction, out: &mut Output) {
        let request = self.kind(direction) == Some(Kind::Request);
        let lane = self.lane(direction);
        match lane.state {
            State::Seeking => lane.state = State::Start,
            // What looked like a head but was interrupted was more likely the middle of a body.
            State::Start if !lane.synced => {
                let kept = lane.forget();
                out.unparsed(kept);
            }
            State::Body(Body::Unknown) if request => {
                lane.state = State::Start;
                lane.synced = false;
                self.request_sent(out);
            }
            _ => {}
        }
    }

    pub(super) fn bytes(&mut self, direction: Direction, bytes: &[u8], at: &At, out: &mut Output) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.phase != Phase::Http && !self.is_upgrading(direction) {
                self.behind_upgrade(direction, Input::Bytes(rest), at, out);
                return;
            }
            if self.hold(direction, Input::Bytes(rest), at, out) {
                return;
            }
            let kind = self.kind(direction);
            let lane = self.lane(direction);
            let used = match &mut lane.state {
                State::Seeking | State::Ended => {
                    out.unparsed(rest.len() as u64);
                    return;
                }
                State::Waiting { received } => {
                    *received = true;
                    out.unparsed(rest.len() as u64);
                    return;
                }
                State::Body(body) => {
                    let step = body.bytes(rest);
                    let unknown = *body == Body::Unknown;
                    let used = usize::try_from(step.used).unwrap_or(rest.len());
                    self.export_bytes(direction, rest.get(..used), step.ended, out);
                    self.body_step(direction, step.content, unknown, step.ended, at, out);
                    used
                }
                State::Start => match lane.find(kind, rest, at) {
                    Found::Partial => return,
                    Found::Garbage { unparsed } => {
                        out.unparsed(unparsed);
                        self.garbage(direction, reason::MALFORMED_RESPONSE, out);
                        return;
                    }
                    Found::TooLong { unparsed } => {
                        out.unparsed(unparsed);
                        self.garbage(direction, reason::HEAD_TOO_LONG, out);
                        return;
                    }
                    Found::Head { head, first, used } => {
                        match head {
                            Head::Request(head) => self.request(direction, head, &first, at, out),
                            Head::Response(head) => {
                                self.response_head(direction, head, &first, at, out)
                            }
                        }
                        used
                    }
                },
            };
            rest = rest.get(used..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
        }
    }

    pub(super) fn skipped(&mut self, direction: Direction, length: u64, at: &At, out: &mut Output) {
        let mut left = length;
        while left > 0 {
            if self.phase != Phase::Http && !self.is_upgrading(direction) {
                self.behind_upgrade(direction, Input::Skipped(left), at, out);
                return;
            }
            if self.hold(direction, Input::Skipped(left), at, out) {
                return;
            }
            let lane = self.lane(direction);
            match &mut lane.state {
                State::Seeking | State::Ended => {
                    out.unparsed(left);
                    return;
                }
                State::Waiting { received } => {
                    *received = true;
                    out.unparsed(left);
                    return;
                }
                State::Start => {
                    out.unparsed(left);
                    if self.joins(direction) {
                        let kept = self.lane(direction).forget();
                        out.unparsed(kept);
                    } else {
                        self.desync(direction, reason::HEAD_SKIPPED, out);
                    }
                    return;
                }
                State::Body(body) => {
                    let step = body.range(left);
                    let unknown = *body == Body::Unknown;
                    self.export_bytes(direction, None, step.ended, out);
                    self.body_step(direction, step.content, unknown, step.ended, at, out);
                    left -= step.used.min(left);
                }
            }
        }
    }

    /// Joined in the middle, and no message of this direction could be placed yet: what is left out
    /// is the rest of an older one, whose response or request nobody waits for here. The kernel side
    /// leaves out what is no message start, so the next piece may well be one.
    fn joins(&mut self, direction: Direction) -> bool {
        !self.from_start && self.completed == 0 && !self.lane(direction).synced
    }

    fn lost(&mut self, direction: Direction, length: u64, at: &At, out: &mut Output) {
        if self.phase == Phase::Upgrading {
            // How much of it was the request is not known; the HTTP/2 session finds its frames.
            self.queue.request_content(None);
            self.request_sent(out);
            self.behind_upgrade(direction, Input::Lost(length), at, out);
            return;
        }
        let held = self.held.is_some();
        if held {
            // Bytes are missing behind the held response, or its request is what is missing.
            self.drop_held(false, out);
        }
        if self
            .lane(direction)
            .body()
            .is_some_and(|body| body.contains(length))
        {
            self.skipped(direction, length, at, out);
            return;
        }
        self.desync(direction, reason::LOST, out);
        if held && self.kind(direction) == Some(Kind::Request) {
            // The request that is missing was answered already: nothing hangs in the air.
            self.hole = Hole::Maybe;
            self.orphans = 0;
        }
    }

    /// What came at a message start is no message.
    fn garbage(&mut self, direction: Direction, reason: &'static str, out: &mut Output) {
        let response = self.kind(direction) == Some(Kind::Response);
        let stranger = if response {
            !self.responses
        } else {
            !self.requests && !self.responses
        };
        let synced = self.lane(direction).synced;
        self.fruitless += 1;
        if (synced && self.from_start && stranger) || self.fruitless > MAX_FRUITLESS_TURNS {
            self.abandon_all(reason::NOT_HTTP1, out);
            let kept = self.lane(opposite(direction)).forget();
            out.unparsed(kept);
            if self.held.is_some() {
                self.drop_held(false, out);
            }
            self.phase = Phase::Dead;
            return;
        }
        self.unsync(direction, State::Seeking, out);
        if response {
            let given_up = self.abandon_all(reason, out);
            // Joined in the middle, this is the tail of an older response, and a client that does
            // not pipeline had that before it sent what was given up.
            if self.from_start || self.pipelining || self.completed > 0 {
                self.ghosts = self.ghosts.saturating_add(given_up);
            }
        } else if synced {
            self.hole = self.hole.max(Hole::Maybe);
        }
    }

    /// The direction has to look for the next message start.
    pub(super) fn unsync(&mut self, direction: Direction, state: State, out: &mut Output) {
        let lane = self.lane(direction);
        let kept = lane.forget();
        if std::mem::take(&mut lane.synced) {
            out.counts.resyncs += 1;
        }
        lane.state = state;
        out.unparsed(kept);
    }
}
