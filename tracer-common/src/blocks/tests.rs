extern crate std;
use std::string::String;
use std::vec::Vec;
use std::{format, vec};

use httlib_hpack::Encoder;
use proptest::prelude::*;

use super::*;
use crate::context::FIELD_BYTES;
use crate::frame::Fields;

struct Bytes<'a>(&'a [u8]);

impl Window for Bytes<'_> {
    fn word(&self, at: u32) -> u64 {
        u64::from_le_bytes(core::array::from_fn(|i| self.byte(at + i as u32)))
    }
    // Behind a window there is whatever was there before.
    fn byte(&self, at: u32) -> u8 {
        self.0.get(at as usize).copied().unwrap_or(0x5a)
    }
    fn fields(&self) -> *mut Fields {
        core::ptr::null_mut()
    }
}

const TRACE: [u64; 2] = [0x0af7_6519_16cd_43dd, 0x8448_eb21_1c80_319c];

/// What a stream came with: nothing, a trace, or something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Context {
    Absent,
    Ours,
    Other,
}

type Came = (u32, Context);

use Context::{Absent, Other, Ours};

/// True if this was found for that: what is cut is not known.
fn is_right(found: &[Came], want: &[Came]) -> bool {
    let mut pairs = found.iter().zip(want);
    found.len() == want.len()
        && pairs.all(|(found, want)| found == want || (*found == (want.0, Other) && want.1 == Ours))
}

/// A connection's bytes, and what it sends in them.
#[derive(Clone, Debug, Default)]
struct Sent {
    bytes: Vec<u8>,
    frames: Vec<Frame>,
}

impl Sent {
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.bytes.extend([0; 9]);
        self.frames.push(Frame {
            stream,
            kind,
            flags,
            at: self.bytes.len() as u32,
            length: payload.len() as u32,
        });
        self.bytes.extend_from_slice(payload);
    }

    /// A block in parts that end at these places.
    fn block(&mut self, stream: u32, flags: u8, block: &[u8], cuts: &[usize]) {
        let mut payload = Vec::new();
        if flags & flag::PADDED != 0 {
            payload.push(3);
        }
        if flags & flag::PRIORITY != 0 {
            payload.extend([9; 5]);
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (block.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(block.len());
        let mut before = 0;
        for (i, cut) in cuts.iter().enumerate() {
            payload.extend_from_slice(&block[before..*cut]);
            before = *cut;
            let ends = if i + 1 == cuts.len() {
                flag::END_HEADERS
            } else {
                0
            };
            if i == 0 {
                if flags & flag::PADDED != 0 {
                    payload.extend([0; 3]);
                }
                self.frame(HEADERS, flags | ends, stream, &payload);
            } else {
                self.frame(CONTINUATION, ends, stream, &payload);
            }
            payload.clear();
        }
    }
}

/// Reads it in windows of these sizes, the last one again and again; `None` if nothing is known any more.
fn read(sent: &Sent, sizes: &[usize]) -> Option<Vec<Came>> {
    let mut blocks = Blocks::new(1);
    let mut came = Vec::new();
    let mut begin = 0;
    let mut sizes = sizes.iter();
    let mut size = sent.bytes.len();
    while begin < sent.bytes.len() {
        size = sizes.next().copied().unwrap_or(size).max(1);
        let end = (begin + size).min(sent.bytes.len());
        // Those whose header ends in the window.
        let frames: Vec<Frame> = (sent.frames.iter())
            .filter(|frame| (begin + 1..=end).contains(&(frame.at as usize)))
            .map(|frame| Frame {
                at: frame.at - begin as u32,
                ..*frame
            })
            .collect();
        let window = &sent.bytes[begin..end];
        // SAFETY: a local of this function.
        unsafe { super::begin(&mut blocks) };
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 10_000, "no end");
            let frame = |index: u32| frames.get(index as usize).copied();
            // SAFETY: as above.
            match unsafe { step(&Bytes(window), window.len() as u32, &mut blocks, frame) } {
                Progress::GoesOn => {}
                Progress::Ended => {
                    let context = match blocks.state {
                        known::ABSENT => Absent,
                        known::W3C => {
                            assert_eq!(blocks.trace, TRACE);
                            Ours
                        }
                        _ => Other,
                    };
                    came.push((blocks.stream, context));
                }
                Progress::Done => break,
                Progress::Lost => return None,
            }
        }
        begin = end;
    }
    Some(came)
}

fn ours() -> Vec<u8> {
    let mut field = [0; FIELD_BYTES];
    let ids = [TRACE[0], TRACE[1], 7];
    // SAFETY: the field is as long as that.
    unsafe { crate::context::field(&ids, 1, field.as_mut_ptr()) };
    field.to_vec()
}

fn encoded(fields: &[(&str, &str)], flags: u8) -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut block = Vec::new();
    for (name, value) in fields {
        let field = (name.as_bytes().to_vec(), value.as_bytes().to_vec(), flags);
        encoder.encode(field, &mut block).expect("encodes");
    }
    block
}

/// Scenario: blocks of all kinds, in one window and cut in two at every byte. Guarantees: the trace is found as it was
/// written where the window has all of it, and never another one; what is cut through is not taken for nothing.
#[test]
fn every_cut() {
    let plain = encoded(&[(":path", "/a/b"), ("x-long", &"v".repeat(300))], 0);
    let with = [plain.as_slice(), &ours()].concat();
    let mut sent = Sent::default();
    sent.frame(4, 0, 0, &[0; 12]);
    sent.block(1, 0, &with, &[]);
    sent.frame(0, 1, 1, &[7; 20]);
    sent.block(3, flag::PADDED | flag::PRIORITY, &plain, &[]);
    sent.block(5, flag::PRIORITY, &with, &[2, 40]);
    sent.block(7, 0, &[0x82], &[]);
    let want = vec![(1, Ours), (3, Absent), (5, Ours), (7, Absent)];
    assert_eq!(read(&sent, &[]), Some(want.clone()));
    let (mut lost, mut other) = (0, 0);
    for cut in 1..sent.bytes.len() {
        let Some(found) = read(&sent, &[cut, usize::MAX / 2]) else {
            lost += 1;
            continue;
        };
        assert!(is_right(&found, &want), "{cut}: {found:?}");
        other += usize::from(found != want);
    }
    // Between a frame's header and how much of it is padding; through a field.
    assert_eq!((lost, other), (1, 2 * (FIELD_BYTES - 2)));
}

/// Scenario: context that is written in other ways. Guarantees: nothing is known from there on.
#[test]
fn other_fields_of_context() {
    let value = format!("00-{:016x}{:016x}-{:016x}-01", TRACE[0], TRACE[1], 7);
    for name in [
        "traceparent",
        "b3",
        "x-b3-traceid",
        "uber-trace-id",
        "x-amzn-trace-id",
        "x-datadog-trace-id",
    ] {
        // Indexed; plain; in the Huffman code.
        for flags in 0..8 {
            let mut sent = Sent::default();
            sent.block(1, 0, &encoded(&[(name, &value)], flags), &[]);
            let found = read(&sent, &[]);
            let is_known = matches!(found.as_deref(), Some([(1, Ours | Other)]));
            assert!(found.is_none() || is_known, "{name} {flags}: {found:?}");
        }
    }
    let mut field = ours();
    let mut check = |place: usize, byte: u8| {
        let before = core::mem::replace(&mut field[place], byte);
        let mut sent = Sent::default();
        sent.block(1, 0, &field, &[]);
        field[place] = before;
        read(&sent, &[])
    };
    assert_eq!(check(0, 0x40), None, "to be indexed");
    assert_eq!(check(0, 0x10), Some(vec![(1, Ours)]), "never to be indexed");
    assert_eq!(check(13, 0x36), Some(vec![(1, Other)]), "shorter");
    assert_eq!(check(14, b'1'), Some(vec![(1, Other)]), "another version");
    assert_eq!(check(20, b'A'), Some(vec![(1, Other)]), "no digit");
    let mut sent = Sent::default();
    sent.block(1, 0, &[ours(), ours()].concat(), &[]);
    assert_eq!(read(&sent, &[]), Some(vec![(1, Other)]), "twice");
}

/// Scenario: frames that may not follow each other, and lengths that cannot be. Guarantees: nothing is known.
#[test]
fn frames_that_make_no_sense() {
    let mut sent = Sent::default();
    sent.frame(CONTINUATION, 4, 1, &[0x82]);
    assert_eq!(read(&sent, &[]), None);
    let mut sent = Sent::default();
    sent.frame(HEADERS, 0, 1, &[0x82]);
    sent.frame(0, 0, 1, &[0x82]);
    assert_eq!(read(&sent, &[]), None);
    let mut sent = Sent::default();
    sent.frame(HEADERS, 4 | flag::PADDED, 1, &[9, 0x82]);
    assert_eq!(read(&sent, &[]), None);
    let mut sent = Sent::default();
    sent.frame(HEADERS, 4 | flag::PRIORITY, 1, &[0; 3]);
    assert_eq!(read(&sent, &[]), None);
    // A value that is longer than its block.
    let mut sent = Sent::default();
    sent.frame(HEADERS, 4, 1, &[0x04, 0x05, b'a']);
    assert_eq!(read(&sent, &[]), None);
}

fn fields() -> impl Strategy<Value = Vec<(String, String, u8)>> {
    let field = ("[a-z-]{1,20}", "[ -~]{0,60}", 0..8u8);
    prop::collection::vec(field, 0..12)
}

proptest! {
    /// Guarantees: however blocks and windows are cut, nothing else is found than what is there in one window, or
    /// nothing at all.
    #[test]
    fn any_cut(
        blocks in prop::collection::vec((fields(), any::<bool>(), any::<[u16; 2]>(), 0..4u8), 1..6),
        sizes in prop::collection::vec(1..400usize, 1..40),
    ) {
        let mut encoder = Encoder::default();
        let mut sent = Sent::default();
        let mut want = Vec::new();
        for (i, (fields, carries, cuts, kinds)) in blocks.into_iter().enumerate() {
            let mut block = Vec::new();
            for (name, value, flags) in fields {
                let field = (name.into_bytes(), value.into_bytes(), flags);
                encoder.encode(field, &mut block).expect("encodes");
            }
            if carries {
                block.extend(ours());
            }
            let stream = 2 * i as u32 + 1;
            let flags = (if kinds & 1 != 0 { flag::PADDED } else { 0 })
                | (if kinds & 2 != 0 { flag::PRIORITY } else { 0 });
            let cuts = if carries { vec![] } else { cuts.map(usize::from).to_vec() };
            sent.block(stream, flags, &block, &cuts);
            want.push((stream, if carries { Ours } else { Absent }));
        }
        prop_assert_eq!(read(&sent, &[]), Some(want.clone()));
        let found = read(&sent, &sizes);
        prop_assert!(found.is_none_or(|found| is_right(&found, &want)));
    }

    /// Guarantees: any bytes come to an end.
    #[test]
    fn any_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        kinds in prop::collection::vec((any::<u8>(), any::<u8>(), 0..60u32), 0..20),
        sizes in prop::collection::vec(1..100usize, 1..10),
    ) {
        let mut sent = Sent { bytes, frames: Vec::new() };
        let mut at = 0;
        for (kind, flags, length) in kinds {
            at += 9;
            sent.frames.push(Frame { stream: 1, kind: kind % 12, flags, at, length });
            at += length;
        }
        let _ = read(&sent, &sizes);
    }
}
