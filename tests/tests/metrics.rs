//! Metrics count what was sent, exactly: on the page and over OTLP, at both ends, and by service.

use std::time::Duration;

use tracer_tests::agent::Start;
use tracer_tests::driver::{Driver, Plan, SERVICE_NAME};
use tracer_tests::metrics_receiver::MetricsReceiver;
use tracer_tests::process;
use tracer_tests::receiver::Receiver;
use tracer_tests::scrape::{self, Details, sum};
use tracer_tests::services::Language;
use tracer_tests::session::Session;

const REQUESTS: usize = 2_000;
const LIMIT: Duration = Duration::from_secs(120);

const SERVER: &str = "http_server_request_duration_seconds_count";
const CLIENT: &str = "http_client_request_duration_seconds_count";

#[test]
fn every_exchange_is_counted_once_at_each_end() {
    let Some(session) = Session::begin("metrics::every_exchange_is_counted_once_at_each_end")
    else {
        return;
    };
    let service = Language::Rust.start().expect("the Rust service");
    let (receiver, collector) = (Receiver::start(), MetricsReceiver::start());
    let agent = Start::new()
        .export_http(&receiver)
        .env("OTEL_METRICS_EXPORTER", "otlp")
        .env(
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
            format!("http://{}/v1/metrics", collector.address),
        )
        .env("OTEL_METRIC_EXPORT_INTERVAL", "500")
        .env("TRACER_BPF_STATS", "true")
        .ready();
    let plan = Plan::load(service.address, &session.run, REQUESTS, 8);
    let mut driver = Driver::start(&plan);
    let report = driver.report();
    assert!(report.failures().is_empty(), "{:?}", report.failures());
    assert!(receiver.wait_count(&session.run, 2 * REQUESTS, LIMIT));
    let ledger = agent.drained_ledger(LIMIT);
    assert_eq!(ledger.wrong_sums(), [] as [String; 0]);

    let page = scrape::open_metrics(agent.admin);
    assert!(page.ends_with("# EOF\n"));
    let samples = scrape::parse(&page).expect("a page of samples");
    let server = ("service_name", &*service.name);
    let client = ("service_name", SERVICE_NAME);
    assert_eq!(sum(&samples, SERVER, &[server]), REQUESTS as f64);
    assert_eq!(sum(&samples, CLIENT, &[client]), REQUESTS as f64);
    for status in [200u16, 404, 503] {
        let sent = report.records.iter();
        let sent = sent.filter(|record| record.status == status).count() as f64;
        let text = status.to_string();
        let label = ("http_response_status_code", &*text);
        assert_eq!(sum(&samples, SERVER, &[server, label]), sent, "{status}");
        assert_eq!(sum(&samples, CLIENT, &[client, label]), sent, "{status}");
    }
    // Every example leads to a span that was exported.
    let spans = receiver.spans_of(&session.run);
    let mut examples = 0;
    let ours = samples.iter().filter(|sample| {
        let name = sample.labels.get("service_name").map(String::as_str);
        name == Some(&service.name) || name == Some(SERVICE_NAME)
    });
    for exemplar in ours.filter_map(|sample| sample.exemplar.as_ref()) {
        examples += 1;
        assert!(
            spans
                .iter()
                .any(|span| exemplar.contains(&format!("trace_id=\"{}\"", span.trace_id))),
            "{exemplar}"
        );
    }
    assert!(examples > 0, "no exemplars in\n{page}");
    // A call whose entry was not noted may begin too late to be certain: few do.
    let edge = [("client", SERVICE_NAME), ("server", &*service.name)];
    let paired = sum(&samples, "traces_service_graph_request_total", &edge);
    assert!(
        (REQUESTS as f64 * 0.9..=REQUESTS as f64).contains(&paired),
        "{paired} of {REQUESTS} paired"
    );
    // Not asked for while a TLS library gets its probes.
    let runs = process::poll_until(LIMIT, || {
        let samples = scrape::parse(&agent.metrics()).expect("a page of samples");
        (sum(&samples, "tracer_agent_program_runs_total", &[]) > 0.0).then_some(())
    });
    assert!(runs.is_some(), "runs of eBPF programs");
    assert!(sum(&samples, "process_open_fds", &[]) > 0.0);

    let details = Details::parse(&agent.page("/ledger/services"));
    assert_eq!(details.wrong_sums(), [] as [String; 0]);
    for name in [&*service.name, SERVICE_NAME] {
        let row = details.services.get(name).expect("a row");
        assert_eq!(
            (row.seen, row.exported, row.pending),
            (REQUESTS as u64, REQUESTS as u64, 0),
            "{name}: {row:?}"
        );
    }
    assert!(details.bytes.parsed > 0 && details.bytes.skipped > 0);

    let stopped = agent.stop();
    for line in ["ledger of bytes", "ledger of a service"] {
        assert!(stopped.stderr.contains(line), "{line}: {}", stopped.stderr);
    }
    for (name, service) in [
        ("http.server.request.duration", &*service.name),
        ("http.client.request.duration", SERVICE_NAME),
    ] {
        let points = collector.histogram(name);
        let own = points.iter().filter(|(found, _)| found.contains(service));
        let count: u64 = own.map(|(_, point)| point.count).sum();
        assert_eq!(count, REQUESTS as u64, "{name}");
    }
}

#[test]
fn spans_arrive_within_seconds() {
    let Some(session) = Session::begin("metrics::spans_arrive_within_seconds") else {
        return;
    };
    // 2 s is the goal, with the machine to itself; a test must bear one that has other things to do.
    const BOUND: Duration = Duration::from_secs(30);
    let service = Language::Rust.start().expect("the Rust service");
    let collector = MetricsReceiver::start();
    let agent = Start::new()
        .env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://{}", collector.address),
        )
        .ready();
    let mut sent = 0;
    // Over several periods of the batches.
    for round in 0..8 {
        let run = format!("{}-{round}", session.run);
        sent += Plan::load(service.address, &run, 500, 4)
            .run()
            .records
            .len();
    }
    assert!(collector.wait_spans(2 * sent, LIMIT));
    let mut delays = collector.delays();
    delays.sort();
    let at = |part: f64| delays[(part * (delays.len() - 1) as f64) as usize];
    let (half, p99) = (at(0.5), at(0.99));
    println!(
        "end of response to receipt: p50 {half:?}, p99 {p99:?}, of {}",
        delays.len()
    );
    assert!(p99 < BOUND, "p99 {p99:?}");
    agent.stop();
}

#[test]
fn an_outage_of_the_metrics_backend_harms_nothing() {
    let Some(session) = Session::begin("metrics::an_outage_of_the_metrics_backend_harms_nothing")
    else {
        return;
    };
    let service = Language::Rust.start().expect("the Rust service");
    // Nobody listens there at first.
    let nowhere = tracer_tests::agent::free_address();
    let agent = Start::new()
        .env("OTEL_TRACES_EXPORTER", "none")
        .env("OTEL_METRICS_EXPORTER", "otlp")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{nowhere}"))
        .env("OTEL_METRIC_EXPORT_INTERVAL", "200")
        .ready();
    let report = Plan::load(service.address, &session.run, 100, 2).run();
    assert_eq!(report.records.len(), 100);
    let counted = process::poll_until(LIMIT, || {
        let samples = scrape::parse(&agent.metrics()).expect("a page of samples");
        let failed = [("exporter", "otlp_metrics"), ("outcome", "failed")];
        let failures = sum(&samples, "tracer_agent_export_attempts_total", &failed);
        (sum(&samples, SERVER, &[]) >= 100.0 && failures > 0.0).then_some(())
    });
    assert!(counted.is_some(), "{}", agent.metrics());
    let stopped = agent.stop();
    assert!(stopped.stderr.contains("cannot export metrics over otlp"));
}
