//! Puts the rooms together: what each command of the binary does.
//!
//! In: a validated [`Config`]. Out: an exit status, or an [`AppError`] that main prints.

mod beside;
mod capture;
mod command;
mod denied;
mod followers;
mod limits;
mod notify;
mod outlet;
mod pipeline;
mod pods;
mod propagate;
mod reload;
mod replay;
mod run;
mod side;
mod start;
mod status;
mod takeover;
mod tls;

use std::sync::Arc;
use std::time::Duration;

pub use replay::replay;
pub use start::start;

use crate::config::Config;
use crate::discover::pattern::{Cmdline, Glob};
use crate::discover::{PolicyConfig, PortRange, Rule};
use crate::export::{ExportError, SettingsError};
use crate::kernel::tier::Choice;
use crate::meta::kubernetes::Store;
use crate::meta::{Options as MetaOptions, ServiceRule};
use crate::probes::{Kernel, LoadError, Options, PropagateOptions};
use crate::telemetry::admin::AdminError;
use crate::trace::{Propagators, Redaction, SpanBuilder};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// An exporter setting that cannot be followed: bad configuration.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// An exporter that cannot be made.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The admin endpoint cannot listen.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The kernel side cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The capture file cannot be replayed.
    #[error("cannot replay {file}")]
    Replay {
        /// As given.
        file: String,
        /// Why.
        source: crate::replay::Error,
    },
    /// The command of `run -- CMD` cannot be started.
    #[error("cannot start {command}")]
    Command {
        /// As given.
        command: String,
        /// Why.
        source: std::io::Error,
    },
    /// What is not needed cannot be given up.
    #[error(transparent)]
    Rights(#[from] crate::rights::RightsError),
    /// A thread or a signal handler cannot be set up.
    #[error("cannot {0}")]
    Start(&'static str, #[source] std::io::Error),
    /// The capture thread ended by itself.
    #[error("the capture thread ended unexpectedly; please report this with the log above")]
    CaptureEnded,
}

impl AppError {
    /// Exit status by the contract: 2 for bad configuration, else 1.
    pub fn status(&self) -> u8 {
        match self {
            AppError::Settings(_) => 2,
            // What the configuration names cannot be used as it is.
            AppError::Export(
                ExportError::Tls(_) | ExportError::Uri { .. } | ExportError::Spool { .. },
            ) => 2,
            _ => 1,
        }
    }
}

/// An eBPF program as the verifier saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedProgram {
    /// Its name.
    pub name: String,
    /// Instructions the verifier went through.
    pub instructions: u32,
    /// How long loading took.
    pub load_time: Duration,
}

/// Size of the eBPF object built into this binary; `None` if it was built without one.
pub fn ebpf_object_size() -> Option<usize> {
    crate::probes::object_size()
}

/// Why the kernel takes no programs of functions, tried with one that does nothing; `None` if it takes them.
pub fn functions_refused() -> Option<String> {
    crate::probes::functions_refused()
}

/// Loads every eBPF program and tells what the verifier said.
pub fn verify() -> Result<Vec<VerifiedProgram>, AppError> {
    let options = Options {
        ring_bytes: 1 << 20,
        max_connections: 1024,
        bpf_stats: false,
        agent_tgid: std::process::id(),
        propagate: Some(PropagateOptions {
            headers: true,
            options: true,
            despite_faults: false,
            secret: [1, 2],
        }),
        tls: true,
        tier: Choice::Auto,
    };
    let programs = Kernel::verify(&options)?;
    Ok(programs
        .into_iter()
        .map(|program| VerifiedProgram {
            name: program.name,
            instructions: program.instructions.unwrap_or(0),
            load_time: program.elapsed,
        })
        .collect())
}

/// Turns the flat lists of the configuration, any of which may match, into rules.
fn policy_config(config: &Config) -> PolicyConfig {
    let rules = |lists: &crate::config::Rules, containers_only: bool| {
        let exe = lists.exe.iter().map(|glob| Rule {
            exe: Some(Glob::new(glob)),
            ..Rule::default()
        });
        let cmdline = lists.cmdline.iter().map(|glob| Rule {
            cmdline: Some(Cmdline::new(glob)),
            ..Rule::default()
        });
        let ports = lists.ports.iter().map(|range| Rule {
            ports: vec![PortRange {
                first: *range.start(),
                last: *range.end(),
            }],
            ..Rule::default()
        });
        let pids = lists.pids.iter().map(|pid| Rule {
            pid: Some(*pid),
            ..Rule::default()
        });
        let mut rules: Vec<Rule> = exe.chain(cmdline).chain(ports).chain(pids).collect();
        if containers_only && rules.is_empty() {
            rules.push(Rule::default());
        }
        for rule in &mut rules {
            rule.containers_only = containers_only;
        }
        rules
    };
    let discovery = &config.discovery;
    PolicyConfig {
        include: rules(&discovery.include, discovery.containers_only),
        exclude: rules(&discovery.exclude, false),
    }
}

fn span_builder(config: &Config) -> SpanBuilder {
    let (propagators, unknown) = Propagators::parse(&config.propagators);
    for name in unknown {
        tracing::warn!(%name, "OTEL_PROPAGATORS: unknown propagator, ignored");
    }
    let redaction = Redaction::new(config.redaction.query_keys.iter().map(String::as_str));
    SpanBuilder::new(propagators, redaction, fastrand::Rng::new())
}

fn meta_options(
    config: &Config,
    resource: &[(String, String)],
    pods: Option<Arc<Store>>,
) -> MetaOptions {
    MetaOptions {
        service_rules: config
            .service_names
            .iter()
            .map(|rule| ServiceRule {
                exe: rule.exe.as_deref().map(Glob::new),
                cmdline: rule.cmdline.as_deref().map(Cmdline::new),
                name: rule.name.as_str().into(),
            })
            .collect(),
        command_args: config.process.command_args,
        resource_attributes: resource.to_vec(),
        pod_wait_ns: u64::try_from(config.kubernetes.wait.as_nanos()).unwrap_or(u64::MAX),
        pods,
        ..MetaOptions::default()
    }
}
