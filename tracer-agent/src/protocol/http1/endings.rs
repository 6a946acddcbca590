//! What an end or a loss does to the exchanges that are outstanding.
//!
//! In: how a direction or the connection ended, or that its position is lost. Out: every
//! outstanding request as an exchange that says how it ended, or counted as abandoned.

use super::super::{At, Direction, End, Outcome, Role};
use super::body::Body;
use super::direction::State;
use super::head::Kind;
use super::pairing::Hole;
use super::session::{Phase, Session};
use super::{Output, reason};

impl Session {
    /// A direction or the connection ended.
    pub fn end(&mut self, end: End, at: &At, out: &mut Output) {
        if self.phase == Phase::Closed {
            return;
        }
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
        if self.phase != Phase::Http {
            return;
        }
        let (Some(role), Some(kind)) = (self.role, self.kind(direction)) else {
            let kept = self.lane(direction).forget();
            out.unparsed(kept);
            self.lane(direction).state = State::Ended;
            return;
        };
        match kind {
            // The response may still come: the client only finished sending.
            Kind::Request => {
                let kept = self.lane(direction).forget();
                out.unparsed(kept);
                self.lane(direction).state = State::Ended;
                self.request_sent(out);
            }
            Kind::Response => match &mut self.held {
                Some(held) if !held.at_eof() => held.push_eof(at),
                Some(_) => {}
                None => self.responses_ended(role, direction, at, out),
            },
        }
    }

    /// No more response bytes can come: everything outstanding ends here.
    pub(super) fn responses_ended(
        &mut self,
        role: Role,
        direction: Direction,
        at: &At,
        out: &mut Output,
    ) {
        self.complete_until_close(direction);
        let kept = self.lane(direction).forget();
        out.unparsed(kept);
        self.lane(direction).state = State::Ended;
        let outcome = match direction {
            Direction::Read => Outcome::PeerClosed,
            Direction::Write => Outcome::LocalClosed,
        };
        self.finish_all(role, outcome, at, out);
    }

    /// An orderly end completes a response that is delimited by it, or whose end was left out.
    fn complete_until_close(&mut self, direction: Direction) {
        if matches!(
            self.lane(direction).body(),
            Some(Body::UntilClose | Body::Unknown)
        ) && let Some(answer) = self.queue.answering()
        {
            answer.complete = true;
        }
    }

    fn closed(&mut self, errno: Option<i32>, at: &At, out: &mut Output) {
        if self.held.is_some() {
            self.drop_held(true, out);
        }
        if let Some(role) = self.role {
            let outcome = match errno {
                Some(errno) => Outcome::Broken(errno),
                None if self.peer_ended => Outcome::PeerClosed,
                None => Outcome::LocalClosed,
            };
            let direction = match role {
                Role::Server => Direction::Write,
                Role::Client => Direction::Read,
            };
            // A server's close ends its response; a client's may as well give up on one.
            let unknown = self.lane(direction).state == State::Body(Body::Unknown);
            if errno.is_none() && (role == Role::Server || unknown) {
                self.complete_until_close(direction);
            }
            self.finish_all(role, outcome, at, out);
        }
        for direction in [Direction::Read, Direction::Write] {
            let kept = self.lane(direction).forget();
            out.unparsed(kept);
        }
        self.phase = Phase::Closed;
    }

    fn finish_all(&mut self, role: Role, outcome: Outcome, at: &At, out: &mut Output) {
        while !self.queue.is_empty() {
            self.finish(role, outcome, at.time_ns, out);
        }
    }

    /// The position within a direction is lost: `reason` says how.
    pub(super) fn desync(&mut self, direction: Direction, reason: &'static str, out: &mut Output) {
        let state = self.lane(direction).state;
        if state == State::Ended {
            return;
        }
        // After a loss the next piece is the beginning of a call, which may be that of a message.
        let next = if reason == reason::LOST {
            State::Start
        } else {
            State::Seeking
        };
        match self.kind(direction) {
            None => {
                if self.lane(direction).synced {
                    self.hole = Hole::Sure;
                }
                self.unsync(direction, next, out);
            }
            Some(Kind::Request) => {
                let inside_body = matches!(state, State::Body(_));
                self.hole = self
                    .hole
                    .max(if inside_body { Hole::Maybe } else { Hole::Sure });
                self.unsync(direction, next, out);
                if inside_body {
                    self.queue.request_content(None);
                    self.request_sent(out);
                }
            }
            Some(Kind::Response) => {
                self.unsync(direction, next, out);
                // What was lost began with bytes for the front, so one of the ghosts is answered by
                // it, unless those may have been an interim response or the front has ended as lost.
                let front_hit = self
                    .queue
                    .unanswered()
                    .is_some_and(|front| !front.expects_continue());
                let given_up = self.abandon_all(reason, out);
                self.ghosts = self
                    .ghosts
                    .saturating_add(given_up.saturating_sub(u64::from(front_hit)));
            }
        }
    }

    /// Gives up everything outstanding: what was answered in part becomes an exchange that says so,
    /// the rest is counted. Returns how many were given up.
    pub(super) fn abandon_all(&mut self, reason: &'static str, out: &mut Output) -> u64 {
        let Some(role) = self.role else {
            return 0;
        };
        let mut given_up = 0;
        while let Some(front) = self.queue.front() {
            if front.response.is_some() {
                self.finish(role, Outcome::Lost, 0, out);
            } else {
                self.queue.drop_front();
                given_up += 1;
            }
        }
        out.abandon(reason, given_up);
        if given_up > 0 && self.phase == Phase::Http {
            let requests = match role {
                Role::Server => Direction::Read,
                Role::Client => Direction::Write,
            };
            self.stop_waiting(requests);
        }
        given_up
    }
}
