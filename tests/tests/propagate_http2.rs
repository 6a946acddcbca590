//! Fields that the agent writes into requests of HTTP/2: nothing else of what is sent changes, the ids on the wire
//! are those of the spans that are exported, and libraries of many languages take them.

use std::collections::HashMap;
use std::io::{IoSlice, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use tracer_tests::agent::{Agent, Start};
use tracer_tests::finish::{finish, finish_own};
use tracer_tests::frames::{PREFACE, flag, frame, kind, literal, string, without_fields};
use tracer_tests::grpc::{Client, Peer, plain};
use tracer_tests::receiver::Receiver;
use tracer_tests::services::Service;
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};

/// A read that takes longer is a stall.
const PATIENCE: Duration = Duration::from_secs(60);
/// `traceparent` in the Huffman code.
const CODED: &[u8] = b"\x4d\x83\x21\x6b\x1d\x85\xa9\x3f";

/// What is odd about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Oddity {
    Nothing,
    /// Writes end anywhere.
    Cut,
    /// Some heads go on in CONTINUATION frames.
    Continued,
    /// One request carries context, plain or coded.
    Context,
    /// Names of context are in the values of other fields.
    Value,
}

/// What a client writes on a connection.
struct Script {
    writes: Vec<Vec<u8>>,
    streams: Vec<u32>,
    /// Streams that begin before the connection is to be left alone.
    may_have: usize,
    oddity: Oddity,
}

/// One head: method, scheme, path, and some fields.
fn block(rng: &mut fastrand::Rng, path: &str, context: Option<Vec<u8>>, names: bool) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04];
    string(&mut block, path.as_bytes());
    // :authority, indexed.
    block.push(0x41);
    string(&mut block, b"test");
    for i in 0..rng.usize(..8) {
        let first = [0x40, 0, 0x10][rng.usize(..3)];
        let value = "v".repeat(match rng.u8(..10) {
            0 => rng.usize(..700),
            _ => rng.usize(..60),
        });
        literal(&mut block, first, &format!("x-{i}"), &value);
    }
    if names {
        literal(&mut block, 0x40, "x-names", "traceparent");
        literal(
            &mut block,
            0,
            "x-more",
            "\u{b}traceparent\u{2}b3x-b3-traceid",
        );
    }
    block.extend(context.unwrap_or_default());
    block
}

fn script(rng: &mut fastrand::Rng, prefix: &str) -> Script {
    let oddity = match rng.u8(..10) {
        0 => Oddity::Cut,
        1 => Oddity::Continued,
        2 => Oddity::Context,
        3 => Oddity::Value,
        _ => Oddity::Nothing,
    };
    let mut writes = vec![PREFACE.to_vec()];
    let last = &mut writes[0];
    let settings = match rng.u8(..3) {
        0 => vec![],
        1 => vec![0, 3, 0, 0, 0, 100],
        _ => vec![0, 4, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0],
    };
    frame(last, kind::SETTINGS, 0, 0, &settings);
    if rng.bool() {
        frame(last, kind::WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]);
    }
    let requests = rng.usize(1..12);
    let odd_at = rng.usize(..requests);
    let (mut streams, mut stream, mut may_have) = (Vec::new(), 1, usize::MAX);
    for i in 0..requests {
        // With what is before, or in a write of its own.
        if rng.u8(..3) != 0 {
            writes.push(Vec::new());
        }
        let out = writes.last_mut().expect("one at least");
        let is_odd = i == odd_at;
        let context = (oddity == Oddity::Context && is_odd).then(|| {
            may_have = may_have.min(i);
            let value = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
            let mut field = Vec::new();
            if rng.bool() {
                literal(&mut field, 0x40, "traceparent", value);
            } else {
                field.extend_from_slice(&[0x40, 0x80 | CODED.len() as u8]);
                field.extend_from_slice(CODED);
                string(&mut field, value.as_bytes());
            }
            field
        });
        let path = format!("{prefix}-{stream}");
        let names = oddity == Oddity::Value;
        let mut payload = block(rng, &path, context, names);
        let ending = rng.u8(..3);
        let mut flags = if ending == 0 { flag::END_STREAM } else { 0 };
        if oddity == Oddity::Continued && is_odd {
            may_have = may_have.min(i);
            let cut = rng.usize(1..payload.len());
            frame(out, kind::HEADERS, flags, stream, &payload[..cut]);
            let goes_on = flag::END_HEADERS;
            frame(out, kind::CONTINUATION, goes_on, stream, &payload[cut..]);
        } else {
            flags |= flag::END_HEADERS;
            if rng.u8(..4) == 0 {
                flags |= flag::PRIORITY;
                payload.splice(..0, [0, 0, 0, 0, 15]);
            }
            if rng.u8(..4) == 0 {
                flags |= flag::PADDED;
                let padding = rng.u8(..40);
                payload.insert(0, padding);
                payload.extend(std::iter::repeat_n(0, usize::from(padding)));
            }
            frame(out, kind::HEADERS, flags, stream, &payload);
        }
        match rng.u8(..6) {
            0 => frame(out, kind::PING, 0, 0, &[7; 8]),
            1 => frame(out, kind::PRIORITY, 0, stream + 2, &[0, 0, 0, 0, 9]),
            2 => frame(out, kind::SETTINGS, 0, 0, &[0, 1, 0, 0, 0x10, 0]),
            // Of a kind that nobody knows.
            3 => frame(out, 0x77, 0xff, stream, b"grease"),
            _ => {}
        }
        if ending > 0 {
            for _ in 0..rng.u8(..3) {
                let most = if rng.u8(..8) == 0 { 16_000 } else { 500 };
                let data = vec![b'd'; rng.usize(..most)];
                frame(out, kind::DATA, 0, stream, &data);
            }
            if ending == 1 {
                frame(out, kind::DATA, flag::END_STREAM, stream, &[]);
            } else {
                let mut trailers = Vec::new();
                literal(&mut trailers, 0x40, "x-checksum", "1234");
                let flags = flag::END_STREAM | flag::END_HEADERS;
                frame(out, kind::HEADERS, flags, stream, &trailers);
            }
        }
        streams.push(stream);
        stream += 2 * rng.u32(1..3);
    }
    if oddity == Oddity::Cut {
        let all = writes.concat();
        writes = Vec::new();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let (piece, next) = rest.split_at(rng.usize(1..=rest.len().min(3000)));
            writes.push(piece.to_vec());
            rest = next;
        }
    }
    Script {
        writes,
        streams,
        may_have,
        oddity,
    }
}

/// Writes it all, in as many vectors as the dice say.
fn write(client: &mut TcpStream, bytes: &[u8], rng: &mut fastrand::Rng) {
    if rng.bool() || bytes.len() < 8 {
        return client.write_all(bytes).expect("write");
    }
    let parts: Vec<_> = bytes.chunks(bytes.len() / rng.usize(1..8)).collect();
    let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let written = client.write_vectored(&slices).expect("write");
    client.write_all(&bytes[written..]).expect("write");
}

/// What arrived of a script, and which fields were added.
struct Arrived {
    fields: Vec<(u32, String)>,
    streams: usize,
}

/// Runs a script over a connection of its own, compares what arrives with what was sent, answers.
fn exchange(listener: &TcpListener, rng: &mut fastrand::Rng, prefix: &str) -> Arrived {
    let script = script(rng, prefix);
    let mut client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (mut server, _) = listener.accept().expect("accept");
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    }
    client.set_nodelay(true).expect("nodelay");
    let sent = script.writes.concat();
    let mut arrived = Vec::with_capacity(sent.len() + 1000);
    std::thread::scope(|scope| {
        let (client, writes, rng) = (&mut client, &script.writes, &mut *rng);
        let writer = scope.spawn(move || {
            for bytes in writes {
                write(client, bytes, rng);
            }
        });
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let (rest, _) = without_fields(&arrived);
            if rest.len() >= sent.len() {
                break;
            }
            let n = server.read(&mut buffer).expect("the requests arrive");
            assert!(n > 0, "the connection ended");
            arrived.extend_from_slice(&buffer[..n]);
        }
        writer.join().expect("writer");
    });
    let (rest, fields) = without_fields(&arrived);
    let (oddity, streams) = (script.oddity, &script.streams);
    assert!(rest == sent, "{prefix} ({oddity:?}) arrived changed");
    for (stream, _) in &fields {
        let index = streams.iter().position(|known| known == stream);
        let index = index.expect("a stream that was begun");
        assert!(
            index < script.may_have,
            "{prefix} ({oddity:?}): {stream} got a field"
        );
    }
    let mut answers = Vec::new();
    frame(&mut answers, kind::SETTINGS, 0, 0, &[]);
    for stream in streams {
        let flags = flag::END_STREAM | flag::END_HEADERS;
        frame(&mut answers, kind::HEADERS, flags, *stream, &[0x88]);
    }
    server.write_all(&answers).expect("answer");
    let mut read = vec![0; answers.len()];
    client.read_exact(&mut read).expect("the answers arrive");
    assert_eq!(read, answers);
    client.shutdown(Shutdown::Both).expect("shutdown");
    Arrived {
        fields,
        streams: streams.len(),
    }
}

/// An agent that writes headers. This kernel's fault in FIONREAD, if it has it, is none to who never asks.
fn agent(test: &str, receiver: &Receiver, scope: impl FnOnce(Start) -> Start) -> Option<Agent> {
    let agent = scope(Start::new().arg("--propagate=always"))
        .export_http(receiver)
        .ready();
    let said = "trace context is written into outgoing requests";
    if !agent.stderr().contains(said) {
        skipped(test, "this kernel does not let headers be written");
        return None;
    }
    Some(agent)
}

fn injected(agent: &Agent) -> String {
    let page = agent.metrics();
    let lines = page.lines();
    let lines: Vec<_> = lines
        .filter(|line| line.starts_with("tracer_agent_propagated_total"))
        .collect();
    lines.join("\n")
}

/// Scenario: connections of random shapes: several requests in one write, padding, priorities, trailers, settings in
/// between, heads in pieces, writes that end anywhere, requests with context of their own.
/// Guarantees: what arrives is what was sent but for one field in heads of requests; never on a connection on which a
/// request carried context, or was not whole; the ids are those of the client span, and the server span
/// is its child; nothing is lost or waits.
#[test]
fn only_the_field_is_added() {
    const TEST: &str = "propagate_http2::only_the_field_is_added";
    const CONNECTIONS: usize = 250;
    let Some(session) = Session::begin(TEST) else {
        return;
    };
    let receiver = Receiver::start();
    let Some(agent) = agent(TEST, &receiver, Start::only_this_process) else {
        return;
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let mut rng = fastrand::Rng::with_seed(21);
    let (mut sent, mut headers) = (0, HashMap::new());
    for i in 0..CONNECTIONS {
        let prefix = format!("/h2/{}-{i}", session.run);
        let arrived = exchange(&listener, &mut rng, &prefix);
        sent += arrived.streams;
        for (stream, value) in arrived.fields {
            headers.insert(format!("{prefix}-{stream}"), value);
        }
    }
    println!("{} of {sent} requests got a field", headers.len());
    assert!(headers.len() > sent / 10, "{}", injected(&agent));
    // The page tells of it some seconds later; of the connections one in ten is made so.
    let told = tracer_tests::process::poll_until(PATIENCE, || {
        let line = "tracer_agent_propagated_total{outcome=\"present\"} ";
        let page = agent.metrics();
        let count = page.lines().find_map(|text| text.strip_prefix(line))?;
        (count.parse::<u64>().ok()? >= 5).then_some(())
    });
    assert!(told.is_some(), "{}", injected(&agent));
    let (spans, _) = finish(agent, &receiver, &format!("/h2/{}-", session.run), 2 * sent);
    assert_eq!(spans.len(), 2 * sent, "one span at each end");
    let ends: HashMap<(Kind, &str), &Span> = spans
        .iter()
        .filter_map(|span| Some(((span.kind, path(span)?), span)))
        .collect();
    for (path, value) in &headers {
        let end = |kind| {
            ends.get(&(kind, path.as_str()))
                .unwrap_or_else(|| panic!("{path}: no {kind:?} span"))
        };
        let (client, server) = (end(Kind::Client), end(Kind::Server));
        let wire = format!("00-{}-{}-03", client.trace_id, client.span_id);
        assert_eq!(*value, wire, "{path}");
        assert_eq!(server.trace_id, client.trace_id, "{path}");
        assert_eq!(server.parent.as_ref(), Some(&client.span_id), "{path}");
        assert_eq!(server.text("tracer.parent.method"), Some("context"));
    }
}

fn path(span: &Span) -> Option<&str> {
    let place = span.text("url.path").or(span.text("url.full"))?;
    place.find("/h2/").map(|at| &place[at..])
}

/// By hand: `cargo test --release -p tracer-tests --test propagate_http2 -- --ignored --nocapture`. So many connections
/// as `TRACER_SOAK` says, without an agent and with one that writes fields.
#[test]
#[ignore = "takes minutes"]
fn a_long_soak() {
    const TEST: &str = "propagate_http2::a_long_soak";
    let Some(session) = Session::begin(TEST) else {
        return;
    };
    let count = std::env::var("TRACER_SOAK").ok();
    let count = count.and_then(|text| text.parse().ok());
    let count: usize = count.unwrap_or(20_000);
    let receiver = Receiver::start();
    for propagates in [false, true] {
        let agent = match propagates {
            true => agent(TEST, &receiver, |start| {
                start
                    .only_this_process()
                    .env("OTEL_TRACES_SAMPLER", "always_off")
            }),
            false => None,
        };
        let begin = std::time::Instant::now();
        let parts = std::thread::scope(|scope| {
            let threads = (0..4).map(|thread| {
                let run = &session.run;
                scope.spawn(move || {
                    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
                    let mut rng = fastrand::Rng::with_seed(100 + thread);
                    let (mut sent, mut got) = (0, 0);
                    for i in 0..count / 4 {
                        let prefix = format!("/h2/{run}-{thread}-{i}");
                        let arrived = exchange(&listener, &mut rng, &prefix);
                        sent += arrived.streams;
                        got += arrived.fields.len();
                    }
                    (sent, got)
                })
            });
            let threads: Vec<_> = threads.collect();
            let parts = threads
                .into_iter()
                .map(|thread| thread.join().expect("a thread"));
            parts.collect::<Vec<_>>()
        });
        let sent: usize = parts.iter().map(|(sent, _)| sent).sum();
        let got: usize = parts.iter().map(|(_, got)| got).sum();
        println!(
            "propagate {propagates}: {sent} requests on {count} connections, {got} with a field, {:.0} a second",
            sent as f64 / begin.elapsed().as_secs_f64()
        );
        if let Some(agent) = agent {
            // What the page says of them is some seconds old.
            std::thread::sleep(Duration::from_secs(3));
            println!("{}", injected(&agent));
            drop(agent.stop());
        }
    }
}

/// Libraries as clients, each with the server of another one.
const PAIRS: [(Peer, Peer); 5] = [
    (Peer::Go, Peer::PythonSync),
    (Peer::PythonSync, Peer::Go),
    (Peer::Node, Peer::Rust),
    (Peer::Rust, Peer::Node),
    (Peer::Java, Peer::Go),
];

/// Scenario: clients of five gRPC libraries make calls of every kind, many at a time.
/// Guarantees: all calls end as they should; each has one span at each end, of one trace; libraries take the field,
/// which is in calls of most of them at least, and the server's agent reads it.
#[test]
fn grpc_libraries() {
    const TEST: &str = "propagate_http2::grpc_libraries";
    const CALLS: usize = 100;
    const METHODS: [&str; 4] = ["Unary", "ClientStream", "ServerStream", "Bidi"];
    let Some(_session) = Session::begin(TEST) else {
        return;
    };
    let mut pairs: Vec<(Service, Client)> = Vec::new();
    for (client, server) in PAIRS {
        let server = server.server();
        let started =
            server.and_then(|server| client.client(server.address).map(|client| (server, client)));
        match started {
            Ok(pair) => pairs.push(pair),
            Err(reason) => skipped(TEST, &reason),
        }
    }
    if pairs.is_empty() {
        return;
    }
    let pids: Vec<u32> = pairs
        .iter()
        .flat_map(|(server, client)| [server.pids()[0], client.pid()])
        .collect();
    let receiver = Receiver::start();
    let scope = |mut start: Start| {
        for pid in &pids {
            start = start.arg("--include-pid").arg(pid.to_string());
        }
        start
    };
    // None of the clients connects before its first call.
    let Some(agent) = agent(TEST, &receiver, scope) else {
        return;
    };
    for (server, client) in &mut pairs {
        let mut calls = plain(fastrand::u64(1..), 0, CALLS, &METHODS);
        for call in &mut calls {
            call.traceparent = None;
        }
        let done = client.run(&calls, 8);
        let failed = done.iter().find(|done| done.code != 0);
        assert!(
            failed.is_none(),
            "{} to {}: {failed:?}",
            client.name,
            server.name
        );
    }
    let counts = injected(&agent);
    let is_own = |span: &Span| {
        let is_ours = |pid: &u32| span.pid() == Some(i64::from(*pid));
        span.text("rpc.system.name") == Some("grpc") && pids.iter().any(is_ours)
    };
    let all = 2 * CALLS * pairs.len();
    let (spans, _) = finish_own(agent, &receiver, "grpc libraries", all, &[], is_own);
    assert_eq!(spans.len(), all, "one span at each end");
    let mut read_by = 0;
    for (server, client) in &pairs {
        let of = |pid: u32, kind: Kind| {
            let own = move |span: &&Span| span.pid() == Some(i64::from(pid)) && span.kind == kind;
            spans.iter().filter(own).collect::<Vec<_>>()
        };
        let clients = of(client.pid(), Kind::Client);
        let servers = of(server.pids()[0], Kind::Server);
        let traces: HashMap<&str, &str> = clients
            .iter()
            .map(|span| (span.span_id.as_str(), span.trace_id.as_str()))
            .collect();
        assert_eq!((clients.len(), servers.len()), (CALLS, CALLS));
        let mut read = 0;
        for span in servers {
            let Some(parent) = span.parent.as_deref() else {
                // Those whose ends were not joined have none.
                continue;
            };
            if let Some(trace) = traces.get(parent) {
                assert_eq!(*trace, span.trace_id, "{}", client.name);
                read += usize::from(span.text("tracer.parent.method") == Some("context"));
            }
        }
        println!(
            "{} to {}: {read} of {CALLS} with a field",
            client.name, server.name
        );
        read_by += usize::from(read > 0);
    }
    // Each has one connection, and one moment at which it can be seen from its first byte: on a busy machine one may
    // miss it, and is sent TCP options then.
    assert!(2 * read_by > pairs.len(), "{read_by} pairs: {counts}");
}
