//! The kernel side while it runs: its programs attached, its parts handed out.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use aya::maps::{Array, RingBuf};
use aya::programs::Program;
use tracer_common::abi::kind_of_process;

use super::error::{LoadError, chain};
use super::load::{Options, Set, TAIL_CALLED, Verified, fill_tail_calls, load_programs, open};
use super::maps::Maps;
use super::propagate::{PropagateError, PropagateOptions, Propagation, SampledFrom};
use super::reader::Reader;
use super::runtime::RuntimeProbes;
use super::shared::SharedEbpf;
use super::tasks::TaskProbes;
use super::tls::TlsProbes;
use crate::discover::Runtime;
use crate::meta::ProcFs;
use crate::telemetry::metrics::ProgramCost;
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
];

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
    /// Shared with the thread that attaches probes to TLS libraries.
    ebpf: Arc<SharedEbpf>,
    runtimes: RuntimeProbes,
    tasks: TaskProbes,
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
        let mut ebpf = open(options)?;
        let mut verified = load_programs(&mut ebpf, Set::Always)?;
        verified.extend(load_programs(&mut ebpf, Set::Tls)?);
        verified.extend(load_programs(&mut ebpf, Set::Propagate)?);
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
            ebpf: Arc::new(SharedEbpf::new(ebpf)),
            runtimes: RuntimeProbes::new(crate::rights::can_place_uprobes() != Some(false)),
            tasks: TaskProbes::default(),
            measuring: if options.bpf_stats { measure() } else { None },
            ring_bytes: options.ring_size(),
            attached: Vec::new(),
            missing: Vec::new(),
        };
        kernel.attach()?;
        Ok(kernel)
    }

    fn attach(&mut self) -> Result<(), LoadError> {
        let mut ebpf = self.ebpf.lock();
        for (name, program) in ebpf.programs_mut() {
            match program {
                // Attached to files that use them: see `TlsProbes` and `RuntimeProbes`.
                Program::UProbe(_) => {}
                // See `Propagation`.
                _ if Set::of(name) == Set::Propagate => {}
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
        match runtime {
            Runtime::Kind(kind) => return Some(kind),
            Runtime::Python => return Some(kind_of_process::THREADS),
            Runtime::Rust => return Some(kind_of_process::BLOCKING),
            Runtime::Node | Runtime::Go => {}
        }
        let mut ebpf = match self.ebpf.try_lock_first() {
            Some(ebpf) => ebpf,
            None if wait => self.ebpf.lock(),
            None => return None,
        };
        Some(self.runtimes.follow(&mut ebpf, runtime, exe))
    }

    /// Attaches what shows the tasks of a process that serves with an event loop; true if its calls can
    /// have parents then. `None` if that cannot be done now.
    pub fn follow_tasks(&mut self, proc: &ProcFs, tgid: u32, runtime: Runtime) -> Option<bool> {
        let mut ebpf = self.ebpf.try_lock_first()?;
        Some(self.tasks.follow(&mut ebpf, proc, tgid, runtime))
    }

    /// Attaches what has to be seen of a process that may serve with tokio before it does; false if that
    /// cannot be done now.
    pub fn foresee_tasks(&mut self, proc: &ProcFs, tgid: u32) -> bool {
        let Some(mut ebpf) = self.ebpf.try_lock_first() else {
            return false;
        };
        self.tasks.foresee(&mut ebpf, proc, tgid);
        true
    }

    /// Gives back what was attached to a process that ended; false if that has to be done later.
    pub fn unfollow_tasks(&mut self, tgid: u32) -> bool {
        if !self.tasks.follows(tgid) {
            return true;
        }
        let Some(mut ebpf) = self.ebpf.try_lock() else {
            return false;
        };
        self.tasks.forget(&mut ebpf, tgid);
        true
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
        Propagation::start(&mut self.ebpf.lock(), options, sampled, cgroup)
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
