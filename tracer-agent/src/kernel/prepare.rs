//! What the agent sets up on the host before it loads anything; each step says what it did.

use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const TRACEFS: &str = "/sys/kernel/tracing";

/// Mounts tracefs where it belongs, unless it is there. Failing is told by the attach that needs it.
pub fn mount_tracefs() {
    if std::path::Path::new(TRACEFS).join("events").exists() {
        return;
    }
    match mount("tracefs", TRACEFS, "tracefs", MountFlags::empty(), None) {
        Ok(()) => tracing::info!("mounted tracefs at {TRACEFS}"),
        Err(error) => tracing::warn!(%error, "tracefs is not mounted at {TRACEFS} and cannot be"),
    }
}

/// Before 5.11 maps count against the limit of locked memory (kernel commit 97306be45fbe).
pub fn raise_memlock() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if getrlimit(Resource::Memlock).current.is_some()
        && let Err(error) = setrlimit(Resource::Memlock, unlimited)
    {
        tracing::debug!(%error, "the limit of locked memory stays as it is");
    }
}
