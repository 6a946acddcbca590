//! Builds what services need, once per target directory: compiled programs, a Python venv, nginx
//! from the distribution's archive where it is not installed. Errors are reasons to skip.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use super::{python, source, target_dir};
use crate::process::run;

/// Tests run in parallel threads; a thing is built by one of them.
static BUILDING: Mutex<()> = Mutex::new(());

fn newer(built: &Path, from: &Path) -> bool {
    let time = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    match (time(built), time(from)) {
        (Some(built), Some(from)) => built >= from,
        // A machine that has programs and no sources (`cargo xtask vm`).
        (built, None) => built.is_some(),
        (None, Some(_)) => false,
    }
}

/// `target/services/<name>`, made by `make` if it is missing or older than `from`.
fn once(
    name: &str,
    from: &Path,
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let _building = BUILDING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let directory = target_dir().join("services");
    std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    let built = directory.join(name);
    if !newer(&built, from) {
        make(&built)?;
        if !built.exists() {
            return Err(format!("{} was not made", built.display()));
        }
    }
    Ok(built)
}

/// True if there is a program of this name.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// A C program.
pub(crate) fn c(name: &str, file: &str) -> Result<PathBuf, String> {
    let from = source(file);
    once(name, &from, |built| {
        let mut command = Command::new("cc");
        run(command
            .args(["-O2", "-Wall", "-Werror", "-pthread", "-o"])
            .arg(built)
            .arg(&from))
    })
}

/// A Go program, named as its directory.
pub fn go(name: &str) -> Result<PathBuf, String> {
    go_of(name, name)
}

/// A Go program of a directory.
pub(crate) fn go_of(name: &str, directory: &str) -> Result<PathBuf, String> {
    let directory = source(directory);
    let newest = newest(&directory, "go")?;
    once(name, &newest, |built| {
        let mut command = Command::new("go");
        run(command
            .arg("build")
            .arg("-o")
            .arg(built)
            .arg(".")
            .current_dir(&directory))
    })
}

/// The OpenTelemetry Collector of tests/services/collector. Its first build takes about a minute;
/// `cargo xtask setup --tests` has done it before.
pub(crate) fn collector() -> Result<PathBuf, String> {
    go("collector")
}

/// The Jaeger of tests/services/jaeger. Its first build takes two to four minutes, of which other
/// tests must not notice; `cargo xtask setup --tests` has done it before.
pub(crate) fn jaeger() -> Result<PathBuf, String> {
    let directory = source("jaeger");
    once("jaeger", &directory.join("go.mod"), |built| {
        let mut command = Command::new("nice");
        command.args(["-n", "19", "go", "build", "-o"]).arg(built);
        command.arg("github.com/jaegertracing/jaeger/cmd/all-in-one");
        run(command.current_dir(&directory))
    })
}

/// The file of a directory, with this ending, that was changed last.
fn newest(directory: &Path, ending: &str) -> Result<PathBuf, String> {
    let files = std::fs::read_dir(directory).map_err(|error| error.to_string())?;
    let files = files.flatten().map(|entry| entry.path());
    let sources = files.filter(|path| path.extension().is_some_and(|found| found == ending));
    let newest = sources.max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok());
    newest.ok_or_else(|| format!("nothing in {}", directory.display()))
}

/// Directory with the compiled Java class.
pub(crate) fn java() -> Result<PathBuf, String> {
    let from = source("java/Server.java");
    let class = once("java/Server.class", &from, |built| {
        let directory = built.parent().ok_or("no directory")?;
        run(Command::new("javac").arg("-d").arg(directory).arg(&from))
    })?;
    Ok(class.parent().ok_or("no directory")?.to_owned())
}

/// Directory with the compiled gRPC peer, which needs these archives.
pub(crate) fn java_peers(jars: &Path) -> Result<PathBuf, String> {
    let from = source("grpc/java/Peers.java");
    let class = once("java-grpc/Peers.class", &from, |built| {
        let directory = built.parent().ok_or("no directory")?;
        let mut command = Command::new("javac");
        command.arg("-cp").arg(jars.join("*"));
        run(command.arg("-d").arg(directory).arg(&from))
    })?;
    Ok(class.parent().ok_or("no directory")?.to_owned())
}

/// Go's server that also speaks HTTP/2 after an upgrade.
pub fn go_h2c() -> Result<PathBuf, String> {
    go("go-h2c")
}

/// gunicorn of a venv at `target/venv`.
pub(crate) fn gunicorn() -> Result<PathBuf, String> {
    let venv = target_dir().join("venv");
    let gunicorn = venv.join("bin/gunicorn");
    let _building = BUILDING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if !gunicorn.is_file() {
        run(Command::new(python()).args(["-m", "venv"]).arg(&venv))?;
        run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "gunicorn"]))?;
    }
    Ok(gunicorn)
}

/// Python of the same venv with what the HTTPS services and clients need.
pub fn https_python() -> Result<PathBuf, String> {
    const PACKAGES: [&str; 3] = ["requests", "aiohttp", "uvicorn"];
    gunicorn()?;
    let bin = target_dir().join("venv/bin");
    let python = bin.join("python");
    let _building = BUILDING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let all = format!("import {}", PACKAGES.join(", "));
    if run(Command::new(&python).args(["-c", &all])).is_err() {
        // Not by bin/pip, whose first line names the directory that the venv was made in.
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet"])
            .args(PACKAGES))?;
    }
    Ok(python)
}

/// The Go program with the linker's flags (`-s -w` leaves no symbols).
pub fn go_tls(flags: &str) -> Result<PathBuf, String> {
    let directory = source("go-tls");
    let name = if flags.is_empty() {
        "go-tls"
    } else {
        "go-tls-stripped"
    };
    once(name, &directory.join("main.go"), |built| {
        run(Command::new("go")
            .args(["build", "-ldflags", flags, "-o"])
            .arg(built)
            .arg(".")
            .current_dir(&directory))
    })
}

/// The program under a seccomp filter.
pub fn strict() -> Result<PathBuf, String> {
    let from = source("c/strict.c");
    once("c-strict", &from, |built| {
        run(Command::new("cc")
            .args(["-O2", "-Wall", "-Werror", "-o"])
            .arg(built)
            .arg(&from)
            .args(["-lssl", "-lcrypto"]))
    })
}

/// The program that loads its TLS library late.
pub fn dlopen() -> Result<PathBuf, String> {
    c("c-dlopen", "c/dlopen.c")
}

/// A program of the crate in tests/services/rust-tls. The first build takes a minute or more;
/// `cargo xtask setup --tests` has done it before.
pub fn rust_tls(name: &str) -> Result<PathBuf, String> {
    let directory = source("rust-tls");
    let sources = ["src", "src/bin"].map(|part| newest(&directory.join(part), "rs"));
    let mut newest = directory.join("Cargo.lock");
    for file in sources {
        let file = file?;
        if !newer(&newest, &file) {
            newest = file;
        }
    }
    once(name, &newest, |built| {
        let made = target_dir().join("rust-tls");
        run(Command::new("cargo")
            .args(["build", "--quiet", "--release", "--locked", "--target-dir"])
            .arg(&made)
            .current_dir(&directory))?;
        let copied = std::fs::copy(made.join("release").join(name), built);
        copied.map(|_| ()).map_err(|error| error.to_string())
    })
}

/// Directory with the libraries that a Python wheel brings along, OpenSSL 1.1.1 among them;
/// `cargo xtask setup --tests` unpacks it.
pub fn wheel_libraries() -> Result<PathBuf, String> {
    let directory = target_dir().join("wheels/psycopg2_binary.libs");
    if directory.is_dir() {
        Ok(directory)
    } else {
        Err("there is no wheel with OpenSSL: run `cargo xtask setup --tests`".to_owned())
    }
}

/// BoringSSL as a shared library; `cargo xtask setup --tests` unpacks it.
pub fn boringssl() -> Result<PathBuf, String> {
    let place = format!(
        "boringssl/usr/lib/{}-linux-gnu/android/libssl.so.0",
        std::env::consts::ARCH
    );
    let library = target_dir().join(place);
    if library.is_file() {
        Ok(library)
    } else {
        Err("there is no BoringSSL: run `cargo xtask setup --tests`".to_owned())
    }
}

/// nginx: the installed one, or the distribution's package unpacked below target.
pub fn nginx() -> Result<PathBuf, String> {
    let works = |path: &Path| {
        let status = Command::new(path)
            .arg("-v")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    for installed in ["nginx", "/usr/sbin/nginx"].map(PathBuf::from) {
        if works(&installed) {
            return Ok(installed);
        }
    }
    let unpacked = once("nginx/usr/sbin/nginx", Path::new("/bin/sh"), |built| {
        let root = built.ancestors().nth(3).ok_or("no directory")?;
        std::fs::create_dir_all(root).map_err(|error| error.to_string())?;
        run(Command::new("apt-get")
            .args(["download", "nginx"])
            .current_dir(root))?;
        let unpack =
            "for package in nginx_*.deb; do dpkg -x \"$package\" .; done && touch usr/sbin/nginx";
        run(Command::new("sh").args(["-c", unpack]).current_dir(root))
    })?;
    if works(&unpacked) {
        Ok(unpacked)
    } else {
        Err("nginx is not installed".to_owned())
    }
}
