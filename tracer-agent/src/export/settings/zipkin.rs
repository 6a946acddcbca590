//! `OTEL_EXPORTER_ZIPKIN_*`.

use std::time::Duration;

use url::Url;

use super::{Problem, SettingsError, Variables};

/// Where to send spans as Zipkin v2 JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZipkinSettings {
    /// The whole URL.
    pub endpoint: Url,
    /// How long one attempt may take.
    pub timeout: Duration,
}

impl ZipkinSettings {
    pub(super) fn from_variables(variables: &Variables<'_>) -> Result<Self, SettingsError> {
        const ENDPOINT: &str = "OTEL_EXPORTER_ZIPKIN_ENDPOINT";
        const DEFAULT: &str = "http://localhost:9411/api/v2/spans";
        let variable = variables.first(&[ENDPOINT]);
        let text = variable
            .as_ref()
            .map_or(DEFAULT, |variable| variable.value.as_str());
        let wrong = |problem| SettingsError {
            variable: ENDPOINT.to_owned(),
            problem,
        };
        if !text.contains("://") {
            return Err(wrong(Problem::NotUrl(text.to_owned())));
        }
        let mut endpoint = Url::parse(text).map_err(|_| wrong(Problem::NotUrl(text.to_owned())))?;
        if !matches!(endpoint.scheme(), "http" | "https") {
            return Err(wrong(Problem::UnknownScheme(endpoint.scheme().to_owned())));
        }
        if !endpoint.username().is_empty() || endpoint.password().is_some() {
            return Err(wrong(Problem::CredentialsInUrl));
        }
        endpoint.set_fragment(None);
        let timeout = match variables.first(&["OTEL_EXPORTER_ZIPKIN_TIMEOUT"]) {
            None => 10_000,
            Some(variable) => variable.number(1, 3_600_000, "milliseconds")?,
        };
        Ok(Self {
            endpoint,
            timeout: Duration::from_millis(timeout),
        })
    }
}
