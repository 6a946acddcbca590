//! Clients of other languages against the Rust service: exactly one CLIENT span in the client's
//! process and one SERVER span in the service's for each request.

use tracer_tests::agent::Start;
use tracer_tests::check::{Server, Sides, assert_run};
use tracer_tests::driver::{Driver, Report};
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{Client, Language};
use tracer_tests::session::{self, Session, skipped, unique};

const REQUESTS: usize = 1_000;

/// Sends the requests; the client lives on with the driver that is given back.
fn send(
    client: Client,
    address: std::net::SocketAddr,
    run: &str,
) -> Result<(Driver, Report), String> {
    let mut driver = Driver::of(client.command(address, run, REQUESTS)?);
    let report = driver.report();
    assert_eq!(
        report.failures(),
        Vec::<String>::new(),
        "the run itself failed"
    );
    assert_eq!(report.records.len(), REQUESTS);
    Ok((driver, report))
}

fn check(test: &str, client: Client) {
    let service = Language::Rust.start().expect("the Rust service");
    {
        // Without an agent first: the client itself works.
        let _lock = session::lock();
        if let Err(reason) = send(client, service.address, &unique()) {
            return skipped(test, &reason);
        }
    }
    let Some(session) = Session::begin(test) else {
        return;
    };
    let receiver = Receiver::start();
    let agent = Start::new().export_http(&receiver).ready();
    let (_driver, report) = send(client, service.address, &session.run).expect("it worked before");
    let (spans, _) = finish(
        agent,
        &receiver,
        &format!("/r/{}-", report.run),
        2 * REQUESTS,
    );
    let server = Server {
        name: &service.name,
        pids: service.pids(),
    };
    assert_run(
        &spans,
        &report,
        &Sides {
            server: Some(server),
            client: true,
        },
    );
}

#[test]
fn go() {
    check("live_clients::go", Client::Go);
}

#[test]
fn node() {
    check("live_clients::node", Client::Node);
}

#[test]
fn python() {
    check("live_clients::python", Client::Python);
}
