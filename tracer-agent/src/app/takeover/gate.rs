//! Which exchanges this agent reports while two of them run: pure, with times as arguments.
//!
//! In: exchanges as they begin and end, and what the other agent says. Out: report, leave to the other,
//! or wait. The rule: the older agent reports what began before a boundary, the newer the rest. Both see
//! every exchange, but each by programs of its own, so the times they have for the same one differ, by
//! microseconds as a rule. Near the boundary the older therefore says, connection by connection, which
//! was its last and which was the first that it left; the newer asks by the order that requests have on
//! their connection (TCP sequence number, HTTP/2 stream), and where there is none (TLS, unix
//! sockets) by the middle between the two.
//!
//! It cannot give a trace that was open at the boundary one set of ids: its spans may be in two traces.

use std::collections::VecDeque;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::protocol::{Connection, Endpoint, Exchange, Opened, Protocol, Role, Wire};

/// Farther from the boundary than this nobody asks: the two agents' times for one exchange do not differ so
/// much.
pub const NEAR_NS: u64 = 250_000_000;
/// The boundary lies so far ahead of the request for it, so that the older agent sees all of what is
/// near it.
pub const AHEAD_NS: u64 = 2 * NEAR_NS;
/// Exchanges that may wait for the older agent's word.
const MOST_HELD: usize = 65_536;
/// Connections of which the older agent gives its word.
const MOST_BORDERS: usize = 65_536;

/// What is done with an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is this agent's.
    Report,
    /// It is the other agent's.
    Leave,
    /// It is not known yet.
    Wait,
}

/// When an exchange began, and its place among those of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Boot time of the request's first byte.
    pub start_ns: u64,
    /// The same number in both agents, growing along a connection (and wrapping).
    pub order: Option<u32>,
}

impl Mark {
    fn new(start_ns: u64, key: u64, role: Role, http2: bool, connection: &Connection) -> Self {
        let order = match (http2, &connection.wire) {
            (true, _) => Some(key as u32),
            (false, Some(Wire::Tcp { read, write })) if !connection.tls => {
                let base = match role {
                    Role::Server => *read,
                    Role::Client => *write,
                };
                Some(base.wrapping_add(key as u32))
            }
            _ => None,
        };
        Mark { start_ns, order }
    }
}

/// Around the boundary on one connection: the older agent's last exchange, and the first it left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Border {
    /// The last that the older agent reports.
    pub last: Option<Mark>,
    /// The first that it does not.
    pub next: Option<Mark>,
}

impl Border {
    /// Whether the older agent reports this one.
    fn is_of_older(&self, mark: Mark) -> bool {
        let Some(last) = self.last else {
            return false;
        };
        if let (Some(last), Some(order)) = (last.order, mark.order) {
            // Less than half of all numbers apart, as TCP compares.
            return order.wrapping_sub(last).cast_signed() <= 0;
        }
        match self.next {
            Some(next) => mark.start_ns < last.start_ns.midpoint(next.start_ns),
            None => true,
        }
    }

    fn add(&mut self, mark: Mark, boundary_ns: u64) {
        if mark.start_ns < boundary_ns {
            if self.last.is_none_or(|last| last.start_ns <= mark.start_ns) {
                self.last = Some(mark);
            }
        } else if self.next.is_none_or(|next| next.start_ns > mark.start_ns) {
            self.next = Some(mark);
        }
    }
}

/// Borders by connection.
pub type Borders = FxHashMap<String, Border>;

/// An exchange that waits.
pub type Held = (Exchange, Arc<Connection>);

#[derive(Debug)]
enum State {
    /// Everything from here on is this agent's.
    From(u64),
    /// Another agent was asked, or will be.
    Asking,
    /// The other agent's boundary is known, its borders are not.
    Near { boundary_ns: u64 },
    /// So are they.
    Border { boundary_ns: u64, borders: Borders },
    /// What begins from here on is the newer agent's; borders are noted until they are told.
    Until {
        boundary_ns: u64,
        borders: Option<Borders>,
    },
}

/// Decides.
#[derive(Debug)]
pub struct Gate {
    state: State,
    held: VecDeque<Held>,
    /// Did not fit into `held`.
    overflowed: u64,
}

impl Gate {
    /// For an agent that is alone, or (`asks`) that has to ask another one first.
    pub fn new(asks: bool) -> Self {
        Gate {
            state: if asks { State::Asking } else { State::From(0) },
            held: VecDeque::new(),
            overflowed: 0,
        }
    }

    /// Nobody else reports what begins from here on.
    pub fn alone_from(&mut self, start_ns: u64) {
        self.state = State::From(start_ns);
    }

    /// The older agent answered: the boundary.
    pub fn taken_from(&mut self, boundary_ns: u64) {
        self.state = State::Near { boundary_ns };
    }

    /// And what it reported near it.
    pub fn borders(&mut self, borders: Borders) {
        if let State::Near { boundary_ns } = self.state {
            self.state = State::Border {
                boundary_ns,
                borders,
            };
        }
    }

    /// A newer agent takes over.
    pub fn hand_over_at(&mut self, boundary_ns: u64) {
        self.state = State::Until {
            boundary_ns,
            borders: Some(Borders::default()),
        };
    }

    /// The borders, once everything near the boundary was seen; told once.
    pub fn take_borders(&mut self, seen_ns: u64) -> Option<Borders> {
        match &mut self.state {
            State::Until {
                boundary_ns,
                borders,
            } if seen_ns > boundary_ns.saturating_add(2 * NEAR_NS) => borders.take(),
            _ => None,
        }
    }

    /// True when a newer agent took over.
    pub fn is_handed_over(&self) -> bool {
        matches!(self.state, State::Until { .. })
    }

    /// An exchange has begun.
    pub fn opened(&mut self, opened: &Opened, connection: &Connection) {
        let State::Until {
            boundary_ns,
            borders: Some(borders),
        } = &mut self.state
        else {
            return;
        };
        let boundary_ns = *boundary_ns;
        if opened.start_ns.abs_diff(boundary_ns) > 2 * NEAR_NS {
            return;
        }
        let http2 = opened.position.is_none();
        let mark = Mark::new(opened.start_ns, opened.key, opened.role, http2, connection);
        let Some(name) = name(connection, opened.role) else {
            return;
        };
        if borders.len() < MOST_BORDERS || borders.contains_key(&name) {
            borders.entry(name).or_default().add(mark, boundary_ns);
        }
    }

    /// What to do with one that is finished.
    pub fn judge(&self, exchange: &Exchange, connection: &Connection) -> Verdict {
        let start_ns = exchange.start_ns;
        let (boundary_ns, borders) = match &self.state {
            State::From(from_ns) if start_ns < *from_ns => return Verdict::Leave,
            State::From(_) => return Verdict::Report,
            State::Asking => return Verdict::Wait,
            State::Until { boundary_ns, .. } if start_ns < *boundary_ns => return Verdict::Report,
            State::Until { .. } => return Verdict::Leave,
            State::Near { boundary_ns } => (*boundary_ns, None),
            State::Border {
                boundary_ns,
                borders,
            } => (*boundary_ns, Some(borders)),
        };
        if start_ns.saturating_add(NEAR_NS) < boundary_ns {
            return Verdict::Leave;
        }
        if start_ns > boundary_ns.saturating_add(NEAR_NS) {
            return Verdict::Report;
        }
        let Some(borders) = borders else {
            return Verdict::Wait;
        };
        let Some(name) = name(connection, exchange.role) else {
            return match start_ns < boundary_ns {
                true => Verdict::Leave,
                false => Verdict::Report,
            };
        };
        let Exchange {
            key,
            role,
            protocol,
            ..
        } = exchange;
        let mark = Mark::new(
            start_ns,
            *key,
            *role,
            *protocol == Protocol::Http2,
            connection,
        );
        // Of a connection that it does not know the older agent reports nothing.
        match borders
            .get(&name)
            .is_some_and(|border| border.is_of_older(mark))
        {
            true => Verdict::Leave,
            false => Verdict::Report,
        }
    }

    /// Keeps one that has to wait.
    pub fn hold(&mut self, exchange: Exchange, connection: Arc<Connection>) {
        if self.held.len() >= MOST_HELD {
            self.overflowed += 1;
            return;
        }
        self.held.push_back((exchange, connection));
    }

    /// Those that waited and can be judged now.
    pub fn take_held(&mut self) -> VecDeque<Held> {
        match self.state {
            State::Asking => VecDeque::new(),
            _ => std::mem::take(&mut self.held),
        }
    }

    /// Gives up those that wait; returns how many.
    pub fn give_up_held(&mut self) -> u64 {
        std::mem::take(&mut self.held).len() as u64
    }

    /// How many could not be kept, since the last call.
    pub fn take_overflowed(&mut self) -> u64 {
        std::mem::take(&mut self.overflowed)
    }
}

/// What both agents call this end of a connection; `None` when it has no name that both know.
fn name(connection: &Connection, role: Role) -> Option<String> {
    if let Some(Wire::Unix { own, peer }) = connection.wire {
        return Some(format!("{role:?} {own:x} {peer:x} {}", connection.tls));
    }
    match (&connection.local, &connection.remote) {
        (Endpoint::Ip(local), Endpoint::Ip(remote)) => {
            Some(format!("{role:?} {local} {remote} {}", connection.tls))
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
