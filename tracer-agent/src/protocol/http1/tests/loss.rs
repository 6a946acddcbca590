//! Loss and bytes left out: exchanges may go missing (counted), never be mixed up.

use super::super::super::Role;
use super::super::super::{Direction, End};
use super::super::reason;
use super::{OK, Step, client, get, play, r, server, w};

const A: &str = "GET /a -> 200 Complete 0/2";
const B: &str = "GET /b -> 200 Complete 0/2";
const D: &str = "GET /d -> 200 Complete 0/2";

fn lost_in(direction: Direction, length: u64) -> Step {
    Step::Lost(direction, length)
}

#[test]
fn inside_a_counted_body_nothing_is_unknown() {
    let post = "POST /p HTTP/1.1\r\nContent-Length: 9\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
    for step in [Step::Lost, Step::Skip] {
        let script = [
            r(post),
            step(Direction::Read, 9),
            w(answer),
            step(Direction::Write, 4),
            w("xxxxxx"),
            r(get("/b")),
            w(OK),
        ];
        server(&script, &["POST /p -> 200 Complete 9/10", B]);
    }
}

#[test]
fn one_lost_response_costs_only_what_is_in_doubt() {
    let lost = lost_in(Direction::Read, 30);
    // Told of with the next response's bytes, when the next request was seen already.
    let script = [
        w(get("/a")),
        r(OK),
        w(get("/b")),
        w(get("/c")),
        lost.clone(),
        r(OK),
        w(get("/d")),
        r(OK),
    ];
    let bench = client(&script, &[A, D]);
    assert_eq!(bench.out.counts.abandoned[reason::LOST], 2);
    assert_eq!(
        (
            bench.out.counts.responses_without_request,
            bench.out.counts.resyncs
        ),
        (1, 1)
    );
    // In the head, and in the body beyond its end.
    let script = [
        w(get("/b")),
        r("HTTP/1.1 200 O"),
        lost.clone(),
        r("rest"),
        w(get("/d")),
        r(OK),
    ];
    assert_eq!(client(&script, &[D]).out.counts.abandoned[reason::LOST], 1);
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc";
    client(
        &[w(get("/b")), r(half), lost, w(get("/d")), r(OK)],
        &["GET /b -> 200 Lost 0/3", D],
    );
}

#[test]
fn a_lost_request_takes_its_response_with_it() {
    let lost = lost_in(Direction::Read, 30);
    server(
        &[
            r(get("/a")),
            w(OK),
            w(OK),
            lost.clone(),
            r(get("/d")),
            w(OK),
        ],
        &[A, D],
    );
    // Pipelined behind the lost one: its response is not the next one.
    let bench = server(
        &[
            r(get("/a")),
            w(OK),
            lost.clone(),
            r(get("/x")),
            w(OK),
            w(OK),
        ],
        &[A],
    );
    assert_eq!(bench.out.counts.abandoned[reason::PAIRING_UNKNOWN], 1);
    // In the head of a request: what follows is paired only after a client that was seen to wait.
    for (before, expected) in [(1, 1), (8, 9)] {
        let mut script = vec![[r(get("/d")), w(OK)]; before].concat();
        script.extend([
            r("GET /lost"),
            lost.clone(),
            r("x: y\r\n\r\n"),
            w(OK),
            r(get("/d")),
            w(OK),
        ]);
        server(&script, &vec![D; expected]);
    }
}

#[test]
fn a_lost_piece_of_an_upload_keeps_its_exchange() {
    let upload = "POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe";
    let script = [
        r(upload),
        lost_in(Direction::Read, 50),
        r("more\r\n0\r\n\r\n"),
        w(OK),
        r(get("/d")),
        w(OK),
    ];
    server(&script, &["POST /p -> 200 Complete ?/2", D]);
}

#[test]
fn chunks_left_out_end_with_the_next_request() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n";
    let exact = [
        w(get("/a")),
        r(chunked),
        Step::Skip(Direction::Read, 5),
        r("\r\n0\r\n\r\n"),
        w(get("/b")),
        r(OK),
    ];
    client(&exact, &["GET /a -> 200 Complete 0/5", B]);
    let hidden = [
        w(get("/a")),
        r(chunked),
        Step::Skip(Direction::Read, 500),
        w(get("/b")),
        r(OK),
    ];
    let bench = client(&hidden, &["GET /a -> 200 Complete 0/?", B]);
    assert_eq!(
        bench.out.exchanges[0].end_ns, 1_003_000_000,
        "the last byte that was seen"
    );
    client(
        &[
            hidden[0].clone(),
            hidden[1].clone(),
            hidden[2].clone(),
            Step::End(End::ReadEof),
        ],
        &["GET /a -> 200 Complete 0/?"],
    );
    let upload = "POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n";
    server(
        &[
            r(upload),
            Step::Skip(Direction::Read, 500),
            w(OK),
            r(get("/b")),
            w(OK),
        ],
        &["POST /p -> 200 Complete ?/2", B],
    );
}

#[test]
fn bytes_left_out_at_a_message_start() {
    let bench = server(
        &[
            r(get("/a")),
            Step::Skip(Direction::Write, 50),
            r(get("/d")),
            w(OK),
        ],
        &[D],
    );
    assert_eq!(bench.out.counts.abandoned[reason::HEAD_SKIPPED], 1);
    assert_eq!(bench.out.counts.unparsed_bytes, 50);
}

#[test]
fn pipelined_responses_never_shift() {
    let batch = get("/a") + &get("/b") + &get("/c");
    let lost = lost_in(Direction::Read, OK.len() as u64);
    let script = [w(batch), lost, r(OK), w(get("/d")), r(OK), r(OK)];
    let bench = client(&script, &[]);
    assert_eq!(bench.out.counts.abandoned[reason::LOST], 3);
    assert_eq!(bench.out.counts.abandoned[reason::PAIRING_UNKNOWN], 1);
}

/// Joined while a body was under way: what is left of it is left out, the response to a request that
/// was not seen is nobody's, and from then on all is as if the connection had just been opened.
#[test]
fn what_is_left_out_before_the_first_message_puts_nothing_in_doubt() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n";
    for role in [None, Some(Role::Server)] {
        let script = [
            w(head),
            Step::Skip(Direction::Write, 3000),
            Step::Skip(Direction::Read, 5000),
            r(get("/a")),
            w(OK),
            r(get("/b")),
            w(OK),
        ];
        play(role, false, &script, &[A, B]);
        let script = [
            Step::Skip(Direction::Read, 5000),
            w(head),
            Step::Skip(Direction::Write, 3000),
            r(get("/a")),
            w(OK),
            r(get("/b")),
            w(OK),
        ];
        play(role, false, &script, &[A, B]);
        // What is left out is told with the next message of its direction.
        let script = [
            w(head),
            r(get("/a")),
            Step::Skip(Direction::Write, 3000),
            w(OK),
            r(get("/b")),
            w(OK),
        ];
        play(role, false, &script, &[A, B]);
        // Joined while a response's body was under way, which is told with the next response.
        for step in [
            [Step::Skip(Direction::Write, 3000), r(get("/a"))],
            [r(get("/a")), Step::Skip(Direction::Write, 3000)],
        ] {
            let script = [&step[..], &[w(OK), r(get("/b")), w(OK)]].concat();
            play(role, false, &script, &[A, B]);
        }
    }
}
