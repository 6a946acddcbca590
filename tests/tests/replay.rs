//! Three witnesses of the same traffic agree: the live agent, `tracer-agent replay` of what tcpdump
//! recorded meanwhile, and tshark's HTTP dissector on the same file.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tracer_tests::agent::Start;
use tracer_tests::check::{path_of, tolerance_ns};
use tracer_tests::driver::{Plan, Report};
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{Language, Service};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};
use tracer_tests::wire::{Tcpdump, has_tshark, replayed};

/// Of each service.
const REQUESTS: usize = 500;
/// Few at a time: what waits in a queue is on its way for the capture and not yet there for the
/// server.
const CONCURRENCY: usize = 2;

/// One exchange as all witnesses can tell it.
type Exchange = (String, String, i64);

fn exchanges<'a>(spans: impl Iterator<Item = &'a Span>) -> BTreeMap<Exchange, usize> {
    let mut found = BTreeMap::new();
    for span in spans {
        let method = span.text("http.request.method").unwrap_or_default();
        let status = span.int("http.response.status_code").unwrap_or_default();
        let key = (method.to_owned(), path_of(span).to_owned(), status);
        *found.entry(key).or_default() += 1;
    }
    found
}

fn differences<'a>(
    a: &'a BTreeMap<Exchange, usize>,
    b: &'a BTreeMap<Exchange, usize>,
) -> Vec<(&'a Exchange, Option<usize>, Option<usize>)> {
    let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let both = keys
        .into_iter()
        .map(|key| (key, a.get(key).copied(), b.get(key).copied()));
    both.filter(|(_, a, b)| a != b).collect()
}

/// Fields of the frames that match, one row per message: a frame may have several.
fn tshark(file: &Path, ports: &[u16], filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command
        .arg("-r")
        .arg(file)
        .args(["-Y", filter, "-T", "fields"]);
    command.args(["-E", "occurrence=a", "-E", "aggregator=|"]);
    for port in ports {
        command.arg("-d").arg(format!("tcp.port=={port},http"));
    }
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .expect("run tshark");
    assert!(output.status.success(), "tshark: {}", output.status);
    let text = String::from_utf8(output.stdout).expect("text");
    let mut rows = Vec::new();
    for line in text.lines() {
        let columns: Vec<Vec<&str>> = line
            .split('\t')
            .map(|cell| cell.split('|').collect())
            .collect();
        let messages = columns.iter().map(Vec::len).max().unwrap_or(0);
        for message in 0..messages {
            rows.push(
                columns
                    .iter()
                    .map(|column| column.get(message).copied().unwrap_or_default().to_owned())
                    .collect(),
            );
        }
    }
    rows
}

fn path_only(uri: &str) -> String {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let path = rest.find('/').map_or("", |start| &rest[start..]);
    path.split('?').next().unwrap_or_default().to_owned()
}

/// The exchanges that tshark sees, by the frame of the request.
fn dissected(file: &Path, ports: &[u16]) -> BTreeMap<Exchange, usize> {
    let requests = tshark(
        file,
        ports,
        "http.request",
        &["frame.number", "http.request.method", "http.request.uri"],
    );
    let responses = tshark(
        file,
        ports,
        "http.response && http.response.code >= 200",
        &["http.response.code", "http.response_for.uri"],
    );
    assert_eq!(
        (requests.len(), responses.len()),
        (ports.len() * REQUESTS, ports.len() * REQUESTS),
        "tshark's requests and responses"
    );
    let mut by_path = BTreeMap::<String, Vec<i64>>::new();
    for response in &responses {
        by_path
            .entry(path_only(&response[1]))
            .or_default()
            .push(response[0].parse().expect("a status code"));
    }
    let mut found = BTreeMap::new();
    for request in &requests {
        let path = path_only(&request[2]);
        let statuses = by_path.remove(&path).unwrap_or_default();
        assert_eq!(statuses.len(), 1, "one response for {path}: {statuses:?}");
        *found
            .entry((request[1].clone(), path, statuses[0]))
            .or_default() += 1;
    }
    found
}

fn drive(service: &Service, run: &str) -> Report {
    let report = Plan::load(service.address, run, REQUESTS, CONCURRENCY).run();
    assert_eq!(
        report.failures(),
        Vec::<String>::new(),
        "the run itself failed"
    );
    report
}

/// Replayed durations that are too far from the live ones.
///
/// A request's first packet passes after the client's call began and before the server's read
/// returns, the response's last one likewise: the capture's duration lies between those of the two
/// live spans. On a busy machine these are apart by as long as the server waits for a CPU, which
/// the server's span cannot see; when nobody waits both say the same.
fn late(live: &[Span], replay: &[Span]) -> Vec<String> {
    let mut bounds = BTreeMap::<&str, [i128; 2]>::new();
    for span in live {
        let [server, client] = bounds.entry(path_of(span)).or_default();
        match span.kind {
            Kind::Server => *server = span.duration_ns(),
            _ => *client = span.duration_ns(),
        }
    }
    let wrong = replay.iter().filter_map(|span| {
        let [server, client] = bounds.get(path_of(span)).copied()?;
        let replay = span.duration_ns();
        let tolerance = |ns: i128| tolerance_ns(u64::try_from(ns).unwrap_or(0));
        let right = server - tolerance(server) <= replay && replay <= client + tolerance(client);
        (!right).then(|| {
            let us = [server, client, replay].map(|ns| ns / 1000);
            format!("{}: server, client, replay {us:?} us", path_of(span))
        })
    });
    wrong.collect()
}

fn check(test: &str, languages: [Language; 2]) {
    if !has_tshark() {
        return skipped(test, "tshark is not installed");
    }
    let Some(session) = Session::begin(test) else {
        return;
    };
    let services: Vec<Service> = match languages.into_iter().map(Language::start).collect() {
        Ok(services) => services,
        Err(reason) => return skipped(test, &reason),
    };
    let ports: Vec<u16> = services
        .iter()
        .map(|service| service.address.port())
        .collect();
    let directory = TempDir::new().expect("directory");
    let tcpdump = match Tcpdump::start(directory.path(), &ports) {
        Ok(tcpdump) => tcpdump,
        Err(reason) => return skipped(test, &reason),
    };
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    for (number, service) in services.iter().enumerate() {
        drive(service, &format!("{}n{number}", session.run));
    }
    let marker = format!("/r/{}n", session.run);
    let count = 2 * REQUESTS * services.len();
    let (spans, _) = finish(agent, &receiver, &marker, count);
    let file = tcpdump.stop();

    let live: Vec<&Span> = spans
        .iter()
        .filter(|span| span.kind == Kind::Server)
        .collect();
    let replay = replayed(&file, directory.path(), &marker);
    assert!(replay.iter().all(|span| span.kind == Kind::Server));
    let (of_live, of_replay) = (exchanges(live.iter().copied()), exchanges(replay.iter()));
    assert_eq!(of_live.values().sum::<usize>(), REQUESTS * services.len());
    let apart = differences(&of_live, &of_replay);
    assert!(
        apart.is_empty(),
        "{} (live, replay): {apart:#?}",
        apart.len()
    );
    let of_tshark = dissected(&file, &ports);
    let apart = differences(&of_replay, &of_tshark);
    assert!(
        apart.is_empty(),
        "{} (replay, tshark): {apart:#?}",
        apart.len()
    );

    let late = late(&spans, &replay);
    assert!(
        late.len() * 100 <= replay.len(),
        "{} of {}: {late:#?}",
        late.len(),
        replay.len()
    );
}

#[test]
fn rust_and_node() {
    check("replay::rust_and_node", [Language::Rust, Language::Node]);
}

#[test]
fn c_and_python() {
    check(
        "replay::c_and_python",
        [Language::C, Language::PythonThreaded],
    );
}
