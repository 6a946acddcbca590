//! What the tests of TLS need besides: another OpenSSL than the system's, BoringSSL, and programs of
//! Rust's TLS libraries. All below `target/`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::venv_bin;
use crate::sh;

/// A wheel that brings OpenSSL 1.1.1 along. Which Python it is for does not matter: only its
/// libraries are used.
const WHEEL: &str = "psycopg2-binary==2.9.9";
const WHEEL_PYTHON: &str = "3.11";

/// `target/wheels/psycopg2_binary.libs`.
pub fn wheel() -> Result<()> {
    let directory = sh::target().join("wheels");
    if directory.join("psycopg2_binary.libs").is_dir() {
        return Ok(());
    }
    fs::create_dir_all(&directory).context("cannot create target/wheels")?;
    let python = venv_bin().join("python");
    let platform = format!("manylinux2014_{}", std::env::consts::ARCH);
    sh::run(
        Command::new(&python)
            .args(["-m", "pip", "download", "--quiet", "--no-deps"])
            .args(["--only-binary", ":all:", "--disable-pip-version-check"])
            .args(["--python-version", WHEEL_PYTHON, "--platform", &platform])
            .arg("--dest")
            .arg(&directory)
            .arg(WHEEL),
    )?;
    let files = fs::read_dir(&directory).context("cannot read target/wheels")?;
    let paths = files.flatten().map(|file| file.path());
    let mut wheels = paths.filter(|path| path.extension().is_some_and(|end| end == "whl"));
    let wheel = wheels.next().context("pip left no wheel")?;
    sh::run(
        Command::new(&python)
            .args(["-m", "zipfile", "-e"])
            .args([&wheel, &directory]),
    )?;
    let unpacked = directory.join("psycopg2_binary.libs").is_dir();
    ensure!(unpacked, "the wheel has no libraries");
    fs::remove_file(wheel).context("cannot remove the wheel")
}

/// Debian's package of BoringSSL as a shared library, with its functions exported. Its two files are
/// unpacked, not installed.
const BORINGSSL: &str = "android-libboringssl";

/// `target/boringssl`.
pub fn boringssl() -> Result<()> {
    let directory = sh::target().join("boringssl");
    if directory.join("usr/lib").is_dir() {
        return Ok(());
    }
    fs::create_dir_all(&directory).context("cannot create target/boringssl")?;
    let download = ["-q", "-o", "APT::Sandbox::User=root", "download", BORINGSSL];
    sh::run(
        Command::new("apt-get")
            .args(download)
            .current_dir(&directory),
    )?;
    let files = fs::read_dir(&directory).context("cannot read target/boringssl")?;
    let paths = files.flatten().map(|file| file.path());
    let mut packages = paths.filter(|path| path.extension().is_some_and(|end| end == "deb"));
    let package = packages.next().context("apt-get left no package")?;
    sh::run(Command::new("dpkg").arg("-x").args([&package, &directory]))?;
    fs::remove_file(package).context("cannot remove the package")
}

/// `target/services/rust-native-tls` and `rust-rustls`, where the tests look for them.
pub fn rust() -> Result<()> {
    let source = sh::root().join("tests/services/rust-tls");
    let (target, services) = (sh::target().join("rust-tls"), sh::target().join("services"));
    let is_first = !target.is_dir();
    if is_first {
        eprintln!("setup: building HTTPS in Rust (a minute or more)");
    }
    // Cargo knows best whether there is anything to do.
    sh::run(
        sh::cargo()
            .args(["build", "--quiet", "--release", "--locked", "--target-dir"])
            .arg(&target)
            .current_dir(source),
    )?;
    fs::create_dir_all(&services).context("cannot create target/services")?;
    for name in ["rust-native-tls", "rust-rustls"] {
        let built = target.join("release").join(name);
        if !is_newer(&services.join(name), &built) {
            fs::copy(&built, services.join(name)).with_context(|| format!("cannot copy {name}"))?;
        }
    }
    Ok(())
}

fn is_newer(path: &Path, than: &Path) -> bool {
    let time = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    matches!((time(path), time(than)), (Some(path), Some(than)) if path >= than)
}
