//! `cargo xtask setup --tests`: the programs the end-to-end tests and benches run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt::{self, Masked};
use super::peers;
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
    ("go", "the Go service"),
    ("node", "the Node service"),
    ("javac", "the Java service"),
];

/// Version of grpcio.
const GRPCIO: &str = "1.80.0";

type Install = fn() -> Result<()>;

/// Libraries, and how each is had. Nothing of them is installed system-wide.
const LIBRARIES: [(&str, Install); 5] = [
    ("gunicorn", gunicorn),
    ("grpcio", grpcio),
    ("grpc-js", peers::grpc_js),
    ("grpc-java", peers::grpc_java),
    ("grpc-go", peers::grpc_go),
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
    for (what, install) in LIBRARIES {
        if let Err(error) = install() {
            eprintln!("setup: {what} cannot be had, its tests are skipped: {error:#}");
        }
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

fn gunicorn() -> Result<()> {
    if runs(&venv_bin().join("gunicorn")) {
        return Ok(());
    }
    pip("gunicorn")
}

fn grpcio() -> Result<()> {
    let python = venv_bin().join("python");
    let import = format!("import grpc; assert grpc.__version__ == '{GRPCIO}'");
    if sh::output(Command::new(python).args(["-c", &import])).is_ok() {
        return Ok(());
    }
    pip(&format!("grpcio=={GRPCIO}"))
}

/// Installs a Python package into the virtual environment, which is made if there is none.
fn pip(package: &str) -> Result<()> {
    let bin = venv_bin();
    let python = bin.join("python");
    // By `python -m`: the scripts name the directory that the environment was made in.
    let has_pip = sh::output(Command::new(&python).args(["-m", "pip", "--version"])).is_ok();
    if !has_pip {
        let venv = bin.parent().context("the venv has a directory")?;
        let make = |python: &Path| {
            sh::run(
                Command::new(python)
                    .args(["-m", "venv", "--clear"])
                    .arg(venv),
            )
        };
        let system = sh::which("python3").context("there is no python3")?;
        if make(&system).is_err() {
            // Debian ships the module's payload apart.
            apt::install(
                &["python3-venv"],
                "Python packages need a virtual environment",
            )?;
            make(&system)?;
        }
    }
    sh::run(Command::new(python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        package,
    ]))
}

fn runs(program: &Path) -> bool {
    sh::output(Command::new(program).arg("--version")).is_ok()
}
