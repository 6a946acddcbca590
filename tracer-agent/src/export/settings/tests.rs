//! Tables over one lookup: which variables give which settings, or which one line of error.

use std::path::PathBuf;
use std::time::Duration;

use super::*;

fn parse_with(file: Option<&str>, variables: &[(&str, &str)]) -> Result<ExportSettings, String> {
    let lookup = |name: &str| {
        variables
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned())
    };
    ExportSettings::from_variables(&lookup, file.map(PathBuf::from))
        .map_err(|error| error.to_string())
}

fn parse(variables: &[(&str, &str)]) -> Result<ExportSettings, String> {
    parse_with(None, variables)
}

/// The exporters in a word each, OTLP with protocol and URL.
fn summary(settings: &ExportSettings) -> String {
    let each = settings.traces.iter().map(|exporter| match exporter {
        TracesExporter::Console => "console".to_owned(),
        TracesExporter::File(path) => format!("file {}", path.display()),
        TracesExporter::Zipkin(zipkin) => format!("zipkin {}", zipkin.endpoint),
        TracesExporter::Otlp(otlp) => format!("{:?} {}", otlp.protocol, otlp.endpoint),
    });
    each.collect::<Vec<_>>().join(", ")
}

#[test]
fn exporters_and_endpoints() {
    #[track_caller]
    fn check(variables: &[(&str, &str)], expected: &str) {
        let settings = parse(variables).expect("settings");
        assert_eq!(summary(&settings), expected, "{variables:?}");
    }
    const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
    const BASE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";

    check(&[], "console");
    check(&[(EXPORTER, "")], "console");
    check(&[(BASE, "  ")], "console");
    check(&[(EXPORTER, "none")], "");
    check(&[(EXPORTER, "none"), (BASE, "http://c:1")], "");
    check(&[(EXPORTER, "console"), (BASE, "http://c:1")], "console");
    check(
        &[(EXPORTER, "otlp")],
        "HttpProtobuf http://localhost:4318/v1/traces",
    );
    check(
        &[(EXPORTER, " OTLP , console ")],
        "HttpProtobuf http://localhost:4318/v1/traces, console",
    );
    check(
        &[(EXPORTER, "otlp"), (PROTOCOL, "grpc")],
        "Grpc http://localhost:4317/",
    );
    check(
        &[(EXPORTER, "otlp"), (PROTOCOL, "http/json")],
        "HttpJson http://localhost:4318/v1/traces",
    );
    check(
        &[(BASE, "http://c:4318")],
        "HttpProtobuf http://c:4318/v1/traces",
    );
    check(
        &[(BASE, "http://c:4318/")],
        "HttpProtobuf http://c:4318/v1/traces",
    );
    check(
        &[(BASE, "http://c:4318/in/")],
        "HttpProtobuf http://c:4318/in/v1/traces",
    );
    check(
        &[(BASE, "http://c:4318/in?key=1")],
        "HttpProtobuf http://c:4318/in/v1/traces?key=1",
    );
    check(&[(BASE, "http://c")], "HttpProtobuf http://c/v1/traces");
    check(
        &[(BASE, "http://[::1]:4318")],
        "HttpProtobuf http://[::1]:4318/v1/traces",
    );
    check(
        &[(TRACES, "http://c:4318/as/is")],
        "HttpProtobuf http://c:4318/as/is",
    );
    check(&[(TRACES, "http://c:4318")], "HttpProtobuf http://c:4318/");
    check(
        &[(TRACES, "http://own:1/t"), (BASE, "http://base:1")],
        "HttpProtobuf http://own:1/t",
    );
    check(
        &[(TRACES, ""), (BASE, "http://base:1")],
        "HttpProtobuf http://base:1/v1/traces",
    );
    check(
        &[(BASE, "http://c:4317/ignored"), (PROTOCOL, "grpc")],
        "Grpc http://c:4317/",
    );
    check(
        &[
            (BASE, "c:4317"),
            (PROTOCOL, "grpc"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
        ],
        "Grpc http://c:4317/",
    );
    check(
        &[
            (BASE, "http://c:1"),
            (PROTOCOL, "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ],
        "HttpJson http://c:1/v1/traces",
    );
    // Without a scheme gRPC is TLS, unless said otherwise; a scheme says it better than INSECURE.
    check(
        &[(BASE, "c:4317"), (PROTOCOL, "grpc")],
        "Grpc https://c:4317/",
    );
    check(
        &[
            (BASE, "https://c:4317"),
            (PROTOCOL, "grpc"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
        ],
        "Grpc https://c:4317/",
    );
    check(
        &[
            (BASE, "c:4317"),
            (PROTOCOL, "grpc"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "false"),
            ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "true"),
        ],
        "Grpc http://c:4317/",
    );
    check(
        &[(BASE, "https://c:4318")],
        "HttpProtobuf https://c:4318/v1/traces",
    );
    check(
        &[(EXPORTER, "console,zipkin,otlp")],
        "HttpProtobuf http://localhost:4318/v1/traces, zipkin http://localhost:9411/api/v2/spans, console",
    );
    check(
        &[
            (EXPORTER, "zipkin"),
            ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", "https://z/spans"),
        ],
        "zipkin https://z/spans",
    );
    // The endpoint of another signal says nothing about traces.
    check(
        &[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://c:1")],
        "console",
    );
    check(&[("OTEL_SDK_DISABLED", "true"), (BASE, "http://c:1")], "");
    check(
        &[("OTEL_SDK_DISABLED", "false"), (BASE, "http://c:1")],
        "HttpProtobuf http://c:1/v1/traces",
    );
}

#[test]
fn a_file_is_an_exporter_beside_the_others() {
    #[track_caller]
    fn check(variables: &[(&str, &str)], expected: &str) {
        assert_eq!(
            summary(&parse_with(Some("-"), variables).expect("settings")),
            expected
        );
    }
    check(&[], "file -");
    check(&[("OTEL_TRACES_EXPORTER", "none")], "file -");
    check(&[("OTEL_TRACES_EXPORTER", "console")], "console, file -");
    check(
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1")],
        "HttpProtobuf http://c:1/v1/traces, file -",
    );
}

#[test]
fn otlp_details() {
    let settings = parse(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1"),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "Authorization=Bearer%20se%2Ccret, x-tenant = a=b ,",
        ),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
    ])
    .expect("settings");
    let [TracesExporter::Otlp(otlp)] = settings.traces.as_slice() else {
        panic!("one otlp exporter")
    };
    assert_eq!(otlp.headers["authorization"], "Bearer se,cret");
    assert_eq!(otlp.headers["x-tenant"], "a=b");
    assert_eq!(otlp.compression, Compression::Gzip);
    assert_eq!(otlp.timeout, Duration::from_millis(2500));
    assert!(
        !format!("{settings:?}").contains("cret"),
        "headers are secrets"
    );

    let own = parse(&[
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "b=2"),
    ])
    .expect("settings");
    let [TracesExporter::Otlp(otlp)] = own.traces.as_slice() else {
        panic!("one otlp exporter")
    };
    assert_eq!((otlp.headers.get("a"), otlp.headers.len()), (None, 1));
    assert_eq!(otlp.timeout, Duration::from_secs(10));
}

/// Every variable of OTLP: the base, and the signal's own over it, each for itself.
#[test]
fn the_signals_own_variables_win_one_by_one() {
    let shown = |variables: &[(&str, &str)]| {
        let settings = parse(variables).expect("settings");
        let [TracesExporter::Otlp(otlp)] = settings.traces.as_slice() else {
            panic!("one otlp exporter")
        };
        let file = |file: &Option<TlsFile>| {
            let file = file.as_ref();
            file.map(|file| format!("{}={}", file.variable, file.path.display()))
                .unwrap_or_default()
        };
        [
            format!("{:?}", otlp.protocol),
            otlp.endpoint.to_string(),
            format!("{:?}", otlp.compression),
            otlp.timeout.as_millis().to_string(),
            otlp.headers.keys().map(|name| name.as_str()).collect(),
            file(&otlp.tls.authority),
            file(&otlp.tls.certificate),
            file(&otlp.tls.key),
        ]
    };
    const ROWS: [(&str, &str, &str); 8] = [
        ("PROTOCOL", "http/json", "http/protobuf"),
        ("ENDPOINT", "http://base", "http://own/x"),
        ("COMPRESSION", "gzip", "none"),
        ("TIMEOUT", "1000", "2000"),
        ("HEADERS", "a=1", "b=2"),
        ("CERTIFICATE", "/ca", "/own-ca"),
        ("CLIENT_CERTIFICATE", "/cert", "/own-cert"),
        ("CLIENT_KEY", "/key", "/own-key"),
    ];
    const B: &str = "OTEL_EXPORTER_OTLP";
    let base: Vec<(String, &str)> = ROWS
        .iter()
        .map(|(what, value, _)| (format!("{B}_{what}"), *value))
        .collect();
    let base: Vec<(&str, &str)> = base.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    let expected = [
        "HttpJson".to_owned(),
        "http://base/v1/traces".to_owned(),
        "Gzip".to_owned(),
        "1000".to_owned(),
        "a".to_owned(),
        format!("{B}_CERTIFICATE=/ca"),
        format!("{B}_CLIENT_CERTIFICATE=/cert"),
        format!("{B}_CLIENT_KEY=/key"),
    ];
    assert_eq!(shown(&base), expected);
    let own = [
        "HttpProtobuf".to_owned(),
        "http://own/x".to_owned(),
        "None".to_owned(),
        "2000".to_owned(),
        "b".to_owned(),
        format!("{B}_TRACES_CERTIFICATE=/own-ca"),
        format!("{B}_TRACES_CLIENT_CERTIFICATE=/own-cert"),
        format!("{B}_TRACES_CLIENT_KEY=/own-key"),
    ];
    for (row, (what, _, value)) in ROWS.iter().enumerate() {
        let name = format!("{B}_TRACES_{what}");
        let mut variables = base.clone();
        variables.push((&name, value));
        let mut expected = expected.clone();
        expected[row] = own[row].clone();
        assert_eq!(shown(&variables), expected, "{name}");
        // Another signal's says nothing, an empty one neither.
        for (name, value) in [(format!("{B}_METRICS_{what}"), *value), (name.clone(), " ")] {
            let mut variables = base.clone();
            variables.push((&name, value));
            assert_ne!(shown(&variables)[row], own[row], "{name}");
        }
    }
}

#[test]
fn queue() {
    #[track_caller]
    fn check(variables: &[(&str, &str)], expected: (u64, usize, usize, u64)) {
        let queue = parse(variables).expect("settings").queue;
        let expected = QueueSettings {
            schedule_delay: Duration::from_millis(expected.0),
            max_queue_size: expected.1,
            max_export_batch_size: expected.2,
            export_timeout: Duration::from_millis(expected.3),
        };
        assert_eq!(queue, expected, "{variables:?}");
    }
    check(&[], (1000, 32768, 2048, 300_000));
    check(
        &[
            ("OTEL_BSP_SCHEDULE_DELAY", "0"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "5"),
        ],
        (0, 32768, 2048, 5),
    );
    check(
        &[("OTEL_BSP_MAX_QUEUE_SIZE", "100")],
        (1000, 100, 100, 300_000),
    );
    check(
        &[("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000")],
        (1000, 100_000, 100_000, 300_000),
    );
    check(
        &[
            ("OTEL_BSP_MAX_QUEUE_SIZE", "9"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3"),
        ],
        (1000, 9, 3, 300_000),
    );
}

#[test]
fn resource_attributes_are_decoded_and_unique() {
    let settings = parse(&[(
        "OTEL_RESOURCE_ATTRIBUTES",
        "a=1, deployment.environment.name=pr%C3%B6d ,a=2",
    )]);
    assert_eq!(
        settings.expect("settings").resource,
        [
            ("deployment.environment.name".to_owned(), "pröd".to_owned()),
            ("a".to_owned(), "2".to_owned())
        ]
    );
}

#[test]
fn errors_name_the_variable_the_problem_and_the_way_out() {
    #[track_caller]
    fn check(variables: &[(&str, &str)], expected: &str) {
        let error = parse(variables).expect_err("must be refused");
        assert_eq!(error, expected, "{variables:?}");
        assert!(!error.contains('\n'));
    }
    const BASE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    check(
        &[("OTEL_TRACES_EXPORTER", "otlp,jaeger")],
        "OTEL_TRACES_EXPORTER: unknown exporter \"jaeger\"; use otlp, zipkin, console or none",
    );
    check(
        &[("OTEL_TRACES_EXPORTER", "none,console")],
        "OTEL_TRACES_EXPORTER: none cannot be combined with other exporters; remove it or the others",
    );
    check(
        &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318")],
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: \"collector:4318\" is not a URL; write it like http://collector:4318",
    );
    check(
        &[
            (BASE, "collector:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "1"),
        ],
        "OTEL_EXPORTER_OTLP_INSECURE: \"1\" is not a boolean; use true or false",
    );
    check(
        &[
            (BASE, "https://c"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem"),
        ],
        "OTEL_EXPORTER_OTLP_CLIENT_KEY: needs its other half; set CLIENT_CERTIFICATE too, or neither",
    );
    check(
        &[
            (BASE, "https://c"),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/c.pem"),
        ],
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE: needs its other half; set CLIENT_KEY too, or neither",
    );
    check(
        &[
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", "zipkin:9411"),
        ],
        "OTEL_EXPORTER_ZIPKIN_ENDPOINT: \"zipkin:9411\" is not a URL; write it like http://collector:4318",
    );
    check(
        &[
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_ZIPKIN_TIMEOUT", "0"),
        ],
        "OTEL_EXPORTER_ZIPKIN_TIMEOUT: \"0\" is not a whole number from 1 to 3600000; give milliseconds",
    );
    check(
        &[(BASE, "unix:///run/c.sock")],
        "OTEL_EXPORTER_OTLP_ENDPOINT: scheme \"unix\" is not supported; use http:// or https://",
    );
    check(
        &[(BASE, "http://u:secret@c")],
        "OTEL_EXPORTER_OTLP_ENDPOINT: credentials do not belong into the endpoint; put them into OTEL_EXPORTER_OTLP_HEADERS, like Authorization=Basic%20...",
    );
    check(
        &[
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http"),
        ],
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: unknown protocol \"http\"; use grpc, http/protobuf or http/json",
    );
    check(
        &[
            (BASE, "http://c"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ],
        "OTEL_EXPORTER_OTLP_COMPRESSION: unknown compression \"zstd\"; use gzip or none",
    );
    check(
        &[(BASE, "http://c"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")],
        "OTEL_EXPORTER_OTLP_TIMEOUT: \"10s\" is not a whole number from 1 to 3600000; give milliseconds",
    );
    check(
        &[
            (BASE, "http://c"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,Bearer secret"),
        ],
        "OTEL_EXPORTER_OTLP_HEADERS: entry 2 is not key=value; separate entries by commas and percent-encode what is special",
    );
    check(
        &[(BASE, "http://c"), ("OTEL_EXPORTER_OTLP_HEADERS", "a=%FF")],
        "OTEL_EXPORTER_OTLP_HEADERS: the value of \"a\" does not percent-decode to UTF-8 text; encode it as UTF-8",
    );
    check(
        &[
            (BASE, "http://c"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "Content-Type=text/plain"),
        ],
        "OTEL_EXPORTER_OTLP_HEADERS: \"Content-Type\" cannot be sent as a header; remove it",
    );
    check(
        &[(BASE, "http://c"), ("OTEL_EXPORTER_OTLP_HEADERS", "a=%0A")],
        "OTEL_EXPORTER_OTLP_HEADERS: \"a\" cannot be sent as a header; remove it",
    );
    check(
        &[("OTEL_BSP_MAX_QUEUE_SIZE", "0")],
        "OTEL_BSP_MAX_QUEUE_SIZE: \"0\" is not a whole number from 1 to 10000000; give spans",
    );
    check(
        &[
            ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "11"),
        ],
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE: 11 is more than OTEL_BSP_MAX_QUEUE_SIZE (10); make the batch smaller or the queue larger",
    );
    check(
        &[("OTEL_RESOURCE_ATTRIBUTES", "=x")],
        "OTEL_RESOURCE_ATTRIBUTES: entry 1 is not key=value; separate entries by commas and percent-encode what is special",
    );
    check(
        &[("OTEL_SDK_DISABLED", "yes")],
        "OTEL_SDK_DISABLED: \"yes\" is not a boolean; use true or false",
    );
}

#[test]
fn metrics() {
    #[track_caller]
    fn check(variables: &[(&str, &str)], expected: Result<Option<&str>, &str>) {
        let found = parse(variables).map(|settings| {
            let otlp = settings.metrics.otlp;
            otlp.map(|otlp| format!("{:?} {}", otlp.protocol, otlp.endpoint))
        });
        let found = found.as_ref().map(Option::as_deref).map_err(String::as_str);
        assert_eq!(found, expected, "{variables:?}");
    }
    const EXPORTER: &str = "OTEL_METRICS_EXPORTER";
    const BASE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const METRICS: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";
    const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL";
    const TEMPORALITY: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
    check(&[], Ok(None));
    check(&[(BASE, "http://c:1")], Ok(None));
    check(&[(EXPORTER, "none"), (METRICS, "http://c:1/m")], Ok(None));
    check(&[(EXPORTER, "prometheus")], Ok(None));
    check(
        &[(METRICS, "http://c:1/m")],
        Ok(Some("HttpProtobuf http://c:1/m")),
    );
    check(
        &[(EXPORTER, "otlp, prometheus")],
        Ok(Some("HttpProtobuf http://localhost:4318/v1/metrics")),
    );
    check(
        &[(EXPORTER, "otlp"), (BASE, "http://c:1"), (PROTOCOL, "grpc")],
        Ok(Some("Grpc http://c:1/")),
    );
    check(
        &[(EXPORTER, "otlp"), ("OTEL_SDK_DISABLED", "true")],
        Ok(None),
    );
    check(
        &[(EXPORTER, "otlp,none")],
        Err(
            "OTEL_METRICS_EXPORTER: none cannot be combined with other exporters; remove it or the others",
        ),
    );
    check(
        &[(EXPORTER, "statsd")],
        Err("OTEL_METRICS_EXPORTER: unknown exporter \"statsd\"; use otlp, prometheus or none"),
    );
    check(
        &[(TEMPORALITY, "sometimes")],
        Err(
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE: unknown preference \"sometimes\"; use cumulative, delta or lowmemory",
        ),
    );
    let settings = parse(&[
        (TEMPORALITY, "LowMemory"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "400"),
    ]);
    let metrics = settings.expect("settings").metrics;
    assert_eq!(metrics.temporality, Temporality::LowMemory);
    assert_eq!(metrics.interval, Duration::from_millis(500));
    assert_eq!(metrics.timeout, Duration::from_millis(400));
}
