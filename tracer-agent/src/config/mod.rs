//! Configuration: a YAML file, the environment and the flags, as one typed and validated [`Config`].
//!
//! In: the text of the file, a lookup for environment variables, the parsed flags. Out: a
//! [`Config`] in which every value is in range, or a [`ConfigError`] of one line that names the
//! key, where it was set, what is wrong and what is allowed. Flags beat environment variables,
//! which beat the file; a list is replaced as a whole, never merged.
//!
//! The `OTEL_EXPORTER_OTLP_*` and `OTEL_BSP_*` variables are not parsed here: the export room owns
//! their meaning. The file's export section is offered to it under the same names
//! ([`Export::lookup`]), so one parser serves both.
//!
//! It cannot see whether what is configured exists: files, ports and processes are met at start.

mod error;
mod file;
mod flags;
mod keys;
mod layers;
mod parse;
mod print;
mod refused;
mod resolve;
mod schema;
mod shape;
mod shaping;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::kernel::tier::Choice;
use crate::meta::kubernetes;
use crate::trace::{routes, sampling, sdk};

pub use error::ConfigError;
pub use flags::{CommonFlags, RunFlags};
pub use keys::{Field, KEYS, Key, LISTS, List, reference};
pub use layers::{Environment, Layers};
pub use schema::schema;

/// Everything the agent can be told, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Level or directives of the agent's own log.
    pub log_level: String,
    /// Where the admin endpoint listens; `None` switches it off.
    pub admin: Option<SocketAddr>,
    /// What agents that replace each other have in common; `None` for one that takes no part.
    pub takeover: Option<String>,
    /// What the agent may use of the host.
    pub limits: Limits,
    /// Which processes are traced.
    pub discovery: Discovery,
    /// Bounds of the kernel side.
    pub capture: Capture,
    /// Where spans go.
    pub export: Export,
    /// Whether trace context is written into requests.
    pub propagate: Propagate,
    /// Trace-context formats read from requests, in the syntax of `OTEL_PROPAGATORS`. Names from the
    /// file are known ones; the trace room ignores unknown ones of the variable, as specified.
    pub propagators: String,
    /// The user's rules for `service.name`, first match wins.
    pub service_names: Vec<ServiceNameRule>,
    /// Which spans are exported.
    pub sampling: sampling::Settings,
    /// Which names paths give to spans.
    pub routes: routes::Settings,
    /// What is done about processes with an SDK.
    pub sdk: sdk::Settings,
    /// What is blanked in URLs.
    pub redaction: Redaction,
    /// What is told about processes.
    pub process: ProcessSettings,
    /// What Kubernetes is asked for.
    pub kubernetes: kubernetes::Settings,
    /// What the agent counts about itself.
    pub telemetry: TelemetrySettings,
}

/// What the agent may use of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Bytes of memory; `None` asks the cgroup.
    pub memory: Option<u64>,
    /// CPUs, for the agent and its eBPF programs.
    pub cpu: Option<f64>,
}

/// Whether trace context is written into requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagate {
    /// No.
    #[default]
    Off,
    /// As headers if this kernel passes the self-test, else in TCP options.
    Tested,
    /// As headers also if it fails one that programs may notice, but that leaves what they send right.
    Always,
    /// As headers only, if this kernel passes the self-test.
    Header,
    /// In TCP options only.
    Option,
}

/// Which processes are traced. Excludes win over includes; without includes everything is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// Only what matches one of these.
    pub include: Rules,
    /// Never what matches one of these.
    pub exclude: Rules,
    /// Only processes that run in a container.
    pub containers_only: bool,
}

/// Ways to name processes; any match of any field counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Globs over the path of the executable.
    pub exe: Vec<String>,
    /// Globs over the command line (arguments joined by blanks).
    pub cmdline: Vec<String>,
    /// Local ports of servers, remote ports of clients.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Process ids in the agent's own pid namespace.
    pub pids: Vec<u32>,
}

/// Bounds of the kernel side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    /// Bytes of the ring buffer; a power of two.
    pub ring_size: u32,
    /// Connections tracked at a time.
    pub max_connections: u32,
    /// Whether TLS libraries are probed.
    pub tls: bool,
    /// Where system calls are seen.
    pub tier: Choice,
}

/// Where spans go. Everything but the file sink and the spool is the export room's to parse, by
/// [`Export::lookup`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Export {
    /// OTLP/JSON lines go here; `-` is stdout.
    pub otlp_file: Option<PathBuf>,
    /// Where spans wait while a backend is down.
    pub spool: Option<PathBuf>,
    /// Bytes they may take there.
    pub spool_max_bytes: u64,
    /// Export settings of the file, by the name of the variable that would say the same.
    from_file: BTreeMap<&'static str, String>,
}

impl Export {
    /// The environment with the file's export settings behind it. An empty variable is unset.
    pub fn lookup<'a>(&'a self, env: Environment<'a>) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| {
            env(name)
                .filter(|value| !value.is_empty())
                .or_else(|| self.from_file.get(name).cloned())
        }
    }
}

/// Names the service of the processes it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceNameRule {
    /// Glob over the path of the executable.
    pub exe: Option<String>,
    /// Glob over the command line.
    pub cmdline: Option<String>,
    /// `service.name` of what matches all given globs.
    pub name: String,
}

/// What is blanked in URLs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redaction {
    /// Query keys whose values become `REDACTED`.
    pub query_keys: Vec<String>,
}

/// What is told about processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessSettings {
    /// Report the arguments of commands; off by default, since they can hold secrets.
    pub command_args: bool,
}

/// What the agent counts about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// Have the kernel measure eBPF programs.
    pub bpf_stats: bool,
}

impl Config {
    /// The whole configuration of `run`.
    pub fn load(flags: &RunFlags, env: Environment<'_>) -> Result<Config, ConfigError> {
        Layers::gather(flags, env)?.resolve()
    }

    /// The sections of the file in which `other` differs and which are only read at start.
    pub fn fixed_differences(&self, other: &Config) -> Vec<&'static str> {
        let Config {
            log_level,
            admin,
            takeover,
            limits,
            discovery: _,
            capture,
            export,
            propagate,
            propagators,
            service_names,
            sampling: _,
            routes: _,
            sdk,
            redaction,
            process,
            kubernetes,
            telemetry,
        } = self;
        let sections = [
            ("log_level", *log_level != other.log_level),
            ("admin", *admin != other.admin),
            ("takeover", *takeover != other.takeover),
            ("limits", *limits != other.limits),
            ("capture", *capture != other.capture),
            ("export", *export != other.export),
            ("propagate", *propagate != other.propagate),
            ("propagators", *propagators != other.propagators),
            ("service_names", *service_names != other.service_names),
            ("sdk", *sdk != other.sdk),
            ("redaction", *redaction != other.redaction),
            ("process", *process != other.process),
            ("kubernetes", *kubernetes != other.kubernetes),
            ("telemetry", *telemetry != other.telemetry),
        ];
        let differing = sections.into_iter().filter(|(_, differs)| *differs);
        differing.map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests;
