//! HTTP/2 in captures: with prior knowledge, upgraded, and joined among frames, at either end.

use super::*;
use crate::protocol::{Outcome, Protocol, Role};

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
    bytes.extend(payload);
    bytes
}

fn settings() -> Vec<u8> {
    frame(4, 0, 0, &[])
}

/// `GET` of a literal path.
fn get(stream: u8, path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path.as_bytes());
    frame(1, 5, stream, &block)
}

/// `:status: 200` and a body.
fn ok(stream: u8) -> Vec<u8> {
    [frame(1, 4, stream, &[0x88]), frame(0, 1, stream, b"body")].concat()
}

fn cancel(stream: u8) -> Vec<u8> {
    frame(3, 0, stream, &[0, 0, 0, 8])
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const UPGRADE: &[u8] = b"GET /up HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\n\
    Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
const AGREED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n";

/// Who sends.
enum From {
    Client,
    Server,
}

/// Replays one connection, from its SYN on or not, in packets of at most so many bytes.
fn play(syn: bool, pieces: &[(From, Vec<u8>)], most: usize, swap: bool) -> (Vec<String>, Stats) {
    let (mut sent, mut answered) = (0u32, 0u32);
    let mut packets: Vec<Tcp<'_>> = if syn { opening().to_vec() } else { Vec::new() };
    for (from, bytes) in pieces {
        for piece in bytes.chunks(most) {
            let length = u32::try_from(piece.len()).unwrap();
            match from {
                From::Client => {
                    packets.push(there(sent, answered, ACK, piece));
                    sent += length;
                }
                From::Server => {
                    packets.push(back(answered, sent, ACK, piece));
                    answered += length;
                }
            }
        }
    }
    if swap {
        // The client's port is the lower one: a guess by ports is wrong.
        for tcp in &mut packets {
            for address in [&mut tcp.source, &mut tcp.destination] {
                let port = if address.port() == 8080 { 50_000 } else { 1024 };
                address.set_port(port);
            }
        }
    }
    let file = capture_of(packets.iter().enumerate().map(|(n, tcp)| (n as u64, *tcp)));
    let mut lines = Vec::new();
    let mut replay = Replay::new(Exchanges::new(|exchange, owner: &Owner| {
        let server = if swap {
            "10.0.0.1:50000"
        } else {
            "10.0.0.1:8080"
        };
        assert_eq!(&*owner.process.service_name, server);
        assert_eq!(
            owner.connection.local,
            Endpoint::Ip(server.parse().expect("an address"))
        );
        assert_eq!(exchange.role, Role::Server);
        let status = exchange.response.as_ref().map_or(0, |r| r.status);
        let version = if exchange.protocol == Protocol::Http2 {
            2
        } else {
            1
        };
        let ended = match exchange.outcome {
            Outcome::Complete => String::new(),
            outcome => format!(" {outcome:?}"),
        };
        let request = &exchange.request;
        lines.push(format!(
            "{version} {} {} {status}{ended}",
            request.method, request.target
        ));
    }));
    stream(file.as_slice(), &mut replay).expect("a whole capture");
    let (handler, stats) = replay.finish();
    drop(handler);
    assert_adds_up(&stats);
    (lines, stats)
}

#[test]
fn prior_knowledge() {
    let start = [PREFACE.to_vec(), settings(), get(1, "/1"), get(3, "/3")].concat();
    let pieces = [
        (From::Client, start),
        (From::Server, [settings(), ok(3), ok(1)].concat()),
        (From::Client, get(5, "/5")),
        (From::Client, cancel(5)),
    ];
    for most in [3, 10, 1000] {
        let (lines, stats) = play(true, &pieces, most, false);
        let expected = ["2 GET /3 200", "2 GET /1 200", "2 GET /5 0 PeerReset(8)"];
        assert_eq!(lines, expected, "packets of {most}");
        assert_eq!((stats.connections.http1, stats.connections.http2), (0, 1));
        assert_eq!(stats.unclaimed_bytes, 0);
    }
}

#[test]
fn a_server_that_speaks_first() {
    let pieces = [
        (From::Server, settings()),
        (
            From::Client,
            [PREFACE.to_vec(), settings(), get(1, "/1")].concat(),
        ),
        (From::Server, ok(1)),
    ];
    assert_eq!(play(true, &pieces, 1000, false).0, ["2 GET /1 200"]);
}

#[test]
fn upgrades() {
    let pieces = [
        (From::Client, UPGRADE.to_vec()),
        (From::Server, [AGREED.to_vec(), settings(), ok(1)].concat()),
        (
            From::Client,
            [PREFACE.to_vec(), settings(), get(3, "/3")].concat(),
        ),
        (From::Server, ok(3)),
    ];
    for syn in [true, false] {
        for most in [7, 1000] {
            let (lines, stats) = play(syn, &pieces, if syn { most } else { 1000 }, false);
            assert_eq!(lines, ["2 GET /up 200", "2 GET /3 200"], "{syn} {most}");
            assert_eq!((stats.connections.http1, stats.connections.http2), (1, 0));
        }
    }
    let refused = [
        (From::Client, UPGRADE.to_vec()),
        (From::Server, RESPONSE.to_vec()),
        (From::Client, REQUEST.to_vec()),
        (From::Server, RESPONSE.to_vec()),
    ];
    let (lines, _) = play(true, &refused, 1000, false);
    assert_eq!(lines, ["1 GET /up 204", "1 GET /a 204"]);
}

#[test]
fn joined_among_frames() {
    // The end of a body, then everything from the next call on.
    let pieces = [
        (From::Server, b"rest of a body".to_vec()),
        (From::Client, get(7, "/7")),
        (From::Server, ok(7)),
        (From::Client, [get(9, "/9"), get(11, "/11")].concat()),
        (From::Server, [ok(11), cancel(9)].concat()),
    ];
    for swap in [false, true] {
        let (lines, stats) = play(false, &pieces, 1000, swap);
        let expected = ["2 GET /7 200", "2 GET /11 200", "2 GET /9 0 LocalReset(8)"];
        assert_eq!(lines, expected, "swapped: {swap}");
        assert_eq!((stats.connections.http2, stats.connections.joined), (1, 1));
    }
}
