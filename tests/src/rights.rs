//! Programs with fewer rights than the test has, by `setpriv` of util-linux.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::agent;

/// A user that owns nothing.
pub const NOBODY: u32 = 65_534;

/// `setpriv` with everything but the program: as this user, with these capabilities and no others, also
/// after programs that it executes.
pub fn command(user: u32, capabilities: &[&str]) -> Command {
    let sets: String = std::iter::once("-all".to_owned())
        .chain(capabilities.iter().map(|name| format!(",+{name}")))
        .collect();
    let mut command = Command::new("setpriv");
    if user != 0 {
        command.args([format!("--reuid={user}"), format!("--regid={user}")]);
        command.arg("--clear-groups");
    }
    command.arg(format!("--bounding-set={sets}"));
    command.arg(format!("--inh-caps={sets}"));
    command.arg(format!("--ambient-caps={sets}"));
    command
}

/// The agent's binary where every user may execute it: checkouts often are in somebody's home.
pub fn reachable_agent() -> PathBuf {
    static PLACE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PLACE.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open.clone()).expect("open to all");
        let path = directory.path().join("tracer-agent");
        let from = agent::binary();
        if std::fs::hard_link(&from, &path).is_err() {
            std::fs::copy(&from, &path).expect("a copy of the agent");
        }
        std::fs::set_permissions(&path, open).expect("executable for all");
        (directory, path)
    });
    path.clone()
}
