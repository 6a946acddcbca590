//! The kernel side while it runs: its programs attached, its parts handed out.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{Array, Map, MapData, RingBuf};
use aya::programs::trace_point::TracePointLink;
use aya::programs::{Program, ProgramError};
use tracer_common::abi::setting;

use super::error::{LoadError, failed};
use super::follower::Follower;
use super::functions::handover::{Doors, Handover, Links};
use super::functions::{self, Functions, blocked};
use super::futex;
use super::load::{
    Options, Set, TAIL_CALLED, Verified, fill_tail_calls, load_programs, load_sets, open,
    sees_io_uring, types,
};
use super::maps::Maps;
use super::parallel;
use super::propagate::{PropagateError, PropagateOptions, Propagation, SampledFrom};
use super::raw;
use super::reader::Reader;
use super::shared::SharedEbpf;
use super::tls::TlsProbes;
use super::turn::Turn;
use crate::causes::chain;
use crate::kernel::btf::Btf;
use crate::kernel::calls;
use crate::kernel::features::{Features, KernelVersion};
use crate::kernel::host::Host;
use crate::kernel::tier::{self, Choice, Tier};
use crate::telemetry::snapshot::ProgramCost;

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
    &["sys_exit_accept4", "sys_exit_accept"],
    &["sys_exit_clock_nanosleep", "sys_exit_nanosleep"],
];

/// The program for requests of io_uring, which kernels before 5.19 do not tell.
const IO_URING: &str = "io_uring_complete";

/// Tracepoints that not every architecture, or not every kernel, has: calls of other names do their
/// work there.
const OPTIONAL: &[&str] = &[
    "sys_exit_epoll_wait",
    "sys_exit_epoll_pwait2",
    "sys_exit_poll",
    "sys_exit_select",
];

/// The loaded and attached kernel side; everything is detached when it is dropped.
pub struct Kernel {
    /// Shared with the threads that attach probes to runtimes and TLS libraries.
    ebpf: Arc<SharedEbpf>,
    tier: Tier,
    /// Detached before what they share is gone.
    functions: Option<Functions>,
    /// From tracepoints to functions, as long as there are calls that began before.
    handover: Option<Handover>,
    sees_tls: bool,
    /// System calls come by one hook for all of them.
    by_number: bool,
    /// The map of settings.
    settings: Option<OwnedFd>,
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

impl Kernel {
    /// Loads all programs without attaching any: what the verifier says of them.
    pub fn verify(options: &Options) -> Result<Vec<Verified>, LoadError> {
        let types = types()?;
        let host = Host::real();
        let tier = match options.tier {
            Choice::Only(tier) => tier,
            Choice::Auto
                if tier::is_proven(KernelVersion::of(&host)) && not_fast(&types).is_none() =>
            {
                Tier::Fast
            }
            Choice::Auto => Tier::Base,
        };
        let mut ebpf = open(options, tier, &types)?;
        let mut verified = load_programs(&mut ebpf, Set::Always)?;
        verified.extend(load_programs(&mut ebpf, Set::Base)?);
        if tier == Tier::Fast {
            verified.extend(Functions::load(&ebpf, &types)?.verified());
        }
        verified.extend(load_programs(&mut ebpf, Set::Tls)?);
        verified.extend(load_programs(&mut ebpf, Set::Propagate)?);
        verified.extend(load_programs(&mut ebpf, Set::TcpOptions)?);
        verified.extend(load_programs(&mut ebpf, Set::Raw)?);
        Ok(verified)
    }

    /// Loads and attaches. Nothing is looked at before [`Maps::switch`] says at what.
    pub fn start(options: &Options) -> Result<Self, LoadError> {
        let types = types()?;
        let tried = match not_wanted(options) {
            Some(why) => Err(why),
            None => match not_fast(&types) {
                Some(why) => Err(why),
                None => self::types()
                    .and_then(|types| Self::start_in(options, Tier::Fast, types))
                    .map_err(|error| match error {
                        LoadError::NotFast(why) => why,
                        error => chain(&error),
                    }),
            },
        };
        let why = match tried {
            Ok(kernel) => {
                tracing::info!(tier = %Tier::Fast, "system calls are seen at the functions that do them");
                return Ok(kernel);
            }
            Err(why) if options.tier == Choice::Only(Tier::Fast) => {
                return Err(LoadError::NotFast(why));
            }
            Err(why) => why,
        };
        tracing::info!(tier = %Tier::Base, not_fast = %why, "system calls are seen at tracepoints");
        Self::start_in(options, Tier::Base, types)
    }

    fn start_in(options: &Options, tier: Tier, types: Btf) -> Result<Self, LoadError> {
        let turn = Turn::new();
        // Agents that end wait for all of it.
        let _held = turn.hold();
        let mut ebpf = open(options, tier, &types)?;
        let by_number = calls::come_by_number(&types);
        let mut sets = vec![Set::Always];
        sets.extend((tier == Tier::Base).then_some(Set::Base));
        sets.extend(options.tls.then_some(Set::Tls));
        sets.extend(by_number.then_some(Set::Raw));
        // First, because it may be refused.
        let functions = match tier {
            Tier::Fast => Some(Functions::load(&ebpf, &types)?),
            Tier::Base => None,
        };
        // Megabytes, and nobody needs them any more.
        drop(types);
        let mut sees_tls = options.tls;
        for (set, result) in load_sets(&mut ebpf, &sets) {
            match result {
                Err(error) if set == Set::Tls => {
                    let why = chain(&error);
                    tracing::warn!(%why, "not loaded: what TLS carries is not seen");
                    sees_tls = false;
                }
                result => drop(result?),
            }
        }
        fill_tail_calls(&mut ebpf, "PROGRAMS", TAIL_CALLED)?;
        let mut settings: Array<_, u32> = ebpf
            .map_mut("SETTINGS")
            .ok_or(LoadError::Mismatch("SETTINGS"))?
            .try_into()?;
        settings.set(setting::POLICY_ACTIVE, setting::CLOSED, 0)?;
        #[cfg(feature = "ebpf-log")]
        let logger = aya_log::EbpfLogger::init(&mut ebpf)
            .map_err(|error| tracing::warn!(%error, "no debug output of the kernel side"))
            .ok();
        let settings = ebpf.map("SETTINGS").and_then(functions::descriptor);
        let settings = settings.and_then(|map| map.try_clone_to_owned().ok());
        let doors = match tier {
            Tier::Fast => Some(Doors::of(&ebpf)?),
            Tier::Base => None,
        };
        let mut kernel = Kernel {
            #[cfg(feature = "ebpf-log")]
            logger,
            tier,
            functions,
            handover: None,
            ebpf: Arc::new(SharedEbpf::new(ebpf, turn)),
            sees_tls,
            by_number,
            settings,
            measuring: options.bpf_stats.then(measure).and_then(|measuring| {
                measuring
                    .map_err(|error| {
                        let why = chain(&error);
                        tracing::warn!(%why, "the kernel does not measure eBPF programs: no run times in the metrics");
                    })
                    .ok()
            }),
            ring_bytes: options.ring_size(),
            attached: Vec::new(),
            missing: Vec::new(),
        };
        let links = kernel.attach()?;
        if let Some(mut doors) = doors {
            doors.begin()?;
            if let Some(functions) = &mut kernel.functions {
                kernel.attached.extend(functions.attach()?);
            }
            kernel.handover = Some(Handover::start(doors, links)?);
        }
        Ok(kernel)
    }

    /// Attaches to tracepoints. Those that are there for a while only, in the fast tier, are handed out.
    fn attach(&mut self) -> Result<Links, LoadError> {
        let tier = self.tier;
        let by_number = self.by_number;
        let mut links = Links::new();
        let mut ebpf = self.ebpf.lock();
        if by_number {
            self.attached = attach_by_number(&mut ebpf)?;
        }
        let programs = ebpf.programs_mut();
        let programs: Vec<_> = programs
            .filter(|(name, _)| Set::of(name) != Set::Raw && !(by_number && is_exit(name)))
            .collect();
        let threads = programs.len();
        let attached = parallel::each(programs, threads, |(name, program)| {
            attach(name, program, tier)
        });
        for tried in attached {
            for (hook, result) in tried? {
                match result {
                    Ok(link) => {
                        links.extend(link);
                        self.attached.push(hook);
                    }
                    Err(_) if OPTIONAL.contains(&hook.as_str()) => {}
                    Err(error) => self.missing.push((hook, chain(&error))),
                }
            }
        }
        drop(ebpf);
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
        Ok(links)
    }

    /// Where system calls are seen.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// What attaches probes to what processes run; to be taken once.
    pub fn follower(&self) -> Follower {
        let may = !self.by_number;
        let settings = self.settings.as_ref().filter(|_| may).and_then(|settings| {
            let map = MapData::from_fd(settings.try_clone().ok()?).ok()?;
            Array::try_from(Map::Array(map)).ok()
        });
        Follower::new(Arc::clone(&self.ebpf), settings)
    }

    /// What each program cost since it was loaded; empty unless the kernel counts it, because this
    /// was asked to or because the host always does. `None` while probes are attached.
    pub fn program_costs(&self) -> Option<Vec<ProgramCost>> {
        let counted_anyway = || {
            std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled")
                .is_ok_and(|text| text.trim() == "1")
        };
        if self.measuring.is_none() && !counted_anyway() {
            return Some(Vec::new());
        }
        // While probes are attached: nobody waits here.
        let ebpf = self.ebpf.try_lock()?;
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
        let functions = self.functions.iter().flat_map(Functions::costs);
        let functions = functions.map(|(program, runs, run_ns)| ProgramCost {
            program,
            runs,
            run_ns,
        });
        Some(costs.chain(functions).collect())
    }

    /// How long all programs ran while the kernel measured them; `None` while probes are attached.
    pub fn run_time(&self) -> Option<RunTime> {
        let ebpf = self.ebpf.try_lock()?;
        let mut total = RunTime::default();
        for (_, _, ns) in self.functions.iter().flat_map(Functions::costs) {
            total.all_ns = total.all_ns.saturating_add(ns);
        }
        for (name, program) in ebpf.programs() {
            let info = match program {
                Program::TracePoint(point) => point.info(),
                Program::BtfTracePoint(point) => point.info(),
                Program::UProbe(probe) => probe.info(),
                Program::SkMsg(program) => program.info(),
                Program::SockOps(program) => program.info(),
                _ => continue,
            };
            // Not all of them are loaded.
            let Ok(info) = info else { continue };
            let ns = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
            total.all_ns = total.all_ns.saturating_add(ns);
            if Set::of(name) == Set::Tls {
                total.tls_ns = total.tls_ns.saturating_add(ns);
            }
        }
        Some(total)
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
        let map = self
            .ebpf
            .lock()
            .take_map("EVENTS")
            .ok_or(LoadError::Mismatch("EVENTS map"))?;
        Ok(Reader::new(
            RingBuf::try_from(map)?,
            self.ring_bytes as usize,
        ))
    }

    /// Has trace context written into requests; asked for once, with what was loaded for it.
    pub fn propagate(
        &mut self,
        options: PropagateOptions,
        sampled: SampledFrom,
        cgroup: Option<&str>,
    ) -> Result<Propagation, PropagateError> {
        let by_number = self.by_number;
        let functions = self.functions.as_mut();
        Propagation::start(
            &mut self.ebpf.lock(),
            functions,
            options,
            sampled,
            cgroup,
            by_number,
        )
    }

    /// Whether there are programs for TLS libraries.
    pub fn sees_tls(&self) -> bool {
        self.sees_tls
    }

    /// What attaches probes to TLS libraries; to be taken once.
    pub fn tls(&mut self) -> Result<TlsProbes, LoadError> {
        TlsProbes::new(Arc::clone(&self.ebpf))
    }

    /// The maps that user space reads and writes while tracing; to be taken once.
    pub fn maps(&mut self) -> Result<Maps, LoadError> {
        Maps::take(&mut self.ebpf.lock())
    }
}

/// Why the fast tier is not wanted; `None` when it is.
fn not_wanted(options: &Options) -> Option<String> {
    match options.tier {
        Choice::Only(Tier::Fast) => None,
        Choice::Only(Tier::Base) => Some("asked for".to_owned()),
        Choice::Auto if options.propagate.is_some() => {
            // One tracepoint of a system call costs all calls what the fast tier saves.
            Some("context is written, which takes tracepoints of writes".to_owned())
        }
        Choice::Auto if !tier::is_proven(KernelVersion::of(&Host::real())) => {
            Some("not proven on this kernel".to_owned())
        }
        Choice::Auto => None,
    }
}

/// Why the fast tier cannot be had; `None` when it may.
fn not_fast(types: &Btf) -> Option<String> {
    let host = Host::real();
    tier::obstacle(&host, &Features::of(&host)).or_else(|| functions::obstacle(types))
}

/// Whether a program is for ends of system calls.
fn is_exit(name: &str) -> bool {
    !futex::HOOKS.contains(&name) && name.starts_with("sys_exit_")
}

/// The tracepoints of a program.
pub(super) fn targets<'a>(name: &'a &'a str) -> &'a [&'a str] {
    let shared = SHARED.iter().find(|points| points.first() == Some(name));
    shared.copied().unwrap_or(std::slice::from_ref(name))
}

/// Attaches what goes on to the programs for ends of system calls by their numbers; returns for which there is one.
fn attach_by_number(ebpf: &mut Ebpf) -> Result<Vec<String>, LoadError> {
    let exits = ebpf.programs().map(|(name, _)| name.to_owned());
    let exits: Vec<String> = exits.filter(|name| is_exit(name)).collect();
    let mut seen = Vec::new();
    for name in &exits {
        let name = name.as_str();
        let events = raw::enter(ebpf, raw::End::Exit, name, targets(&name))?;
        seen.extend(events.into_iter().map(str::to_owned));
    }
    let (name, event) = raw::EXIT;
    let Some(Program::TracePoint(point)) = ebpf.program_mut(name) else {
        return Err(LoadError::Mismatch(name));
    };
    point
        .attach(raw::CATEGORY, event)
        .map_err(|source| failed("attach", name, source))?;
    Ok(seen)
}

/// Tracepoints, and whether a program could be attached to them; its link, if it is not to stay.
type Tried = Vec<(
    String,
    Result<Option<(&'static str, TracePointLink)>, ProgramError>,
)>;

/// Attaches a program to all of its tracepoints, if it belongs to any; what became of each.
fn attach(name: &str, program: &mut Program, tier: Tier) -> Result<Tried, LoadError> {
    match program {
        // Attached to files that use them: see `TlsProbes` and `RuntimeProbes`.
        Program::UProbe(_) => Ok(Vec::new()),
        // See `Propagation`.
        _ if matches!(Set::of(name), Set::Propagate | Set::TcpOptions) => Ok(Vec::new()),
        _ if tier == Tier::Fast && Set::of(name) == Set::Base => Ok(Vec::new()),
        Program::TracePoint(_) if TAIL_CALLED.contains(&name) => Ok(Vec::new()),
        // Attached while they are needed: see `FutexHooks`.
        Program::TracePoint(_) if futex::HOOKS.contains(&name) => Ok(Vec::new()),
        Program::TracePoint(_) if name == IO_URING && !sees_io_uring() => Ok(Vec::new()),
        Program::TracePoint(point) => {
            let for_a_while = blocked::programs().find(|data| tier == Tier::Fast && *data == name);
            let attach = |target: &&str| {
                let category = match target.split_once('_') {
                    Some(("sched", _)) => "sched",
                    Some(("io", _)) => "io_uring",
                    _ => "syscalls",
                };
                (
                    (*target).to_owned(),
                    point.attach(category, target).and_then(|id| {
                        let link = for_a_while.map(|name| Ok((name, point.take_link(id)?)));
                        link.transpose()
                    }),
                )
            };
            Ok(targets(&name).iter().map(attach).collect())
        }
        Program::BtfTracePoint(point) => Ok(vec![(name.to_owned(), point.attach().map(|_| None))]),
        _ => Err(LoadError::Mismatch("known program type")),
    }
}

/// How long programs ran while the kernel measured them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTime {
    /// All of them.
    pub all_ns: u64,
    /// Those in TLS libraries.
    pub tls_ns: u64,
}

impl RunTime {
    /// What was added since `before`.
    pub fn since(self, before: Self) -> Self {
        RunTime {
            all_ns: self.all_ns.saturating_sub(before.all_ns),
            tls_ns: self.tls_ns.saturating_sub(before.tls_ns),
        }
    }
}

/// Has the kernel measure every program of the host until the descriptor is closed (since Linux 5.8).
pub fn measure() -> Result<OwnedFd, LoadError> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime)
        .map_err(|error| LoadError::Measure(error.into()))
}
