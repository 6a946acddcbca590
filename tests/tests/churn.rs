//! A day of churn in little time: processes that live for a moment, a connection per request, paths
//! that never repeat. Memory stays flat and the ledger exact.
//!
//! The whole of it, 100,000 connections of 1,000 processes:
//! `TRACER_TESTS_REQUIRED=1 cargo test -p tracer-tests --test churn -- --ignored --nocapture`

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tracer_tests::agent::{Agent, Start};
use tracer_tests::driver::{Driver, Mix, Plan, SERVICE_NAME};
use tracer_tests::scrape::Details;
use tracer_tests::services::{Language, Service};
use tracer_tests::session::Session;

const LIMIT: Duration = Duration::from_secs(120);
/// Connections of one client process.
const CONNECTIONS: usize = 100;
/// Client processes at a time.
const LANES: usize = 3;

/// What a phase of churn did.
struct Churned {
    processes: usize,
    answered: usize,
}

/// Client processes one after the other in each lane, until `processes` were started or it is `until`.
fn churn(service: &Service, run: &str, processes: usize, until: Instant) -> Churned {
    let (started, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                while Instant::now() < until {
                    let number = started.fetch_add(1, Ordering::Relaxed);
                    if number >= processes {
                        break;
                    }
                    let mut plan =
                        Plan::load(service.address, &format!("{run}-{number}"), CONNECTIONS, 1);
                    plan.mix = Mix::Fresh;
                    let mut command = plan.command();
                    command.arg("--once");
                    let report = Driver::of(command).report();
                    let ok = report.records.iter().filter(|record| record.status == 200);
                    answered.fetch_add(ok.count(), Ordering::Relaxed);
                }
            });
        }
    });
    let answered = answered.into_inner();
    Churned {
        processes: answered / CONNECTIONS,
        answered,
    }
}

fn resident_kib(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()));
    let status = status.expect("status of the agent");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("resident memory")
}

fn check(
    test: &str,
    warm_up: usize,
    rounds: usize,
    per_round: usize,
    time: Duration,
    growth_kib: u64,
) {
    let Some(session) = Session::begin(test) else {
        return;
    };
    let service = Language::Rust.start().expect("the Rust service");
    // No rules: with some, a new process is looked at only once user space has decided.
    let agent = Start::new().env("OTEL_TRACES_EXPORTER", "none").ready();
    let until = Instant::now() + time;
    let mut all = churn(&service, &format!("{}-w", session.run), warm_up, until);
    let warm = resident_kib(&agent);
    let mut highest = warm;
    for round in 0..rounds {
        let run = format!("{}-{round}", session.run);
        let Churned {
            processes,
            answered,
        } = churn(&service, &run, per_round, until);
        all.processes += processes;
        all.answered += answered;
        let now = resident_kib(&agent);
        highest = highest.max(now);
        println!("{} connections: {now} KiB", all.answered);
    }
    let ledger = agent.drained_ledger(LIMIT);
    assert_eq!(ledger.wrong_sums(), [] as [String; 0]);
    let details = Details::parse(&agent.page("/ledger/services"));
    assert_eq!(details.wrong_sums(), [] as [String; 0]);
    println!(
        "{} connections of {} processes: {warm} KiB after {warm_up} processes, at most {highest} KiB; {:?}",
        all.answered,
        all.processes,
        ledger.losses(&[])
    );
    // What was lost on the way to the parsers is in no service's row, but it is counted.
    let lost = ledger.stage("events").dropped.values().sum::<u64>();
    for name in [SERVICE_NAME, &*service.name] {
        let row = details.services.get(name).expect("a row");
        assert_eq!(row.pending, 0, "{name}: {row:?}");
        assert!(row.seen <= all.answered as u64, "{name}: {row:?}");
        if lost == 0 {
            assert_eq!(row.exported, all.answered as u64, "{name}: {details:#?}");
        }
    }
    assert!(
        highest <= warm + growth_kib,
        "{warm} KiB after the warm-up, {highest} KiB later"
    );
    agent.stop();
}

#[test]
fn half_a_minute_of_churn() {
    // Facts of ended processes and their series are kept for one and two minutes: in so short a
    // time they only grow.
    check(
        "churn::half_a_minute_of_churn",
        20,
        4,
        25,
        Duration::from_secs(30),
        24 * 1024,
    );
}

#[test]
#[ignore = "takes minutes; the command is at the top"]
fn a_day_of_churn() {
    check(
        "churn::a_day_of_churn",
        300,
        7,
        100,
        Duration::from_secs(1800),
        24 * 1024,
    );
}
