//! Opens the eBPF object, hands it this kernel's offsets and has the verifier take its programs.

use std::time::{Duration, Instant};

use aya::maps::ProgramArray;
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::error::{LoadError, failed, is_permission};
use super::maps::Switches;
use super::propagate::{OPTION_PROGRAMS, PropagateOptions};
use crate::kernel::btf::Btf;
use crate::kernel::offsets::{self, OffsetError};
/// The kernel side, as `cargo xtask build` made it; empty when it was not built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tracer.bpf.o"));

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
    /// What can be changed later.
    pub switches: Switches,
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
pub(super) const TAIL_CALLED: [&str; 4] = ["window", "head", "chunks", "frames"];

/// Maps that are large only where trace context is written.
const PROPAGATION_MAPS: [&str; 7] = [
    "SOCKETS",
    "FLOWS",
    "PLANS",
    "REQUEST_CONTEXTS",
    "LEAVING",
    "OPTIONS",
    "RECEIVED",
];

/// Of them those of sockets.
const SOCKET_TABLES: [&str; 2] = ["SOCKETS", "SELFTEST_SOCKETS"];

pub(super) fn open(options: &Options) -> Result<Ebpf, LoadError> {
    if OBJECT.is_empty() {
        return Err(LoadError::NotBuilt);
    }
    let offsets = offsets::resolve(&Btf::of_running_kernel().map_err(OffsetError::from)?)?;
    let helper = u32::from(kernel_version() >= (5, 15));
    let cookies = u32::from(has_cookies());
    let ring = options.ring_size();
    let wake = u64::from(ring / 8);
    let propagates = u32::from(options.propagate.is_some());
    let [secret_0, secret_1] = options.propagate.map_or([0; 2], |options| options.secret);
    let mut loader = EbpfLoader::new();
    for (name, value) in &offsets {
        loader.override_global(name, value, true);
    }
    if options.propagate.is_none() {
        for map in PROPAGATION_MAPS {
            loader.map_max_entries(map, 64);
        }
    }
    loader
        .override_global("PROPAGATES", &propagates, true)
        .override_global("ID_SECRET_0", &secret_0, true)
        .override_global("ID_SECRET_1", &secret_1, true)
        .override_global("TASK_REGS_HELPER", &helper, true)
        .override_global("COOKIES", &cookies, true)
        .override_global("AGENT_TGID", &options.agent_tgid, true)
        .override_global("WAKE_BYTES", &wake, true)
        .map_max_entries("EVENTS", ring)
        .map_max_entries("CONNECTIONS", options.max_connections);
    let without = match options.propagate {
        Some(_) => None,
        None => Some(without_socket_tables(OBJECT).ok_or(LoadError::Mismatch("table of sockets"))?),
    };
    let object = without.as_deref().unwrap_or(OBJECT);
    loader.load(object).map_err(|error| {
        if is_permission(&error) {
            LoadError::NotPermitted
        } else {
            LoadError::Object(error)
        }
    })
}

/// The object with plain tables in the place of tables of sockets. Those take CAP_NET_ADMIN to make, all
/// maps of an object are made with it, and only programs that are not loaded without them use them.
fn without_socket_tables(object: &[u8]) -> Option<Vec<u8>> {
    /// `BPF_MAP_TYPE_HASH`, the first field of a map's definition.
    const HASH: [u8; 4] = 1u32.to_ne_bytes();
    let file = object::File::parse(object).ok()?;
    let maps = file.section_by_name("maps")?;
    let (start, _) = maps.file_range()?;
    let mut patched = object.to_vec();
    for name in SOCKET_TABLES {
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name))?;
        let at = start.checked_add(symbol.address().checked_sub(maps.address())?)?;
        let at = usize::try_from(at).ok()?;
        patched
            .get_mut(at..at.checked_add(HASH.len())?)?
            .copy_from_slice(&HASH);
    }
    Some(patched)
}

/// Programs that are loaded together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// With the agent's start.
    Always,
    /// When the first TLS library is met.
    Tls,
    /// When trace context is written into requests.
    Propagate,
    /// Of these, what takes a kernel with TCP options of programs.
    TcpOptions,
}

impl Set {
    /// That of the program of this name.
    pub(super) fn of(name: &str) -> Self {
        if OPTION_PROGRAMS.contains(&name) {
            Set::TcpOptions
        } else if name.starts_with("propagate_") {
            Set::Propagate
        } else if name.starts_with("tls_") || name.starts_with("go_tls_") {
            Set::Tls
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

/// Names of the programs of one set.
pub(super) fn names(ebpf: &Ebpf, set: Set) -> Vec<String> {
    let names = ebpf.programs().map(|(name, _)| name);
    let names = names.filter(|name| Set::of(name) == set);
    names.map(str::to_owned).collect()
}

/// Loads one set of the programs.
pub(super) fn load_programs(ebpf: &mut Ebpf, set: Set) -> Result<Vec<Verified>, LoadError> {
    let btf = kernel_btf()?;
    let names = names(ebpf, set).into_iter();
    names.map(|name| load_program(ebpf, &btf, name)).collect()
}

/// The running kernel's types.
pub(super) fn kernel_btf() -> Result<aya::Btf, LoadError> {
    aya::Btf::from_sys_fs().map_err(|error| LoadError::Object(aya::EbpfError::BtfError(error)))
}

/// Loads one program.
pub(super) fn load_program(
    ebpf: &mut Ebpf,
    btf: &aya::Btf,
    name: String,
) -> Result<Verified, LoadError> {
    let start = Instant::now();
    let program = ebpf
        .program_mut(&name)
        .ok_or(LoadError::Mismatch("known program"))?;
    match program {
        Program::UProbe(probe) => match probe.load() {
            // A first use of them that failed half-way.
            Err(ProgramError::AlreadyLoaded) => Ok(()),
            result => result,
        },
        Program::TracePoint(point) => point.load(),
        Program::BtfTracePoint(point) => point.load(&name, btf),
        Program::SkMsg(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => return Err(LoadError::Mismatch("known program type")),
    }
    .map_err(|source| {
        if is_permission(&source) {
            LoadError::NotPermitted
        } else {
            failed("load", &name, source)
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
        name,
        instructions,
        elapsed: start.elapsed(),
    })
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
