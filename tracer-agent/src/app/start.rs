//! What comes before `run`, on the first thread while there is no other: rights are used that are not
//! needed later, and then given up.

use std::ffi::OsString;
use std::process::ExitCode;

use super::AppError;
use super::command::Launcher;
use super::reload::Load;
use crate::config::{Config, Propagate};
use crate::kernel::prepare;
use crate::kernel::tier;
use crate::{probes, rights};

/// `tracer-agent run`: traces the host, or `command` and its children only.
pub fn start(
    config: Config,
    command: Option<Vec<OsString>>,
    load: Load,
) -> Result<ExitCode, AppError> {
    probes::check_rights()?;
    prepare::all();
    if tier::may_be_fast(config.capture.tier) {
        tier::look();
    }
    let launcher = command.map(Launcher::new).transpose()?;
    let spool = config.export.spool.as_deref();
    let file = config.export.otlp_file.as_deref();
    rights::lower(&rights::Wanted {
        uprobes: true,
        propagate: config.propagate != Propagate::Off,
        measure: config.telemetry.bpf_stats || config.limits.cpu.is_some(),
        admin_port: config.admin.map(|address| address.port()),
        written: [spool, file.filter(|path| path.as_os_str() != "-")],
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| AppError::Start("start the runtime", error))?;
    runtime.block_on(super::run::run(config, launcher, load))
}
