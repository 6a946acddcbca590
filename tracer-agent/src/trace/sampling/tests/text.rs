//! Thresholds, randomness and `tracestate` as texts.

use crate::trace::TraceId;
use crate::trace::sampling::threshold::{Randomness, Threshold};
use crate::trace::sampling::tracestate::{Full, read, with};

/// The table of the specification (1 in N, precision 4): what SDKs given the same ratio have.
#[test]
fn thresholds_of_ratios_are_those_of_the_specification() {
    for (probability, expected) in [
        (1.0, "0"),
        (2.0, "0"),
        (1.0 / 2.0, "8"),
        (1.0 / 3.0, "aaab"),
        (1.0 / 4.0, "c"),
        (1.0 / 5.0, "cccd"),
        (1.0 / 8.0, "e"),
        (1.0 / 10.0, "e666"),
        (1.0 / 16.0, "f"),
        (1.0 / 100.0, "fd70a"),
        (1.0 / 1000.0, "ffbe77"),
        (1.0 / 10_000.0, "fff9724"),
        (1.0 / 100_000.0, "ffff583a"),
        (1.0 / 1_000_000.0, "ffffef39"),
    ] {
        let threshold = Threshold::of_probability(probability);
        assert_eq!(threshold.to_string(), expected, "{probability}");
        assert_eq!(Threshold::parse(expected), Some(threshold));
    }
    for none in [0.0, -1.0, f64::NAN, 1e-20] {
        assert_eq!(Threshold::of_probability(none), Threshold::NEVER, "{none}");
    }
    let highest = Randomness::parse("ffffffffffffff").expect("digits");
    assert!(!Threshold::NEVER.keeps(highest));
    assert!(Threshold::of_probability(2f64.powi(-56)).keeps(highest));
}

#[test]
fn texts_that_are_no_thresholds() {
    for text in ["", "g", "+1", "-1", "0x1", "123456789abcdef", " 1", "é"] {
        assert_eq!(Threshold::parse(text), None, "{text:?}");
    }
    assert!(Threshold::parse("123456789ABCDE").is_some());
    for text in [
        "",
        "1",
        "123456789abcd",
        "123456789abcdef",
        "+123456789abcd",
    ] {
        assert_eq!(Randomness::parse(text), None, "{text:?}");
    }
}

#[test]
fn randomness_is_the_low_seven_bytes() {
    let id = TraceId(*b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\x03\x04\x05\x06\x07");
    assert_eq!(Randomness::of_trace(id).to_string(), "01020304050607");
}

#[test]
fn tracestate_is_merged() {
    let half = Threshold::parse("8");
    let random = Randomness::parse("01234567890abc");
    let check = |state: &str, threshold, randomness, expected: &str| {
        let state = (!state.is_empty()).then_some(state);
        let found = with(state, threshold, randomness).expect("room");
        assert_eq!(found.as_deref().unwrap_or(""), expected, "{state:?}");
    };
    check("", half, None, "ot=th:8");
    check("", None, None, "");
    check("a=1,b=2", half, None, "ot=th:8,a=1,b=2");
    check("a=1,ot=th:c,b=2", half, None, "ot=th:8,a=1,b=2");
    check("a=1,ot=p:8;th:c;r:62", half, None, "ot=th:8;p:8;r:62,a=1");
    check("a=1,ot=th:c,b=2", None, None, "a=1,b=2");
    check("ot=th:c", None, None, "");
    check("ot=rv:0;x", half, None, "ot=th:8;rv:0;x");
    check("ot=rv:0;x", half, random, "ot=th:8;rv:01234567890abc;x");
    check("not=th:c,ot@x=1", half, None, "ot=th:8,not=th:c,ot@x=1");
    let many: Vec<String> = (0..32).map(|n| format!("k{n}=v")).collect();
    let expected = format!("ot=th:8,{}", many[..31].join(","));
    check(&many.join(","), half, None, &expected);
    let with_ot = format!("{},ot=th:c", many[..31].join(","));
    check(&with_ot, half, None, &expected);
    let long = format!("ot=k:{}", "v".repeat(250));
    assert_eq!(with(Some(&long), half, None), Err(Full));
}

#[test]
fn tracestate_is_read() {
    let check = |state: &str, threshold: Option<&str>, randomness: Option<&str>| {
        let ot = read(Some(state));
        let texts = (
            ot.threshold.map(|t| t.to_string()),
            ot.randomness.map(|r| r.to_string()),
        );
        let expected = (threshold.map(Into::into), randomness.map(Into::into));
        assert_eq!(texts, expected, "{state}");
    };
    check("a=1", None, None);
    check(
        "a=1, ot=th:8;rv:00000000000001",
        Some("8"),
        Some("00000000000001"),
    );
    check("ot=th:;rv:1", None, None);
    check("ot=th:xyz", None, None);
    check("ot=;;:", None, None);
    check("xot=th:8", None, None);
}

proptest::proptest! {
    #[test]
    fn any_text_is_survived(state in "[a-c=,:;ot hrv0-9]{0,60}", threshold in 0u64..1 << 56) {
        let threshold = Threshold::parse(&format!("{threshold:014x}"));
        let merged = with(Some(&state), threshold, None).expect("short").expect("not empty");
        proptest::prop_assert_eq!(read(Some(&merged)).threshold, threshold);
        let erased = with(Some(&merged), None, None).expect("short");
        proptest::prop_assert_eq!(read(erased.as_deref()).threshold, None);
    }

    /// Text and number are the same thing, and a higher probability keeps what a lower one keeps.
    #[test]
    fn thresholds_are_ordered(a in 1e-9f64..1.0, b in 1e-9f64..1.0, id: u128) {
        let (low, high) = (Threshold::of_probability(a.min(b)), Threshold::of_probability(a.max(b)));
        let random = Randomness::of_trace(TraceId(id.to_be_bytes()));
        proptest::prop_assert!(!low.keeps(random) || high.keeps(random));
        proptest::prop_assert_eq!(Threshold::parse(&low.to_string()), Some(low));
        let error = (low.probability() / a.min(b) - 1.0).abs();
        proptest::prop_assert!(error < 0.001, "{}", error);
    }
}
