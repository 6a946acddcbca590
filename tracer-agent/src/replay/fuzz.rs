//! Entry points for fuzz targets: arbitrary bytes in, a panic if a promise is broken.

use super::tcp::{Counts, Event, Limits, Reassembler, Segment, Shared, Side, Verdict};
use super::{Handler, Owner, Replay, Speaks};
use crate::protocol::{At, Connection, Direction, End, Input};

const RECORD: usize = 12;
const PAYLOAD: [u8; 256] = [b'x'; 256];

/// Reassembles whatever segments the bytes make, twelve bytes each. Panics if time goes back, a
/// piece is empty, held bytes exceed their limit or are not released, or bytes are unaccounted for.
pub fn reassembly(data: &[u8]) {
    let limits = Limits {
        held_per_connection: 8192,
        held_segments: 32,
        ..Limits::default()
    };
    let mut shared = Shared {
        limits,
        ..Shared::default()
    };
    let mut reassembler = Reassembler::new();
    let mut last_ns = 0;
    let (mut seen, mut handed_on) = (0, 0);
    let mut time_ns = 0;
    let mut out = |_: Side, event: Event<'_>, time_ns: u64| {
        assert!(last_ns <= time_ns, "time goes back");
        last_ns = time_ns;
        match event {
            Event::Data(Input::Bytes(bytes)) => {
                assert!(!bytes.is_empty(), "an empty piece");
                handed_on += bytes.len() as u64;
            }
            Event::Data(Input::Lost(lost)) => assert!(lost > 0, "an empty loss"),
            Event::Data(Input::Skipped(_)) => panic!("nothing is skipped on purpose"),
            Event::Fin | Event::Reset => {}
        }
    };
    for record in data.chunks_exact(RECORD) {
        let [flags, step, q0, q1, q2, q3, a0, a1, a2, a3, captured, wire] =
            <[u8; RECORD]>::try_from(record).unwrap_or_default();
        time_ns += u64::from(step) * 10_000_000;
        let segment = Segment {
            from: if flags & 1 == 0 { Side::A } else { Side::B },
            time_ns,
            seq: u32::from_be_bytes([q0, q1, q2, q3]),
            ack: (flags & 2 != 0).then(|| u32::from_be_bytes([a0, a1, a2, a3])),
            syn: flags & 4 != 0,
            fin: flags & 8 != 0,
            rst: flags & 16 != 0,
            payload: PAYLOAD.get(..usize::from(captured)).unwrap_or_default(),
            wire_len: u32::from(wire.max(captured)),
        };
        seen += u64::from(segment.wire_len);
        if reassembler.push(&segment, &mut shared, &mut out) == Verdict::Restart {
            reassembler.finish(&mut shared, &mut |_: Side, _: Event<'_>, _: u64| {});
            assert_eq!(shared.held, 0, "held bytes of a finished connection");
            // The finished one's last pieces and the new one's times are of no interest here.
            return;
        }
        assert!(
            shared.held <= limits.held_per_connection,
            "{} bytes held",
            shared.held
        );
    }
    reassembler.finish(&mut shared, &mut out);
    assert_eq!(shared.held, 0, "held bytes of a finished connection");
    let Counts {
        delivered,
        lost_cut,
        repeated,
        out_of_window,
        after_end,
        ..
    } = shared.counts;
    assert_eq!(delivered, handed_on);
    assert_eq!(
        delivered + lost_cut + repeated + out_of_window + after_end,
        seen,
        "{:?}",
        shared.counts
    );
}

/// Replays the bytes as a capture file, up to the parser. Panics if packets or bytes are
/// unaccounted for.
pub fn capture(data: &[u8]) {
    let mut replay = Replay::new(Nothing);
    // A file that is refused is as good as one that is read.
    let _ = super::stream(data, &mut replay);
    let (Nothing, stats) = replay.finish();
    assert!(stats.adds_up(), "{stats}");
}

struct Nothing;

impl Handler for Nothing {
    type Session = ();

    fn open(&mut self, _: &Connection, _: Speaks) {}

    fn receive(&mut self, (): &mut (), _: &Owner, _: Direction, _: Input<'_>, _: &At) {}

    fn end(&mut self, (): &mut (), _: &Owner, _: End, _: &At) {}

    fn abandon(&mut self, (): (), _: &Owner) {}
}
