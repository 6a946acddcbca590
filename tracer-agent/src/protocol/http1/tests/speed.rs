//! A measurement, not a check: small exchanges per second through one session.

use std::time::Instant;

use super::super::super::{At, Direction, Input, Role};
use super::super::{Output, Session};

const REQUEST: &[u8] =
    b"GET /index.html HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: wrk/4.2.0\r\nAccept: */*\r\n\
    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.26.0\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
    Content-Type: text/html\r\nContent-Length: 12\r\nConnection: keep-alive\r\n\r\nhello, world";

#[test]
#[ignore = "a measurement, run by hand"]
fn exchanges_per_second() {
    const ROUNDS: u32 = 2_000_000;
    let mut session = Session::new(Some(Role::Server), true);
    let mut out = Output::default();
    let mut at = At {
        time_ns: 1,
        start_ns: 1,
        tgid: 1,
        tid: 1,
        cause: None,
    };
    let mut finished = 0;
    let started = Instant::now();
    for _ in 0..ROUNDS {
        at.time_ns += 1000;
        session.receive(Direction::Read, Input::Bytes(REQUEST), &at, &mut out);
        session.receive(Direction::Write, Input::Bytes(RESPONSE), &at, &mut out);
        finished += out.exchanges.drain(..).count();
    }
    let elapsed = started.elapsed();
    assert_eq!(finished, ROUNDS as usize);
    println!(
        "{:.0} exchanges/s",
        f64::from(ROUNDS) / elapsed.as_secs_f64()
    );
}
