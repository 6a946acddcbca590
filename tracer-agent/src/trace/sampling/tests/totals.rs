//! Kept spans times what they stand for is what was seen, within the binomial error.

use super::{Made, span};
use crate::trace::sampling::{Sampler, Settings, Standard, Threshold};
use crate::trace::{Span, SpanKind};

const SECOND: u64 = 1_000_000_000;

/// What a span says it stands for, and the variance that this brings into a sum.
fn weight(span: &Span) -> (f64, f64) {
    let state = span
        .trace_state
        .as_deref()
        .expect("a threshold was written");
    let text = state.strip_prefix("ot=th:").expect("nothing else");
    let threshold = Threshold::parse(text).expect("a threshold");
    let (p, count) = (threshold.probability(), threshold.adjusted_count());
    (count, (1.0 - p) / (p * p))
}

/// Many traces, some with errors and some slow, through a sampler. Returns everything that it kept,
/// and how many spans there were, how many of them in traces that are kept for themselves.
fn run(settings: Settings, traces: u64, per_second: u64) -> (Vec<Span>, u64, u64) {
    let mut rng = fastrand::Rng::with_seed(0x5eed);
    let mut sampler = Sampler::new(settings);
    let (mut out, mut seen, mut special) = (Vec::new(), 0, 0);
    for number in 0..traces {
        let now = SECOND + number * SECOND / per_second;
        let (trace, calls) = (rng.u128(1..), rng.u64(0..3));
        let (wrong, slow) = (rng.u32(0..100) == 0, rng.u32(0..100) == 0);
        for call in 0..calls {
            let child = Made {
                trace,
                span: 2 + call,
                parent: Some(1),
                kind: SpanKind::Client,
                status: if wrong { 500 } else { 200 },
                ..Made::default()
            };
            sampler.push(span(child), now, &mut out);
        }
        let root = Made {
            trace,
            took_ms: if slow { 3000 } else { 5 },
            ..Made::default()
        };
        sampler.push(span(root), now, &mut out);
        seen += calls + 1;
        if wrong && calls > 0 || slow {
            special += calls + 1;
        }
        if number % 100 == 0 {
            sampler.tick(now, &mut out);
        }
    }
    sampler.finish(&mut out);
    let counts = sampler.counts();
    assert_eq!(counts.kept + counts.sampled_out, seen);
    (out, seen, special)
}

fn assert_total(kept: &[Span], seen: u64) {
    let (mut total, mut variance) = (0.0, 0.0);
    for (count, of_one) in kept.iter().map(weight) {
        total += count;
        // The spans of one trace come together: at most three at a time.
        variance += 3.0 * of_one;
    }
    let error = (total - seen as f64).abs();
    assert!(
        error <= 5.0 * f64::sqrt(variance),
        "{total} of {seen}, {} standard deviations",
        error / f64::sqrt(variance)
    );
}

fn settings(ratio: f64) -> Settings {
    Settings {
        standard: Standard::named("parentbased_traceidratio", ratio).expect("known"),
        keep_errors: true,
        keep_slower_than: Some(std::time::Duration::from_secs(1)),
        ..Settings::default()
    }
}

#[test]
fn one_percent() {
    let (kept, seen, special) = run(settings(0.01), 200_000, 20_000);
    let certain = kept.iter().filter(|span| weight(span).0 == 1.0).count() as u64;
    assert_eq!(
        certain, special,
        "all errors and slow ones, whole, for themselves"
    );
    let others = kept.len() as f64 - certain as f64;
    assert!((2000.0..6000.0).contains(&others), "{others}");
    assert_total(&kept, seen);
}

#[test]
fn the_ratio_alone() {
    let alone = Settings {
        standard: Standard::named("traceidratio", 0.05).expect("known"),
        ..Settings::default()
    };
    let (kept, seen, _) = run(alone, 100_000, 20_000);
    assert!(kept.iter().all(|span| weight(span).0 > 19.0));
    assert_total(&kept, seen);
}

/// Thresholds change all the time here, and the sum is right nevertheless.
#[test]
fn a_budget() {
    let budget = Settings {
        spans_per_second: Some(500.0),
        ..settings(1.0)
    };
    let (kept, seen, _) = run(budget, 400_000, 10_000);
    assert_total(&kept, seen);
    // 40 s at 500 spans each, and the first ones, before the rate was known.
    let most = 40.0 * 500.0 * 1.2 + 30_000.0;
    assert!((kept.len() as f64) < most, "{}", kept.len());
    let thresholds: std::collections::BTreeSet<_> =
        kept.iter().map(|span| span.trace_state.clone()).collect();
    assert!(thresholds.len() > 10, "{thresholds:?}");
}
