//! Trace context of requests, and bodies that export spans. Guarantee: taken from anywhere in the head,
//! from nothing behind it, however the bytes are cut.

use super::super::super::{Direction, ExportBody};
use super::{Bench, OK, Step, client, r, server, w};

const VALUE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn context(bench: &Bench) -> Vec<(&str, &str)> {
    let request = &bench.out.exchanges[0].request;
    let fields = request.context.0.iter();
    fields.map(|(name, value)| (&**name, &**value)).collect()
}

#[test]
fn at_any_position_of_the_head() {
    let filler: Vec<String> = (0..600).map(|n| format!("x-{n}: {n:0>64}\r\n")).collect();
    for before in [0, 1, 60, 600] {
        let (front, back) = filler.split_at(before);
        let head = format!(
            "GET / HTTP/1.1\r\n{}TRACEPARENT:{VALUE}\r\n{}\r\n",
            front.concat(),
            back.concat()
        );
        let pieces = |size: usize| head.as_bytes().chunks(size).map(r).collect::<Vec<_>>();
        for size in [4096, 1000, head.len()] {
            let mut script = pieces(size);
            script.push(w(OK));
            let bench = server(&script, &["GET / -> 200 Complete 0/2"]);
            assert_eq!(context(&bench), [("traceparent", VALUE)], "{before} {size}");
        }
    }
}

#[test]
fn not_from_trailers_or_bodies() {
    let trailers = format!(
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTrailer: traceparent\r\n\r\n\
         2\r\nhi\r\n0\r\ntraceparent: {VALUE}\r\n\r\n"
    );
    let bench = server(&[r(trailers), w(OK)], &["POST /a -> 200 Complete 2/2"]);
    assert_eq!(context(&bench), []);
    let body = format!("\r\ntraceparent: {VALUE}\r\n\r\n");
    let post = format!(
        "POST /b HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let expected = format!("POST /b -> 200 Complete {}/2", body.len());
    let bench = server(&[r(post), w(OK)], &[&expected]);
    assert_eq!(context(&bench), []);
}

#[test]
fn several_are_one_list() {
    let head = format!("GET / HTTP/1.1\r\ntraceparent: {VALUE}\r\nTraceparent: {VALUE}\r\n\r\n");
    let bench = server(&[r(head), w(OK)], &["GET / -> 200 Complete 0/2"]);
    assert_eq!(
        context(&bench),
        [("traceparent", &*format!("{VALUE},{VALUE}"))]
    );
}

/// Scenario: an export, sent in pieces, of which the kernel side leaves some out.
#[test]
fn exports_are_kept() {
    let export = |script: &[Step], expected: &str| {
        let bench = client(script, &[expected]);
        let exports = bench.out.exports.clone();
        assert!(exports.len() < 2);
        exports.into_iter().next()
    };
    let body = |bytes: &[u8], chunked, whole| {
        Some(ExportBody {
            tgid: 7,
            bytes: bytes.to_vec(),
            chunked,
            whole,
        })
    };
    let head = "POST /v1/traces HTTP/1.1\r\nContent-Length: 5\r\n\r\n";
    let done = "POST /v1/traces -> 200 Complete 5/2";
    assert_eq!(
        export(&[w(head), w("ab"), w("cde"), r(OK)], done),
        body(b"abcde", false, true)
    );
    let skip = Step::Skip(Direction::Write, 3);
    assert_eq!(
        export(&[w(format!("{head}ab")), skip, r(OK)], done),
        body(b"ab", false, false)
    );
    let chunked = "POST /v1/traces HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(
        export(
            &[w(chunked), w("5\r\nabcde\r\n"), w("0\r\n\r\n"), r(OK)],
            done
        ),
        body(b"5\r\nabcde\r\n0\r\n\r\n", true, true)
    );
    let other = "POST /v1/logs HTTP/1.1\r\nContent-Length: 2\r\n\r\nab";
    assert_eq!(
        export(&[w(other), r(OK)], "POST /v1/logs -> 200 Complete 2/2"),
        None
    );
    let long = vec![b'x'; 100_000];
    let head = "POST /v1/traces HTTP/1.1\r\nContent-Length: 100000\r\n\r\n";
    let expected = "POST /v1/traces -> 200 Complete 100000/2";
    assert_eq!(
        export(&[w(head), w(&long), r(OK)], expected),
        body(b"", false, false)
    );
    // What others send to this process is theirs.
    let post = "POST /v1/traces HTTP/1.1\r\nContent-Length: 2\r\n\r\nab";
    let bench = server(&[r(post), w(OK)], &["POST /v1/traces -> 200 Complete 2/2"]);
    assert!(bench.out.exports.is_empty());
}
