//! What every resource says beside what its process says: the agent's `OTEL_RESOURCE_ATTRIBUTES`
//! and the name of this distribution. Neither overrides the process itself.

use std::borrow::Cow;

use crate::meta::{AttributeValue, Process};

/// `telemetry.distro.name` and the name of the instrumentation scope.
pub const SCOPE_NAME: &str = "tracer-agent";
/// `telemetry.distro.version` and the version of the instrumentation scope.
pub const SCOPE_VERSION: &str = env!("CARGO_PKG_VERSION");
/// Of the semantic conventions that names and attributes follow.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";

/// Attributes added to every resource that lacks them.
#[derive(Clone, Debug)]
pub struct ResourceDefaults(Vec<(Cow<'static, str>, AttributeValue)>);

impl ResourceDefaults {
    /// From the agent's own `OTEL_RESOURCE_ATTRIBUTES`, keys unique.
    pub fn new(agent: &[(String, String)]) -> Self {
        let mut defaults: Vec<(Cow<'static, str>, AttributeValue)> = vec![
            (
                Cow::Borrowed("telemetry.distro.name"),
                AttributeValue::Str(SCOPE_NAME.into()),
            ),
            (
                Cow::Borrowed("telemetry.distro.version"),
                AttributeValue::Str(SCOPE_VERSION.into()),
            ),
        ];
        for (key, value) in agent {
            defaults.retain(|(known, _)| known != key);
            defaults.push((
                Cow::Owned(key.clone()),
                AttributeValue::Str(value.as_str().into()),
            ));
        }
        Self(defaults)
    }

    /// Calls `each` once per attribute of the resource of `process`: its own first.
    pub fn for_each<'a>(
        &'a self,
        process: &'a Process,
        mut each: impl FnMut(&'a str, &'a AttributeValue),
    ) {
        for (key, value) in &process.attributes {
            each(key, value);
        }
        for (key, value) in &self.0 {
            if !process.attributes.iter().any(|(own, _)| own == key) {
                each(key, value);
            }
        }
    }
}
