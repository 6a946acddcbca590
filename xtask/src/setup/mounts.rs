//! The two file systems tracing needs: tracefs and bpffs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{sh, sys};

const WANTED: [(&str, &str); 2] = [("tracefs", "/sys/kernel/tracing"), ("bpf", "/sys/fs/bpf")];

/// Mounts what is missing, if we may. Tracing is impossible without; building is not.
pub fn mount_all() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    for (kind, at) in WANTED {
        if is_mounted(&mounts, kind, at) {
            continue;
        }
        if !sys::is_root() {
            eprintln!("setup: {kind} is not mounted at {at}: only root can, later");
            continue;
        }
        if !Path::new(at).is_dir() {
            eprintln!("setup: this kernel has no {at}: {kind} cannot be mounted there");
            continue;
        }
        sh::run(Command::new("mount").args(["-t", kind, kind, at]))
            .with_context(|| format!("{kind} is not mounted at {at}, and tracing needs it"))?;
    }
    Ok(())
}

fn is_mounted(mounts: &str, kind: &str, at: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(at) && fields.next() == Some(kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_told_by_place_and_kind() {
        let mounts = "tracefs /sys/kernel/tracing tracefs rw 0 0\ntmpfs /sys/fs/bpf tmpfs rw 0 0\n";
        assert!(is_mounted(mounts, "tracefs", "/sys/kernel/tracing"));
        assert!(!is_mounted(mounts, "bpf", "/sys/fs/bpf"));
        assert!(!is_mounted("", "bpf", "/sys/fs/bpf"));
    }
}
