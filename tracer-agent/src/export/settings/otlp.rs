//! `OTEL_EXPORTER_OTLP_*` of one signal.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::{Problem, SettingsError, TlsFile, TlsSettings, Variable, Variables};

/// The names by which a signal differs from another.
#[derive(Clone, Copy, Debug)]
pub struct Signal {
    /// As in `OTEL_EXPORTER_OTLP_<variable>_ENDPOINT`.
    pub variable: &'static str,
    /// What is appended to a base endpoint, without the leading slash.
    pub path: &'static str,
    /// Path of the gRPC method.
    pub grpc_method: &'static str,
    /// How the JSON of a partial success calls the number of what was rejected.
    pub rejected: &'static str,
}

/// Traces.
pub const TRACES: Signal = Signal {
    variable: "TRACES",
    path: "v1/traces",
    grpc_method: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    rejected: "rejectedSpans",
};

/// Metrics.
pub const METRICS: Signal = Signal {
    variable: "METRICS",
    path: "v1/metrics",
    grpc_method: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    rejected: "rejectedDataPoints",
};

/// How requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// Protobuf over HTTP.
    HttpProtobuf,
    /// JSON over HTTP.
    HttpJson,
}

/// How requests are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
}

/// Where and how to send one signal over OTLP. `Debug` shows no header values.
#[derive(Clone, Debug)]
pub struct OtlpSettings {
    /// What is sent.
    pub signal: Signal,
    /// How requests are made.
    pub protocol: Protocol,
    /// HTTP: the whole URL of the signal. gRPC: scheme, host and port.
    pub endpoint: Url,
    /// Sent with every request.
    pub headers: HeaderMap,
    /// How requests are compressed.
    pub compression: Compression,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// Certificates, for an `https` endpoint.
    pub tls: TlsSettings,
}

impl OtlpSettings {
    /// Whether the user named an endpoint for this signal or for all.
    pub(super) fn endpoint_is_set(variables: &Variables<'_>, signal: &Signal) -> bool {
        find(variables, signal, "ENDPOINT").is_some()
    }

    pub(super) fn from_variables(
        variables: &Variables<'_>,
        signal: &Signal,
    ) -> Result<Self, SettingsError> {
        let protocol = match find(variables, signal, "PROTOCOL") {
            None => Protocol::HttpProtobuf,
            Some(variable) => match variable.value.to_ascii_lowercase().as_str() {
                "grpc" => Protocol::Grpc,
                "http/protobuf" => Protocol::HttpProtobuf,
                "http/json" => Protocol::HttpJson,
                _ => return Err(variable.wrong(Problem::UnknownProtocol(variable.value.clone()))),
            },
        };
        let compression = match find(variables, signal, "COMPRESSION") {
            None => Compression::None,
            Some(variable) => match variable.value.to_ascii_lowercase().as_str() {
                "gzip" => Compression::Gzip,
                "none" => Compression::None,
                _ => {
                    return Err(variable.wrong(Problem::UnknownCompression(variable.value.clone())));
                }
            },
        };
        let timeout = match find(variables, signal, "TIMEOUT") {
            None => 10_000,
            Some(variable) => variable.number(1, 3_600_000, "milliseconds")?,
        };
        let headers = find(variables, signal, "HEADERS")
            .map(|variable| headers(&variable))
            .transpose()?;
        let file = |what| {
            find(variables, signal, what).map(|variable| TlsFile {
                path: variable.value.into(),
                variable: variable.name,
            })
        };
        let tls = TlsSettings {
            authority: file("CERTIFICATE"),
            certificate: file("CLIENT_CERTIFICATE"),
            key: file("CLIENT_KEY"),
        };
        match (&tls.certificate, &tls.key) {
            (Some(alone), None) => return Err(alone.wrong(Problem::Alone("CLIENT_KEY"))),
            (None, Some(alone)) => return Err(alone.wrong(Problem::Alone("CLIENT_CERTIFICATE"))),
            (Some(_), Some(_)) | (None, None) => {}
        }
        Ok(Self {
            signal: *signal,
            protocol,
            endpoint: endpoint(variables, signal, protocol)?,
            headers: headers.unwrap_or_default(),
            compression,
            timeout: Duration::from_millis(timeout),
            tls,
        })
    }
}

/// The signal's own variable, or the one for all signals.
fn find(variables: &Variables<'_>, signal: &Signal, what: &str) -> Option<Variable> {
    variables.first(&[
        &format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.variable),
        &format!("OTEL_EXPORTER_OTLP_{what}"),
    ])
}

fn endpoint(
    variables: &Variables<'_>,
    signal: &Signal,
    protocol: Protocol,
) -> Result<Url, SettingsError> {
    let Some(variable) = find(variables, signal, "ENDPOINT") else {
        let default = match protocol {
            Protocol::Grpc => "http://localhost:4317".to_owned(),
            Protocol::HttpProtobuf | Protocol::HttpJson => {
                format!("http://localhost:4318/{}", signal.path)
            }
        };
        return Url::parse(&default).map_err(|_| SettingsError {
            variable: "OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(),
            problem: Problem::NotUrl(default),
        });
    };
    let mut text = variable.value.clone();
    // `host:port` parses as a URL of scheme `host`: the scheme must be looked for in the text.
    if !text.contains("://") {
        if protocol != Protocol::Grpc {
            return Err(variable.wrong(Problem::NotUrl(text)));
        }
        // Only here: a scheme says it already, and says it more clearly.
        let insecure = find(variables, signal, "INSECURE")
            .map(|insecure| insecure.boolean())
            .transpose()?;
        let scheme = match insecure {
            Some(true) => "http://",
            Some(false) | None => "https://",
        };
        text.insert_str(0, scheme);
    }
    let mut url = match Url::parse(&text) {
        Ok(url) => url,
        Err(_) => return Err(variable.wrong(Problem::NotUrl(variable.value.clone()))),
    };
    match url.scheme() {
        "http" | "https" => {}
        other => return Err(variable.wrong(Problem::UnknownScheme(other.to_owned()))),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(variable.wrong(Problem::CredentialsInUrl));
    }
    url.set_fragment(None);
    let is_base = variable.name == "OTEL_EXPORTER_OTLP_ENDPOINT";
    if protocol == Protocol::Grpc {
        // The path of a gRPC request names the service; an endpoint's own has no meaning.
        url.set_path("");
        url.set_query(None);
    } else if is_base {
        let path = format!("{}/{}", url.path().trim_end_matches('/'), signal.path);
        url.set_path(&path);
    }
    Ok(url)
}

fn headers(variable: &Variable) -> Result<HeaderMap, SettingsError> {
    let mut headers = HeaderMap::new();
    for (name, value) in variable.key_values()? {
        let bad = || variable.wrong(Problem::BadHeader(name.clone()));
        let parsed = HeaderName::try_from(&name).map_err(|_| bad())?;
        if is_reserved(parsed.as_str()) {
            return Err(bad());
        }
        let mut value = HeaderValue::from_str(&value).map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.insert(parsed, value);
    }
    Ok(headers)
}

/// Headers that describe the message or the connection: the exporter writes them itself, and a
/// second one would make requests that no server accepts. gRPC keys ending in `-bin` are binary.
fn is_reserved(name: &str) -> bool {
    name.starts_with("grpc-")
        || name.ends_with("-bin")
        || matches!(
            name,
            "connection"
                | "content-encoding"
                | "content-length"
                | "content-type"
                | "host"
                | "keep-alive"
                | "te"
                | "transfer-encoding"
                | "upgrade"
        )
}
