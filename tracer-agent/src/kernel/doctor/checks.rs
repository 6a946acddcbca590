//! The checks: a fact each, judged.

use super::super::features::{Btf, Capability, Cgroup, Features, KernelVersion, Lockdown, Tracefs};
use super::super::host::Host;
use super::super::tier;
use super::super::uring;
use super::{Check, rights};

/// Oldest kernel with everything the base tier needs: before it, programs that tail-call others must not have functions
/// (kernel commits ebf7d1f508a7, and for arm64 d4609a5d8c70).
const OLDEST: KernelVersion = match cfg!(target_arch = "aarch64") {
    true => KernelVersion(6, 0),
    false => KernelVersion(5, 10),
};

/// System calls whose entry and exit tell how bytes move.
pub(super) const SYSTEM_CALLS: [&str; 16] = [
    "read",
    "readv",
    "preadv2",
    "recvfrom",
    "recvmsg",
    "recvmmsg",
    "write",
    "writev",
    "pwritev2",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "sendfile64",
    "splice",
    "close",
    "shutdown",
];
pub(super) const PROCESS_EVENTS: [&str; 3] = [
    "sched/sched_process_exec",
    "sched/sched_process_exit",
    "sched/sched_process_fork",
];
pub(super) const SOCKET_EVENTS: [&str; 1] = ["sock/inet_sock_set_state"];

/// Every check, in the order they are shown.
pub(super) fn all(
    host: &Host,
    features: &Features,
    ebpf_object_size: Option<usize>,
    functions_refused: Option<String>,
) -> Vec<Check> {
    vec![
        kernel(features),
        ebpf_object(ebpf_object_size),
        rights::load_programs(features),
        rights::other_processes(features),
        rights::other_users_files(features),
        rights::replaced_files(features),
        rights::network_admin(features),
        rights::uprobes(features),
        btf(features),
        tracefs(features),
        system_calls(host, features),
        tier(host, features, functions_refused),
        events(
            host,
            features,
            "process events",
            &PROCESS_EVENTS,
            "processes are found later, and short-lived ones without their metadata",
        ),
        events(
            host,
            features,
            "socket events",
            &SOCKET_EVENTS,
            "connections that the kernel ends by itself are closed late",
        ),
        io_uring(host, features),
        lockdown(features),
        kprobes(features),
        jit(features),
        cgroup(features),
        tcp_options(features),
        rights::locked_memory(features),
        clock(features),
        rights::pid_namespace(features),
        rights::only_agent(features),
    ]
}

fn kernel(features: &Features) -> Check {
    let arch = std::env::consts::ARCH;
    let fix = format!("run a kernel of {OLDEST} or newer");
    match (features.version, &features.release) {
        (Some(version), Some(release)) if version >= OLDEST => {
            Check::ok("kernel", format!("{release} on {arch}"))
        }
        (Some(_), Some(release)) => Check::missing(
            "kernel",
            format!("{release} is older than {OLDEST}"),
            "everything",
            &fix,
        )
        .essential(),
        _ => Check::unknown(
            "kernel",
            "its version cannot be read",
            &format!("everything, if it is older than {OLDEST}"),
            &fix,
        ),
    }
}

/// Either of them is well.
fn tier(host: &Host, features: &Features, refused: Option<String>) -> Check {
    let detail = match tier::obstacle(host, features).or(refused) {
        None if tier::is_proven(features.version) => {
            "fast: system calls are seen at the functions that do them; where context is written, at tracepoints"
                .to_owned()
        }
        None => {
            "base: system calls are seen at tracepoints; not at functions, because that is not proven on this kernel: `capture.tier: fast` asks for it"
                .to_owned()
        }
        Some(why) => {
            format!("base: system calls are seen at tracepoints; not at functions, because {why}")
        }
    };
    Check::ok("tier", detail)
}

fn io_uring(host: &Host, features: &Features) -> Check {
    const NAME: &str = "io_uring";
    const SHOWN: usize = 20;
    let told = match &features.tracefs {
        Tracefs::Mounted(point) => Some(uring::is_told(&host.resolve(point))),
        _ => None,
    };
    let users = uring::users(host);
    let mut names: Vec<String> = users
        .iter()
        .take(SHOWN)
        .map(|user| format!("{} ({})", user.name, user.pid))
        .collect();
    if users.len() > SHOWN {
        names.push(format!("{} more", users.len() - SHOWN));
    }
    let names = names.join(", ");
    let disables = "what these processes send and receive through it, if they do";
    match told {
        Some(true) if users.is_empty() => Check::ok(NAME, "seen; no process has a ring now"),
        Some(true) => Check::ok(NAME, format!("seen; processes with a ring: {names}")),
        _ if users.is_empty() => Check::ok(NAME, "no process has a ring now"),
        Some(false) => Check::missing(
            NAME,
            format!("processes with a ring: {names}"),
            disables,
            "run a kernel of 5.19 or newer",
        ),
        None => Check::unknown(
            NAME,
            &format!("processes with a ring: {names}"),
            disables,
            "mount tracefs",
        ),
    }
}

fn ebpf_object(size: Option<usize>) -> Check {
    match size {
        Some(bytes) => Check::ok(
            "eBPF object",
            format!("built in, {} KiB", bytes.div_ceil(1024)),
        ),
        None => Check::missing(
            "eBPF object",
            "this binary was built without it",
            "tracing; `replay` still works",
            "build with `cargo xtask build`",
        )
        .essential(),
    }
}

fn btf(features: &Features) -> Check {
    let disables =
        "everything; addresses of connections are read by the kernel's own type information";
    match &features.btf {
        Btf::Readable(bytes) => Check::ok("BTF", format!("/sys/kernel/btf/vmlinux, {} KiB", bytes.div_ceil(1024))),
        Btf::Unreadable(why) => {
            let detail = format!("/sys/kernel/btf/vmlinux cannot be read: {why}");
            Check::missing("BTF", detail, disables, "run as root, or mount the host's /sys into the container").essential()
        }
        Btf::Absent => Check::missing(
            "BTF",
            "no /sys/kernel/btf/vmlinux",
            disables,
            "run a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of current distributions are",
        )
        .essential(),
    }
}

fn tracefs(features: &Features) -> Check {
    let disables = "everything; tracepoints are found there";
    let mount = "as root: mount -t tracefs tracefs /sys/kernel/tracing";
    match &features.tracefs {
        Tracefs::Mounted(point) => Check::ok("tracefs", format!("mounted at {point}")),
        Tracefs::Unreadable(point) => {
            let detail = format!("mounted at {point}, not readable by this user");
            Check::missing(
                "tracefs",
                detail,
                disables,
                "run as root, or give it CAP_DAC_READ_SEARCH",
            )
            .essential()
        }
        Tracefs::NotMounted => match features.can(Capability::SysAdmin) {
            Some(true) => Check::ok(
                "tracefs",
                "not mounted; the agent mounts it at /sys/kernel/tracing when it starts",
            ),
            Some(false) => Check::missing(
                "tracefs",
                "not mounted, and no right to mount it",
                disables,
                mount,
            )
            .essential(),
            None => Check::unknown("tracefs", "not mounted", disables, mount),
        },
        Tracefs::Absent => Check::missing(
            "tracefs",
            "this kernel has none",
            disables,
            "run a kernel built with CONFIG_FTRACE=y and CONFIG_FTRACE_SYSCALLS=y",
        )
        .essential(),
    }
}

fn system_calls(host: &Host, features: &Features) -> Check {
    let name = "system call events";
    let disables = "everything; bytes are seen as system calls move them";
    let fix = "run a kernel built with CONFIG_FTRACE_SYSCALLS=y";
    let wanted: Vec<String> = SYSTEM_CALLS
        .iter()
        .flat_map(|call| {
            [
                format!("syscalls/sys_enter_{call}"),
                format!("syscalls/sys_exit_{call}"),
            ]
        })
        .collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    match features.missing_tracepoints(host, &wanted) {
        Some(missing) if missing.is_empty() && features.calls_by_number => Check::ok(
            name,
            format!(
                "all {} of them; their ends are seen by one hook for all calls, because this kernel leaves out \
                 programs of single ones while a thread is preempted in them",
                wanted.len()
            ),
        ),
        Some(missing) if missing.is_empty() => {
            Check::ok(name, format!("all {} of them", wanted.len()))
        }
        Some(missing) if missing.len() == wanted.len() => {
            Check::missing(name, "none", disables, fix).essential()
        }
        Some(missing) => {
            let disables = "bytes that programs move by these system calls are not seen";
            Check::missing(name, format!("without {}", short(&missing)), disables, fix)
        }
        None => match features
            .config
            .as_ref()
            .map(|config| config.has("FTRACE_SYSCALLS"))
        {
            Some(true) => Check::ok(name, "built into this kernel (CONFIG_FTRACE_SYSCALLS=y)"),
            Some(false) => {
                Check::missing(name, "this kernel is built without them", disables, fix).essential()
            }
            None => Check::unknown(
                name,
                "tracefs is not mounted",
                disables,
                "mount tracefs and ask again",
            ),
        },
    }
}

fn events(
    host: &Host,
    features: &Features,
    name: &'static str,
    wanted: &[&str],
    disables: &str,
) -> Check {
    let fix = "run a kernel built with CONFIG_TRACEPOINTS=y";
    match features.missing_tracepoints(host, wanted) {
        Some(missing) if missing.is_empty() => Check::ok(name, short(wanted)),
        Some(missing) => {
            Check::missing(name, format!("without {}", short(&missing)), disables, fix)
        }
        None => match features
            .config
            .as_ref()
            .map(|config| config.has("TRACEPOINTS"))
        {
            Some(true) => Check::ok(name, "built into this kernel (CONFIG_TRACEPOINTS=y)"),
            Some(false) => Check::missing(name, "this kernel is built without them", disables, fix),
            None => Check::unknown(
                name,
                "tracefs is not mounted",
                disables,
                "mount tracefs and ask again",
            ),
        },
    }
}

fn lockdown(features: &Features) -> Check {
    let disables = "everything; eBPF programs may not read memory";
    let fix = "boot with lockdown=integrity or without lockdown";
    match features.lockdown {
        Some(Lockdown::None) => Check::ok("lockdown", "none"),
        Some(Lockdown::Integrity) => Check::ok(
            "lockdown",
            "integrity; reading is allowed, and the agent never writes to programs",
        ),
        Some(Lockdown::Confidentiality) => {
            Check::missing("lockdown", "confidentiality", disables, fix).essential()
        }
        None => Check::unknown(
            "lockdown",
            "securityfs is not mounted and the kernel does not tell",
            "everything, if it is confidentiality",
            "as root: mount -t securityfs securityfs /sys/kernel/security, and ask again",
        ),
    }
}

fn kprobes(features: &Features) -> Check {
    let disables = "nothing; tracing uses tracepoints here";
    match features.kprobes {
        Some(true) => Check::ok("kprobes", "available"),
        Some(false) => Check::missing(
            "kprobes",
            "not in this kernel",
            disables,
            "a kernel built with CONFIG_KPROBES=y; not needed",
        ),
        None => Check::unknown(
            "kprobes",
            "the kernel does not tell",
            disables,
            "not needed",
        ),
    }
}

fn jit(features: &Features) -> Check {
    let disables = "speed; programs are interpreted and cost several times more";
    let fix = "as root: sysctl net.core.bpf_jit_enable=1";
    match features.jit {
        Some(true) => Check::ok("eBPF compiler", "on"),
        Some(false) => Check::missing("eBPF compiler", "off", disables, fix),
        None => Check::unknown("eBPF compiler", "the kernel does not tell", disables, fix),
    }
}

fn cgroup(features: &Features) -> Check {
    match &features.cgroup {
        Cgroup::Unified(point) => Check::ok("cgroup v2", format!("mounted at {point}")),
        Cgroup::Hybrid(point) => Check::ok("cgroup v2", format!("mounted at {point}, beside v1")),
        Cgroup::Absent => Check::missing(
            "cgroup v2",
            "not mounted",
            "--propagate, which hooks into sockets by cgroup; container ids still come from v1",
            "as root: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        ),
    }
}

/// Kernel commit 0813a841566f.
fn tcp_options(features: &Features) -> Check {
    const NAME: &str = "TCP options";
    let disables = "--propagate for TLS, HTTP/2 and gRPC, which goes in TCP options";
    let fix = "run a kernel of 5.10 or newer";
    match features.version {
        Some(version) if version >= KernelVersion(5, 10) => {
            Check::ok(NAME, "programs can read and write them")
        }
        Some(version) => Check::missing(
            NAME,
            format!("programs cannot write them on {version}"),
            disables,
            fix,
        ),
        None => Check::unknown(NAME, "the kernel's version cannot be read", disables, fix),
    }
}

fn clock(features: &Features) -> Check {
    match features.clock.as_deref() {
        Some(slow @ ("hpet" | "acpi_pm" | "jiffies" | "refined-jiffies")) => Check::missing(
            "fast clock",
            format!("{slow}, slow to read"),
            "speed; each traced system call reads the clock",
            "boot with a kernel and machine where tsc is stable (see dmesg | grep -i tsc)",
        ),
        Some(name) => Check::ok("fast clock", name),
        None => Check::unknown(
            "fast clock",
            "the kernel does not tell",
            "speed, if it is slow to read",
            "look at /sys/devices/system/clocksource",
        ),
    }
}

/// Names without their category, a few of them.
fn short(names: &[&str]) -> String {
    const SHOWN: usize = 4;
    let leaf = |name: &&str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let shown: Vec<String> = names.iter().take(SHOWN).map(leaf).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
