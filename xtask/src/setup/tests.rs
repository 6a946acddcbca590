//! `cargo xtask setup --tests`: the programs the end-to-end tests and benches run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt::{self, Masked};
use crate::sh;

/// Programs and the Debian packages they come with.
const PROGRAMS: [(&str, &str); 8] = [
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
    ("curl", "curl"),
    ("gcc", "gcc"),
    ("python3", "python3"),
];

/// Runtimes of services in other languages: used if they are there.
const RUNTIMES: [(&str, &str); 3] = [
    ("go", "the Go service and the OpenTelemetry Collector"),
    ("node", "the Node service"),
    ("javac", "the Java service"),
];

/// Installs what is missing and says what will be skipped. A test whose program cannot be had is
/// skipped with its reason, so only a machine without any of them is an error, and not here.
pub fn for_tests() -> Result<()> {
    let absent = |program: &str| sh::which(program).is_none();
    let packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| absent(program))
        .map(|&(_, p)| p)
        .collect();
    if !packages.is_empty() {
        let _masked = packages
            .contains(&"nginx-light")
            .then(|| Masked::new("nginx.service"));
        if let Err(error) = apt::install(&packages, "the end-to-end tests need more programs") {
            eprintln!("setup: {error:#}");
        }
    }
    if let Err(error) = gunicorn() {
        eprintln!("setup: gunicorn cannot be had, its test is skipped: {error:#}");
    }
    if let Err(error) = collector() {
        eprintln!("setup: no OpenTelemetry Collector, its tests are skipped: {error:#}");
    }
    for (program, _) in PROGRAMS.iter().filter(|(program, _)| absent(program)) {
        eprintln!("setup: there is no {program}: tests that need it are skipped");
    }
    for (program, what) in RUNTIMES.iter().filter(|(program, _)| absent(program)) {
        eprintln!("setup: there is no {program}: {what} is skipped");
    }
    Ok(())
}

/// Where programs that only this project's tests use are installed: not system-wide.
pub fn venv_bin() -> PathBuf {
    sh::target().join("venv/bin")
}

/// A real OpenTelemetry Collector from its Go modules: about a minute the first time, where the
/// tests look for it.
fn collector() -> Result<()> {
    let go = sh::which("go").context("there is no go")?;
    let built = sh::target().join("services/collector");
    let source = sh::root().join("tests/services/collector");
    let time = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    if time(&built).is_some_and(|built| Some(built) >= time(&source.join("main.go"))) {
        return Ok(());
    }
    eprintln!("setup: building an OpenTelemetry Collector (about a minute)");
    sh::run(
        Command::new(go)
            .arg("build")
            .arg("-o")
            .arg(&built)
            .arg(".")
            .current_dir(source),
    )
}

fn gunicorn() -> Result<()> {
    let bin = venv_bin();
    if runs(&bin.join("gunicorn")) {
        return Ok(());
    }
    let venv = bin.parent().context("the venv has a directory")?;
    let make = |python: &Path| {
        sh::run(
            Command::new(python)
                .args(["-m", "venv", "--clear"])
                .arg(venv),
        )
    };
    let python = sh::which("python3").context("there is no python3")?;
    if make(&python).is_err() {
        // Debian ships the module's payload apart.
        apt::install(&["python3-venv"], "gunicorn needs a virtual environment")?;
        make(&python)?;
    }
    sh::run(Command::new(bin.join("pip")).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "gunicorn",
    ]))
}

fn runs(program: &Path) -> bool {
    sh::output(Command::new(program).arg("--version")).is_ok()
}
