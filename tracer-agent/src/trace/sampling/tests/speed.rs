//! What a span costs here. `cargo test --release -p tracer-agent --lib sampling::tests::speed -- --ignored --nocapture`

use std::time::Instant;

use super::{Made, span};
use crate::trace::Span;
use crate::trace::sampling::{Sampler, Settings, Standard};

#[test]
#[ignore = "a measurement"]
fn per_span() {
    const SPANS: u128 = 200_000;
    let ratio = |name| Settings {
        standard: Standard::named(name, 0.01).expect(name),
        ..Settings::default()
    };
    let outcome = Settings {
        keep_errors: true,
        spans_per_second: Some(100.0),
        ..ratio("parentbased_traceidratio")
    };
    for (name, settings) in [
        ("default", Settings::default()),
        ("traceidratio", ratio("traceidratio")),
        (
            "parentbased_traceidratio",
            ratio("parentbased_traceidratio"),
        ),
        ("ratio, errors, budget", outcome),
    ] {
        let mut rng = fastrand::Rng::with_seed(1);
        let spans: Vec<Span> = (0..SPANS)
            .map(|_| {
                let trace = rng.u128(1..);
                span(Made {
                    trace,
                    ..Made::default()
                })
            })
            .collect();
        let mut sampler = Sampler::new(settings);
        let mut out = Vec::with_capacity(spans.len());
        let start = Instant::now();
        for (number, span) in spans.into_iter().enumerate() {
            // 20,000 spans per second.
            let now_ns = number as u64 * 50_000;
            sampler.push(span, now_ns, &mut out);
            if number % 2000 == 0 {
                sampler.tick(now_ns, &mut out);
            }
        }
        sampler.finish(&mut out);
        let each = start.elapsed().as_nanos() / SPANS;
        println!("{name:<26} {each:>6} ns per span, {} kept", out.len());
    }
}
