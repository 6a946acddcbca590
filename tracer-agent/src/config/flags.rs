//! The flags that carry settings, as clap sees them.

use std::path::PathBuf;

use super::keys;
use super::layers::{Place, Sourced, Values};

/// Flags of every command that traces something.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct CommonFlags {
    /// Configuration file (YAML); see docs/configuration.md
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write spans as OTLP/JSON lines to this file, `-` for stdout
    #[arg(long, value_name = "PATH")]
    pub otlp_file: Option<String>,
    /// How much to say on stderr: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// Flags of `run`.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct RunFlags {
    /// Flags shared with other commands.
    #[command(flatten)]
    pub common: CommonFlags,
    /// Address of /healthz, /readyz, /metrics and /ledger, or `off` [default: 127.0.0.1:9468]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// Name under which a newer agent takes over from this one, or `off`
    #[arg(long, value_name = "NAME")]
    pub takeover: Option<String>,
    /// Write trace context into outgoing requests; `always`: whatever the self-test of the kernel says
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub propagate: Option<String>,
    /// Processes with an OpenTelemetry SDK: auto, trace, leave [default: auto]
    #[arg(long, value_name = "MODE")]
    pub sdk: Option<String>,
    /// Memory between kernel and agent, a power of two [default: 8MiB]
    #[arg(long, value_name = "SIZE")]
    pub ring_size: Option<String>,
    /// Keep spans in this directory while a backend is down
    #[arg(long, value_name = "DIR")]
    pub spool: Option<String>,
    /// Ask the Kubernetes API for this node's pods: auto, on, off [default: auto]
    #[arg(long, value_name = "WHEN")]
    pub kubernetes: Option<String>,
    /// Bytes the spool may take; beyond it the oldest spans are dropped [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    pub spool_max_bytes: Option<String>,
    /// Trace only programs whose path matches (repeatable)
    #[arg(long, value_name = "GLOB", help_heading = "What to trace")]
    pub include_exe: Vec<String>,
    /// Never trace programs whose path matches
    #[arg(long, value_name = "GLOB", help_heading = "What to trace")]
    pub exclude_exe: Vec<String>,
    /// Trace only processes whose command line matches
    #[arg(long, value_name = "GLOB", help_heading = "What to trace")]
    pub include_cmdline: Vec<String>,
    /// Never trace processes whose command line matches
    #[arg(long, value_name = "GLOB", help_heading = "What to trace")]
    pub exclude_cmdline: Vec<String>,
    /// Trace only connections to these server ports: 8080 or 8000-8099
    #[arg(
        long,
        value_name = "PORTS",
        value_delimiter = ',',
        help_heading = "What to trace"
    )]
    pub include_port: Vec<String>,
    /// Never trace connections to these server ports
    #[arg(
        long,
        value_name = "PORTS",
        value_delimiter = ',',
        help_heading = "What to trace"
    )]
    pub exclude_port: Vec<String>,
    /// Trace only these processes
    #[arg(
        long,
        value_name = "PID",
        value_delimiter = ',',
        help_heading = "What to trace"
    )]
    pub include_pid: Vec<String>,
    /// Never trace these processes
    #[arg(
        long,
        value_name = "PID",
        value_delimiter = ',',
        help_heading = "What to trace"
    )]
    pub exclude_pid: Vec<String>,
    /// Trace only processes that run in a container
    #[arg(long, help_heading = "What to trace")]
    pub containers_only: bool,
}

impl From<CommonFlags> for RunFlags {
    fn from(common: CommonFlags) -> Self {
        RunFlags {
            common,
            ..RunFlags::default()
        }
    }
}

/// The flags that were given, by key.
pub(super) fn values(flags: &RunFlags) -> Values {
    let RunFlags {
        common:
            CommonFlags {
                config: _,
                otlp_file,
                log_level,
            },
        admin,
        takeover,
        propagate,
        sdk,
        ring_size,
        spool,
        spool_max_bytes,
        kubernetes,
        include_exe,
        exclude_exe,
        include_cmdline,
        exclude_cmdline,
        include_port,
        exclude_port,
        include_pid,
        exclude_pid,
        containers_only,
    } = flags;
    let yes = |given: bool| given.then(|| "true".to_owned());
    let mut values = Values::new();
    let mut put = |key: &'static str, texts: &[String]| {
        if let (false, Some(flag)) = (texts.is_empty(), keys::key(key).and_then(|key| key.flag)) {
            let sourced = |text: &String| Sourced {
                text: text.clone(),
                place: Place::Flag(flag),
            };
            values.insert(key, texts.iter().map(sourced).collect());
        }
    };
    put(keys::OTLP_FILE, otlp_file.as_slice());
    put(keys::LOG_LEVEL, log_level.as_slice());
    put(keys::ADMIN, admin.as_slice());
    put(keys::TAKEOVER, takeover.as_slice());
    put(keys::PROPAGATE, propagate.as_slice());
    put(keys::SDK_MODE, sdk.as_slice());
    put(keys::RING_SIZE, ring_size.as_slice());
    put(keys::SPOOL, spool.as_slice());
    put(keys::SPOOL_MAX_BYTES, spool_max_bytes.as_slice());
    put(keys::KUBERNETES, kubernetes.as_slice());
    put(keys::INCLUDE_EXE, include_exe);
    put(keys::EXCLUDE_EXE, exclude_exe);
    put(keys::INCLUDE_CMDLINE, include_cmdline);
    put(keys::EXCLUDE_CMDLINE, exclude_cmdline);
    put(keys::INCLUDE_PORTS, include_port);
    put(keys::EXCLUDE_PORTS, exclude_port);
    put(keys::INCLUDE_PIDS, include_pid);
    put(keys::EXCLUDE_PIDS, exclude_pid);
    put(keys::CONTAINERS_ONLY, yes(*containers_only).as_slice());
    values
}
