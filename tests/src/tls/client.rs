//! A program that is led by lines.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;

use super::LIMIT;
use crate::process;

/// A program that says that it is ready, waits for a line and ends with status 0; ended when dropped.
#[derive(Debug)]
pub struct Client {
    child: Child,
    lines: Receiver<String>,
    name: String,
}

impl Client {
    /// Starts it and waits until it is ready; the reason if this machine cannot.
    pub fn start(mut command: Command) -> Result<Self, String> {
        let name = command.get_program().display().to_string();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("{name}: {error}"))?;
        let output = child.stdout.take().ok_or("stdout is piped")?;
        let client = Self {
            child,
            lines: process::lines(output),
            name,
        };
        match client.lines.recv_timeout(LIMIT) {
            Ok(line) if line == "ready" => Ok(client),
            other => Err(format!("{}: {other:?} in place of ready", client.name)),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its next line.
    pub fn line(&self) -> String {
        let line = self.lines.recv_timeout(LIMIT);
        line.unwrap_or_else(|error| panic!("{}: no line: {error}", self.name))
    }

    /// Gives it a line.
    pub fn go(&mut self) {
        let input = self.child.stdin.as_mut().expect("stdin is piped");
        input.write_all(b"go\n").expect("write to the client");
    }

    /// Lets it go and waits for its end, which must be a good one.
    pub fn finish(mut self) {
        self.go();
        self.end();
    }

    /// Waits for its end, which must be a good one.
    pub fn end(mut self) {
        let status = process::wait(&mut self.child, LIMIT);
        let good = status.is_some_and(|status| status.success());
        assert!(good, "{}: {status:?}", self.name);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}
