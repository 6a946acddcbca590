//! The services under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::setup::venv_bin;
use crate::sh;

/// What runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    PythonThreaded,
    PythonPool,
    Gunicorn,
    Java,
    Node,
    /// With something between a request and its calls.
    NodeBetween,
    Go,
    Uvicorn,
    Aiohttp,
    Axum,
    /// HTTP/2 and gRPC, to itself.
    GoStreams,
    NodeStreams,
    /// nginx with a TCP or unix upstream.
    Nginx {
        unix: bool,
    },
}

/// One row.
#[derive(Debug)]
pub struct Front {
    pub name: &'static str,
    pub kind: Kind,
    /// A connection for every call.
    pub fresh: bool,
    /// The backend by name.
    pub by_name: bool,
    /// Calls in a row and at the same time.
    pub calls: (u32, u32),
    /// Least recall.
    pub target: f64,
    /// A variable of its own.
    pub variable: Option<(&'static str, &'static str)>,
}

const fn front(name: &'static str, kind: Kind, fresh: bool, target: f64) -> Front {
    Front {
        name,
        kind,
        fresh,
        by_name: false,
        calls: (2, 3),
        target,
        variable: None,
    }
}

const fn proxy(name: &'static str, unix: bool, fresh: bool) -> Front {
    Front {
        calls: (1, 0),
        ..front(name, Kind::Nginx { unix }, fresh, 0.999)
    }
}

const fn java(name: &'static str, fan: &'static str, calls: (u32, u32), target: f64) -> Front {
    Front {
        calls,
        variable: Some(("FAN", fan)),
        ..front(name, Kind::Java, false, target)
    }
}

/// Five calls in a row, each behind one of these.
const TIMERS: &str = "timer,nested,immediate,interval,nextTick";
const WORK: &str = "file,promisedFile,key,promisedKey,zip";

const fn between(name: &'static str, ways: &'static str, fresh: bool) -> Front {
    Front {
        calls: (5, 0),
        variable: Some(("WAY", ways)),
        ..front(name, Kind::NodeBetween, fresh, 0.95)
    }
}

/// Each of its calls to itself makes two more.
const fn streams(name: &'static str, kind: Kind, mode: &'static str, target: f64) -> Front {
    Front {
        variable: Some(("MODE", mode)),
        ..front(name, kind, false, target)
    }
}

/// All of them; a recall of 0 is one that is only reported.
pub const FRONTS: &[Front] = &[
    front(
        "python threaded, keep-alive",
        Kind::PythonThreaded,
        false,
        0.999,
    ),
    front("python threaded, fresh", Kind::PythonThreaded, true, 0.999),
    front("python, shared pool", Kind::PythonPool, false, 0.999),
    front("gunicorn sync, keep-alive", Kind::Gunicorn, false, 0.999),
    front("gunicorn sync, fresh", Kind::Gunicorn, true, 0.999),
    java("java blocking, in a row", "thread", (2, 0), 0.999),
    java("java blocking, new threads", "thread", (2, 3), 0.999),
    java("java blocking, shared executor", "pool", (2, 3), 0.0),
    java("java HttpClient.sendAsync", "async", (2, 3), 0.0),
    java("java CompletableFuture chain", "future", (2, 3), 0.0),
    front("go, keep-alive", Kind::Go, false, 0.999),
    front("go, fresh", Kind::Go, true, 0.999),
    proxy("nginx, tcp, keep-alive", false, false),
    proxy("nginx, tcp, fresh", false, true),
    proxy("nginx, unix, keep-alive", true, false),
    proxy("nginx, unix, fresh", true, true),
    front("node, keep-alive", Kind::Node, false, 0.999),
    Front {
        by_name: true,
        ..front("node, fresh, by name", Kind::Node, true, 0.95)
    },
    between("node, timers, keep-alive", TIMERS, false),
    between("node, timers, fresh", TIMERS, true),
    between("node, files and crypto", WORK, false),
    front("uvicorn and httpx, keep-alive", Kind::Uvicorn, false, 0.95),
    front("uvicorn and httpx, fresh", Kind::Uvicorn, true, 0.95),
    front("aiohttp, keep-alive", Kind::Aiohttp, false, 0.95),
    front("aiohttp, fresh", Kind::Aiohttp, true, 0.95),
    front("axum and reqwest, keep-alive", Kind::Axum, false, 0.95),
    front("axum and reqwest, fresh", Kind::Axum, true, 0.95),
    streams("go, grpc", Kind::GoStreams, "grpc", 0.95),
    streams("go, http/2", Kind::GoStreams, "h2", 0.95),
    streams("node, grpc-js", Kind::NodeStreams, "grpc", 0.95),
    streams("node, http/2", Kind::NodeStreams, "h2", 0.95),
];

/// What was built for a row.
#[derive(Debug)]
pub struct Ready {
    pub program: PathBuf,
}

/// Source of a front.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("causality")
        .join(name)
}

impl Front {
    /// Builds it, or finds what runs it.
    pub fn prepare(&self, directory: &Path) -> Result<Ready> {
        let which = |name: &str| sh::which(name).with_context(|| format!("there is no {name}"));
        let program = match self.kind {
            Kind::PythonThreaded | Kind::PythonPool => interpreter()?,
            Kind::Gunicorn => venv("gunicorn")?,
            Kind::Uvicorn => venv("uvicorn")?,
            Kind::Aiohttp => venv("python3")?,
            Kind::Axum => {
                let target = sh::target().join("services/causality-axum");
                let mut build = Command::new(which("cargo")?);
                build
                    .args(["build", "--release", "--quiet", "--target-dir"])
                    .arg(&target)
                    .current_dir(source("axum"));
                sh::run(&mut build)?;
                target.join("release/causality-axum")
            }
            Kind::Node | Kind::NodeBetween | Kind::NodeStreams => which("node")?,
            Kind::GoStreams => {
                let program = directory.join("front-grpc-go");
                let mut build = Command::new(which("go")?);
                build
                    .args(["build", "-o"])
                    .arg(&program)
                    .current_dir(source("grpc-go"));
                sh::run(&mut build)?;
                program
            }
            Kind::Nginx { .. } => which("nginx")?,
            Kind::Java => {
                which("java")?;
                let javac = which("javac")?;
                sh::run(
                    Command::new(javac)
                        .arg("-d")
                        .arg(directory)
                        .arg(source("Front.java")),
                )?;
                which("java")?
            }
            Kind::Go => {
                let program = directory.join("front-go");
                let mut build = Command::new(which("go")?);
                build
                    .args(["build", "-o"])
                    .arg(&program)
                    .arg(source("front.go"));
                sh::run(&mut build)?;
                program
            }
        };
        Ok(Ready { program })
    }

    /// The command; it is told `PORT` and `NEXT`.
    pub fn command(
        &self,
        program: &Path,
        directory: &Path,
        port: u16,
        back: u16,
    ) -> Result<Command> {
        let mut command = Command::new(program);
        match self.kind {
            Kind::PythonThreaded => {
                command.arg(source("threaded.py"));
            }
            Kind::PythonPool => {
                command.arg(source("pool.py"));
            }
            Kind::Gunicorn => {
                command
                    .args([
                        "--worker-class",
                        "sync",
                        "--workers",
                        "4",
                        "--timeout",
                        "120",
                    ])
                    .args([
                        "--no-control-socket",
                        "--bind",
                        &format!("127.0.0.1:{port}"),
                    ])
                    .arg("--config")
                    .arg(source("gunicorn_conf.py"))
                    .arg("--chdir")
                    .arg(source(""))
                    .arg("wsgi:application");
            }
            Kind::Uvicorn => {
                command
                    .args([
                        "--port",
                        &port.to_string(),
                        "--log-level",
                        "warning",
                        "--no-access-log",
                    ])
                    .arg("--app-dir")
                    .arg(source(""))
                    .arg("asgi:application");
            }
            Kind::Aiohttp => {
                command.arg(source("aio.py"));
            }
            Kind::Java => {
                command
                    .args([
                        "-XX:TieredStopAtLevel=1",
                        "-Dsun.net.httpserver.nodelay=true",
                    ])
                    .args(["-Dsun.net.httpserver.maxIdleConnections=100", "-cp"])
                    .arg(directory)
                    .arg("Front");
            }
            Kind::Node => {
                command.arg(source("front.js"));
            }
            Kind::NodeBetween => {
                command.arg(source("timers.js"));
            }
            Kind::NodeStreams => {
                command
                    .arg(source("http2.js"))
                    .env("GRPC", sh::target().join("npm/node_modules/@grpc/grpc-js"));
            }
            Kind::Axum | Kind::Go | Kind::GoStreams => {}
            Kind::Nginx { unix } => {
                let config = directory.join("nginx.conf");
                let text =
                    fs::read_to_string(source("nginx.conf.in")).context("no nginx.conf.in")?;
                let upstream = if unix {
                    format!("unix:{}", directory.join("backend.sock").display())
                } else {
                    format!("127.0.0.1:{back}")
                };
                let text = text
                    .replace(
                        "@USER@",
                        if crate::sys::is_root() {
                            "user root;"
                        } else {
                            ""
                        },
                    )
                    .replace("@AT@", &directory.display().to_string())
                    .replace("@UPSTREAM@", &upstream)
                    .replace("@KEEP@", if self.fresh { "" } else { "keepalive 64;" })
                    .replace("@CONNECTION@", if self.fresh { "close" } else { "" })
                    .replace("@PORT@", &port.to_string())
                    .replace("@BACK@", &back.to_string());
                fs::write(&config, text).context("cannot write nginx.conf")?;
                command.arg("-p").arg(directory).arg("-c").arg(config);
            }
        }
        let host = if self.by_name {
            "localhost"
        } else {
            "127.0.0.1"
        };
        command
            .env("PORT", port.to_string())
            .env("NEXT", format!("{host}:{back}"))
            .env("FRESH", if self.fresh { "1" } else { "0" })
            .env("PYTHONDONTWRITEBYTECODE", "1");
        if let Some((name, value)) = self.variable {
            command.env(name, value);
        }
        Ok(command)
    }
}

/// The interpreter itself: what lies on the path may be a script that chooses one.
fn interpreter() -> Result<PathBuf> {
    let python = sh::which("python3").context("there is no python3")?;
    let path = sh::output(Command::new(python).args(["-c", "import sys; print(sys.executable)"]))?;
    Ok(PathBuf::from(path.trim()))
}

/// A program of the venv of the tests, with the packages that `setup --tests` puts there.
fn venv(program: &str) -> Result<PathBuf> {
    let path = venv_bin().join(program);
    anyhow::ensure!(path.is_file(), "there is no {}", path.display());
    Ok(path)
}
