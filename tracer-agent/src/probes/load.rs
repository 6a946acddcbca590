//! Loads the eBPF object, hands it this kernel's offsets and attaches its programs.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData, PerCpuArray, ProgramArray, RingBuf};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use rustc_hash::FxHashSet;
use tracer_common::abi::{connection_entry, drop_reason, setting};

use super::reader::Reader;
use super::runtime::RuntimeProbes;
use super::tls::TlsProbes;
use crate::discover::Runtime;
use crate::kernel::btf::Btf;
use crate::kernel::offsets::{self, OffsetError};
use crate::telemetry::metrics::ProgramCost;

/// The kernel side, as `cargo xtask build` made it; empty when it was not built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer.bpf.o"));

/// Size of the object built in; `None` without one.
pub fn object_size() -> Option<usize> {
    (!OBJECT.is_empty()).then_some(OBJECT.len())
}

/// What can be said before anything is touched: is there a kernel side, may it be loaded?
pub fn check_rights() -> Result<(), LoadError> {
    match (OBJECT.is_empty(), rights()) {
        (true, _) => Err(LoadError::NotBuilt),
        (false, false) => Err(LoadError::NotPermitted),
        (false, true) => Ok(()),
    }
}

/// Why nothing can be traced.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Plain `cargo build`.
    #[error("this binary was built without its kernel side; build it with `cargo xtask build`")]
    NotBuilt,
    /// Missing rights.
    #[error("loading eBPF programs is not permitted; run as root (see `tracer-agent doctor`)")]
    NotPermitted,
    /// No usable type information.
    #[error(transparent)]
    Offsets(#[from] OffsetError),
    /// The object or a map was refused.
    #[error("cannot load the eBPF object; see `tracer-agent doctor`")]
    Object(#[from] aya::EbpfError),
    /// A program was refused.
    #[error("cannot {action} eBPF program {program}")]
    Program {
        /// `load` or `attach`.
        action: &'static str,
        /// Its name.
        program: String,
        /// Why, with the verifier's log.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// Nothing could be attached.
    #[error("no data syscall could be attached: {0}; is tracefs mounted at /sys/kernel/tracing?")]
    NothingAttached(String),
    /// The object and the agent do not fit.
    #[error("the eBPF object has no {0}; rebuild with `cargo xtask build`")]
    Mismatch(&'static str),
    /// A map operation failed.
    #[error("cannot set up an eBPF map")]
    Map(#[from] aya::maps::MapError),
}

/// What the caller decides before load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the ring, bytes; rounded up to a power of two.
    pub ring_bytes: u32,
    /// Connections tracked at a time.
    pub max_connections: u32,
    /// Have the kernel measure programs, which costs every one of the host some 50 ns a run.
    pub bpf_stats: bool,
    /// This process, never traced.
    pub agent_tgid: u32,
    /// What can be changed later.
    pub switches: Switches,
}

/// What the kernel side looks at by itself; can be changed while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// Ask the process table for every call.
    pub policy_active: bool,
    /// `abi::policy` flags for processes without an entry.
    pub policy_default: u32,
    /// Some ports are ignored.
    pub ports_active: bool,
}

impl Switches {
    /// The default goes first: between two of the writes nothing that is traced before and after
    /// must be overlooked.
    fn write<M: std::borrow::BorrowMut<MapData>>(
        self,
        settings: &mut Array<M, u32>,
    ) -> Result<(), aya::maps::MapError> {
        let Switches {
            policy_active,
            policy_default,
            ports_active,
        } = self;
        settings.set(setting::POLICY_DEFAULT, policy_default, 0)?;
        settings.set(setting::POLICY_ACTIVE, u32::from(policy_active), 0)?;
        settings.set(setting::PORTS_ACTIVE, u32::from(ports_active), 0)
    }
}

impl Options {
    /// What the kernel accepts: a power of two, of pages.
    fn ring_size(&self) -> u32 {
        self.ring_bytes
            .clamp(64 * 1024, 1 << 30)
            .next_power_of_two()
    }
}

/// Programs that are attached to several tracepoints, by the first of them; all others are named
/// after theirs.
const SHARED: &[&[&str]] = &[
    &[
        "sys_enter_write",
        "sys_enter_writev",
        "sys_enter_pwritev2",
        "sys_enter_sendto",
        "sys_enter_sendmsg",
        "sys_enter_sendmmsg",
        "sys_enter_sendfile64",
    ],
    &[
        "sys_exit_epoll_wait",
        "sys_exit_epoll_pwait",
        "sys_exit_epoll_pwait2",
    ],
    &["sys_exit_poll", "sys_exit_ppoll"],
    &["sys_exit_select", "sys_exit_pselect6"],
];

/// Tracepoints that not every architecture, or not every kernel, has: calls of other names do their
/// work there.
const OPTIONAL: &[&str] = &[
    "sys_exit_epoll_wait",
    "sys_exit_epoll_pwait2",
    "sys_exit_poll",
    "sys_exit_select",
];

/// Programs reached by tail call, in the order of their indexes in the `PROGRAMS` map.
const TAIL_CALLED: [&str; 4] = ["window", "head", "chunks", "frames"];

/// The loaded and attached kernel side; everything is detached when it is dropped.
pub struct Kernel {
    /// Shared with the thread that attaches probes to TLS libraries.
    ebpf: Arc<Mutex<Ebpf>>,
    runtimes: RuntimeProbes,
    /// While it is open the kernel measures every program of the host.
    measuring: Option<OwnedFd>,
    ring_bytes: u32,
    #[cfg(feature = "ebpf-log")]
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    /// Programs attached, and what could not be with the reason.
    pub attached: Vec<String>,
    /// What this kernel does not have: hook and reason.
    pub missing: Vec<(String, String)>,
}

/// Verifier's work on one program, for `verify`.
pub struct Verified {
    /// Program name.
    pub name: String,
    /// Instructions the verifier looked at.
    pub instructions: Option<u32>,
    /// Time the load took.
    pub elapsed: Duration,
}

impl Kernel {
    /// Loads all programs without attaching any: what the verifier says of them.
    pub fn verify(options: &Options) -> Result<Vec<Verified>, LoadError> {
        let mut ebpf = open(options)?;
        let mut verified = load_programs(&mut ebpf, Set::Always)?;
        verified.extend(load_programs(&mut ebpf, Set::Tls)?);
        Ok(verified)
    }

    /// Loads and attaches.
    pub fn start(options: &Options) -> Result<Self, LoadError> {
        let mut ebpf = open(options)?;
        load_programs(&mut ebpf, Set::Always)?;
        fill_tail_calls(&mut ebpf, "PROGRAMS", TAIL_CALLED)?;
        let mut settings: Array<_, u32> = ebpf
            .map_mut("SETTINGS")
            .ok_or(LoadError::Mismatch("SETTINGS"))?
            .try_into()?;
        options.switches.write(&mut settings)?;
        #[cfg(feature = "ebpf-log")]
        let logger = aya_log::EbpfLogger::init(&mut ebpf)
            .map_err(|error| tracing::warn!(%error, "no debug output of the kernel side"))
            .ok();
        let mut kernel = Kernel {
            #[cfg(feature = "ebpf-log")]
            logger,
            ebpf: Arc::new(Mutex::new(ebpf)),
            runtimes: RuntimeProbes::default(),
            measuring: if options.bpf_stats { measure() } else { None },
            ring_bytes: options.ring_size(),
            attached: Vec::new(),
            missing: Vec::new(),
        };
        kernel.attach()?;
        Ok(kernel)
    }

    fn attach(&mut self) -> Result<(), LoadError> {
        let mut ebpf = lock(&self.ebpf);
        for (name, program) in ebpf.programs_mut() {
            match program {
                // Attached to files that use them: see `TlsProbes` and `RuntimeProbes`.
                Program::UProbe(_) => {}
                Program::TracePoint(_) if TAIL_CALLED.contains(&name) => {}
                Program::TracePoint(point) => {
                    let own = [name];
                    let shared = SHARED.iter().find(|points| points.first() == Some(&name));
                    for target in shared.copied().unwrap_or(&own) {
                        let category = if target.starts_with("sched_") {
                            "sched"
                        } else {
                            "syscalls"
                        };
                        match point.attach(category, target) {
                            Ok(_) => self.attached.push((*target).to_owned()),
                            Err(_) if OPTIONAL.contains(target) => {}
                            Err(error) => self.missing.push(((*target).to_owned(), chain(&error))),
                        }
                    }
                }
                Program::BtfTracePoint(point) => match point.attach() {
                    Ok(_) => self.attached.push(name.to_owned()),
                    Err(error) => self.missing.push((name.to_owned(), chain(&error))),
                },
                _ => return Err(LoadError::Mismatch("known program type")),
            }
        }
        if !self
            .attached
            .iter()
            .any(|name| name.starts_with("sys_exit_read"))
        {
            let why = self
                .missing
                .first()
                .map_or(String::new(), |(hook, why)| format!("{hook}: {why}"));
            return Err(LoadError::NothingAttached(why));
        }
        Ok(())
    }

    /// Attaches what a runtime needs to a process's program, once per program; returns the kind that
    /// the process then is of (`abi::kind_of_process`). Without `wait`, `None` while a TLS library
    /// gets its probes or loses them, which may take long.
    pub fn follow(&mut self, runtime: Runtime, exe: &Path, wait: bool) -> Option<u32> {
        if let Runtime::Kind(kind) = runtime {
            return Some(kind);
        }
        let mut ebpf = match self.ebpf.try_lock() {
            Ok(ebpf) => ebpf,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if wait => lock(&self.ebpf),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(self.runtimes.follow(&mut ebpf, runtime, exe))
    }

    /// What each program cost since it was loaded; empty unless the kernel counts it, because this
    /// was asked to or because the host always does. `None` while a TLS library gets its probes.
    pub fn program_costs(&self) -> Option<Vec<ProgramCost>> {
        let counted_anyway = || {
            std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled")
                .is_ok_and(|text| text.trim() == "1")
        };
        if self.measuring.is_none() && !counted_anyway() {
            return Some(Vec::new());
        }
        // While a TLS library gets its probes: nobody waits here.
        let ebpf = self.ebpf.try_lock().ok()?;
        let costs = ebpf.programs().filter_map(|(name, program)| {
            let info = match program {
                Program::TracePoint(point) => point.info(),
                Program::BtfTracePoint(point) => point.info(),
                _ => return None,
            };
            let info = info.ok()?;
            Some(ProgramCost {
                program: name.to_owned(),
                runs: info.run_count(),
                run_ns: u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX),
            })
        });
        Some(costs.collect())
    }

    /// Passes the kernel side's debug output on, where it was compiled in.
    pub fn flush_log(&mut self) {
        #[cfg(feature = "ebpf-log")]
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// The event ring; to be taken once.
    pub fn reader(&mut self) -> Result<Reader, LoadError> {
        let map = lock(&self.ebpf)
            .take_map("EVENTS")
            .ok_or(LoadError::Mismatch("EVENTS map"))?;
        Ok(Reader::new(
            RingBuf::try_from(map)?,
            self.ring_bytes as usize,
        ))
    }

    /// What attaches probes to TLS libraries; to be taken once.
    pub fn tls(&mut self) -> Result<TlsProbes, LoadError> {
        TlsProbes::new(Arc::clone(&self.ebpf))
    }

    /// The maps that user space reads and writes while tracing; to be taken once.
    pub fn maps(&mut self) -> Result<Maps, LoadError> {
        let mut ebpf = lock(&self.ebpf);
        let mut take = |name| ebpf.take_map(name).ok_or(LoadError::Mismatch(name));
        Ok(Maps {
            drops: PerCpuArray::try_from(take("DROPS")?)?,
            counts: PerCpuArray::try_from(take("COUNTS")?)?,
            processes: HashMap::try_from(take("PROCESSES")?)?,
            ports: HashMap::try_from(take("IGNORED_PORTS")?)?,
            settings: Array::try_from(take("SETTINGS")?)?,
            connections: HashMap::try_from(take("CONNECTIONS")?)?,
            kinds: HashMap::try_from(take("KINDS")?)?,
        })
    }
}

/// Maps shared with the kernel side: the two doors from user space (policy) and its counters.
pub struct Maps {
    drops: PerCpuArray<MapData, u64>,
    counts: PerCpuArray<MapData, u64>,
    processes: HashMap<MapData, u32, u32>,
    ports: HashMap<MapData, u32, u8>,
    settings: Array<MapData, u32>,
    connections: HashMap<MapData, u64, ConnectionValue>,
    kinds: HashMap<MapData, u32, u32>,
}

/// Only update what is there (`BPF_EXIST`).
const BPF_EXIST: u64 = 2;

/// Value of the kernel's connection table; only its id (the first field) is of interest here.
type ConnectionValue = [u64; connection_entry::WORDS];

/// Counters of the kernel side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelCounts {
    /// Records submitted.
    pub submitted: u64,
    /// Connections not parsed: TLS, HTTP/2, anything else.
    pub unparsed_connections: [(&'static str, u64); 3],
    /// Most bytes that ever were pending in the ring.
    pub ring_highest: u64,
    /// By `abi::drop_reason`.
    pub drops: [u64; drop_reason::COUNT as usize],
}

impl Maps {
    /// Sums the per-CPU counters.
    pub fn counts(&self) -> Result<KernelCounts, aya::maps::MapError> {
        let sum = |map: &PerCpuArray<MapData, u64>, index| {
            Ok::<u64, aya::maps::MapError>(map.get(&index, 0)?.iter().sum())
        };
        let mut drops = [0; drop_reason::COUNT as usize];
        for (index, slot) in drops.iter_mut().enumerate() {
            *slot = sum(&self.drops, index as u32)?;
        }
        Ok(KernelCounts {
            submitted: sum(&self.counts, 0)?,
            unparsed_connections: [
                ("tls", sum(&self.counts, 1)?),
                ("http2", sum(&self.counts, 2)?),
                ("other", sum(&self.counts, 3)?),
            ],
            ring_highest: self.counts.get(&4, 0)?.iter().copied().max().unwrap_or(0),
            drops,
        })
    }

    /// Sets one process's policy (`abi::policy` flags).
    pub fn set_process(&mut self, tgid: u32, flags: u32) -> Result<(), aya::maps::MapError> {
        self.processes.insert(tgid, flags, 0)
    }

    /// Says how a process runs what it serves (`abi::kind_of_process`).
    pub fn set_kind(&mut self, tgid: u32, kind: u32) -> Result<(), aya::maps::MapError> {
        self.kinds.insert(tgid, kind, 0)
    }

    /// Forgets a process that ended.
    pub fn remove_process(&mut self, tgid: u32) {
        // Not having had an entry is the usual case.
        let _ = self.processes.remove(&tgid);
    }

    /// Has the kernel side follow other switches from now on.
    pub fn switch(&mut self, switches: Switches) -> Result<(), aya::maps::MapError> {
        switches.write(&mut self.settings)
    }

    /// Looks at all ports but these, local and remote; applies to connections made from now on.
    pub fn ignore_ports(&mut self, ports: &[u16]) -> Result<(), aya::maps::MapError> {
        let keys = |port: u16| [u32::from(port) << 1, u32::from(port) << 1 | 1];
        let wanted: FxHashSet<u32> = ports.iter().copied().flat_map(keys).collect();
        let present: Vec<u32> = self.ports.keys().filter_map(Result::ok).collect();
        for key in present.iter().filter(|key| !wanted.contains(key)) {
            // Gone in between is as good.
            let _ = self.ports.remove(key);
        }
        for key in wanted {
            self.ports.insert(key, 1, 0)?;
        }
        Ok(())
    }

    /// Takes every connection out of the kernel's table that was there before `time_ns` and is not
    /// `known`: what is not told of was not looked at, so where it stands is not known either. If it
    /// speaks again it is joined in the middle.
    pub fn forget_connections(&mut self, time_ns: u64, known: impl Fn(u64) -> bool) {
        let sockets: Vec<u64> = self.connections.keys().filter_map(Result::ok).collect();
        for socket in sockets {
            let old = self.connections.get(&socket, 0).is_ok_and(|value| {
                value[connection_entry::SINCE_WORD] < time_ns && !known(value[0])
            });
            if old {
                let _ = self.connections.remove(&socket);
            }
        }
    }

    /// True when a connection is in the kernel's table.
    pub fn tracks_connection(&self, socket: u64, id: u64) -> bool {
        self.connections
            .get(&socket, 0)
            .is_ok_and(|value| value[0] == id)
    }

    /// Takes a connection out of the kernel's table, if it still is the one meant.
    pub fn forget_connection(&mut self, socket: u64, id: u64) {
        if self.tracks_connection(socket, id) {
            let _ = self.connections.remove(&socket);
        }
    }

    /// Has a connection only counted from now on, if it still is the one meant. A call that is under
    /// way may overwrite this; then the connection is met again and this is done again.
    pub fn ignore_connection(&mut self, socket: u64, id: u64) {
        if let Ok(mut value) = self.connections.get(&socket, 0)
            && value[0] == id
        {
            let shift = 8 * (connection_entry::VERDICT_BYTE % 8);
            let word = &mut value[connection_entry::VERDICT_BYTE / 8];
            *word = *word & !(0xff << shift) | u64::from(connection_entry::IGNORED) << shift;
            // Gone in between is as good.
            let _ = self.connections.insert(socket, value, BPF_EXIST);
        }
    }
}

/// Has the kernel measure programs until the descriptor is closed (since Linux 5.8).
fn measure() -> Option<OwnedFd> {
    let measuring = aya::sys::enable_stats(aya::sys::Stats::RunTime);
    measuring
        .map_err(|error| {
            let why = chain(&error);
            tracing::warn!(%why, "the kernel does not measure eBPF programs: no run times in the metrics");
        })
        .ok()
}

fn open(options: &Options) -> Result<Ebpf, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NotBuilt);
    }
    let offsets = offsets::resolve(&Btf::of_running_kernel().map_err(OffsetError::from)?)?;
    let helper = u32::from(kernel_version() >= (5, 15));
    let ring = options.ring_size();
    let wake = u64::from(ring / 8);
    let mut loader = EbpfLoader::new();
    for (name, value) in &offsets {
        loader.override_global(name, value, true);
    }
    loader
        .override_global("TASK_REGS_HELPER", &helper, true)
        .override_global("AGENT_TGID", &options.agent_tgid, true)
        .override_global("WAKE_BYTES", &wake, true)
        .map_max_entries("EVENTS", ring)
        .map_max_entries("CONNECTIONS", options.max_connections);
    loader.load(OBJECT).map_err(|error| {
        if is_permission(&error) {
            LoadError::NotPermitted
        } else {
            LoadError::Object(error)
        }
    })
}

/// Programs that are loaded together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// With the agent's start.
    Always,
    /// When the first TLS library is met.
    Tls,
}

impl Set {
    /// That of the program of this name.
    fn of(name: &str) -> Self {
        if name.starts_with("tls_") || name.starts_with("go_tls_") {
            Set::Tls
        } else {
            Set::Always
        }
    }
}

/// Loads one set of the programs.
pub(super) fn load_programs(ebpf: &mut Ebpf, set: Set) -> Result<Vec<Verified>, LoadError> {
    let btf = aya::Btf::from_sys_fs()
        .map_err(|error| LoadError::Object(aya::EbpfError::BtfError(error)))?;
    let mut verified = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        if Set::of(name) != set {
            continue;
        }
        let start = Instant::now();
        match program {
            Program::UProbe(probe) => match probe.load() {
                // A first use of them that failed half-way.
                Err(ProgramError::AlreadyLoaded) => Ok(()),
                result => result,
            },
            Program::TracePoint(point) => point.load(),
            Program::BtfTracePoint(point) => point.load(name, &btf),
            _ => return Err(LoadError::Mismatch("known program type")),
        }
        .map_err(|source| {
            if is_permission(&source) {
                LoadError::NotPermitted
            } else {
                failed("load", name, source)
            }
        })?;
        let instructions = match program {
            Program::TracePoint(point) => point.info(),
            Program::BtfTracePoint(point) => point.info(),
            Program::UProbe(probe) => probe.info(),
            _ => continue,
        }
        .ok()
        .and_then(|info| info.verified_instruction_count());
        verified.push(Verified {
            name: name.to_owned(),
            instructions,
            elapsed: start.elapsed(),
        });
    }
    Ok(verified)
}

/// Fills a map of programs to be tail-called, which all are of one type.
pub(super) fn fill_tail_calls(
    ebpf: &mut Ebpf,
    map: &'static str,
    names: [&'static str; 4],
) -> Result<(), LoadError> {
    for (index, name) in names.into_iter().enumerate() {
        let program = ebpf.program(name).ok_or(LoadError::Mismatch(name))?;
        let fd = match program {
            Program::TracePoint(point) => point.fd(),
            Program::UProbe(probe) => probe.fd(),
            _ => return Err(LoadError::Mismatch(name)),
        };
        let fd = fd.map_err(|source| failed("load", name, source))?;
        let fd = fd.try_clone().map_err(|_| LoadError::Mismatch(name))?;
        let programs = ebpf.map_mut(map).ok_or(LoadError::Mismatch(map))?;
        let mut programs: ProgramArray<_> = programs.try_into()?;
        programs.set(index as u32, &fd, 0)?;
    }
    Ok(())
}

pub(super) fn lock(ebpf: &Mutex<Ebpf>) -> MutexGuard<'_, Ebpf> {
    ebpf.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn failed(
    action: &'static str,
    program: &str,
    source: aya::programs::ProgramError,
) -> LoadError {
    LoadError::Program {
        action,
        program: program.to_owned(),
        source,
    }
}

fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io
                .raw_os_error()
                .is_some_and(|code| code == libc::EPERM || code == libc::EACCES)
            && !rights()
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// True when this process may load eBPF: then EACCES is the verifier's word, not a missing right.
fn rights() -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    const CAP_PERFMON: u64 = 1 << 38;
    const CAP_BPF: u64 = 1 << 39;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    effective & CAP_SYS_ADMIN != 0 || effective & (CAP_BPF | CAP_PERFMON) == CAP_BPF | CAP_PERFMON
}

/// Major and minor version of the running kernel.
fn kernel_version() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}
