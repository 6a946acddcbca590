//! The one table of settings: what each is called in the file, the environment and on the command
//! line, and what it is when nobody says anything. The reference in `docs/` is made from it.

use std::fmt::Write as _;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Path in the file.
    pub name: &'static str,
    /// Environment variables, the first that is set counts; lists are separated by commas.
    pub env: &'static [&'static str],
    /// Flag of `run`.
    pub flag: Option<&'static str>,
    /// Value when it is not set, in the syntax of the file.
    pub default: &'static str,
    /// Takes a list of values.
    pub list: bool,
    /// What it does and what is allowed.
    pub help: &'static str,
}

macro_rules! keys {
    ($($konst:ident = $name:literal, [$($env:literal),*], $flag:expr, $default:literal, $list:ident, $help:literal;)*) => {
        $(pub(super) const $konst: &str = $name;)*
        /// Every setting, in the order of the reference.
        pub const KEYS: &[Key] = &[$(Key {
            name: $name, env: &[$($env),*], flag: $flag, default: $default, list: keys!(@$list), help: $help,
        },)*];
    };
    (@one) => { false };
    (@list) => { true };
}

keys! {
    LOG_LEVEL = "log_level", ["RUST_LOG", "OTEL_LOG_LEVEL"], Some("--log-level"), "info", one,
        "How much the agent says about itself on stderr: `off`, `error`, `warn`, `info`, `debug`, `trace`, or directives such as `tracer_agent::ingest=debug`.";
    ADMIN = "admin", ["TRACER_ADMIN"], Some("--admin"), "127.0.0.1:9468", one,
        "Address of `/healthz`, `/readyz`, `/metrics` and `/ledger`: `IP:PORT`, or `off`.";
    TAKEOVER = "takeover", ["TRACER_TAKEOVER"], Some("--takeover"), "off", one,
        "Name under which a newer agent takes over from an older one on the same host, or `off`. Agents of one name replace each other. Not finished: see [operations](operations.md).";
    LIMIT_MEMORY = "limits.memory", ["TRACER_LIMITS_MEMORY"], None, "", one,
        "Memory of the agent, `64MiB` to `1TiB`: beyond it open exchanges are given up and counted. Unset: 85 % of its cgroup's `memory.max`, if it has one. See [operations](operations.md).";
    LIMIT_CPU = "limits.cpu", ["TRACER_LIMITS_CPU"], None, "", one,
        "CPUs that the agent and its eBPF programs may take together, such as `0.25`, up to 10000: beyond it TLS, then all tracing is switched off until there is room again. Unset: no limit, and nothing is measured. See [operations](operations.md).";
    PROPAGATE = "propagate", ["TRACER_PROPAGATE"], Some("--propagate"), "false", one,
        "Write trace context into outgoing requests: `true`, `false`, `header` or `option` for one of the two ways alone, or `always` to write headers even on a kernel that fails the self-test for a fault which programs may notice. See [propagation](propagation.md).";
    PROPAGATORS = "propagators", ["OTEL_PROPAGATORS"], None, "tracecontext,b3,b3multi,jaeger,xray,datadog", list,
        "Trace-context formats read from requests, in order of preference: `tracecontext`, `b3`, `b3multi`, `jaeger`, `xray`, `datadog`, `none`. `baggage` is accepted and carries no trace. Unknown names in the variable are ignored with a warning.";
    INCLUDE_EXE = "discovery.include.exe", ["TRACER_INCLUDE_EXE"], Some("--include-exe"), "", list,
        "Trace only programs whose path matches one of these globs.";
    INCLUDE_CMDLINE = "discovery.include.cmdline", ["TRACER_INCLUDE_CMDLINE"], Some("--include-cmdline"), "", list,
        "Trace only processes whose command line matches one of these globs.";
    INCLUDE_PORTS = "discovery.include.ports", ["TRACER_INCLUDE_PORT"], Some("--include-port"), "", list,
        "Trace only connections to these server ports: `8080` or `8000-8099`.";
    INCLUDE_PIDS = "discovery.include.pids", ["TRACER_INCLUDE_PID"], Some("--include-pid"), "", list,
        "Trace only these process ids.";
    EXCLUDE_EXE = "discovery.exclude.exe", ["TRACER_EXCLUDE_EXE"], Some("--exclude-exe"), "", list,
        "Never trace programs whose path matches one of these globs.";
    EXCLUDE_CMDLINE = "discovery.exclude.cmdline", ["TRACER_EXCLUDE_CMDLINE"], Some("--exclude-cmdline"), "", list,
        "Never trace processes whose command line matches one of these globs.";
    EXCLUDE_PORTS = "discovery.exclude.ports", ["TRACER_EXCLUDE_PORT"], Some("--exclude-port"), "", list,
        "Never trace connections to these server ports.";
    EXCLUDE_PIDS = "discovery.exclude.pids", ["TRACER_EXCLUDE_PID"], Some("--exclude-pid"), "", list,
        "Never trace these process ids.";
    CONTAINERS_ONLY = "discovery.containers_only", ["TRACER_CONTAINERS_ONLY"], Some("--containers-only"), "false", one,
        "Trace only processes that run in a container.";
    RING_SIZE = "capture.ring_size", ["TRACER_RING_SIZE"], Some("--ring-size"), "16MiB", one,
        "Memory between kernel and agent: a power of two from `64KiB` to `1GiB`.";
    MAX_CONNECTIONS = "capture.max_connections", ["TRACER_MAX_CONNECTIONS"], None, "32768", one,
        "Connections tracked at a time, 1024 to 1048576; with more the longest unused one is forgotten.";
    TLS = "capture.tls", ["TRACER_TLS"], None, "true", one,
        "Read plaintext from TLS libraries, by probes in them. They cost more than those of system calls.";
    TIER = "capture.tier", ["TRACER_TIER"], None, "auto", one,
        "Where system calls are seen: `base`, at tracepoints, which every kernel has; `fast`, at the functions that do them, and the agent does not start where that cannot be; `auto`, at functions on kernels where that was seen to be exact, unless context is written, else at tracepoints. See [kernels](kernels.md#two-tiers).";
    EXPORTERS = "export.exporters", ["OTEL_TRACES_EXPORTER"], None, "", list,
        "Where spans go, one or several: `otlp`, `zipkin`, `console`; or `none`. Unset: `otlp` if an endpoint is set, else `console`.";
    METRICS_EXPORTERS = "export.metrics.exporters", ["OTEL_METRICS_EXPORTER"], None, "", list,
        "Where metrics go beside `/metrics` of the admin endpoint: `otlp`, `prometheus` (that endpoint alone), `none`. Unset: `otlp` if `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` is set, else `prometheus`.";
    METRICS_INTERVAL = "export.metrics.interval_ms", ["OTEL_METRIC_EXPORT_INTERVAL"], None, "", one,
        "Milliseconds from one export of metrics over OTLP to the next, 1 to 3600000; 60000 when unset.";
    OTLP_FILE = "export.otlp_file", ["TRACER_OTLP_FILE"], Some("--otlp-file"), "", one,
        "Write OTLP/JSON, one request per line, to this file; `-` is stdout.";
    OTLP_ENDPOINT = "export.otlp.endpoint", ["OTEL_EXPORTER_OTLP_ENDPOINT"], None, "", one,
        "URL of the collector, `http://HOST:PORT` or `https://HOST:PORT`.";
    OTLP_PROTOCOL = "export.otlp.protocol", ["OTEL_EXPORTER_OTLP_PROTOCOL"], None, "", one,
        "`grpc`, `http/protobuf` (when unset) or `http/json`.";
    OTLP_HEADERS = "export.otlp.headers", ["OTEL_EXPORTER_OTLP_HEADERS"], None, "", list,
        "Headers sent with every export, name to value; in the variable `name=value` with percent-encoding.";
    OTLP_COMPRESSION = "export.otlp.compression", ["OTEL_EXPORTER_OTLP_COMPRESSION"], None, "", one,
        "`gzip` or `none`.";
    OTLP_TIMEOUT = "export.otlp.timeout_ms", ["OTEL_EXPORTER_OTLP_TIMEOUT"], None, "", one,
        "Milliseconds one export may take, 1 to 3600000.";
    OTLP_INSECURE = "export.otlp.insecure", ["OTEL_EXPORTER_OTLP_INSECURE"], None, "", one,
        "`true`: a gRPC endpoint without a scheme means `http`; else it means `https`.";
    OTLP_CERTIFICATE = "export.otlp.certificate", ["OTEL_EXPORTER_OTLP_CERTIFICATE"], None, "", one,
        "PEM file with the authorities that may sign the collector's certificate; the system's when unset.";
    OTLP_CLIENT_KEY = "export.otlp.client_key", ["OTEL_EXPORTER_OTLP_CLIENT_KEY"], None, "", one,
        "PEM file with the private key for mTLS.";
    OTLP_CLIENT_CERTIFICATE = "export.otlp.client_certificate", ["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"], None, "", one,
        "PEM file with the certificate chain for mTLS.";
    ZIPKIN_ENDPOINT = "export.zipkin.endpoint", ["OTEL_EXPORTER_ZIPKIN_ENDPOINT"], None, "", one,
        "URL of the Zipkin collector; `http://localhost:9411/api/v2/spans` when unset.";
    ZIPKIN_TIMEOUT = "export.zipkin.timeout_ms", ["OTEL_EXPORTER_ZIPKIN_TIMEOUT"], None, "", one,
        "Milliseconds one export may take, 1 to 3600000; 10000 when unset.";
    SPOOL = "export.spool.directory", ["TRACER_SPOOL"], Some("--spool"), "", one,
        "Directory where spans wait while a backend is down. Of this agent alone; made if absent. Unset: they wait in memory only.";
    SPOOL_MAX_BYTES = "export.spool.max_bytes", ["TRACER_SPOOL_MAX_BYTES"], Some("--spool-max-bytes"), "256MiB", one,
        "Bytes the spool may take, `16MiB` to `1TiB`, shared evenly by the network exporters; beyond it the oldest spans are dropped and counted.";
    BATCH_DELAY = "export.batch.delay_ms", ["OTEL_BSP_SCHEDULE_DELAY"], None, "", one,
        "Milliseconds a span waits at most for its batch, 1 to 3600000; 1000 when unset.";
    BATCH_QUEUE = "export.batch.max_queue", ["OTEL_BSP_MAX_QUEUE_SIZE"], None, "", one,
        "Spans waiting at most, 1 to 10000000; more are counted as dropped.";
    BATCH_SIZE = "export.batch.max_batch", ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"], None, "", one,
        "Spans of one export request at most, 1 to 1000000, and not more than the queue.";
    SAMPLER = "sampling.sampler", ["OTEL_TRACES_SAMPLER"], None, "parentbased_always_on", one,
        "The standard sampler: `always_on`, `always_off`, `traceidratio`, `parentbased_always_on`, `parentbased_always_off`, `parentbased_traceidratio`. See [sampling](sampling.md). Can be changed while the agent runs, as all of `sampling`.";
    SAMPLER_RATIO = "sampling.ratio", ["OTEL_TRACES_SAMPLER_ARG"], None, "", one,
        "Share of traces that `traceidratio` keeps, 0 to 1; 1 when unset. Other samplers have none.";
    KEEP_ERRORS = "sampling.keep_errors", ["TRACER_SAMPLING_KEEP_ERRORS"], None, "false", one,
        "Keep every trace in which a span has the status Error, whatever the sampler says.";
    KEEP_SLOWER_THAN = "sampling.keep_slower_than_ms", ["TRACER_SAMPLING_KEEP_SLOWER_THAN_MS"], None, "", one,
        "Keep every trace in which a span took longer than so many milliseconds, 1 to 3600000.";
    SPANS_PER_SECOND = "sampling.spans_per_second", ["TRACER_SAMPLING_SPANS_PER_SECOND"], None, "", one,
        "Spans per second that each service should have at most: a goal that the sampling ratio follows, above 0 and up to 1000000.";
    DECISION_WAIT = "sampling.decision_wait_ms", ["TRACER_SAMPLING_DECISION_WAIT_MS"], None, "5000", one,
        "Where outcomes count: milliseconds that a trace waits for its root at most, 100 to 60000.";
    MAX_BUFFERED = "sampling.max_buffered_spans", ["TRACER_SAMPLING_MAX_BUFFERED_SPANS"], None, "16384", one,
        "Spans that wait for decisions at most, 1 to 1000000; with more the oldest traces are decided early.";
    ROUTE_PATTERNS = "routes.patterns", ["TRACER_ROUTES_PATTERNS"], None, "", list,
        "Paths that name spans, such as `/users/{id}`; the first that matches is taken. See [routes](routes.md). Can be changed while the agent runs, as all of `routes`.";
    ROUTE_LEARN = "routes.learn", ["TRACER_ROUTES_LEARN"], None, "false", one,
        "Guess such names from the paths that are seen.";
    ROUTE_MAX = "routes.max_per_service", ["TRACER_ROUTES_MAX_PER_SERVICE"], None, "200", one,
        "Names that are guessed for one side of one service at most, 1 to 10000.";
    SDK_MODE = "sdk.mode", ["TRACER_SDK"], Some("--sdk"), "auto", one,
        "What is done about requests of processes that have an OpenTelemetry SDK: `auto` leaves to it what it is seen to report, `trace` reports all, `leave` leaves all of them to it. See [sdk](sdk.md).";
    SDK_WAIT = "sdk.wait_ms", ["TRACER_SDK_WAIT_MS"], None, "7000", one,
        "Where there are signs of an SDK: milliseconds that spans wait for its first export, 100 to 60000. More than the 5 s from one export of an SDK to the next.";
    QUERY_KEYS = "redaction.query_keys", ["TRACER_REDACTION_QUERY_KEYS"], None,
        "X-Amz-Signature,X-Amz-Credential,X-Amz-Security-Token,AWSAccessKeyId,Signature,sig,X-Goog-Signature", list,
        "Query keys whose values are replaced by `REDACTED`; a list of your own replaces this one.";
    COMMAND_ARGS = "process.command_args", ["TRACER_PROCESS_COMMAND_ARGS"], None, "false", one,
        "Report the arguments of traced commands, which can hold secrets.";
    KUBERNETES = "kubernetes.metadata", ["TRACER_KUBERNETES"], Some("--kubernetes"), "auto", one,
        "Ask the Kubernetes API for the pods of this node: `auto` (in a pod with a service account), `on` (also with the kubeconfig that `KUBECONFIG` names), `off`. See [kubernetes](kubernetes.md).";
    KUBERNETES_NODE = "kubernetes.node_name", ["TRACER_NODE_NAME"], None, "", one,
        "This node's name in Kubernetes. In a DaemonSet the variable comes from `spec.nodeName` (downward API). Without it the API is not asked.";
    KUBERNETES_LABELS = "kubernetes.labels", ["TRACER_KUBERNETES_LABELS"], None, "", list,
        "Labels of pods that become attributes, `k8s.pod.label.<key>`: globs over keys.";
    KUBERNETES_ANNOTATIONS = "kubernetes.annotations", ["TRACER_KUBERNETES_ANNOTATIONS"], None, "", list,
        "Annotations of pods that become attributes, `k8s.pod.annotation.<key>`: globs over keys.";
    KUBERNETES_PEERS = "kubernetes.peers", ["TRACER_KUBERNETES_PEERS"], None, "false", one,
        "Name the services and pods at the other ends of connections, by watches of all services and endpoints of the cluster.";
    KUBERNETES_WAIT = "kubernetes.wait_ms", ["TRACER_KUBERNETES_WAIT_MS"], None, "3000", one,
        "Milliseconds that spans of a container wait at most until Kubernetes has told its pod, from its first span on; 0 to 30000.";
    BPF_STATS = "telemetry.bpf_stats", ["TRACER_BPF_STATS"], None, "false", one,
        "Have the kernel measure eBPF programs and show their run times on `/metrics`. Costs every eBPF program of the host some 50 ns a run while the agent runs.";
}

/// A list of rules; only in the file.
#[derive(Clone, Copy, Debug)]
pub struct List {
    /// Path in the file.
    pub name: &'static str,
    /// What its entries do.
    pub help: &'static str,
    /// What an entry may say.
    pub fields: &'static [Field],
    /// How it looks in a file.
    pub example: &'static str,
}

/// One field of an entry of a [`List`].
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// An entry needs it.
    pub required: bool,
    /// Takes a list of values.
    pub list: bool,
    /// What it says.
    pub help: &'static str,
}

const fn field(name: &'static str, help: &'static str) -> Field {
    Field {
        name,
        required: false,
        list: false,
        help,
    }
}

pub(super) const SERVICE_NAMES: &str = "service_names";
pub(super) const SAMPLING_RULES: &str = "sampling.rules";
pub(super) const ROUTE_SERVICES: &str = "routes.services";
pub(super) const SDK_SERVICES: &str = "sdk.services";

/// Every list of rules, in the order of the reference.
pub const LISTS: &[List] = &[
    List {
        name: SERVICE_NAMES,
        help: "Rules that name services, first match wins. Each has a `name` and at least one glob.",
        fields: &[
            field("exe", "Glob over the path of the executable."),
            field("cmdline", "Glob over the command line."),
            Field {
                required: true,
                ..field("name", "`service.name` of what matches all given globs.")
            },
        ],
        example: "service_names:\n  - exe: /opt/shop/bin/*\n    name: shop\n  - cmdline: \"*billing.jar*\"\n    name: billing\n",
    },
    List {
        name: SAMPLING_RULES,
        help: "Limits for single services and routes. Of each limit the first rule that matches and has it holds, else that of `sampling` itself.",
        fields: &[
            field(
                "service",
                "Glob over `service.name`; any service without one.",
            ),
            field("route", "Path such as `/users/{id}`; any path without one."),
            field("keep_slower_than_ms", "As `sampling.keep_slower_than_ms`."),
            field(
                "spans_per_second",
                "As `sampling.spans_per_second`; not beside a `route`.",
            ),
        ],
        example: "sampling:\n  rules:\n    - service: shop*\n      route: /reports/**\n      keep_slower_than_ms: 5000\n    - service: shop*\n      keep_slower_than_ms: 300\n      spans_per_second: 50\n",
    },
    List {
        name: ROUTE_SERVICES,
        help: "Patterns for single services, which come before `routes.patterns`.",
        fields: &[
            Field {
                required: true,
                ..field("service", "Glob over `service.name`.")
            },
            Field {
                required: true,
                list: true,
                ..field("patterns", "As `routes.patterns`.")
            },
        ],
        example: "routes:\n  services:\n    - service: shop\n      patterns: [\"/users/{id}\", \"/static/**\"]\n",
    },
    List {
        name: SDK_SERVICES,
        help: "Modes of single services, first match wins.",
        fields: &[
            Field {
                required: true,
                ..field("service", "Glob over `service.name`.")
            },
            Field {
                required: true,
                ..field("mode", "As `sdk.mode`.")
            },
        ],
        example: "sdk:\n  services:\n    - service: legacy-*\n      mode: trace\n",
    },
];

/// The entry of a key of the table.
pub(super) fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The configuration reference, as kept in `docs/configuration.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         <!-- Generated from tracer-agent/src/config/keys.rs; `UPDATE_DOCS=1 cargo test -p tracer-agent` rewrites it. -->\n\n\
         A setting can come from a YAML file (`--config FILE` or `TRACER_CONFIG`), from the environment or from a flag. Flags\n\
         beat the environment, the environment beats the file. Lists are replaced as a whole; in a variable they are\n\
         separated by commas, a flag is repeated. An empty variable is unset. An unknown key in the file is an error.\n\
         `tracer-agent config check FILE` looks at a file, `tracer-agent config print` shows what is in effect and why,\n\
         `tracer-agent config schema` prints a [JSON Schema](configuration.schema.json) for editors.\n\n\
         On SIGHUP a running agent reads its file again. Policy (`discovery`), `sampling` and `routes` change at once and no\n\
         connection is lost; other settings that differ are named in the log and wait for a restart. A file with a mistake\n\
         changes nothing and the log says what is wrong with it. (An agent whose terminal was closed ends, as usual.)\n\n",
    );
    for key in KEYS {
        let _ = write!(text, "## `{}`\n\n{}\n\n", key.name, key.help);
        if let Some(flag) = key.flag {
            let _ = writeln!(text, "- flag: `{flag}`");
        }
        let variables: Vec<String> = key.env.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(text, "- variable: {}", variables.join(", else "));
        if !key.default.is_empty() {
            let _ = writeln!(text, "- default: `{}`", key.default);
        }
        text.push('\n');
    }
    for list in LISTS {
        let _ = write!(
            text,
            "## `{}`\n\n{} Only in the file.\n\n",
            list.name, list.help
        );
        for field in list.fields {
            let needed = if field.required { " Required." } else { "" };
            let _ = writeln!(text, "- `{}`: {}{needed}", field.name, field.help);
        }
        let _ = write!(text, "\n```yaml\n{}```\n\n", list.example);
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}
