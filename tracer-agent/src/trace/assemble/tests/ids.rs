//! Ids and flags of whole traces, whenever what is above becomes known.

use super::*;
use crate::trace::{FLAG_RANDOM, FLAG_SAMPLED};

const HOPS: u16 = 4;

/// The two ends of each hop of a chain: client 1, server 2, client 3, server 4, ...
fn hops() -> Vec<(Arc<Connection>, Arc<Connection>)> {
    let ends = (0..HOPS).map(|hop| {
        let id = u64::from(hop) * 2;
        (
            connection(id + 1, Role::Client, 1000 + hop, 80 + hop),
            connection(id + 2, Role::Server, 1000 + hop, 80 + hop),
        )
    });
    ends.collect()
}

/// Plays the chain, its exchanges told of in this order; the first client's request carries `header`.
fn play(order: &[usize], header: Option<&str>) -> World {
    let mut world = world(Limits::default());
    let hops = hops();
    // Servers say nothing of a header: it is the client's end that was seen to carry it.
    let begin = |world: &mut World, place: usize| {
        let (client, server) = &hops[place / 2];
        if place.is_multiple_of(2) {
            let cause = (place > 0).then_some((place as u64, 0));
            let header = header.filter(|_| place == 0);
            world.begin(opened(Role::Client, 0, cause, header), client);
        } else {
            world.begin(opened(Role::Server, 0, None, None), server);
        }
    };
    for &place in order {
        begin(&mut world, place);
    }
    for (client, server) in hops.iter().rev() {
        world.end(Role::Server, 0, server);
        world.end(Role::Client, 0, client);
    }
    world.wait(PATIENCE_NS);
    world
}

/// Scenario: a chain of four calls on one host; its eight ends become known in any order, the context
/// of the first one last of all.
/// Guarantees: one trace id, one tracestate, the same flags, every parent right.
#[test]
fn one_trace_in_whatever_order_it_is_learnt() {
    let header = format!("00-{TRACE}-{PARENT}-03");
    let last = usize::from(HOPS) * 2;
    let forward: Vec<usize> = (0..last).collect();
    let backward: Vec<usize> = (0..last).rev().collect();
    let servers_first = [1, 3, 5, 7, 6, 4, 2, 0];
    for order in [&*forward, &backward, &servers_first] {
        for header in [None, Some(&*header)] {
            let world = play(order, header);
            let first = world.span(1, 0);
            let mut above = None;
            for id in 1..=last as u64 {
                let span = world.span(id, 0);
                assert_eq!(span.trace_id, first.trace_id, "{order:?} {id}");
                assert_eq!(span.flags, FLAG_RANDOM | FLAG_SAMPLED, "{order:?} {id}");
                if id > 1 {
                    assert_eq!(span.parent, above, "{order:?} {id}");
                }
                above = Some(span.span_id);
            }
            assert_eq!(first.parent.is_some(), header.is_some());
            assert_eq!(world.out.len(), last);
        }
    }
}

/// Scenario: a trace whose sender does not say that its id is random, or that it is sampled.
/// Guarantees: nothing is claimed for it; traces that begin here are random and sampled.
#[test]
fn flags_are_passed_on_as_they_are() {
    for (flags, expected) in [
        ("00", 0),
        ("01", FLAG_SAMPLED),
        ("02", FLAG_RANDOM),
        ("03", FLAG_RANDOM | FLAG_SAMPLED),
        ("ff", FLAG_RANDOM | FLAG_SAMPLED),
    ] {
        let header = format!("00-{TRACE}-{PARENT}-{flags}");
        let mut world = world(Limits::default());
        let server = connection(1, Role::Server, 1000, 80);
        let client = connection(2, Role::Client, 2000, 90);
        world.begin(opened(Role::Server, 0, None, Some(&header)), &server);
        world.begin(opened(Role::Client, 0, Some((1, 0)), None), &client);
        world.end(Role::Client, 0, &client);
        world.end(Role::Server, 0, &server);
        for id in [1, 2] {
            assert_eq!(world.span(id, 0).flags, expected, "{flags} {id}");
        }
    }
    let world = play(&[0, 1], None);
    assert_eq!(world.span(1, 0).flags, FLAG_RANDOM | FLAG_SAMPLED);
}

/// Scenario: many traces begin.
/// Guarantees: ids differ, and every bit of the 56 that samplers look at is set in about half of them.
#[test]
fn new_ids_are_random() {
    let mut ids = Ids::new(fastrand::Rng::with_seed(11));
    const TRACES: u32 = 4096;
    let mut set = [0u32; 56];
    for _ in 0..TRACES {
        let id = u128::from_be_bytes(ids.trace_id().0);
        for (bit, count) in set.iter_mut().enumerate() {
            *count += u32::from(id >> bit & 1 == 1);
        }
    }
    for count in set {
        // Six standard deviations of 32 around the half.
        assert!(count.abs_diff(TRACES / 2) < 192, "{set:?}");
    }
}
