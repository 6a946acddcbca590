//! Trace context in outgoing requests: tests the kernel, loads and attaches what writes it, as headers or
//! in TCP options.
//!
//! In: what may be written. Out: a running [`Propagation`], or one sentence why there is none. Sockets
//! that speak something else leave the map of sockets here ([`Propagation::tick`]), because the kernel
//! side may not take them out itself.

mod selftest;

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd as _;

use aya::Ebpf;
use aya::maps::{Array, MapData, MapError, PerCpuArray, ProgramArray, Queue, SockHash};
use aya::programs::sock_ops::SockOpsLinkId;
use aya::programs::{CgroupAttachMode, Program, SkMsg, SockOps};
use rustix::thread::CapabilitySet;
use tracer_common::abi::{propagated, propagation};

use super::error::{LoadError, failed};
use super::functions::Functions;
use super::load::{Set, load_programs};
use super::raw;
use crate::rights;
pub use selftest::Fault;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PropagateOptions {
    /// As headers.
    pub headers: bool,
    /// In TCP options.
    pub options: bool,
    /// Headers also if the self-test finds a fault that leaves the byte stream right.
    pub despite_faults: bool,
    /// What ids are made from.
    pub secret: [u64; 2],
}

/// Which traces that begin here are sampled, as the kernel side has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledFrom {
    /// Lowest random part of the ids that are.
    pub threshold: u64,
    /// Decisions that came with a request go before that.
    pub parent_based: bool,
}

/// Why no context is written.
#[derive(Debug, thiserror::Error)]
pub enum PropagateError {
    /// Programs, maps.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map operation.
    #[error("cannot set up an eBPF map")]
    Map(#[from] MapError),
    /// Missing rights.
    #[error("CAP_NET_ADMIN is missing")]
    NotPermitted,
    /// Nowhere to attach to.
    #[error("cgroup v2 is not mounted")]
    NoCgroup,
    /// Could not be opened.
    #[error("cannot open the root of cgroup v2 at {0}")]
    Cgroup(String, #[source] std::io::Error),
    /// The self-test could not be run.
    #[error("the self-test could not be run")]
    Test(#[source] std::io::Error),
    /// It found something.
    #[error("the self-test found a fault of this kernel: {0}")]
    Fault(Fault),
}

/// Tracepoints, by program.
const ENTRIES: &[(&str, &[&str])] = &[
    ("propagate_enter_write", &["sys_enter_write"]),
    ("propagate_enter_writev", &["sys_enter_writev"]),
    ("propagate_enter_sendto", &["sys_enter_sendto"]),
    ("propagate_enter_sendmsg", &["sys_enter_sendmsg"]),
    (
        "propagate_enter_other",
        &[
            "sys_enter_io_uring_enter",
            "sys_enter_sendfile64",
            "sys_enter_splice",
            "sys_enter_sendmmsg",
            "sys_enter_pwritev2",
        ],
    ),
    ("propagate_enter_setsockopt", &["sys_enter_setsockopt"]),
];

/// Programs that look at messages, by their indexes in `MESSAGE_PROGRAMS`.
const MESSAGES: [&str; 6] = [
    "propagate_scan",
    "propagate_prepare",
    "propagate_insert",
    "propagate_frames",
    "propagate_stream",
    "propagate_field",
];
/// Where the kernel side's programs for syscalls and for uprobes look for trace context in requests: map, index,
/// program.
const CONTEXTS: [(&str, u32, &str); 4] = [
    ("PROGRAMS", 5, "propagate_context"),
    ("TLS_PROGRAMS", 5, "propagate_tls_context"),
    ("PROGRAMS", 7, "propagate_blocks"),
    ("TLS_PROGRAMS", 7, "propagate_tls_blocks"),
];
/// What finds the request whose context goes into a TCP option, and its index in `PROGRAMS`.
const OFFER: &str = "propagate_offer";
const OFFER_PROGRAM: u32 = 6;
/// The same where programs move the ciphertext of their TLS sessions themselves; at the same index of `TLS_PROGRAMS`.
const TLS_OFFER: &str = "propagate_tls_offer";
/// What puts it there, and reads it.
const OPTION: &str = "propagate_option";
/// Programs that are there for TCP options only.
pub(super) const OPTION_PROGRAMS: [&str; 3] = [OFFER, TLS_OFFER, OPTION];
/// Sockets taken out at a time.
const MOST_LEAVING: usize = 4096;

/// Context is written while this is there, or until [`Propagation::stop`].
pub struct Propagation {
    sockets: SockHash<MapData, u64>,
    leaving: Queue<MapData, u64>,
    settings: Array<MapData, u64>,
    outcomes: PerCpuArray<MapData, u64>,
    /// What the self-test found; with headers, it was told not to mind.
    pub fault: Option<Fault>,
    /// Headers are written.
    pub headers: bool,
    /// Whether TCP options are sent.
    pub options: Options,
}

/// Whether context is sent in TCP options.
#[derive(Debug)]
pub enum Options {
    /// It is.
    Sent,
    /// Nobody asked for it.
    NotWanted,
    /// This kernel cannot (it takes 5.10).
    Failed(LoadError),
    /// The self-test found something, or could not be run.
    Faulty(PropagateError),
}

impl Propagation {
    /// Tests, loads, attaches; to system calls by their numbers where that has to be so (see [`raw`]). On an error nothing is attached that changes traffic.
    pub(super) fn start(
        ebpf: &mut Ebpf,
        functions: Option<&mut Functions>,
        options: PropagateOptions,
        sampled: SampledFrom,
        cgroup: Option<&str>,
        by_number: bool,
    ) -> Result<Self, PropagateError> {
        // The right to everything stands for it.
        if !rights::effective().intersects(CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN) {
            return Err(PropagateError::NotPermitted);
        }
        let cgroup = cgroup.ok_or(PropagateError::NoCgroup)?;
        let root =
            File::open(cgroup).map_err(|error| PropagateError::Cgroup(cgroup.to_owned(), error))?;
        load_programs(ebpf, Set::Propagate)?;
        let fault = if options.headers { test(ebpf)? } else { None };
        let minded = fault
            .as_ref()
            .filter(|fault| !(options.despite_faults && fault.leaves_bytes_right()));
        let headers = options.headers && minded.is_none();
        let mut settings = Array::try_from(take(ebpf, "PROPAGATION")?)?;
        let outcomes = PerCpuArray::try_from(take(ebpf, "PROPAGATED")?)?;
        let tcp_options = match options
            .options
            .then(|| load_programs(ebpf, Set::TcpOptions))
        {
            None => Options::NotWanted,
            Some(Ok(_)) => test_options(ebpf, &root, &mut settings).unwrap_or_else(Options::Failed),
            Some(Err(error)) => Options::Failed(error),
        };
        let sends = matches!(tcp_options, Options::Sent);
        if let Some(fault) = minded
            && !sends
        {
            return Err(PropagateError::Fault(fault.clone()));
        }
        match tcp_options {
            Options::Failed(error) if !headers => return Err(error.into()),
            Options::Faulty(fault) if !headers => return Err(fault),
            _ => {}
        }
        for (map, index, name) in CONTEXTS {
            put(ebpf, map, index, name)?;
        }
        if let Some(functions) = functions {
            functions.propagate()?;
        }
        let sockets = SockHash::try_from(take(ebpf, "SOCKETS")?)?;
        if headers {
            for (index, name) in MESSAGES.into_iter().enumerate() {
                put(ebpf, "MESSAGE_PROGRAMS", index as u32, name)?;
            }
            attach_message(ebpf, "propagate_message", &sockets)?;
        }
        if sends {
            put(ebpf, "PROGRAMS", OFFER_PROGRAM, OFFER)?;
            put(ebpf, "TLS_PROGRAMS", OFFER_PROGRAM, TLS_OFFER)?;
        }
        if by_number {
            attach_by_number(ebpf)?;
        } else {
            for (name, points) in ENTRIES {
                attach_points(ebpf, name, points)?;
            }
        }
        let mut propagation = Propagation {
            sockets,
            leaving: Queue::try_from(take(ebpf, "LEAVING")?)?,
            settings,
            outcomes,
            fault,
            headers,
            options: tcp_options,
        };
        propagation.sample(sampled)?;
        let settings = &mut propagation.settings;
        settings.set(propagation::HEADERS, u64::from(headers), 0)?;
        settings.set(propagation::OPTIONS, u64::from(sends), 0)?;
        settings.set(propagation::ACTIVE, 1, 0)?;
        // The last step: from now on sockets are looked at.
        attach_to_sockets(ebpf, "propagate_connected", &root)?;
        Ok(propagation)
    }

    /// Follows other sampling settings.
    pub fn sample(&mut self, sampled: SampledFrom) -> Result<(), MapError> {
        let SampledFrom {
            threshold,
            parent_based,
        } = sampled;
        self.settings.set(propagation::THRESHOLD, threshold, 0)?;
        let follows = u64::from(parent_based);
        self.settings.set(propagation::PARENT_BASED, follows, 0)
    }

    /// Takes sockets that speak something else out of the map.
    pub fn tick(&mut self) {
        for _ in 0..MOST_LEAVING {
            let Ok(socket) = self.leaving.pop(0) else {
                break;
            };
            // It may be closed already.
            let _ = self.sockets.remove(&socket);
        }
    }

    /// Requests by what became of them.
    pub fn outcomes(&self) -> Vec<(&'static str, u64)> {
        let names = propagated::NAMES.into_iter().enumerate();
        names
            .map(|(index, name)| (name, total(&self.outcomes, index as u32)))
            .collect()
    }

    /// Nothing is written any more.
    pub fn stop(&mut self) -> Result<(), MapError> {
        self.settings.set(propagation::ACTIVE, 0, 0)
    }
}

fn attach_to_sockets(
    ebpf: &mut Ebpf,
    name: &'static str,
    root: &File,
) -> Result<SockOpsLinkId, LoadError> {
    // A link stands beside others by itself; its flags have to be none.
    sockets_program(ebpf, name)?
        .attach(root, CgroupAttachMode::Single)
        .map_err(|source| failed("attach", name, source))
}

fn sockets_program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SockOps, LoadError> {
    ebpf.program_mut(name)
        .ok_or(LoadError::Mismatch(name))?
        .try_into()
        .map_err(|_| LoadError::Mismatch(name))
}

/// Attaches what sends and reads TCP options; it goes again if they do not arrive.
fn test_options(
    ebpf: &mut Ebpf,
    root: &File,
    settings: &mut Array<MapData, u64>,
) -> Result<Options, LoadError> {
    let link = attach_to_sockets(ebpf, OPTION, root)?;
    let settings = RefCell::new(settings);
    let expect = |port: u16| {
        let mut settings = settings.borrow_mut();
        let set = settings.set(propagation::SELFTEST, u64::from(port), 0);
        set.map_err(std::io::Error::other)
    };
    let arrived = || {
        let settings = settings.borrow();
        settings.get(&propagation::ARRIVED, 0).unwrap_or(0)
    };
    let options = match selftest::options(expect, arrived) {
        Ok(None) => return Ok(Options::Sent),
        Ok(Some(fault)) => Options::Faulty(PropagateError::Fault(fault)),
        Err(error) => Options::Faulty(PropagateError::Test(error)),
    };
    let detached = sockets_program(ebpf, OPTION)?.detach(link);
    detached.map_err(|source| failed("detach", OPTION, source))?;
    Ok(options)
}

fn total(outcomes: &PerCpuArray<MapData, u64>, outcome: u32) -> u64 {
    let slots = outcomes.get(&outcome, 0);
    slots.map_or(0, |slots| slots.iter().sum())
}

fn test(ebpf: &mut Ebpf) -> Result<Option<Fault>, PropagateError> {
    let mut sockets = SockHash::try_from(take(ebpf, "SELFTEST_SOCKETS")?)?;
    attach_message(ebpf, "propagate_selftest", &sockets)?;
    let fault = selftest::run(|stream| {
        let entered = sockets.insert(0u64, stream.as_raw_fd(), 0);
        entered.map_err(std::io::Error::other)
    });
    fault.map_err(PropagateError::Test)
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Mismatch(name))
}

fn attach_message(
    ebpf: &mut Ebpf,
    name: &'static str,
    sockets: &SockHash<MapData, u64>,
) -> Result<(), LoadError> {
    let program: &mut SkMsg = ebpf
        .program_mut(name)
        .ok_or(LoadError::Mismatch(name))?
        .try_into()
        .map_err(|_| LoadError::Mismatch(name))?;
    program
        .attach(sockets.fd())
        .map_err(|source| failed("attach", name, source))?;
    Ok(())
}

/// Where programs of single system calls can be preempted: those for their beginnings, by their numbers.
fn attach_by_number(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    for (name, points) in ENTRIES {
        if raw::enter(ebpf, raw::End::Enter, name, points)?.is_empty() {
            return Err(LoadError::Mismatch(name));
        }
    }
    let (name, event) = raw::ENTER;
    let Some(Program::TracePoint(program)) = ebpf.program_mut(name) else {
        return Err(LoadError::Mismatch(name));
    };
    program
        .attach(raw::CATEGORY, event)
        .map_err(|source| failed("attach", name, source))?;
    Ok(())
}

/// Not every kernel has every one of these calls; the first of each program is what matters.
fn attach_points(ebpf: &mut Ebpf, name: &'static str, points: &[&str]) -> Result<(), LoadError> {
    let Some(Program::TracePoint(program)) = ebpf.program_mut(name) else {
        return Err(LoadError::Mismatch(name));
    };
    let mut first = None;
    let mut attached = 0;
    for point in points {
        match program.attach("syscalls", point) {
            Ok(_) => attached += 1,
            Err(error) => first = first.or(Some(error)),
        }
    }
    match first {
        Some(error) if attached == 0 => Err(failed("attach", name, error)),
        _ => Ok(()),
    }
}

/// Fills one place of a map of programs that are reached by tail call.
fn put(
    ebpf: &mut Ebpf,
    map: &'static str,
    index: u32,
    name: &'static str,
) -> Result<(), PropagateError> {
    let fd = match ebpf.program(name) {
        Some(Program::SkMsg(program)) => program.fd(),
        Some(Program::TracePoint(program)) => program.fd(),
        Some(Program::UProbe(program)) => program.fd(),
        _ => return Err(LoadError::Mismatch(name).into()),
    };
    let fd = fd.map_err(|source| failed("load", name, source))?;
    let fd = fd.try_clone().map_err(|_| LoadError::Mismatch(name))?;
    let programs = ebpf.map_mut(map).ok_or(LoadError::Mismatch(map))?;
    let mut programs: ProgramArray<_> = programs.try_into()?;
    Ok(programs.set(index, &fd, 0)?)
}
