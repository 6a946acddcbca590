//! Services with an active OpenTelemetry SDK beside services without: plain → Python → plain → Node → plain →
//! Java → plain, and one receiver for the spans of the SDKs and of the agent. From the first request on,
//! every request is told of exactly once at each end, and every parent is there and right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tracer_tests::agent::Start;
use tracer_tests::process::{poll_until, run};
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{Service, python, source, target_dir};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Kind, Span};

/// Requests over the whole chain, one after the other.
const REQUESTS: usize = 3;
/// The caller's span, which nobody reports.
const CALLER: &str = "00f067aa0ba902b7";
/// For all spans to arrive: SDKs and agent both wait on a busy machine.
const ARRIVAL: Duration = Duration::from_secs(120);

/// A service, and whether its spans are its SDK's.
struct Hop {
    service: Service,
    sdk: bool,
}

/// The command of a service with an SDK, whose arguments are still to come; or why it cannot be had.
fn with_sdk(name: &str, classes: &Path) -> Result<Command, String> {
    let otel = target_dir().join("otel");
    let there = |path: PathBuf| match path.exists() {
        true => Ok(path),
        false => Err(format!(
            "there is no {}: `cargo xtask setup --tests` installs it",
            path.display()
        )),
    };
    match name {
        "sdk-python" => {
            let wrapper = there(otel.join("python/bin/opentelemetry-instrument"))?;
            let interpreter = otel.join("python/bin/python");
            let mut command = Command::new(&interpreter);
            command.arg(wrapper).arg(interpreter);
            command.arg(source("sdk/app.py"));
            Ok(command)
        }
        "sdk-node" => {
            let modules = there(otel.join("node/node_modules"))?;
            let mut command = Command::new("node");
            command.env("NODE_PATH", modules);
            command.arg("--require").arg(source("sdk/instrument.js"));
            command.arg(source("sdk/app.js"));
            Ok(command)
        }
        _ => {
            let jar = there(otel.join("java/opentelemetry-javaagent.jar"))?;
            run(Command::new("javac")
                .arg("-d")
                .arg(classes)
                .arg(source("sdk/App.java")))?;
            let mut command = Command::new("java");
            command.args(["-Xshare:auto", "-XX:TieredStopAtLevel=1"]);
            command.arg(format!("-javaagent:{}", jar.display()));
            command.arg("-cp").arg(classes).arg("App");
            Ok(command)
        }
    }
}

fn plain(name: &str, next: Option<&Service>) -> Service {
    let mut command = Command::new(python());
    command.arg(source("sdk/plain.py"));
    command.args(next.map(|next| format!("http://{}", next.address)));
    command.env("OTEL_SERVICE_NAME", name);
    Service::named(name, command).expect("a plain service")
}

/// The chain from its front to its end.
fn chain(receiver: &Receiver, classes: &Path) -> Vec<Hop> {
    let hop = |service, sdk| Hop { service, sdk };
    let mut hops = vec![hop(plain("plain-end", None), false)];
    let end = format!("http://{}", hops[0].service.address);
    for (name, front) in [
        ("sdk-java", "plain-java"),
        ("sdk-node", "plain-node"),
        ("sdk-python", "plain-python"),
    ] {
        let mut command = match with_sdk(name, classes) {
            Ok(command) => command,
            Err(why) => {
                skipped(name, &why);
                continue;
            }
        };
        let next = &hops.last().expect("the end is there").service;
        command.arg(format!("http://{}", next.address)).arg(&end);
        command
            .env("OTEL_SERVICE_NAME", name)
            .env(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                format!("http://{}", receiver.http),
            )
            .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            .env("OTEL_METRICS_EXPORTER", "none")
            .env("OTEL_LOGS_EXPORTER", "none")
            .env("OTEL_BSP_SCHEDULE_DELAY", "1000");
        let service = Service::named(name, command).expect("a service with an SDK");
        hops.push(hop(service, true));
        let next = &hops.last().expect("just pushed").service;
        let front = plain(front, Some(next));
        hops.push(hop(front, false));
    }
    hops.reverse();
    hops
}

/// Asks the front of the chain from a process of its own.
fn ask(hops: &[Hop], path: &str, trace: &str) {
    let url = format!("http://{}{path}", hops[0].service.address);
    let traceparent = format!("00-{trace}-{CALLER}-01");
    run(Command::new(python())
        .arg(source("sdk/ask.py"))
        .args([&*url, &*traceparent]))
    .expect("an answer");
}

fn is_of_sdk(span: &Span) -> bool {
    // The agent says who made its spans; SDKs say that they are OpenTelemetry's.
    let own = |name: &str| name.starts_with("telemetry.distro");
    let distribution = span.resource.iter().find(|(name, _)| own(name));
    !distribution.is_some_and(|(_, value)| format!("{value:?}").contains("tracer-agent"))
}

/// The one span of a service and a kind.
fn one<'a>(spans: &'a [Span], service: &str, kind: Kind) -> &'a Span {
    let mut found = spans
        .iter()
        .filter(|span| span.service() == Some(service) && span.kind == kind);
    let first = found.next();
    let first = first.unwrap_or_else(|| panic!("no {kind:?} span of {service}: {spans:#?}"));
    let more = found.next();
    assert!(more.is_none(), "{service}: {first:#?} and {more:#?}");
    first
}

fn no_orphans(spans: &[Span], trace: &str) {
    let known: BTreeMap<&str, &Span> = spans.iter().map(|span| (&*span.span_id, span)).collect();
    assert_eq!(known.len(), spans.len(), "an id twice: {spans:#?}");
    for span in spans {
        assert_eq!(span.trace_id, trace, "{span:#?}");
        let parent = span.parent.as_deref();
        assert!(
            parent.is_some_and(|parent| parent == CALLER || known.contains_key(parent)),
            "an orphan: {span:#?} among {spans:#?}"
        );
    }
}

/// Every service passes the context on or is instrumented, so each hop's parent is the nearest SDK's
/// client span before it.
fn check_chain(hops: &[Hop], spans: &[Span], trace: &str) {
    no_orphans(spans, trace);
    let mut caller = CALLER.to_owned();
    for Hop { service, sdk } in hops {
        let name = &service.name;
        let server = one(spans, name, Kind::Server);
        assert_eq!(is_of_sdk(server), *sdk, "{server:#?}");
        assert_eq!(server.parent.as_deref(), Some(&*caller), "{server:#?}");
        if name == "plain-end" {
            continue;
        }
        let client = one(spans, name, Kind::Client);
        assert_eq!(is_of_sdk(client), *sdk, "{client:#?}");
        let above = if *sdk { &server.span_id } else { &caller };
        assert_eq!(client.parent.as_deref(), Some(&**above), "{client:#?}");
        if *sdk {
            caller.clone_from(&client.span_id);
        }
    }
    // The one more is that of the process that asked.
    assert_eq!(spans.len(), 2 * hops.len(), "{spans:#?}");
}

/// A call that the SDK does not see is ours, below the SDK's span of the request that it is made for.
fn check_aside(spans: &[Span], trace: &str) {
    no_orphans(spans, trace);
    let server = one(spans, "sdk-python", Kind::Server);
    let client = one(spans, "sdk-python", Kind::Client);
    let other_end = one(spans, "plain-end", Kind::Server);
    assert!(is_of_sdk(server) && !is_of_sdk(client), "{spans:#?}");
    assert_eq!(client.parent.as_ref(), Some(&server.span_id), "{spans:#?}");
    assert_eq!(
        other_end.parent.as_ref(),
        Some(&client.span_id),
        "{spans:#?}"
    );
    assert_eq!(spans.len(), 6, "{spans:#?}");
}

/// Calls have parents from the moment on when the agent follows the process: asks until one has.
fn follow(hops: &[Hop], receiver: &Receiver) {
    let mut number = 0;
    let followed = poll_until(ARRIVAL, || {
        number += 1;
        let path = format!("/aside/warm-up-{number}");
        let trace = format!("{:032x}", 0xfff000 + number);
        ask(hops, &path, &trace);
        receiver.wait_count(&path, 6, Duration::from_secs(10));
        let spans = receiver.spans_of(&path);
        let mut ours = spans.iter().filter(|span| !is_of_sdk(span));
        ours.all(|span| span.trace_id == trace).then_some(())
    });
    assert!(followed.is_some(), "the service is not followed");
}

#[test]
fn every_request_once_and_one_trace() {
    let Some(session) = Session::begin("sdk") else {
        return;
    };
    let receiver = Receiver::start();
    let classes = TempDir::new().expect("a directory");
    let agent = Start::new()
        .export_http(&receiver)
        // Exports of a busy machine come late.
        .env("TRACER_SDK_WAIT_MS", "30000")
        .ready();
    let hops = chain(&receiver, classes.path());
    let sdks = hops.iter().filter(|hop| hop.sdk).count();
    let python = hops.iter().any(|hop| hop.service.name == "sdk-python");
    let requests: Vec<(String, String)> = (0..REQUESTS)
        .map(|index| {
            (
                format!("/r/{}-{index}", session.run),
                format!("{:032x}", 0xabc0 + index),
            )
        })
        .collect();
    for (path, trace) in &requests {
        ask(&hops, path, trace);
    }
    let aside = (
        format!("/aside/{}", session.run),
        format!("{:032x}", 0xdef0),
    );
    if python {
        follow(&hops, &receiver);
        ask(&hops, &aside.0, &aside.1);
    }
    let expected = 2 * hops.len() * REQUESTS + if python { 6 } else { 0 };
    let arrived = receiver.wait_count(&session.run, expected, ARRIVAL);
    let left = (2 * sdks * REQUESTS + usize::from(python)) as u64;
    let counted = poll_until(Duration::from_secs(30), || {
        let dropped = agent.ledger().stage("exchanges").dropped.clone();
        (dropped.get("reported_by_sdk").copied().unwrap_or(0) >= left).then_some(())
    });
    let ledger = agent.ledger();
    let stopped = agent.stop();
    assert!(
        arrived,
        "{} of {expected} spans: {:#?}\n{}",
        receiver.spans_of(&session.run).len(),
        receiver.spans_of(&session.run),
        stopped.stderr
    );
    assert!(counted.is_some(), "{left} left to SDKs: {ledger:#?}");
    for (path, trace) in &requests {
        check_chain(&hops, &receiver.spans_of(path), trace);
    }
    if python {
        check_aside(&receiver.spans_of(&aside.0), &aside.1);
    }
}
