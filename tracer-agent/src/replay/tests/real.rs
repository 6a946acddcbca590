//! Real traffic, recorded by tcpdump and counted by tshark as well.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

const SERVER: &str = r#"
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"x" * int(self.path.rsplit("/", 1)[-1])
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201); self.send_header("Content-Length", "2"); self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

/// Ends its process when it goes out of scope.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Segments, payload bytes and connections of a capture, by tshark.
fn by_tshark(file: &Path) -> (u64, u64, u64) {
    let fields = [
        "-T",
        "fields",
        "-e",
        "tcp.stream",
        "-e",
        "tcp.len",
        "-Y",
        "tcp",
    ];
    let output = Command::new("tshark")
        .arg("-r")
        .arg(file)
        .args(fields)
        .output()
        .expect("tshark");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("numbers");
    let mut connections = 0;
    let lengths = text.lines().map(|line| {
        let (connection, length) = line.split_once('\t').expect("two fields");
        connections = connections.max(connection.parse::<u64>().expect("a number") + 1);
        length.parse::<u64>().expect("a number")
    });
    let lengths: Vec<u64> = lengths.collect();
    (lengths.len() as u64, lengths.iter().sum(), connections)
}

fn replayed_file(path: &Path) -> (Vec<(u64, String)>, Stats) {
    let recorder = Recorder::default();
    let log = Rc::clone(&recorder.log);
    let mut replay = Replay::new(recorder);
    file(path, &mut replay).expect("a whole capture");
    let (_, stats) = replay.finish();
    assert_adds_up(&stats);
    (log.take(), stats)
}

/// How often it stands in what was recorded.
fn count(log: &[(u64, String)], what: &str) -> usize {
    log.iter().map(|(_, text)| text.matches(what).count()).sum()
}

#[test]
fn agrees_with_tshark_on_real_traffic() {
    for (tool, argument) in [
        ("tcpdump", "--version"),
        ("tshark", "--version"),
        ("mergecap", "--version"),
        ("editcap", "--version"),
        ("curl", "--version"),
        ("python3", "--version"),
    ] {
        if Command::new(tool).arg(argument).output().is_err() {
            println!("skipped: {tool} is not installed");
            return;
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Command::new("python3");
    let server = server
        .args(["-c", SERVER])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let mut server = Running(server);
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().expect("piped"))
        .read_line(&mut port)
        .expect("a port");
    let port = port.trim();

    let recorded: Vec<_> = [
        ("lo", "EN10MB", 262_144),
        ("any", "LINUX_SLL", 262_144),
        ("any", "LINUX_SLL2", 120),
    ]
    .into_iter()
    .map(|(interface, link, snaplen)| {
        let file = folder.path().join(format!("{interface}-{link}.pcap"));
        let mut tcpdump = Command::new("tcpdump");
        tcpdump.args([
            "-i",
            interface,
            "-y",
            link,
            "-s",
            &snaplen.to_string(),
            "-Z",
            "root",
        ]);
        tcpdump
            .args(["--immediate-mode", "-U", "-B", "16384", "-w"])
            .arg(&file)
            .arg(format!("tcp port {port}"));
        let mut tcpdump = Running(tcpdump.stderr(Stdio::piped()).spawn().expect("tcpdump"));
        let mut said = String::new();
        let mut stderr = BufReader::new(tcpdump.0.stderr.take().expect("piped"));
        while !said.contains("listening on") {
            if stderr.read_line(&mut said).expect("text") == 0 {
                println!("skipped: cannot record on {interface}: {said}");
                return None;
            }
        }
        Some((file, tcpdump, stderr))
    })
    .collect();
    if recorded.iter().any(Option::is_none) {
        return;
    }

    let body = folder.path().join("body");
    std::fs::write(&body, vec![b'b'; 100_000]).expect("a file");
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    for _ in 0..5 {
        let status = Command::new("curl")
            .args([
                "-s",
                "-o",
                "/dev/null",
                &url("/a/10"),
                "-o",
                "/dev/null",
                &url("/b/300000"),
            ])
            .args([
                "--next",
                "-s",
                "-o",
                "/dev/null",
                &url("/post"),
                "--data-binary",
            ])
            .arg(format!("@{}", body.display()))
            .status();
        assert!(status.expect("curl").success());
    }
    let status = Command::new("curl")
        .args(["-s", "-o", "/dev/null", &url("/last/0")])
        .status();
    assert!(status.expect("curl").success());

    let mut files = Vec::new();
    for (file, tcpdump, _stderr) in recorded.into_iter().flatten() {
        // The last packet of the last connection has no bytes to look for; its request has.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read(&file)
            .expect("a capture")
            .windows(9)
            .any(|bytes| bytes == b"GET /last")
        {
            assert!(Instant::now() < deadline, "tcpdump wrote no last request");
            std::thread::yield_now();
        }
        drop(tcpdump);
        files.push(file);
    }

    // Each packet twice, as pcapng.
    let twice = folder.path().join("twice.pcapng");
    let status = Command::new("mergecap")
        .arg("-w")
        .arg(&twice)
        .args([&files[0], &files[0]])
        .status();
    assert!(status.expect("mergecap").success());

    let compare = |file: &Path| {
        let (log, stats) = replayed_file(file);
        let ours = (stats.segments, stats.payload_bytes, stats.connections.all);
        assert_eq!(ours, by_tshark(file), "{}\n{stats}", file.display());
        assert_eq!(
            (stats.tcp.gaps, stats.connections.joined),
            (0, 0),
            "{stats}"
        );
        assert_eq!(count(&log, " HTTP/1.1\r\nHost: 127.0.0.1"), 16, "{stats}");
        (log, stats)
    };
    for file in &files[..2] {
        let (log, stats) = compare(file);
        assert_eq!(count(&log, "HTTP/1.1 201 Created\r\n"), 5, "{stats}");
        assert_eq!(
            count(&log, "HTTP/1.1 200 OK\r\n"),
            10 + count(&log, "/last/0 HTTP/1.1"),
            "{stats}"
        );
    }
    let (whole, stats) = compare(&files[0]);
    let (doubled, doubled_stats) = compare(&twice);
    assert_eq!(doubled, whole, "repetitions change nothing");
    assert_eq!(doubled_stats.tcp.delivered, stats.tcp.delivered);
    assert_eq!(
        doubled_stats.tcp.repeated,
        stats.tcp.delivered + 2 * stats.tcp.repeated
    );
    // The same bytes as far as they go, the rest told as lost.
    let (_, cut) = compare(&files[2]);
    assert!(cut.tcp.lost_cut > 5 * 390_000, "{cut}");
    println!("{stats}\n{cut}");
}
