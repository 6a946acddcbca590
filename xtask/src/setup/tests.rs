//! `cargo xtask setup --tests`: the programs the end-to-end tests and benches run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt::{self, Masked};
use super::{peers, sdk, tls};
use crate::sh;

/// Programs and the Debian packages they come with.
const PROGRAMS: &[(&str, &str)] = &[
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("curl", "curl"),
    ("wget", "wget"),
    ("openssl", "openssl"),
    ("gcc", "gcc"),
    ("pkg-config", "pkg-config"),
    ("unshare", "util-linux"),
    ("python3", "python3"),
    ("setpriv", "util-linux"),
    ("umoci", "umoci"),
    ("runc", "runc"),
    ("systemd-analyze", "systemd"),
];

/// Runtimes of services in other languages: used if they are there.
const RUNTIMES: [(&str, &str); 3] = [
    (
        "go",
        "the Go service, the OpenTelemetry Collector, Jaeger and helm",
    ),
    ("node", "the Node service"),
    ("javac", "the Java service"),
];

type Install = fn() -> Result<()>;

/// Libraries of other languages, and how each is had. Nothing of them is installed system-wide.
const LIBRARIES: &[(&str, Install)] = &[
    ("grpc-js", peers::grpc_js),
    ("grpc-java", peers::grpc_java),
    ("grpc-go", peers::grpc_go),
    ("OpenSSL in a Python wheel", tls::wheel),
    ("BoringSSL", tls::boringssl),
    ("HTTPS in Rust", tls::rust),
    ("OpenTelemetry for Python", sdk::python),
    ("OpenTelemetry for Node", sdk::node),
    ("OpenTelemetry for Java", sdk::java),
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
        for (package, _, what) in PYTHON_PACKAGES {
            eprintln!("setup: without {package} {what} is skipped: {error:#}");
        }
    }
    for program in GO_PROGRAMS {
        if let Err(error) = program.build() {
            let what = program.what;
            eprintln!("setup: no {what}, its tests are skipped: {error:#}");
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

/// A program that is built from its Go modules, where the tests look for it.
struct GoProgram {
    what: &'static str,
    /// Its directory in tests/services, and its program in target/services.
    name: &'static str,
    /// The file whose change means another program.
    file: &'static str,
    package: &'static str,
    /// How long the first build takes.
    takes: &'static str,
}

const GO_PROGRAMS: [GoProgram; 3] = [
    GoProgram {
        what: "OpenTelemetry Collector",
        name: "collector",
        file: "main.go",
        package: ".",
        takes: "about a minute",
    },
    GoProgram {
        what: "Jaeger",
        name: "jaeger",
        file: "go.mod",
        package: "github.com/jaegertracing/jaeger/cmd/all-in-one",
        takes: "two to four minutes",
    },
    GoProgram {
        what: "helm",
        name: "helm",
        file: "go.mod",
        package: "helm.sh/helm/v3/cmd/helm",
        takes: "one to two minutes",
    },
];

/// Not part of the tests' own set-up: it takes five minutes of a processor.
const KUBE_APISERVER: GoProgram = GoProgram {
    what: "kube-apiserver",
    name: "kube-apiserver",
    file: "go.mod",
    package: ".",
    takes: "some five minutes",
};

/// What `cargo xtask kubernetes` needs: paths of kube-apiserver, etcd and helm.
pub fn for_kubernetes() -> Result<[PathBuf; 3]> {
    for program in GO_PROGRAMS.iter().filter(|program| program.name == "helm") {
        program.build()?;
    }
    KUBE_APISERVER.build()?;
    if sh::which("etcd").is_none() {
        let _masked = Masked::new("etcd.service");
        apt::install(&["etcd-server"], "kube-apiserver keeps its objects in etcd")?;
    }
    let etcd = sh::which("etcd").context("there is no etcd")?;
    let services = sh::target().join("services");
    Ok([
        services.join(KUBE_APISERVER.name),
        etcd,
        services.join("helm"),
    ])
}

impl GoProgram {
    fn build(&self) -> Result<()> {
        let go = sh::which("go").context("there is no go")?;
        let services = sh::target().join("services");
        let built = services.join(self.name);
        let source = sh::root().join("tests/services").join(self.name);
        let time = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
        if time(&built).is_some_and(|built| Some(built) >= time(&source.join(self.file))) {
            return Ok(());
        }
        eprintln!("setup: building {} ({})", self.what, self.takes);
        std::fs::create_dir_all(&services).context("make target/services")?;
        sh::run(
            Command::new(go)
                .args(["build", "-o"])
                .arg(&built)
                .arg(self.package)
                .current_dir(source),
        )
    }
}

/// Python packages of the tests: what to ask them whether they are there, and what needs them.
const PYTHON_PACKAGES: &[(&str, &str, &str)] = &[
    ("gunicorn", "import gunicorn", "the gunicorn service"),
    ("grpcio", "import grpc", "gRPC in Python"),
    ("requests", "import requests", "HTTPS by requests"),
    ("aiohttp", "import aiohttp", "HTTPS by aiohttp"),
    ("uvicorn", "import uvicorn", "HTTPS by uvicorn"),
    (
        "cyclonedx-python-lib[json-validation]",
        "import cyclonedx.validation.json, jsonschema",
        "the check of the bill of materials",
    ),
    ("httpx", "import httpx", "`bench causality` of httpx"),
    (
        "kubernetes-validate",
        "import kubernetes_validate",
        "validation of Kubernetes manifests",
    ),
];

/// Makes the venv and installs what is missing in it.
fn python_packages() -> Result<()> {
    let bin = venv_bin();
    let absent =
        |check: &str| sh::output(Command::new(bin.join("python")).args(["-c", check])).is_err();
    let packages: Vec<&str> = PYTHON_PACKAGES
        .iter()
        .filter(|(_, check, _)| absent(check))
        .map(|&(package, _, _)| package)
        .collect();
    if packages.is_empty() {
        return Ok(());
    }
    let python = bin.join("python");
    if sh::output(Command::new(&python).args(["-m", "pip", "--version"])).is_err() {
        make_venv(bin.parent().context("the venv has a directory")?)?;
    }
    // Not by its own script, which names the directory that it was installed in.
    let install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    sh::run(Command::new(python).args(install).args(packages))
}

/// Makes a virtual environment; what was there is removed.
pub fn make_venv(venv: &Path) -> Result<()> {
    let make = |python: &Path| {
        sh::run(
            Command::new(python)
                .args(["-m", "venv", "--clear"])
                .arg(venv),
        )
    };
    let system = sh::which("python3").context("there is no python3")?;
    if make(&system).is_ok() {
        return Ok(());
    }
    // Debian ships the module's payload apart.
    apt::install(
        &["python3-venv"],
        "Python packages need a virtual environment",
    )?;
    make(&system)
}
