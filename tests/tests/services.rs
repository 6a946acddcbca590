//! The harness itself, without an agent: the driver gets the answer it asks for from every service,
//! also over connections opened before.

use std::time::Duration;

use tracer_tests::driver::{Driver, Plan, Report};
use tracer_tests::services::{Language, Service};
use tracer_tests::session::{skipped, unique};

const REQUESTS: usize = 1_500;

fn whole(report: &Report, service: &Service) {
    assert_eq!(report.records.len(), REQUESTS);
    let failures = report.failures();
    assert!(
        failures.is_empty(),
        "{} of {}: {} failed, first: {:#?}",
        REQUESTS,
        service.name,
        failures.len(),
        &failures[..failures.len().min(3)]
    );
    for record in &report.records {
        let asked = format!("&bytes={}&", record.response_bytes);
        let bodiless = record.method == "HEAD" || matches!(record.status, 204 | 304);
        let fixed = service.name == "nginx" && record.status != 200;
        assert!(
            bodiless || fixed || record.query.contains(&asked),
            "{record:?}"
        );
    }
    assert!(report.records.iter().any(|record| !record.reused));
    assert!(service.pids().iter().all(|pid| *pid != report.pid));
}

fn check(language: Language) {
    let service = match language.start() {
        Ok(service) => service,
        Err(reason) => return skipped(language.name(), &reason),
    };
    let mut plan = Plan::load(service.address, &unique(), REQUESTS, 32);
    whole(&plan.run(), &service);

    (plan.run, plan.preopen) = (unique(), true);
    // A sync worker serves a connection until it closes: with all of them warm, one would wait for ever.
    plan.warm = language != Language::GunicornSync;
    let mut driver = Driver::start(&plan);
    // What the start of an agent takes.
    std::thread::sleep(Duration::from_millis(300));
    driver.go();
    let report = driver.report();
    whole(&report, &service);
    assert_eq!(
        report
            .records
            .iter()
            .filter(|record| record.preopened && record.reused == plan.warm)
            .count()
            .min(32),
        32
    );
}

macro_rules! services {
    ($($name:ident: $language:ident,)*) => { $(
        #[test]
        fn $name() {
            check(Language::$language);
        }
    )* };
}

services! {
    nginx: Nginx,
    python_threaded: PythonThreaded,
    gunicorn_sync: GunicornSync,
    gunicorn_threads: GunicornThreads,
    node: Node,
    java: Java,
    go: Go,
    rust: Rust,
    c: C,
}
