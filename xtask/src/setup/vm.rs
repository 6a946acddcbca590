//! What `cargo xtask vm` needs.

use anyhow::Result;

use super::apt;
use crate::sh;

const PROGRAMS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-system-aarch64", "qemu-system-arm"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("strip", "binutils"),
];

/// Installs what is missing.
pub fn for_vm() -> Result<()> {
    let missing = PROGRAMS
        .iter()
        .filter(|(program, _)| sh::which(program).is_none());
    let packages: Vec<&str> = missing.map(|&(_, package)| package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    apt::install(&packages, "machines with other kernels need an emulator")
}
