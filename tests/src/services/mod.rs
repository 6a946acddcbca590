//! Real services to be traced: each answers any method on
//! `/r/<id>?status=S&bytes=N&delay_ms=D` with status S and N bytes after D ms (nginx does not wait),
//! keeps connections open where it can, and ends with its stdin or on SIGTERM.

pub mod build;
mod catalog;
mod clients;
pub mod nginx;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

pub use catalog::{ALL, Language};
pub use clients::Client;

use tempfile::TempDir;

use crate::process;

/// Longest start; a Java program on a busy machine is the slowest.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A running service; ended when dropped.
#[derive(Debug)]
pub struct Service {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its `service.name`.
    pub name: String,
    /// Its files, removed with it.
    _files: Option<TempDir>,
}

/// How a service says where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listens {
    /// It prints its port as first line of stdout.
    Prints,
    /// It was given this address.
    At(SocketAddr),
}

impl Service {
    /// Starts `command` and waits until it listens.
    pub(crate) fn start(
        name: &str,
        mut command: Command,
        listens: Listens,
        files: Option<TempDir>,
    ) -> Result<Self, String> {
        command.env("OTEL_SERVICE_NAME", name);
        Self::launch(name, command, listens, files)
    }

    /// Starts a command that prints its port as first line and ends with its stdin.
    pub(crate) fn printing(name: &str, command: Command) -> Result<Self, String> {
        Self::start(name, command, Listens::Prints, None)
    }

    /// Starts a command of the test's own, which prints its port as first line and ends with its stdin,
    /// under this `service.name`.
    pub fn named(name: &str, command: Command) -> Result<Self, String> {
        Self::printing(name, command)
    }

    /// Starts a command of the test's own, which prints its port, or an address that ends in it, as
    /// first line and ends with its stdin. It is told no name; `name` is the one it should get.
    pub fn unnamed(name: &str, mut command: Command) -> Result<Self, String> {
        for variable in ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"] {
            command.env_remove(variable);
        }
        Self::launch(name, command, Listens::Prints, None)
    }

    /// Starts a command of the test's own that listens where it was told to.
    pub fn listening(name: &str, command: Command, address: SocketAddr) -> Result<Self, String> {
        Self::launch(name, command, Listens::At(address), None)
    }

    fn launch(
        name: &str,
        mut command: Command,
        listens: Listens,
        files: Option<TempDir>,
    ) -> Result<Self, String> {
        command.stdin(Stdio::piped()).stderr(Stdio::null());
        command.stdout(if listens == Listens::Prints {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        let child = command
            .spawn()
            .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut service = Self {
            child,
            address,
            name: name.to_owned(),
            _files: files,
        };
        service.address = match listens {
            Listens::At(address) => {
                process::poll_until(START_LIMIT, || TcpStream::connect(address).ok())
                    .ok_or_else(|| format!("{name} does not listen on {address}"))?;
                address
            }
            Listens::Prints => {
                let output = service.child.stdout.take().ok_or("stdout is piped")?;
                let line = process::first_line(output, START_LIMIT)
                    .map_err(|error| format!("{name}: {error}"))?;
                let port = line.rsplit(':').next().unwrap_or_default();
                let port: u16 = port
                    .parse()
                    .map_err(|_| format!("{name} printed {line:?}, not a port"))?;
                SocketAddr::from((Ipv4Addr::LOCALHOST, port))
            }
        };
        Ok(service)
    }

    /// Its processes: the one started and all its descendants (workers).
    pub fn pids(&self) -> Vec<u32> {
        process::tree(self.child.id())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // By SIGTERM and not by its stdin: masters with workers do not read it.
        process::end(&mut self.child);
    }
}

/// The build directory that this test program lies in.
pub fn target_dir() -> PathBuf {
    let program = std::env::current_exe().expect("path of this program");
    let root = program
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").is_file());
    root.expect("test programs lie in cargo's target directory")
        .to_owned()
}

/// A binary of this crate, built by cargo before its integration tests.
pub fn own_binary(name: &str) -> PathBuf {
    let program = std::env::current_exe().expect("path of this program");
    let mut directory = program.parent().expect("a program lies in a directory");
    if directory.ends_with("deps") {
        directory = directory
            .parent()
            .expect("deps lies in the profile's directory");
    }
    directory.join(name)
}

/// Directory with the compiled class `Server` of the Java service.
pub fn java_classes() -> Result<PathBuf, String> {
    build::java()
}

/// The compiled Go service.
pub fn go_service() -> Result<PathBuf, String> {
    build::go("go-service")
}

/// The program of the recvmmsg and sendmmsg scenarios.
pub fn mmsg() -> Result<PathBuf, String> {
    build::c("c-mmsg", "c/mmsg.c")
}

/// A service whose threads hand work to each other in several ways (`causality/pool.c`).
pub fn pools() -> Result<PathBuf, String> {
    build::c("causality-pool", "causality/pool.c")
}

/// The Python interpreter itself: what lies on the path may be a script that chooses one.
pub fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let output = Command::new("python3")
            .args(["-c", "import sys; print(sys.executable)"])
            .output();
        let path = output
            .ok()
            .and_then(|output| String::from_utf8(output.stdout).ok())
            .unwrap_or_default();
        if path.trim().is_empty() {
            "python3".to_owned()
        } else {
            path.trim().to_owned()
        }
    })
}

/// Source of the services.
pub fn source(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "services", path]
        .iter()
        .collect()
}
