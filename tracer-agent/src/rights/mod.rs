//! What the agent may do, what it needs of that, and giving the rest up.
//!
//! In: the capabilities of the process, what it was asked to do. Out: the same process with what it
//! needs while it traces and nothing else, unable to get more (`no_new_privs`, an empty ambient set, a
//! bounding set of the same), with a filter of system calls. Capabilities belong to threads, so all of
//! this happens on the first thread before there are others; they inherit it. What each capability is
//! for is measured: see `docs/rights.md`.

mod filter;
mod sys;

use std::path::Path;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, no_new_privs,
    remove_capability_from_bounding_set, set_capabilities,
};

pub use filter::{FilterError, take_refused};

/// What loads and attaches programs, and reads maps on kernels that ask for more than a descriptor.
const EBPF: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::PERFMON);

/// What a capability that is missing takes away.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// Which one.
    pub capability: CapabilitySet,
    /// Its name.
    pub name: &'static str,
    /// What does not work without.
    pub disables: &'static str,
}

/// Capabilities without which tracing goes on and something is missing. All else that is needed is in
/// [`can_trace`].
pub const FEATURES: &[Feature] = &[
    Feature {
        capability: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        disables: "paths, environment and containers' files of other processes: service names come from \
            their commands alone, and TLS is only seen in the host's own libraries",
    },
    Feature {
        capability: CapabilitySet::DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        disables: "programs and libraries that only their owners may read: no TLS in them, no causes of \
            Go and Node programs",
    },
    Feature {
        capability: CapabilitySet::CHECKPOINT_RESTORE,
        name: "CAP_CHECKPOINT_RESTORE",
        disables: "TLS in libraries that were replaced or deleted while a process uses them",
    },
];

/// Why rights could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// Capabilities cannot be read or set.
    #[error("cannot give up capabilities")]
    Capabilities(#[from] rustix::io::Errno),
    /// The filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// What the agent was asked to do, as far as it takes rights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Uprobes: TLS, causes of Go and Node programs.
    pub uprobes: bool,
    /// Trace context in outgoing requests.
    pub propagate: bool,
    /// Have the kernel measure programs, now or again.
    pub measure: bool,
    /// Port of the admin endpoint.
    pub admin_port: Option<u16>,
    /// Files and directories that are written.
    pub written: [Option<&'a Path>; 2],
}

/// The process's effective capabilities; empty if they cannot be read.
pub fn effective() -> CapabilitySet {
    capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

/// True when this process may load eBPF: then EACCES is the verifier's word, not a missing right.
pub fn can_trace() -> bool {
    let effective = effective();
    effective.contains(CapabilitySet::SYS_ADMIN) || effective.contains(EBPF)
}

/// Whether this thread may place uprobes; `None` where the kernel has none. Kernels ask for
/// `CAP_PERFMON`, or `CAP_SYS_ADMIN` again: "perf: Revert to requiring CAP_SYS_ADMIN for uprobes", which
/// stable kernels took over, so no version tells.
pub fn can_place_uprobes() -> Option<bool> {
    let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").ok()?;
    let error = sys::ask_for_uprobe(kind.trim().parse().ok()?);
    Some(!matches!(
        error.raw_os_error(),
        Some(libc::EACCES | libc::EPERM)
    ))
}

/// Whether uprobes take `CAP_SYS_ADMIN` here: asked by a thread that gave it up.
pub fn uprobes_take_sys_admin() -> bool {
    let asked = std::thread::spawn(|| {
        let mut sets = capabilities(None).ok()?;
        sets.effective.remove(CapabilitySet::SYS_ADMIN);
        set_capabilities(None, sets).ok()?;
        can_place_uprobes()
    });
    asked.join().ok().flatten() == Some(false)
}

/// What is needed from now on, of what there is.
fn needed(permitted: CapabilitySet, wanted: &Wanted<'_>, takes_sys_admin: bool) -> CapabilitySet {
    let mut needed = EBPF;
    for feature in FEATURES {
        needed |= feature.capability;
    }
    let sys_admin = wanted.measure
        || wanted.uprobes && takes_sys_admin
        // It stands for both.
        || !permitted.contains(EBPF);
    let more = [
        (sys_admin, CapabilitySet::SYS_ADMIN),
        (wanted.propagate, CapabilitySet::NET_ADMIN),
        (
            wanted.admin_port.is_some_and(|port| port < 1024),
            CapabilitySet::NET_BIND_SERVICE,
        ),
        (
            wanted
                .written
                .iter()
                .flatten()
                .any(|path| is_of_others(path)),
            CapabilitySet::DAC_OVERRIDE,
        ),
    ];
    for (wanted, capability) in more {
        if wanted {
            needed |= capability;
        }
    }
    needed & permitted
}

/// Whether the file, or the directory that it will be made in, belongs to another user: root may write
/// there by a capability and not by being root.
fn is_of_others(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let me = rustix::process::geteuid().as_raw();
    let there = path
        .ancestors()
        .map(|path| {
            if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            }
        })
        .find_map(|path| std::fs::metadata(path).ok());
    there.is_some_and(|metadata| metadata.uid() != me)
}

/// Gives up, for this thread and those that it will start, everything that is not needed. Says what is
/// kept and what is missing.
pub fn lower(wanted: &Wanted<'_>) -> Result<(), RightsError> {
    let before = capabilities(None)?;
    let takes_sys_admin = wanted.uprobes
        && before.effective.contains(CapabilitySet::SYS_ADMIN)
        && uprobes_take_sys_admin();
    let kept = needed(before.permitted, wanted, takes_sys_admin);
    // Not having the right to do so (CAP_SETPCAP) is no loss: nothing is executed from here.
    let _ = clear_ambient_capability_set();
    for capability in CapabilitySet::all().difference(kept).iter() {
        let _ = remove_capability_from_bounding_set(capability);
    }
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    filter::install()?;
    tracing::info!(
        kept = %names(kept),
        no_new_privs = no_new_privs().unwrap_or(false),
        "rights that are not needed are given up, system calls that are not needed are refused"
    );
    for Feature {
        capability,
        name,
        disables,
    } in FEATURES
    {
        // Root's own files are most of what there is; it is told where something cannot be read.
        if !kept.intersects(*capability | CapabilitySet::SYS_ADMIN) {
            tracing::warn!("no {name}; without it: {disables}");
        }
    }
    if wanted.uprobes && can_place_uprobes() == Some(false) {
        tracing::warn!(
            "no CAP_SYS_ADMIN, which uprobes take on this kernel; without it: TLS, and causes of Go and Node programs"
        );
    }
    Ok(())
}

/// `CAP_BPF, CAP_PERFMON`.
fn names(set: CapabilitySet) -> String {
    let named = set.iter_names().map(|(name, _)| format!("CAP_{name}"));
    named.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed() {
        let all = CapabilitySet::all();
        let base = EBPF
            | CapabilitySet::SYS_PTRACE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::CHECKPOINT_RESTORE;
        let check = |held, wanted: Wanted<'_>, insists, expected: CapabilitySet| {
            let found = needed(held, &wanted, insists);
            assert_eq!(names(found), names(expected), "{wanted:?}");
        };
        let nothing = Wanted::default();
        check(all, nothing, false, base);
        check(all, nothing, true, base);
        let uprobes = Wanted {
            uprobes: true,
            ..nothing
        };
        check(all, uprobes, false, base);
        check(all, uprobes, true, base | CapabilitySet::SYS_ADMIN);
        // What is not held is not kept, and what stands for it is.
        check(EBPF, uprobes, true, EBPF);
        let admin = CapabilitySet::SYS_ADMIN;
        check(admin, nothing, false, admin);
        let propagate = Wanted {
            propagate: true,
            ..nothing
        };
        check(all, propagate, false, base | CapabilitySet::NET_ADMIN);
        let measure = Wanted {
            measure: true,
            ..nothing
        };
        check(all, measure, false, base | admin);
        for (port, more) in [
            (80, CapabilitySet::NET_BIND_SERVICE),
            (9468, CapabilitySet::empty()),
        ] {
            let wanted = Wanted {
                admin_port: Some(port),
                ..nothing
            };
            check(all, wanted, false, base | more);
        }
        let own = std::env::current_exe().expect("a file of this user");
        let wanted = Wanted {
            written: [Some(&own), None],
            ..nothing
        };
        check(all, wanted, false, base);
        let directory = tempfile::tempdir().expect("directory");
        let inside = directory.path().join("not/there/yet");
        let wanted = Wanted {
            written: [None, Some(&inside)],
            ..nothing
        };
        check(all, wanted, false, base);
    }

    /// Scenario: a thread gives everything up. Guarantees: it cannot do what it could, its children
    /// neither, and other threads can.
    #[test]
    fn lowered_threads() {
        let before = effective();
        let lowered = std::thread::spawn(|| {
            lower(&Wanted::default()).expect("lowered");
            assert!(no_new_privs().expect("asked"));
            std::thread::spawn(effective).join().expect("a thread")
        });
        let after = lowered.join().expect("the lowered thread");
        let gone = CapabilitySet::SYS_MODULE | CapabilitySet::SYS_BOOT | CapabilitySet::SETUID;
        assert!(!after.intersects(gone), "{}", names(after));
        assert_eq!(effective(), before);
    }
}
