//! The command of `run -- CMD`: started traced, signalled, waited for.
//!
//! The command gets the rights that the agent was started with, so the thread that starts it is made
//! before the agent gives its own up. It does nothing until it is told to, and then waits for the
//! command's end.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

use super::AppError;

/// A command that was asked to end may take this long before it is killed.
const GRACE: Duration = Duration::from_secs(3);

/// What becomes of the command, told by its thread.
type Ended = oneshot::Receiver<std::io::Result<ExitStatus>>;

/// A command to be started later, with today's rights.
#[derive(Debug)]
pub struct Launcher {
    go: Sender<()>,
    started: oneshot::Receiver<Result<OwnedFd, AppError>>,
    ended: Ended,
}

impl Launcher {
    /// Makes the thread. To be called before rights are given up.
    pub fn new(command: Vec<OsString>) -> Result<Self, AppError> {
        let (go, gone) = channel();
        let (tell_started, started) = oneshot::channel();
        let (tell_ended, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("command".into())
            .spawn(move || launch(&command, &gone, tell_started, tell_ended))
            .map_err(|error| AppError::Start("start the thread for the command", error))?;
        Ok(Launcher { go, started, ended })
    }

    /// Starts the command. It is traced from its first instruction: it inherits the agent's policy entry.
    pub async fn start(self) -> Result<Running, AppError> {
        let Launcher { go, started, ended } = self;
        // A thread that is gone says so by what it does not tell.
        let _ = go.send(());
        let gone = || AppError::Start("start the command", std::io::ErrorKind::Other.into());
        let process = started.await.map_err(|_| gone())??;
        Ok(Running {
            process,
            ended,
            status: None,
        })
    }
}

fn launch(
    command: &[OsString],
    gone: &Receiver<()>,
    started: oneshot::Sender<Result<OwnedFd, AppError>>,
    ended: oneshot::Sender<std::io::Result<ExitStatus>>,
) {
    let [program, args @ ..] = command else {
        return;
    };
    if gone.recv().is_err() {
        return;
    }
    let failed = |source| AppError::Command {
        command: program.to_string_lossy().into_owned(),
        source,
    };
    let mut command = Command::new(program);
    // The service manager is the agent's, not the command's.
    command.args(args).env_remove("NOTIFY_SOCKET");
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(source) => {
            let _ = started.send(Err(failed(source)));
            return;
        }
    };
    match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(process) => {
            let _ = started.send(Ok(process));
        }
        Err(error) => {
            // Nobody could end it later.
            let _ = child.kill();
            let _ = started.send(Err(failed(error.into())));
        }
    }
    let _ = ended.send(child.wait());
}

/// The command while it runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    /// Names the process whatever becomes of its id.
    process: OwnedFd,
    ended: Ended,
    status: Option<ExitStatus>,
}

impl Running {
    /// Waits for its end. May be called again.
    pub async fn wait(&mut self) -> Result<ExitStatus, AppError> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        let gone = || std::io::Error::other("its thread is gone");
        let status = (&mut self.ended).await.unwrap_or_else(|_| Err(gone()));
        let status = status.map_err(|error| AppError::Start("wait for the command", error))?;
        self.status = Some(status);
        Ok(status)
    }

    /// Asks it to end, and sees to it that it does.
    pub async fn end(&mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, self.wait()).await.is_err() {
            self.signal(Signal::KILL);
            let _ = self.wait().await;
        }
    }

    fn signal(&self, signal: Signal) {
        // It may have ended just now.
        let _ = pidfd_send_signal(&self.process, signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.signal(Signal::KILL);
        }
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
