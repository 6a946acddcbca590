//! What user space remembers of one connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tracer_common::abi::{ConnectionEvent, DataEvent, connection_flags, role};

use super::Host;
use crate::protocol::{
    At, Connection, Direction, End, Endpoint, Exchange, Input, Outputs, Parser, Role, Wire,
};
use crate::telemetry::ledger::BytesSnapshot;

/// Exchanges of one TLS session that may wait for its socket.
const MOST_WAITING: usize = 64;

/// One end of one connection.
pub struct Tracked {
    pub connection: Arc<Connection>,
    /// Address of the kernel's socket.
    pub socket: u64,
    /// Inode number of the socket.
    pub inode: u64,
    /// Process of the last call.
    pub tgid: u32,
    pub read: Side,
    pub write: Side,
    pub parser: Parser,
    /// Time of the last event.
    pub last_ns: u64,
    /// When the kernel finished it.
    pub closed: Option<Closed>,
    /// That a TLS session will send no more, while exchanges are open.
    pub shutdown: Option<Shutdown>,
    /// Exchanges of a TLS session that wait for its socket to become known.
    pub waiting: Vec<Exchange>,
    /// Why nothing more can be written, where no later event says so.
    pub write_errno: i32,
}

/// What the kernel said at the end.
#[derive(Clone, Copy)]
pub struct Closed {
    pub time_ns: u64,
    /// The socket's error.
    pub errno: i32,
    pub read_position: u64,
    pub write_position: u64,
}

/// What the kernel said when a session would send no more.
#[derive(Clone, Copy)]
pub struct Shutdown {
    pub time_ns: u64,
    pub position: u64,
}

/// How far one direction is accounted for.
#[derive(Default)]
pub struct Side {
    /// Behind the last data event.
    pub position: u64,
    /// Bytes left out on purpose since then that an end of the connection told of.
    pub skipped: u64,
}

impl Tracked {
    pub fn new(event: &ConnectionEvent) -> Self {
        let role = role_of(event);
        let from_start = event.header.flags & connection_flags::FROM_START != 0;
        let (local, remote) = endpoints(event, role);
        let connection = Connection {
            id: event.connection,
            local,
            remote,
            role,
            from_start,
            tls: is_tls(event),
            wire: wire(event),
        };
        Tracked {
            connection: Arc::new(connection),
            socket: event.socket,
            inode: event.inode,
            tgid: event.tgid,
            read: Side::default(),
            write: Side::default(),
            parser: Parser::http1(role, from_start),
            last_ns: event.time_ns,
            closed: None,
            shutdown: None,
            waiting: Vec::new(),
            write_errno: 0,
        }
    }

    /// True for a plain unix connection, whose last close() is told.
    pub fn is_unix(&self) -> bool {
        !self.connection.tls && matches!(self.connection.local, Endpoint::Unix(_))
    }

    /// True for a TLS session whose socket is not known.
    pub fn is_unbound(&self) -> bool {
        matches!(self.connection.local, Endpoint::Unknown)
    }

    /// True when not every end of it is told, but that of its process is.
    pub fn ends_with_process(&self) -> bool {
        !matches!(self.connection.local, Endpoint::Ip(_))
    }

    /// Hands finished exchanges on, or has them wait for the socket.
    /// Returns how many went without.
    pub fn hand_on(&mut self, out: &mut Outputs, host: &mut impl Host) -> u64 {
        let unbound = self.is_unbound();
        let mut without = 0;
        for exchange in out.drain() {
            if unbound && self.waiting.len() < MOST_WAITING {
                self.waiting.push(exchange);
            } else {
                host.exchange(exchange, &self.connection);
                without += u64::from(unbound);
            }
        }
        without
    }

    /// The socket is known now.
    pub fn hand_on_waiting(&mut self, host: &mut impl Host) {
        for exchange in std::mem::take(&mut self.waiting) {
            host.exchange(exchange, &self.connection);
        }
    }

    /// It will not become known in time. Returns how many exchanges go without.
    pub fn give_up_waiting(&mut self, host: &mut impl Host) -> u64 {
        let n = self.waiting.len() as u64;
        self.hand_on_waiting(host);
        n
    }

    /// Tells the parser of the end of sending that was put off, if there is one.
    pub fn shut_down(&mut self, bytes: &mut BytesSnapshot, out: &mut Outputs) {
        let Some(Shutdown { time_ns, position }) = self.shutdown.take() else {
            return;
        };
        if matches!(self.parser, Parser::None) {
            return;
        }
        // What was written came first, however late it was told.
        let time_ns = time_ns.max(self.last_ns);
        let at = At {
            time_ns,
            start_ns: time_ns,
            tgid: self.tgid,
            tid: 0,
            cause: None,
        };
        let (side, session) = (&mut self.write, &mut self.parser);
        side.catch_up(position, 0, bytes, |input| {
            session.receive(Direction::Write, input, &at, out);
        });
        session.end(End::WriteShutdown, &at, out);
    }

    /// The socket of a TLS session became known.
    pub fn bind(&mut self, event: &ConnectionEvent) {
        if !self.is_unbound() || event.family == 0 {
            return;
        }
        let role = self.connection.role.or(role_of(event));
        let (local, remote) = endpoints(event, role);
        self.inode = event.inode;
        self.connection = Arc::new(Connection {
            local,
            remote,
            role,
            wire: wire(event),
            ..Connection::clone(&self.connection)
        });
    }

    /// True when nothing happened since then, and no end is known.
    pub fn idle_since(&self, time_ns: u64) -> bool {
        self.closed.is_none() && self.last_ns < time_ns
    }

    pub fn in_flight(&self) -> usize {
        self.parser.in_flight()
    }
}

/// What the other end can be told by.
fn wire(event: &ConnectionEvent) -> Option<Wire> {
    if event.family == AF_UNIX {
        return (event.peer != 0).then_some(Wire::Unix {
            own: event.socket,
            peer: event.peer,
        });
    }
    (event.header.flags & connection_flags::SEQUENCES != 0).then_some(Wire::Tcp {
        read: event.read_sequence,
        write: event.write_sequence,
    })
}

impl Side {
    /// Tells what lies between the last event and `position`, and counts it.
    pub fn catch_up(
        &mut self,
        position: u64,
        skipped: u64,
        bytes: &mut BytesSnapshot,
        mut tell: impl FnMut(Input<'_>),
    ) {
        let skipped = skipped.saturating_add(std::mem::take(&mut self.skipped));
        let lost = position
            .saturating_sub(skipped)
            .saturating_sub(self.position);
        self.position = self.position.max(position);
        if lost > 0 {
            tell(Input::Lost(lost));
        }
        if skipped > 0 {
            tell(Input::Skipped(skipped));
        }
        bytes.lost = bytes.lost.saturating_add(lost);
        bytes.skipped = bytes.skipped.saturating_add(skipped);
        bytes.seen = bytes.seen.saturating_add(lost.saturating_add(skipped));
    }

    /// The bytes of `event` itself, of which `captured` are here for the parser.
    pub fn advance(
        &mut self,
        event: &DataEvent,
        captured: u64,
        parsed: bool,
        bytes: &mut BytesSnapshot,
    ) {
        let length = u64::from(event.length);
        self.position = event.position.saturating_add(length);
        let captured = if parsed { captured.min(length) } else { 0 };
        bytes.parsed = bytes.parsed.saturating_add(captured);
        bytes.skipped = bytes.skipped.saturating_add(length - captured);
        bytes.seen = bytes.seen.saturating_add(length);
    }
}

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;

fn role_of(event: &ConnectionEvent) -> Option<Role> {
    match event.header.selector {
        role::SERVER => Some(Role::Server),
        role::CLIENT => Some(Role::Client),
        _ => None,
    }
}

fn is_tls(event: &ConnectionEvent) -> bool {
    event.header.flags & connection_flags::TLS != 0
}

fn endpoints(event: &ConnectionEvent, role: Option<Role>) -> (Endpoint, Endpoint) {
    if event.family == 0 {
        return (Endpoint::Unknown, Endpoint::Unknown);
    }
    if event.family == AF_UNIX {
        let path = unix_path(
            event
                .path
                .get(..event.path_len as usize)
                .unwrap_or_default(),
        );
        // The path is the listening end's. Without a role both ends show it: each is true of one.
        return match role {
            Some(Role::Server) => (Endpoint::Unix(path), Endpoint::Unix(None)),
            Some(Role::Client) => (Endpoint::Unix(None), Endpoint::Unix(path)),
            None => (Endpoint::Unix(path.clone()), Endpoint::Unix(path)),
        };
    }
    let ip = |bytes: &[u8; 16]| {
        if event.family == AF_INET {
            IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]))
        } else {
            Ipv6Addr::from(*bytes).to_canonical()
        }
    };
    (
        Endpoint::Ip(SocketAddr::new(ip(&event.local), event.local_port)),
        Endpoint::Ip(SocketAddr::new(ip(&event.remote), event.remote_port)),
    )
}

/// Text of a `sun_path`: up to its NUL; abstract names (which begin with one) get an `@`.
fn unix_path(bytes: &[u8]) -> Option<Box<str>> {
    let (prefix, name) = match bytes {
        [] => return None,
        [0, rest @ ..] => ("@", rest),
        path => ("", path.split(|b| *b == 0).next().unwrap_or_default()),
    };
    Some(format!("{prefix}{}", String::from_utf8_lossy(name)).into())
}
