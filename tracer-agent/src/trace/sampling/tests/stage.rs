//! The stage: which spans it keeps, when, and what it writes.

use std::time::Duration;

use super::{Made, span};
use crate::trace::routes::Pattern;
use crate::trace::sampling::{Rule, Sampler, Settings, Standard};
use crate::trace::{Span, SpanId, SpanKind};

const SECOND: u64 = 1_000_000_000;
/// Kept at 1% (threshold fd70a) and not kept.
const LUCKY: u128 = 0xff_0000_0000_0000;
const UNLUCKY: u128 = 0x01_0000_0000_0000;

fn standard(name: &str) -> Settings {
    Settings {
        standard: Standard::named(name, 0.01).expect(name),
        ..Settings::default()
    }
}

fn keeping_errors(name: &str) -> Settings {
    Settings {
        keep_errors: true,
        ..standard(name)
    }
}

/// Everything kept of `spans`, pushed at once and decided a second later.
fn kept(settings: Settings, spans: Vec<Span>) -> Vec<Span> {
    let mut sampler = Sampler::new(settings);
    let mut out = Vec::new();
    let pushed = spans.len() as u64;
    for span in spans {
        sampler.push(span, SECOND, &mut out);
    }
    sampler.tick(2 * SECOND, &mut out);
    sampler.finish(&mut out);
    assert_eq!(sampler.buffered(), 0);
    let counts = sampler.counts();
    assert_eq!(counts.kept, out.len() as u64);
    assert_eq!(counts.kept + counts.sampled_out, pushed);
    assert!(out.iter().all(|span| span.flags & 1 == 1));
    out
}

#[test]
fn standard_samplers_by_the_specification() {
    let check = |sampler: &str, trace: u128, sampled, state, expected: Option<&str>| {
        let made = Made {
            trace,
            sampled,
            state,
            parent: sampled.map(|_| 9),
            remote: sampled.is_some(),
            ..Made::default()
        };
        for settings in [standard(sampler), keeping_errors(sampler)] {
            // Beside rules always_on says so.
            let silent = settings.keep_errors && expected == Some("") && sampled.is_none();
            let expected = if silent { Some("ot=th:0") } else { expected };
            let out = kept(settings, vec![span(made)]);
            let state = out.first().map(|s| s.trace_state.as_deref().unwrap_or(""));
            assert_eq!(state, expected, "{sampler} {trace:x} {sampled:?}");
        }
    };
    let (one_percent, parents) = (Some("ot=th:fd70a"), Some("ot=th:8,a=1"));
    check("parentbased_always_on", UNLUCKY, None, None, Some(""));
    check("parentbased_always_on", UNLUCKY, Some(true), None, Some(""));
    check(
        "parentbased_always_on",
        LUCKY,
        Some(true),
        Some("a=1,ot=th:8"),
        Some("a=1,ot=th:8"),
    );
    check(
        "parentbased_always_on",
        UNLUCKY,
        Some(true),
        Some("ot=th:8,a=1"),
        Some("a=1"),
    );
    check("parentbased_always_on", LUCKY, Some(false), None, None);
    check(
        "always_on",
        UNLUCKY,
        Some(false),
        Some("ot=th:8"),
        Some("ot=th:0"),
    );
    check("always_off", LUCKY, None, None, None);
    check("always_off", LUCKY, Some(true), None, None);
    check("traceidratio", LUCKY, None, None, one_percent);
    check("traceidratio", UNLUCKY, None, None, None);
    check("traceidratio", LUCKY, Some(false), None, one_percent);
    check("traceidratio", UNLUCKY, Some(true), Some("ot=th:0"), None);
    check(
        "traceidratio",
        UNLUCKY,
        None,
        Some("ot=rv:ffffffffffffff"),
        Some("ot=th:fd70a;rv:ffffffffffffff"),
    );
    check(
        "traceidratio",
        LUCKY,
        None,
        Some("ot=rv:00000000000000"),
        None,
    );
    check("parentbased_traceidratio", LUCKY, None, None, one_percent);
    check("parentbased_traceidratio", UNLUCKY, None, None, None);
    check(
        "parentbased_traceidratio",
        UNLUCKY,
        Some(true),
        None,
        Some(""),
    );
    check("parentbased_traceidratio", LUCKY, Some(false), None, None);
    check(
        "parentbased_traceidratio",
        LUCKY,
        Some(true),
        Some("ot=th:8,a=1"),
        parents,
    );
    check("parentbased_always_off", LUCKY, None, None, None);
    check(
        "parentbased_always_off",
        UNLUCKY,
        Some(true),
        None,
        Some(""),
    );
}

#[test]
fn the_default_holds_nothing_back_and_writes_nothing() {
    let mut sampler = Sampler::new(Settings::default());
    let mut out = Vec::new();
    for number in 1..=100 {
        let made = Made {
            trace: number,
            state: Some("ot=rv:00000000000000,a=1"),
            ..Made::default()
        };
        sampler.push(span(made), SECOND, &mut out);
        assert_eq!((out.len() as u128, sampler.buffered()), (number, 0));
    }
    assert!(
        out.iter()
            .all(|span| span.trace_state.as_deref() == Some("ot=rv:00000000000000,a=1"))
    );
}

/// A trace as this host sees it: two services, each with a server span, calls below the first.
fn trace(id: u128, wrong: Option<u64>) -> Vec<Span> {
    let status = |number| if wrong == Some(number) { 500 } else { 200 };
    let made = |number: u64, parent: Option<u64>, remote: bool, kind: SpanKind, service| {
        span(Made {
            trace: id,
            span: number,
            parent,
            remote,
            kind,
            service,
            status: status(number),
            ..Made::default()
        })
    };
    vec![
        made(1, None, false, SpanKind::Server, "front"),
        made(2, Some(1), false, SpanKind::Client, "front"),
        made(3, Some(2), true, SpanKind::Server, "back"),
        made(4, Some(1), false, SpanKind::Client, "front"),
    ]
}

#[test]
fn a_trace_with_an_error_is_kept_whole_and_stands_for_itself() {
    for id in [LUCKY, UNLUCKY] {
        for wrong in 1..=4 {
            let mut spans = trace(id, Some(wrong));
            spans.reverse();
            let out = kept(keeping_errors("traceidratio"), spans);
            assert_eq!(out.len(), 4);
            assert!(
                out.iter()
                    .all(|s| s.trace_state.as_deref() == Some("ot=th:0"))
            );
        }
    }
    assert_eq!(
        kept(keeping_errors("traceidratio"), trace(UNLUCKY, None)).len(),
        0
    );
    let lucky = kept(keeping_errors("traceidratio"), trace(LUCKY, None));
    assert!(
        lucky.len() == 4
            && lucky
                .iter()
                .all(|s| s.trace_state.as_deref() == Some("ot=th:fd70a"))
    );
    assert_eq!(
        kept(keeping_errors("always_off"), trace(UNLUCKY, Some(3))).len(),
        4
    );
}

#[test]
fn slow_ones_are_kept_by_rules() {
    let rule = |service: Option<&str>, route: Option<&str>, millis| Rule {
        service: service.map(Into::into),
        route: route.map(|route| Pattern::parse(route).expect(route)),
        keep_slower_than: Some(Duration::from_millis(millis)),
        spans_per_second: None,
    };
    let settings = Settings {
        keep_slower_than: Some(Duration::from_secs(1)),
        rules: vec![
            rule(Some("shop"), Some("/reports/**"), 5000),
            rule(Some("sh*"), None, 100),
        ],
        ..standard("always_off")
    };
    let check = |service: &str, target: &str, took_ms: u64, expected: bool| {
        let made = Made {
            service,
            target,
            took_ms,
            ..Made::default()
        };
        let out = kept(settings.clone(), vec![span(made)]);
        assert_eq!(!out.is_empty(), expected, "{service} {target} {took_ms}");
    };
    check("cart", "/", 1000, false);
    check("cart", "/", 1001, true);
    check("shop", "/", 101, true);
    check("shop", "/", 100, false);
    check("shop", "/reports/1?x=y", 4000, false);
    check("shop", "/reports/1?x=y", 5001, true);
    check("ship", "/reports/1", 101, true);
}

#[test]
fn the_root_decides_else_the_deadline_else_the_bound() {
    let settings = Settings {
        max_buffered: 10,
        ..keeping_errors("traceidratio")
    };
    let mut out = Vec::new();
    let mut sampler = Sampler::new(settings);
    let mut spans = trace(LUCKY, None);
    let root = spans.remove(0);
    for span in spans {
        sampler.push(span, SECOND, &mut out);
    }
    sampler.tick(4 * SECOND, &mut out);
    assert!(out.is_empty(), "the root may still come");
    sampler.push(root, 4 * SECOND, &mut out);
    sampler.tick(4 * SECOND + SECOND / 10, &mut out);
    assert!(out.is_empty(), "others may be on their way");
    sampler.tick(5 * SECOND, &mut out);
    assert_eq!((out.len(), sampler.counts().by_root), (4, 1));

    let orphan = |trace: u128| Made {
        trace: LUCKY + trace,
        parent: Some(7),
        kind: SpanKind::Client,
        ..Made::default()
    };
    sampler.push(span(orphan(1)), 10 * SECOND, &mut out);
    sampler.tick(14 * SECOND, &mut out);
    assert_eq!(out.len(), 4);
    sampler.tick(15 * SECOND, &mut out);
    assert_eq!((out.len(), sampler.counts().by_deadline), (5, 1));

    for number in 0..100 {
        sampler.push(
            span(orphan(2 + number)),
            20 * SECOND + number as u64,
            &mut out,
        );
        assert!(sampler.buffered() <= 10);
    }
    assert!(sampler.counts().by_bound >= 90);
    sampler.finish(&mut out);
    assert_eq!(out.len(), 105);
}

#[test]
fn late_spans_follow_and_late_errors_are_kept() {
    let mut sampler = Sampler::new(keeping_errors("traceidratio"));
    let mut out = Vec::new();
    let late = |trace: u128, number: u64, status: u16| {
        span(Made {
            trace,
            span: number,
            parent: Some(1),
            kind: SpanKind::Client,
            status,
            ..Made::default()
        })
    };
    for id in [LUCKY, UNLUCKY] {
        sampler.push(
            span(Made {
                trace: id,
                ..Made::default()
            }),
            SECOND,
            &mut out,
        );
    }
    sampler.tick(2 * SECOND, &mut out);
    assert_eq!(out.len(), 1);
    out.clear();
    let mut push = |trace, number, status| {
        sampler.push(late(trace, number, status), 3 * SECOND, &mut out);
        out.pop()
            .map(|span| span.trace_state.unwrap_or_default().into_string())
    };
    let (ratio, certain) = (Some("ot=th:fd70a".to_owned()), Some("ot=th:0".to_owned()));
    assert_eq!(push(UNLUCKY, 2, 200), None);
    assert_eq!(push(LUCKY, 2, 200), ratio);
    assert_eq!(push(UNLUCKY, 3, 500), certain);
    assert_eq!(push(LUCKY, 3, 500), certain);
    assert_eq!(push(UNLUCKY, 4, 200), certain);
    assert_eq!(push(LUCKY, 4, 200), certain);
    assert_eq!(sampler.counts().late, 6);
}

/// A call that a service makes has no word of its own: it follows the request it serves.
#[test]
fn children_follow_the_decision_that_came_with_the_request() {
    for sampled in [true, false] {
        for turned in [true, false] {
            let mut spans = trace(UNLUCKY, None);
            spans.truncate(2);
            spans[0].sampled = Some(sampled);
            spans[0].parent = Some(SpanId([9; 8]));
            spans[0].parent_is_remote = true;
            if turned {
                spans.reverse();
            }
            let out = kept(standard("parentbased_traceidratio"), spans);
            assert_eq!(out.len(), if sampled { 2 } else { 0 }, "{sampled} {turned}");
        }
    }
}

#[test]
fn settings_change_while_traces_wait() {
    let mut sampler = Sampler::new(keeping_errors("always_off"));
    let mut out = Vec::new();
    sampler.push(span(Made::default()), SECOND, &mut out);
    sampler.reload(Settings::default());
    sampler.push(
        span(Made {
            trace: 2,
            ..Made::default()
        }),
        SECOND,
        &mut out,
    );
    sampler.tick(2 * SECOND, &mut out);
    assert_eq!((out.len(), sampler.buffered()), (2, 0));
    sampler.reload(standard("always_off"));
    sampler.push(
        span(Made {
            trace: 3,
            ..Made::default()
        }),
        SECOND,
        &mut out,
    );
    assert_eq!(out.len(), 2);
}

proptest::proptest! {
    /// One trace, one decision: in whatever order and at whatever times its spans come, as long as
    /// they come while it is open.
    #[test]
    fn order_does_not_matter(id: u128, wrong in proptest::option::of(1u64..=4), keys in proptest::array::uniform4(0u64..1000), ratio in 0.0f64..1.0) {
        let settings = Settings {
            standard: Standard::named("traceidratio", ratio).expect("known"),
            ..keeping_errors("traceidratio")
        };
        let reference = kept(settings.clone(), trace(id, wrong));
        proptest::prop_assert!(reference.is_empty() || reference.len() == 4);
        let mut spans: Vec<_> = keys.iter().zip(trace(id, wrong)).collect();
        spans.sort_by_key(|(key, _)| **key);
        let mut sampler = Sampler::new(settings);
        let mut out = Vec::new();
        for (key, span) in spans {
            // Less than the time that a trace stays open for.
            let now = SECOND + key * 200_000;
            sampler.push(span, now, &mut out);
            sampler.tick(now, &mut out);
        }
        sampler.tick(8 * SECOND, &mut out);
        let states = |spans: &[Span]| {
            let mut states: Vec<_> = spans.iter().map(|s| (s.span_id.0, s.trace_state.clone())).collect();
            states.sort();
            states
        };
        proptest::prop_assert_eq!(states(&out), states(&reference));
    }

    /// Two agents that see different parts of a trace, each with a ratio of its own: the lower one
    /// keeps nothing that the higher one does not.
    #[test]
    fn agents_agree_without_talking(id: u128, a in 0.0f64..=1.0, b in 0.0f64..=1.0) {
        let keeps = |ratio: f64, part: usize| {
            let settings = Settings {
                standard: Standard::named("traceidratio", ratio).expect("known"),
                ..Settings::default()
            };
            !kept(settings, trace(id, None).drain(part..part + 1).collect()).is_empty()
        };
        proptest::prop_assert!(!keeps(a.min(b), 0) || keeps(a.max(b), 2));
        proptest::prop_assert_eq!(keeps(a, 0), keeps(a, 2));
    }
}
