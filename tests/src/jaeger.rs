//! A real Jaeger (tests/services/jaeger, built from its Go modules) that keeps traces in memory.
//!
//! In: OTLP over gRPC and HTTP, each on its own port. Out: what its query API shows, as [`Span`]s.
//! Jaeger has no schema URLs and knows times in whole microseconds: both are lost on the way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::agent::free_address;
use crate::services::build;
use crate::span::{Attribute, Attributes, Kind, Span, Via};
use crate::{http, process};

/// From its start to open ports; a Go program of 70 MB on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(90);
/// More traces than any test makes; Jaeger shows 100 unless told.
const TRACES: usize = 1000;

/// A running Jaeger; ended when dropped.
#[derive(Debug)]
pub struct Jaeger {
    child: Child,
    /// OTLP over gRPC.
    pub grpc: SocketAddr,
    /// OTLP over HTTP.
    pub http: SocketAddr,
    query: SocketAddr,
    files: TempDir,
}

/// Answer of a list of the query API.
#[derive(Deserialize)]
struct Page<T> {
    /// `null` for none.
    data: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trace {
    spans: Vec<Shown>,
    processes: BTreeMap<String, Process>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    service_name: String,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    #[serde(rename = "traceID")]
    trace: String,
    #[serde(rename = "spanID")]
    id: String,
    operation_name: String,
    references: Vec<Reference>,
    /// Microseconds since the epoch.
    start_time: u64,
    /// Microseconds.
    duration: u64,
    tags: Vec<Tag>,
    #[serde(rename = "processID")]
    process: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    ref_type: String,
    #[serde(rename = "traceID")]
    trace: String,
    #[serde(rename = "spanID")]
    span: String,
}

#[derive(Deserialize)]
struct Tag {
    key: String,
    value: Value,
}

impl Jaeger {
    /// Builds it if it is not built yet, and starts it. An error is a reason to skip.
    pub fn start() -> Result<Self, String> {
        let program = build::jaeger()?;
        let files = TempDir::new().map_err(|error| error.to_string())?;
        let log = std::fs::File::create(files.path().join("log"));
        let [grpc, http, query, query_grpc, own_grpc, own_http, admin] =
            [(); 7].map(|()| free_address());
        let child = Command::new(program)
            .args(["--log-level", "warn"])
            .arg(format!("--collector.otlp.grpc.host-port={grpc}"))
            .arg(format!("--collector.otlp.http.host-port={http}"))
            .arg(format!("--query.http-server.host-port={query}"))
            .arg(format!("--query.grpc-server.host-port={query_grpc}"))
            .arg(format!("--collector.grpc-server.host-port={own_grpc}"))
            .arg(format!("--collector.http-server.host-port={own_http}"))
            .arg(format!("--admin.http.host-port={admin}"))
            .env("SPAN_STORAGE_TYPE", "memory")
            // It traces its own query API.
            .env("OTEL_TRACES_SAMPLER", "always_off")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.map_err(|error| error.to_string())?)
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut jaeger = Self {
            child,
            grpc,
            http,
            query,
            files,
        };
        let listens = process::poll_until(START_LIMIT, || {
            if !matches!(jaeger.child.try_wait(), Ok(None)) {
                return Some(false);
            }
            [grpc, http, query]
                .iter()
                .all(|address| std::net::TcpStream::connect(address).is_ok())
                .then_some(true)
        });
        assert!(
            listens == Some(true),
            "jaeger does not listen\n{}",
            std::fs::read_to_string(jaeger.log()).unwrap_or_default()
        );
        Ok(jaeger)
    }

    fn log(&self) -> PathBuf {
        self.files.path().join("log")
    }

    fn list<T: for<'de> Deserialize<'de>>(&self, target: &str) -> Vec<T> {
        let response = http::get(self.query, target).expect("the query API answers");
        let body = String::from_utf8_lossy(&response.body).into_owned();
        assert_eq!(response.status, 200, "{target}: {body}");
        let page: Page<T> =
            serde_json::from_str(&body).unwrap_or_else(|error| panic!("{target}: {error}: {body}"));
        page.data.unwrap_or_default()
    }

    /// Names of the services it knows, sorted.
    pub fn services(&self) -> Vec<String> {
        let mut names = self.list("/api/services");
        names.sort();
        names
    }

    /// The spans of all traces that the service has a part in.
    pub fn spans(&self, service: &str) -> Vec<Span> {
        let target = format!("/api/traces?service={service}&limit={TRACES}");
        let traces: Vec<Trace> = self.list(&target);
        let spans = traces.iter().flat_map(|trace| {
            let each = trace.spans.iter();
            each.map(|shown| span(shown, &trace.processes[&shown.process]))
        });
        spans.collect()
    }

    /// What mentions `marker` in the traces of the service, once there are `count` of it.
    pub fn wait_for(
        &self,
        service: &str,
        marker: &str,
        count: usize,
        limit: Duration,
    ) -> Vec<Span> {
        let mut found = Vec::new();
        process::poll_until(limit, || {
            std::thread::sleep(Duration::from_millis(100));
            found = self.spans(service);
            found.retain(|span| span.mentions(marker));
            (found.len() >= count).then_some(())
        });
        found
    }
}

impl Drop for Jaeger {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}

fn attributes(tags: &[Tag]) -> Attributes {
    let each = tags.iter().map(|tag| {
        let value = match (&tag.value, tag.value.as_i64()) {
            (Value::String(text), _) => Attribute::Text(text.clone()),
            (_, Some(number)) => Attribute::Int(number),
            (other, None) => Attribute::Other(other.to_string()),
        };
        (tag.key.clone(), value)
    });
    each.collect()
}

/// Undoes Jaeger's mapping of OTLP, in which everything without a place of its own is a tag.
fn span(shown: &Shown, process: &Process) -> Span {
    let mut tags = attributes(&shown.tags);
    let mut text = |name: &str| match tags.remove(name) {
        Some(Attribute::Text(text)) => text,
        None => String::new(),
        Some(other) => panic!("{name} is {other:?}"),
    };
    let kind = match text("span.kind").as_str() {
        "server" => Kind::Server,
        "client" => Kind::Client,
        _ => Kind::Other(0),
    };
    let trace_state = text("w3c.tracestate");
    let error = text("otel.status_code") == "ERROR";
    for scope in ["otel.scope.name", "otel.scope.version"] {
        text(scope);
    }
    // What its own page shows the red mark for.
    let marked = tags.remove("error") == Some(Attribute::Other("true".to_owned()));
    assert_eq!(marked, error, "{}", shown.id);
    let mut resource = attributes(&process.tags);
    let name = Attribute::Text(process.service_name.clone());
    resource.insert("service.name".to_owned(), name);
    let parent = shown
        .references
        .iter()
        .find(|reference| reference.ref_type == "CHILD_OF" && reference.trace == shown.trace);
    Span {
        via: Via::Query,
        trace_id: shown.trace.clone(),
        span_id: shown.id.clone(),
        parent: parent.map(|reference| reference.span.clone()),
        trace_state,
        kind,
        name: shown.operation_name.clone(),
        start_ns: shown.start_time * 1000,
        end_ns: (shown.start_time + shown.duration) * 1000,
        error,
        attributes: tags,
        resource,
        schema_url: String::new(),
    }
}
