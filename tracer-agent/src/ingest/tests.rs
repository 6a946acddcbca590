//! Scenario: records as the kernel side makes them, with gaps, reuse and ends. Guarantees: the
//! session sees ordered streams, what is missing is told as lost, and every connection ends once.

use tracer_common::abi::{Header, connection_flags, kind, role};
use zerocopy::IntoBytes;

use super::*;
use crate::protocol::{Endpoint, Outcome, Role};

#[derive(Default)]
struct Recorder {
    exchanges: Vec<Exchange>,
    /// The other end of each exchange.
    remotes: Vec<Endpoint>,
    forgotten: Vec<u64>,
    ignored: Vec<u64>,
    holds: bool,
    tracks: bool,
}

impl Host for Recorder {
    fn opened(&mut self, _opened: Opened, _connection: &Arc<Connection>) {}

    fn sockets_of(&self, _tgid: u32) -> Option<FxHashSet<u64>> {
        Some(self.holds.then_some(INODE).into_iter().collect())
    }
    fn tracks(&self, _socket: u64, _connection: u64) -> bool {
        self.tracks
    }
    fn is_own(&self, _connection: &Connection) -> bool {
        false
    }
    fn forget(&mut self, _socket: u64, connection: u64) {
        self.forgotten.push(connection);
    }
    fn ignore(&mut self, _socket: u64, connection: u64) {
        self.ignored.push(connection);
    }
    fn exchange(&mut self, exchange: Exchange, connection: &Arc<Connection>) {
        self.exchanges.push(exchange);
        self.remotes.push(connection.remote.clone());
    }
}

const INODE: u64 = 7;
const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";

fn connection(id: u64, socket: u64) -> ConnectionEvent {
    ConnectionEvent {
        header: Header {
            kind: kind::CONNECTION,
            selector: role::SERVER,
            flags: connection_flags::FROM_START,
            reserved: 0,
            value: 0,
        },
        time_ns: 1,
        connection: id,
        socket,
        inode: INODE,
        tgid: 42,
        family: 2,
        local_port: 80,
        remote_port: 5000,
        path_len: 0,
        local: [127; 16],
        remote: [127; 16],
        path: [0; 108],
        read_sequence: 0,
        write_sequence: 0,
        peer: 0,
    }
}

fn data(
    id: u64,
    direction: u8,
    position: u64,
    skipped: u64,
    captured: &[u8],
    length: u32,
) -> DataEvent {
    DataEvent {
        header: Header {
            kind: kind::DATA,
            selector: direction,
            flags: 0,
            reserved: 0,
            value: captured.len() as u32,
        },
        time_ns: position.saturating_add(1000),
        start_ns: position.saturating_add(1000),
        connection: id,
        position,
        skipped,
        length,
        tgid: 42,
        tid: 43,
        cause_method: 0,
        cause_connection: 0,
        cause_key: 0,
    }
}

fn ended(id: u64, cause: u8, read: u64, write: u64) -> EndEvent {
    EndEvent {
        header: Header {
            kind: kind::END,
            selector: 1,
            flags: cause,
            reserved: 0,
            value: 0,
        },
        time_ns: 5000,
        connection: id,
        read_position: read,
        write_position: write,
        read_skipped: 0,
        write_skipped: 0,
        tgid: 42,
        tid: 43,
    }
}

fn request(ingest: &mut Ingest, host: &mut Recorder, id: u64, position: u64) {
    let event = data(
        id,
        direction::READ,
        position,
        0,
        REQUEST,
        REQUEST.len() as u32,
    );
    ingest.data(&event, REQUEST, host);
}

fn response(ingest: &mut Ingest, host: &mut Recorder, id: u64, position: u64) {
    let length = RESPONSE.len() as u32 + 10;
    ingest.data(
        &data(id, direction::WRITE, position, 0, RESPONSE, length),
        RESPONSE,
        host,
    );
}

fn started() -> (Ingest, Recorder) {
    let (mut ingest, mut host) = (Ingest::new(10), Recorder::default());
    ingest.connection(&connection(1, 100), &mut host);
    (ingest, host)
}

#[test]
fn connections_of_processes_that_are_not_traced_any_more() {
    let (mut ingest, mut host) = started();
    ingest.connection(&connection(2, 200), &mut host);
    request(&mut ingest, &mut host, 1, 0);
    assert_eq!(
        ingest.forget(|tgid, _| tgid == 41, "policy_changed", &mut host),
        0
    );
    assert!(ingest.knows(1) && ingest.knows(2));
    assert_eq!(
        ingest.forget(|tgid, _| tgid == 42, "policy_changed", &mut host),
        1
    );
    assert!(!ingest.knows(1) && !ingest.knows(2) && ingest.connections() == 0);
    host.forgotten.sort_unstable();
    assert_eq!((host.forgotten, host.exchanges.len()), (vec![1, 2], 0));
}

#[test]
fn exchange_with_counted_body() {
    let (mut ingest, mut host) = started();
    request(&mut ingest, &mut host, 1, 0);
    assert_eq!(ingest.in_flight(), 1);
    response(&mut ingest, &mut host, 1, 0);
    assert_eq!(host.exchanges.len(), 1);
    assert_eq!(host.exchanges[0].role, Role::Server);
    assert_eq!(host.exchanges[0].outcome, Outcome::Complete);
    assert_eq!(ingest.in_flight(), 0);
    assert_eq!(ingest.take_counts().bytes.lost, 0);
}

#[test]
fn a_hole_in_the_positions_is_lost_bytes() {
    let (mut ingest, mut host) = started();
    request(&mut ingest, &mut host, 1, 0);
    // The response (and a second request) never came out of the ring.
    request(&mut ingest, &mut host, 1, 2 * REQUEST.len() as u64);
    response(&mut ingest, &mut host, 1, RESPONSE.len() as u64 + 10);
    let lost = REQUEST.len() as u64 + RESPONSE.len() as u64 + 10;
    assert_eq!(ingest.take_counts().bytes.lost, lost);
    assert!(
        host.exchanges.len() <= 1,
        "at most the pair that is certain"
    );
}

#[test]
fn reused_socket_ends_the_old_connection() {
    let (mut ingest, mut host) = started();
    request(&mut ingest, &mut host, 1, 0);
    ingest.connection(&connection(2, 100), &mut host);
    assert_eq!(host.exchanges.len(), 1, "the old one's open exchange ended");
    assert!(
        host.forgotten.is_empty(),
        "the socket belongs to the new one"
    );
    request(&mut ingest, &mut host, 2, 0);
    response(&mut ingest, &mut host, 2, 0);
    assert_eq!(host.exchanges.len(), 2);
}

#[test]
fn late_reads_after_the_kernels_end_still_count() {
    let (mut ingest, mut host) = started();
    request(&mut ingest, &mut host, 1, 0);
    ingest.end(&ended(1, end::CLOSED, REQUEST.len() as u64, 0), &mut host);
    host.holds = true;
    ingest.tick(5000 + LINGER_NS, &mut host);
    assert_eq!(
        ingest.in_flight(),
        1,
        "held: the process may still act on it"
    );
    response(&mut ingest, &mut host, 1, 0);
    assert_eq!(host.exchanges.len(), 1);
    assert_eq!(host.exchanges[0].outcome, Outcome::Complete);
    ingest.tick(5000 + 3 * LINGER_NS, &mut host);
    assert_eq!(ingest.connections(), 0);
    assert_eq!(host.forgotten, [1]);
}

/// A server's session over TLS with a request that is not answered, which then says that it will send
/// no more; closed after that, if `closed`.
fn ending(closed: bool) -> (Ingest, Recorder) {
    let (mut ingest, mut host) = (Ingest::new(10), Recorder::default());
    let mut event = connection(1, 100);
    event.header.flags |= connection_flags::TLS;
    ingest.connection(&event, &mut host);
    request(&mut ingest, &mut host, 1, 0);
    let read = REQUEST.len() as u64;
    ingest.end(&ended(1, end::WRITE_SHUTDOWN, read, 0), &mut host);
    if closed {
        ingest.end(&ended(1, end::CLOSED, read, 0), &mut host);
    }
    (ingest, host)
}

#[test]
fn a_write_over_tls_may_be_told_after_the_end() {
    for closed in [false, true] {
        let (mut ingest, mut host) = ending(closed);
        ingest.tick(5000 + LINGER_NS, &mut host);
        assert_eq!(ingest.in_flight(), 1, "the writing thread may be late");
        response(&mut ingest, &mut host, 1, 0);
        assert_eq!(host.exchanges.len(), 1);
        assert_eq!(host.exchanges[0].outcome, Outcome::Complete);
        ingest.tick(5000 + 2 * TLS_LATE_NS, &mut host);
        assert_eq!(host.exchanges.len(), 1);
        assert_eq!(ingest.connections(), usize::from(!closed));
    }
}

#[test]
fn an_end_over_tls_is_told_at_last() {
    for closed in [false, true] {
        let (mut ingest, mut host) = ending(closed);
        ingest.tick(5000 + TLS_LATE_NS - 1, &mut host);
        assert_eq!(host.exchanges.len(), 0);
        ingest.tick(5000 + TLS_LATE_NS + LINGER_NS, &mut host);
        assert_eq!(host.exchanges.len(), 1);
        assert_eq!(host.exchanges[0].outcome, Outcome::LocalClosed);
        assert_eq!(host.exchanges[0].end_ns, 5000, "when it was");
        assert_eq!(ingest.in_flight(), 0);
    }
}

#[test]
fn full_table_refuses_and_counts() {
    let (mut ingest, mut host) = (Ingest::new(1), Recorder::default());
    ingest.connection(&connection(1, 100), &mut host);
    ingest.connection(&connection(2, 200), &mut host);
    request(&mut ingest, &mut host, 2, 0);
    let refused = ingest.take_counts().refused;
    assert_eq!(refused.get("connections_full"), Some(&1));
    assert_eq!(refused.get("unknown_connection"), Some(&1));
}

#[test]
fn a_connection_told_twice_goes_on() {
    let (mut ingest, mut host) = started();
    request(&mut ingest, &mut host, 1, 0);
    ingest.connection(&connection(1, 100), &mut host);
    assert_eq!(ingest.in_flight(), 1);
    response(&mut ingest, &mut host, 1, 0);
    assert_eq!(host.exchanges.len(), 1);
}

#[test]
fn refused_connections_leave_nothing_behind() {
    let (mut ingest, mut host) = (Ingest::new(1), Recorder::default());
    for id in 1..100 {
        ingest.connection(&connection(id, 100 * id), &mut host);
    }
    assert_eq!((ingest.connections.len(), ingest.by_socket.len()), (1, 1));
}

#[test]
fn absurd_positions_and_times_are_no_overflow() {
    let (mut ingest, mut host) = started();
    request(&mut ingest, &mut host, 1, u64::MAX - 3);
    let mut event = ended(1, end::CLOSED, u64::MAX, u64::MAX);
    event.time_ns = u64::MAX;
    ingest.end(&event, &mut host);
    host.holds = true;
    ingest.tick(u64::MAX - 1, &mut host);
    ingest.tick(u64::MAX, &mut host);
    assert_eq!((ingest.connections(), ingest.in_flight()), (0, 0));
}

#[test]
fn records_are_checked() {
    assert_eq!(Record::parse(&[]), None);
    assert_eq!(Record::parse(&[99; 100]), None);
    assert_eq!(Record::parse(&[kind::DATA; 20]), None);
    let event = data(1, direction::READ, 0, 0, b"xyz", 3);
    let mut bytes = event.as_bytes().to_vec();
    assert_eq!(Record::parse(&bytes), None, "captured bytes are missing");
    bytes.extend_from_slice(b"xyz and the ring's padding");
    assert_eq!(Record::parse(&bytes), Some(Record::Data(&event, b"xyz")));
}

/// The same with the roles turned: a client whose request is out.
fn asked(family: u16) -> (Ingest, Recorder) {
    let (mut ingest, mut host) = (Ingest::new(10), Recorder::default());
    let mut event = connection(1, 100);
    event.header.selector = role::CLIENT;
    event.family = family;
    ingest.connection(&event, &mut host);
    let length = REQUEST.len() as u32;
    let event = data(1, direction::WRITE, 0, 0, REQUEST, length);
    ingest.data(&event, REQUEST, &mut host);
    (ingest, host)
}

fn write_error(ingest: &mut Ingest, host: &mut Recorder) {
    let mut event = ended(1, end::ERROR, 0, REQUEST.len() as u64);
    event.header.value = libc::EPIPE as u32;
    ingest.end(&event, host);
}

#[test]
fn response_is_read_after_a_failed_write() {
    for family in [1, 2] {
        let (mut ingest, mut host) = asked(family);
        write_error(&mut ingest, &mut host);
        let length = RESPONSE.len() as u32 + 10;
        ingest.data(
            &data(1, direction::READ, 0, 0, RESPONSE, length),
            RESPONSE,
            &mut host,
        );
        assert_eq!(host.exchanges.len(), 1, "family {family}");
        assert_eq!(host.exchanges[0].outcome, Outcome::Complete);
    }
}

#[test]
fn failed_write_is_why_a_unix_exchange_ended() {
    let (mut ingest, mut host) = asked(1);
    write_error(&mut ingest, &mut host);
    assert!(host.exchanges.is_empty());
    ingest.exit(42, 6000, &mut host);
    assert_eq!(host.exchanges.len(), 1);
    assert_eq!(host.exchanges[0].outcome, Outcome::Broken(libc::EPIPE));
}

#[test]
fn end_may_overtake_the_last_bytes_of_another_thread() {
    for cause in [end::CLOSED, end::WRITE_SHUTDOWN] {
        let (mut ingest, mut host) = asked(2);
        let length = RESPONSE.len() as u64 + 10;
        let event = ended(1, cause, length, REQUEST.len() as u64);
        ingest.end(&event, &mut host);
        ingest.data(
            &data(1, direction::READ, 0, 0, RESPONSE, length as u32),
            RESPONSE,
            &mut host,
        );
        assert_eq!(ingest.take_counts().bytes.lost, 0);
        assert_eq!(host.exchanges.len(), 1);
        assert_eq!(host.exchanges[0].outcome, Outcome::Complete);
    }
}

#[test]
fn bytes_left_out_that_an_end_told_of_are_not_lost() {
    let (mut ingest, mut host) = asked(2);
    let mut event = data(1, direction::READ, 0, 0, RESPONSE, RESPONSE.len() as u32);
    ingest.data(&event, RESPONSE, &mut host);
    let mut shutdown = ended(
        1,
        end::WRITE_SHUTDOWN,
        RESPONSE.len() as u64 + 6,
        REQUEST.len() as u64,
    );
    shutdown.read_skipped = 6;
    ingest.end(&shutdown, &mut host);
    event = data(1, direction::READ, RESPONSE.len() as u64 + 6, 0, b"", 4);
    ingest.data(&event, b"", &mut host);
    assert_eq!(ingest.take_counts().bytes.lost, 0);
    assert_eq!(host.exchanges[0].outcome, Outcome::Complete);
}

#[test]
fn connections_that_ended_without_a_word_are_found() {
    const IDLE: u64 = 100_000_000_000;
    for (tracks, holds, kept, exchanges) in [
        (true, true, 1, 0),
        // The process closed it: its end was lost.
        (true, false, 0, 1),
        // The kernel side forgot it: nothing is known of the exchange.
        (false, true, 0, 0),
    ] {
        let (mut ingest, mut host) = started();
        request(&mut ingest, &mut host, 1, 0);
        (host.tracks, host.holds) = (tracks, holds);
        ingest.tick(1000, &mut host);
        assert_eq!(ingest.connections(), 1);
        ingest.tick(IDLE, &mut host);
        assert_eq!(ingest.connections(), kept, "{tracks} {holds}");
        assert_eq!(host.exchanges.len(), exchanges, "{tracks} {holds}");
        let abandoned: u64 = ingest.take_counts().http1.abandoned.values().sum();
        assert_eq!(abandoned + exchanges as u64 + kept as u64, 1);
        assert_eq!(ingest.by_socket.len(), kept);
    }
}

#[test]
fn upgraded_connection_is_left_alone() {
    const UPGRADE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    let (mut ingest, mut host) = started();
    request(&mut ingest, &mut host, 1, 0);
    let event = data(1, direction::WRITE, 0, 0, UPGRADE, UPGRADE.len() as u32);
    ingest.data(&event, UPGRADE, &mut host);
    assert_eq!(host.ignored, [1]);
}

/// A TLS session, whose socket is known or not.
fn session(id: u64, bound: bool) -> ConnectionEvent {
    let mut event = connection(id, id + 100);
    event.header.flags |= connection_flags::TLS;
    if !bound {
        event.header.selector = role::UNKNOWN;
        (event.family, event.inode) = (0, 0);
        (event.local_port, event.remote_port) = (0, 0);
    }
    event
}

fn one_exchange(ingest: &mut Ingest, host: &mut Recorder, id: u64, turn: u64) {
    request(ingest, host, id, turn * REQUEST.len() as u64);
    response(ingest, host, id, turn * (RESPONSE.len() as u64 + 10));
}

/// Scenario: a TLS session whose socket becomes known after its first exchange. Guarantees: the
/// exchange waits for it and has its addresses, later ones do not wait.
#[test]
fn a_session_waits_for_its_socket() {
    let (mut ingest, mut host) = (Ingest::new(10), Recorder::default());
    ingest.connection(&session(1, false), &mut host);
    one_exchange(&mut ingest, &mut host, 1, 0);
    assert!(host.exchanges.is_empty());
    ingest.connection(&session(1, true), &mut host);
    one_exchange(&mut ingest, &mut host, 1, 1);
    assert_eq!(host.exchanges.len(), 2);
    let address: std::net::SocketAddr = "127.127.127.127:5000".parse().expect("address");
    assert_eq!(host.remotes, vec![Endpoint::Ip(address); 2]);
    assert_eq!(ingest.take_counts().unbound, 0);
}

/// Scenario: a session's socket never becomes known, and it ends by time, by its own end or with its
/// process. Guarantees: its exchange comes once, without addresses, and is counted.
#[test]
fn a_session_without_socket() {
    type Way = fn(&mut Ingest, &mut Recorder);
    let ways: [Way; 3] = [
        |ingest, host| ingest.tick(BIND_NS + 10_000, host),
        |ingest, host| {
            let (read, write) = (REQUEST.len() as u64, RESPONSE.len() as u64 + 10);
            ingest.end(&ended(1, end::CLOSED, read, write), host);
            ingest.tick(u64::MAX, host);
        },
        |ingest, host| ingest.exit(42, 6000, host),
    ];
    for way in ways {
        let (mut ingest, mut host) = (Ingest::new(10), Recorder::default());
        ingest.connection(&session(1, false), &mut host);
        one_exchange(&mut ingest, &mut host, 1, 0);
        way(&mut ingest, &mut host);
        assert_eq!(host.remotes, vec![Endpoint::Unknown]);
        assert_eq!(ingest.take_counts().unbound, 1);
        ingest.tick(u64::MAX, &mut host);
        assert_eq!(host.exchanges.len(), 1);
    }
}
