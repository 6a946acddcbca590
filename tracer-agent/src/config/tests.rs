//! Tables over the whole way from text to [`Config`].

use std::collections::HashMap;
use std::path::Path;

use clap::CommandFactory as _;

use super::*;

#[derive(clap::Parser, Debug)]
struct Cli {
    #[command(flatten)]
    flags: RunFlags,
}

fn flags(args: &str) -> RunFlags {
    let args = std::iter::once("run").chain(args.split_whitespace());
    <Cli as clap::Parser>::try_parse_from(args)
        .expect("flags")
        .flags
}

/// Loads from a file's text, variables (`A=b C=d`) and flags, as `run` does.
fn load(text: &str, env: &str, args: &str) -> Result<Config, String> {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("agent.yaml");
    std::fs::write(&path, text).expect("written");
    let mut flags = flags(args);
    flags.common.config = Some(path);
    let env: HashMap<&str, &str> = env
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let prefix = format!("{}/", directory.path().display());
    Config::load(&flags, &|name| {
        env.get(name).map(|value| (*value).to_owned())
    })
    .map_err(|error| error.to_string().replace(&prefix, ""))
}

#[test]
fn nothing_said_gives_the_defaults_of_the_table() {
    let config = load("", "", "").expect("defaults");
    assert_eq!(config.admin, "127.0.0.1:9468".parse().ok());
    assert_eq!(
        config.capture,
        Capture {
            ring_size: 16 << 20,
            max_connections: 32_768,
            tls: true,
            tier: Choice::Auto,
        }
    );
    assert_eq!(config.discovery, Discovery::default());
    assert_eq!(
        config.propagators,
        "tracecontext,b3,b3multi,jaeger,xray,datadog"
    );
    assert_eq!(config.redaction.query_keys.len(), 7);
    assert_eq!(config.log_level, "info");
    assert_eq!(config.takeover, None);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(
        config.export,
        Export {
            spool_max_bytes: 256 * 1024 * 1024,
            ..Export::default()
        }
    );
}

#[test]
fn flags_beat_environment_beats_file() {
    let check = |text: &str, env: &str, args: &str, expected: Option<&str>| {
        let config = load(text, env, args).expect("valid");
        let expected = expected.map(|address| address.parse().expect("address"));
        assert_eq!(
            config.admin, expected,
            "file {text:?}, environment {env:?}, flags {args:?}"
        );
    };
    let (file, env, flag) = (
        "admin: 127.0.0.1:1",
        "TRACER_ADMIN=127.0.0.1:2",
        "--admin 127.0.0.1:3",
    );
    check("", "", "", Some("127.0.0.1:9468"));
    check(file, "", "", Some("127.0.0.1:1"));
    check(file, env, "", Some("127.0.0.1:2"));
    check(file, "TRACER_ADMIN=", "", Some("127.0.0.1:1"));
    check(file, env, flag, Some("127.0.0.1:3"));
    check("", env, flag, Some("127.0.0.1:3"));
    check("admin: off", "", "", None);
    check("admin: false", "", "", None);
    check("admin: ~", "", "", Some("127.0.0.1:9468"));
    check(file, env, "--admin off", None);
    check("", "", "--admin [::1]:80", Some("[::1]:80"));
    check("", "", "--admin localhost:80", Some("127.0.0.1:80"));
}

#[test]
fn names_of_agents_and_bounds_of_memory() {
    let name = |text, args| load(text, "", args).expect("valid").takeover;
    assert_eq!(name("takeover: off", ""), None);
    assert_eq!(name("takeover: a", ""), Some("a".to_owned()));
    assert_eq!(name("takeover: a", "--takeover b"), Some("b".to_owned()));
    for wrong in ["a/b", "ü"] {
        assert!(load(&format!("takeover: {wrong}"), "", "").is_err());
    }
    for (text, valid) in [
        ("{memory: 64MiB}", true),
        ("{memory: 63MiB}", false),
        ("{memory: 64MiB, cpu: 0.5}", true),
        ("{cpu: 1}", true),
        ("{cpu: 0}", false),
        ("{cpu: NaN}", false),
        ("{cpus: 1}", false),
    ] {
        assert_eq!(
            load(&format!("limits: {text}"), "", "").is_ok(),
            valid,
            "{text}"
        );
    }
}

#[test]
fn lists_are_replaced_as_a_whole() {
    let text = "discovery:\n  include:\n    ports: [80, 8000-8099]\n    exe: ['/usr/bin/*']\n  containers_only: true\n";
    let check = |env: &str, args: &str, ports: &[std::ops::RangeInclusive<u16>]| {
        let discovery = load(text, env, args).expect("valid").discovery;
        assert_eq!(
            discovery.include.ports, ports,
            "environment {env:?}, flags {args:?}"
        );
        assert_eq!(discovery.include.exe, ["/usr/bin/*"]);
        assert!(discovery.containers_only);
    };
    check("", "", &[80..=80, 8000..=8099]);
    check("TRACER_INCLUDE_PORT=1,2", "", &[1..=1, 2..=2]);
    check(
        "TRACER_INCLUDE_PORT=1,2",
        "--include-port 3,4-5 --include-port 6",
        &[3..=3, 4..=5, 6..=6],
    );
}

#[test]
fn unknown_propagators_are_mistakes_in_the_file_only() {
    let check = |text: &str, env: &str, expected: Option<&str>| {
        let found = load(text, env, "").map(|config| config.propagators).ok();
        assert_eq!(
            found.as_deref(),
            expected,
            "file {text:?}, environment {env:?}"
        );
    };
    check("propagators: [b3, jaeger]", "", Some("b3,jaeger"));
    check("propagators: [b3, ottrace]", "", None);
    check(
        "propagators: [b3]",
        "OTEL_PROPAGATORS=xray,ottrace",
        Some("xray,ottrace"),
    );
    check("propagators: []", "", Some(""));
}

#[test]
fn log_level_follows_its_variables() {
    let check = |env: &str, args: &str, expected: &str| {
        assert_eq!(
            load("log_level: error", env, args)
                .expect("valid")
                .log_level,
            expected
        );
    };
    check("", "", "error");
    check("OTEL_LOG_LEVEL=warn", "", "warn");
    check(
        "OTEL_LOG_LEVEL=warn RUST_LOG=tracer_agent=trace",
        "",
        "tracer_agent=trace",
    );
    check("RUST_LOG=trace", "--log-level debug", "debug");
}

#[test]
fn wrong_values_name_key_place_and_what_is_allowed() {
    let check = |text: &str, env: &str, args: &str, expected: &[&str]| {
        let error = load(text, env, args).expect_err("refused");
        assert!(!error.contains('\n'), "one line: {error:?}");
        for part in expected {
            assert!(error.contains(part), "{error:?} should say {part:?}");
        }
    };
    let file = |text: &str, expected: &[&str]| check(text, "", "", expected);
    file(
        "admn: off",
        &["agent.yaml line 1: unknown key `admn`; allowed here: log_level, admin"],
    );
    file(
        "# c\ncapture:\n  # c\n  ring_siz: 5\n",
        &[
            "agent.yaml line 4: unknown key `capture.ring_siz`",
            "ring_size",
        ],
    );
    file(
        "export:\n  otlp:\n    endpont: x\n",
        &["line 3: unknown key `export.otlp.endpont`", "endpoint"],
    );
    file(
        "service_names:\n  - exe: a\n    nam: b\n",
        &["line 3: unknown key", "nam", "name"],
    );
    file(
        "capture:\n  ring_size: [1]\n",
        &["line 2: capture.ring_size: one value is expected"],
    );
    file(
        "capture: {ring_siz: 4}",
        &["agent.yaml line 1: unknown key `capture.ring_siz`"],
    );
    file(
        "service_names:\n  - exe: a\n    name: [b]\n",
        &["line 3: service_names.name: one value"],
    );
    file(
        "service_names:\n  - exe: a\n    nam: b\n",
        &["line 3: unknown key `service_names.nam`"],
    );
    file("capture:\n\tring_size: 4\n", &["agent.yaml line 2", "tabs"]);
    file("a: 1\n---\nb: 1", &["line 1: unknown key `a`"]);
    file("admin: *nowhere", &["line 1: admin: alias"]);
    file("capture: 4", &["line 1: capture: a section"]);
    file("propagators: b3", &["line 1: propagators: a list"]);
    file("admin: off\nadmin: off", &["line 2", "duplicate", "admin"]);
    file("admin: [", &["agent.yaml line"]);
    file(
        "capture:\n  ring_size: 3MiB\n",
        &["agent.yaml line 2: capture.ring_size: `3MiB` is not a power of two"],
    );
    file(
        "capture:\n  ring_size: 2GiB\n",
        &["out of bounds", "64KiB to 1GiB"],
    );
    file("capture:\n  ring_size: many\n", &["`many` is not a size"]);
    file(
        "capture:\n  ring_size: 99999999999999999999G\n",
        &["is not a size"],
    );
    file(
        "capture:\n  max_connections: 5\n",
        &["line 2: capture.max_connections", "1024 to 1048576"],
    );
    file(
        "discovery:\n  exclude:\n    pids: [1, x]\n",
        &["line 3: discovery.exclude.pids: `x`"],
    );
    file(
        "discovery:\n  include:\n    exe: ['']\n",
        &["line 3: discovery.include.exe: an empty glob"],
    );
    file(
        "export:\n  exporters: [otlp, jaeger]\n",
        &["line 2: export.exporters: `jaeger` is unknown", "console"],
    );
    file(
        "export:\n  otlp:\n    endpoint: collector:4317\n",
        &["export.otlp.endpoint", "http://HOST:PORT"],
    );
    file(
        "export:\n  otlp:\n    timeout_ms: 0\n",
        &["export.otlp.timeout_ms", "1 to 3600000"],
    );
    file(
        "export:\n  otlp:\n    headers: {'a b': s3cret}\n",
        &["export.otlp.headers: `a b` is not a header name"],
    );
    file(
        "propagators: [b4]",
        &["line 1: propagators: `b4` is unknown", "tracecontext"],
    );
    file(
        "process:\n  command_args: maybe\n",
        &["process.command_args: `maybe`", "true, false"],
    );
    file(
        "service_names:\n  - name: b\n",
        &["agent.yaml line 2: service_names: the rule matches nothing"],
    );
    file(
        "service_names:\n  - exe: b\n",
        &["line 2: service_names: the rule has no `name`"],
    );
    file(
        "sampling:\n  sampler: sometimes\n",
        &[
            "line 2: sampling.sampler: `sometimes` is unknown",
            "traceidratio",
        ],
    );
    file(
        "sampling: {sampler: traceidratio, ratio: 2}",
        &["line 1: sampling.ratio: `2` is not a ratio"],
    );
    file(
        "sampling:\n  rules:\n    - service: a\n      route: b\n      keep_slower_than_ms: 1\n",
        &["line 4: sampling.rules.route: `b`", "begins with `/`"],
    );
    file(
        "sampling:\n  rules:\n    - route: /a\n      spans_per_second: 1\n",
        &["line 3: sampling.rules: `spans_per_second` is for services"],
    );
    file(
        "sampling:\n  rules:\n    - servise: a\n",
        &["line 3: unknown key `sampling.rules.servise`"],
    );
    file(
        "routes:\n  services:\n    - patterns: [/a]\n",
        &["line 3: routes.services: the entry has no `service`"],
    );
    file(
        "routes:\n  services:\n    - service: a\n      patterns:\n        - /a\n        - /**/b\n",
        &["line 6: routes.services.patterns: `/**/b`", "last segment"],
    );
    check(
        "",
        "OTEL_TRACES_SAMPLER=parentbased_traceidratio OTEL_TRACES_SAMPLER_ARG=nan",
        "",
        &["OTEL_TRACES_SAMPLER_ARG: `nan` is not a ratio"],
    );
    // A plain value of two lines, told in one.
    file("admin: a\n\n a", &["line 1: admin: `a a`"]);
    file("propagate: maybe", &["line 1: propagate"]);
    file(
        "propagate: true\npropagators: [b3]\n",
        &["line 1: propagate", "tracecontext"],
    );
    file("log_level: 'a=b=c'", &["line 1: log_level", "debug"]);
    check(
        "",
        "TRACER_ADMIN=9468",
        "",
        &["TRACER_ADMIN: `9468` is not an address", "off"],
    );
    check(
        "",
        "TRACER_RING_SIZE=1",
        "",
        &["TRACER_RING_SIZE: `1` is out of bounds"],
    );
    check(
        "",
        "",
        "--include-port 0",
        &["--include-port: `0` is not a port"],
    );
    check("", "", "--include-port 9-8", &["--include-port: `9-8`"]);
    check("", "", "--propagate=maybe", &["--propagate"]);
    check(
        "",
        "OTEL_PROPAGATORS=b3",
        "--propagate",
        &["--propagate", "tracecontext"],
    );
}

proptest::proptest! {
    /// Whatever is in the file: a configuration or an error of one line, never a panic.
    #[test]
    fn any_text_is_taken_or_refused_in_one_line(text in "[ a-z:\\-{}\\[\\]'\"#&*!|>%@`,?\n\t\u{0}\u{fe}]{0,60}") {
        for text in [text.clone(), format!("capture:\n  {text}"), format!("service_names:\n - {text}"), format!("admin: {text}")] {
            let refused = Layers::of_text(&text, Path::new("agent.yaml")).and_then(|layers| layers.resolve()).err();
            let message = refused.map(|error| error.to_string()).unwrap_or_default();
            proptest::prop_assert!(!message.contains('\n'), "{message:?}");
        }
    }
}

#[test]
fn secrets_of_headers_are_not_in_messages() {
    let error =
        load("export:\n  otlp:\n    headers: {'a b': s3cret}\n", "", "").expect_err("refused");
    assert!(!error.contains("s3cret"), "{error}");
}

#[test]
fn unreadable_files_are_named() {
    let missing = Layers::of_file(Path::new("/nonexistent/agent.yaml")).expect_err("missing");
    assert_eq!(
        missing.to_string(),
        "cannot read the configuration file /nonexistent/agent.yaml"
    );
    let endless = Layers::of_file(Path::new("/dev/zero")).expect_err("endless");
    assert!(matches!(endless, ConfigError::TooLarge { .. }), "{endless}");
}

#[test]
fn export_settings_of_the_file_stand_behind_the_variables() {
    let text = "export:\n  exporters: [otlp, console]\n  otlp:\n    endpoint: http://c:4317\n    protocol: grpc\n    \
                headers: {x-key: 'a b,c=d'}\n    compression: gzip\n    timeout_ms: 5000\n  batch: {delay_ms: 10, max_queue: 20, max_batch: 5}\n";
    let config = load(text, "", "").expect("valid");
    let env = |name: &str| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://other:1".to_owned()),
        "OTEL_EXPORTER_OTLP_PROTOCOL" => Some(String::new()),
        "OTEL_SERVICE_NAME" => Some("agent".to_owned()),
        _ => None,
    };
    let lookup = config.export.lookup(&env);
    let check = |name: &str, expected: Option<&str>| {
        assert_eq!(lookup(name).as_deref(), expected, "{name}")
    };
    check("OTEL_TRACES_EXPORTER", Some("otlp,console"));
    check("OTEL_EXPORTER_OTLP_ENDPOINT", Some("http://other:1"));
    check("OTEL_EXPORTER_OTLP_PROTOCOL", Some("grpc"));
    check("OTEL_EXPORTER_OTLP_HEADERS", Some("x-key=a%20b%2Cc%3Dd"));
    check("OTEL_EXPORTER_OTLP_COMPRESSION", Some("gzip"));
    check("OTEL_EXPORTER_OTLP_TIMEOUT", Some("5000"));
    check("OTEL_BSP_SCHEDULE_DELAY", Some("10"));
    check("OTEL_BSP_MAX_QUEUE_SIZE", Some("20"));
    check("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", Some("5"));
    check("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", None);
    check("OTEL_SERVICE_NAME", Some("agent"));
}

#[test]
fn printed_settings_read_back_the_same() {
    let text = "admin: off\ndiscovery:\n  include: {exe: ['*.py', '/usr/bin/x'], ports: [1-2]}\nexport:\n  exporters: [console]\n  \
                otlp_file: '-'\nservice_names:\n  - {exe: '*\"q\"*', name: \"shop: 1\"}\n  - {cmdline: '#x', name: y}\n";
    let layers = Layers::of_text(text, Path::new("agent.yaml")).expect("valid");
    let printed = layers.to_yaml();
    let again = Layers::of_text(&printed, Path::new("printed.yaml")).expect(&printed);
    assert_eq!(
        again.resolve().expect("valid"),
        layers.resolve().expect("valid"),
        "{printed}"
    );
    assert!(
        printed.contains("admin: off  # agent.yaml line 1\n"),
        "{printed}"
    );
    assert!(
        printed.contains("  ring_size: 16MiB  # default\n"),
        "{printed}"
    );
}

#[test]
fn printed_lists_read_back_the_same() {
    let text = "sampling:\n  keep_errors: true\n  rules:\n    - {service: 'a*', route: '/x/{y}', keep_slower_than_ms: 5}\n    \
                - {service: b, spans_per_second: 0.5}\nroutes:\n  learn: true\n  services:\n    \
                - {service: 'a: b', patterns: ['/c/**', /d]}\nprocess: {command_args: true}\n";
    let layers = Layers::of_text(text, Path::new("agent.yaml")).expect("valid");
    let printed = layers.to_yaml();
    let again = Layers::of_text(&printed, Path::new("printed.yaml")).expect(&printed);
    let config = layers.resolve().expect("valid");
    assert_eq!(again.resolve().expect("valid"), config, "{printed}");
    assert_eq!(
        (config.sampling.rules.len(), config.routes.patterns.len()),
        (2, 2)
    );
    assert!(printed.contains("# agent.yaml line 5\n"), "{printed}");
}

#[test]
fn what_differs_and_cannot_be_changed_is_named() {
    let config = |text: &str| load(text, "", "").expect(text);
    let check = |text: &str, expected: &[&str]| {
        assert_eq!(
            config("").fixed_differences(&config(text)),
            expected,
            "{text}"
        );
    };
    check("", &[]);
    check("discovery: {include: {exe: [a]}}", &[]);
    check("sampling: {sampler: always_off}", &[]);
    check("routes: {learn: true}", &[]);
    check(
        "admin: off\ncapture: {ring_size: 1MiB}",
        &["admin", "capture"],
    );
    check("export: {otlp: {endpoint: 'http://c:1'}}", &["export"]);
    check("service_names: [{exe: a, name: b}]", &["service_names"]);
}

#[test]
fn printed_settings_hide_the_values_of_headers() {
    let text = "export: {otlp: {headers: {x-key: s3cret}}}";
    let printed = Layers::of_text(text, Path::new("agent.yaml"))
        .expect("valid")
        .to_yaml();
    assert!(
        printed.contains("x-key: REDACTED") && !printed.contains("s3cret"),
        "{printed}"
    );
}

#[test]
fn the_table_and_the_flags_agree() {
    let command = Cli::command();
    for key in KEYS {
        let Some(flag) = key.flag else { continue };
        let known = command
            .get_arguments()
            .filter_map(|argument| argument.get_long());
        assert!(
            known.into_iter().any(|long| flag == format!("--{long}")),
            "{flag} of {} is no flag",
            key.name
        );
    }
}

#[test]
fn the_reference_is_up_to_date() {
    crate::telemetry::docs::check("configuration.md", &reference());
}
