//! What the agent sets up on the host before it loads anything; each step says what it did.

use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Where it belongs.
pub const TRACEFS: &str = "/sys/kernel/tracing";

/// Mounts tracefs where it belongs, unless it is there. Failing is told by the attach that needs it.
pub fn mount_tracefs() {
    match std::fs::metadata(std::path::Path::new(TRACEFS).join("events")) {
        Ok(_) => return,
        // Mounted, and only root may look: told by the attach as well.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return,
        Err(_) => {}
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

/// Every probe in a library takes two descriptors, and the usual limit is for programs that need few.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, most)
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// All of it.
pub fn all() {
    mount_tracefs();
    raise_memlock();
    raise_open_files();
}
