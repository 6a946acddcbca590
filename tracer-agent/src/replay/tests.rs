use std::cell::RefCell;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;

use proptest::prelude::*;

use super::capture::{Link, Packet};
use super::packet::{Address, Reason, TcpPacket, decode};
use super::testdata::{
    ACK, ETHERNET, FIN, RST, START_NS, SYN, Tcp, pcap_header, put_ethernet, put_ip, put_record,
};
use super::*;
use crate::protocol::{At, Connection, Direction, End, Endpoint, Input, Role};

/// Writes down per connection what it is told, in words.
#[derive(Default)]
struct Recorder {
    log: Rc<RefCell<Vec<(u64, String)>>>,
}

impl Handler for Recorder {
    type Session = u64;

    fn open(&mut self, connection: &Connection) -> u64 {
        let Connection {
            id,
            local,
            remote,
            role,
            from_start,
        } = connection;
        let (Endpoint::Ip(local), Endpoint::Ip(remote)) = (local, remote) else {
            panic!("no addresses")
        };
        let what = format!("open {local} from {remote} {role:?} {from_start}");
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
    let tcp::Counts {
        delivered,
        lost_cut,
        repeated,
        out_of_window,
        after_end,
        ..
    } = stats.tcp;
    let sum = delivered
        + lost_cut
        + repeated
        + out_of_window
        + after_end
        + stats.ignored_bytes
        + stats.stray_bytes;
    assert_eq!(stats.payload_bytes, sum, "{stats}");
    let without: u64 = stats.without_segment.iter().sum();
    assert_eq!(stats.packets, stats.segments + without);
    let ConnectionCounts {
        all,
        http1,
        ignored,
        ..
    } = stats.connections;
    assert!(http1 + ignored <= all);
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
fn what_speaks_no_http1_is_ignored() {
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

/// `packet` is the link layer's header with `{}` for the IP packet.
fn linked(
    link: Link,
    header: &[u8],
    ip: &[u8],
) -> Result<(SocketAddr, SocketAddr, Vec<u8>, u32), Reason> {
    let data = [header, ip].concat();
    let packet = Packet {
        time_ns: 0,
        link,
        data: &data,
        wire_len: data.len() as u32,
    };
    let TcpPacket {
        source,
        destination,
        payload,
        wire_len,
        ..
    } = decode(&packet)?;
    Ok((
        source.socket_addr(),
        destination.socket_addr(),
        payload.to_vec(),
        wire_len,
    ))
}

#[test]
fn link_types() {
    let v6 = Tcp {
        source: "[2001:db8::1]:4000".parse().unwrap(),
        destination: "[::1]:80".parse().unwrap(),
        ..there(0, 0, ACK, b"hello")
    };
    let v4 = there(0, 0, ACK, b"hello");
    let ip = |tcp: &Tcp<'_>| {
        let mut out = Vec::new();
        put_ip(&mut out, tcp, None);
        out
    };
    let check = |number: i32, header: &[u8], tcp: &Tcp<'_>| {
        let expected = Ok((tcp.source, tcp.destination, b"hello".to_vec(), 5));
        assert_eq!(
            linked(Link::from_number(number), header, &ip(tcp)),
            expected,
            "{number} {header:x?}"
        );
    };
    let mac = [0u8; 12];
    let ethernet = |tail: &[u8]| [&mac[..], tail].concat();
    check(1, &ethernet(&[8, 0]), &v4);
    check(1, &ethernet(&[0x86, 0xdd]), &v6);
    check(1, &ethernet(&[0x81, 0, 0, 5, 8, 0]), &v4);
    check(
        1,
        &ethernet(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 0x86, 0xdd]),
        &v6,
    );
    check(113, &[0, 4, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0], &v4);
    check(
        113,
        &[0, 0, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0x86, 0xdd],
        &v6,
    );
    check(
        276,
        &[8, 0, 0, 0, 0, 0, 0, 1, 3, 4, 4, 6, 0, 0, 0, 0, 0, 0, 0, 0],
        &v4,
    );
    check(
        276,
        &[
            0x86, 0xdd, 0, 0, 0, 0, 0, 1, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
        &v6,
    );
    for number in [101, 12, 14, 228] {
        check(number, &[], &v4);
    }
    check(101, &[], &v6);
    check(229, &[], &v6);
    check(0, &[2, 0, 0, 0], &v4);
    check(0, &[0, 0, 0, 2], &v4);
    for family in [10, 24, 28, 30] {
        check(0, &[family, 0, 0, 0], &v6);
    }
    check(108, &[0, 0, 0, 2], &v4);
    // The upper half of the field says things about checksums.
    check(0x2400_0001, &ethernet(&[8, 0]), &v4);

    let refused = |link, header: &[u8], ip: &[u8]| linked(link, header, ip).expect_err("refused");
    let v4 = ip(&v4);
    assert_eq!(
        refused(Link::Ethernet, &ethernet(&[8, 6]), &v4),
        Reason::NotIp
    );
    assert_eq!(refused(Link::Ethernet, &mac, b""), Reason::HeadersCut);
    assert_eq!(
        refused(Link::Ethernet, &ethernet(&[0x81, 0, 0]), b""),
        Reason::HeadersCut
    );
    assert_eq!(
        refused(Link::Ethernet, &ethernet(&[0x81, 0, 0, 1].repeat(6)), &v4),
        Reason::Malformed
    );
    assert_eq!(refused(Link::Loopback, &[7, 0, 0, 0], &v4), Reason::NotIp);
    assert_eq!(refused(Link::RawIp, &[], b""), Reason::HeadersCut);
    assert_eq!(refused(Link::RawIp, &[], &[0x45; 19]), Reason::HeadersCut);
    assert_eq!(refused(Link::Unsupported(105), &[], &v4), Reason::LinkType);
    let edited = |at: usize, value: u8| {
        let mut data = v4.clone();
        data[at] = value;
        refused(Link::RawIp, &[], &data)
    };
    assert_eq!(edited(0, 0x95), Reason::NotIp);
    assert_eq!(edited(0, 0x44), Reason::Malformed);
    assert_eq!(edited(6, 0x20), Reason::Fragment, "first fragment");
    assert_eq!(edited(7, 0x01), Reason::Fragment, "later fragment");
    assert_eq!(edited(9, 17), Reason::NotTcp);
    assert_eq!(edited(32, 0x40), Reason::Malformed, "TCP header too short");
    assert_eq!(
        edited(32, 0xf0),
        Reason::Malformed,
        "TCP header longer than the packet"
    );
    assert_eq!(refused(Link::RawIp, &[], &v4[..39]), Reason::HeadersCut);
}

#[test]
fn ipv6_extension_headers() {
    let tcp = Tcp {
        source: "[fe80::1]:4000".parse().unwrap(),
        destination: "[fe80::2]:80".parse().unwrap(),
        ..there(0, 0, ACK, b"hello")
    };
    let with = |first: u8, extensions: &[u8]| {
        let mut out = Vec::new();
        put_ip(&mut out, &tcp, Some((first, extensions)));
        linked(Link::RawIp, &[], &out).map(|(_, _, payload, wire_len)| (payload, wire_len))
    };
    let hop_by_hop = [43, 0, 1, 4, 0, 0, 0, 0];
    let routing = [60, 0, 0, 0, 0, 0, 0, 0];
    let destination = [6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let all = [&hop_by_hop[..], &routing, &destination].concat();
    assert_eq!(with(0, &all), Ok((b"hello".to_vec(), 5)));
    assert_eq!(with(44, &[6, 0, 0, 1, 0, 0, 0, 9]), Err(Reason::Fragment));
    assert_eq!(with(58, &[]), Err(Reason::NotTcp));
}

#[test]
fn lengths_on_the_wire() {
    let mut whole = Vec::new();
    put_ip(&mut whole, &there(0, 0, ACK, b"0123456789"), None);
    let check =
        |what: &str, data: &[u8], wire_len: usize, expected: Result<(&[u8], u32), Reason>| {
            let packet = Packet {
                time_ns: 0,
                link: Link::RawIp,
                data,
                wire_len: wire_len as u32,
            };
            let decoded = decode(&packet).map(|tcp| (tcp.payload, tcp.wire_len));
            assert_eq!(decoded, expected, "{what}");
        };
    check("whole", &whole, 62, Ok((b"0123456789", 10)));
    check("cut in the payload", &whole[..56], 62, Ok((b"0123", 10)));
    check("cut in the options", &whole[..44], 62, Ok((b"", 10)));
    check(
        "padded",
        &[&whole[..], &[0; 6]].concat(),
        68,
        Ok((b"0123456789", 10)),
    );
    let mut offloaded = whole.clone();
    offloaded[2..4].copy_from_slice(&[0, 0]);
    check(
        "no length in the header",
        &offloaded,
        62,
        Ok((b"0123456789", 10)),
    );
    check(
        "no length in the header, cut",
        &offloaded[..56],
        62,
        Ok((b"0123", 10)),
    );
}

#[test]
fn addresses_are_unmapped() {
    let mapped: SocketAddr = "[::ffff:10.1.2.3]:80".parse().unwrap();
    let plain = SocketAddr::from((Ipv4Addr::new(10, 1, 2, 3), 80));
    assert_eq!(Address::new(mapped), Address::new(plain));
    assert_eq!(Address::new(mapped).socket_addr(), plain);
}

/// Gives one byte per read, as the worst pipe would.
struct Dribble<'a>(&'a [u8]);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = buffer.len().min(1);
        self.0.read(&mut buffer[..n])
    }
}

fn times_of(file: impl Read) -> Result<(Vec<(u64, usize, u32)>, Ending), Error> {
    let mut packets = Vec::new();
    let ending = capture::read(file, |packet| {
        packets.push((packet.time_ns, packet.data.len(), packet.wire_len))
    })?;
    Ok((packets, ending))
}

/// One record of 4 captured bytes out of 9, 1.5 s after the epoch, in each flavour of pcap.
fn flavours() -> Vec<(&'static str, Vec<u8>)> {
    let file = |magic: u32, fraction: u32, big: bool| {
        let word = |value: u32| {
            if big {
                value.to_be_bytes()
            } else {
                value.to_le_bytes()
            }
        };
        let half = |value: u16| {
            if big {
                value.to_be_bytes()
            } else {
                value.to_le_bytes()
            }
        };
        let header = [word(magic).to_vec(), half(2).to_vec(), half(4).to_vec()].concat();
        let words = [0, 0, 65_535, 1, 1, fraction, 4, 9].map(word).concat();
        [header, words, vec![1, 2, 3, 4]].concat()
    };
    vec![
        ("microseconds", file(0xa1b2_c3d4, 500_000, false)),
        ("microseconds, big endian", file(0xa1b2_c3d4, 500_000, true)),
        ("nanoseconds", file(0xa1b2_3c4d, 500_000_000, false)),
        (
            "nanoseconds, big endian",
            file(0xa1b2_3c4d, 500_000_000, true),
        ),
        ("pcapng", pcapng(false, &[], 1_500_000)),
        ("pcapng, big endian", pcapng(true, &[], 1_500_000)),
        (
            "pcapng, nanoseconds",
            pcapng(false, &[(9, vec![9])], 1_500_000_000),
        ),
        (
            "pcapng, units of 1/1024 s",
            pcapng(false, &[(9, vec![0x8a])], 1536),
        ),
        (
            "pcapng, offset",
            pcapng(false, &[(14, 1i64.to_le_bytes().to_vec())], 500_000),
        ),
        (
            "pcapng, offset, big endian",
            pcapng(true, &[(14, 1i64.to_be_bytes().to_vec())], 500_000),
        ),
    ]
}

fn pcapng(big: bool, options: &[(u16, Vec<u8>)], ticks: u64) -> Vec<u8> {
    let word = |value: u32| {
        if big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let half = |value: u16| {
        if big {
            value.to_be_bytes()
        } else {
            value.to_le_bytes()
        }
    };
    let block = |kind: u32, body: Vec<u8>| {
        let length = word(body.len() as u32 + 12);
        [&word(kind)[..], &length, &body, &length].concat()
    };
    let section = [&word(0x1a2b_3c4d)[..], &half(1), &half(0), &[0xff; 8]].concat();
    let mut interface = [&half(1)[..], &half(0), &word(65_535)].concat();
    for (code, value) in options {
        interface.extend(half(*code));
        interface.extend(half(value.len() as u16));
        interface.extend(value);
        interface.extend(vec![0; value.len().next_multiple_of(4) - value.len()]);
    }
    interface.extend([0; 4]);
    let words = [0, (ticks >> 32) as u32, ticks as u32, 4, 9]
        .map(word)
        .concat();
    let packet = [words, vec![1, 2, 3, 4]].concat();
    [
        block(0x0a0d_0d0a, section),
        block(1, interface),
        block(0xbad, vec![0; 8]),
        block(6, packet),
    ]
    .concat()
}

#[test]
fn flavours_of_capture_files() {
    for (name, file) in flavours() {
        let expected = (vec![(1_500_000_000, 4, 9)], Ending::Clean);
        assert_eq!(times_of(file.as_slice()).expect(name), expected, "{name}");
        assert_eq!(
            times_of(Dribble(&file)).expect(name),
            expected,
            "{name}, byte by byte"
        );
        let cut = &file[..file.len() - 1];
        assert_eq!(
            times_of(cut).expect(name),
            (vec![], Ending::Truncated),
            "{name}, cut"
        );
    }
}

#[test]
fn a_record_larger_than_the_buffer() {
    let mut file = pcap_header(ETHERNET).to_vec();
    put_record(&mut file, 1, &vec![0; 3 << 20], 3 << 20);
    put_record(&mut file, 2, &[0; 10], 10);
    let (packets, ending) = times_of(file.as_slice()).expect("a capture");
    assert_eq!((packets.len(), ending), (2, Ending::Clean));
}

#[test]
fn errors_say_what_to_do() {
    let check = |file: &[u8], expected: &str| {
        let mut replay = Replay::new(Recorder::default());
        let message = stream(file, &mut replay).expect_err(expected).to_string();
        assert!(
            message.contains(expected) && !message.contains('\n'),
            "{message}"
        );
    };
    check(b"", "empty");
    check(b"\xd4\xc3", "inside its file header (2 bytes)");
    check(&pcap_header(1)[..20], "inside its file header (20 bytes)");
    check(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00", "zcat");
    check(b"\x28\xb5\x2f\xfd____________", "zstd");
    check(b"<html><body></body></html>", "begins with 3c 68 74 6d");
    let mut wifi = pcap_header(105).to_vec();
    put_record(&mut wifi, 1, &[0; 60], 60);
    check(&wifi, "link type 105 is not supported");
    let mut damaged = pcap_header(1).to_vec();
    put_record(&mut damaged, 1, &[0; 60], 60);
    put_record(&mut damaged, 1, &[], 0);
    let at = damaged.len() - 8;
    damaged[at..at + 4].copy_from_slice(&[0xff; 4]);
    damaged.resize(40 << 20, 0);
    check(&damaged, "damaged at byte 100");
    let missing = file(
        Path::new("/nonexistent/x.pcap"),
        &mut Replay::new(Recorder::default()),
    );
    let message = missing.expect_err("missing").to_string();
    assert!(
        message.starts_with("cannot open /nonexistent/x.pcap: No such file"),
        "{message}"
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
    /// Damage anywhere in a file is an error or a difference, never a panic or an endless loop.
    #[test]
    fn damaged_files(
        which in 0usize..10,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (_, mut bytes) = flavours().swap_remove(which);
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
        let mut replay = Replay::new(Http1::new(|_, _| ()));
        let _ = stream(capture.as_slice(), &mut replay);
        let (_, stats) = replay.finish();
        assert_adds_up(&stats);
    }
}

/// Takes the bytes and does nothing, to measure what comes before the parser.
struct Sink(u64);

impl Handler for Sink {
    type Session = ();

    fn open(&mut self, _: &Connection) {}

    fn receive(&mut self, (): &mut (), _: &Owner, _: Direction, input: Input<'_>, _: &At) {
        if let Input::Bytes(bytes) = input {
            self.0 += bytes.len() as u64;
        }
    }

    fn end(&mut self, (): &mut (), _: &Owner, _: End, _: &At) {}

    fn abandon(&mut self, (): (), _: &Owner) {}
}

/// `cargo test --release -p tracer-agent --lib replay::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, for release builds"]
fn speed() {
    let exchanges = 500_000;
    let mut capture = Vec::new();
    testdata::keep_alive(exchanges, 100, &mut capture).expect("memory");
    let report = |what: &str, packets: u64, start: Instant| {
        let elapsed = start.elapsed();
        println!(
            "{what}: {} ns/packet, {:.0} exchanges/s",
            elapsed.as_nanos() / u128::from(packets),
            exchanges as f64 / elapsed.as_secs_f64()
        );
    };
    for _ in 0..3 {
        let start = Instant::now();
        let mut replay = Replay::new(Sink(0));
        stream(capture.as_slice(), &mut replay).expect("a capture");
        let (Sink(bytes), stats) = replay.finish();
        report("without parser", stats.packets, start);
        assert_eq!(bytes, stats.payload_bytes);

        let start = Instant::now();
        let mut finished = 0u64;
        let mut replay = Replay::new(Http1::new(|exchange, _| {
            finished += u64::from(exchange.role == Role::Server)
        }));
        stream(capture.as_slice(), &mut replay).expect("a capture");
        let (_, stats) = replay.finish();
        report("with parser", stats.packets, start);
        println!("{finished} exchanges\n{stats}");
    }
}
