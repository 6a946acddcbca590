//! Opens the eBPF object, hands it this kernel's offsets and has the verifier take its programs.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aya::maps::ProgramArray;
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};

use super::error::{LoadError, failed, is_permission};
use super::maps::Switches;
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

pub(super) fn open(options: &Options) -> Result<Ebpf, LoadError> {
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

/// Major and minor version of the running kernel.
fn kernel_version() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}
