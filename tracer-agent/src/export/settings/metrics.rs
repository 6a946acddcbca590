//! What the `OTEL_*` variables say about exporting metrics.
//!
//! An endpoint for all signals does not select `otlp` here: it is often one that takes traces only. An
//! endpoint for metrics does.

use std::time::Duration;

use super::otlp::METRICS;
use super::{OtlpSettings, Problem, SettingsError, Variables};

/// `OTEL_METRIC_*` and where metrics go.
#[derive(Clone, Debug)]
pub struct MetricsSettings {
    /// The OTLP endpoint, if they go to one. `/metrics` of the admin endpoint has them anyway.
    pub otlp: Option<OtlpSettings>,
    /// Somebody counts on `/metrics`.
    pub prometheus: bool,
    /// From one export to the next.
    pub interval: Duration,
    /// Attempts of one export end after this long.
    pub timeout: Duration,
    /// What counters and histograms count from.
    pub temporality: Temporality,
}

/// `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Temporality {
    /// Everything counts from its beginning.
    #[default]
    Cumulative,
    /// Everything counts from the export before.
    Delta,
    /// Histograms count from the export before; what the agent counts anyway, from the beginning.
    LowMemory,
}

impl MetricsSettings {
    pub(super) fn from_variables(variables: &Variables<'_>) -> Result<Self, SettingsError> {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        let milliseconds = |name: &str, default| match variables.first(&[name]) {
            Some(variable) => variable
                .number(1, DAY_MS, "milliseconds")
                .map(Duration::from_millis),
            None => Ok(default),
        };
        let preference = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        let temporality = match variables.first(&[preference]) {
            None => Temporality::default(),
            Some(variable) => match variable.value.to_ascii_lowercase().as_str() {
                "cumulative" => Temporality::Cumulative,
                "delta" => Temporality::Delta,
                "lowmemory" => Temporality::LowMemory,
                _ => {
                    return Err(variable.wrong(Problem::UnknownTemporality(variable.value.clone())));
                }
            },
        };
        let (otlp, prometheus) = chosen(variables)?;
        Ok(Self {
            prometheus,
            otlp: otlp
                .then(|| OtlpSettings::from_variables(variables, &METRICS))
                .transpose()?,
            interval: milliseconds("OTEL_METRIC_EXPORT_INTERVAL", Duration::from_secs(60))?,
            timeout: milliseconds("OTEL_METRIC_EXPORT_TIMEOUT", Duration::from_secs(30))?,
            temporality,
        })
    }
}

/// Whether `otlp` and `prometheus` are asked for.
fn chosen(variables: &Variables<'_>) -> Result<(bool, bool), SettingsError> {
    if let Some(disabled) = variables.first(&["OTEL_SDK_DISABLED"])
        && disabled.boolean()?
    {
        return Ok((false, false));
    }
    let Some(chosen) = variables.first(&["OTEL_METRICS_EXPORTER"]) else {
        let endpoint = variables.first(&["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"]);
        return Ok((endpoint.is_some(), false));
    };
    let (mut otlp, mut prometheus, mut none) = (false, false, false);
    let names = chosen.value.split(',').map(str::trim);
    for name in names.filter(|name| !name.is_empty()) {
        match name.to_ascii_lowercase().as_str() {
            "otlp" => otlp = true,
            "prometheus" => prometheus = true,
            "none" => none = true,
            _ => return Err(chosen.wrong(Problem::UnknownMetricsExporter(name.to_owned()))),
        }
    }
    if none && (otlp || prometheus) {
        return Err(chosen.wrong(Problem::NoneCombined));
    }
    Ok((otlp, prometheus))
}
