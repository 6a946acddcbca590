//! Recording what passes on loopback, and what others make of the file: `tracer-agent replay`, and
//! tshark's HTTP/2 dissector.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::agent::binary;
use crate::span::{Span, from_json_lines};
use crate::{process, sys};

/// For a capture to end.
const LIMIT: Duration = Duration::from_secs(120);
/// Looks at a capture, 0.3 s apart, that must find it unchanged.
const QUIET_LOOKS: u32 = 5;

/// A running tcpdump; ended by pid.
#[derive(Debug)]
pub struct Tcpdump {
    child: Child,
    file: PathBuf,
}

impl Tcpdump {
    /// Records TCP of these ports on loopback, from before it returns.
    pub fn start(directory: &Path, ports: &[u16]) -> Result<Self, String> {
        let file = directory.join("run.pcap");
        let filter: Vec<String> = ports
            .iter()
            .map(|port| format!("tcp port {port}"))
            .collect();
        let mut child = Command::new("tcpdump")
            .args([
                "-i", "lo", "-s", "0", "-B", "32768", "-U", "-Z", "root", "-w",
            ])
            .arg(&file)
            .arg(filter.join(" or "))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("tcpdump: {error}"))?;
        let stderr = child.stderr.take().ok_or("stderr is piped")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut said = Vec::new();
        // "listening on lo" is its first or second line; without the right to it ends at once.
        let listens = lines.by_ref().map_while(Result::ok).any(|line| {
            let listens = line.contains("listening on");
            said.push(line);
            listens
        });
        // What it says at the end (its counts) must not fill the pipe; it ends with the process.
        std::thread::spawn(move || lines.for_each(drop));
        if listens {
            Ok(Self { child, file })
        } else {
            process::end(&mut child);
            Err(format!("tcpdump: {}", said.join(" | ")))
        }
    }

    /// Ends it once the file has everything: it reads the packets of a request made last.
    pub fn stop(mut self) -> PathBuf {
        // Packets reach it in blocks, which the kernel hands over once they are full or a second old.
        let (mut last, mut quiet) = (0, 0);
        let still = process::poll_until(LIMIT, || {
            std::thread::sleep(Duration::from_millis(300));
            let length = self.file.metadata().map_or(0, |meta| meta.len());
            let same = length > 0 && std::mem::replace(&mut last, length) == length;
            quiet = if same { quiet + 1 } else { 0 };
            (quiet >= QUIET_LOOKS).then_some(())
        });
        assert!(still.is_some(), "the capture does not end");
        sys::signal(self.child.id(), libc::SIGINT);
        let status = process::wait(&mut self.child, LIMIT).expect("tcpdump ends");
        assert!(status.success(), "tcpdump: {status}");
        std::mem::take(&mut self.file)
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}

/// The spans of `tracer-agent replay FILE`; all of them must mention the marker.
pub fn replayed(file: &Path, directory: &Path, marker: &str) -> Vec<Span> {
    let out = directory.join("replay.jsonl");
    let output = Command::new(binary())
        .arg("replay")
        .arg(file)
        .arg("--otlp-file")
        .arg(&out)
        .output()
        .expect("run replay");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let text = std::fs::read_to_string(&out).expect("what replay wrote");
    let spans = from_json_lines(&text).expect("OTLP/JSON");
    let others: Vec<_> = spans.iter().filter(|span| !span.mentions(marker)).collect();
    assert!(others.is_empty(), "{others:?}\n{stderr}");
    println!("{stderr}");
    spans
}

/// True if tshark is installed.
pub fn has_tshark() -> bool {
    let mut command = Command::new("tshark");
    command.arg("--version").stdout(Stdio::null());
    command.stderr(Stdio::null()).status().is_ok()
}

/// What tshark saw of one HTTP/2 stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// Fields of the request's header blocks.
    pub request: BTreeMap<String, String>,
    /// Fields of the response's header blocks, trailers included.
    pub response: BTreeMap<String, String>,
    /// Somebody reset it.
    pub reset: bool,
}

/// The streams of a capture by the client's port and their number, by tshark. `dissector` is what
/// the server's port is decoded as.
pub fn http2_streams(file: &Path, server: u16, dissector: &str) -> BTreeMap<(u64, u64), Stream> {
    let output = Command::new("tshark")
        .arg("-r")
        .arg(file)
        .arg("-d")
        .arg(format!("tcp.port=={server},{dissector}"))
        .arg("-Y")
        .arg(format!("http2.streamid && tcp.port == {server}"))
        .args(["-T", "json", "--no-duplicate-keys", "-J", "tcp http2"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .expect("run tshark");
    assert!(output.status.success(), "tshark: {}", output.status);
    let packets: Vec<Value> = serde_json::from_slice(&output.stdout).expect("tshark's JSON");
    let mut streams = BTreeMap::new();
    for packet in &packets {
        let layers = &packet["_source"]["layers"];
        let port = |end: &str| number(&layers["tcp"][end]);
        let (from, to) = (port("tcp.srcport"), port("tcp.dstport"));
        let is_request = to == u64::from(server);
        let client = if is_request { from } else { to };
        for_each_frame(&layers["http2"], &mut |frame| {
            let id = number(&frame["http2.streamid"]);
            if id == 0 {
                return;
            }
            let stream: &mut Stream = streams.entry((client, id)).or_default();
            stream.reset |= frame["http2.type"] == "3";
            let fields = if is_request {
                &mut stream.request
            } else {
                &mut stream.response
            };
            for header in list(&frame["http2.header"]) {
                let text = |key: &str| header[key].as_str().unwrap_or_default().to_owned();
                fields.insert(text("http2.header.name"), text("http2.header.value"));
            }
        });
    }
    // Some clients give priorities to streams that they never open.
    streams.retain(|_, stream| !stream.request.is_empty() || !stream.response.is_empty());
    streams
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().unwrap_or_default();
    text.parse().unwrap_or_default()
}

/// tshark writes one of a thing as itself and several as a list.
fn list(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        Value::Null => &[],
        one => std::slice::from_ref(one),
    }
}

fn for_each_frame(layers: &Value, each: &mut impl FnMut(&Value)) {
    for layer in list(layers) {
        for frame in list(&layer["http2.stream"]) {
            each(frame);
        }
    }
}
