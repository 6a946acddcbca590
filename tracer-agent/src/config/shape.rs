//! What a configuration file may say, as it is written: every value a string that remembers its line.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_saphyr::Spanned;

pub(super) type Scalar = Option<Spanned<String>>;
pub(super) type List = Option<Vec<Spanned<String>>>;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) log_level: Scalar,
    pub(super) admin: Scalar,
    pub(super) takeover: Scalar,
    pub(super) limits: Limits,
    pub(super) propagate: Scalar,
    pub(super) propagators: List,
    pub(super) discovery: Discovery,
    pub(super) capture: Capture,
    pub(super) export: Export,
    pub(super) service_names: Vec<Spanned<ServiceName>>,
    pub(super) sampling: Sampling,
    pub(super) routes: Routes,
    pub(super) sdk: Sdk,
    pub(super) redaction: Redaction,
    pub(super) process: Process,
    pub(super) kubernetes: Kubernetes,
    pub(super) telemetry: Telemetry,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Kubernetes {
    pub(super) metadata: Scalar,
    pub(super) node_name: Scalar,
    pub(super) labels: List,
    pub(super) annotations: List,
    pub(super) peers: Scalar,
    pub(super) wait_ms: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) memory: Scalar,
    pub(super) cpu: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Telemetry {
    pub(super) bpf_stats: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub(super) exporters: List,
    pub(super) interval_ms: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Sampling {
    pub(super) sampler: Scalar,
    pub(super) ratio: Scalar,
    pub(super) keep_errors: Scalar,
    pub(super) keep_slower_than_ms: Scalar,
    pub(super) spans_per_second: Scalar,
    pub(super) decision_wait_ms: Scalar,
    pub(super) max_buffered_spans: Scalar,
    pub(super) rules: Vec<Spanned<SamplingRule>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SamplingRule {
    pub(super) service: Scalar,
    pub(super) route: Scalar,
    pub(super) keep_slower_than_ms: Scalar,
    pub(super) spans_per_second: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Routes {
    pub(super) patterns: List,
    pub(super) learn: Scalar,
    pub(super) max_per_service: Scalar,
    pub(super) services: Vec<Spanned<RouteService>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RouteService {
    pub(super) service: Scalar,
    pub(super) patterns: List,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Sdk {
    pub(super) mode: Scalar,
    pub(super) wait_ms: Scalar,
    pub(super) services: Vec<Spanned<SdkService>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SdkService {
    pub(super) service: Scalar,
    pub(super) mode: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Discovery {
    pub(super) include: Rules,
    pub(super) exclude: Rules,
    pub(super) containers_only: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Rules {
    pub(super) exe: List,
    pub(super) cmdline: List,
    pub(super) ports: List,
    pub(super) pids: List,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Capture {
    pub(super) ring_size: Scalar,
    pub(super) max_connections: Scalar,
    pub(super) tls: Scalar,
    pub(super) tier: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Export {
    pub(super) exporters: List,
    pub(super) metrics: Metrics,
    pub(super) otlp_file: Scalar,
    pub(super) otlp: Otlp,
    pub(super) zipkin: Zipkin,
    pub(super) batch: Batch,
    pub(super) spool: Spool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Zipkin {
    pub(super) endpoint: Scalar,
    pub(super) timeout_ms: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Spool {
    pub(super) directory: Scalar,
    pub(super) max_bytes: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Otlp {
    pub(super) endpoint: Scalar,
    pub(super) protocol: Scalar,
    pub(super) headers: Option<BTreeMap<String, Spanned<String>>>,
    pub(super) compression: Scalar,
    pub(super) timeout_ms: Scalar,
    pub(super) insecure: Scalar,
    pub(super) certificate: Scalar,
    pub(super) client_key: Scalar,
    pub(super) client_certificate: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Batch {
    pub(super) delay_ms: Scalar,
    pub(super) max_queue: Scalar,
    pub(super) max_batch: Scalar,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ServiceName {
    pub(super) exe: Option<String>,
    pub(super) cmdline: Option<String>,
    pub(super) name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Redaction {
    pub(super) query_keys: List,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Process {
    pub(super) command_args: Scalar,
}
