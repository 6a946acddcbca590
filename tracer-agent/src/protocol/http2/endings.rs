//! What an end or a loss does to the exchanges that are open.
//!
//! In: how a direction or the connection ended, or that bytes are missing. Out: every open request
//! as an exchange that says how it ended, or counted as abandoned.

use super::super::{At, Direction, End, Outcome};
use super::lane::State;
use super::session::{Kind, Phase, Session};
use super::{Output, reason};

impl Session {
    /// A direction or the connection ended.
    pub fn end(&mut self, end: End, at: &At, out: &mut Output) {
        if self.phase == Phase::Closed {
            return;
        }
        self.release(true, out);
        match end {
            End::ReadEof => {
                self.peer_ended = true;
                self.direction_ended(Direction::Read, at, out);
            }
            End::WriteShutdown => self.direction_ended(Direction::Write, at, out),
            End::Error(errno) => self.closed(Some(errno), at, out),
            End::Closed(errno) => self.closed((errno != 0).then_some(errno), at, out),
        }
    }

    fn direction_ended(&mut self, direction: Direction, at: &At, out: &mut Output) {
        if self.phase != Phase::Http2 {
            return;
        }
        self.lane(direction).state = State::Ended;
        // After the end of the requests responses may still come; not the other way round.
        if self.kind(direction) == Some(Kind::Responses) {
            let outcome = match direction {
                Direction::Read => Outcome::PeerClosed,
                Direction::Write => Outcome::LocalClosed,
            };
            self.finish_all(outcome, at, out);
        }
    }

    fn closed(&mut self, errno: Option<i32>, at: &At, out: &mut Output) {
        let outcome = match errno {
            Some(errno) => Outcome::Broken(errno),
            None if self.peer_ended => Outcome::PeerClosed,
            None => Outcome::LocalClosed,
        };
        self.finish_all(outcome, at, out);
        out.counts.responses_without_request += self.early.len() as u64;
        self.early.clear();
        self.phase = Phase::Closed;
    }

    /// In the order in which they were opened.
    fn finish_all(&mut self, outcome: Outcome, at: &At, out: &mut Output) {
        let mut open: Vec<(u32, bool)> = self
            .streams
            .iter()
            .map(|(id, stream)| (*id, stream.doubtful))
            .collect();
        open.sort_unstable();
        for (id, doubtful) in open {
            let outcome = if doubtful { Outcome::Lost } else { outcome };
            self.finish(id, outcome, at.time_ns, out);
        }
    }

    /// Bytes of a direction are missing, and with them perhaps whole frames.
    pub(super) fn hole(&mut self, direction: Direction, out: &mut Output) {
        match self.kind(direction) {
            // The response says when a stream is over, unless it was reset in the hole.
            Some(Kind::Requests) if self.doubtful < self.streams.len() => {
                for stream in self.streams.values_mut() {
                    stream.doubtful = true;
                    if !stream.sent.ended {
                        stream.sent.unknown();
                    }
                }
                self.doubtful = self.streams.len();
            }
            // Each may have been answered in the hole.
            Some(Kind::Responses) => {
                out.counts.responses_without_request += self.early.len() as u64;
                self.early.clear();
                self.abandon_all(reason::LOST, out);
            }
            Some(Kind::Requests) | None => {}
        }
    }

    /// Gives up everything open: what was answered in part becomes an exchange that says so, the
    /// rest is counted.
    pub(super) fn abandon_all(&mut self, reason: &'static str, out: &mut Output) {
        let mut answered: Vec<u32> = Vec::new();
        let before = self.streams.len();
        self.streams.retain(|id, stream| {
            let has_head = stream.answer.has_head();
            if has_head {
                answered.push(*id);
            }
            has_head
        });
        out.abandon(reason, (before - self.streams.len()) as u64);
        answered.sort_unstable();
        for id in answered {
            let last_ns = self
                .streams
                .get(&id)
                .map_or(0, |stream| stream.answer.last_ns());
            self.finish(id, Outcome::Lost, last_ns, out);
        }
        self.streams.clear();
        (self.cost, self.doubtful) = (0, 0);
    }
}
