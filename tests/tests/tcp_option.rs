//! Trace context in TCP options: requests between two hosts with an agent each are one trace, under TLS too,
//! and nothing is in them that was not sent.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tracer_tests::agent::{Agent, Start};
use tracer_tests::hosts::TwoHosts;
use tracer_tests::process;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{self, build};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};
use tracer_tests::tls::Certificate;

const ARRIVAL: Duration = Duration::from_secs(120);
const REQUESTS: usize = 20;
/// Exchanges of one request: HTTP/1 under TLS, gRPC under TLS, gRPC, HTTP/2, HTTP/1 and HTTP/1.
const HOPS: usize = 6;
/// What it goes through.
const SERVICES: [&str; HOPS + 1] = ["ask", "go-hop", "nginx", "hop", "nginx", "Hop", "serve"];
/// Versions of HTTP, exchange by exchange, and whether it is a gRPC call.
const PROTOCOLS: [(&str, bool); HOPS] = [
    ("1.1", false),
    ("2", true),
    ("2", true),
    ("2", false),
    ("1.1", false),
    ("1.1", false),
];

/// Ended when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        process::end(&mut self.0);
    }
}

/// Starts a program that prints its port.
fn start(command: &mut Command) -> Result<(Ended, String), String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let started = command.spawn().map_err(|error| error.to_string())?;
    let mut program = Ended(started);
    let output = program.0.stdout.take().ok_or("stdout is piped")?;
    let port = process::first_line(output, ARRIVAL)
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    Ok((program, port.trim().to_owned()))
}

/// The five programs behind each other, each on the other host than the one before it.
struct Chain {
    first: String,
    _programs: Vec<Ended>,
}

fn chain(
    hosts: &TwoHosts,
    marks: [&str; 2],
    files: &Path,
    tls: &Certificate,
) -> Result<Chain, String> {
    let hop = |name: &str| services::source("hop").join(name);
    let [here, there] = TwoHosts::ADDRESSES;
    let mut python = hosts.command(0);
    python.arg(services::python()).arg(hop("serve.py"));
    let (python, port) = start(python.arg(here).arg(marks[0]))?;

    let mut java = hosts.command(1);
    java.arg("java").arg(hop("Hop.java")).arg(there);
    java.arg(format!("http://{here}:{port}")).arg(marks[1]);
    let (java, java_port) = start(&mut java)?;

    let mut node = hosts.command(1);
    node.arg("node").arg(hop("hop.js")).arg(there);
    node.arg(format!("http://{here}:8080")).arg(marks[1]);
    let (node, node_port) = start(&mut node)?;

    let root = files.join(marks[0]);
    std::fs::create_dir_all(&root).map_err(|error| error.to_string())?;
    let [certificate, key] = tls.arguments();
    let config = std::fs::read_to_string(hop("nginx.conf.in"))
        .map_err(|error| error.to_string())?
        .replace("@ROOT@", &root.display().to_string())
        .replace("@CERTIFICATE@", &certificate)
        .replace("@KEY@", &key)
        // Nobody else is on this host.
        .replace("@ADDRESS@", here)
        .replace("@GRPC@", &format!("{there}:{node_port}"))
        .replace("@NEXT@", &format!("http://{there}:{java_port}"));
    let file = root.join("nginx.conf");
    std::fs::write(&file, config).map_err(|error| error.to_string())?;
    let mut nginx = hosts.command(0);
    nginx
        .arg(build::nginx()?)
        .arg("-e")
        .arg(root.join("error.log"));
    nginx.arg("-p").arg(&root).arg("-c").arg(&file);
    let nginx = Ended(
        nginx
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?,
    );

    let mut go = hosts.command(1);
    go.arg(build::go("go-hop")?).arg(there);
    go.arg(format!("{here}:8443"))
        .args(tls.arguments())
        .arg(marks[1]);
    let (go, port) = start(&mut go)?;
    Ok(Chain {
        first: format!("https://{there}:{port}"),
        _programs: vec![python, java, node, nginx, go],
    })
}

/// Scenario: five programs in five languages, one of them passed twice, each hop to the other host, over HTTP/1,
/// HTTP/2 and gRPC, the first two under TLS; each host has an agent that sees only its own programs.
/// Guarantees: a request is one trace of all its twelve spans, in the order in which it went through them; but
/// for some where a program's own link is missing.
#[test]
fn five_runtimes_on_two_hosts() {
    const TEST: &str = "tcp_option::five_runtimes_on_two_hosts";
    let Some(session) = Session::begin(TEST) else {
        return;
    };
    let hosts = match TwoHosts::make() {
        Ok(hosts) => hosts,
        Err(reason) => return skipped(TEST, &format!("no network namespaces: {reason}")),
    };
    let marks = [0, 1].map(|host| format!("hop-{}-at-{host}", session.run));
    let marks = [marks[0].as_str(), marks[1].as_str()];
    let tls = Certificate::new().expect("a certificate");
    let files = TempDir::new().expect("a directory");
    let chain = match chain(&hosts, marks, files.path(), &tls) {
        Ok(chain) => chain,
        Err(reason) => return skipped(TEST, &reason),
    };
    let side = |host: usize| {
        let receiver = Receiver::start();
        let agent = Start::new()
            .arg("--propagate=option")
            .arg("--include-cmdline")
            .arg(marks[host])
            .export_http(&receiver)
            .ready_for_tls();
        (receiver, agent)
    };
    let sides = [side(0), side(1)];
    let said = "trace context is written into outgoing requests: in TCP options";
    if !sides.iter().all(|(_, agent)| agent.stderr().contains(said)) {
        return skipped(TEST, "this kernel has no TCP options of programs");
    }
    let ask = || {
        let mut ask = hosts.command(0);
        ask.arg(services::python())
            .arg(services::source("hop").join("ask.py"));
        ask.arg(&chain.first);
        ask
    };
    // Code that runs for the first time: functions are looked up, connections made.
    warm_up(&sides, &session.run, ask, marks[0]);
    process::run(
        ask()
            .args([&REQUESTS.to_string(), &session.run])
            .arg(marks[0]),
    )
    .expect("the requests");

    let marker = format!("hop/{}-", session.run);
    for (receiver, agent) in &sides {
        assert!(
            receiver.wait_count(&marker, REQUESTS * HOPS, ARRIVAL),
            "{} spans\n{}\n{}",
            receiver.spans_of(&marker).len(),
            agent.metrics(),
            agent.stderr()
        );
    }
    for (_, agent) in &sides {
        assert!(
            agent
                .metrics()
                .contains("tracer_agent_propagated_total{outcome=\"received\"}")
        );
    }
    let mut requests: BTreeMap<String, Vec<Span>> = BTreeMap::new();
    for (receiver, agent) in sides {
        drop(agent.stop());
        for span in receiver.spans_of(&marker) {
            requests.entry(path(&span)).or_default().push(span);
        }
    }
    assert_eq!(requests.len(), REQUESTS, "{:?}", requests.keys());
    // A link within a program may be missing where causality is not certain: never many, never a wrong one.
    for (path, spans) in &requests {
        assert_no_wrong_parent(path, spans);
    }
    let problems = requests
        .iter()
        .filter(|(path, spans)| !is_chain(path, spans));
    let broken = problems.count();
    assert!(
        broken * 4 <= REQUESTS,
        "{broken} of {REQUESTS} are not one trace"
    );
}

/// Asks until a request is one trace from the first program to the last one.
fn warm_up(sides: &[(Receiver, Agent); 2], run: &str, ask: impl Fn() -> Command, mark: &str) {
    let mut round = 0;
    let warm = process::poll_until(ARRIVAL, || {
        round += 1;
        let name = format!("warm{round}-{run}");
        process::run(ask().args(["2", &name]).arg(mark)).expect("a first request");
        let marker = format!("hop/{name}-1");
        let arrived = sides
            .iter()
            .all(|(receiver, _)| receiver.wait_count(&marker, HOPS, Duration::from_secs(5)));
        let spans: Vec<Span> = sides
            .iter()
            .flat_map(|(receiver, _)| receiver.spans_of(&marker))
            .collect();
        (arrived && problem(&spans).is_none()).then_some(())
    });
    if warm.is_none() {
        // What the requests proper show says more.
        eprintln!("no first request was one trace");
    }
}

fn path(span: &Span) -> String {
    let place = span
        .text("url.path")
        .or(span.text("url.full"))
        .or(span.text("rpc.method"))
        .unwrap_or_default();
    place.rsplit('/').next().unwrap_or_default().to_owned()
}

fn is_chain(path: &str, spans: &[Span]) -> bool {
    let problem = problem(spans);
    if let Some(problem) = &problem {
        for span in spans {
            println!(
                "{} {} {:?} {:?} {:?} {:?}",
                span.trace_id,
                span.span_id,
                span.parent,
                span.kind,
                span.service(),
                span.text("tracer.parent.method")
            );
        }
        println!("{path}: {problem}");
    }
    problem.is_none()
}

/// What the span of a step is.
#[derive(Debug, PartialEq, Eq)]
struct Step<'a> {
    kind: Kind,
    service: Option<&'a str>,
    version: Option<&'a str>,
    is_grpc: bool,
}

impl<'a> Step<'a> {
    fn expected(step: usize) -> Self {
        let kind = match step.is_multiple_of(2) {
            true => Kind::Client,
            false => Kind::Server,
        };
        let (version, is_grpc) = PROTOCOLS[step / 2];
        Step {
            kind,
            service: Some(SERVICES[step.div_ceil(2)]),
            // A gRPC call has no such attribute.
            version: (!is_grpc).then_some(version),
            is_grpc,
        }
    }

    fn of(span: &'a Span) -> Self {
        let is_grpc = span.text("rpc.method").is_some();
        Step {
            kind: span.kind,
            service: span.service(),
            version: span.text("network.protocol.version").filter(|_| !is_grpc),
            is_grpc,
        }
    }
}

/// Each span is that of another step, and below the one of the step before it, or below none.
fn assert_no_wrong_parent(path: &str, spans: &[Span]) {
    let at = |step: usize| {
        let expected = Step::expected(step);
        let mut found = spans.iter().filter(|span| Step::of(span) == expected);
        let (Some(span), None) = (found.next(), found.next()) else {
            panic!("{path}: step {step} is not one span: {spans:#?}");
        };
        span
    };
    for step in 0..2 * HOPS {
        let before = step.checked_sub(1).map(|step| at(step).span_id.clone());
        let parent = at(step).parent.clone();
        assert!(
            parent.is_none() || parent == before,
            "{path}: step {step} is below another: {spans:#?}"
        );
    }
}

/// What is wrong with the spans of one request.
fn problem(spans: &[Span]) -> Option<String> {
    if spans.len() != 2 * HOPS {
        return Some(format!("{} spans", spans.len()));
    }
    let mut above: Option<&Span> = None;
    for step in 0..2 * HOPS {
        let parent = above.map(|span| span.span_id.clone());
        let mut below = spans.iter().filter(|span| span.parent == parent);
        let (Some(span), None) = (below.next(), below.next()) else {
            return Some(format!("step {step} is not one span below {parent:?}"));
        };
        let (expected, found) = (Step::expected(step), Step::of(span));
        if found != expected {
            return Some(format!("step {step} is {found:?}, not {expected:?}"));
        }
        if span.trace_id != spans[0].trace_id {
            return Some(format!("step {step} is in another trace"));
        }
        above = Some(span);
    }
    None
}
