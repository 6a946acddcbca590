//! What this kernel and this process's rights allow, read from procfs, sysfs and tracefs.
//!
//! In: a [`Host`]. Out: [`Features`], facts without judgement; `doctor` judges. Nothing is loaded,
//! attached or mounted to find out, so what only an attempt can tell is not here.

use std::fmt;

use super::calls;
use super::host::{Host, KernelConfig};

/// Inode numbers of the first namespaces (`include/linux/proc_ns.h`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

/// Version of a kernel, as far as features depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(pub u32, pub u32);

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl KernelVersion {
    /// From a release such as `6.1.0-18-cloud-amd64`.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
        Some(KernelVersion(
            numbers.next()?.parse().ok()?,
            numbers.next()?.parse().ok()?,
        ))
    }

    /// The one that runs.
    pub fn of(host: &Host) -> Option<Self> {
        Self::parse(&host.proc_text("sys/kernel/osrelease")?)
    }
}

/// A capability, by its number in `include/uapi/linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum Capability {
    DacReadSearch = 2,
    NetAdmin = 12,
    SysPtrace = 19,
    SysAdmin = 21,
    SysResource = 24,
    Perfmon = 38,
    Bpf = 39,
    CheckpointRestore = 40,
}

/// The effective capabilities of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Whether one is among them.
    pub fn has(self, capability: Capability) -> bool {
        self.0 >> (capability as u32) & 1 == 1
    }
}

/// `/sys/kernel/btf/vmlinux`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Btf {
    /// There, with its size.
    Readable(u64),
    /// There, and cannot be opened.
    Unreadable(String),
    /// Not there.
    Absent,
}

/// tracefs, where tracepoints have their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracefs {
    /// Mounted here.
    Mounted(String),
    /// Mounted here, and cannot be read.
    Unreadable(String),
    /// The kernel has it, nobody mounted it.
    NotMounted,
    /// The kernel has it not.
    Absent,
}

/// What lockdown forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Nothing.
    None,
    /// Changing the kernel.
    Integrity,
    /// Reading the kernel's memory too, which includes what eBPF reads.
    Confidentiality,
}

/// Whether programs and libraries can be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uprobes {
    /// This process may.
    Allowed,
    /// The kernel can, this process may not.
    NotAllowed,
    /// This kernel cannot.
    Absent,
    /// Rights cannot be read.
    Unknown,
}

/// Where cgroup v2 is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// The only hierarchy, mounted here.
    Unified(String),
    /// Beside v1 hierarchies, mounted here.
    Hybrid(String),
    /// Only v1, or none.
    Absent,
}

/// Facts. `None` is "could not be found out".
#[derive(Clone, Debug)]
pub struct Features {
    /// As `uname -r` says.
    pub release: Option<String>,
    /// Parsed from the release.
    pub version: Option<KernelVersion>,
    /// Effective user id.
    pub uid: Option<u32>,
    /// Effective capabilities.
    pub capabilities: Option<Capabilities>,
    /// In the first user namespace, where capabilities count for eBPF.
    pub first_user_namespace: Option<bool>,
    /// In the first pid namespace, where every process has a number.
    pub first_pid_namespace: Option<bool>,
    /// Type information of the kernel.
    pub btf: Btf,
    /// Ends of system calls come by one hook for all of them (see [`calls::come_by_number`]).
    pub calls_by_number: bool,
    /// Where tracepoints are described.
    pub tracefs: Tracefs,
    /// Probes in programs and libraries.
    pub uprobes: Uprobes,
    /// Kernel lockdown.
    pub lockdown: Option<Lockdown>,
    /// Whether kprobes can be placed.
    pub kprobes: Option<bool>,
    /// Whether eBPF is compiled to machine code.
    pub jit: Option<bool>,
    /// cgroup v2.
    pub cgroup: Cgroup,
    /// Bytes of locked memory allowed; `u64::MAX` is no limit.
    pub memlock: Option<u64>,
    /// The kernel's clock source.
    pub clock: Option<String>,
    /// Other agents that run, by pid.
    pub agents: Vec<u32>,
    /// Build configuration.
    pub config: Option<KernelConfig>,
}

impl Features {
    /// Looks at the host.
    pub fn of(host: &Host) -> Features {
        let release = host
            .proc_text("sys/kernel/osrelease")
            .map(|release| release.trim().to_owned());
        let config = release
            .as_deref()
            .and_then(|release| host.kernel_config(release));
        let status = host.proc_text("self/status").unwrap_or_default();
        let namespace = |name: &str, first: &str| {
            let link = std::fs::read_link(host.proc.join("self/ns").join(name)).ok()?;
            Some(link.as_os_str() == first)
        };
        let capabilities =
            status_field(&status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let own_pid = status_field(&status, "Pid").and_then(|pid| pid.parse().ok());
        let mut features = Features {
            version: release.as_deref().and_then(KernelVersion::parse),
            uid: status_field(&status, "Uid")
                .and_then(|ids| ids.split_whitespace().nth(1)?.parse().ok()),
            capabilities: capabilities.map(Capabilities),
            first_user_namespace: namespace("user", FIRST_USER_NAMESPACE),
            first_pid_namespace: namespace("pid", FIRST_PID_NAMESPACE),
            btf: btf(host),
            calls_by_number: calls_by_number(host),
            tracefs: tracefs(host),
            uprobes: Uprobes::Unknown,
            lockdown: lockdown(host, config.as_ref()),
            kprobes: kprobes(host, config.as_ref()),
            jit: jit(host, config.as_ref()),
            cgroup: cgroup(host),
            memlock: memlock(host),
            clock: host
                .sys_text("devices/system/clocksource/clocksource0/current_clocksource")
                .map(|name| name.trim().to_owned()),
            agents: agents(host, own_pid),
            release,
            config,
        };
        features.uprobes = uprobes(host, &features);
        features
    }

    /// Whether the process holds a capability that counts; `None` if that is not known.
    pub fn can(&self, capability: Capability) -> Option<bool> {
        match self.first_user_namespace {
            Some(false) => Some(false),
            _ => self.capabilities.map(|held| held.has(capability)),
        }
    }

    /// Whether eBPF programs can be loaded and attached (`CAP_BPF` and `CAP_PERFMON` since 5.8).
    pub fn can_load(&self) -> Option<bool> {
        let pair = self.can(Capability::Bpf)? && self.can(Capability::Perfmon)?;
        Some(pair || self.can(Capability::SysAdmin)?)
    }

    /// Which of the tracepoints (`category/name`) are missing; `None` if that cannot be seen.
    pub fn missing_tracepoints<'a>(&self, host: &Host, names: &[&'a str]) -> Option<Vec<&'a str>> {
        let Tracefs::Mounted(point) = &self.tracefs else {
            return None;
        };
        let events = host.resolve(point).join("events");
        Some(
            names
                .iter()
                .copied()
                .filter(|name| !events.join(name).join("id").exists())
                .collect(),
        )
    }
}

fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

/// No version tells what the kernel asks for (see `rights`), so it is asked itself where this is about
/// the host that this process runs on.
fn uprobes(host: &Host, features: &Features) -> Uprobes {
    if !host
        .sys
        .join("bus/event_source/devices/uprobe/type")
        .exists()
    {
        return Uprobes::Absent;
    }
    let may = match host.is_real() {
        true => crate::rights::can_place_uprobes(),
        false => features.can(Capability::Perfmon),
    };
    match may {
        Some(true) => Uprobes::Allowed,
        Some(false) => Uprobes::NotAllowed,
        None => Uprobes::Unknown,
    }
}

fn btf(host: &Host) -> Btf {
    let path = host.sys.join("kernel/btf/vmlinux");
    match std::fs::File::open(&path).and_then(|file| file.metadata()) {
        Ok(metadata) => Btf::Readable(metadata.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Btf::Absent,
        Err(error) => Btf::Unreadable(error.to_string()),
    }
}

fn calls_by_number(host: &Host) -> bool {
    std::fs::read(host.sys.join("kernel/btf/vmlinux")).is_ok_and(|bytes| {
        super::btf::Btf::parse(bytes).is_ok_and(|btf| calls::come_by_number(&btf))
    })
}

fn tracefs(host: &Host) -> Tracefs {
    let mounted = host.mounts("tracefs").into_iter().next();
    // debugfs brings tracefs along at its `tracing` directory.
    let point = mounted.or_else(|| {
        let points = host
            .mounts("debugfs")
            .into_iter()
            .map(|point| format!("{point}/tracing"));
        points
            .into_iter()
            .find(|point| host.resolve(point).join("events").exists())
    });
    match point {
        Some(point) if host.resolve(&point).join("events").read_dir().is_ok() => {
            Tracefs::Mounted(point)
        }
        Some(point) => Tracefs::Unreadable(point),
        None => {
            let known = host.proc_text("filesystems").unwrap_or_default();
            match known
                .lines()
                .any(|line| line.split_whitespace().next_back() == Some("tracefs"))
            {
                true => Tracefs::NotMounted,
                false => Tracefs::Absent,
            }
        }
    }
}

fn lockdown(host: &Host, config: Option<&KernelConfig>) -> Option<Lockdown> {
    let level = |name: &str| match name {
        "none" => Some(Lockdown::None),
        "integrity" => Some(Lockdown::Integrity),
        "confidentiality" => Some(Lockdown::Confidentiality),
        _ => None,
    };
    if let Some(shown) = host.sys_text("kernel/security/lockdown") {
        // The level in force stands in brackets: `none [integrity] confidentiality`.
        let chosen = shown
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'));
        return chosen.and_then(|(name, _)| level(name));
    }
    let forced = config.and_then(|config| match () {
        () if config.has("LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY") => {
            Some(Lockdown::Confidentiality)
        }
        () if config.has("LOCK_DOWN_KERNEL_FORCE_INTEGRITY") => Some(Lockdown::Integrity),
        () if !config.has("SECURITY_LOCKDOWN_LSM") => Some(Lockdown::None),
        () => None,
    });
    let cmdline = host.proc_text("cmdline").unwrap_or_default();
    let asked = cmdline
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("lockdown="))
        .filter_map(level)
        .next_back();
    // Lockdown can only be raised, so the stricter of the two is in force.
    let rank = |level: &Lockdown| *level as u8;
    [forced, asked].into_iter().flatten().max_by_key(rank)
}

fn kprobes(host: &Host, config: Option<&KernelConfig>) -> Option<bool> {
    if host.sys.join("bus/event_source/devices/kprobe").exists() {
        return Some(true);
    }
    // A kernel without the perf device has no way to place one from here, whatever it was built with.
    match host.sys.join("bus/event_source/devices").exists() {
        true => Some(false),
        false => config.map(|config| config.has("KPROBES")),
    }
}

fn jit(host: &Host, config: Option<&KernelConfig>) -> Option<bool> {
    if config.is_some_and(|config| config.has("BPF_JIT_ALWAYS_ON")) {
        return Some(true);
    }
    let enabled = host.proc_text("sys/net/core/bpf_jit_enable");
    enabled
        .map(|value| value.trim() != "0")
        .or_else(|| config.map(|config| config.has("BPF_JIT_DEFAULT_ON")))
}

/// Where cgroup v2 is mounted.
pub fn cgroup(host: &Host) -> Cgroup {
    match (
        host.mounts("cgroup2").into_iter().next(),
        host.mounts("cgroup").is_empty(),
    ) {
        (Some(point), true) => Cgroup::Unified(point),
        (Some(point), false) => Cgroup::Hybrid(point),
        (None, _) => Cgroup::Absent,
    }
}

fn memlock(host: &Host) -> Option<u64> {
    let limits = host.proc_text("self/limits")?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

/// Processes that run `tracer-agent run` for the whole host, `own_pid` apart.
fn agents(host: &Host, own_pid: Option<u32>) -> Vec<u32> {
    let Ok(entries) = host.proc.read_dir() else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut agents: Vec<u32> = pids
        .filter(|pid| Some(*pid) != own_pid)
        .filter(|pid| {
            host.proc_text(&format!("{pid}/comm"))
                .is_some_and(|comm| comm.trim() == "tracer-agent")
        })
        .filter(|pid| {
            let arguments = host
                .proc_text(&format!("{pid}/cmdline"))
                .unwrap_or_default();
            let mut arguments = arguments.split('\0').skip(1);
            // Behind `--` stands a command, which is all that such an agent traces.
            arguments.next() == Some("run") && !arguments.any(|argument| argument == "--")
        })
        .collect();
    agents.sort_unstable();
    agents
}
