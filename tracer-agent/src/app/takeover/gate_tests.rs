//! Two gates that see the same exchanges at slightly different times.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::protocol::{ContextHeaders, Outcome, Request};

const BOUNDARY: u64 = 10_000_000_000;

/// A connection as one of the agents knows it: joined at byte `joined` of what is read.
fn connection(port: u16, joined: u32, tls: bool) -> Arc<Connection> {
    let address = |port| Endpoint::Ip(SocketAddr::from(([127, 0, 0, 1], port)));
    Arc::new(Connection {
        id: 1,
        local: address(80),
        remote: address(port),
        role: Some(Role::Server),
        from_start: false,
        tls,
        wire: Some(Wire::Tcp {
            read: joined,
            write: 0,
        }),
    })
}

/// The request whose first byte has this sequence number.
fn exchange(start_ns: u64, sequence: u32, joined: u32) -> Exchange {
    Exchange {
        key: u64::from(sequence.wrapping_sub(joined)),
        role: Role::Server,
        protocol: Protocol::Http11,
        request: Request {
            method: "GET".into(),
            target: "/".into(),
            scheme: None,
            authority: None,
            user_agent: None,
            context: ContextHeaders::default(),
            body_bytes: None,
        },
        response: None,
        grpc: None,
        outcome: Outcome::Complete,
        start_ns,
        response_start_ns: None,
        end_ns: start_ns,
        stream: 0,
        tgid: 1,
        tid: 1,
    }
}

fn opened(exchange: &Exchange) -> Opened {
    Opened {
        tgid: 7,
        key: exchange.key,
        role: exchange.role,
        position: Some(exchange.key),
        start_ns: exchange.start_ns,
        cause: None,
        context: ContextHeaders::default(),
    }
}

/// How often each exchange is reported. `seen`: connection, sequence number, the older's time and the newer's.
fn reports(seen: &[(u16, u32, u64, u64)], tls: bool) -> Vec<usize> {
    let mut older = Gate::new(false);
    older.hand_over_at(BOUNDARY);
    let mut newer = Gate::new(true);
    let mut counts = Vec::new();
    for (port, sequence, older_ns, newer_ns) in seen {
        let (then, now) = (connection(*port, 7, tls), connection(*port, 5_000, tls));
        let of_older = exchange(*older_ns, *sequence, 7);
        older.opened(&opened(&of_older), &then);
        let by_older = older.judge(&of_older, &then) == Verdict::Report;
        counts.push(usize::from(by_older));
        let of_newer = exchange(*newer_ns, *sequence, 5_000);
        assert_eq!(newer.judge(&of_newer, &now), Verdict::Wait);
        newer.hold(of_newer, now);
    }
    assert!(newer.take_held().is_empty());
    newer.taken_from(BOUNDARY);
    assert_eq!(older.take_borders(BOUNDARY + NEAR_NS), None);
    let borders = older
        .take_borders(BOUNDARY + 2 * NEAR_NS + 1)
        .expect("all was seen");
    let wire = serde_json::to_string(&borders).expect("JSON");
    newer.borders(serde_json::from_str(&wire).expect("the same"));
    let held = newer.take_held();
    assert_eq!(held.len(), seen.len());
    for (count, (exchange, connection)) in counts.iter_mut().zip(held) {
        match newer.judge(&exchange, &connection) {
            Verdict::Report => *count += 1,
            Verdict::Leave => {}
            Verdict::Wait => panic!("everything is known"),
        }
    }
    counts
}

proptest! {
    /// Scenario: requests on several connections around the boundary, each seen by both agents up to
    /// 3 ms apart, in either order. Guarantees: each is reported once, by one of them.
    #[test]
    fn each_is_reported_once(
        steps in prop::collection::vec((0u16..4, 1u64..8_000_000, -3_000_000i64..3_000_000), 1..300),
        first in any::<u32>(),
    ) {
        let mut at = BOUNDARY - NEAR_NS / 2;
        let mut sequences = [first; 4];
        let seen: Vec<_> = steps.into_iter().map(|(port, step, skew)| {
            at += step;
            let sequence = &mut sequences[usize::from(port)];
            *sequence = sequence.wrapping_add(100);
            (port, *sequence, at, at.saturating_add_signed(skew))
        }).collect();
        prop_assert!(reports(&seen, false).iter().all(|count| *count == 1));
    }
}

/// Scenario: connections without sequence numbers, requests farther apart than the agents' times for
/// them. Guarantees: each is reported once.
#[test]
fn without_an_order_the_middle_decides() {
    for shift in 0..20 {
        for skew in [-400_000i64, 0, 400_000] {
            let seen: Vec<_> = (0..100u64)
                .map(|n| {
                    let at = BOUNDARY - 50_000_000 + shift * 50_000 + n * 1_000_000;
                    (1, 100, at, at.saturating_add_signed(skew))
                })
                .collect();
            let counts = reports(&seen, true);
            assert!(counts.iter().all(|count| *count == 1), "{shift} {skew}");
        }
    }
}

#[test]
fn verdicts_far_from_the_boundary() {
    let there = connection(1, 0, false);
    let judge = |gate: &Gate, start_ns| gate.judge(&exchange(start_ns, 1, 0), &there);
    let (early, late) = (BOUNDARY - NEAR_NS - 1, BOUNDARY + NEAR_NS + 1);
    let mut gate = Gate::new(false);
    assert_eq!(judge(&gate, early), Verdict::Report);
    gate.alone_from(BOUNDARY);
    assert_eq!(judge(&gate, BOUNDARY - 1), Verdict::Leave);
    assert_eq!(judge(&gate, BOUNDARY), Verdict::Report);
    gate.taken_from(BOUNDARY);
    assert_eq!(judge(&gate, early), Verdict::Leave);
    assert_eq!(judge(&gate, BOUNDARY), Verdict::Wait);
    assert_eq!(judge(&gate, late), Verdict::Report);
    gate.borders(Borders::default());
    assert_eq!(judge(&gate, BOUNDARY - 1), Verdict::Report);
    gate.hand_over_at(BOUNDARY);
    assert!(gate.is_handed_over());
    assert_eq!(judge(&gate, BOUNDARY - 1), Verdict::Report);
    assert_eq!(judge(&gate, BOUNDARY), Verdict::Leave);
}

#[test]
fn what_waits_is_bounded() {
    let mut gate = Gate::new(true);
    for _ in 0..MOST_HELD + 3 {
        gate.hold(exchange(1, 1, 0), connection(1, 0, false));
    }
    assert_eq!(gate.take_overflowed(), 3);
    assert_eq!(gate.take_overflowed(), 0);
    gate.alone_from(0);
    assert_eq!(gate.take_held().len(), MOST_HELD);
}
