//! Debian packages, installed only when something is missing.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::{sh, sys};

/// Installs packages; `why` goes into the error. The package lists are fetched once per run, and
/// only if there is something to install.
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    static UPDATED: AtomicBool = AtomicBool::new(false);

    if sh::which("apt-get").is_none() {
        bail!(
            "{why}: there is no apt-get here; install what Debian calls {}",
            packages.join(" ")
        );
    }
    if !UPDATED.swap(true, Ordering::Relaxed)
        && let Err(error) = sh::run(apt_get(why, packages)?.arg("update"))
    {
        // The lists that are there may do.
        eprintln!("setup: {error:#}; going on with the package lists there are");
    }
    let mut command = apt_get(why, packages)?;
    command
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages);
    sh::run(&mut command).context(format!("{why}: packages {}", packages.join(" ")))
}

fn apt_get(why: &str, packages: &[&str]) -> Result<Command> {
    let mut command = if sys::is_root() {
        Command::new("apt-get")
    } else if sh::which("sudo").is_some() && std::io::stdin().is_terminal() {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    } else {
        bail!(
            "{why}: run `sudo apt-get install {}` first",
            packages.join(" ")
        );
    };
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
    Ok(command)
}

/// Keeps a service from being started by the installation of its package, where systemd would.
#[derive(Debug)]
pub struct Masked {
    unit: Option<&'static str>,
}

impl Masked {
    /// Masks the unit until the value is dropped.
    pub fn new(unit: &'static str) -> Self {
        let masked = sys::is_root()
            && Path::new("/run/systemd/system").is_dir()
            && sh::run(Command::new("systemctl").args(["mask", "--runtime", unit])).is_ok();
        Self {
            unit: masked.then_some(unit),
        }
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        if let Some(unit) = self.unit
            && let Err(error) =
                sh::run(Command::new("systemctl").args(["unmask", "--runtime", unit]))
        {
            eprintln!("setup: {error:#}");
        }
    }
}
