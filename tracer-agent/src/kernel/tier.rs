//! Which hooks see the system calls: tracepoints (base), or the functions that do them (fast).
//!
//! In: a [`Host`]. Out: what is in the way of functions, in one sentence, as far as it can be seen without loading anything.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::features::{Capability, Features, KernelVersion};
use super::host::Host;

/// Where system calls are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tier {
    /// At tracepoints of system calls, on every kernel.
    #[default]
    Base,
    /// At the functions that do them.
    Fast,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Base => "base",
            Tier::Fast => "fast",
        })
    }
}

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Functions on kernels where they are known to be exact ([`is_proven`]).
    #[default]
    Auto,
    /// This one, or nothing.
    Only(Tier),
}

/// Kernels on which the fast tier is chosen without being asked for: its end-to-end tests were exact there (`cargo xtask vm`,
/// docs/kernels.md).
const PROVEN: &[KernelVersion] = &[KernelVersion(6, 12)];

/// Whether this kernel is one of [`PROVEN`].
pub fn is_proven(version: Option<KernelVersion>) -> bool {
    version.is_some_and(|version| PROVEN.contains(&version))
}

/// Whether the running kernel is worth a closer look for this choice.
pub fn may_be_fast(choice: Choice) -> bool {
    match choice {
        Choice::Only(tier) => tier == Tier::Fast,
        Choice::Auto => is_proven(KernelVersion::of(&Host::real())),
    }
}

/// Why functions cannot be used here; `None` when nothing is seen that forbids them.
pub fn obstacle(host: &Host, features: &Features) -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("it was not tried on this architecture".to_owned());
    }
    if features.calls_by_number {
        return Some("this kernel can be preempted in programs of system calls".to_owned());
    }
    if features.first_pid_namespace == Some(false) {
        return Some(
            "this is not the host's pid namespace: who is in a call already cannot be seen"
                .to_owned(),
        );
    }
    if features.can(Capability::SysPtrace) == Some(false) {
        return Some(
            "CAP_SYS_PTRACE is missing: who is in a call already cannot be seen".to_owned(),
        );
    }
    match is_preempted(host, features) {
        Some(false) => None,
        Some(true) => Some("this kernel is preempted, and leaves out programs of functions then".to_owned()),
        None => Some("whether this kernel is preempted cannot be seen (debugfs, /boot/config); programs of functions are left out then".to_owned()),
    }
}

/// Whether a thread can lose its processor in the middle of a program of a function; `None` if that cannot be found out.
fn is_preempted(host: &Host, features: &Features) -> Option<bool> {
    let version = host.proc_text("version")?;
    let mut words = version
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("PREEMPT"));
    match words.next() {
        None => Some(false),
        // Decided when the kernel is booted, or later.
        Some("PREEMPT_DYNAMIC") => mode(host, features).map(|mode| is_preempting(&mode)),
        Some(_) => Some(true),
    }
}

fn is_preempting(mode: &str) -> bool {
    !matches!(mode, "none" | "voluntary")
}

/// The mode of such a kernel.
fn mode(host: &Host, features: &Features) -> Option<String> {
    let chosen = host.sys_text("kernel/debug/sched/preempt").or_else(|| {
        let real = host.is_real();
        real.then(seen).flatten()
    });
    if let Some(chosen) = chosen {
        // `none (voluntary) full`.
        let (_, rest) = chosen.split_once('(')?;
        return Some(rest.split_once(')')?.0.to_owned());
    }
    let line = host.proc_text("cmdline").unwrap_or_default();
    let wanted = line
        .split_ascii_whitespace()
        .rev()
        .find_map(|word| word.strip_prefix("preempt="));
    if let Some(wanted) = wanted {
        return Some(wanted.to_owned());
    }
    let config = features.config.as_ref()?;
    ["none", "voluntary"]
        .into_iter()
        .find(|mode| config.has(&format!("PREEMPT_{}", mode.to_uppercase())))
        .or(Some("full"))
        .map(str::to_owned)
}

/// Looks at what cannot be looked at any more when rights are given up.
pub fn look() {
    seen();
}

/// What debugfs said of the mode when it was asked first.
fn seen() -> Option<String> {
    static SEEN: OnceLock<Option<String>> = OnceLock::new();
    SEEN.get_or_init(own_debugfs).clone()
}

/// What debugfs says, where it is not mounted: by a mount that nobody else sees, and that goes at once.
fn own_debugfs() -> Option<String> {
    let context = fsopen("debugfs", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    fsconfig_create(&context).ok()?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .ok()?;
    let file = openat(
        &mount,
        "sched/preempt",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    let mut text = String::new();
    File::from(file).take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}
