//! Checks of what this process may do, and of what stands beside it.

use super::super::features::{Capability, Features, KernelVersion, Uprobes};
use super::Check;

/// From here on eBPF memory is charged to the cgroup and not to `RLIMIT_MEMLOCK`.
const MEMCG_ACCOUNTING: KernelVersion = KernelVersion(5, 11);
/// What the kernel side's maps need at most.
const MAP_BYTES: u64 = 64 * 1024 * 1024;

pub(super) fn load_programs(features: &Features) -> Check {
    let name = "load eBPF programs";
    let fix = "run as root, or give it CAP_BPF and CAP_PERFMON (setcap, AmbientCapabilities=, or the pod's securityContext)";
    let who = if features.uid == Some(0) {
        "root"
    } else {
        "not root"
    };
    match features.can_load() {
        Some(true) => Check::ok(
            name,
            format!("{who}, with CAP_BPF and CAP_PERFMON or CAP_SYS_ADMIN"),
        ),
        Some(false) if features.first_user_namespace == Some(false) => Check::missing(
            name,
            "inside a user namespace, where capabilities do not count for eBPF",
            "everything",
            "run outside of it (a rootful container, hostUsers: true)",
        )
        .essential(),
        Some(false) => Check::missing(
            name,
            format!("{who}, without CAP_BPF and CAP_PERFMON"),
            "everything",
            fix,
        )
        .essential(),
        None => Check::unknown(
            name,
            "capabilities cannot be read",
            "everything, if they are missing",
            fix,
        ),
    }
}

fn capability(
    features: &Features,
    check: &'static str,
    wanted: Capability,
    name: &str,
    disables: &str,
) -> Check {
    let fix = format!("give it {name}, or run as root");
    match features.can(wanted) {
        Some(true) => Check::ok(check, name),
        Some(false) => Check::missing(check, format!("no {name}"), disables, &fix),
        None => Check::unknown(check, "capabilities cannot be read", disables, &fix),
    }
}

pub(super) fn other_processes(features: &Features) -> Check {
    let disables = "paths, environment and containers' files of other processes: service names come from their commands alone, and TLS is only seen in the host's own libraries";
    capability(
        features,
        "look into processes",
        Capability::SysPtrace,
        "CAP_SYS_PTRACE",
        disables,
    )
}

pub(super) fn other_users_files(features: &Features) -> Check {
    let disables = "everything unless it is root, who owns tracefs; else programs and libraries that only their owners may read: no TLS in them, no causes of Go and Node programs";
    capability(
        features,
        "read other users' files",
        Capability::DacReadSearch,
        "CAP_DAC_READ_SEARCH",
        disables,
    )
}

pub(super) fn replaced_files(features: &Features) -> Check {
    let disables = "TLS in libraries that were replaced or deleted while a process uses them";
    let name = "open replaced files";
    if features.can(Capability::SysAdmin) == Some(true) {
        return Check::ok(name, "CAP_SYS_ADMIN");
    }
    capability(
        features,
        name,
        Capability::CheckpointRestore,
        "CAP_CHECKPOINT_RESTORE",
        disables,
    )
}

pub(super) fn uprobes(features: &Features) -> Check {
    let name = "probe programs";
    let disables = "TLS, and causes of Go and Node programs";
    let fix = "give it CAP_SYS_ADMIN, which newer kernels take for it (older ones CAP_PERFMON), or run as root";
    match features.uprobes {
        Uprobes::Allowed => Check::ok(name, "uprobes are allowed"),
        Uprobes::NotAllowed => Check::missing(
            name,
            "the kernel does not allow this user uprobes",
            disables,
            fix,
        ),
        Uprobes::Absent => Check::missing(
            name,
            "this kernel has no uprobes",
            disables,
            "run a kernel built with CONFIG_UPROBE_EVENTS=y",
        ),
        Uprobes::Unknown => Check::unknown(name, "rights cannot be read", disables, fix),
    }
}

pub(super) fn network_admin(features: &Features) -> Check {
    let disables = "--propagate: no trace context in outgoing requests";
    capability(
        features,
        "attach to sockets",
        Capability::NetAdmin,
        "CAP_NET_ADMIN",
        disables,
    )
}

pub(super) fn locked_memory(features: &Features) -> Check {
    let name = "locked memory";
    let fix = "raise it (ulimit -l unlimited, LimitMEMLOCK=infinity), or give it CAP_SYS_RESOURCE";
    let counts = features
        .version
        .is_some_and(|version| version < MEMCG_ACCOUNTING);
    match features.memlock {
        _ if !counts => Check::ok(
            name,
            "not limited: this kernel charges eBPF memory to the cgroup",
        ),
        Some(limit) if limit >= MAP_BYTES => Check::ok(name, "the limit is high enough"),
        _ if features.can(Capability::SysResource) == Some(true) => {
            Check::ok(name, "the agent raises the limit itself")
        }
        Some(limit) => {
            let detail = format!(
                "limited to {} KiB on a kernel that counts eBPF memory",
                limit / 1024
            );
            Check::missing(name, detail, "everything; the maps cannot be created", fix).essential()
        }
        None => Check::unknown(
            name,
            "the limit cannot be read",
            "everything, if it is low",
            fix,
        ),
    }
}

pub(super) fn pid_namespace(features: &Features) -> Check {
    let disables = "names and metadata of processes outside of it";
    let fix = "use the host's (docker run --pid=host, hostPID: true)";
    match features.first_pid_namespace {
        Some(true) => Check::ok("pid namespace", "the host's"),
        Some(false) => Check::missing("pid namespace", "one of its own", disables, fix),
        None => Check::unknown("pid namespace", "cannot be read", disables, fix),
    }
}

pub(super) fn only_agent(features: &Features) -> Check {
    let pids: Vec<String> = features.agents.iter().map(u32::to_string).collect();
    match pids.is_empty() {
        true => Check::ok("only agent", "no other runs"),
        false => Check::missing(
            "only agent",
            format!("another one runs as pid {}", pids.join(", ")),
            "one of each span, unless the newer agent takes over from the older one; and both want the same admin port",
            "stop the other one, or give both the same --takeover name in one network namespace, and choose another --admin address",
        ),
    }
}
