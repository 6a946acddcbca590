//! Joining late: what is known, what is not, and for how long.

use super::super::super::{Direction, Role};
use super::super::frame::{PING, WINDOW_UPDATE};
use super::super::looks_like_http2;
use super::Step::{R, Skip, W};
use super::{Peer, client_start, data, frame, play, server_start, settings};

/// Peers that have talked before, and what they said.
fn talked() -> (Peer, Peer, Vec<u8>) {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let before = [c.request(1, true, "PUT", "/old"), s.status(1, true, "201")].concat();
    (c, s, before)
}

#[test]
fn known_fields_are_right_and_others_unknown() {
    let (mut c, mut s, _) = talked();
    let bench = play(
        Some(Role::Server),
        false,
        &[
            // All from the table: nothing is known but that it is a request.
            R(c.request(3, true, "PUT", "/old")),
            W(s.status(3, true, "201")),
            // A new path is known, and again when it comes from the table.
            R(c.request(5, true, "GET", "/new")),
            W(s.status(5, true, "200")),
            R(c.request(7, true, "GET", "/new")),
            W(s.status(7, true, "404")),
            R(c.request(9, true, "GET", "/old")),
            W(s.status(9, true, "404")),
        ],
        &[
            "? ? -> 0 Complete 0/0",
            "GET /new -> 200 Complete 0/0",
            "GET /new -> 404 Complete 0/0",
            "GET ? -> 404 Complete 0/0",
        ],
    );
    assert!(bench.out.counts.unknown_fields > 0);
    assert_eq!(bench.out.counts.unparsed_bytes, 0);
}

#[test]
fn grpc_is_recognised_by_its_trailers() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let _ = [c.call(1, "/p.S/M", &[]), s.accepted(1), s.trailers(1, "0")];
    play(
        Some(Role::Client),
        false,
        &[
            W([c.call(3, "/p.S/M", &[]), data(3, true, b"\0\0\0\0\0")].concat()),
            R([
                s.accepted(3),
                data(3, false, b"\0\0\0\0\0"),
                s.trailers(3, "0"),
            ]
            .concat()),
            W([c.call(5, "/p.S/N", &[]), data(5, true, b"\0\0\0\0\0")].concat()),
            R([s.accepted(5), s.trailers(5, "5")].concat()),
        ],
        &[
            "POST ? -> 200 Complete 5/5 grpc ? 1/1",
            // The status is there, but not that it is the status.
            "POST /p.S/N -> 200 Complete 5/0 grpc ? 1/0",
        ],
    );
}

#[test]
fn streams_from_before_give_no_exchange() {
    let (mut c, mut s, _) = talked();
    let bench = play(
        Some(Role::Client),
        false,
        &[
            R([s.status(3, false, "200"), data(3, true, b"abc")].concat()),
            W([data(5, true, b"rest"), c.request(7, true, "GET", "/7")].concat()),
            R(s.status(5, true, "200")),
            R(s.status(7, true, "404")),
        ],
        &["GET /7 -> 404 Complete 0/0"],
    );
    assert_eq!(bench.out.counts.responses_without_request, 1);
}

#[test]
fn the_middle_of_a_frame_is_left_behind() {
    let (mut c, mut s, _) = talked();
    let junk: Vec<u8> = (0..5000u32).map(|i| (i * 7 % 256) as u8).collect();
    let upload = data(3, true, &junk);
    let bench = play(
        Some(Role::Server),
        false,
        &[
            R(upload[1234..].to_vec()),
            R(c.request(5, true, "GET", "/5")),
            W([s.status(5, false, "200"), data(5, true, b"x")].concat()),
            R(c.request(7, true, "GET", "/7")),
            W([s.status(7, false, "200"), data(7, true, b"x")].concat()),
        ],
        &["GET /5 -> 200 Complete 0/1", "GET /7 -> 200 Complete 0/1"],
    );
    assert_eq!(
        bench.out.counts.unparsed_bytes,
        (upload.len() - 1234) as u64
    );
    // The response was written a step after its request, and says so although both had to wait.
    let first = &bench.out.exchanges[0];
    assert_eq!(
        first.response_start_ns.map(|ns| ns - first.start_ns),
        Some(999_000)
    );
}

#[test]
fn what_is_left_out_shows_where_data_is() {
    let (mut c, mut s, _) = talked();
    let header = |length: u32, stream: u8| {
        let length = length.to_be_bytes();
        vec![length[1], length[2], length[3], 0, 0, 0, 0, 0, stream]
    };
    play(
        Some(Role::Server),
        false,
        &[
            // The rest of a large frame, then two more.
            Skip(Direction::Read, 70_000),
            R(header(1_000_000, 3)),
            Skip(Direction::Read, 400_000),
            Skip(Direction::Read, 600_000),
            R(header(16_384, 3)),
            Skip(Direction::Read, 16_384),
            R([
                frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
                c.request(5, true, "GET", "/5"),
            ]
            .concat()),
            W(s.status(5, true, "200")),
        ],
        &["GET /5 -> 200 Complete 0/0"],
    );
}

#[test]
fn the_role_is_learned() {
    let (mut c, mut s, _) = talked();
    let bench = play(
        None,
        false,
        &[
            W(c.request(3, true, "GET", "/3")),
            R(s.status(3, true, "404")),
        ],
        &["GET /3 -> 404 Complete 0/0"],
    );
    assert_eq!(bench.session.role, Some(Role::Client));
}

#[test]
fn a_connection_that_is_none_dies() {
    let text = b"SELECT * FROM orders WHERE id = 12345; ".repeat(500);
    let script: Vec<_> = (0..10).map(|_| R(text.clone())).collect();
    let bench = play(Some(Role::Server), false, &script, &[]);
    assert!(bench.session.is_dead());
    assert_eq!(bench.out.counts.unparsed_bytes, 10 * text.len() as u64);
}

#[test]
fn recognised_by_the_first_bytes() {
    let (mut c, mut s, _) = talked();
    let check =
        |bytes: &[u8], expected| assert_eq!(looks_like_http2(bytes), expected, "{bytes:x?}");
    check(&client_start(), true);
    check(&server_start(), true);
    check(&c.request(3, true, "PUT", "/old"), true);
    check(&s.status(3, false, "201"), true);
    check(&frame(PING, 0, 0, b"abcdefgh"), true);
    check(&settings(&[(0xffff, 1)]), false);
    check(b"", false);
    check(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", false);
    check(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", false);
    check(&[0; 100], false);
}
