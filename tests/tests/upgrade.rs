//! Connections that change from HTTP/1.1 to HTTP/2 (`Upgrade: h2c`), live: curl, nghttp and the
//! JDK's client against Go's h2c server, and peers that cut their bytes anywhere. One SERVER and one
//! CLIENT span for each request: for the upgraded one with its HTTP/2 answer, for all behind it, and
//! for those whose upgrade was refused.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use tracer_tests::agent::Start;
use tracer_tests::check::path_of;
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{Service, build, source};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};

/// Method, path, status and protocol version.
type Row = (String, String, i64, String);

fn row(method: &str, path: &str, status: i64, version: &str) -> Row {
    (method.into(), path.into(), status, version.into())
}

fn rows(spans: &[Span], kind: Kind) -> BTreeMap<Row, usize> {
    let mut rows = BTreeMap::new();
    for span in spans.iter().filter(|span| span.kind == kind) {
        let text = |key| span.text(key).unwrap_or_default();
        let status = span.int("http.response.status_code").unwrap_or_default();
        let key = row(
            text("http.request.method"),
            path_of(span),
            status,
            text("network.protocol.version"),
        );
        *rows.entry(key).or_default() += 1;
    }
    rows
}

/// What the spans of a run must be, at both ends.
fn check(spans: &[Span], expected: &[Row]) {
    let mut wanted = BTreeMap::new();
    for row in expected {
        *wanted.entry(row.clone()).or_default() += 1;
    }
    for kind in [Kind::Server, Kind::Client] {
        assert_eq!(rows(spans, kind), wanted, "{kind:?}");
    }
    assert_eq!(spans.len(), 2 * expected.len(), "none extra");
}

fn service(arguments: &[&str]) -> Result<Service, String> {
    let mut command = Command::new(build::go_h2c()?);
    command.args(arguments);
    Service::unnamed("go-h2c", command)
}

/// What a client prints.
fn run(program: &str, arguments: &[String]) -> String {
    let mut command = Command::new(program);
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let output = output.expect(program);
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn real_clients() {
    let Some(session) = Session::begin("upgrade::real_clients") else {
        return;
    };
    let services = service(&[]).and_then(|first| Ok((first, service(&["http1"])?)));
    let (upgrading, refusing) = match services {
        Ok(services) => services,
        Err(reason) => return skipped("upgrade", &reason),
    };
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let run_id = &session.run;
    let url = |service: &Service, path: &str| format!("http://{}{path}/{run_id}", service.address);
    let mut expected = Vec::new();
    let mut expect = |method: &str, path: &str, status, version: &str| {
        expected.push(row(method, &format!("{path}/{run_id}"), status, version));
    };

    // A large body, so that what is left in the kernel must not hide what follows; and a second
    // request on the connection.
    let mut arguments = words(&["-s", "--http2", "-o", "/dev/null", "-o", "/dev/null"]);
    arguments.extend([
        url(&upgrading, "/size/700000"),
        url(&upgrading, "/status/404"),
    ]);
    run("curl", &arguments);
    expect("GET", "/size/700000", 200, "2");
    expect("GET", "/status/404", 404, "2");
    arguments = words(&["-s", "--http2", "-d", "a body", "-o", "/dev/null"]);
    arguments.push(url(&upgrading, "/curl-post"));
    run("curl", &arguments);
    expect("POST", "/curl-post", 200, "2");

    arguments = words(&["-s", "--http2", "-o", "/dev/null", "-o", "/dev/null"]);
    arguments.extend([url(&refusing, "/refused"), url(&refusing, "/refused-too")]);
    run("curl", &arguments);
    expect("GET", "/refused", 200, "1.1");
    expect("GET", "/refused-too", 200, "1.1");

    if build::has("nghttp") {
        arguments = words(&["-u", "-n"]);
        for number in 0..20 {
            let path = format!("/nghttp/{number}");
            arguments.push(url(&upgrading, &path));
            expect("GET", &path, 200, "2");
        }
        run("nghttp", &arguments);
    } else {
        skipped("upgrade: nghttp", "there is no nghttp");
    }

    if build::has("javac") {
        arguments = vec![source("java/Upgrade.java").display().to_string()];
        arguments.extend([url(&upgrading, "/java"), url(&upgrading, "/size/100000")]);
        arguments.extend(["post".to_owned(), url(&upgrading, "/java-post")]);
        assert_eq!(run("java", &arguments).matches("HTTP_2 200").count(), 3);
        expect("GET", "/java", 200, "2");
        expect("GET", "/size/100000", 200, "2");
        expect("POST", "/java-post", 200, "2");
    } else {
        skipped("upgrade: java", "there is no JDK");
    }

    let (spans, _) = finish(agent, &receiver, run_id, 2 * expected.len());
    check(&spans, &expected);
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short frame");
    let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, stream];
    bytes.extend(payload);
    bytes
}

/// HEADERS with a literal path, ending the stream.
fn get(stream: u8, path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).expect("short")];
    block.extend(path.as_bytes());
    frame(1, 5, stream, &block)
}

/// `:status: 200` and a body.
fn ok(stream: u8) -> Vec<u8> {
    [frame(1, 4, stream, &[0x88]), frame(0, 1, stream, b"body")].concat()
}

/// Writes in pieces of so many bytes.
fn write(stream: &mut TcpStream, bytes: &[u8], cut: usize) {
    for piece in bytes.chunks(cut) {
        stream.write_all(piece).expect("write");
    }
}

/// Reads exactly so many bytes, at most `cut` by a call.
fn read(stream: &mut TcpStream, mut left: usize, cut: usize) {
    let mut buffer = vec![0; cut.min(4096)];
    while left > 0 {
        let most = left.min(buffer.len());
        let n = stream.read(&mut buffer[..most]).expect("read");
        assert!(n > 0, "the peer closed early");
        left -= n;
    }
}

const AGREED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";

/// One upgraded connection of this process with itself; both ends cut their bytes alike.
fn upgraded(paths: [&str; 2], cut: usize, cut_preface: bool) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address: SocketAddr = listener.local_addr().expect("address");
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABk\r\n\r\n",
        paths[0]
    );
    let preface = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
    ]
    .concat();
    let first = [AGREED.into(), frame(4, 0, 0, &[]), ok(1)].concat();
    let (second, last) = (get(3, paths[1]), ok(3));
    let preface_cut = if cut_preface { cut } else { usize::MAX };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("accept");
            stream.set_nodelay(true).expect("an option");
            read(&mut stream, request.len(), cut);
            write(&mut stream, &first, cut);
            read(&mut stream, preface.len(), preface_cut);
            read(&mut stream, second.len(), cut);
            write(&mut stream, &last, cut);
            read(&mut stream, 1, 1);
        });
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.set_nodelay(true).expect("an option");
        write(&mut stream, request.as_bytes(), cut);
        read(&mut stream, first.len(), cut);
        write(&mut stream, &preface, preface_cut);
        write(&mut stream, &second, cut);
        read(&mut stream, last.len(), cut);
        // Lets the server end first.
        stream.write_all(&[0]).expect("write");
    });
}

/// Another protocol behind a 101.
fn websocket(path: &str) {
    const BYTES: usize = 300_000;
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address: SocketAddr = listener.local_addr().expect("address");
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n");
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x02hi";
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("accept");
            read(&mut stream, request.len(), 4096);
            write(&mut stream, answer, usize::MAX);
            read(&mut stream, BYTES, 4096);
        });
        let mut stream = TcpStream::connect(address).expect("connect");
        write(&mut stream, request.as_bytes(), usize::MAX);
        read(&mut stream, answer.len(), 4096);
        // Looks like another request, and is none.
        let inside = format!("GET {path}/inside HTTP/1.1\r\n\r\n");
        let mut bytes = vec![0x82; BYTES];
        bytes[1000..1000 + inside.len()].copy_from_slice(inside.as_bytes());
        write(&mut stream, &bytes, 1000);
    });
}

#[test]
fn any_split_and_other_protocols() {
    let Some(session) = Session::begin("upgrade::any_split_and_other_protocols") else {
        return;
    };
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let mut expected = Vec::new();
    for (name, cut, cut_preface) in [
        ("whole", usize::MAX, false),
        ("halves", 60, true),
        ("sevens", 7, false),
        ("bytes", 1, false),
        ("bytes-too", 1, true),
    ] {
        let paths = ["up", "next"].map(|what| format!("/{name}/{what}/{}", session.run));
        upgraded([&paths[0], &paths[1]], cut, cut_preface);
        expected.extend(paths.map(|path| row("GET", &path, 200, "2")));
    }
    let path = format!("/websocket/{}", session.run);
    websocket(&path);
    expected.push(row("GET", &path, 101, "1.1"));
    let (spans, _) = finish(agent, &receiver, &session.run, 2 * expected.len());
    check(&spans, &expected);
}
