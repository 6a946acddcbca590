//! Properties: splitting, leaving bodies out and losing bytes.

use proptest::prelude::*;

use super::super::super::{Direction, End, Exchange, Role};
use super::super::Counts;
use super::{Bench, Step};

/// One exchange of a conversation.
#[derive(Clone, Debug)]
struct Turn {
    method: &'static str,
    request_body: Option<(bool, Vec<u8>)>,
    interim: bool,
    response_body: Vec<u8>,
    chunked: bool,
}

fn turn() -> impl Strategy<Value = Turn> {
    let body = prop::collection::vec(any::<u8>(), 0..40);
    (
        prop::sample::select(vec!["GET", "POST", "HEAD", "DELETE"]),
        prop::option::of((any::<bool>(), body.clone())),
        any::<bool>(),
        body,
        any::<bool>(),
    )
        .prop_map(
            |(method, request_body, interim, response_body, chunked)| Turn {
                method,
                request_body,
                interim,
                response_body,
                chunked,
            },
        )
}

/// A message: its head, then its body in parts that may be left out or not.
type Message = Vec<(Vec<u8>, bool)>;

fn with_body(mut head: String, body: &[u8], chunked: bool, send: bool) -> Message {
    if chunked {
        head += "Transfer-Encoding: chunked\r\n\r\n";
    } else {
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
    }
    let mut parts = vec![(head.into_bytes(), false)];
    if !send {
        return parts;
    }
    if chunked {
        for chunk in body.chunks(7) {
            parts.push((format!("{:x};e\r\n", chunk.len()).into_bytes(), false));
            parts.push((chunk.to_vec(), true));
            parts.push((b"\r\n".to_vec(), false));
        }
        parts.push((b"0\r\nT: x\r\n\r\n".to_vec(), false));
    } else {
        parts.push((body.to_vec(), true));
    }
    parts
}

impl Turn {
    fn request(&self, index: usize) -> Message {
        let head = format!(
            "{} /{index} HTTP/1.1\r\nHost: h\r\nX-Request-Id: {index}\r\n",
            self.method
        );
        match &self.request_body {
            None => vec![((head + "\r\n").into_bytes(), false)],
            Some((chunked, body)) => with_body(head, body, *chunked, true),
        }
    }

    /// The status tells which request it answers.
    fn response(&self, index: usize) -> Message {
        let mut message = Vec::new();
        if self.interim {
            message.push((
                b"HTTP/1.1 103 Early Hints\r\nLink: </s>\r\n\r\n".to_vec(),
                false,
            ));
        }
        let head = format!("HTTP/1.1 {} OK\r\nServer: s\r\n", status(index));
        message.extend(with_body(
            head,
            &self.response_body,
            self.chunked,
            self.method != "HEAD",
        ));
        message
    }
}

fn status(index: usize) -> u16 {
    400 + u16::try_from(index).unwrap()
}

/// The server's view; pipelined in batches of `depth`.
fn conversation(turns: &[Turn], depth: usize) -> Vec<(Direction, Message)> {
    let mut messages = Vec::new();
    for (batch_index, batch) in turns.chunks(depth.max(1)).enumerate() {
        let base = batch_index * depth.max(1);
        messages.extend(
            batch
                .iter()
                .enumerate()
                .map(|(i, turn)| (Direction::Read, turn.request(base + i))),
        );
        messages.extend(
            batch
                .iter()
                .enumerate()
                .map(|(i, turn)| (Direction::Write, turn.response(base + i))),
        );
    }
    messages
}

fn bytes(direction: Direction, bytes: &[u8]) -> Step {
    match direction {
        Direction::Read => Step::R(bytes.to_vec()),
        Direction::Write => Step::W(bytes.to_vec()),
    }
}

fn play(
    role: Option<Role>,
    from_start: bool,
    frozen: bool,
    script: &[Step],
) -> (Vec<Exchange>, Counts) {
    let mut bench = Bench::new(role, from_start);
    bench.frozen = frozen;
    for step in script {
        bench.step(step);
    }
    bench.step(&Step::End(End::ReadEof));
    bench.step(&Step::End(End::Closed(0)));
    assert_eq!(bench.session.in_flight(), 0);
    (bench.out.exchanges, bench.out.counts)
}

/// Runs of one direction, whole.
fn runs(messages: &[(Direction, Message)]) -> Vec<(Direction, Vec<u8>)> {
    let mut runs: Vec<(Direction, Vec<u8>)> = Vec::new();
    for (direction, message) in messages {
        let wire: Vec<u8> = message.iter().flat_map(|(part, _)| part.clone()).collect();
        match runs.last_mut() {
            Some((last, run)) if last == direction => run.extend(wire),
            _ => runs.push((*direction, wire)),
        }
    }
    runs
}

fn whole(runs: &[(Direction, Vec<u8>)]) -> Vec<Step> {
    runs.iter()
        .map(|(direction, run)| bytes(*direction, run))
        .collect()
}

proptest! {
    #[test]
    fn every_exchange_is_found(turns in prop::collection::vec(turn(), 1..6), depth in 1usize..4, known in any::<bool>()) {
        let role = known.then_some(Role::Server);
        let (exchanges, counts) = play(role, true, false, &whole(&runs(&conversation(&turns, depth))));
        prop_assert_eq!(exchanges.len(), turns.len());
        for (index, (exchange, turn)) in exchanges.iter().zip(&turns).enumerate() {
            let response = exchange.response.as_ref().unwrap();
            prop_assert_eq!(&*exchange.request.target, format!("/{index}"));
            prop_assert_eq!(response.status, status(index));
            let sent = turn.request_body.as_ref().map_or(0, |(_, body)| body.len() as u64);
            prop_assert_eq!(exchange.request.body_bytes, Some(sent));
            let expected = if turn.method == "HEAD" { 0 } else { turn.response_body.len() as u64 };
            prop_assert_eq!(response.body_bytes, Some(expected));
        }
        prop_assert_eq!(counts.unparsed_bytes, 0);
    }

    #[test]
    fn splits_do_not_matter(
        turns in prop::collection::vec(turn(), 1..5),
        depth in 1usize..4,
        cuts in prop::collection::vec(1usize..60, 1..50),
        garbage in prop::option::of((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..20))),
        flags in any::<(bool, bool)>(),
    ) {
        let (known, from_start) = flags;
        let role = known.then_some(Role::Server);
        let mut runs = runs(&conversation(&turns, depth));
        if let Some((index, bytes)) = garbage {
            let at = index.index(runs.len());
            let run = &mut runs[at].1;
            let at = index.index(run.len());
            run.splice(at..at, bytes);
        }
        let expected = play(role, from_start, true, &whole(&runs));
        let mut single = Vec::new();
        let mut random = Vec::new();
        let mut cut = cuts.iter().cycle();
        for (direction, run) in &runs {
            single.extend(run.chunks(1).map(|piece| bytes(*direction, piece)));
            let mut rest = &run[..];
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                random.push(bytes(*direction, piece));
                rest = behind;
            }
        }
        prop_assert_eq!(&play(role, from_start, true, &single), &expected);
        prop_assert_eq!(&play(role, from_start, true, &random), &expected);
    }

    #[test]
    fn bodies_may_be_left_out(turns in prop::collection::vec(turn(), 1..5), depth in 1usize..4, lose in any::<bool>()) {
        let conversation = conversation(&turns, depth);
        let expected = play(Some(Role::Server), true, true, &whole(&runs(&conversation)));
        let mut script = Vec::new();
        for (direction, message) in &conversation {
            for (part, body) in message {
                script.push(match (body, lose) {
                    (true, false) => Step::Skip(*direction, part.len() as u64),
                    (true, true) => Step::Lost(*direction, part.len() as u64),
                    (false, _) => bytes(*direction, part),
                });
            }
        }
        prop_assert_eq!(&play(Some(Role::Server), true, true, &script), &expected);
    }

    /// Whatever is lost, an exchange that has a response has its own.
    #[test]
    fn losses_never_mix_exchanges_up(
        turns in prop::collection::vec(turn(), 1..9),
        depth in 1usize..4,
        losses in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1usize..300), 1..4),
        joined in any::<bool>(),
        known in any::<bool>(),
    ) {
        // Joined in the middle of pipelining nothing tells how many requests went before.
        let runs = runs(&conversation(&turns, if joined { 1 } else { depth }));
        let mut lost: Vec<Vec<bool>> = runs.iter().map(|(_, run)| vec![false; run.len()]).collect();
        for (run, from, length) in losses {
            let run = run.index(runs.len());
            let from = from.index(lost[run].len());
            let to = (from + length).min(lost[run].len());
            lost[run][from..to].fill(true);
        }
        let mut script = Vec::new();
        for ((direction, run), lost) in runs.iter().zip(&lost) {
            let mut at = 0;
            while at < run.len() {
                let length = lost[at..].iter().take_while(|flag| **flag == lost[at]).count();
                script.push(if lost[at] { Step::Lost(*direction, length as u64) } else { bytes(*direction, &run[at..at + length]) });
                at += length;
            }
        }
        let (exchanges, _) = play(known.then_some(Role::Server), !joined, false, &script);
        for exchange in exchanges {
            if let Some(response) = exchange.response {
                let index: usize = exchange.request.target.trim_start_matches('/').parse().unwrap();
                prop_assert_eq!(response.status, status(index));
            }
        }
    }
}
