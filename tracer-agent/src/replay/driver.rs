//! Packets to connections to a [`Handler`]: finds the connection of each segment, has it
//! reassembled, decides which end serves, and gives the streams on as that end saw them.

use std::borrow::Cow;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tracer_common::limits::JOIN_PATIENCE;

use super::capture::{Ending, Packet};
use super::packet::{self, Address, TcpPacket};
use super::sniff::{Start, start_of};
use super::stats::Stats;
use super::table::{Key, Ring, Slot, Table};
use super::tcp::{self, Event, Reassembler, Receiver, Segment, Side, Verdict};
use crate::meta::{AttributeValue, Process};
use crate::protocol::{At, Connection, Direction, End, Endpoint, Input, Role};

/// Takes the streams of connections; the parser, or a recorder in tests.
pub trait Handler {
    /// State of one connection.
    type Session;

    /// A connection speaks HTTP/1; its first bytes follow.
    fn open(&mut self, connection: &Connection) -> Self::Session;
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

/// Whose session it is.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The connection; `local` is the server's end.
    pub connection: Arc<Connection>,
    /// Stands for whatever serves at the local address.
    pub process: Arc<Process>,
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

/// Distinct servers whose process is kept for the next connection.
const MAX_PROCESSES: usize = 16_384;
/// Capture time between two looks for connections to forget.
const SWEEP_NS: u64 = 1_000_000_000;

/// Replays the packets of one capture.
#[derive(Debug)]
pub struct Replay<H: Handler> {
    limits: Limits,
    table: Table<Flow<H::Session>>,
    tcp: tcp::Shared,
    sweep_at_ns: u64,
    context: Context<H>,
}

/// What handing on needs beside the connection itself.
#[derive(Debug)]
struct Context<H> {
    handler: H,
    stats: Stats,
    processes: FxHashMap<Address, Arc<Process>>,
    connections: u64,
}

#[derive(Debug)]
struct Flow<S> {
    reassembler: Reassembler,
    state: State<S>,
}

#[derive(Debug)]
enum State<S> {
    /// No message seen yet.
    Undecided {
        /// Data was handed on (and claimed by nobody).
        past_start: bool,
        /// Who sent it.
        last: Option<Side>,
        /// How often that changed.
        turns: u8,
    },
    Parsing(Box<Parsing<S>>),
    Ignored,
    Closed,
}

#[derive(Debug)]
struct Parsing<S> {
    session: S,
    owner: Owner,
    server: Side,
    last_ns: u64,
    closed: bool,
}

impl<S> Flow<S> {
    fn new() -> Self {
        Flow {
            reassembler: Reassembler::new(),
            state: State::Undecided {
                past_start: false,
                last: None,
                turns: 0,
            },
        }
    }
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
            sweep_at_ns: 0,
            context: Context {
                handler,
                stats: Stats::default(),
                processes: FxHashMap::default(),
                connections: 0,
            },
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
        if time_ns >= self.sweep_at_ns {
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
        self.sweep_at_ns = now_ns.saturating_add(SWEEP_NS);
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

impl<H: Handler> Context<H> {
    fn push(
        &mut self,
        key: &Key,
        flow: &mut Flow<H::Session>,
        segment: &Segment<'_>,
        tcp: &mut tcp::Shared,
    ) -> Verdict {
        let Flow { reassembler, state } = flow;
        let by_this = segment.syn.then(|| {
            if segment.ack.is_some() {
                segment.from.other()
            } else {
                segment.from
            }
        });
        let opened_by = reassembler.opened_by().or(by_this);
        reassembler.push(
            segment,
            tcp,
            &mut Route {
                context: self,
                key,
                state,
                opened_by,
            },
        )
    }

    /// Hands on what is held back and lets go of the session.
    fn settle(&mut self, key: &Key, flow: &mut Flow<H::Session>, tcp: &mut tcp::Shared) {
        let Flow { reassembler, state } = flow;
        let opened_by = reassembler.opened_by();
        reassembler.finish(
            tcp,
            &mut Route {
                context: self,
                key,
                state,
                opened_by,
            },
        );
        if let State::Parsing(_) = flow.state
            && let State::Parsing(parsing) = std::mem::replace(&mut flow.state, State::Closed)
        {
            self.handler.abandon(parsing.session, &parsing.owner);
        }
    }

    fn close(&mut self, flow: &mut Flow<H::Session>) {
        if let State::Parsing(mut parsing) = std::mem::replace(&mut flow.state, State::Closed) {
            if !parsing.closed {
                let at = at(parsing.last_ns);
                self.handler
                    .end(&mut parsing.session, &parsing.owner, End::Closed(0), &at);
            }
            self.handler.abandon(parsing.session, &parsing.owner);
        }
    }

    fn parsing(
        &mut self,
        key: &Key,
        server: Side,
        opened_by: Option<Side>,
        from_start: bool,
    ) -> Parsing<H::Session> {
        self.connections += 1;
        self.stats.connections.http1 += 1;
        let local = key.address(server);
        let connection = Connection {
            id: self.connections,
            local: Endpoint::Ip(local.socket_addr()),
            remote: Endpoint::Ip(key.address(server.other()).socket_addr()),
            role: (opened_by == Some(server.other())).then_some(Role::Server),
            from_start,
        };
        let session = self.handler.open(&connection);
        let owner = Owner {
            connection: Arc::new(connection),
            process: self.process(local),
        };
        Parsing {
            session,
            owner,
            server,
            last_ns: 0,
            closed: false,
        }
    }

    fn process(&mut self, local: Address) -> Arc<Process> {
        if self.processes.len() >= MAX_PROCESSES {
            self.processes.clear();
        }
        Arc::clone(
            self.processes
                .entry(local)
                .or_insert_with(|| Arc::new(process_at(local))),
        )
    }
}

/// A capture knows no processes: one stands for each address and port that serves.
fn process_at(local: Address) -> Process {
    let address = local.socket_addr();
    let service_name: Box<str> = address.to_string().into();
    let ip = address.ip().to_string().into();
    let attributes = vec![
        (
            Cow::Borrowed("service.name"),
            AttributeValue::Str(service_name.clone()),
        ),
        (Cow::Borrowed("host.ip"), AttributeValue::StrList(vec![ip])),
    ];
    Process {
        pid: 0,
        service_name,
        attributes,
    }
}

fn at(time_ns: u64) -> At {
    At {
        time_ns,
        start_ns: time_ns,
        tgid: 0,
        tid: 0,
    }
}

/// Where the pieces of one connection go.
struct Route<'a, H: Handler> {
    context: &'a mut Context<H>,
    key: &'a Key,
    state: &'a mut State<H::Session>,
    opened_by: Option<Side>,
}

impl<H: Handler> Receiver for Route<'_, H> {
    #[inline]
    fn receive(&mut self, from: Side, event: Event<'_>, time_ns: u64) {
        if let State::Undecided { .. } = self.state
            && let Event::Data(input) = event
        {
            self.decide(from, input);
        }
        match self.state {
            State::Parsing(parsing) => {
                hand_on(&mut self.context.handler, parsing, from, event, time_ns)
            }
            State::Undecided { .. } | State::Ignored | State::Closed => {
                if let Event::Data(Input::Bytes(bytes)) = event {
                    self.context.stats.unclaimed_bytes += bytes.len() as u64;
                }
            }
        }
    }
}

impl<H: Handler> Route<'_, H> {
    /// Decides what a connection is by the next piece of it: HTTP/1 (and who serves), something
    /// else, or not known yet.
    fn decide(&mut self, from: Side, input: Input<'_>) {
        let State::Undecided {
            past_start,
            last,
            turns,
        } = self.state
        else {
            return;
        };
        let at_start = self.opened_by.is_some() && !*past_start;
        let start = match input {
            Input::Bytes(bytes) => start_of(bytes),
            Input::Skipped(_) | Input::Lost(_) => {
                *past_start = true;
                return;
            }
        };
        let server = match start {
            Start::Request => Some(from.other()),
            Start::Response => Some(from),
            // A first segment of a few bytes. In the middle of a connection it may be anything.
            Start::Unclear if at_start => self.opened_by.map(Side::other),
            Start::Unclear | Start::Other => None,
        };
        if let Some(server) = server {
            let parsing = self
                .context
                .parsing(self.key, server, self.opened_by, at_start);
            *self.state = State::Parsing(Box::new(parsing));
            return;
        }
        *past_start = true;
        if *last != Some(from) {
            *last = Some(from);
            *turns = turns.saturating_add(1);
        }
        if at_start || *turns > JOIN_PATIENCE {
            self.context.stats.connections.ignored += 1;
            *self.state = State::Ignored;
        }
    }
}

#[inline]
fn hand_on<H: Handler>(
    handler: &mut H,
    parsing: &mut Parsing<H::Session>,
    from: Side,
    event: Event<'_>,
    time_ns: u64,
) {
    let Parsing {
        session,
        owner,
        server,
        last_ns,
        closed,
    } = parsing;
    *last_ns = time_ns;
    let is_local = from == *server;
    let at = at(time_ns);
    match event {
        Event::Data(input) => {
            let direction = if is_local {
                Direction::Write
            } else {
                Direction::Read
            };
            handler.receive(session, owner, direction, input, &at);
        }
        Event::Fin => {
            let end = if is_local {
                End::WriteShutdown
            } else {
                End::ReadEof
            };
            handler.end(session, owner, end, &at);
        }
        Event::Reset => {
            // Who resets knows no error; the other end's next call fails.
            let errno = if is_local { 0 } else { libc::ECONNRESET };
            *closed = true;
            handler.end(session, owner, End::Closed(errno), &at);
        }
    }
}
