//! The command of `run -- CMD`: started traced, signalled, waited for.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::process::{Child, Command};

use super::AppError;

/// A command that was asked to end may take this long before it is killed.
const GRACE: Duration = Duration::from_secs(3);

/// Starts it. It is traced from its first instruction: it inherits the agent's policy entry.
pub fn start(command: &[OsString]) -> Result<Child, AppError> {
    let [program, args @ ..] = command else {
        unreachable!("clap gives no empty command");
    };
    let started = Command::new(program)
        .args(args)
        // The service manager is the agent's, not the command's.
        .env_remove("NOTIFY_SOCKET")
        .kill_on_drop(true)
        .spawn();
    started.map_err(|source| AppError::Command {
        command: program.to_string_lossy().into_owned(),
        source,
    })
}

/// Asks it to end, and sees to it that it does.
pub async fn end(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok())
        && let Some(pid) = rustix::process::Pid::from_raw(pid)
    {
        // It may have ended just now.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Its status as a shell would report it.
pub fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128u8.saturating_add(signal as u8),
        (None, None) => 1,
    }
}
