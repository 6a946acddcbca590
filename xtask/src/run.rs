//! `cargo xtask run`: build, then the agent, with the terminal's signals reaching it.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::agent::{self, AGENT, BuildArgs};
use crate::child::Guard;
use crate::demo::Demo;
use crate::{setup, sh, sys};

/// How often signals and the agent's end are looked at while the demo runs.
const LOOK: Duration = Duration::from_millis(50);

/// What to run.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Start small services in several languages that call each other, with some traffic
    #[arg(long)]
    pub demo: bool,
    #[command(flatten)]
    pub build: BuildArgs,
    /// Arguments of `tracer-agent run`
    #[arg(last = true)]
    pub agent_args: Vec<OsString>,
}

/// Runs it; returns the agent's exit status.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    let agent = agent::build(args.build)?;
    if !sys::is_root() {
        return Err(through_sudo(&agent, args));
    }
    if let Err(error) = setup::mount_all() {
        eprintln!("setup: {error:#}");
    }
    let mut command = Command::new(&agent);
    command.arg("run").args(&args.agent_args);
    if args.demo {
        return with_demo(&mut command);
    }
    sh::echo(&command);
    // The agent takes our place, so signals, terminal and exit status are its own.
    Err(command.exec()).with_context(|| format!("cannot start {}", agent.display()))
}

/// Starts this program again as root; returns only if that failed.
fn through_sudo(agent: &Path, args: &RunArgs) -> anyhow::Error {
    let interactive = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let itself = match std::env::current_exe() {
        Ok(itself) if interactive && sh::which("sudo").is_some() => itself,
        _ => return anyhow::anyhow!("tracing needs root's rights: run it under sudo"),
    };
    let mut command = Command::new("sudo");
    command.arg("env");
    // sudo drops the environment; these are the agent's settings and what the demo is found by.
    for (key, value) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if name == "PATH" || name.starts_with("OTEL_") || name.starts_with("RUST_") {
            let mut pair = key.clone();
            pair.push("=");
            pair.push(value);
            command.arg(pair);
        }
    }
    let mut pair = OsString::from(format!("{AGENT}="));
    pair.push(agent);
    command.arg(pair).arg(itself).arg("run");
    if args.demo {
        command.arg("--demo");
    }
    command.arg("--").args(&args.agent_args);
    sh::echo(&command);
    anyhow::Error::new(command.exec()).context("cannot start sudo")
}

fn with_demo(command: &mut Command) -> Result<ExitCode> {
    sys::catch_signals();
    let mut demo = Demo::start()?;
    if sys::caught().is_some() {
        bail!("interrupted before the agent was started");
    }
    sh::echo(command);
    let mut agent = Guard::start(command)?;
    demo.start_traffic()?;
    loop {
        // The agent has a process group of its own: it gets each signal once, from here.
        if let Some(signal) = sys::caught() {
            // If it has ended meanwhile, the next line tells.
            let _ = sys::signal(agent.pid(), signal);
        }
        if let Some(status) = agent.ended() {
            return Ok(exit_code(status));
        }
        demo.report_ended();
        thread::sleep(LOOK);
    }
}

/// As a shell tells it: a program ended by signal N gives 128 + N.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    let number = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    number
        .and_then(|number| u8::try_from(number).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from)
}
