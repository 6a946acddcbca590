//! What holds for any order of any segments.

use proptest::prelude::*;

use super::*;

/// A dialogue: turns of bytes, cut into segments that acknowledge everything before them.
fn dialogue() -> impl Strategy<Value = Vec<(Side, Vec<u8>, Vec<usize>)>> {
    let turn = (
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 1..60),
        prop::collection::vec(1usize..30, 1..5),
    );
    prop::collection::vec(turn, 1..20).prop_map(|turns| {
        let side = |a| if a { Side::A } else { Side::B };
        turns
            .into_iter()
            .map(|(a, bytes, cuts)| (side(a), bytes, cuts))
            .collect()
    })
}

struct Script {
    segments: Vec<(Side, u32, u32, Vec<u8>)>,
    expected: Vec<Piece>,
    streams: Pair<Vec<u8>>,
}

fn script(turns: &[(Side, Vec<u8>, Vec<usize>)]) -> Script {
    let mut streams: Pair<Vec<u8>> = Pair::default();
    let mut segments = Vec::new();
    let mut expected: Vec<Piece> = Vec::new();
    for (side, bytes, cuts) in turns {
        let mut rest = bytes.as_slice();
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            let ack = streams.side(side.other()).len() as u32;
            segments.push((*side, streams.side(*side).len() as u32, ack, now.to_vec()));
            streams.side_mut(*side).extend(now);
            rest = later;
        }
        match expected.last_mut() {
            Some(Piece::Bytes(last, before)) if last == side => before.extend(bytes),
            _ => expected.push(Piece::Bytes(*side, bytes.clone())),
        }
    }
    Script {
        segments,
        expected,
        streams,
    }
}

proptest! {
    /// Any packetisation, duplication and reordering of two streams gives exactly the streams, in
    /// the order of the dialogue.
    #[test]
    fn order_is_restored(
        turns in dialogue(),
        first in any::<(u32, u32)>(),
        keys in prop::collection::vec(0usize..12, 400),
        repeats in prop::collection::vec(0usize..400, 0..20),
    ) {
        let Script { segments, expected, streams } = script(&turns);
        let first = |side| if side == Side::A { first.0 } else { first.1 };
        let mut shuffled: Vec<(usize, usize)> = (0..segments.len()).map(|n| (n + keys[n % keys.len()], n)).collect();
        shuffled.extend(repeats.iter().filter(|n| **n < segments.len()).map(|n| (n + 3, *n)));
        shuffled.sort();
        let mut packets: Vec<Segment<'_>> = Side::BOTH.iter().map(|side| Segment {
            seq: first(*side).wrapping_sub(1),
            ack: (*side == Side::B).then_some(first(Side::A)),
            ..syn(*side)
        }).collect();
        for (time, (_, n)) in shuffled.iter().enumerate() {
            let (side, at, ack, payload) = &segments[*n];
            packets.push(Segment {
                seq: first(*side).wrapping_add(*at),
                ack: Some(first(side.other()).wrapping_add(*ack)),
                ..segment(*side, 0, None, payload, 1 + time as u64 / 10)
            });
        }
        let (recorder, shared, _) = run(&packets);
        prop_assert_eq!(&recorder.pieces, &expected);
        prop_assert_eq!(shared.counts.lost_gap, 0);
        let length = (streams.side(Side::A).len() + streams.side(Side::B).len()) as u64;
        prop_assert_eq!(shared.counts.delivered, length);
        let seen: u64 = packets.iter().map(|packet| u64::from(packet.wire_len)).sum();
        prop_assert_eq!(shared.counts.repeated, seen - length);
    }

    /// Packets missing from one stream become losses of the right length at the right place.
    #[test]
    fn loss_is_told(
        lengths in prop::collection::vec((1usize..50, any::<bool>()), 1..40),
        swaps in prop::collection::vec(0usize..39, 0..10),
    ) {
        let mut packets = vec![syn(Side::A)];
        let payload: Vec<u8> = (0..2000).map(|n| n as u8).collect();
        let mut at = 0;
        let mut expected: Vec<u8> = Vec::new();
        for (length, kept) in &lengths {
            if *kept {
                packets.push(segment(Side::A, at as i32, None, &payload[at..at + length], 1));
            }
            at += length;
        }
        let end = lengths.iter().rposition(|(_, kept)| *kept).map_or(0, |last| {
            lengths.iter().take(last + 1).map(|(length, _)| length).sum()
        });
        for swap in swaps {
            let n = packets.len();
            if n > 2 {
                packets.swap(1 + swap % (n - 1), 1 + (swap + 1) % (n - 1));
            }
        }
        let (recorder, shared, _) = run(&packets);
        let mut lost = 0;
        for piece in &recorder.pieces {
            match piece {
                Piece::Bytes(_, bytes) => {
                    prop_assert_eq!(bytes.as_slice(), &payload[expected.len()..expected.len() + bytes.len()]);
                    expected.extend(bytes);
                }
                Piece::Lost(_, n) => {
                    lost += n;
                    expected.extend(&payload[expected.len()..expected.len() + *n as usize]);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert_eq!(expected.len(), end);
        let missing: usize = lengths.iter().scan(0, |at, (length, kept)| {
            *at += length;
            Some(if *kept || *at > end { 0 } else { *length })
        }).sum();
        prop_assert_eq!(lost, missing as u64);
        prop_assert_eq!(shared.counts.lost_gap, lost);
    }

    /// Whatever comes, nothing panics, held bytes stay bounded and are all released, and every byte
    /// is accounted for.
    #[test]
    fn anything_goes(
        script in prop::collection::vec(
            (any::<bool>(), 0u32..3000, prop::option::of(0u32..3000), 0u8..64, 0usize..300, 0u32..400, 0u64..500),
            0..200,
        ),
        far in any::<u32>(),
    ) {
        let limits = Limits { held_per_connection: 8192, held_segments: 20, ..Limits::default() };
        let mut shared = Shared { limits, ..Shared::default() };
        let mut reassembler = Reassembler::new();
        let mut recorder = Recorder::default();
        let payload = [7; 300];
        let mut seen = 0;
        let mut time_ns = 0;
        for (a, seq, ack, bits, length, cut, step) in script {
            time_ns += step * MS;
            let segment = Segment {
                from: if a { Side::A } else { Side::B },
                time_ns,
                seq: if bits == 63 { far } else { seq },
                ack,
                syn: bits < 2,
                fin: bits == 2,
                rst: bits == 3,
                payload: &payload[..length],
                wire_len: (length as u32).max(cut),
            };
            let mut verdict = reassembler.push(&segment, &mut shared, &mut recorder);
            if verdict == Verdict::Restart {
                reassembler.finish(&mut shared, &mut recorder);
                reassembler = Reassembler::new();
                recorder = Recorder::default();
                verdict = reassembler.push(&segment, &mut shared, &mut recorder);
            }
            prop_assert_ne!(verdict, Verdict::Restart);
            prop_assert!(shared.held <= 8192 + 400);
            seen += u64::from(segment.wire_len);
        }
        reassembler.finish(&mut shared, &mut recorder);
        prop_assert_eq!(shared.held, 0);
        let Counts { delivered, lost_cut, repeated, out_of_window, after_end, .. } = shared.counts;
        prop_assert_eq!(delivered + lost_cut + repeated + out_of_window + after_end, seen);
    }
}
