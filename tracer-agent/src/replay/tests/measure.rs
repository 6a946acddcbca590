//! Measurements. `cargo test --release -p tracer-agent --lib replay::tests::measure -- --ignored
//! --nocapture --test-threads 1`

use super::*;

/// Takes the bytes and does nothing, to measure what comes before the parser.
#[derive(Default)]
struct Sink {
    bytes: u64,
    calls: u64,
    largest_rss_kib: u64,
}

impl Handler for Sink {
    type Session = ();

    fn open(&mut self, _: &Connection, _: Speaks) {}

    fn receive(&mut self, (): &mut (), _: &Owner, _: Direction, input: Input<'_>, _: &At) {
        if let Input::Bytes(bytes) = input {
            self.bytes += bytes.len() as u64;
        }
        self.calls += 1;
        if self.calls.is_multiple_of(1 << 16) {
            self.largest_rss_kib = self.largest_rss_kib.max(rss_kib());
        }
    }

    fn end(&mut self, (): &mut (), _: &Owner, _: End, _: &At) {}

    fn abandon(&mut self, (): (), _: &Owner) {}
}

/// Time this thread ran, which other programs on the machine do not lengthen.
fn cpu_ns() -> u64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("procfs");
    schedstat
        .split(' ')
        .next()
        .and_then(|ns| ns.parse().ok())
        .expect("a number")
}

fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("VmRSS");
    line.trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number")
}

#[test]
#[ignore = "a measurement, for release builds"]
fn speed() {
    let exchanges = 500_000;
    let mut capture = Vec::new();
    testdata::keep_alive(exchanges, 100, &mut capture).expect("memory");
    let report = |what: &str, packets: u64, start_ns: u64| {
        let ns = cpu_ns() - start_ns;
        println!(
            "{what}: {} ns/packet, {} exchanges/s",
            ns / packets,
            exchanges * 1_000_000_000 / ns
        );
    };
    for _ in 0..3 {
        let start = cpu_ns();
        let mut replay = Replay::new(Sink::default());
        stream(capture.as_slice(), &mut replay).expect("a capture");
        let (Sink { bytes, .. }, stats) = replay.finish();
        report("without parser", stats.packets, start);
        assert_eq!(bytes, stats.payload_bytes);

        let start = cpu_ns();
        let mut finished = 0u64;
        let mut replay = Replay::new(Exchanges::new(|_, _| finished += 1));
        stream(capture.as_slice(), &mut replay).expect("a capture");
        let (_, stats) = replay.finish();
        report("with parser", stats.packets, start);
        println!("{finished} exchanges");
    }
}

#[test]
#[ignore = "a measurement, writes a file of 570 MB"]
fn memory() {
    let mut file = tempfile::tempfile().expect("a file");
    testdata::keep_alive(2_000_000, 10_000, &mut file).expect("disk space");
    io::Seek::rewind(&mut file).expect("a file");
    let before = rss_kib();
    let mut replay = Replay::new(Sink::default());
    stream(file, &mut replay).expect("a capture");
    let (
        Sink {
            largest_rss_kib, ..
        },
        stats,
    ) = replay.finish();
    println!("{before} KiB before, {largest_rss_kib} KiB at most\n{stats}");
    assert!(largest_rss_kib.saturating_sub(before) < 32 << 10);
}
