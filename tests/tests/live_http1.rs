//! 5,000 mixed requests at concurrency 32 to each service: exactly one SERVER and one CLIENT span
//! each, everything right in them, none extra, nothing lost; with the agent started before the
//! connections were opened, and after.

use tracer_tests::agent::Start;
use tracer_tests::check::{Server, Sides, assert_run};
use tracer_tests::driver::{Driver, Plan, Report};
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{Language, Service};
use tracer_tests::session::{Session, share, skipped};

const REQUESTS: usize = 5_000;
const CONCURRENCY: usize = 32;

/// When the connections are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opened {
    /// Under the agent's eyes.
    After,
    /// Before the agent started; its first sight of them is in the middle of things.
    Before,
}

fn check(test: &str, language: Language, opened: Opened) {
    let Some(session) = Session::begin(test) else {
        return;
    };
    let service = match language.start() {
        Ok(service) => service,
        Err(reason) => return skipped(test, &reason),
    };
    let receiver = Receiver::start();
    let mut plan = Plan::load(service.address, &session.run, share(REQUESTS), CONCURRENCY);
    let (agent, report, _driver) = match opened {
        Opened::After => {
            let agent = Start::new().export_http(&receiver).ready();
            let mut driver = Driver::start(&plan);
            (agent, driver.report(), driver)
        }
        Opened::Before => {
            plan.preopen = true;
            // Sync workers serve a connection to its end: kept ones would lock the others out.
            plan.warm = language != Language::GunicornSync;
            let mut driver = Driver::start(&plan);
            let agent = Start::new().export_http(&receiver).ready();
            driver.go();
            let report = driver.report();
            assert!(
                report
                    .records
                    .iter()
                    .filter(|record| record.preopened)
                    .count()
                    >= CONCURRENCY
            );
            (agent, report, driver)
        }
    };
    compare(agent, &receiver, &report, &service);
}

fn compare(
    agent: tracer_tests::agent::Agent,
    receiver: &Receiver,
    report: &Report,
    service: &Service,
) {
    assert_eq!(
        report.failures(),
        Vec::<String>::new(),
        "the run itself failed"
    );
    let (spans, _) = finish(
        agent,
        receiver,
        &format!("/r/{}-", report.run),
        2 * share(REQUESTS),
    );
    let server = Server {
        name: &service.name,
        pids: service.pids(),
    };
    assert_run(
        &spans,
        report,
        &Sides {
            server: Some(server),
            client: true,
        },
    );
}

macro_rules! services {
    ($($name:ident: $language:ident,)*) => { $(
        mod $name {
            use super::*;

            #[test]
            fn opened_after() {
                check(concat!(stringify!($name), "::opened_after"), Language::$language, Opened::After);
            }

            #[test]
            fn opened_before() {
                check(concat!(stringify!($name), "::opened_before"), Language::$language, Opened::Before);
            }
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
