//! The services by language.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{Listens, Service, build, own_binary, python, source};
use crate::agent::free_address;
use crate::driver::SIZES;

/// Which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// nginx, two workers: static files and `return`.
    Nginx,
    /// Python's threaded http.server.
    PythonThreaded,
    /// gunicorn with sync workers: no keep-alive.
    GunicornSync,
    /// gunicorn with threads.
    GunicornThreads,
    /// Node's http.
    Node,
    /// com.sun.net.httpserver with a thread pool.
    Java,
    /// Go net/http.
    Go,
    /// axum on hyper.
    Rust,
    /// A thread per connection, readv and writev with several iovecs.
    C,
}

/// All of them.
pub const ALL: [Language; 9] = [
    Language::Nginx,
    Language::PythonThreaded,
    Language::GunicornSync,
    Language::GunicornThreads,
    Language::Node,
    Language::Java,
    Language::Go,
    Language::Rust,
    Language::C,
];

const GUNICORN_SYNC: [&str; 4] = ["--worker-class", "sync", "--workers", "4"];
const GUNICORN_THREADS: [&str; 8] = [
    "--worker-class",
    "gthread",
    "--workers",
    "2",
    "--threads",
    "32",
    "--keep-alive",
    "75",
];

impl Language {
    /// Its `service.name`.
    pub fn name(self) -> &'static str {
        match self {
            // It overwrites its environment with its title, so that a variable given to it is not seen.
            Self::Nginx => "nginx",
            Self::PythonThreaded => "svc-python-threaded",
            Self::GunicornSync => "svc-gunicorn-sync",
            Self::GunicornThreads => "svc-gunicorn-threads",
            Self::Node => "svc-node",
            Self::Java => "svc-java",
            Self::Go => "svc-go",
            Self::Rust => "svc-rust",
            Self::C => "svc-c",
        }
    }

    /// Starts it; the reason if this machine cannot.
    pub fn start(self) -> Result<Service, String> {
        let mut files = None;
        let (command, listens) = match self {
            Self::Nginx => {
                let files = files.insert(TempDir::new().map_err(|error| error.to_string())?);
                nginx(files.path())?
            }
            Self::PythonThreaded => (
                with_argument(python(), source("python/threaded.py")),
                Listens::Prints,
            ),
            Self::GunicornSync => gunicorn(&GUNICORN_SYNC)?,
            Self::GunicornThreads => gunicorn(&GUNICORN_THREADS)?,
            Self::Node => (
                with_argument("node", source("node/server.js")),
                Listens::Prints,
            ),
            Self::Java => {
                let mut command = Command::new("java");
                // Without nodelay its two writes per response cost 40 ms each.
                command.args([
                    "-Xshare:auto",
                    "-XX:TieredStopAtLevel=1",
                    "-Dsun.net.httpserver.nodelay=true",
                ]);
                command
                    .args(["-Dsun.net.httpserver.idleInterval=120", "-cp"])
                    .arg(build::java()?)
                    .arg("Server");
                (command, Listens::Prints)
            }
            Self::Go => (Command::new(build::go("go-service")?), Listens::Prints),
            Self::Rust => (Command::new(own_binary("tracer-service")), Listens::Prints),
            Self::C => (
                Command::new(build::c("c-iovec", "c/iovec.c")?),
                Listens::Prints,
            ),
        };
        Service::start(self.name(), command, listens, files)
    }
}

fn with_argument(program: &str, argument: std::path::PathBuf) -> Command {
    let mut command = Command::new(program);
    command.arg(argument);
    command
}

fn gunicorn(kind: &[&str]) -> Result<(Command, Listens), String> {
    let address = free_address();
    let mut command = Command::new(build::gunicorn()?);
    command.args(kind).args([
        "--bind",
        &address.to_string(),
        "--timeout",
        "120",
        "--no-control-socket",
    ]);
    command
        .arg("--chdir")
        .arg(source("python"))
        .arg("app:application")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Ok((command, Listens::At(address)))
}

/// nginx cannot compute a body or a status, so the configuration lists the statuses of the
/// driver's mix and files of its sizes.
fn nginx(root: &Path) -> Result<(Command, Listens), String> {
    let sizes = SIZES.into_iter().chain([200_000]);
    let names: Vec<(String, usize)> = sizes.map(|size| (size.to_string(), size)).collect();
    let files: Vec<(&str, usize)> = names
        .iter()
        .map(|(name, size)| (name.as_str(), *size))
        .collect();
    let mut returns = String::new();
    for status in [201, 204, 301, 304, 400, 404, 429, 500, 503] {
        // 301 with a text would make the text the location.
        let text = if status == 301 {
            "/elsewhere"
        } else {
            "status"
        };
        let _ = writeln!(
            returns,
            "            if ($arg_status = {status}) {{ return {status} {text}; }}"
        );
    }
    let values = [("RETURNS", returns.trim_end())];
    super::nginx::command("nginx.conf.in", root, &files, &values)
}
