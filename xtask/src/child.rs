//! A program we started and end again, by its id, with everything waited for.

use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::{sh, sys};

/// How long a program may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(6);
/// How often an ending program is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// A running program; ended when this is dropped, or by the kernel if we die first.
#[derive(Debug)]
pub struct Guard {
    child: Child,
}

impl Guard {
    /// Starts the program. Call it on the main thread: the program ends with the thread.
    pub fn start(command: &mut Command) -> Result<Self> {
        let text = sh::line(command);
        let child = sys::die_with_us(command)
            .spawn()
            .with_context(|| format!("cannot start `{text}`"))?;
        Ok(Self { child })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it ends or the time is over.
    pub fn wait_for(&mut self, time: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(LOOK);
        }
    }

    /// Ends it with SIGTERM, and with SIGKILL when it does not listen.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended() {
            return Ok(status);
        }
        // It may have ended since; waiting tells.
        let _ = sys::signal(self.pid(), libc::SIGTERM);
        if let Some(status) = self.wait_for(GRACE) {
            return Ok(status);
        }
        let _ = self.child.kill();
        self.child
            .wait()
            .context("cannot wait for an ended program")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_ends_its_program() {
        let guard = Guard::start(Command::new("sleep").arg("1000")).expect("sleep exists");
        let pid = guard.pid();
        assert!(sys::signal(pid, 0).is_ok(), "it runs");
        drop(guard);
        assert!(
            sys::signal(pid, 0).is_err(),
            "it is gone and was waited for"
        );
    }
}
