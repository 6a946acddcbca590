//! `cargo xtask setup --tests`: the programs the end-to-end tests and benches run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt::{self, Masked};
use crate::sh;

/// Programs and the Debian packages they come with.
const PROGRAMS: [(&str, &str); 10] = [
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
    ("curl", "curl"),
    ("wget", "wget"),
    ("openssl", "openssl"),
    ("gcc", "gcc"),
    ("python3", "python3"),
];

/// Runtimes of services in other languages: used if they are there.
const RUNTIMES: [(&str, &str); 3] = [
    ("go", "the Go service"),
    ("node", "the Node service"),
    ("javac", "the Java service"),
];

/// Installs what is missing and says what will be skipped. A test whose program cannot be had is
/// skipped with its reason, so only a machine without any of them is an error, and not here.
pub fn for_tests() -> Result<()> {
    let absent = |program: &str| sh::which(program).is_none();
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| absent(program))
        .map(|&(_, p)| p)
        .collect();
    if !Path::new("/usr/include/openssl/ssl.h").exists() {
        packages.push("libssl-dev");
    }
    if !packages.is_empty() {
        let _masked = packages
            .contains(&"nginx-light")
            .then(|| Masked::new("nginx.service"));
        if let Err(error) = apt::install(&packages, "the end-to-end tests need more programs") {
            eprintln!("setup: {error:#}");
        }
    }
    if let Err(error) = python_packages() {
        eprintln!("setup: Python's packages cannot be had, their tests are skipped: {error:#}");
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

/// What the Python services and clients need.
const PYTHON_PACKAGES: [&str; 4] = ["gunicorn", "requests", "aiohttp", "uvicorn"];

fn python_packages() -> Result<()> {
    let bin = venv_bin();
    let all = format!("import {}", PYTHON_PACKAGES.join(", "));
    if sh::output(Command::new(bin.join("python")).args(["-c", &all])).is_ok() {
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
    sh::run(
        Command::new(bin.join("python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(PYTHON_PACKAGES),
    )
}
