mod files;
mod http2;
mod measure;
mod packets;
mod real;

use std::cell::RefCell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use proptest::prelude::*;

use super::capture::{Link, Packet};
use super::packet::{Address, Reason, TcpPacket, decode};
use super::testdata::{
    ACK, ETHERNET, FIN, RST, START_NS, SYN, Tcp, pcap_header, put_ethernet, put_ip, put_record,
};
use super::*;
use crate::protocol::{At, Connection, Direction, End, Endpoint, Input};

/// Writes down per connection what it is told, in words.
#[derive(Default)]
struct Recorder {
    log: Rc<RefCell<Vec<(u64, String)>>>,
}

impl Handler for Recorder {
    type Session = u64;

    fn open(&mut self, connection: &Connection, speaks: Speaks) -> u64 {
        let Connection {
            id,
            local,
            remote,
            role,
            from_start,
            tls: _,
            wire: _,
        } = connection;
        let (Endpoint::Ip(local), Endpoint::Ip(remote)) = (local, remote) else {
            panic!("no addresses")
        };
        let speaks = match speaks {
            Speaks::Http1 => "",
            Speaks::Http2 => " http/2",
            Speaks::Http2Frames => " frames",
        };
        let what = format!("open {local} from {remote} {role:?} {from_start}{speaks}");
        self.log.borrow_mut().push((*id, what));
        *id
    }

    fn receive(
        &mut self,
        id: &mut u64,
        owner: &Owner,
        direction: Direction,
        input: Input<'_>,
        at: &At,
    ) {
        assert_eq!(*id, owner.connection.id);
        assert!(at.time_ns >= START_NS && at.start_ns == at.time_ns);
        let mut log = self.log.borrow_mut();
        let verb = format!("{direction:?} ");
        match (input, log.last_mut()) {
            (Input::Bytes(bytes), Some((last, what))) if last == id && what.starts_with(&verb) => {
                what.push_str(&String::from_utf8_lossy(bytes));
            }
            (Input::Bytes(bytes), _) => {
                log.push((*id, format!("{verb}{}", String::from_utf8_lossy(bytes))))
            }
            (other, _) => log.push((*id, format!("{direction:?}: {other:?}"))),
        }
    }

    fn end(&mut self, id: &mut u64, _: &Owner, end: End, _: &At) {
        self.log.borrow_mut().push((*id, format!("{end:?}")));
    }

    fn abandon(&mut self, id: u64, _: &Owner) {
        self.log.borrow_mut().push((id, "gone".into()));
    }
}

fn client() -> SocketAddr {
    SocketAddr::from(([192, 168, 0, 7], 40_000))
}

fn server() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 8080))
}

/// From the client, at a position in its stream.
fn there(at: u32, ack: u32, flags: u8, payload: &[u8]) -> Tcp<'_> {
    let (seq, ack) = (1000 + at, if flags & ACK == 0 { 0 } else { 5000 + ack });
    Tcp {
        source: client(),
        destination: server(),
        seq,
        ack,
        flags,
        payload,
    }
}

/// From the server.
fn back(at: u32, ack: u32, flags: u8, payload: &[u8]) -> Tcp<'_> {
    Tcp {
        source: server(),
        destination: client(),
        seq: 5000 + at,
        ack: 1000 + ack,
        flags,
        payload,
    }
}

fn opening() -> [Tcp<'static>; 2] {
    [
        Tcp {
            seq: 999,
            ..there(0, 0, SYN, b"")
        },
        Tcp {
            seq: 4999,
            ..back(0, 0, SYN | ACK, b"")
        },
    ]
}

fn capture_of<'a>(packets: impl IntoIterator<Item = (u64, Tcp<'a>)>) -> Vec<u8> {
    let mut file = pcap_header(ETHERNET).to_vec();
    for (time_ms, tcp) in packets {
        let mut frame = Vec::new();
        put_ethernet(&mut frame, &tcp);
        put_record(
            &mut file,
            START_NS + time_ms * 1_000_000,
            &frame,
            frame.len(),
        );
    }
    file
}

fn replayed_with(limits: Limits, file: &[u8]) -> (Vec<(u64, String)>, Stats) {
    let recorder = Recorder::default();
    let log = Rc::clone(&recorder.log);
    let mut replay = Replay::with_limits(recorder, limits);
    stream(file, &mut replay).expect("a whole capture");
    let (_, stats) = replay.finish();
    assert_adds_up(&stats);
    (log.take(), stats)
}

fn replayed(packets: &[Tcp<'_>]) -> (Vec<String>, Stats) {
    let file = capture_of(packets.iter().enumerate().map(|(n, tcp)| (n as u64, *tcp)));
    let (log, stats) = replayed_with(Limits::default(), &file);
    (log.into_iter().map(|(_, what)| what).collect(), stats)
}

fn assert_adds_up(stats: &Stats) {
    assert!(stats.adds_up(), "{stats}");
    let ConnectionCounts {
        all,
        http1,
        http2,
        ignored,
        ..
    } = stats.connections;
    assert!(http1 + http2 + ignored <= all);
}

const OPEN: &str = "open 10.0.0.1:8080 from 192.168.0.7:40000";
const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

fn opened(rest: &str) -> String {
    format!("{OPEN} {rest}")
}

#[test]
fn connections_as_their_server_saw_them() {
    let check = |what: &str, packets: &[Tcp<'_>], expected: &[&str]| {
        assert_eq!(replayed(packets).0, expected, "{what}");
    };
    let read = format!("Read {}", String::from_utf8_lossy(REQUEST));
    let write = format!("Write {}", String::from_utf8_lossy(RESPONSE));
    let [request, response] = [there(0, 0, ACK, REQUEST), back(0, 19, ACK, RESPONSE)];
    let [syn, syn_ack] = opening();
    let (known, joined) = (opened("Some(Server) true"), opened("None false"));
    let [fin, fin_back] = [there(19, 27, FIN | ACK, b""), back(27, 20, FIN | ACK, b"")];
    let closed = ["ReadEof", "WriteShutdown", "Closed(0)", "gone"];
    check(
        "whole",
        &[
            syn,
            syn_ack,
            request,
            response,
            fin,
            fin_back,
            there(20, 28, ACK, b""),
        ],
        &[&[known.as_str(), &read, &write][..], &closed].concat(),
    );
    let all = [syn, syn_ack, request, response, fin, fin_back];
    let twice: Vec<_> = all.iter().flat_map(|tcp| [*tcp, *tcp]).collect();
    check(
        "each packet twice",
        &twice,
        &[&[known.as_str(), &read, &write][..], &closed].concat(),
    );
    check(
        "still open",
        &[syn, request, response],
        &[&known, &read, &write, "gone"],
    );
    check(
        "no SYN",
        &[request, response],
        &[&joined, &read, &write, "gone"],
    );
    check(
        "only SYN-ACK",
        &[syn_ack, request],
        &[&known, &read, "gone"],
    );
    check(
        "response first",
        &[response, there(19, 27, ACK, REQUEST)],
        &[&joined, &write, &read, "gone"],
    );
    check(
        "joined within a body",
        &[
            there(0, 0, ACK, b"rest of a body"),
            back(0, 14, ACK, RESPONSE),
        ],
        &[&joined, &write, "gone"],
    );
    check(
        "a first segment of one byte",
        &[
            syn,
            syn_ack,
            there(0, 0, ACK, b"G"),
            there(1, 0, ACK, b"ET /a HTTP/1.1\r\n\r\n"),
        ],
        &[&known, &read, "gone"],
    );
    check(
        "reset by the client",
        &[syn, request, there(19, 0, RST | ACK, b"")],
        &[&known, &read, "Closed(104)", "gone"],
    );
    check(
        "reset by the server",
        &[syn, request, back(0, 19, RST | ACK, b"")],
        &[&known, &read, "Closed(0)", "gone"],
    );
    check("refused", &[syn, back(0, 0, RST | ACK, b"")], &[]);
    check("no data", &[syn, syn_ack, there(0, 0, FIN | ACK, b"")], &[]);
    check(
        "the same addresses again",
        &[
            syn,
            request,
            back(0, 19, RST | ACK, b""),
            Tcp { seq: 90_999, ..syn },
            Tcp {
                seq: 91_000,
                ..request
            },
        ],
        &[&known, &read, "Closed(0)", "gone", &known, &read, "gone"],
    );
    check(
        "lost within",
        &[
            syn,
            syn_ack,
            request,
            back(0, 19, ACK, RESPONSE),
            there(29, 27, ACK, REQUEST),
        ],
        &[&known, &read, &write, "Read: Lost(10)", &read, "gone"],
    );
    check(
        "lost at the start",
        &[syn, syn_ack, back(0, 19, ACK, RESPONSE)],
        &[&opened("Some(Server) false"), &write, "gone"],
    );
}

#[test]
fn what_speaks_no_http_is_ignored() {
    let [syn, syn_ack] = opening();
    let hello = there(0, 0, ACK, b"\x16\x03\x01\x02\x00");
    let (log, stats) = replayed(&[
        syn,
        syn_ack,
        hello,
        back(0, 5, ACK, b"secret"),
        there(5, 6, ACK, b"GET / HTTP/1.1\r\n\r\n"),
    ]);
    assert_eq!(log, [""; 0]);
    assert_eq!((stats.connections.ignored, stats.connections.http1), (1, 0));
    assert_eq!((stats.unclaimed_bytes, stats.ignored_bytes), (5, 24));

    let (log, stats) = replayed(&[
        syn,
        syn_ack,
        hello,
        Tcp { seq: 7, ..syn },
        Tcp {
            seq: 8,
            ..there(0, 0, ACK, REQUEST)
        },
    ]);
    assert_eq!(log.len(), 3, "a new connection has a new chance: {log:?}");
    assert_eq!(stats.connections.all, 2);

    let turns: Vec<_> = (0..20)
        .map(|n| {
            if n % 2 == 0 {
                there(n, n, ACK, b"a-")
            } else {
                back(n, n + 1, ACK, b"b-")
            }
        })
        .collect();
    let (_, stats) = replayed(&turns);
    assert_eq!(
        (stats.connections.joined, stats.connections.ignored),
        (1, 1),
        "patience has an end: {stats}"
    );
}

#[test]
fn connections_are_bounded_and_forgotten() {
    let from = |port: u16| Tcp {
        source: SocketAddr::new(client().ip(), port),
        ..there(0, 0, ACK, REQUEST)
    };
    let count =
        |log: &[(u64, String)], what: &str| log.iter().filter(|(_, line)| line == what).count();

    let limits = Limits {
        connections: 10,
        ..Limits::default()
    };
    let (log, stats) = replayed_with(
        limits,
        &capture_of((1..=100).map(|n| (u64::from(n), from(n)))),
    );
    assert_eq!(
        (stats.connections.all, stats.connections.evicted),
        (100, 90)
    );
    assert_eq!(count(&log, "gone"), 100);

    let idle_ms = Limits::default().idle_ns / 1_000_000;
    let file = capture_of([
        (0, from(1)),
        (10, from(2)),
        (idle_ms + 1, from(2)),
        (idle_ms + 1002, from(2)),
    ]);
    let (log, stats) = replayed_with(Limits::default(), &file);
    assert_eq!(
        (stats.connections.all, stats.connections.timed_out),
        (2, 1),
        "{log:?}"
    );
}

#[test]
fn made_captures_are_whole() {
    let mut capture = Vec::new();
    testdata::keep_alive(1000, 100, &mut capture).expect("memory");
    let (log, stats) = replayed_with(Limits::default(), &capture);
    let requests: usize = log
        .iter()
        .map(|(_, what)| what.matches("HTTP/1.1\r\nHost").count())
        .sum();
    let responses: usize = log
        .iter()
        .map(|(_, what)| what.matches("HTTP/1.1 200 OK").count())
        .sum();
    assert_eq!((requests, responses), (1000, 1000));
    let ConnectionCounts {
        all,
        joined,
        http1,
        closed,
        ..
    } = stats.connections;
    assert_eq!((all, joined, http1, closed), (100, 0, 100, 100));
    assert_eq!(stats.tcp.delivered, stats.payload_bytes);
    assert!(
        log.iter().all(|(_, what)| !what.contains("false")),
        "every connection from its start"
    );
}

proptest! {
    #[test]
    fn fuzz_targets(data in prop::collection::vec(any::<u8>(), 0..2000), near in any::<bool>()) {
        let mut data = data;
        if near {
            // Numbers close to each other, so that segments overlap.
            for record in data.chunks_exact_mut(12) {
                record[2..5].fill(0);
                record[6..9].fill(0);
                record[0] &= if record[0] < 250 { 3 } else { 31 };
            }
        }
        fuzz::reassembly(&data);
        fuzz::capture(&data);
    }

    /// Damage anywhere in a file is an error or a difference, never a panic or an endless loop.
    #[test]
    fn damaged_files(
        which in 0usize..10,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (_, mut bytes) = files::flavours().swap_remove(which);
        for (index, value) in edits {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let mut replay = Replay::new(Recorder::default());
        let _ = stream(bytes.as_slice(), &mut replay);
        let (_, stats) = replay.finish();
        assert_adds_up(&stats);
    }

    /// Damage in packets is counted, never a panic.
    #[test]
    fn damaged_packets(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..30)) {
        let mut capture = Vec::new();
        testdata::keep_alive(20, 3, &mut capture).expect("memory");
        for (index, value) in edits {
            let at = 24 + index.index(capture.len() - 24);
            capture[at] = value;
        }
        let mut replay = Replay::new(Exchanges::new(|_, _| ()));
        let _ = stream(capture.as_slice(), &mut replay);
        let (_, stats) = replay.finish();
        assert_adds_up(&stats);
    }
}
