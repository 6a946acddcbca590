//! Properties: splitting, leaving DATA out, joining anywhere and losing anything.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::super::{At, Direction, End, Exchange, Input, Role};
use super::super::frame::{DATA, PADDED, PING, WINDOW_UPDATE};
use super::super::{Counts, Output, Session};
use super::{Peer, client_start, data, frame, reset, server_start, settings};

/// What becomes of one stream.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    grpc: bool,
    method: &'static str,
    path: u8,
    request_body: Vec<Vec<u8>>,
    response_body: Vec<Vec<u8>>,
    interim: bool,
    reset: bool,
    /// Which stream goes on next, at every step.
    turns: Vec<u8>,
}

pub(super) fn plan() -> impl Strategy<Value = Plan> {
    let body = || prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4);
    (
        any::<bool>(),
        prop::sample::select(vec!["GET", "POST", "PUT", "PATCH"]),
        0u8..6,
        body(),
        body(),
        any::<bool>(),
        prop::bool::weighted(0.1),
        prop::collection::vec(any::<u8>(), 1..8),
    )
        .prop_map(
            |(grpc, method, path, request_body, response_body, interim, reset, turns)| Plan {
                grpc,
                method: if grpc { "POST" } else { method },
                path,
                request_body,
                response_body,
                interim,
                reset,
                turns,
            },
        )
}

impl Plan {
    fn path(&self, index: usize) -> String {
        // Some paths come back, so that the table is used; the id tells them apart.
        format!("/p{}/{}", self.path, if self.path < 3 { 0 } else { index })
    }

    fn status(&self) -> &'static str {
        if self.grpc {
            return "200";
        }
        ["200", "201", "404", "503", "299", "418"][usize::from(self.path)]
    }

    fn grpc_status(&self) -> u32 {
        u32::from(self.path) * 3
    }
}

/// A frame on its way.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    pub direction: Direction,
    pub bytes: Vec<u8>,
    /// It opens the stream of this plan.
    pub opens: Option<usize>,
}

impl Wire {
    fn is_data(&self) -> bool {
        self.bytes.get(3) == Some(&DATA) && !self.bytes.starts_with(b"PRI")
    }
}

/// One stream's frames, written when their turn comes: the tables depend on the order.
struct Progress<'a> {
    plan: &'a Plan,
    index: usize,
    step: usize,
}

impl Progress<'_> {
    fn id(&self) -> u32 {
        2 * u32::try_from(self.index).unwrap() + 1
    }

    /// The next frames of this stream; `None` when it is over.
    fn next(&mut self, client: &mut Peer, server: &mut Peer) -> Option<Wire> {
        let plan = self.plan;
        let (sent, received) = (plan.request_body.len(), plan.response_body.len());
        let id = self.id();
        let step = self.step;
        self.step += 1;
        let to_server = |bytes| {
            Some(Wire {
                direction: Direction::Read,
                bytes,
                opens: None,
            })
        };
        let to_client = |bytes| {
            Some(Wire {
                direction: Direction::Write,
                bytes,
                opens: None,
            })
        };
        if step == 0 {
            let path = plan.path(self.index);
            let trace = format!("id-{}", self.index);
            let mut fields = vec![
                (":method", plan.method),
                (":scheme", "http"),
                (":path", &*path),
                (":authority", "h:80"),
                ("x-request-id", &*trace),
            ];
            if plan.grpc {
                fields.push(("content-type", "application/grpc"));
            }
            let end = sent == 0;
            return Some(Wire {
                direction: Direction::Read,
                bytes: client.headers(id, end, &fields),
                opens: Some(self.index),
            });
        }
        if let Some(piece) = plan.request_body.get(step - 1) {
            return to_server(data(id, step == sent, piece));
        }
        let step = step - 1 - sent;
        if step == 0 && plan.interim {
            return to_client(server.headers(id, false, &[(":status", "103"), ("link", "l")]));
        }
        if step == 0 {
            return to_client(frame(PING, 0, 0, b"abcdefgh"));
        }
        if step == 1 {
            let end = received == 0 && !plan.grpc && !plan.reset;
            let server_name = format!("s{}", plan.path);
            return to_client(server.headers(
                id,
                end,
                &[(":status", plan.status()), ("server", &server_name)],
            ));
        }
        if let Some(piece) = plan.response_body.get(step - 2) {
            let end = step - 1 == received && !plan.grpc && !plan.reset;
            return to_client(if step.is_multiple_of(3) && !piece.is_empty() {
                let flags = PADDED | u8::from(end);
                frame(DATA, flags, id, &[&[2], &piece[..], &[0, 0]].concat())
            } else {
                data(id, end, piece)
            });
        }
        match step - 2 - received {
            0 if plan.reset => to_server(reset(id, 8)),
            0 if plan.grpc => to_client(server.trailers(id, &plan.grpc_status().to_string())),
            0 => to_server(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0])),
            _ => None,
        }
    }
}

/// The frames of all streams, interleaved, as the server's end sees them.
pub(super) fn conversation(plans: &[Plan], at_once: usize) -> Vec<Wire> {
    let (mut client, mut server) = (Peer::new(), Peer::new());
    let mut wires = vec![
        Wire {
            direction: Direction::Read,
            bytes: client_start(),
            opens: None,
        },
        Wire {
            direction: Direction::Write,
            bytes: server_start(),
            opens: None,
        },
        Wire {
            direction: Direction::Read,
            bytes: settings(&[(1, 4096)]),
            opens: None,
        },
    ];
    let mut waiting = plans.iter().enumerate().map(|(index, plan)| Progress {
        plan,
        index,
        step: 0,
    });
    let mut open: Vec<Progress<'_>> = Vec::new();
    let turns: Vec<usize> = plans
        .iter()
        .flat_map(|plan| plan.turns.iter().map(|turn| usize::from(*turn)))
        .collect();
    let mut turns = turns.iter().cycle();
    loop {
        while open.len() < at_once
            && let Some(mut next) = waiting.next()
        {
            // Opened in the order of their ids.
            wires.extend(next.next(&mut client, &mut server));
            open.push(next);
        }
        if open.is_empty() {
            return wires;
        }
        let turn = turns.next().unwrap() % open.len();
        match open[turn].next(&mut client, &mut server) {
            Some(wire) => wires.push(wire),
            None => drop(open.remove(turn)),
        }
    }
}

/// A piece of what one end sees; `frame` numbers the time.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub direction: Direction,
    pub frame: usize,
    pub input: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Bytes(Vec<u8>),
    Skipped(u64),
    Lost(u64),
}

pub(super) fn time_ns(frame: usize) -> u64 {
    1_000_000 * (frame as u64 + 1)
}

pub(super) fn play(
    role: Option<Role>,
    from_start: bool,
    pieces: &[Piece],
) -> (Vec<Exchange>, Counts) {
    let mut session = Session::new(role, from_start);
    let mut out = Output::default();
    let mut at = At::default();
    for piece in pieces {
        at = At {
            time_ns: time_ns(piece.frame),
            start_ns: time_ns(piece.frame),
            tgid: 1,
            tid: 1,
            cause: None,
        };
        let input = match &piece.input {
            What::Bytes(bytes) => Input::Bytes(bytes),
            What::Skipped(length) => Input::Skipped(*length),
            What::Lost(length) => Input::Lost(*length),
        };
        session.receive(piece.direction, input, &at, &mut out);
        let given_up: u64 = out.counts.abandoned.values().sum();
        assert_eq!(
            out.counts.requests,
            out.exchanges.len() as u64 + given_up + session.in_flight() as u64
        );
    }
    session.end(End::ReadEof, &at, &mut out);
    session.end(End::Closed(0), &at, &mut out);
    assert_eq!(session.in_flight(), 0);
    (out.exchanges, out.counts)
}

pub(super) fn whole(wires: &[Wire]) -> Vec<Piece> {
    wires
        .iter()
        .enumerate()
        .map(|(frame, wire)| Piece {
            direction: wire.direction,
            frame,
            input: What::Bytes(wire.bytes.clone()),
        })
        .collect()
}

/// When each stream was opened.
fn openings(wires: &[Wire]) -> BTreeMap<u64, usize> {
    wires
        .iter()
        .enumerate()
        .filter_map(|(frame, wire)| wire.opens.map(|index| (time_ns(frame), index)))
        .collect()
}

/// What is said of an exchange is true of it or not said. Returns how much was known.
fn check_truth(
    plans: &[Plan],
    wires: &[Wire],
    exchanges: &[Exchange],
) -> Result<usize, TestCaseError> {
    let openings = openings(wires);
    let mut known = 0;
    let mut seen = std::collections::BTreeSet::new();
    for exchange in exchanges {
        let index = openings.get(&exchange.start_ns).copied();
        prop_assert!(
            index.is_some(),
            "begins where no request began: {:?}",
            exchange
        );
        let index = index.unwrap_or_default();
        prop_assert!(seen.insert(index), "reported twice: {}", index);
        let plan = &plans[index];
        let request = &exchange.request;
        let (path, id) = (plan.path(index), format!("id-{index}"));
        prop_assert!(request.method.is_empty() || &*request.method == plan.method);
        prop_assert!(
            request.target.is_empty() || *request.target == *path,
            "{} for {}",
            request.target,
            path
        );
        for (name, value) in &request.context.0 {
            prop_assert_eq!((&**name, &**value), ("x-request-id", &*id));
        }
        if let Some(response) = &exchange.response {
            let right: u16 = plan.status().parse().unwrap();
            prop_assert!(
                response.status == 0 || response.status == right,
                "{} for {}",
                response.status,
                right
            );
        }
        if let Some(status) = exchange.grpc.as_ref().and_then(|grpc| grpc.status)
            && exchange.outcome == super::super::super::Outcome::Complete
        {
            prop_assert!(plan.grpc);
            prop_assert_eq!(status, plan.grpc_status());
        }
        known += usize::from(!request.target.is_empty());
    }
    Ok(known)
}

proptest! {
    #[test]
    fn every_exchange_is_found(plans in prop::collection::vec(plan(), 1..12), at_once in 1usize..6, known in any::<bool>()) {
        let wires = conversation(&plans, at_once);
        let (exchanges, counts) = play(known.then_some(Role::Server), true, &whole(&wires));
        prop_assert_eq!(exchanges.len(), plans.len());
        prop_assert_eq!(check_truth(&plans, &wires, &exchanges)?, plans.len());
        prop_assert_eq!(counts.unparsed_bytes + counts.unknown_fields + counts.responses_without_request, 0);
        let openings = openings(&wires);
        for exchange in &exchanges {
            let plan = &plans[openings[&exchange.start_ns]];
            prop_assert_eq!(exchange.grpc.is_some(), plan.grpc);
            let sent: usize = plan.request_body.iter().map(Vec::len).sum();
            prop_assert_eq!(exchange.request.body_bytes, Some(sent as u64));
        }
    }

    #[test]
    fn splits_do_not_matter(
        plans in prop::collection::vec(plan(), 1..6),
        at_once in 1usize..4,
        cuts in prop::collection::vec(1usize..60, 1..50),
        known in any::<bool>(),
    ) {
        let role = known.then_some(Role::Server);
        let wires = conversation(&plans, at_once);
        let pieces = whole(&wires);
        let expected = play(role, true, &pieces);
        let mut cut = cuts.iter().cycle();
        let (mut single, mut random) = (Vec::new(), Vec::new());
        for piece in &pieces {
            let What::Bytes(bytes) = &piece.input else { continue };
            let part = |part: &[u8]| Piece { input: What::Bytes(part.to_vec()), ..piece.clone() };
            single.extend(bytes.chunks(1).map(part));
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (head, behind) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                random.push(part(head));
                rest = behind;
            }
        }
        prop_assert_eq!(&play(role, true, &single), &expected);
        prop_assert_eq!(&play(role, true, &random), &expected);
    }

    /// Left out or lost, the payload of DATA makes no difference but to the counts of messages.
    #[test]
    fn data_may_be_left_out(plans in prop::collection::vec(plan(), 1..8), at_once in 1usize..4, cut in any::<prop::sample::Index>(), lose in any::<bool>(), from_start in any::<bool>()) {
        let wires = conversation(&plans, at_once);
        let strip = |(mut exchanges, counts): (Vec<Exchange>, Counts)| {
            for grpc in exchanges.iter_mut().filter_map(|exchange| exchange.grpc.as_mut()) {
                (grpc.request_messages, grpc.response_messages) = (None, None);
            }
            (exchanges, counts)
        };
        // Joined at the beginning of the first frames behind the prefaces.
        let begin = if from_start { 0 } else { 3 };
        let expected = strip(play(Some(Role::Server), from_start, &whole(&wires[begin..])));
        let mut pieces = Vec::new();
        for piece in whole(&wires[begin..]) {
            let What::Bytes(bytes) = &piece.input else { continue };
            if !wires[begin + piece.frame].is_data() || bytes.len() == 9 {
                pieces.push(piece);
                continue;
            }
            let length = bytes.len() - 9;
            let first = cut.index(length + 1);
            let part = |input| Piece { input, ..piece.clone() };
            let missing = |length| if lose && from_start { What::Lost(length) } else { What::Skipped(length) };
            pieces.push(part(What::Bytes(bytes[..9].to_vec())));
            pieces.push(part(missing(first as u64)));
            pieces.push(part(missing((length - first) as u64)));
        }
        prop_assert_eq!(strip(play(Some(Role::Server), from_start, &pieces)), expected);
    }

    /// Joined at any frame, every later request is reported; what is said of it is true.
    #[test]
    fn joined_at_a_frame(plans in prop::collection::vec(plan(), 1..16), at_once in 1usize..6, join in any::<prop::sample::Index>(), known in any::<bool>()) {
        let wires = conversation(&plans, at_once);
        let join = join.index(wires.len());
        let pieces = &whole(&wires)[join..];
        let (exchanges, counts) = play(known.then_some(Role::Server), false, pieces);
        check_truth(&plans, &wires, &exchanges)?;
        let later = wires[join..].iter().filter(|wire| wire.opens.is_some()).count() as u64;
        prop_assert_eq!(counts.requests + counts.undecided_blocks.min(later - counts.requests.min(later)), later, "{:?}", counts);
        if known {
            prop_assert_eq!(counts.requests, later, "{:?}", counts);
        }
    }

    /// Joined at any bytes of both directions.
    #[test]
    fn joined_anywhere(plans in prop::collection::vec(plan(), 1..16), at_once in 1usize..6, join in any::<[prop::sample::Index; 2]>(), known in any::<bool>()) {
        let wires = conversation(&plans, at_once);
        let pieces = drop_beginning(&wires, join);
        let (exchanges, _) = play(known.then_some(Role::Server), false, &pieces);
        check_truth(&plans, &wires, &exchanges)?;
    }

    /// Whatever is lost, what is said is true.
    #[test]
    fn losses_never_mix_exchanges_up(
        plans in prop::collection::vec(plan(), 1..16),
        at_once in 1usize..6,
        losses in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1usize..300), 1..4),
        join in prop::option::of(any::<[prop::sample::Index; 2]>()),
        known in any::<bool>(),
    ) {
        let wires = conversation(&plans, at_once);
        let pieces = match join {
            Some(join) => drop_beginning(&wires, join),
            None => whole(&wires),
        };
        let pieces = lose(&pieces, &losses);
        let (exchanges, _) = play(known.then_some(Role::Server), join.is_none(), &pieces);
        check_truth(&plans, &wires, &exchanges)?;
    }
}

/// Without the first bytes of each direction.
fn drop_beginning(wires: &[Wire], join: [prop::sample::Index; 2]) -> Vec<Piece> {
    let total = |direction| -> usize {
        wires
            .iter()
            .filter(|wire| wire.direction == direction)
            .map(|wire| wire.bytes.len())
            .sum()
    };
    let mut left = [
        join[0].index(total(Direction::Read) / 2 + 1),
        join[1].index(total(Direction::Write) / 2 + 1),
    ];
    let mut pieces = Vec::new();
    for piece in whole(wires) {
        let What::Bytes(bytes) = &piece.input else {
            continue;
        };
        let left = &mut left[usize::from(piece.direction == Direction::Write)];
        let cut = (*left).min(bytes.len());
        *left -= cut;
        if cut < bytes.len() {
            pieces.push(Piece {
                input: What::Bytes(bytes[cut..].to_vec()),
                ..piece.clone()
            });
        }
    }
    pieces
}

/// Ranges of either direction's bytes become losses.
fn lose(
    pieces: &[Piece],
    losses: &[(prop::sample::Index, prop::sample::Index, usize)],
) -> Vec<Piece> {
    let mut lost: Vec<Vec<bool>> = pieces
        .iter()
        .map(|piece| match &piece.input {
            What::Bytes(bytes) => vec![false; bytes.len()],
            _ => Vec::new(),
        })
        .collect();
    if lost.is_empty() {
        return Vec::new();
    }
    for (piece, from, length) in losses {
        let first = piece.index(pieces.len());
        let mut from = from.index(lost[first].len());
        let mut left = *length;
        for (flags, _) in lost
            .iter_mut()
            .zip(pieces)
            .skip(first)
            .filter(|(_, piece)| piece.direction == pieces[first].direction)
        {
            for flag in flags.iter_mut().skip(std::mem::take(&mut from)) {
                if left == 0 {
                    break;
                }
                *flag = true;
                left -= 1;
            }
        }
    }
    let mut result = Vec::new();
    for (piece, lost) in pieces.iter().zip(&lost) {
        let What::Bytes(bytes) = &piece.input else {
            continue;
        };
        let mut at = 0;
        while at < bytes.len() {
            let length = lost[at..]
                .iter()
                .take_while(|flag| **flag == lost[at])
                .count();
            let input = if lost[at] {
                What::Lost(length as u64)
            } else {
                What::Bytes(bytes[at..at + length].to_vec())
            };
            result.push(Piece {
                input,
                ..piece.clone()
            });
            at += length;
        }
    }
    result
}
