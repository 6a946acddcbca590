//! Losses: which streams they cost, and that the others go on.

use super::super::super::{Direction, End};
use super::Step::{End as Ends, Lost, R, Skip, W};
use super::{Peer, client, data, server};

#[test]
fn within_data_nothing_is_lost_but_bytes() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let bench = server(
        &[
            R([
                c.call(1, "/p.S/M", &[]),
                data(1, true, b"\0\0\0\0\x02abxxx")[..12].to_vec(),
            ]
            .concat()),
            Lost(Direction::Read, 7),
            W([s.accepted(1), s.trailers(1, "0")].concat()),
        ],
        &["POST /p.S/M -> 200 Complete 10/0 grpc 0 ?/0"],
    );
    assert_eq!(bench.out.counts.resyncs, 0);
}

#[test]
fn requests_go_on_after_a_loss_of_requests() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let lost = c.request(5, true, "GET", "/5");
    let bench = server(
        &[
            R([
                c.request(1, true, "GET", "/1"),
                c.request(3, false, "PUT", "/3"),
            ]
            .concat()),
            Lost(Direction::Read, lost.len() as u64),
            // Of the table nothing older is known; paths that are sent are.
            R(c.request(7, true, "GET", "/5")),
            R(c.request(9, true, "GET", "/9")),
            W(s.status(1, true, "200")),
            W(s.status(3, true, "201")),
            W(s.status(5, true, "200")),
            W(s.status(7, true, "200")),
            Ends(End::Closed(0)),
        ],
        &[
            "GET /1 -> 200 Complete 0/0",
            "PUT /3 -> 201 Complete ?/0",
            "GET ? -> 200 Complete 0/0",
            "GET /9 -> none LocalClosed 0/-",
        ],
    );
    assert_eq!(bench.out.counts.responses_without_request, 1);
    assert_eq!(bench.out.counts.resyncs, 1);
}

#[test]
fn a_loss_of_responses_costs_the_open_streams() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let lost = [s.status(3, true, "200"), s.status(5, true, "200")].concat();
    let bench = client(
        &[
            W([
                c.request(1, true, "GET", "/1"),
                c.request(3, true, "GET", "/3"),
                c.request(5, true, "GET", "/5"),
            ]
            .concat()),
            R([s.status(1, false, "200"), data(1, false, b"abc")].concat()),
            Lost(Direction::Read, lost.len() as u64),
            R(data(1, true, b"def")),
            W(c.request(7, true, "GET", "/7")),
            R(s.status(7, true, "404")),
        ],
        &["GET /1 -> 200 Lost 0/3", "GET /7 -> 404 Complete 0/0"],
    );
    assert_eq!(bench.out.counts.abandoned["lost"], 2);
}

#[test]
fn a_header_block_that_is_lost_is_a_request_of_which_nothing_is_known() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let request = c.request(1, true, "GET", "/1");
    let bench = server(
        &[
            R(request[..9].to_vec()),
            Lost(Direction::Read, request.len() as u64 - 9),
            W(s.status(1, true, "200")),
            R(c.request(3, true, "GET", "/3")),
            W(s.status(3, true, "404")),
        ],
        &["? ? -> 200 Complete 0/0", "GET /3 -> 404 Complete 0/0"],
    );
    assert_eq!(
        (bench.out.counts.broken_blocks, bench.out.counts.resyncs),
        (1, 0)
    );
}

#[test]
fn what_is_left_out_in_the_wrong_place_is_as_good_as_lost() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let bench = server(
        &[
            R(c.request(1, true, "GET", "/1")),
            Skip(Direction::Read, 5),
            R(c.request(3, true, "GET", "/3")),
            R(c.request(5, true, "GET", "/5")),
            W([
                s.status(1, true, "200"),
                s.status(3, true, "200"),
                s.status(5, true, "200"),
            ]
            .concat()),
        ],
        &[
            "GET /1 -> 200 Complete 0/0",
            "GET /3 -> 200 Complete 0/0",
            "GET /5 -> 200 Complete 0/0",
        ],
    );
    assert_eq!(
        (bench.out.counts.unparsed_bytes, bench.out.counts.resyncs),
        (5, 1)
    );
}
