//! One connection: from reassembled pieces to a session of the handler. Decides which protocol it
//! speaks and which end serves.

use std::borrow::Cow;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use tracer_common::infer::Guess;
use tracer_common::limits::JOIN_PATIENCE;

use super::driver::{Handler, Owner, Speaks};
use super::packet::Address;
use super::sniff::guess;
use super::stats::Stats;
use super::table::Key;
use super::tcp::{self, Event, Reassembler, Receiver, Segment, Side, Verdict};
use crate::meta::{AttributeValue, Process};
use crate::protocol::http2::looks_like_http2;
use crate::protocol::{At, Connection, Direction, End, Endpoint, Input, Role};

/// Distinct servers whose process is kept for the next connection.
const MAX_PROCESSES: usize = 16_384;

/// What handing on needs beside the connection itself.
#[derive(Debug)]
pub(super) struct Context<H> {
    pub(super) handler: H,
    pub(super) stats: Stats,
    processes: FxHashMap<Address, Arc<Process>>,
    connections: u64,
}

#[derive(Debug)]
pub(super) struct Flow<S> {
    pub(super) reassembler: Reassembler,
    pub(super) state: State<S>,
}

#[derive(Debug)]
pub(super) enum State<S> {
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
pub(super) struct Parsing<S> {
    session: S,
    owner: Owner,
    server: Side,
    last_ns: u64,
    closed: bool,
}

impl<S> Flow<S> {
    pub(super) fn new() -> Self {
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

impl<H: Handler> Context<H> {
    pub(super) fn new(handler: H) -> Self {
        Context {
            handler,
            stats: Stats::default(),
            processes: FxHashMap::default(),
            connections: 0,
        }
    }

    pub(super) fn push(
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
    pub(super) fn settle(&mut self, key: &Key, flow: &mut Flow<H::Session>, tcp: &mut tcp::Shared) {
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

    pub(super) fn close(&mut self, flow: &mut Flow<H::Session>) {
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
        speaks: Speaks,
        opened_by: Option<Side>,
        from_start: bool,
    ) -> Parsing<H::Session> {
        self.connections += 1;
        match speaks {
            Speaks::Http1 => self.stats.connections.http1 += 1,
            Speaks::Http2 | Speaks::Http2Frames => self.stats.connections.http2 += 1,
        }
        let mut owner = self.owner(key, server, opened_by, from_start);
        if speaks == Speaks::Http2Frames && opened_by.is_none() {
            let opposite = self.owner(key, server.other(), opened_by, from_start);
            owner.opposite = Some(Box::new(opposite));
        }
        Parsing {
            session: self.handler.open(&owner.connection, speaks),
            owner,
            server,
            last_ns: 0,
            closed: false,
        }
    }

    /// The connection as this side's end sees it.
    fn owner(
        &mut self,
        key: &Key,
        server: Side,
        opened_by: Option<Side>,
        from_start: bool,
    ) -> Owner {
        let local = key.address(server);
        let connection = Connection {
            id: self.connections,
            local: Endpoint::Ip(local.socket_addr()),
            remote: Endpoint::Ip(key.address(server.other()).socket_addr()),
            tls: false,
            role: (opened_by == Some(server.other())).then_some(Role::Server),
            from_start,
            wire: None,
        };
        Owner {
            connection: Arc::new(connection),
            process: self.process(local),
            opposite: None,
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
        cause: None,
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
    /// Who was connected to; if that was not seen, the lower port, until the frames tell.
    fn likely_server(&self) -> Side {
        match self.opened_by {
            Some(client) => client.other(),
            None if self.key.address(Side::A).port() <= self.key.address(Side::B).port() => Side::A,
            None => Side::B,
        }
    }

    /// Decides what a connection is by the next piece of it: HTTP of a version (and who serves),
    /// something else, or not known yet.
    fn decide(&mut self, from: Side, input: Input<'_>) {
        let likely_server = self.likely_server();
        let State::Undecided {
            past_start,
            last,
            turns,
        } = self.state
        else {
            return;
        };
        let at_start = self.opened_by.is_some() && !*past_start;
        let Input::Bytes(bytes) = input else {
            *past_start = true;
            return;
        };
        let found = match guess(bytes) {
            Guess::Request => Some((from.other(), Speaks::Http1)),
            Guess::Response => Some((from, Speaks::Http1)),
            Guess::Http2 => Some((from.other(), Speaks::Http2)),
            Guess::Http2Settings if at_start => Some((from, Speaks::Http2)),
            // A first segment of a few bytes. In the middle of a connection it may be anything.
            Guess::Partial if at_start => {
                self.opened_by.map(|client| (client.other(), Speaks::Http1))
            }
            Guess::Tls => None,
            Guess::Http2Settings | Guess::Partial | Guess::Other => (!at_start
                && looks_like_http2(bytes))
            .then_some((likely_server, Speaks::Http2Frames)),
        };
        if let Some((server, speaks)) = found {
            let parsing = self
                .context
                .parsing(self.key, server, speaks, self.opened_by, at_start);
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
