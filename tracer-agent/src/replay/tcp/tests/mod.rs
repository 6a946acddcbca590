mod properties;

use super::*;

const MS: u64 = 1_000_000;

/// What came out, neighbouring pieces of a direction joined.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Bytes(Side, Vec<u8>),
    Lost(Side, u64),
    Fin(Side),
    Reset(Side),
}

#[derive(Default)]
struct Recorder {
    pieces: Vec<Piece>,
    times: Vec<u64>,
}

impl Receiver for Recorder {
    fn receive(&mut self, from: Side, event: Event<'_>, time_ns: u64) {
        assert!(
            self.times.last().is_none_or(|last| *last <= time_ns),
            "time went back"
        );
        self.times.push(time_ns);
        match event {
            Event::Data(Input::Bytes(bytes)) => {
                assert!(!bytes.is_empty());
                match self.pieces.last_mut() {
                    Some(Piece::Bytes(side, before)) if *side == from => before.extend(bytes),
                    _ => self.pieces.push(Piece::Bytes(from, bytes.to_vec())),
                }
            }
            Event::Data(Input::Lost(0) | Input::Skipped(_)) => {
                panic!("an empty loss, or bytes skipped")
            }
            Event::Data(Input::Lost(lost)) => self.pieces.push(Piece::Lost(from, lost)),
            Event::Fin => self.pieces.push(Piece::Fin(from)),
            Event::Reset => self.pieces.push(Piece::Reset(from)),
        }
    }
}

impl Recorder {
    fn stream(&self, of: Side) -> Vec<u8> {
        let bytes = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Bytes(side, bytes) if *side == of => Some(bytes.as_slice()),
            _ => None,
        });
        bytes.collect::<Vec<_>>().concat()
    }
}

/// A segment in words; `at` counts from the first byte of the direction, whose SYN is at -1.
fn segment(from: Side, at: i32, ack: Option<u32>, payload: &[u8], time_ms: u64) -> Segment<'_> {
    Segment {
        from,
        time_ns: time_ms * MS,
        seq: first_of(from).wrapping_add_signed(at),
        ack: ack.map(|ack| first_of(from.other()).wrapping_add(ack)),
        syn: false,
        fin: false,
        rst: false,
        payload,
        wire_len: payload.len() as u32,
    }
}

/// Both directions wrap around soon.
fn first_of(side: Side) -> u32 {
    match side {
        Side::A => u32::MAX - 4,
        Side::B => u32::MAX - 1,
    }
}

fn syn(from: Side) -> Segment<'static> {
    Segment {
        syn: true,
        ..segment(from, -1, (from == Side::B).then_some(0), b"", 0)
    }
}

fn run(segments: &[Segment<'_>]) -> (Recorder, Shared, Verdict) {
    run_with(Limits::default(), segments)
}

fn run_with(limits: Limits, segments: &[Segment<'_>]) -> (Recorder, Shared, Verdict) {
    let mut shared = Shared {
        limits,
        ..Shared::default()
    };
    let mut reassembler = Reassembler::new();
    let mut recorder = Recorder::default();
    let mut verdict = Verdict::Open;
    for segment in segments {
        verdict = reassembler.push(segment, &mut shared, &mut recorder);
    }
    reassembler.finish(&mut shared, &mut recorder);
    assert_eq!(shared.held, 0, "everything held back was released");
    (recorder, shared, verdict)
}

fn bytes(side: Side, text: &str) -> Piece {
    Piece::Bytes(side, text.into())
}

#[test]
fn what_segments_become() {
    use Side::{A, B};
    let [open_a, open_b] = [syn(A), syn(B)];
    let check = |what: &str, segments: &[Segment<'_>], expected: &[Piece]| {
        let segments = [&[open_a, open_b], segments].concat();
        let (recorder, shared, _) = run(&segments);
        assert_eq!(recorder.pieces, expected, "{what}");
        let seen: u64 = segments
            .iter()
            .map(|segment| u64::from(segment.wire_len))
            .sum();
        assert_eq!(
            shared.counts.delivered + shared.counts.repeated,
            seen,
            "{what}"
        );
    };
    let a = |at, payload: &'static str| segment(A, at, Some(0), payload.as_bytes(), 1);
    let b = |at, ack, payload: &'static str| segment(B, at, Some(ack), payload.as_bytes(), 1);

    check(
        "in order, across the wrap",
        &[a(0, "hello "), a(6, "world")],
        &[bytes(A, "hello world")],
    );
    check(
        "swapped",
        &[a(6, "world"), a(0, "hello ")],
        &[bytes(A, "hello world")],
    );
    check(
        "retransmitted",
        &[a(0, "one"), a(0, "one"), a(3, "two"), a(0, "one")],
        &[bytes(A, "onetwo")],
    );
    check(
        "retransmitted with more",
        &[a(0, "one"), a(0, "onetwo")],
        &[bytes(A, "onetwo")],
    );
    check(
        "overlapping held segments",
        &[a(2, "cd"), a(3, "defg"), a(2, "cde"), a(0, "ab")],
        &[bytes(A, "abcdefg")],
    );
    check(
        "first bytes win",
        &[a(0, "abc"), a(1, "XXX")],
        &[bytes(A, "abcX")],
    );
    check(
        "keep-alive probe",
        &[a(0, "one"), a(2, "\0"), a(3, "two")],
        &[bytes(A, "onetwo")],
    );
    check(
        "zero-window probe",
        &[a(0, "one"), a(3, "t"), a(3, "two")],
        &[bytes(A, "onetwo")],
    );
    check(
        "repeated SYN",
        &[open_a, a(0, "x"), open_a, open_b, a(1, "y")],
        &[bytes(A, "xy")],
    );
    check(
        "a gap at the end",
        &[a(0, "ab"), a(5, "fg")],
        &[bytes(A, "ab"), Piece::Lost(A, 3), bytes(A, "fg")],
    );
    check(
        "a gap at the start",
        &[a(3, "de")],
        &[Piece::Lost(A, 3), bytes(A, "de")],
    );
    check(
        "an answer that overtook its question",
        &[b(0, 3, "yes"), a(0, "ok?")],
        &[bytes(A, "ok?"), bytes(B, "yes")],
    );
    check(
        "an answer to a question that is lost",
        &[b(0, 3, "yes"), b(3, 3, "!")],
        &[Piece::Lost(A, 3), bytes(B, "yes!")],
    );
    check(
        "a question lost in the middle",
        &[
            a(0, "q1"),
            b(0, 2, "a1"),
            b(2, 4, "a2"),
            segment(A, 4, Some(4), b"q3", 1),
            b(4, 6, "a3"),
        ],
        &[
            bytes(A, "q1"),
            bytes(B, "a1"),
            Piece::Lost(A, 2),
            bytes(B, "a2"),
            bytes(A, "q3"),
            bytes(B, "a3"),
        ],
    );
    check(
        "cyclic acknowledgements end",
        &[
            segment(A, 1, Some(5), b"x", 1),
            segment(B, 1, Some(5), b"y", 1),
        ],
        &[
            Piece::Lost(B, 1),
            Piece::Lost(A, 1),
            bytes(A, "x"),
            Piece::Lost(A, 3),
            bytes(B, "y"),
        ],
    );
}

#[test]
fn ends() {
    use Side::{A, B};
    let check = |what: &str, segments: &[Segment<'_>], pieces: &[Piece], expected: Verdict| {
        let (recorder, _, verdict) = run(&[&[syn(A), syn(B)], segments].concat());
        assert_eq!(
            (recorder.pieces.as_slice(), verdict),
            (pieces, expected),
            "{what}"
        );
    };
    let fin = |from, at, ack, payload| Segment {
        fin: true,
        ..segment(from, at, Some(ack), payload, 1)
    };
    let rst = |from, at, ack| Segment {
        rst: true,
        ..segment(from, at, Some(ack), b"", 1)
    };
    let [a, b] = [fin(A, 0, 0, b"bye"), fin(B, 0, 4, b"")];
    check(
        "one side",
        &[a],
        &[bytes(A, "bye"), Piece::Fin(A)],
        Verdict::Open,
    );
    check(
        "both sides",
        &[a, b],
        &[bytes(A, "bye"), Piece::Fin(A), Piece::Fin(B)],
        Verdict::Closed,
    );
    check(
        "twice",
        &[a, a, b, b],
        &[bytes(A, "bye"), Piece::Fin(A), Piece::Fin(B)],
        Verdict::Closed,
    );
    check(
        "FIN before its data",
        &[fin(A, 3, 0, b""), segment(A, 0, None, b"bye", 1)],
        &[bytes(A, "bye"), Piece::Fin(A)],
        Verdict::Open,
    );
    check(
        "data after the FIN",
        &[a, segment(A, 4, None, b"more", 1)],
        &[bytes(A, "bye"), Piece::Fin(A)],
        Verdict::Open,
    );
    check(
        "reset",
        &[segment(A, 0, None, b"x", 1), rst(B, 0, 1)],
        &[bytes(A, "x"), Piece::Reset(B)],
        Verdict::Closed,
    );
    check(
        "reset behind a gap",
        &[segment(A, 2, None, b"x", 1), rst(B, 0, 1)],
        &[Piece::Lost(A, 2), bytes(A, "x"), Piece::Reset(B)],
        Verdict::Closed,
    );
    let (recorder, _, verdict) = run(&[syn(A), rst(B, -1, 0)]);
    assert_eq!(
        (recorder.pieces, verdict),
        (vec![Piece::Reset(B)], Verdict::Closed),
        "refused"
    );
}

#[test]
fn joined_in_the_middle() {
    use Side::{A, B};
    let check = |what: &str, segments: &[Segment<'_>], expected: &[Piece]| {
        assert_eq!(run(segments).0.pieces, expected, "{what}");
    };
    let a = |at, payload: &'static str| segment(A, at, Some(0), payload.as_bytes(), 1);
    check(
        "data first",
        &[a(500, "GET"), a(503, " /")],
        &[bytes(A, "GET /")],
    );
    check(
        "keep-alive probe first",
        &[a(499, "\0"), a(500, "GET")],
        &[bytes(A, "GET")],
    );
    check(
        "acknowledgement first",
        &[
            segment(B, 0, Some(500), b"", 0),
            a(499, "\0"),
            a(500, "GET"),
        ],
        &[bytes(A, "GET")],
    );
    check(
        "acknowledgement first, then a loss",
        &[segment(B, 0, Some(500), b"", 0), a(505, "x")],
        &[Piece::Lost(A, 5), bytes(A, "x")],
    );
}

#[test]
fn cut_by_the_snap_length() {
    let cut = Segment {
        wire_len: 10,
        ..segment(Side::A, 0, None, b"abcd", 1)
    };
    let next = segment(Side::A, 10, None, b"kl", 1);
    for order in [[cut, next], [next, cut]] {
        let (recorder, shared, _) = run(&[&[syn(Side::A)][..], &order].concat());
        let expected = [
            bytes(Side::A, "abcd"),
            Piece::Lost(Side::A, 6),
            bytes(Side::A, "kl"),
        ];
        assert_eq!(recorder.pieces, expected);
        assert_eq!((shared.counts.lost_cut, shared.counts.lost_gap), (6, 0));
    }
}

#[test]
fn another_connection_between_the_same_ends() {
    let start = [
        syn(Side::A),
        syn(Side::B),
        segment(Side::A, 0, None, b"x", 1),
    ];
    let restarts =
        |segments: &[Segment<'_>]| run(&[&start[..], segments].concat()).2 == Verdict::Restart;
    let another = Segment {
        seq: 12345,
        ..syn(Side::A)
    };
    assert!(restarts(&[another]));
    assert!(!restarts(&[syn(Side::A)]));
    let far = Segment {
        seq: first_of(Side::A).wrapping_add(1 << 31),
        ..segment(Side::A, 0, None, b"x", 1)
    };
    assert!(!restarts(&[far, far]));
    assert!(restarts(&[far, far, far]));
    assert!(
        !restarts(&[far, far, segment(Side::A, 1, None, b"y", 1), far]),
        "only in a row"
    );
}

#[test]
fn waiting_ends_in_time() {
    let check = |what: &str, acknowledged: bool, until_ms: u64, expected: usize| {
        let mut shared = Shared::default();
        let mut recorder = Recorder::default();
        let mut reassembler = Reassembler::new();
        let ack = if acknowledged { Some(7) } else { None };
        for segment in [
            syn(Side::A),
            syn(Side::B),
            segment(Side::A, 5, None, b"xy", 10),
            segment(Side::B, 0, ack, b"", 11),
            segment(Side::B, 0, None, b"", until_ms),
        ] {
            let _ = reassembler.push(&segment, &mut shared, &mut recorder);
        }
        assert_eq!(recorder.pieces.len(), expected, "{what}");
        // Told with the time of the packet behind the gap, not of the moment the wait ended.
        assert!(recorder.times.iter().all(|time| *time == 10 * MS), "{what}");
    };
    check("not yet", false, 10_010, 0);
    check("too long", false, 10_011, 2);
    check("acknowledged, not yet", true, 210, 0);
    check("acknowledged, too long", true, 211, 2);
}

#[test]
fn held_bytes_are_bounded() {
    let payload = [b'x'; 1000];
    let segments: Vec<_> = (0..500)
        .map(|n| segment(Side::A, 10 + n * 2000, None, &payload, 1))
        .collect();
    for limits in [
        Limits {
            held_per_connection: 20_000,
            ..Limits::default()
        },
        Limits {
            held_in_all: 20_000,
            ..Limits::default()
        },
        Limits {
            held_segments: 18,
            ..Limits::default()
        },
    ] {
        let mut shared = Shared {
            limits,
            ..Shared::default()
        };
        let mut reassembler = Reassembler::new();
        let mut recorder = Recorder::default();
        let _ = reassembler.push(&syn(Side::A), &mut shared, &mut recorder);
        for segment in &segments {
            let _ = reassembler.push(segment, &mut shared, &mut recorder);
            assert!(shared.held <= 20_000, "{}", shared.held);
        }
        reassembler.finish(&mut shared, &mut recorder);
        assert_eq!(recorder.stream(Side::A).len(), 500_000);
        assert_eq!(shared.counts.lost_gap, 10 + 499 * 1000);
        assert_eq!(shared.held, 0);
    }
}
