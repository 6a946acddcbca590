//! One end of one connection: its two directions and the streams that are open.
//!
//! In: pieces of both directions. Out: exchanges and counts, in [`Output`]. Every recognised
//! request becomes exactly one exchange or is counted as abandoned, or is still in flight.

use rustc_hash::FxHashMap;

use super::super::{At, Direction, Exchange, Input, Role, Unfinished, opposite};
use super::align::Found;
use super::frame::{self, PREFACE};
use super::held::{Held, Piece, What};
use super::lane::{Lane, State};
use super::stream::{Answer, Custom, Stream};
use super::{Output, reason};

/// Bytes without frames after which a connection that never had any is taken for something else.
const MAX_FRUITLESS: u64 = 64 * 1024;
/// The same for a connection that had frames.
const MAX_FRUITLESS_LATER: u64 = 8 * 1024 * 1024;

/// One end of one HTTP/2 connection.
#[derive(Debug)]
pub struct Session {
    pub(super) role: Option<Role>,
    pub(super) phase: Phase,
    read: Lane,
    write: Lane,
    held: Held,
    pub(super) streams: FxHashMap<u32, Stream>,
    /// What the texts of the open streams cost.
    pub(super) cost: usize,
    /// Open streams whose reset may have been lost.
    pub(super) doubtful: usize,
    /// Responses that were seen before their requests.
    pub(super) early: FxHashMap<u32, Answer>,
    /// Newest stream that a request opened.
    pub(super) newest: u32,
    /// Streams behind this one were refused.
    pub(super) last: u32,
    pub(super) custom: Custom,
    /// The peer was seen to end first.
    pub(super) peer_ended: bool,
}

/// What the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Http2,
    /// It never was HTTP/2, or no frame was found for too long.
    Dead,
    /// Ended.
    Closed,
}

/// What a direction carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Requests,
    Responses,
}

impl Session {
    /// `role` if the kernel saw who opened the connection; `from_start` if no byte was missed.
    pub fn new(role: Option<Role>, from_start: bool) -> Self {
        Session {
            role,
            phase: Phase::Http2,
            read: Lane::new(from_start),
            write: Lane::new(from_start),
            held: Held::default(),
            streams: FxHashMap::default(),
            cost: 0,
            doubtful: 0,
            early: FxHashMap::default(),
            newest: 0,
            last: u32::MAX,
            custom: Custom::default(),
            peer_ended: false,
        }
    }

    /// A connection that HTTP/1.1 was upgraded on (`Upgrade: h2c`), from behind the response 101 on.
    /// The exchange that ended with it goes on as stream 1 and comes out again with its real
    /// response: the caller must not report it as it was. It is in the counts of who saw it begin.
    pub fn upgraded(exchange: Exchange) -> Self {
        let mut session = Session::new(Some(exchange.role), true);
        // `HTTP2-Settings`, which is not read, may have allowed anything.
        let responses = match exchange.role {
            Role::Server => Direction::Write,
            Role::Client => Direction::Read,
        };
        session.lane(responses).max_frame = frame::MAX;
        let stream = Stream::upgraded(exchange);
        session.newest = 1;
        session.cost = stream.cost;
        session.streams.insert(1, stream);
        session
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
        if self.phase != Phase::Http2 {
            if !matches!(input, Input::Lost(_)) {
                out.unparsed(length);
            }
            return;
        }
        let mut rest = input;
        if self.held.is_empty() && self.lane(direction).is_aligned() {
            match self.feed(direction, input, at, out) {
                Some(behind) => rest = behind,
                None => return,
            }
        }
        self.hold(direction, rest, at);
        self.release(false, out);
    }

    /// Requests without a finished exchange (for the ledger's `pending`).
    pub fn in_flight(&self) -> usize {
        self.streams.len()
    }

    /// Requests without a finished exchange.
    pub fn unfinished(&self) -> impl Iterator<Item = Unfinished<'_>> {
        let role = self.role;
        self.streams
            .values()
            .map(move |stream| stream.unfinished(role))
    }

    /// The connection speaks no HTTP/2: nothing will come of it any more.
    pub fn is_dead(&self) -> bool {
        self.phase == Phase::Dead
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
            (Role::Server, Direction::Read) | (Role::Client, Direction::Write) => Kind::Requests,
            (Role::Server, Direction::Write) | (Role::Client, Direction::Read) => Kind::Responses,
        })
    }

    /// The role of the end at which this direction carries requests.
    pub(super) fn role_with_requests(direction: Direction) -> Role {
        match direction {
            Direction::Read => Role::Server,
            Direction::Write => Role::Client,
        }
    }

    /// Takes a piece of a direction whose borders are known. What is left when they are not any
    /// more is returned.
    fn feed<'a>(
        &mut self,
        direction: Direction,
        input: Input<'a>,
        at: &At,
        out: &mut Output,
    ) -> Option<Input<'a>> {
        match input {
            Input::Bytes(bytes) => {
                let used = self.bytes(direction, bytes, at, out);
                bytes
                    .get(used..)
                    .filter(|rest| !rest.is_empty())
                    .map(Input::Bytes)
            }
            Input::Skipped(length) => {
                self.skipped(direction, length, at, out);
                None
            }
            Input::Lost(length) => {
                self.lost(direction, length, at, out);
                None
            }
        }
    }

    /// Returns the number of bytes used: all, unless the borders of frames got lost on the way.
    fn bytes(&mut self, direction: Direction, bytes: &[u8], at: &At, out: &mut Output) -> usize {
        let mut used = 0;
        while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            if self.phase != Phase::Http2 {
                out.unparsed(rest.len() as u64);
                return bytes.len();
            }
            let role = self.role;
            let kind = self.kind(direction);
            let lane = self.lane(direction);
            match lane.state {
                State::Unaligned(_) => return used,
                State::Ended => {
                    out.unparsed(rest.len() as u64);
                    return bytes.len();
                }
                State::Start => {
                    let preface = match kind {
                        Some(kind) => kind == Kind::Requests,
                        // A frame of that length does not come first.
                        None => rest.first() == PREFACE.first(),
                    };
                    lane.state = if preface {
                        State::Preface(0)
                    } else {
                        State::Header(0)
                    };
                }
                State::Preface(have) => {
                    let expected = PREFACE.get(have..).unwrap_or_default();
                    let take = expected.len().min(rest.len());
                    if expected.get(..take) != rest.get(..take) {
                        self.give_up(out);
                        continue;
                    }
                    used += take;
                    if have + take < PREFACE.len() {
                        lane.state = State::Preface(have + take);
                        continue;
                    }
                    lane.state = State::Header(0);
                    lane.found = true;
                    if role.is_none() {
                        self.role = Some(Self::role_with_requests(direction));
                    }
                }
                State::Header(have) => {
                    let (take, header) = lane.header(have, rest, at);
                    used += take;
                    if let Some(header) = header {
                        self.frame_begins(direction, header, at, out);
                    }
                }
                State::Payload => {
                    let left = usize::try_from(lane.left).unwrap_or(usize::MAX);
                    let take = left.min(rest.len());
                    let piece = rest.get(..take).unwrap_or(rest);
                    used += take;
                    self.payload(direction, piece, at, out);
                }
            }
        }
        used
    }

    /// Left out on purpose: within DATA, or it is as good as lost.
    fn skipped(&mut self, direction: Direction, length: u64, at: &At, out: &mut Output) {
        let lane = self.lane(direction);
        if lane.state != State::Payload
            || lane.frame.kind != frame::DATA
            || u64::from(lane.left) < length
        {
            out.unparsed(length);
            self.lost(direction, length, at, out);
            return;
        }
        self.missing(direction, length, at, out);
    }

    fn lost(&mut self, direction: Direction, length: u64, at: &At, out: &mut Output) {
        let lane = self.lane(direction);
        if lane.state == State::Ended {
            return;
        }
        if lane.state == State::Payload && length <= u64::from(lane.left) {
            self.missing(direction, length, at, out);
            return;
        }
        self.lose(direction, out);
    }

    /// Keeps a piece until the borders before it are known.
    fn hold(&mut self, direction: Direction, input: Input<'_>, at: &At) {
        let window = &mut self.lane(direction).window;
        match input {
            Input::Bytes(bytes) => window.push(bytes),
            Input::Skipped(length) => window.push_skipped(length),
            Input::Lost(_) => window.push_lost(),
        }
        self.held.push(Piece {
            direction,
            at: *at,
            what: What::of(input),
        });
    }

    /// Takes what was kept, as far as the borders are known. `ended`: nothing more will come.
    pub(super) fn release(&mut self, ended: bool, out: &mut Output) {
        while let Some(&Piece {
            direction, what, ..
        }) = self.held.front()
        {
            let dead = self.phase != Phase::Http2;
            let lane = self.lane(direction);
            let joined = match lane.state {
                State::Unaligned(joined) if !dead && !matches!(what, What::Lost(_)) => joined,
                _ => {
                    self.take_held(out);
                    continue;
                }
            };
            match lane.window.search(joined, ended) {
                Found::Border(index) => {
                    self.discard(direction, index, out);
                    let lane = self.lane(direction);
                    lane.align();
                    if lane.window.starts_with(PREFACE) {
                        lane.state = State::Preface(0);
                    }
                }
                Found::Perhaps(index) => {
                    self.discard(direction, index, out);
                    if self.phase == Phase::Http2 && !self.held.is_over_budget() {
                        return;
                    }
                    // Long enough: it is none, or one that cannot be made sure of.
                    if self.phase == Phase::Http2 {
                        self.discard(direction, 1, out);
                    }
                }
                Found::Nowhere(index) => self.discard(direction, index, out),
            }
        }
    }

    /// Takes the first piece that was kept; its direction's borders are known, or it is a loss.
    fn take_held(&mut self, out: &mut Output) {
        let Some(Piece {
            direction,
            at,
            what,
        }) = self.held.pop()
        else {
            return;
        };
        let window = &mut self.lane(direction).window;
        let taken;
        let input = match what {
            What::Bytes(length) => {
                taken = window.take(length);
                Input::Bytes(&taken)
            }
            What::Skipped(length) => {
                window.take_gap();
                Input::Skipped(length)
            }
            What::Lost(length) => {
                window.take_gap();
                Input::Lost(length)
            }
        };
        if self.phase != Phase::Http2 {
            match input {
                Input::Bytes(bytes) => out.unparsed(bytes.len() as u64),
                Input::Skipped(length) => out.unparsed(length),
                Input::Lost(_) => {}
            }
            return;
        }
        if !self.lane(direction).is_aligned() {
            // Lost where nothing is known anyway.
            return;
        }
        if let Some(Input::Bytes(rest)) = self.feed(direction, input, &at, out) {
            self.lane(direction).window.put_back(rest);
            self.held.push_front(Piece {
                direction,
                at,
                what: What::Bytes(rest.len()),
            });
        }
    }

    /// Gives up bytes of a direction whose borders are not known.
    fn discard(&mut self, direction: Direction, bytes: usize, out: &mut Output) {
        let skipped = self.held.discard(direction, bytes);
        let lane = self.lane(direction);
        lane.window.discard(bytes);
        let given_up = skipped.saturating_add(bytes as u64);
        if given_up == 0 {
            return;
        }
        lane.state = State::Unaligned(false);
        // What was left out was recognised by whoever did so.
        lane.fruitless = lane.fruitless.saturating_add(bytes as u64);
        let limit = if lane.found {
            MAX_FRUITLESS_LATER
        } else {
            MAX_FRUITLESS
        };
        let fruitless = lane.fruitless > limit;
        out.unparsed(given_up);
        self.hole(direction, out);
        if fruitless {
            self.give_up(out);
        }
    }

    /// The connection is something else.
    pub(super) fn give_up(&mut self, out: &mut Output) {
        self.abandon_all(reason::NOT_HTTP2, out);
        self.phase = Phase::Dead;
    }

    /// The borders of a direction's frames are not known any more.
    pub(super) fn lose(&mut self, direction: Direction, out: &mut Output) {
        self.lane(direction).lose();
        // What the peer allowed may have been in it.
        self.lane(opposite(direction)).max_frame = frame::MAX;
        out.counts.resyncs += 1;
        self.hole(direction, out);
    }
}
