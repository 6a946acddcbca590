//! Packets to connections to a [`Handler`]: finds the connection of each segment, has it
//! reassembled, decides which end serves, and gives the streams on as that end saw them.

use std::sync::Arc;

use super::capture::{Ending, Packet};
use super::flow::{Context, Flow, State};
use super::packet::{self, TcpPacket};
use super::stats::Stats;
use super::table::{Key, Ring, Slot, Table};
use super::tcp::{self, Segment, Verdict};
use crate::meta::Process;
use crate::protocol::{At, Connection, Direction, End, Input};

/// Takes the streams of connections; the parser, or a recorder in tests.
pub trait Handler {
    /// State of one connection.
    type Session;

    /// A connection speaks a protocol we know; its first bytes follow.
    fn open(&mut self, connection: &Connection, speaks: Speaks) -> Self::Session;
    /// The next piece of one direction, as the server's end saw it.
    fn receive(
        &mut self,
        session: &mut Self::Session,
        owner: &Owner,
        direction: Direction,
        input: Input<'_>,
        at: &At,
    );
    /// A direction or the connection ended, as the server's end saw it.
    fn end(&mut self, session: &mut Self::Session, owner: &Owner, end: End, at: &At);
    /// The connection is forgotten; its end was perhaps not seen.
    fn abandon(&mut self, session: Self::Session, owner: &Owner);
}

/// What a connection was found to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.
    Http1,
    /// HTTP/2, and who serves is known.
    Http2,
    /// HTTP/2, joined among its frames: they have to tell who serves, unless the connection does.
    Http2Frames,
}

/// Whose session it is.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The connection; `local` is the server's end.
    pub connection: Arc<Connection>,
    /// Stands for whatever serves at the local address.
    pub process: Arc<Process>,
    /// The same with the ends exchanged, while it is not known which of them serves.
    pub(super) opposite: Option<Box<Owner>>,
}

impl Owner {
    /// The other end's, where the choice of the server was a guess.
    pub(super) fn opposite(&self) -> Option<&Owner> {
        self.opposite.as_deref()
    }
}

/// Bounds of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Reassembly.
    pub tcp: tcp::Limits,
    /// Connections remembered at a time.
    pub connections: usize,
    /// Capture time without a packet after which a connection is forgotten.
    pub idle_ns: u64,
    /// The same for closed connections (late repetitions of their last packets).
    pub linger_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            tcp: tcp::Limits::default(),
            connections: 65_536,
            idle_ns: 15 * 60 * 1_000_000_000,
            linger_ns: 60 * 1_000_000_000,
        }
    }
}

/// Capture time between two looks for connections to forget.
const SWEEP_NS: u64 = 1_000_000_000;

/// Replays the packets of one capture.
#[derive(Debug)]
pub struct Replay<H: Handler> {
    limits: Limits,
    table: Table<Flow<H::Session>>,
    tcp: tcp::Shared,
    swept_ns: u64,
    context: Context<H>,
}

impl<H: Handler> Replay<H> {
    /// With the default limits.
    pub fn new(handler: H) -> Self {
        Self::with_limits(handler, Limits::default())
    }

    /// With other limits.
    pub fn with_limits(handler: H, limits: Limits) -> Self {
        Replay {
            limits,
            table: Table::new(limits.connections),
            tcp: tcp::Shared {
                limits: limits.tcp,
                ..tcp::Shared::default()
            },
            swept_ns: 0,
            context: Context::new(handler),
        }
    }

    /// The counts so far.
    pub fn stats(&self) -> Stats {
        Stats {
            tcp: self.tcp.counts,
            ..self.context.stats
        }
    }

    /// How the file ended, for the statistics.
    pub fn file_ended(&mut self, ending: Ending) {
        self.context.stats.truncated = ending == Ending::Truncated;
    }

    /// Nothing more will come: settles every connection and gives the handler back.
    pub fn finish(mut self) -> (H, Stats) {
        for ring in [Ring::Live, Ring::Quiet] {
            while let Some((slot, _)) = self.table.oldest(ring) {
                self.forget(slot);
            }
        }
        let stats = self.stats();
        (self.context.handler, stats)
    }

    /// Takes the next packet of the capture.
    pub fn packet(&mut self, packet: &Packet<'_>) {
        let stats = &mut self.context.stats;
        if stats.packets == 0 {
            stats.first_ns = packet.time_ns;
        }
        stats.packets += 1;
        stats.wire_bytes += u64::from(packet.wire_len);
        stats.last_ns = stats.last_ns.max(packet.time_ns);
        match packet::decode(packet) {
            Ok(tcp) => {
                stats.segments += 1;
                stats.payload_bytes += u64::from(tcp.wire_len);
                self.tcp_packet(&tcp, packet.time_ns);
            }
            Err(reason) => {
                if let Some(count) = stats.without_segment.get_mut(reason as usize) {
                    *count += 1;
                }
            }
        }
    }

    fn tcp_packet(&mut self, tcp: &TcpPacket<'_>, time_ns: u64) {
        let TcpPacket {
            source,
            destination,
            seq,
            ack,
            syn,
            fin,
            rst,
            payload,
            wire_len,
        } = *tcp;
        let (key, from) = Key::new(source, destination);
        let segment = Segment {
            from,
            time_ns,
            seq,
            ack,
            syn,
            fin,
            rst,
            payload,
            wire_len,
        };
        // The clock of a capture may be set back.
        if time_ns.abs_diff(self.swept_ns) >= SWEEP_NS {
            self.sweep(time_ns);
        }
        let slot = match self.table.find(&key) {
            Some(slot) => {
                self.table.touch(slot, time_ns);
                slot
            }
            // The end of a connection of which nothing else was seen says nothing.
            None if rst || (fin && wire_len == 0) => {
                self.context.stats.stray_bytes += u64::from(wire_len);
                return;
            }
            None => {
                self.make_room();
                self.context.stats.connections.all += 1;
                self.context.stats.connections.joined += u64::from(!syn);
                self.table.insert(key, time_ns, Flow::new())
            }
        };
        self.segment(slot, &segment);
    }

    fn segment(&mut self, slot: Slot, segment: &Segment<'_>) {
        let Replay {
            table,
            tcp,
            context,
            ..
        } = self;
        let Some((key, flow)) = table.value_mut(slot) else {
            return;
        };
        let is_quiet = match flow.state {
            State::Ignored | State::Closed => true,
            State::Undecided { .. } | State::Parsing(_) => false,
        };
        if is_quiet && (!segment.syn || flow.reassembler.is_repeated_syn(segment)) {
            let bytes = match flow.state {
                State::Ignored => &mut context.stats.ignored_bytes,
                _ => &mut tcp.counts.after_end,
            };
            *bytes += u64::from(segment.wire_len);
            return;
        }
        let mut verdict = if is_quiet {
            Verdict::Restart
        } else {
            context.push(key, flow, segment, tcp)
        };
        if verdict == Verdict::Restart {
            context.settle(key, flow, tcp);
            *flow = Flow::new();
            context.stats.connections.all += 1;
            context.stats.connections.joined += u64::from(!segment.syn);
            verdict = context.push(key, flow, segment, tcp);
        }
        if verdict == Verdict::Closed {
            context.stats.connections.closed += 1;
            context.close(flow);
        }
        let ring = match flow.state {
            State::Ignored => {
                // Nobody will want what is still held back.
                context.settle(key, flow, tcp);
                Ring::Quiet
            }
            State::Closed => Ring::Quiet,
            State::Undecided { .. } | State::Parsing(_) => Ring::Live,
        };
        table.move_to(slot, ring);
    }

    fn make_room(&mut self) {
        while self.table.is_full() {
            let quiet = self.table.oldest(Ring::Quiet);
            let Some((slot, _)) = quiet.or_else(|| self.table.oldest(Ring::Live)) else {
                return;
            };
            self.context.stats.connections.evicted += u64::from(quiet.is_none());
            self.forget(slot);
        }
    }

    fn sweep(&mut self, now_ns: u64) {
        self.swept_ns = now_ns;
        for (ring, patience_ns) in [
            (Ring::Live, self.limits.idle_ns),
            (Ring::Quiet, self.limits.linger_ns),
        ] {
            while let Some((slot, last_ns)) = self.table.oldest(ring)
                && now_ns.saturating_sub(last_ns) > patience_ns
            {
                self.context.stats.connections.timed_out += u64::from(ring == Ring::Live);
                self.forget(slot);
            }
        }
    }

    fn forget(&mut self, slot: Slot) {
        if let Some((key, mut flow)) = self.table.remove(slot) {
            self.context.settle(&key, &mut flow, &mut self.tcp);
        }
    }
}
