//! OpenTelemetry SDKs in Python, Node and Java, as services of the tests use them: each below
//! `target/otel`, where nothing else of the tests finds it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{apt, tests};
use crate::sh;

/// What `opentelemetry-instrument` needs for the service, in versions that fit together.
const PYTHON: [&str; 6] = [
    "flask==3.1.3",
    "requests==2.34.2",
    "opentelemetry-distro==0.66b1",
    "opentelemetry-exporter-otlp-proto-http==1.45.1",
    "opentelemetry-instrumentation-flask==0.66b1",
    "opentelemetry-instrumentation-requests==0.66b1",
];

fn directory(language: &str) -> PathBuf {
    sh::target().join("otel").join(language)
}

fn source(file: &str) -> PathBuf {
    sh::root().join("tests/services/sdk").join(file)
}

/// `target/otel/python`, a virtual environment of its own.
pub fn python() -> Result<()> {
    let directory = directory("python");
    let wanted = PYTHON.join("\n");
    let installed = directory.join("installed");
    if fs::read_to_string(&installed).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    tests::make_venv(&directory)?;
    let install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    sh::run(
        Command::new(directory.join("bin/python"))
            .args(install)
            .args(PYTHON),
    )?;
    // Last, as it says that all of it is there.
    fs::write(installed, wanted).context("cannot write target/otel/python/installed")
}

/// `target/otel/node/node_modules`, as the service's package.json says.
pub fn node() -> Result<()> {
    let directory = directory("node");
    let wanted = fs::read(source("package.json")).context("no package.json")?;
    let installed = directory.join("installed");
    if fs::read(&installed).is_ok_and(|found| found == wanted) || sh::which("node").is_none() {
        return Ok(());
    }
    ensure!(sh::which("npm").is_some(), "there is no npm");
    fs::create_dir_all(&directory).context("cannot create target/otel/node")?;
    fs::write(directory.join("package.json"), &wanted).context("cannot write package.json")?;
    sh::run(
        Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--no-package-lock"])
            .args(["--silent", "--prefix"])
            .arg(&directory),
    )?;
    fs::write(installed, wanted).context("cannot write target/otel/node/installed")
}

/// `target/otel/java/opentelemetry-javaagent.jar`, as the service's pom.xml says.
pub fn java() -> Result<()> {
    let directory = directory("java");
    let pom = source("pom.xml");
    let wanted = fs::read(&pom).context("no pom.xml")?;
    let installed = directory.join("installed");
    if fs::read(&installed).is_ok_and(|found| found == wanted) || sh::which("javac").is_none() {
        return Ok(());
    }
    if sh::which("mvn").is_none() {
        apt::install(&["maven"], "OpenTelemetry's Java agent needs Maven")?;
    }
    let mut command = Command::new("mvn");
    command.args(["-q", "-B", "-f"]).arg(&pom);
    command.args(["dependency:copy-dependencies", "-DincludeScope=runtime"]);
    command.arg("-Dmdep.stripVersion=true");
    command.arg(format!("-DoutputDirectory={}", directory.display()));
    sh::run(&mut command)?;
    fs::write(installed, wanted).context("cannot write target/otel/java/installed")
}
