//! gRPC libraries of languages with package managers of their own: fetched once, below `target/`
//! or into that manager's cache. Where the language is missing there is nothing to fetch.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::apt;
use crate::sh;

fn source(language: &str) -> PathBuf {
    sh::root().join("tests/services/grpc").join(language)
}

/// `target/npm/node_modules`, as the test's own package.json says.
pub fn grpc_js() -> Result<()> {
    let directory = sh::target().join("npm");
    let wanted = fs::read(source("node").join("package.json")).context("no package.json")?;
    let manifest = directory.join("package.json");
    let installed = directory.join("node_modules/@grpc/grpc-js").is_dir();
    if installed && fs::read(&manifest).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    if sh::which("node").is_none() {
        return Ok(());
    }
    ensure!(sh::which("npm").is_some(), "there is no npm");
    fs::create_dir_all(&directory).context("cannot create target/npm")?;
    fs::write(&manifest, wanted).context("cannot write package.json")?;
    sh::run(
        Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--no-package-lock"])
            .args(["--silent", "--prefix"])
            .arg(&directory),
    )
}

/// `target/maven/grpc/*.jar`, as the test's own pom.xml says.
pub fn grpc_java() -> Result<()> {
    let directory = sh::target().join("maven");
    let pom = source("java").join("pom.xml");
    let wanted = fs::read(&pom).context("no pom.xml")?;
    let installed = directory.join("pom.xml");
    if fs::read(&installed).is_ok_and(|found| found == wanted) || sh::which("javac").is_none() {
        return Ok(());
    }
    if sh::which("mvn").is_none() {
        apt::install(&["maven"], "grpc-java needs Maven")?;
    }
    let jars = directory.join("grpc");
    if jars.is_dir() {
        fs::remove_dir_all(&jars).context("cannot remove target/maven/grpc")?;
    }
    let mut command = Command::new("mvn");
    command.args(["-q", "-B", "-f"]).arg(&pom);
    command.args(["dependency:copy-dependencies", "-DincludeScope=runtime"]);
    command.arg(format!("-DoutputDirectory={}", jars.display()));
    sh::run(&mut command)?;
    // Last, as it says that all of it is there.
    fs::write(installed, wanted).context("cannot write target/maven/pom.xml")
}

/// Go's module cache, by the sums of the test's own go.sum; the build itself is the test's.
pub fn grpc_go() -> Result<()> {
    let Some(go) = sh::which("go") else {
        return Ok(());
    };
    sh::run(
        Command::new(go)
            .args(["mod", "download"])
            .current_dir(source("go")),
    )
}
