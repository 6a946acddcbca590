//! nginx with one of the tests' configurations, in a directory of its own that goes with it.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{Listens, Service, build, source};
use crate::agent::free_address;

/// Starts nginx with a template of `services/nginx`, whose `@NAME@` are replaced by `values`, and
/// with files of these sizes to serve; the reason if this machine cannot.
pub fn start(
    template: &str,
    files: &[(&str, usize)],
    values: &[(&str, &str)],
) -> Result<Service, String> {
    let root = TempDir::new().map_err(|error| error.to_string())?;
    let (command, listens) = command(template, root.path(), files, values)?;
    // It overwrites its environment with its title, so that a name given to it is not seen.
    Service::start("nginx", command, listens, Some(root))
}

/// The command, its files written below `root`.
pub(super) fn command(
    template: &str,
    root: &Path,
    files: &[(&str, usize)],
    values: &[(&str, &str)],
) -> Result<(Command, Listens), String> {
    let program = build::nginx()?;
    let address = free_address();
    let text = |error: std::io::Error| error.to_string();
    let served = root.join("files");
    std::fs::create_dir_all(&served).map_err(text)?;
    for (name, size) in files {
        std::fs::write(served.join(name), vec![b'x'; *size]).map_err(text)?;
    }
    let mut config = std::fs::read_to_string(source("nginx").join(template))
        .map_err(text)?
        .replace("@ROOT@", &root.display().to_string())
        .replace("@ADDRESS@", &address.to_string());
    for (name, value) in values {
        config = config.replace(&format!("@{name}@"), value);
    }
    let file = root.join("nginx.conf");
    std::fs::write(&file, config).map_err(text)?;
    let mut command = Command::new(program);
    command.arg("-e").arg(root.join("error.log"));
    command.arg("-p").arg(root).arg("-c").arg(&file);
    Ok((command, Listens::At(address)))
}
