//! Scenarios that tracers get wrong: odd ways to move bytes, odd sockets, odd but valid HTTP.
//!
//! Each starts a server and a client as processes of their own and knows which spans they must
//! give. The programs are in `services/oddities` (Python) and `services/c/mmsg.c`.

mod table;
mod want;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

pub use table::SCENARIOS;
pub use want::{Fault, Want, mismatches};

use crate::{process, services};

/// Longest time for any step of a scenario.
const LIMIT: Duration = Duration::from_secs(120);
/// `service.name` of the servers.
pub const SERVER_NAME: &str = "odd-server";
/// `service.name` of the clients.
pub const CLIENT_NAME: &str = "odd-client";

/// Who serves.
#[derive(Clone, Copy, Debug)]
pub enum Server {
    /// `server.py` with these arguments.
    Python(&'static [&'static str]),
    /// `server.py` that is its own client: no client process.
    PythonPair,
    /// `mmsg server`.
    Mmsg,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub enum Client {
    /// `client.py` with this act and arguments.
    Python(&'static str, &'static [&'static str]),
    /// `mmsg client`: the same requests as `plain`.
    Mmsg,
}

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Who serves.
    pub server: Server,
    /// Who asks.
    pub client: Client,
    /// The spans of both.
    pub wants: &'static [Want],
}

/// A scenario that was played.
#[derive(Debug)]
pub struct Played {
    /// Marker of its requests.
    pub run: String,
    /// Where the server listened: `127.0.0.1:1`, `[::1]:1`, `unix:/path`, `abstract:name`, `none`.
    pub address: String,
    /// The processes that served.
    pub server_pids: Vec<u32>,
    /// The process that asked.
    pub client_pid: u32,
    /// `service.name` of the client.
    pub client_name: &'static str,
}

/// A process that talks in lines.
struct Actor {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Actor {
    fn start(mut command: Command, service: &str) -> Result<Self, String> {
        command
            .env("OTEL_SERVICE_NAME", service)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command
            .spawn()
            .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        let output = child.stdout.take().ok_or("stdout is piped")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
        })
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .map_err(|error| error.to_string())?;
        if line.is_empty() {
            Err("ended without a word".to_owned())
        } else {
            Ok(line.trim_end().to_owned())
        }
    }

    fn ask(&mut self) -> Result<String, String> {
        let stdin = self.child.stdin.as_mut().ok_or("stdin is piped")?;
        stdin.write_all(b"\n").map_err(|error| error.to_string())?;
        self.line()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if process::wait(&mut self.child, Duration::from_secs(2)).is_none() {
            process::end(&mut self.child);
        }
    }
}

fn python(script: &str) -> Command {
    // A peer that hangs must not hang the test.
    let mut command = Command::new("timeout");
    command.arg("--foreground").arg(LIMIT.as_secs().to_string());
    command
        .arg(services::python())
        .arg(services::source("oddities").join(script));
    command
}

fn pids(line: &str) -> Result<Vec<u32>, String> {
    serde_json::from_str(line).map_err(|error| format!("{error}: {line:?}"))
}

/// Plays a scenario with requests marked by `run`.
pub fn play(scenario: &Scenario, run: &str) -> Result<Played, String> {
    let mut command = match scenario.server {
        Server::Python(arguments) => {
            let mut command = python("server.py");
            command.args(arguments);
            command
        }
        Server::PythonPair => {
            let mut command = python("server.py");
            command.arg("address=pair").arg(format!("run={run}"));
            command
        }
        Server::Mmsg => {
            let mut command = Command::new(services::mmsg()?);
            command.arg("server");
            command
        }
    };
    command.current_dir(std::env::temp_dir());
    let mut server =
        Actor::start(command, SERVER_NAME).map_err(|error| format!("server: {error}"))?;
    let address = server.line().map_err(|error| format!("server: {error}"))?;
    let (client_pid, client_name) = if matches!(scenario.server, Server::PythonPair) {
        // Below `timeout`.
        (
            process::tree(server.child.id())
                .get(1)
                .copied()
                .ok_or("no client")?,
            SERVER_NAME,
        )
    } else {
        let command = match scenario.client {
            Client::Python(act, arguments) => {
                let mut command = python("client.py");
                command.args([&address, run, act]).args(arguments);
                command
            }
            Client::Mmsg => {
                let mut command = Command::new(services::mmsg()?);
                command.args(["client", &address, run]);
                command
            }
        };
        let mut client =
            Actor::start(command, CLIENT_NAME).map_err(|error| format!("client: {error}"))?;
        let line = client.line().map_err(|error| format!("client: {error}"))?;
        (
            pids(&line)?.first().copied().ok_or("no client")?,
            CLIENT_NAME,
        )
    };
    let server_pids = pids(&server.ask().map_err(|error| format!("server: {error}"))?)?;
    Ok(Played {
        run: run.to_owned(),
        address,
        server_pids,
        client_pid,
        client_name,
    })
}
