//! `cargo xtask check` and `cargo xtask test`: the gates.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::agent::{self, BuildArgs};
use crate::{ebpf, image, setup, sh, sys};

/// What to test.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct TestArgs {
    /// Only what needs no privileges and no other programs: no end-to-end tests, no eBPF build
    #[arg(long)]
    pub quick: bool,
}

/// Formatting, clippy, the eBPF object and the verifier's opinion of it.
pub fn check() -> Result<()> {
    lint()?;
    let setup = setup::for_build()?;
    ebpf::clippy(&setup)?;
    let agent = agent::build(BuildArgs::default())?;
    verify(&agent)
}

/// Everything that `check` looks at and every test.
pub fn test(args: TestArgs) -> Result<()> {
    lint()?;
    if args.quick {
        return cargo_test(&["--exclude", "tracer-tests"]);
    }
    setup::for_tests()?;
    let agent = agent::build(BuildArgs::default())?;
    if !sys::is_root() {
        eprintln!("test: the end-to-end tests are skipped: they need root's rights");
        return cargo_test(&["--exclude", "tracer-tests"]);
    }
    setup::mount_all()?;
    verify(&agent)?;
    image::for_tests()?;
    cargo_test(&[])
}

fn lint() -> Result<()> {
    sh::run(sh::cargo().args(["fmt", "--all", "--check"]))?;
    sh::run(
        sh::cargo()
            .args(["fmt", "--check", "--manifest-path"])
            .arg(ebpf::manifest()),
    )?;
    sh::run(sh::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn verify(agent: &Path) -> Result<()> {
    if !sys::is_root() {
        eprintln!("check: the verifier is not asked: loading programs needs root's rights");
        return Ok(());
    }
    sh::run(Command::new(agent).arg("verify"))
}

fn cargo_test(args: &[&str]) -> Result<()> {
    let mut command = sh::cargo();
    // One failure says more beside the others.
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(args);
    // As root, with the agent built: an end-to-end test that cannot run is a failure.
    if sys::is_root() {
        command.env("TRACER_TESTS_REQUIRED", "1");
    }
    // At the end, so that only what the machine has not comes from the tests' own directory.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let entries = std::env::split_paths(&path).chain([setup::venv_bin()]);
    if let Ok(path) = std::env::join_paths(entries) {
        sh::echo(&command);
        command.env("PATH", path);
        return finish(&mut command);
    }
    sh::run(&mut command)
}

fn finish(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    anyhow::ensure!(
        status.success(),
        "`cargo test` failed ({status}); its output is above"
    );
    Ok(())
}
