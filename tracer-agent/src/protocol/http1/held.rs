//! A response that was observed before its request.
//!
//! Calls are reported when they return, so a response that one thread reads can be reported before
//! the write of its request that another thread is still in. Such a response is kept, bounded in
//! bytes, pieces and time, until the request's head arrives or it is clear that there is none.

use super::super::{At, Direction, Input, Role};
use super::super::{began_ns, opposite};
use super::Output;
use super::direction::State;
use super::head::{Kind, ResponseHead};
use super::session::Session;

/// Bytes behind the head that are kept.
const MAX_BYTES: usize = 64 * 1024;
/// Pieces behind the head that are kept.
const MAX_PIECES: usize = 64;
/// How long a response waits for its request.
const PATIENCE_NS: u64 = 200_000_000;

/// A response without its request, and what came behind its head.
#[derive(Debug)]
pub(super) struct Held {
    pub head: ResponseHead,
    /// The pieces with the head's first and last byte.
    pub first: At,
    pub last: At,
    /// When the response began.
    pub began_ns: u64,
    pub pieces: Vec<(Piece, At)>,
    bytes: usize,
}

/// What came behind the head.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Vec<u8>),
    Skipped(u64),
    /// The direction ended.
    Eof,
}

impl Held {
    pub(super) fn new(head: ResponseHead, first: At, last: At, began_ns: u64) -> Self {
        Held {
            head,
            first,
            last,
            began_ns,
            pieces: Vec::new(),
            bytes: 0,
        }
    }

    /// Keeps a piece; false if there is no room (or it is a loss, which nothing may follow).
    pub(super) fn push(&mut self, input: Input<'_>, at: &At) -> bool {
        let length = if let Input::Bytes(bytes) = input {
            bytes.len()
        } else {
            0
        };
        if self.bytes + length > MAX_BYTES {
            return false;
        }
        self.bytes += length;
        match (input, self.pieces.last_mut()) {
            (Input::Bytes(more), Some((Piece::Bytes(bytes), then))) if then == at => {
                bytes.extend_from_slice(more);
                return true;
            }
            (Input::Skipped(more), Some((Piece::Skipped(length), then))) if then == at => {
                *length = length.saturating_add(more);
                return true;
            }
            _ => {}
        }
        if self.pieces.len() >= MAX_PIECES {
            return false;
        }
        self.pieces.push(match input {
            Input::Bytes(bytes) => (Piece::Bytes(bytes.to_vec()), *at),
            Input::Skipped(length) => (Piece::Skipped(length), *at),
            Input::Lost(_) => return false,
        });
        true
    }

    /// Notes the end of the direction.
    pub(super) fn push_eof(&mut self, at: &At) {
        self.pieces.push((Piece::Eof, *at));
    }

    /// Whether the direction has ended behind it.
    pub(super) fn at_eof(&self) -> bool {
        matches!(self.pieces.last(), Some((Piece::Eof, _)))
    }

    /// Whether its request should have been seen by now.
    pub(super) fn expired(&self, now_ns: u64) -> bool {
        now_ns > self.last.time_ns.saturating_add(PATIENCE_NS)
    }

    /// Whether a request that began then can be the one it answers. No slack: a request is stamped
    /// when its call is entered, a response when its call returned, so the order is certain; and
    /// with slack the response to a request that was missed would be given to the next one.
    pub(super) fn answers(&self, request_began_ns: u64) -> bool {
        request_began_ns <= self.began_ns
    }
}

impl Session {
    /// Keeps a piece behind a held response; true if it was taken.
    pub(super) fn hold(
        &mut self,
        direction: Direction,
        input: Input<'_>,
        at: &At,
        out: &mut Output,
    ) -> bool {
        if self.kind(direction) != Some(Kind::Response) {
            return false;
        }
        let Some(held) = &mut self.held else {
            return false;
        };
        let kept = held.push(input, at);
        if !kept {
            self.drop_held(true, out);
        }
        kept
    }

    /// Drops a held response whose request should have been seen by now.
    pub(super) fn expire_held(&mut self, direction: Direction, at: &At, out: &mut Output) {
        let Some(held) = &self.held else {
            return;
        };
        // A call that was entered before the response may well bring the request late.
        let late_request =
            self.kind(direction) == Some(Kind::Request) && held.answers(began_ns(direction, at));
        if held.expired(at.time_ns) && !late_request {
            self.drop_held(true, out);
        }
    }

    /// A request arrived: gives it the held response, if that can be its own.
    pub(super) fn resume_held(
        &mut self,
        role: Role,
        request_direction: Direction,
        request_began_ns: u64,
        out: &mut Output,
    ) {
        let direction = opposite(request_direction);
        let Some(held) = self.held.take() else {
            return;
        };
        if !held.answers(request_began_ns) {
            self.held = Some(held);
            self.drop_held(true, out);
            return;
        }
        let Held {
            head,
            first,
            last,
            began_ns,
            pieces,
            ..
        } = *held;
        self.answer(direction, head, &first, &last, began_ns, out);
        for (piece, at) in pieces {
            match piece {
                Piece::Bytes(bytes) => self.bytes(direction, &bytes, &at, out),
                Piece::Skipped(length) => self.skipped(direction, length, &at, out),
                Piece::Eof => self.responses_ended(role, direction, &at, out),
            }
        }
    }

    /// Gives up a held response; `unsolicited` if nobody asked for it.
    pub(super) fn drop_held(&mut self, unsolicited: bool, out: &mut Output) {
        let (Some(held), Some(role)) = (self.held.take(), self.role) else {
            return;
        };
        let direction = match role {
            Role::Server => Direction::Write,
            Role::Client => Direction::Read,
        };
        let bytes = held.pieces.iter().map(|(piece, _)| match piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Skipped(length) => *length,
            Piece::Eof => 0,
        });
        out.unparsed(bytes.fold(0, u64::saturating_add));
        if unsolicited {
            out.counts.unsolicited_responses += 1;
        } else {
            out.counts.responses_without_request += 1;
        }
        self.orphans = self.orphans.saturating_add(1);
        self.orphan_ns = Some(held.began_ns);
        let state = if held.at_eof() {
            State::Ended
        } else {
            State::Seeking
        };
        self.unsync(direction, state, out);
    }

    /// A response whose request is not known. Its body cannot be followed either, since whether it
    /// has one depends on the request.
    pub(super) fn orphan(&mut self, direction: Direction, began_ns: u64, out: &mut Output) {
        out.counts.responses_without_request += 1;
        self.orphans = self.orphans.saturating_add(1);
        self.orphan_ns = Some(began_ns);
        if self.ghosts != u64::MAX {
            self.ghosts = self.ghosts.saturating_sub(1);
        }
        self.unsync(direction, State::Seeking, out);
    }
}
