//! Capture formats, and files that are none.

use super::*;

/// Gives one byte per read, as the worst pipe would.
struct Dribble<'a>(&'a [u8]);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = buffer.len().min(1);
        self.0.read(&mut buffer[..n])
    }
}

/// Time, captured and wire length of a packet.
type Seen = (u64, usize, u32);

fn times_of(file: impl Read) -> Result<(Vec<Seen>, Ending), Error> {
    let mut packets = Vec::new();
    let ending = capture::read(file, |packet| {
        packets.push((packet.time_ns, packet.data.len(), packet.wire_len))
    })?;
    Ok((packets, ending))
}

/// One record of 4 captured bytes out of 9, 1.5 s after the epoch, in each flavour of pcap.
pub(super) fn flavours() -> Vec<(&'static str, Vec<u8>)> {
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
    // The caller names the file, and joins the reason of the system to it.
    let error = missing.expect_err("missing");
    assert!(
        error.to_string().starts_with("cannot open it; check"),
        "{error}"
    );
    let source = std::error::Error::source(&error).map(ToString::to_string);
    assert!(source.is_some_and(|source| source.starts_with("No such file")));
}
