//! Opens the eBPF object, hands it this kernel's offsets and has the verifier take its programs.

use std::time::{Duration, Instant};

use aya::maps::ProgramArray;
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};

use super::error::{LoadError, failed, is_permission};
use super::object::{self, Changes};
use super::parallel;
use super::propagate::{OPTION_PROGRAMS, PropagateOptions};
use crate::kernel::btf::Btf;
use crate::kernel::offsets::{self, OffsetError};
use crate::kernel::tier::{Choice, Tier};
use crate::kernel::{calls, prepare, uring};

/// The kernel side, as `cargo xtask build` made it; empty when it was not built.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer.bpf.o"));

/// Size of the object built in; `None` without one.
pub fn object_size() -> Option<usize> {
    (!OBJECT.is_empty()).then_some(OBJECT.len())
}

/// What can be said before anything is touched: is there a kernel side, may it be loaded?
pub fn check_rights() -> Result<(), LoadError> {
    match (OBJECT.is_empty(), crate::rights::can_trace()) {
        (true, _) => Err(LoadError::NotBuilt),
        (false, false) => Err(LoadError::NotPermitted),
        (false, true) => Ok(()),
    }
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
    /// Writes trace context into requests; it has to be started too.
    pub propagate: Option<PropagateOptions>,
    /// Sees into TLS libraries.
    pub tls: bool,
    /// Where system calls are seen.
    pub tier: Choice,
}

impl Options {
    /// What the kernel accepts: a power of two, of pages.
    pub(super) fn ring_size(&self) -> u32 {
        self.ring_bytes
            .clamp(64 * 1024, 1 << 30)
            .next_power_of_two()
    }
}

/// Programs reached by tail call, in the order of their indexes in the `PROGRAMS` map.
pub(super) const TAIL_CALLED: [&str; 5] = ["window", "head", "chunks", "frames", "streams"];

/// Maps that are large only where trace context is written.
const PROPAGATION_MAPS: [&str; 9] = [
    "BLOCKS",
    "SOCKETS",
    "FLOWS",
    "FRAMINGS",
    "PLANS",
    "REQUEST_CONTEXTS",
    "LEAVING",
    "OPTIONS",
    "RECEIVED",
];

/// Tables that give up what was unused for longest, with their sizes on a host of a few CPUs. The kernel hands
/// out free entries of such a table to each CPU by the hundred, so it has to grow with them: else a CPU takes what
/// others use while some have free ones.
const SHARED_BY_CPUS: [(&str, u32); 14] = [
    ("OPENERS", 1024),
    ("KNOWN_FILES", 1024),
    ("SITES", 1024),
    ("WAKES", 1024),
    ("WAKERS", 1024),
    ("WORKERS", 1024),
    ("STREAMS", 2048),
    ("DUE", 1024),
    ("HANDED", 2048),
    ("CONTEXTS", 4096),
    ("CHANNELS", 3072),
    ("POOLS", 3072),
    ("TLS_THREADS", 3584),
    ("HELLOS", 256),
];
/// Entries of such a table for each CPU that there may be, at least, and for all of them at most.
const PER_CPU: u32 = 256;
const ALL_CPUS: u32 = 16_384;

/// Types of the running kernel, as this crate reads them.
pub(super) fn types() -> Result<Btf, LoadError> {
    Ok(Btf::of_running_kernel().map_err(OffsetError::from)?)
}

/// Opens the object for a kernel with these types; makes the maps.
pub(super) fn open(options: &Options, tier: Tier, types: &Btf) -> Result<Ebpf, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NotBuilt);
    }
    let offsets = offsets::resolve(types)?;
    let hands_over = u32::from(tier == Tier::Fast);
    let skips = u32::from(calls::come_by_number(types));
    let helper = u32::from(kernel_version() >= (5, 15));
    let cookies = u32::from(has_cookies());
    let ring = options.ring_size();
    let wake = u64::from(ring / 8);
    let propagates = u32::from(options.propagate.is_some());
    let [secret_0, secret_1] = options.propagate.map_or([0; 2], |options| options.secret);
    let mut loader = EbpfLoader::new();
    let sees_uring = sees_io_uring();
    for (name, value) in &offsets {
        if *name == "URING_OPCODE" && !sees_uring {
            continue;
        }
        loader.override_global(name, value, true);
    }
    let cpus = aya::util::nr_cpus().map_or(1, |cpus| u32::try_from(cpus).unwrap_or(1));
    for (map, entries) in SHARED_BY_CPUS {
        loader.map_max_entries(map, entries.max(cpus.saturating_mul(PER_CPU).min(ALL_CPUS)));
    }
    if options.propagate.is_none() {
        for map in PROPAGATION_MAPS {
            loader.map_max_entries(map, 64);
        }
    }
    if tier == Tier::Base {
        loader.map_max_entries("LEFT_BEHIND", 1);
    }
    loader
        .override_global("HANDS_OVER", &hands_over, true)
        .override_global("PROPAGATES", &propagates, true)
        .override_global("ID_SECRET_0", &secret_0, true)
        .override_global("ID_SECRET_1", &secret_1, true)
        .override_global("SKIPS_ENTRIES", &skips, true)
        .override_global("WRITE_CALL", &(libc::SYS_write as u32), true)
        .override_global("COMPAT", &offsets::COMPAT.1, true)
        .override_global("TASK_REGS_HELPER", &helper, true)
        .override_global("COOKIES", &cookies, true)
        .override_global("AGENT_TGID", &options.agent_tgid, true)
        .override_global("WAKE_BYTES", &wake, true)
        .map_max_entries("EVENTS", ring)
        .map_max_entries("CONNECTIONS", options.max_connections);
    let changes = Changes {
        plain_sockets: options.propagate.is_none(),
        allocate_at_once: kernel_version() < ALLOCATES,
    };
    let object = object::with(OBJECT, changes).ok_or(LoadError::Mismatch("table of maps"))?;
    let ebpf = loader.load(&object).map_err(|error| {
        if is_permission(&error) {
            LoadError::NotPermitted
        } else {
            LoadError::Object(error)
        }
    })?;
    Ok(ebpf)
}

/// Whether the kernel tells which request of io_uring was completed.
pub(super) fn sees_io_uring() -> bool {
    uring::is_told(std::path::Path::new(prepare::TRACEFS))
}

/// Since this version maps may allocate their entries while programs like these run (kernel commit
/// ee4ed53c5eb6). Before it the kernel allows that and warns of it in its log, which ends a host that has
/// `panic_on_warn`.
const ALLOCATES: (u32, u32) = (6, 1);

/// Programs that are loaded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// With the agent's start.
    Always,
    /// With it, if TLS is seen into.
    Tls,
    /// When the first program of Node's is seen: a fifth of the verifier's work, which hosts without one need not wait for.
    Node,
    /// When trace context is written into requests.
    Propagate,
    /// Of these, what takes a kernel with TCP options of programs.
    TcpOptions,
    /// With the start, where all system calls come by one hook (see `probes::raw`).
    Raw,
}

impl Set {
    /// That of the program of this name.
    pub(super) fn of(name: &str) -> Self {
        if OPTION_PROGRAMS.contains(&name) {
            Set::TcpOptions
        } else if name.starts_with("raw_sys_") {
            Set::Raw
        } else if name.starts_with("propagate_") {
            Set::Propagate
        } else if name.starts_with("tls_") || name.starts_with("go_tls_") {
            Set::Tls
        } else if name.starts_with("node_") || name.starts_with("uv_") {
            Set::Node
        } else {
            Set::Always
        }
    }
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

/// Loads one set of the programs.
pub(super) fn load_programs(ebpf: &mut Ebpf, set: Set) -> Result<Vec<Verified>, LoadError> {
    load_sets(ebpf, &[set])
        .into_iter()
        .map(|(_, result)| result)
        .collect()
}

/// Loads programs of several sets at once; says of each which set it is of.
pub(super) fn load_sets(ebpf: &mut Ebpf, sets: &[Set]) -> Vec<(Set, Result<Verified, LoadError>)> {
    let btf = match kernel_btf() {
        Ok(btf) => btf,
        Err(error) => return vec![(sets.first().copied().unwrap_or(Set::Always), Err(error))],
    };
    let programs = ebpf.programs_mut();
    let mut programs: Vec<_> = programs
        .map(|(name, program)| (Set::of(name), name, program))
        .filter(|(set, ..)| sets.contains(set))
        .collect();
    // Those that take long go first, so that none is left for the end.
    let is_long = |name: &str| TAIL_CALLED.iter().any(|long| name.ends_with(long));
    programs.sort_by_key(|(_, name, _)| !is_long(name));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    parallel::each(programs, threads.min(8), |(set, name, program)| {
        (set, load_program(program, &btf, name))
    })
}

/// The running kernel's types.
fn kernel_btf() -> Result<aya::Btf, LoadError> {
    aya::Btf::from_sys_fs().map_err(|error| LoadError::Object(aya::EbpfError::BtfError(error)))
}

/// Loads one program.
fn load_program(program: &mut Program, btf: &aya::Btf, name: &str) -> Result<Verified, LoadError> {
    let start = Instant::now();
    match program {
        Program::UProbe(probe) => probe.load(),
        Program::TracePoint(point) => point.load(),
        Program::BtfTracePoint(point) => point.load(name, btf),
        Program::SkMsg(program) => program.load(),
        Program::SockOps(program) => program.load(),
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
        Program::SkMsg(program) => program.info(),
        Program::SockOps(program) => program.info(),
        _ => return Err(LoadError::Mismatch("known program type")),
    }
    .ok()
    .and_then(|info| info.verified_instruction_count());
    Ok(Verified {
        name: name.to_owned(),
        instructions,
        elapsed: start.elapsed(),
    })
}

/// Fills a map of programs to be tail-called, which all are of one type.
pub(super) fn fill_tail_calls(
    ebpf: &mut Ebpf,
    map: &'static str,
    names: [&'static str; 5],
) -> Result<(), LoadError> {
    (0..)
        .zip(names)
        .try_for_each(|(index, name)| fill_tail_call(ebpf, map, index, name))
}

/// The same of one program.
pub(super) fn fill_tail_call(
    ebpf: &mut Ebpf,
    map: &'static str,
    index: u32,
    name: &'static str,
) -> Result<(), LoadError> {
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
    Ok(programs.set(index, &fd, 0)?)
}

/// Whether a probe can be given a number that its program reads (kernel commit 7adfc6c9b315).
pub(super) fn has_cookies() -> bool {
    kernel_version() >= (5, 15)
}

/// Major and minor version of the running kernel.
fn kernel_version() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
