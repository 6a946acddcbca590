//! Ring records to ordered streams: per connection and direction, with gaps.
//!
//! In: the records of the ring, in order. Out: calls into the connection's protocol session, and
//! finished exchanges. A record that cannot be placed is counted with its reason. What was lost in
//! the ring is found by position here and told to the session as [`Input::Lost`].

mod ends;
mod record;
mod sweep;
mod tracked;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_common::abi::{ConnectionEvent, DataEvent, EndEvent, data_flags, direction, end};

pub use record::Record;
use sweep::Sweep;
use tracked::{Closed, Shutdown, Tracked};

use crate::protocol::{
    At, Cause, CauseMethod, Connection, Direction, End, Exchange, ExchangeId, ExportBody, Input,
    Opened, Outputs, Parser, Sessions, Unfinished,
};
use crate::protocol::{http1, http2};
use crate::telemetry::ledger::BytesSnapshot;

/// After the kernel finished a connection the process may still read what had arrived: so long it
/// is kept.
const LINGER_NS: u64 = 300_000_000;
/// How long an exchange may stay open after that while the process still holds the descriptor.
const HELD_NS: u64 = 30_000_000_000;
/// A TLS library's write is told when the call returns, and its bytes have left before: the peer may
/// have answered with its end, and another thread closed the connection, while the call's own thread waits
/// for a CPU. So long the end of a session with open exchanges is put off.
const TLS_LATE_NS: u64 = 1_000_000_000;
/// How long the exchanges of a TLS session wait for its socket to become known.
const BIND_NS: u64 = 500_000_000;

/// What the caller has to do for ingest, since it does no I/O itself.
pub trait Host {
    /// Inode numbers of the sockets that the process has open; `None` if that cannot be known.
    fn sockets_of(&self, tgid: u32) -> Option<FxHashSet<u64>>;
    /// True when the kernel side still has this connection in its table.
    fn tracks(&self, socket: u64, connection: u64) -> bool;
    /// True for a connection to the agent itself.
    fn is_own(&self, connection: &Connection) -> bool;
    /// The kernel side should forget a connection (it ended).
    fn forget(&mut self, socket: u64, connection: u64);
    /// The kernel side should stop looking at a connection (it speaks nothing we parse).
    fn ignore(&mut self, socket: u64, connection: u64);
    /// An exchange has begun: its request's head was seen.
    fn opened(&mut self, opened: Opened, connection: &Arc<Connection>);
    /// An exchange is finished.
    fn exchange(&mut self, exchange: Exchange, connection: &Arc<Connection>);
    /// A process sent spans of its own: the body of that request.
    fn exported(&mut self, _body: ExportBody) {}
    /// `n` exchanges of a process were given up without a span; they are in the counts too.
    fn abandoned(&mut self, _tgid: u32, _reason: &'static str, _n: u64) {}
}

/// Counters of this room since they were last taken.
#[derive(Debug, Default)]
pub struct Counts {
    /// What the HTTP/1 sessions counted.
    pub http1: http1::Counts,
    /// What the HTTP/2 sessions counted.
    pub http2: http2::Counts,
    /// Sessions begun.
    pub sessions: Sessions,
    /// Records that could not be used, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Bytes of the connections that are parsed.
    pub bytes: BytesSnapshot,
    /// Exchanges of TLS sessions whose socket is not known: they have no addresses.
    pub unbound: u64,
}

/// All connections that the kernel side told of.
#[derive(Default)]
pub struct Ingest {
    connections: FxHashMap<u64, Tracked>,
    by_socket: FxHashMap<u64, u64>,
    /// Connections that the kernel finished: when to look again, and which.
    closing: VecDeque<(u64, u64)>,
    /// TLS sessions that will send no more but have exchanges open: until when, and which.
    shutting: VecDeque<(u64, u64)>,
    /// Connections on unix sockets and TLS sessions without a socket: not all their ends are told.
    endless: FxHashSet<u64>,
    sweep: Sweep,
    /// TLS sessions with exchanges that wait for their socket: until when, and which.
    binding: VecDeque<(u64, u64)>,
    /// Exchanges whose socket never became known.
    unbound: u64,
    outputs: Outputs,
    refused: BTreeMap<&'static str, u64>,
    bytes: BytesSnapshot,
    /// Of the sessions of both protocols, since the counters were last taken.
    abandoned: [BTreeMap<&'static str, u64>; 2],
    limit: usize,
}

impl Ingest {
    /// Tracks at most `limit` connections.
    pub fn new(limit: usize) -> Self {
        Ingest {
            limit,
            ..Ingest::default()
        }
    }

    /// Connections tracked now.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Connections by the protocol they are parsed as. Walks over all of them.
    pub fn sessions(&self) -> [(&'static str, u64); 3] {
        let (mut http1, mut http2, mut none) = (0, 0, 0);
        for tracked in self.connections.values() {
            match tracked.parser {
                Parser::Http1(_) => http1 += 1,
                Parser::Http2(_) => http2 += 1,
                Parser::None => none += 1,
            }
        }
        [("http1", http1), ("http2", http2), ("none", none)]
    }

    /// Exchanges that have begun and not ended.
    pub fn in_flight(&self) -> u64 {
        self.connections
            .values()
            .map(|tracked| tracked.in_flight() as u64)
            .sum()
    }

    /// Exchanges that have begun and not ended, with their connections.
    pub fn unfinished(&self) -> impl Iterator<Item = (Unfinished<'_>, &Connection)> {
        self.connections.values().flat_map(|tracked| {
            let unfinished = tracked.parser.unfinished();
            unfinished.map(|one| (one, &*tracked.connection))
        })
    }

    /// Counters since the last call.
    pub fn take_counts(&mut self) -> Counts {
        let [http1, http2] = std::mem::take(&mut self.abandoned);
        let mut counts = Counts {
            http1: std::mem::take(&mut self.outputs.http1.counts),
            http2: std::mem::take(&mut self.outputs.http2.counts),
            sessions: std::mem::take(&mut self.outputs.sessions),
            refused: std::mem::take(&mut self.refused),
            bytes: std::mem::take(&mut self.bytes),
            unbound: std::mem::take(&mut self.unbound),
        };
        counts.http1.abandoned.extend(http1);
        counts.http2.abandoned.extend(http2);
        counts
    }

    /// A connection becomes known.
    pub fn connection(&mut self, event: &ConnectionEvent, host: &mut impl Host) {
        if let Some(tracked) = self.connections.get_mut(&event.connection) {
            // Two threads made it known at the same time, or its socket became known.
            tracked.bind(event);
            if tracked.is_unbound() {
                return;
            }
            if !tracked.ends_with_process() {
                self.endless.remove(&event.connection);
            }
            tracked.hand_on_waiting(host);
            return;
        }
        if let Some(old) = self.by_socket.remove(&event.socket) {
            // The address was used again: the end of the old one was missed.
            self.finish(old, Some(End::Closed(0)), event.time_ns, host);
        }
        if self.connections.len() >= self.limit {
            self.refuse("connections_full");
            host.ignore(event.socket, event.connection);
            return;
        }
        let mut tracked = Tracked::new(event);
        if host.is_own(&tracked.connection) {
            tracked.parser = Parser::None;
            host.ignore(event.socket, event.connection);
        }
        if tracked.ends_with_process() {
            self.endless.insert(event.connection);
        }
        self.by_socket.insert(event.socket, event.connection);
        self.connections.insert(event.connection, tracked);
    }

    /// Bytes moved. `bytes` are the captured ones.
    pub fn data(&mut self, event: &DataEvent, bytes: &[u8], host: &mut impl Host) {
        let Some(tracked) = self.connections.get_mut(&event.connection) else {
            self.refuse("unknown_connection");
            return;
        };
        let direction = match event.header.selector {
            direction::READ => Direction::Read,
            direction::WRITE => Direction::Write,
            _ => return self.refuse("malformed_record"),
        };
        tracked.last_ns = event.time_ns;
        tracked.tgid = event.tgid;
        let at = At {
            time_ns: event.time_ns,
            start_ns: event.start_ns.min(event.time_ns),
            tgid: event.tgid,
            tid: event.tid,
            cause: CauseMethod::from_abi(event.cause_method).map(|method| Cause {
                exchange: ExchangeId {
                    connection: event.cause_connection,
                    key: event.cause_key,
                },
                method,
            }),
        };
        let session = &mut tracked.parser;
        let out = &mut self.outputs;
        if event.header.flags & data_flags::HTTP2 != 0 {
            let Connection {
                role, from_start, ..
            } = *tracked.connection;
            session.speaks_http2(role, from_start, out);
        }
        let side = match direction {
            Direction::Read => &mut tracked.read,
            Direction::Write => &mut tracked.write,
        };
        let parsed = !matches!(session, Parser::None);
        side.catch_up(event.position, event.skipped, &mut self.bytes, |input| {
            session.receive(direction, input, &at, out);
        });
        side.advance(event, bytes.len() as u64, parsed, &mut self.bytes);
        if !bytes.is_empty() {
            session.receive(direction, Input::Bytes(bytes), &at, out);
        }
        let rest = u64::from(event.length).saturating_sub(bytes.len() as u64);
        if rest > 0 {
            session.receive(direction, Input::Skipped(rest), &at, out);
        }
        if session.is_dead() {
            tracked.parser = Parser::None;
            host.ignore(tracked.socket, event.connection);
        } else if session.is_upgraded() {
            // The kernel side knows by itself unless the head came to it in parts.
            host.ignore(tracked.socket, event.connection);
        }
        let was_waiting = !tracked.waiting.is_empty();
        self.unbound += hand_on(out, &mut self.abandoned, tracked, host);
        if !was_waiting && !tracked.waiting.is_empty() {
            let due_ns = event.time_ns.saturating_add(BIND_NS);
            self.binding.push_back((due_ns, event.connection));
        }
    }

    /// A direction or a connection ended.
    pub fn end(&mut self, event: &EndEvent, host: &mut impl Host) {
        let Some(tracked) = self.connections.get_mut(&event.connection) else {
            return;
        };
        let errno = event.header.value as i32;
        let how = match event.header.flags {
            end::READ_EOF => End::ReadEof,
            end::ERROR => End::Error(errno),
            end::WRITE_SHUTDOWN => End::WriteShutdown,
            end::CLOSED => End::Closed(errno),
            _ => return self.refuse("malformed_record"),
        };
        let at = At {
            time_ns: event.time_ns,
            start_ns: event.time_ns,
            tgid: event.tgid,
            tid: event.tid,
            cause: None,
        };
        tracked.last_ns = event.time_ns;
        let (read, write) = (&mut tracked.read, &mut tracked.write);
        read.skipped = read.skipped.saturating_add(event.read_skipped);
        write.skipped = write.skipped.saturating_add(event.write_skipped);
        // Another thread may be about to tell of the other direction's last bytes: only the direction
        // that ended is known to be at its position.
        let (side, direction, position) = match how {
            End::Closed(_) => {
                let closed = Closed {
                    time_ns: event.time_ns,
                    errno: if errno == 0 {
                        tracked.write_errno
                    } else {
                        errno
                    },
                    read_position: event.read_position,
                    write_position: event.write_position,
                };
                tracked.closed = Some(closed);
                if tracked.is_unix() {
                    // Seen at the last close() itself: nothing can follow.
                    let how = End::Closed(closed.errno);
                    self.finish(event.connection, Some(how), event.time_ns, host);
                } else {
                    self.closing
                        .push_back((event.time_ns.saturating_add(LINGER_NS), event.connection));
                }
                return;
            }
            End::Error(errno) if event.header.selector == direction::WRITE => {
                // Nothing more can be written, but what the peer answered before can be read. The
                // kernel tells the end of a TCP connection itself; where it does not, this is why.
                if tracked.is_unix() {
                    tracked.write_errno = errno;
                }
                return;
            }
            End::WriteShutdown if tracked.connection.tls && tracked.parser.in_flight() > 0 => {
                if tracked.shutdown.is_none() {
                    tracked.shutdown = Some(Shutdown {
                        time_ns: event.time_ns,
                        position: event.write_position,
                    });
                    let due_ns = event.time_ns.saturating_add(TLS_LATE_NS);
                    self.shutting.push_back((due_ns, event.connection));
                }
                return;
            }
            End::WriteShutdown => (write, Direction::Write, event.write_position),
            End::ReadEof | End::Error(_) => (read, Direction::Read, event.read_position),
        };
        let session = &mut tracked.parser;
        if matches!(session, Parser::None) {
            return;
        };
        let out = &mut self.outputs;
        side.catch_up(position, 0, &mut self.bytes, |input| {
            session.receive(direction, input, &at, out);
        });
        session.end(how, &at, out);
        self.unbound += hand_on(out, &mut self.abandoned, tracked, host);
        self.unbound += tracked.give_up_waiting(host);
    }

    /// Whether a connection is tracked.
    pub fn knows(&self, connection: u64) -> bool {
        self.connections.contains_key(&connection)
    }

    /// Counts a record that could not be used.
    pub fn refuse(&mut self, reason: &'static str) {
        *self.refused.entry(reason).or_default() += 1;
    }
}

/// What the session found goes on. Returns how many exchanges go without their addresses.
fn hand_on(
    out: &mut Outputs,
    abandoned: &mut [BTreeMap<&'static str, u64>; 2],
    tracked: &mut Tracked,
    host: &mut impl Host,
) -> u64 {
    for opened in out.drain_opened() {
        host.opened(opened, &tracked.connection);
    }
    for body in out.drain_exports() {
        host.exported(body);
    }
    let without = tracked.hand_on(out, host);
    let given_up = [
        &mut out.http1.counts.abandoned,
        &mut out.http2.counts.abandoned,
    ];
    for (given_up, totals) in given_up.into_iter().zip(abandoned) {
        if given_up.is_empty() {
            continue;
        }
        for (reason, n) in std::mem::take(given_up) {
            *totals.entry(reason).or_default() += n;
            host.abandoned(tracked.tgid, reason, n);
        }
    }
    without
}

#[cfg(test)]
mod tests;
