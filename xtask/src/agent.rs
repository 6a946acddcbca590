//! The agent's binary: built here, or one that XTASK_AGENT names.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::{ebpf, setup, sh};

/// Names a program to use in place of the agent built here.
pub const AGENT: &str = "XTASK_AGENT";

/// How the agent is built.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct BuildArgs {
    /// Compile the kernel side's debug output in (aya-log)
    #[arg(long)]
    pub ebpf_log: bool,
    /// Build the agent unoptimised, as target/debug/tracer-agent
    #[arg(long)]
    pub debug: bool,
}

/// Sets up and builds everything; returns the agent's binary.
pub fn build(args: BuildArgs) -> Result<PathBuf> {
    if let Some(agent) = named()? {
        eprintln!("build: skipped, {AGENT} names {}", agent.display());
        return Ok(agent);
    }
    let setup = setup::for_build()?;
    ebpf::build(&setup, args.ebpf_log)?;
    let mut command = sh::cargo();
    command.arg("build");
    if !args.debug {
        command.arg("--release");
    }
    command.args(["--package", "tracer-agent", "--bin", "tracer-agent"]);
    if args.ebpf_log {
        command.args(["--features", "ebpf-log"]);
    }
    command.arg("--target-dir").arg(sh::target());
    sh::run(&mut command)?;
    let agent = sh::target()
        .join(if args.debug { "debug" } else { "release" })
        .join("tracer-agent");
    if !sh::is_executable(&agent) {
        bail!("{} was not built", agent.display());
    }
    Ok(agent)
}

fn named() -> Result<Option<PathBuf>> {
    let Some(agent) = std::env::var_os(AGENT).filter(|agent| !agent.is_empty()) else {
        return Ok(None);
    };
    let agent = PathBuf::from(agent);
    if !sh::is_executable(&agent) {
        bail!("{AGENT} names {}, which is not a program", agent.display());
    }
    let agent = agent
        .canonicalize()
        .with_context(|| format!("cannot find {}", agent.display()))?;
    Ok(Some(agent))
}
