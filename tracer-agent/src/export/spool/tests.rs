//! The log on real files: order, bound, recovery from every way a file can be cut or damaged.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::log::{Log, Losses, Record};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("directory")
}

/// Message number `n`: its content tells it, its size varies.
fn message(n: u32) -> Vec<u8> {
    let mut bytes = n.to_le_bytes().to_vec();
    bytes.resize(4 + (n as usize * 37) % 200, n as u8);
    bytes
}

fn number(record: &Record) -> u32 {
    let bytes = record.message.first_chunk::<4>().expect("four bytes");
    let number = u32::from_le_bytes(*bytes);
    assert_eq!(record.message, message(number), "content of {number}");
    assert_eq!(record.spans, number % 7 + 1);
    number
}

fn append(log: &mut Log, n: u32) {
    log.append(n % 7 + 1, &message(n)).expect("append");
}

fn spans(numbers: impl IntoIterator<Item = u32>) -> u64 {
    numbers.into_iter().map(|n| u64::from(n % 7 + 1)).sum()
}

/// Everything that is given out, each settled.
fn drain(log: &mut Log) -> Vec<u32> {
    let mut numbers = Vec::new();
    while let Some(record) = log.take_next() {
        numbers.push(number(&record));
        log.settle(record.place);
    }
    numbers
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("directory");
    let paths = entries.map(|entry| entry.expect("entry").path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .collect();
    paths.sort();
    paths
}

const LARGE: u64 = 1 << 30;

#[test]
fn first_in_first_out_and_empty_takes_no_room() {
    let directory = directory();
    let mut log = Log::open(directory.path(), LARGE).expect("open");
    assert_eq!(log.take_next(), None);
    for n in 0..100 {
        append(&mut log, n);
    }
    assert_eq!(log.unread(), spans(0..100));
    assert_eq!(drain(&mut log), (0..100).collect::<Vec<_>>());
    assert_eq!((log.unread(), log.bytes()), (0, 0));
    assert!(segments(directory.path()).is_empty());
    append(&mut log, 7);
    assert_eq!(drain(&mut log), [7]);
    assert_eq!(log.take_losses(), Losses::default());
}

#[test]
fn what_was_not_settled_is_there_after_a_restart() {
    let directory = directory();
    let mut log = Log::open(directory.path(), LARGE).expect("open");
    for n in 0..10 {
        append(&mut log, n);
    }
    for _ in 0..4 {
        let record = log.take_next().expect("record");
        log.settle(record.place);
    }
    // Given out, but the end comes before the answer: once more.
    assert_eq!(number(&log.take_next().expect("record")), 4);
    drop(log);
    let mut log = Log::open(directory.path(), LARGE).expect("open");
    assert_eq!(log.unread(), spans(4..10));
    append(&mut log, 10);
    assert_eq!(drain(&mut log), (4..11).collect::<Vec<_>>());
    drop(log);
    // An emptied spool stays empty, and what comes after it is not taken for settled.
    let mut log = Log::open(directory.path(), LARGE).expect("open");
    assert_eq!(log.take_next(), None);
    append(&mut log, 11);
    drop(log);
    let mut log = Log::open(directory.path(), LARGE).expect("open");
    append(&mut log, 12);
    drop(log);
    let mut log = Log::open(directory.path(), LARGE).expect("open");
    assert_eq!(drain(&mut log), [11, 12]);
    assert_eq!(log.take_losses(), Losses::default());
}

#[test]
fn beyond_its_bound_the_oldest_are_dropped_and_counted() {
    let directory = directory();
    // 16 segments of 64 KiB.
    let bound = 1 << 20;
    let mut log = Log::open(directory.path(), bound).expect("open");
    let large = |n: u32| n.to_le_bytes().repeat(2500);
    let mut dropped = 0;
    for n in 0..500 {
        log.append(1, &large(n)).expect("append");
        assert!(log.bytes() <= bound, "{}", log.bytes());
        dropped += log.take_losses().full;
    }
    let on_disk: u64 = segments(directory.path())
        .iter()
        .map(|path| fs::metadata(path).expect("file").len())
        .sum();
    assert_eq!(on_disk, log.bytes());
    let mut left = VecDeque::new();
    while let Some(record) = log.take_next() {
        left.push_back(record.message[0] as u32 | (record.message[1] as u32) << 8);
        log.settle(record.place);
    }
    assert_eq!(dropped + left.len() as u64, 500);
    // The youngest are there, without a gap, and most of the room was used.
    let first = u32::try_from(dropped).expect("small");
    assert!(left.iter().copied().eq(first..500));
    assert!(left.len() > 90, "{}", left.len());
}

#[test]
fn a_message_larger_than_the_bound_is_refused() {
    let directory = directory();
    let mut log = Log::open(directory.path(), 100_000).expect("open");
    append(&mut log, 1);
    assert!(log.append(1, &[0; 100_000]).is_err());
    assert_eq!(drain(&mut log), [1]);
}

#[test]
fn a_record_in_hand_outlives_its_segment() {
    let directory = directory();
    let mut log = Log::open(directory.path(), 1 << 20).expect("open");
    log.append(3, &[1; 40_000]).expect("append");
    let held = log.take_next().expect("record");
    for _ in 0..60 {
        log.append(1, &[2; 40_000]).expect("append");
    }
    let dropped = log.take_losses().full;
    log.settle(held.place);
    // The three in hand are not among the dropped: they are the holder's to count.
    assert_eq!(dropped + log.unread(), 60);
}

#[test]
fn one_agent_at_a_time() {
    let directory = directory();
    let log = Log::open(directory.path(), LARGE).expect("open");
    let error = Log::open(directory.path(), LARGE).expect_err("locked");
    assert_eq!(error.to_string(), "another agent uses it");
    drop(log);
    Log::open(directory.path(), LARGE).expect("free again");
}

/// A spool of one segment with messages `0..count`, and where each record ends.
fn written(directory: &Path, count: u32) -> (PathBuf, Vec<u64>) {
    let mut log = Log::open(directory, LARGE).expect("open");
    let mut ends = vec![8];
    for n in 0..count {
        append(&mut log, n);
        ends.push(log.bytes());
    }
    drop(log);
    let [segment] = segments(directory).try_into().expect("one segment");
    (segment, ends)
}

/// Scenario: the end came in the middle of a write, at any byte. Guarantee: every whole record is
/// given out, nothing else is, what the torn one's header says is counted, and the spool goes on.
#[test]
fn every_truncation_point_recovers_to_the_whole_records() {
    let source = directory();
    let (segment, ends) = written(source.path(), 12);
    let whole = fs::read(&segment).expect("segment");
    for cut in 0..=whole.len() {
        let directory = directory();
        let name = segment.file_name().expect("name");
        fs::write(directory.path().join(name), &whole[..cut]).expect("write");
        let mut log = Log::open(directory.path(), LARGE).expect("open");
        let records = ends[1..].iter().filter(|end| **end <= cut as u64).count() as u32;
        let losses = log.take_losses();
        let torn = (cut as u64).saturating_sub(ends[records as usize]);
        let expected = match torn {
            0 => Losses::default(),
            1..16 => Losses {
                segments: 1,
                ..Losses::default()
            },
            _ => Losses {
                damaged: spans([records]),
                ..Losses::default()
            },
        };
        assert_eq!(losses, expected, "cut at {cut}");
        append(&mut log, 100);
        let expected: Vec<u32> = (0..records).chain([100]).collect();
        assert_eq!(drain(&mut log), expected, "cut at {cut}");
        assert_eq!(log.take_losses(), Losses::default(), "cut at {cut}");
        drop(log);
        let mut log = Log::open(directory.path(), LARGE).expect("open");
        assert_eq!(log.take_next(), None, "cut at {cut}");
        assert_eq!(log.take_losses(), Losses::default(), "cut at {cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Scenario: any byte of the file is changed. Guarantee: what is given out is what was
    /// written, in order; a damaged payload costs its own record only and is counted exactly.
    #[test]
    fn a_flipped_byte_never_gives_out_anything_wrong(at in 0usize..1400, flip in 1u8..) {
        let directory = directory();
        let (segment, ends) = written(directory.path(), 12);
        let mut bytes = fs::read(&segment).expect("segment");
        let at = at % bytes.len();
        bytes[at] ^= flip;
        fs::write(&segment, &bytes).expect("write");
        let mut log = Log::open(directory.path(), LARGE).expect("open");
        let mut losses = log.take_losses();
        let numbers = drain(&mut log);
        let later = log.take_losses();
        losses.damaged += later.damaged;
        losses.segments += later.segments;
        let expected: Vec<u32> = if at < 8 {
            prop_assert_eq!(losses.segments, 1);
            vec![]
        } else {
            let hit = ends[1..].iter().filter(|end| **end <= at as u64).count();
            let hit_number = hit as u32;
            if at as u64 - ends[hit] < 16 {
                prop_assert_eq!(losses, Losses { segments: 1, ..Losses::default() });
                (0..hit_number).collect()
            } else {
                let damaged = spans([hit_number]);
                prop_assert_eq!(losses, Losses { damaged, ..Losses::default() });
                (0..12).filter(|n| *n != hit_number).collect()
            }
        };
        prop_assert_eq!(numbers, expected);
    }

    /// Scenario: any mix of appending, delivering and restarting. Guarantee: a queue; after a
    /// restart the unsettled are there, and only the one in hand comes twice.
    #[test]
    fn it_is_a_queue_across_restarts(steps in prop::collection::vec(0u8..10, 1..120)) {
        let directory = directory();
        let mut log = Log::open(directory.path(), LARGE).expect("open");
        let mut model = VecDeque::new();
        let mut n = 0;
        for step in steps {
            match step {
                0..5 => {
                    append(&mut log, n);
                    model.push_back(n);
                    n += 1;
                }
                5..8 => {
                    let record = log.take_next();
                    prop_assert_eq!(record.as_ref().map(number), model.pop_front());
                    if let Some(record) = record {
                        log.settle(record.place);
                    }
                }
                8 => {
                    drop(log);
                    log = Log::open(directory.path(), LARGE).expect("open");
                }
                _ => {
                    let record = log.take_next();
                    prop_assert_eq!(record.as_ref().map(number), model.front().copied());
                    drop(log);
                    log = Log::open(directory.path(), LARGE).expect("open");
                }
            }
            prop_assert_eq!(log.unread(), spans(model.iter().copied()));
        }
        prop_assert_eq!(drain(&mut log), model.into_iter().collect::<Vec<_>>());
        prop_assert_eq!(log.take_losses(), Losses::default());
    }
}

#[test]
fn a_position_that_cannot_be_read_gives_everything_again() {
    let directory = directory();
    let (_, _) = written(directory.path(), 5);
    let mut log = Log::open(directory.path(), LARGE).expect("open");
    let record = log.take_next().expect("record");
    log.settle(record.place);
    drop(log);
    let position = directory.path().join("position");
    let mut bytes = fs::read(&position).expect("position");
    bytes[9] ^= 1;
    fs::write(&position, bytes).expect("write");
    let mut log = Log::open(directory.path(), LARGE).expect("open");
    assert_eq!(drain(&mut log), [0, 1, 2, 3, 4]);
}
