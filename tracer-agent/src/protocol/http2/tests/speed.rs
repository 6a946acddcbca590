//! A measurement, not a check: small exchanges per second through one session.

use std::time::Instant;

use super::super::super::{At, Direction, Input, Role};
use super::super::{Output, Session};
use super::{Peer, client_start, data, server_start};

#[test]
#[ignore = "a measurement, run by hand"]
fn exchanges_per_second() {
    const ROUNDS: u32 = 2_000_000;
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut request = |stream| {
        c.headers(
            stream,
            true,
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/index.html?q=1"),
                (":authority", "localhost:8080"),
                ("user-agent", "h2load nghttp2/1.52.0"),
                (
                    "traceparent",
                    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                ),
            ],
        )
    };
    let mut response = |stream| {
        let head = s.headers(
            stream,
            false,
            &[
                (":status", "200"),
                ("server", "nginx/1.26.0"),
                ("content-type", "text/html"),
                ("content-length", "12"),
            ],
        );
        [head, data(stream, true, b"hello, world")].concat()
    };
    let mut session = Session::new(Some(Role::Server), true);
    let mut out = Output::default();
    let mut at = At {
        time_ns: 1,
        start_ns: 1,
        tgid: 1,
        tid: 1,
        cause: None,
    };
    session.receive(
        Direction::Read,
        Input::Bytes(&client_start()),
        &at,
        &mut out,
    );
    session.receive(
        Direction::Write,
        Input::Bytes(&server_start()),
        &at,
        &mut out,
    );
    // The first ones fill the tables, the last ones are as they go on.
    let (mut last_request, mut last_response) = (Vec::new(), Vec::new());
    let mut finished = 0;
    for stream in [1, 3] {
        (last_request, last_response) = (request(stream), response(stream));
        session.receive(Direction::Read, Input::Bytes(&last_request), &at, &mut out);
        session.receive(
            Direction::Write,
            Input::Bytes(&last_response),
            &at,
            &mut out,
        );
        finished += out.exchanges.drain(..).count();
    }
    let data_at = last_response.len() - 12 - 9;
    let started = Instant::now();
    for round in 2..ROUNDS {
        at.time_ns += 1000;
        let stream = (2 * round + 1).to_be_bytes();
        last_request[5..9].copy_from_slice(&stream);
        last_response[5..9].copy_from_slice(&stream);
        last_response[data_at + 5..data_at + 9].copy_from_slice(&stream);
        session.receive(Direction::Read, Input::Bytes(&last_request), &at, &mut out);
        session.receive(
            Direction::Write,
            Input::Bytes(&last_response),
            &at,
            &mut out,
        );
        finished += out.exchanges.drain(..).count();
    }
    let elapsed = started.elapsed();
    assert_eq!(finished, ROUNDS as usize);
    println!(
        "{:.0} exchanges/s",
        f64::from(ROUNDS) / elapsed.as_secs_f64()
    );
}
