//! Trace context of requests and of gRPC metadata. Guarantee: taken from anywhere in the fields of the
//! request, from nothing behind them.

use super::super::frame::{CONTINUATION, END_HEADERS, HEADERS};
use super::Step::{R, W};
use super::{Bench, Peer, data, frame, server};

const VALUE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn context(bench: &Bench) -> Vec<(&str, &str)> {
    let request = &bench.out.exchanges[0].request;
    let fields = request.context.0.iter();
    fields.map(|(name, value)| (&**name, &**value)).collect()
}

#[test]
fn at_any_position_and_over_continuations() {
    let names: Vec<String> = (0..60).map(|n| format!("x-{n}")).collect();
    let filler: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "value")).collect();
    for before in [0, 30, 60] {
        let (mut c, mut s) = (Peer::new(), Peer::new());
        let (front, back) = filler.split_at(before);
        let mut fields = vec![(":method", "GET"), (":path", "/")];
        fields.extend(front);
        fields.push(("traceparent", VALUE));
        fields.extend(back);
        let block = c.block(&fields);
        let (first, rest) = block.split_at(block.len() / 2);
        let request = [
            frame(HEADERS, 1, 1, first),
            frame(CONTINUATION, END_HEADERS, 1, rest),
        ];
        let bench = server(
            &[R(request.concat()), W(s.status(1, true, "200"))],
            &["GET / -> 200 Complete 0/0"],
        );
        assert_eq!(context(&bench), [("traceparent", VALUE)], "{before}");
    }
}

#[test]
fn metadata_but_not_trailers() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let bench = server(
        &[
            R(c.call(
                1,
                "/p.S/M",
                &[("x-b3-traceid", "1"), ("traceparent", VALUE)],
            )),
            R([
                data(1, false, b"\0\0\0\0\0"),
                c.headers(1, true, &[("b3", "0"), ("uber-trace-id", "1:2:0:1")]),
            ]
            .concat()),
            W([s.accepted(1), s.trailers(1, "0")].concat()),
        ],
        &["POST /p.S/M -> 200 Complete 5/0 grpc 0 1/0"],
    );
    assert_eq!(
        context(&bench),
        [("x-b3-traceid", "1"), ("traceparent", VALUE)]
    );
}
