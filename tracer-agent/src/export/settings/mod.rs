//! What the `OTEL_*` variables say about exporting.
//!
//! In: a lookup of variables (the environment, or a table in tests) and the `--otlp-file` path.
//! Out: [`ExportSettings`], complete and validated, or one line that names the variable, what is
//! wrong with it and what to do. Rules: the OpenTelemetry specification's environment variables,
//! with the agent's own defaults where stated. An empty variable is an unset one.
//!
//! Files named here are read when the exporters are made, not before.

mod metrics;
mod otlp;
#[cfg(test)]
mod tests;
mod tls;
mod zipkin;

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

pub use metrics::{MetricsSettings, Temporality};
pub use otlp::{Compression, METRICS, OtlpSettings, Protocol, Signal, TRACES};
pub use tls::{TlsFile, TlsSettings};
pub use zipkin::ZipkinSettings;

/// Looks a variable up.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Everything the export room needs to know.
#[derive(Clone, Debug)]
pub struct ExportSettings {
    /// Where spans go; empty when exporting is switched off.
    pub traces: Vec<TracesExporter>,
    /// Where metrics go beside the admin endpoint.
    pub metrics: MetricsSettings,
    /// Queue and batching.
    pub queue: QueueSettings,
    /// Where spans wait on disk while a backend is down; in memory only without it.
    pub spool: Option<SpoolSettings>,
    /// The agent's `OTEL_RESOURCE_ATTRIBUTES`: apply to every resource that does not say otherwise.
    pub resource: Vec<(String, String)>,
}

/// One destination of spans.
#[derive(Clone, Debug)]
pub enum TracesExporter {
    /// An OTLP endpoint.
    Otlp(Box<OtlpSettings>),
    /// A Zipkin endpoint.
    Zipkin(ZipkinSettings),
    /// Span trees on standard output.
    Console,
    /// OTLP/JSON lines; `-` is standard output.
    File(PathBuf),
}

/// `--spool` and `--spool-max-bytes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolSettings {
    /// One directory of an agent's own; made if absent.
    pub directory: PathBuf,
    /// For all exporters together.
    pub max_bytes: u64,
}

/// `OTEL_BSP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// A span waits at most this long for others to join its batch. Zero: not at all.
    pub schedule_delay: Duration,
    /// Spans waiting to be batched, and spans waiting for each exporter; more are dropped.
    pub max_queue_size: usize,
    /// Spans in one batch.
    pub max_export_batch_size: usize,
    /// Attempts to export one batch end after this long.
    pub export_timeout: Duration,
}

impl Default for QueueSettings {
    /// The specification's defaults are made for one process (2048 spans, batches of 512, 5 s, and
    /// 30 s to export). The agent carries the spans of a host: tens of thousands a second must fit
    /// into one delay. A backend that restarts is often gone for longer than 30 s: what decides then
    /// is whether the queue has room, not the age of a batch.
    fn default() -> Self {
        Self {
            schedule_delay: Duration::from_secs(1),
            max_queue_size: 32 * 1024,
            max_export_batch_size: 2048,
            export_timeout: Duration::from_secs(300),
        }
    }
}

/// A variable that cannot be followed. One line: the variable, what is wrong, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct SettingsError {
    /// The variable, as the user wrote it.
    pub variable: String,
    /// What is wrong with it, part of the message already.
    pub problem: Problem,
}

/// What can be wrong with a variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not the name of an exporter.
    #[error("unknown exporter {0:?}; use otlp, zipkin, console or none")]
    UnknownExporter(String),
    /// Not the name of an exporter of metrics.
    #[error("unknown exporter {0:?}; use otlp, prometheus or none")]
    UnknownMetricsExporter(String),
    /// Not a temporality.
    #[error("unknown preference {0:?}; use cumulative, delta or lowmemory")]
    UnknownTemporality(String),
    /// `none` beside a real exporter.
    #[error("none cannot be combined with other exporters; remove it or the others")]
    NoneCombined,
    /// Not an OTLP protocol.
    #[error("unknown protocol {0:?}; use grpc, http/protobuf or http/json")]
    UnknownProtocol(String),
    /// Not a compression.
    #[error("unknown compression {0:?}; use gzip or none")]
    UnknownCompression(String),
    /// Not a boolean.
    #[error("{0:?} is not a boolean; use true or false")]
    NotBoolean(String),
    /// Not a number in range.
    #[error("{value:?} is not a whole number from {min} to {max}; give {unit}")]
    NotNumber {
        /// As written.
        value: String,
        /// Least allowed.
        min: u64,
        /// Most allowed.
        max: u64,
        /// What the number counts.
        unit: &'static str,
    },
    /// A batch that cannot fit into the queue.
    #[error(
        "{batch} is more than OTEL_BSP_MAX_QUEUE_SIZE ({queue}); make the batch smaller or the queue larger"
    )]
    BatchExceedsQueue {
        /// Spans in a batch.
        batch: usize,
        /// Spans in the queue.
        queue: usize,
    },
    /// Not a URL.
    #[error("{0:?} is not a URL; write it like http://collector:4318")]
    NotUrl(String),
    /// Half of a client certificate.
    #[error("needs its other half; set {0} too, or neither")]
    Alone(&'static str),
    /// A scheme that OTLP does not have.
    #[error("scheme {0:?} is not supported; use http:// or https://")]
    UnknownScheme(String),
    /// User and password in the URL.
    #[error(
        "credentials do not belong into the endpoint; put them into OTEL_EXPORTER_OTLP_HEADERS, like Authorization=Basic%20..."
    )]
    CredentialsInUrl,
    /// A list entry that is not `key=value`.
    #[error(
        "entry {0} is not key=value; separate entries by commas and percent-encode what is special"
    )]
    NotKeyValue(usize),
    /// A list entry that does not decode to UTF-8.
    #[error("the value of {0:?} does not percent-decode to UTF-8 text; encode it as UTF-8")]
    NotUtf8(String),
    /// Not a header, or not one that a user can set.
    #[error("{0:?} cannot be sent as a header; remove it")]
    BadHeader(String),
}

impl ExportSettings {
    /// Reads the variables. `otlp_file` is the value of `--otlp-file`.
    ///
    /// With `OTEL_TRACES_EXPORTER` unset, an OTLP endpoint selects `otlp`; with nothing selected at
    /// all, not even a file, spans go to the console.
    pub fn from_variables(
        lookup: Lookup<'_>,
        otlp_file: Option<PathBuf>,
    ) -> Result<Self, SettingsError> {
        let variables = Variables(lookup);
        let mut traces = match variables.first(&["OTEL_TRACES_EXPORTER"]) {
            Some(chosen) => chosen_exporters(&variables, &chosen)?,
            None if OtlpSettings::endpoint_is_set(&variables, &TRACES) => {
                vec![TracesExporter::Otlp(Box::new(
                    OtlpSettings::from_variables(&variables, &TRACES)?,
                ))]
            }
            None if otlp_file.is_none() => vec![TracesExporter::Console],
            None => Vec::new(),
        };
        traces.extend(otlp_file.map(TracesExporter::File));
        if let Some(disabled) = variables.first(&["OTEL_SDK_DISABLED"])
            && disabled.boolean()?
        {
            traces.clear();
        }
        Ok(Self {
            traces,
            metrics: MetricsSettings::from_variables(&variables)?,
            queue: queue_settings(&variables)?,
            spool: None,
            resource: resource_attributes(&variables)?,
        })
    }
}

fn chosen_exporters(
    variables: &Variables<'_>,
    chosen: &Variable,
) -> Result<Vec<TracesExporter>, SettingsError> {
    let (mut otlp, mut zipkin, mut console, mut none) = (false, false, false, false);
    for name in chosen
        .value
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
    {
        match name.to_ascii_lowercase().as_str() {
            "otlp" => otlp = true,
            "console" => console = true,
            "none" => none = true,
            "zipkin" => zipkin = true,
            _ => return Err(chosen.wrong(Problem::UnknownExporter(name.to_owned()))),
        }
    }
    if none && (otlp || zipkin || console) {
        return Err(chosen.wrong(Problem::NoneCombined));
    }
    let mut exporters = Vec::new();
    if otlp {
        exporters.push(TracesExporter::Otlp(Box::new(
            OtlpSettings::from_variables(variables, &TRACES)?,
        )));
    }
    if zipkin {
        exporters.push(TracesExporter::Zipkin(ZipkinSettings::from_variables(
            variables,
        )?));
    }
    if console {
        exporters.push(TracesExporter::Console);
    }
    Ok(exporters)
}

fn queue_settings(variables: &Variables<'_>) -> Result<QueueSettings, SettingsError> {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    // Bounded memory: ten million spans are several gigabytes already.
    const MAX_SPANS: u64 = 10_000_000;
    let defaults = QueueSettings::default();
    let milliseconds = |name: &str, min, default| match variables.first(&[name]) {
        Some(variable) => variable
            .number(min, DAY_MS, "milliseconds")
            .map(Duration::from_millis),
        None => Ok(default),
    };
    let spans = |name: &str| {
        let variable = variables.first(&[name]);
        variable
            .map(|variable| {
                let count = variable.number(1, MAX_SPANS, "spans")?;
                Ok((usize::try_from(count).unwrap_or(usize::MAX), variable))
            })
            .transpose()
    };
    let queue = spans("OTEL_BSP_MAX_QUEUE_SIZE")?.map(|(queue, _)| queue);
    let batch = spans("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")?;
    let (max_queue_size, max_export_batch_size) = match (queue, batch) {
        (Some(queue), None) => (queue, defaults.max_export_batch_size.min(queue)),
        (None, Some((batch, _))) => (defaults.max_queue_size.max(batch), batch),
        (None, None) => (defaults.max_queue_size, defaults.max_export_batch_size),
        (Some(queue), Some((batch, variable))) if batch > queue => {
            return Err(variable.wrong(Problem::BatchExceedsQueue { batch, queue }));
        }
        (Some(queue), Some((batch, _))) => (queue, batch),
    };
    Ok(QueueSettings {
        schedule_delay: milliseconds("OTEL_BSP_SCHEDULE_DELAY", 0, defaults.schedule_delay)?,
        max_queue_size,
        max_export_batch_size,
        export_timeout: milliseconds("OTEL_BSP_EXPORT_TIMEOUT", 1, defaults.export_timeout)?,
    })
}

fn resource_attributes(variables: &Variables<'_>) -> Result<Vec<(String, String)>, SettingsError> {
    let Some(variable) = variables.first(&["OTEL_RESOURCE_ATTRIBUTES"]) else {
        return Ok(Vec::new());
    };
    let mut attributes: Vec<(String, String)> = Vec::new();
    for (key, value) in variable.key_values()? {
        // Attribute keys are unique in a resource; the later one wins.
        attributes.retain(|(known, _)| *known != key);
        attributes.push((key, value));
    }
    Ok(attributes)
}

/// The variables, with "empty is unset" applied.
pub struct Variables<'a>(Lookup<'a>);

/// A variable that is set.
pub struct Variable {
    name: String,
    value: String,
}

impl Variables<'_> {
    /// The first of `names` that is set and not blank.
    fn first(&self, names: &[&str]) -> Option<Variable> {
        names.iter().find_map(|name| {
            let value = (self.0)(name)?;
            let value = value.trim();
            (!value.is_empty()).then(|| Variable {
                name: (*name).to_owned(),
                value: value.to_owned(),
            })
        })
    }
}

impl Variable {
    fn wrong(&self, problem: Problem) -> SettingsError {
        SettingsError {
            variable: self.name.clone(),
            problem,
        }
    }

    fn number(&self, min: u64, max: u64, unit: &'static str) -> Result<u64, SettingsError> {
        self.value
            .parse::<u64>()
            .ok()
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| {
                self.wrong(Problem::NotNumber {
                    value: self.value.clone(),
                    min,
                    max,
                    unit,
                })
            })
    }

    fn boolean(&self) -> Result<bool, SettingsError> {
        match self.value.to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(self.wrong(Problem::NotBoolean(self.value.clone()))),
        }
    }

    /// `k=v,k=v`, values percent-encoded: the W3C Baggage form without properties. The errors
    /// never repeat a value: it may be a secret.
    fn key_values(&self) -> Result<Vec<(String, String)>, SettingsError> {
        let mut pairs = Vec::new();
        for (index, entry) in self.value.split(',').enumerate() {
            let entry = entry.trim();
            if entry.is_empty() {
                continue;
            }
            let Some((key, value)) = entry.split_once('=') else {
                return Err(self.wrong(Problem::NotKeyValue(index + 1)));
            };
            let (key, value) = (key.trim(), value.trim());
            if key.is_empty() {
                return Err(self.wrong(Problem::NotKeyValue(index + 1)));
            }
            let decode = |text: &str| {
                let decoded = percent_decode_str(text)
                    .decode_utf8()
                    .map(|text| text.into_owned());
                decoded.map_err(|_| self.wrong(Problem::NotUtf8(key.to_owned())))
            };
            pairs.push((decode(key)?, decode(value)?));
        }
        Ok(pairs)
    }
}
