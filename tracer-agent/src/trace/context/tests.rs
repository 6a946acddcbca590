//! Scenario of every table: a request with these headers. Guarantee: it is read as said, and what
//! breaks a rule is reported as malformed and gives no context.

use proptest::prelude::*;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn headers(list: &[(&str, &str)]) -> ContextHeaders {
    ContextHeaders(
        list.iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
    )
}

/// What came out, in one line: `format trace parent sampled flags tracestate`, `decision format 0`,
/// and the malformed formats after `!`.
fn show(extraction: &Extraction) -> String {
    let Extraction {
        context,
        decision,
        malformed,
    } = extraction;
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let mut parts = Vec::new();
    if let Some((format, context)) = context {
        let RequestContext {
            trace_id,
            parent,
            sampled,
            flags,
            trace_state,
        } = context;
        parts.push(format.name().to_string());
        parts.push(hex(&trace_id.0));
        parts.push(parent.map_or("-".into(), |parent| hex(&parent.0)));
        parts.push(sampled.map_or("?".into(), |sampled| u8::from(sampled).to_string()));
        parts.push(format!("{flags:02x}"));
        parts.extend(trace_state.as_deref().map(str::to_string));
    }
    if let Some((format, sampled)) = decision {
        parts.push(format!("decision {} {}", format.name(), u8::from(*sampled)));
    }
    for format in Format::ALL
        .into_iter()
        .filter(|format| malformed.contains(*format))
    {
        parts.push(format!("!{}", format.name()));
    }
    if malformed.trace_state() {
        parts.push("!tracestate".into());
    }
    parts.join(" ")
}

fn check(list: &[(&str, &str)], expected: &str) {
    let expected = expected.replace("TRACE", TRACE).replace("SPAN", SPAN);
    assert_eq!(
        show(&extract(&headers(list), &Propagators::default())),
        expected,
        "for {list:?}"
    );
}

/// Checks one header; `TRACE` and `SPAN` stand for the usual ids.
fn check_one(name: &str, value: &str, expected: &str) {
    check(
        &[(name, &value.replace("TRACE", TRACE).replace("SPAN", SPAN))],
        expected,
    );
}

#[test]
fn traceparent() {
    let check = |value: &str, expected: &str| check_one("traceparent", value, expected);
    let good = "tracecontext TRACE SPAN 1 01";
    check("00-TRACE-SPAN-01", good);
    check(" \t00-TRACE-SPAN-01 ", good);
    check("00-TRACE-SPAN-00", "tracecontext TRACE SPAN 0 00");
    check("00-TRACE-SPAN-02", "tracecontext TRACE SPAN 0 02");
    check("00-TRACE-SPAN-03", "tracecontext TRACE SPAN 1 03");
    check("00-TRACE-SPAN-ff", "tracecontext TRACE SPAN 1 03");
    check("00-TRACE-SPAN-08", "tracecontext TRACE SPAN 0 00");
    // Later versions: the same fields, and then a dash or nothing.
    check("01-TRACE-SPAN-01", good);
    check("cc-TRACE-SPAN-01", good);
    check("fe-TRACE-SPAN-01-", good);
    check("cc-TRACE-SPAN-01-what-the-future-will-be-like", good);
    check(
        "cc-TRACE-SPAN-01.what-the-future-will-be-like",
        "!tracecontext",
    );
    check("cc-TRACE-SPAN-0", "!tracecontext");
    check("cc-TRACE-SPAN-01what", "!tracecontext");
    for malformed in [
        "",
        "00",
        "00-TRACE-SPAN",
        "00-TRACE-SPAN-",
        "00-TRACE-SPAN-1",
        "00-TRACE-SPAN-001",
        "00-TRACE-SPAN-01-",
        "00-TRACE-SPAN-01-more",
        "00-TRACE-SPAN-01.",
        "00-TRACE-SPAN-0G",
        "00-TRACE-SPAN-0A",
        "00-TRACE-SPAN-.1",
        "00-TRACE-SPAN- 1",
        "ff-TRACE-SPAN-01",
        "FF-TRACE-SPAN-01",
        "0A-TRACE-SPAN-01",
        "0-TRACE-SPAN-01",
        "000-TRACE-SPAN-01",
        ".0-TRACE-SPAN-01",
        "00-00000000000000000000000000000000-SPAN-01",
        "00-TRACE-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-SPAN-01",
        "00-TRACE-B7AD6B7169203331-01",
        "00-.af7651916cd43dd8448eb211c80319c-SPAN-01",
        "00-TRACE-.7ad6b7169203331-01",
        "00-TRACE0-SPAN-01",
        "00-TRACE-SPAN0-01",
        "00-0af7651916cd43dd8448eb211c80319-SPAN-01",
        "00_TRACE_SPAN_01",
        "00-TRACE-SPAN-01, 00-TRACE-SPAN-01",
        "01-TRACE-SPAN-01, 01-TRACE-SPAN-01",
        "01-TRACE-SPAN-01-x, 01-TRACE-SPAN-01",
        "00-TRACE-SPAN-01,",
        ",00-TRACE-SPAN-01",
        "\"00-TRACE-SPAN-01\"",
        "00-TRACE-SPAN-0é",
        "éé-TRACE-SPAN-01",
    ] {
        check(malformed, "!tracecontext");
    }
}

#[test]
fn traceparent_repeated() {
    let value = format!("00-{TRACE}-{SPAN}-01");
    check(
        &[("traceparent", &value), ("traceparent", &value)],
        "!tracecontext",
    );
}

#[test]
fn tracestate() {
    let check = |values: &[&str], expected: &str| {
        let value = format!("00-{TRACE}-{SPAN}-01");
        let mut list = vec![("traceparent", value.as_str())];
        list.extend(values.iter().map(|value| ("tracestate", *value)));
        let expected = format!(
            "tracecontext TRACE SPAN 1 01{}{expected}",
            if expected.is_empty() { "" } else { " " }
        );
        self::check(&list, &expected);
    };
    check(&[], "");
    check(&[""], "");
    check(&[" , ,"], "");
    check(&["foo=1"], "foo=1");
    check(&["foo=1,bar=2"], "foo=1,bar=2");
    check(&["foo=1", "bar=2"], "foo=1,bar=2");
    check(&["bar=2", "", "foo=1"], "bar=2,foo=1");
    check(&[" foo=1 ,\tbar=2\t, ,baz=3,"], "foo=1,bar=2,baz=3");
    check(&["foo= 1 2"], "foo= 1 2");
    check(
        &["fw529a3039@dt=FfuUA", "0tenant@system=a"],
        "fw529a3039@dt=FfuUA,0tenant@system=a",
    );
    check(
        &["a-_*/b=!#$%&'()*+-./:;<>?@[]^_`{|}~"],
        "a-_*/b=!#$%&'()*+-./:;<>?@[]^_`{|}~",
    );
    for malformed in [
        "foo",
        "foo=",
        "=1",
        "foo=1=2",
        "foo =1",
        "foo= ",
        "Foo=1",
        "_foo=1",
        "@foo=1",
        "foo.=1",
        "foo=\u{7f}",
        "foo=a\tb",
        "foo=é",
        "é=1",
        "foo=1,bar",
    ] {
        check(&[malformed], "!tracestate");
    }
    check(&["foo=1,foo=1"], "!tracestate");
    check(&["foo=1", "bar=2,foo=3"], "!tracestate");
    let list = |count: usize| {
        (0..count)
            .map(|key| format!("k{key}=v"))
            .collect::<Vec<_>>()
            .join(",")
    };
    check(&[&list(32)], &list(32));
    check(&[&list(33)], "!tracestate");
    let member = |key: usize, value: usize| format!("{}={}", "k".repeat(key), "v".repeat(value));
    check(&[&member(256, 256)], &member(256, 256));
    check(&[&member(257, 1)], "!tracestate");
    check(&[&member(1, 257)], "!tracestate");
}

#[test]
fn tracestate_without_a_good_traceparent_is_nothing() {
    check(&[("tracestate", "foo=1")], "");
    check(
        &[("traceparent", "00-x"), ("tracestate", "foo=1")],
        "!tracecontext",
    );
}

#[test]
fn b3_single() {
    let check = |value: &str, expected: &str| check_one("b3", value, expected);
    check("TRACE-SPAN-1", "b3 TRACE SPAN 1 01");
    check("TRACE-SPAN-0", "b3 TRACE SPAN 0 00");
    check("TRACE-SPAN-d", "b3 TRACE SPAN 1 01");
    check("TRACE-SPAN", "b3 TRACE SPAN ? 00");
    check("TRACE-SPAN-1-SPAN", "b3 TRACE SPAN 1 01");
    check("SPAN-SPAN-1", "b3 0000000000000000SPAN SPAN 1 01");
    check("0", "decision b3 0");
    check("1", "decision b3 1");
    check("d", "decision b3 1");
    for malformed in [
        "",
        "2",
        "true",
        "TRACE",
        "TRACE-",
        "TRACE-SPAN-",
        "TRACE-SPAN-2",
        "TRACE-SPAN-true",
        "TRACE-SPAN-1-",
        "TRACE-SPAN-1-123",
        "TRACE-SPAN-1-SPAN-1",
        "0TRACE-SPAN-1",
        "0SPAN-SPAN-1",
        "TRACE-SPAN0-1",
        "0AF7651916CD43DD8448EB211C80319C-SPAN-1",
        "00000000000000000000000000000000-SPAN-1",
        "0000000000000000-SPAN-1",
        "TRACE-0000000000000000-1",
        "-1",
        "TRACE-SPAN-1, TRACE-SPAN-1",
    ] {
        check(malformed, "!b3");
    }
}

#[test]
fn b3_multi() {
    let check = |list: &[(&str, &str)], expected| {
        let list: Vec<_> = list
            .iter()
            .map(|(name, value)| (format!("x-b3-{name}"), *value))
            .collect();
        let list: Vec<_> = list
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        self::check(&list, expected);
    };
    let ids = [("traceid", TRACE), ("spanid", SPAN)];
    let with = |more: &[(&'static str, &'static str)]| [&ids, more].concat();
    check(&ids, "b3multi TRACE SPAN ? 00");
    check(&with(&[("sampled", "1")]), "b3multi TRACE SPAN 1 01");
    check(&with(&[("sampled", "true")]), "b3multi TRACE SPAN 1 01");
    check(&with(&[("sampled", "0")]), "b3multi TRACE SPAN 0 00");
    check(
        &with(&[("sampled", "0"), ("flags", "1")]),
        "b3multi TRACE SPAN 1 01",
    );
    check(
        &with(&[("sampled", "0"), ("flags", "0")]),
        "b3multi TRACE SPAN 0 00",
    );
    check(
        &with(&[("parentspanid", SPAN), ("sampled", "1")]),
        "b3multi TRACE SPAN 1 01",
    );
    check(
        &[("traceid", SPAN), ("spanid", SPAN)],
        "b3multi 0000000000000000SPAN SPAN ? 00",
    );
    check(&[("sampled", "0")], "decision b3multi 0");
    check(&[("flags", "1")], "decision b3multi 1");
    check(&[("flags", "0")], "");
    for malformed in [
        vec![("traceid", TRACE)],
        vec![("spanid", SPAN)],
        vec![("parentspanid", SPAN)],
        vec![("traceid", TRACE), ("spanid", "0000000000000000")],
        vec![("traceid", TRACE), ("spanid", "1")],
        vec![("traceid", "x"), ("spanid", SPAN)],
        with(&[("sampled", "2")]),
        with(&[("sampled", "")]),
        with(&[("flags", "2")]),
        with(&[("parentspanid", "")]),
        with(&[("traceid", TRACE)]),
        with(&[("sampled", "1"), ("sampled", "1")]),
        vec![("sampled", "yes")],
    ] {
        check(&malformed, "!b3multi");
    }
}

#[test]
fn jaeger() {
    let check = |value: &str, expected: &str| check_one("uber-trace-id", value, expected);
    check("TRACE:SPAN:0:1", "jaeger TRACE SPAN 1 01");
    check("TRACE:SPAN:SPAN:0", "jaeger TRACE SPAN 0 00");
    check("TRACE:SPAN::03", "jaeger TRACE SPAN 1 01");
    check("TRACE:SPAN:0:2", "jaeger TRACE SPAN 1 01");
    check("TRACE:SPAN:0:4", "jaeger TRACE SPAN 0 00");
    check("TRACE%3ASPAN%3a0%3A1", "jaeger TRACE SPAN 1 01");
    check(
        "1f:A:0:1",
        "jaeger 0000000000000000000000000000001f 000000000000000a 1 01",
    );
    for malformed in [
        "",
        ":::",
        "TRACE:SPAN:0",
        "TRACE:SPAN:0:",
        "TRACE:SPAN:0:1:2",
        "TRACE:SPAN:0:100",
        "TRACE:SPAN:x:1",
        "TRACE:SPAN:0:x",
        "0TRACE:SPAN:0:1",
        "TRACE:0SPAN:0:1",
        "0:SPAN:0:1",
        "TRACE:0:0:1",
        "TRACE%20SPAN:0:1",
    ] {
        check(malformed, "!jaeger");
    }
}

#[test]
fn xray() {
    let check = |value: &str, expected: &str| check_one("x-amzn-trace-id", value, expected);
    let root = "Root=1-0af76519-16cd43dd8448eb211c80319c";
    check(
        &format!("{root};Parent={SPAN};Sampled=1"),
        "xray TRACE SPAN 1 01",
    );
    check(
        &format!("Sampled=0; Parent={SPAN}; {root};"),
        "xray TRACE SPAN 0 00",
    );
    check(&format!("{root};Parent={SPAN}"), "xray TRACE SPAN ? 00");
    check(
        &format!("{root};Parent={SPAN};Sampled=?"),
        "xray TRACE SPAN ? 00",
    );
    check(root, "xray TRACE - ? 00");
    check(
        &format!("Self=1-67891234-12456789abcdef012345678;{root};Lineage=a:1|b:2"),
        "xray TRACE - ? 00",
    );
    for malformed in [
        "".to_string(),
        "x".to_string(),
        "Sampled=1".to_string(),
        format!("Parent={SPAN};Sampled=1"),
        format!("{root};Parent={SPAN};Sampled=2"),
        format!("{root};Parent="),
        format!("{root};Parent=123"),
        format!("{root};Parent=0000000000000000"),
        format!("{root};{root}"),
        format!("{root};oops"),
        "Root=1-00000000-000000000000000000000000".to_string(),
        "Root=2-0af76519-16cd43dd8448eb211c80319c".to_string(),
        "Root=1-0af76519-16cd43dd8448eb211c80319".to_string(),
        "Root=1-0af7651916cd43dd8448eb211c80319c".to_string(),
        format!("Root={TRACE}"),
    ] {
        check(&malformed, "!xray");
    }
}

#[test]
fn datadog() {
    let check = |list: &[(&str, &str)], expected| {
        let list: Vec<_> = list
            .iter()
            .map(|(name, value)| (format!("x-datadog-{name}"), *value))
            .collect();
        let list: Vec<_> = list
            .iter()
            .map(|(name, value)| (name.as_str(), *value))
            .collect();
        self::check(&list, expected);
    };
    let ids = [
        ("trace-id", "9532127138774266268"),
        ("parent-id", "13235353014750950193"),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&ids, more].concat();
    check(&ids, "datadog 00000000000000008448eb211c80319c SPAN ? 00");
    check(
        &with(&[("sampling-priority", "2")]),
        "datadog 00000000000000008448eb211c80319c SPAN 1 01",
    );
    check(
        &with(&[("sampling-priority", "0")]),
        "datadog 00000000000000008448eb211c80319c SPAN 0 00",
    );
    check(
        &with(&[("sampling-priority", "-1")]),
        "datadog 00000000000000008448eb211c80319c SPAN 0 00",
    );
    check(
        &with(&[
            ("sampling-priority", "1"),
            ("tags", "_dd.p.dm=-1,_dd.p.tid=0af7651916cd43dd,x"),
        ]),
        "datadog TRACE SPAN 1 01",
    );
    check(
        &with(&[("tags", "_dd.p.dm=-1")]),
        "datadog 00000000000000008448eb211c80319c SPAN ? 00",
    );
    check(&ids[..1], "datadog 00000000000000008448eb211c80319c - ? 00");
    check(
        &[ids[0], ("parent-id", "0")],
        "datadog 00000000000000008448eb211c80319c - ? 00",
    );
    check(&[("parent-id", "1"), ("sampling-priority", "1")], "");
    for malformed in [
        vec![("trace-id", "0"), ("parent-id", "1")],
        vec![("trace-id", ""), ("parent-id", "1")],
        vec![("trace-id", "+1"), ("parent-id", "1")],
        vec![("trace-id", "18446744073709551616"), ("parent-id", "1")],
        vec![("trace-id", "abc"), ("parent-id", "1")],
        vec![ids[0], ("parent-id", "x")],
        with(&[("sampling-priority", "x")]),
        with(&[("tags", "_dd.p.tid=0af7651916cd43d")]),
        with(&[("tags", "_dd.p.tid=0AF7651916CD43DD")]),
        with(&[
            ("tags", "_dd.p.tid=0af7651916cd43dd"),
            ("tags", "_dd.p.tid=0af7651916cd43dd"),
        ]),
        with(&[("trace-id", "1")]),
    ] {
        check(&malformed, "!datadog");
    }
}

#[test]
fn the_first_valid_format_wins_and_malformed_ones_before_it_are_told() {
    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let jaeger = "1:2:0:0";
    check(
        &[("uber-trace-id", jaeger), ("traceparent", &traceparent)],
        "tracecontext TRACE SPAN 1 01",
    );
    check(
        &[
            ("traceparent", "x"),
            ("b3", "x"),
            ("uber-trace-id", jaeger),
            ("x-amzn-trace-id", "x"),
        ],
        "jaeger 00000000000000000000000000000001 0000000000000002 0 00 !tracecontext !b3",
    );
    // A decision without ids does not stand in the way of ids.
    check(
        &[("b3", "0"), ("uber-trace-id", "1:2:0:1")],
        "jaeger 00000000000000000000000000000001 0000000000000002 1 01",
    );
    check(&[("b3", "0"), ("x-b3-sampled", "1")], "decision b3 0");
    check(&[("x-request-id", "1")], "");
}

#[test]
fn propagators_restrict_and_order() {
    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let headers = headers(&[
        ("traceparent", &traceparent),
        ("uber-trace-id", "1:2:0:1"),
        ("b3", "x"),
    ]);
    let check = |list, expected: &str| {
        let extraction = extract(&headers, &Propagators::parse(list).0);
        assert_eq!(
            show(&extraction),
            expected.replace("TRACE", TRACE).replace("SPAN", SPAN),
            "for {list}"
        );
    };
    check("tracecontext", "tracecontext TRACE SPAN 1 01");
    check(
        "jaeger,tracecontext",
        "jaeger 00000000000000000000000000000001 0000000000000002 1 01",
    );
    check("b3,tracecontext", "tracecontext TRACE SPAN 1 01 !b3");
    check("xray", "");
    check("none", "");
}

proptest! {
    #[test]
    fn any_value_is_taken(value in "[0-9a-f:;=%-]{0,60}|\\PC*", name in 0..NAMES.len(), other in 0..NAMES.len()) {
        extract(&headers(&[(NAMES[name], &value), (NAMES[other], &value)]), &Propagators::default());
    }

    #[test]
    fn every_traceparent_comes_back(trace in 1u128.., span in 1u64.., flags in 0u8..4) {
        let value = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
        let extraction = extract(&headers(&[("traceparent", &value)]), &Propagators::default());
        let (_, context) = extraction.context.expect("valid");
        prop_assert_eq!(context.trace_id.0, trace.to_be_bytes());
        prop_assert_eq!(context.parent, Some(SpanId(span.to_be_bytes())));
        prop_assert_eq!(context.flags, flags);
    }
}

const NAMES: [&str; 14] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
    "x-amzn-trace-id",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-datadog-tags",
];
