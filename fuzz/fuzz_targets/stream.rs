//! Records of the ring through ingest: any bytes as records, and records that are well formed but
//! contradict each other: positions that jump, sockets and ids used again, ends before data.
//!
//! Guarantees: no panic; the table keeps its limit; every recognised request is finished, given up
//! or in flight at any moment; nothing is in flight after the end.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustc_hash::FxHashSet;
use tracer_agent::ingest::{Host, Ingest, Record};
use tracer_agent::protocol::{Connection, Exchange, Opened};
use tracer_common::abi::{ConnectionEvent, DataEvent, EndEvent, ExitEvent, Header, kind};
use zerocopy::IntoBytes;

const LIMIT: usize = 5;

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    /// Bytes as they are.
    Raw(&'a [u8]),
    Connection {
        id: u8,
        socket: u8,
        role: u8,
        flags: u8,
        family: u8,
        path_len: u16,
        own: bool,
    },
    Data {
        id: u8,
        direction: u8,
        position: Position,
        skipped: u16,
        more: u32,
        bytes: Bytes<'a>,
    },
    End {
        id: u8,
        how: u8,
        errno: u32,
        read: Position,
        write: Position,
        skipped: u16,
    },
    Exit {
        tgid: u8,
    },
    Wait {
        milliseconds: u16,
        holds: bool,
    },
}

#[derive(Arbitrary, Debug)]
enum Position {
    /// Where the direction is, and so many bytes further.
    Next(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Bytes<'a> {
    Any(&'a [u8]),
    Request(u8),
    Response(u8),
}

const REQUESTS: [&[u8]; 4] = [
    b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST /p HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
    b"PUT /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
    b"HEAD /h HTTP/1.0\r\n\r\n",
];
const RESPONSES: [&[u8]; 4] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.0 500 No\r\n\r\n",
];

#[derive(Default)]
struct Recorder {
    holds: bool,
    own: bool,
    exchanges: u64,
}

impl Host for Recorder {
    fn opened(&mut self, _opened: Opened, _connection: &Arc<Connection>) {}

    fn sockets_of(&self, _tgid: u32) -> Option<FxHashSet<u64>> {
        // Not known, or none: both ways of a sweep.
        (!self.holds).then(FxHashSet::default)
    }
    fn tracks(&self, _socket: u64, _connection: u64) -> bool {
        self.holds
    }
    fn is_own(&self, _connection: &Connection) -> bool {
        self.own
    }
    fn forget(&mut self, _socket: u64, _connection: u64) {}
    fn ignore(&mut self, _socket: u64, _connection: u64) {}
    fn exchange(&mut self, exchange: Exchange, _connection: &Arc<Connection>) {
        assert!(exchange.start_ns <= exchange.end_ns, "{exchange:?}");
        self.exchanges += 1;
    }
}

/// What the kernel side would remember, so that positions are mostly right.
struct Fuzz {
    ingest: Ingest,
    host: Recorder,
    time_ns: u64,
    positions: [[u64; 2]; 256],
    requests: u64,
    given_up: u64,
}

fn header(kind: u8, selector: u8, flags: u8, value: u32) -> Header {
    Header {
        kind,
        selector,
        flags,
        reserved: 0,
        value,
    }
}

impl Fuzz {
    fn position(&self, id: u8, direction: u8, position: &Position) -> u64 {
        match position {
            Position::Next(further) => {
                let at = self.positions[usize::from(id)][usize::from(direction & 1)];
                at.wrapping_add(u64::from(*further))
            }
            Position::Any(any) => *any,
        }
    }

    /// As the pipeline does, from a place aligned as the ring's records are.
    fn record(&mut self, bytes: &[u8]) {
        let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
        let space = aligned.as_mut_bytes();
        space[..bytes.len()].copy_from_slice(bytes);
        match Record::parse(&space[..bytes.len()]) {
            Some(Record::Connection(event)) => self.ingest.connection(event, &mut self.host),
            Some(Record::Data(event, bytes)) => self.ingest.data(event, bytes, &mut self.host),
            Some(Record::End(event)) => self.ingest.end(event, &mut self.host),
            Some(Record::Exit(event)) => {
                self.ingest.exit(event.tgid, event.time_ns, &mut self.host)
            }
            Some(Record::Exec(..) | Record::Fork(_) | Record::Mapped(_)) => {}
            None => self.ingest.refuse("malformed_record"),
        }
    }

    fn step(&mut self, step: &Step<'_>) {
        self.time_ns += 1000;
        let time_ns = self.time_ns;
        match step {
            Step::Raw(bytes) => self.record(bytes),
            Step::Connection {
                id,
                socket,
                role,
                flags,
                family,
                path_len,
                own,
            } => {
                self.host.own = *own;
                self.positions[usize::from(*id)] = [0; 2];
                let event = ConnectionEvent {
                    header: header(kind::CONNECTION, role % 4, flags % 4, 0),
                    time_ns,
                    connection: u64::from(*id),
                    socket: u64::from(*socket),
                    inode: 7,
                    tgid: u32::from(socket % 2),
                    family: [1, 2, 10, 99][usize::from(family % 4)],
                    local_port: 80,
                    remote_port: 5000,
                    path_len: *path_len,
                    local: [127; 16],
                    remote: [*family; 16],
                    path: [*socket; 108],
                    read_sequence: 0,
                    write_sequence: 0,
                    peer: 0,
                };
                self.record(event.as_bytes());
            }
            Step::Data {
                id,
                direction,
                position,
                skipped,
                more,
                bytes,
            } => {
                let captured = match bytes {
                    Bytes::Any(bytes) => bytes,
                    Bytes::Request(n) => REQUESTS[usize::from(n % 4)],
                    Bytes::Response(n) => RESPONSES[usize::from(n % 4)],
                };
                let length = more.saturating_add(captured.len() as u32);
                let position = self.position(*id, *direction, position);
                let event = DataEvent {
                    header: header(kind::DATA, direction % 3, 0, captured.len() as u32),
                    time_ns,
                    start_ns: time_ns - 500,
                    connection: u64::from(*id),
                    position,
                    skipped: u64::from(*skipped),
                    length,
                    tgid: u32::from(id % 2),
                    tid: 1,
                    cause_method: 0,
                    cause_connection: 0,
                    cause_key: 0,
                };
                self.positions[usize::from(*id)][usize::from(direction & 1)] =
                    position.wrapping_add(u64::from(length));
                self.record(&[event.as_bytes(), captured].concat());
            }
            Step::End {
                id,
                how,
                errno,
                read,
                write,
                skipped,
            } => {
                let event = EndEvent {
                    header: header(kind::END, 0, how % 6, *errno),
                    time_ns,
                    connection: u64::from(*id),
                    read_position: self.position(*id, 0, read),
                    write_position: self.position(*id, 1, write),
                    read_skipped: u64::from(*skipped),
                    write_skipped: 0,
                    tgid: 1,
                    tid: 1,
                };
                self.record(event.as_bytes());
            }
            Step::Exit { tgid } => {
                let event = ExitEvent {
                    header: header(kind::EXIT, 0, 0, 0),
                    time_ns,
                    tgid: u32::from(*tgid % 3),
                    reserved: 0,
                };
                self.record(event.as_bytes());
            }
            Step::Wait {
                milliseconds,
                holds,
            } => {
                self.host.holds = *holds;
                self.time_ns += u64::from(*milliseconds) * 1_000_000;
                self.ingest.tick(self.time_ns, &mut self.host);
            }
        }
        self.balance();
    }

    fn balance(&mut self) {
        let counts = self.ingest.take_counts();
        self.requests += counts.http1.requests + counts.http2.requests;
        let given_up = counts.http1.abandoned.values();
        self.given_up += given_up.chain(counts.http2.abandoned.values()).sum::<u64>();
        assert!(self.ingest.connections() <= LIMIT);
        assert_eq!(
            self.requests,
            self.host.exchanges + self.given_up + self.ingest.in_flight()
        );
    }
}

fuzz_target!(|steps: Vec<Step<'_>>| {
    let mut fuzz = Fuzz {
        ingest: Ingest::new(LIMIT),
        host: Recorder::default(),
        time_ns: 1_000_000,
        positions: [[0; 2]; 256],
        requests: 0,
        given_up: 0,
    };
    for step in &steps {
        fuzz.step(step);
    }
    fuzz.ingest.tick(u64::MAX, &mut fuzz.host);
    fuzz.balance();
    let open = fuzz.ingest.abandon_all("end", &mut fuzz.host);
    assert_eq!(fuzz.ingest.in_flight(), 0);
    assert_eq!(fuzz.ingest.connections(), 0);
    assert_eq!(fuzz.requests, fuzz.host.exchanges + fuzz.given_up + open);
});
