//! Puts the rooms together: what each command of the binary does.
//!
//! In: a validated [`Config`]. Out: an exit status, or an [`AppError`] that main prints.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::Config;

/// Why a command failed at run time (exit status 1).
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The command's room is not connected.
    #[error("`{0}` is not built into this binary")]
    NotBuilt(&'static str),
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
    None
}

/// Traces the host, or `command` and its children only, until SIGINT or SIGTERM or the command's end.
/// With a command, the exit code is the command's.
pub async fn run(_config: Config, _command: Option<Vec<OsString>>) -> Result<ExitCode, AppError> {
    Err(AppError::NotBuilt("run"))
}

/// Sends a capture file through the pipeline.
pub async fn replay(_config: Config, _capture: &Path) -> Result<(), AppError> {
    Err(AppError::NotBuilt("replay"))
}

/// Loads every eBPF program and tells what the verifier said.
pub fn verify() -> Result<Vec<VerifiedProgram>, AppError> {
    Err(AppError::NotBuilt("verify"))
}
