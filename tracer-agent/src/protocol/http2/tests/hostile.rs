//! Peers that mean harm. Guarantee: what they cost is bounded, and what they hide is counted.

use super::super::super::hpack::encoder::Encoder;
use super::super::super::{Direction, End};
use super::super::frame::{
    CONTINUATION, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, PUSH_PROMISE, SETTINGS,
    WINDOW_UPDATE,
};
use super::Step::{End as Ends, R, W};
use super::{Bench, Peer, client, client_start, frame, reset, server, server_start, settings};

#[test]
fn hostile_input_is_bounded() {
    let mut c = Peer::new();
    // Rapid reset: each is an exchange, nothing stays.
    let mut bench = server(&[], &[]);
    for stream in 0..20_000 {
        let id = 2 * stream + 1;
        bench.step(&R([c.request(id, true, "GET", "/"), reset(id, 8)].concat()));
    }
    assert_eq!(
        (bench.out.exchanges.len(), bench.session.in_flight()),
        (20_000, 0)
    );
    // Streams without end; those too many are counted.
    for stream in 20_000..30_000 {
        bench.step(&R(c.request(2 * stream + 1, true, "GET", "/")));
    }
    assert_eq!(bench.session.in_flight(), 8192);
    assert_eq!(bench.out.counts.abandoned["streams_full"], 10_000 - 8192);
    // The same by their size.
    let mut c = Peer::new();
    let mut bench = server(&[], &[]);
    let long = "x".repeat(10_000);
    for stream in 0..300 {
        bench.step(&R(c.request(
            2 * stream + 1,
            true,
            "GET",
            &format!("/{stream}{long}"),
        )));
    }
    assert!(bench.session.in_flight() < 210);
    // CONTINUATION flood: what fits is read, the rest of the block is not known.
    let mut c = Peer::new();
    let mut bench = server(&[], &[]);
    let block = c.block(&[(":method", "GET"), (":path", "/flood")]);
    bench.step(&R(frame(HEADERS, END_STREAM, 1, &block)));
    for _ in 0..100 {
        bench.step(&R(frame(CONTINUATION, 0, 1, &[0x82; 10_000])));
    }
    bench.step(&R(frame(CONTINUATION, END_HEADERS, 1, &[0x82])));
    bench.step(&R(c.request(3, true, "GET", "/after")));
    assert_eq!(bench.session.in_flight(), 2);
    assert_eq!(bench.out.counts.broken_blocks, 1);
    bench.step(&Ends(End::Closed(0)));
    let lines: Vec<_> = bench.out.exchanges.iter().map(super::line).collect();
    assert_eq!(lines[0], "GET /flood -> none LocalClosed 0/-");
    // Storms cost nothing that stays.
    let mut bench = server(&[], &[]);
    let quiet = bench.out.counts.clone();
    bench.step(&R(frame(PING, 0, 0, b"12345678").repeat(1000)));
    bench.step(&R(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(1000)));
    assert_eq!(bench.out.counts, quiet);
}

#[test]
fn storms_cost_nothing_that_stays() {
    for (kind, flags, stream, payload) in [
        (PING, 0, 0, &b"12345678"[..]),
        (WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        (PRIORITY, 0, 99, &[0, 0, 0, 0, 1]),
        (
            SETTINGS,
            0,
            0,
            &[0, 1, 0xff, 0xff, 0xff, 0xff, 0, 5, 0, 0xff, 0xff, 0xff],
        ),
        (SETTINGS, 1, 0, &[]),
        (GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0]),
        (0x77, 0xff, 5, &[7; 100]),
    ] {
        let mut bench = server(&[], &[]);
        let quiet = bench.out.counts.clone();
        for _ in 0..100 {
            bench.step(&R(frame(kind, flags, stream, payload).repeat(100)));
        }
        assert_eq!(bench.out.counts, quiet, "frames of kind {kind}");
        assert_eq!(bench.session.in_flight(), 0);
        assert_eq!(bench.session.lane(Direction::Read).window.len(), 0);
    }
}

#[test]
fn tables_and_lists_are_bounded() {
    // A table of 4 GiB is allowed, and filled.
    let mut bench = server(&[W(settings(&[(1, u32::MAX)]))], &[]);
    let mut encoder = Encoder::new(usize::MAX);
    for number in 0..2000 {
        let mut block = vec![0x82];
        encoder.field(&format!("n{number}"), &"v".repeat(4000), true, &mut block);
        bench.step(&R(frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            2 * number + 1,
            &block,
        )));
        bench.step(&R(reset(2 * number + 1, 8)));
    }
    let lane = bench.session.lane(Direction::Read);
    assert!(lane.hpack.size() <= 64 * 1024, "{}", lane.hpack.size());
    assert_eq!(bench.out.exchanges.len(), 2000);
    // One block that names its largest entry again and again: 60 kB that stand for 240 MB.
    let bomb = vec![0xbe; 16_000];
    bench.step(&R(frame(HEADERS, END_HEADERS | END_STREAM, 5001, &bomb)));
    assert_eq!(bench.session.in_flight(), 1);
    assert!(bench.out.counts.unknown_fields >= 15_000);
    assert!(bench.session.cost < 1000);
}

#[test]
fn blocks_without_an_end() {
    let mut bench = server(&[], &[]);
    bench.step(&R(frame(HEADERS, 0, 1, &[0x82; 1000])));
    for _ in 0..1000 {
        bench.step(&R(frame(CONTINUATION, 0, 1, &[0x82; 16_000])));
    }
    let lane = bench.session.lane(Direction::Read);
    let kept = lane.block.as_ref().map_or(0, |block| block.bytes().len());
    assert!(kept <= 64 * 1024, "{kept}");
    // Pushes that nobody asked for, and their answers.
    let (mut s, mut bench) = (Peer::new(), client(&[], &[]));
    for stream in 1..2000u32 {
        let promise = [&(2 * stream).to_be_bytes()[..], &[0x82, 0x86, 0x84]].concat();
        bench.step(&R(frame(PUSH_PROMISE, END_HEADERS, 1, &promise)));
        bench.step(&R(s.status(2 * stream, false, "200")));
    }
    assert_eq!(
        (bench.session.in_flight(), bench.out.exchanges.len()),
        (0, 0)
    );
}

#[test]
fn answers_to_nothing_are_bounded() {
    let mut s = Peer::new();
    let mut bench = client(&[W(client_start()), R(server_start())], &[]);
    bench.frozen = true;
    for stream in 0..5000 {
        bench.step(&R(s.status(2 * stream + 1, false, "200")));
    }
    assert!(bench.session.early.len() <= 64);
    assert!(bench.out.counts.responses_without_request >= 4900);
}

#[test]
fn a_join_that_leads_nowhere_is_bounded() {
    // Each place may begin a chain of frames, and none does.
    let place = |length: u8| [0, length, 0, HEADERS, END_HEADERS, 0, 0, 0, 1];
    for bytes in [
        place(0x3f).repeat(2000),
        place(0x01).repeat(2000),
        [place(0x3f).repeat(3), vec![0x82; 45]].concat().repeat(250),
        frame(SETTINGS, 0, 0, &[0; 6]).repeat(1200),
        vec![0; 18_000],
    ] {
        let mut bench = Bench::new(None, false);
        for _ in 0..40 {
            bench.step(&R(bytes.clone()));
            let kept = bench.session.lane(Direction::Read).window.len();
            assert!(kept <= 256 * 1024, "{kept} bytes wait");
        }
        bench.step(&Ends(End::Closed(0)));
        assert_eq!(bench.session.in_flight(), 0);
    }
}
