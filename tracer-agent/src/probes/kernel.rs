//! The kernel side while it runs: its programs attached, its parts handed out.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use aya::maps::{Array, Map, MapData, RingBuf};
use tracer_common::abi::setting;

use super::attach::{OPTIONAL, attach, attach_by_number, is_exit};
use super::cost::measure;
use super::error::LoadError;
use super::follower::Follower;
use super::functions::handover::{Doors, Handover};
use super::functions::{self, Functions};
use super::load::{
    Options, Set, TAIL_CALLED, Verified, fill_tail_calls, load_programs, load_sets, open, types,
};
use super::maps::Maps;
use super::parallel;
use super::propagate::{PropagateError, PropagateOptions, Propagation, SampledFrom};
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

/// The loaded and attached kernel side; everything is detached when it is dropped.
pub struct Kernel {
    /// Shared with the threads that attach probes to runtimes and TLS libraries.
    pub(super) ebpf: Arc<SharedEbpf>,
    tier: Tier,
    /// Detached before what they share is gone.
    pub(super) functions: Option<Functions>,
    /// Between tracepoints and functions.
    handover: Option<Handover>,
    sees_tls: bool,
    /// System calls come by one hook for all of them.
    by_number: bool,
    /// The map of settings.
    settings: Option<OwnedFd>,
    /// While it is open the kernel measures every program of the host.
    pub(super) measuring: Option<OwnedFd>,
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
        let tier = match options.tier {
            Choice::Only(tier) => tier,
            // Of both, where both are used: one of them if context is written.
            Choice::Auto if fast(options.tier, false, &types).is_ok() => Tier::Fast,
            Choice::Auto => Tier::Base,
        };
        let mut ebpf = open(options, tier, &types)?;
        let mut verified = load_programs(&mut ebpf, Set::Always)?;
        if tier == Tier::Fast {
            let mut functions = Functions::load(&ebpf, &types)?;
            functions.propagate()?;
            verified.extend(functions.verified());
        }
        verified.extend(load_programs(&mut ebpf, Set::Tls)?);
        verified.extend(load_programs(&mut ebpf, Set::Node)?);
        verified.extend(load_programs(&mut ebpf, Set::Propagate)?);
        verified.extend(load_programs(&mut ebpf, Set::TcpOptions)?);
        verified.extend(load_programs(&mut ebpf, Set::Raw)?);
        Ok(verified)
    }

    /// Loads and attaches. Nothing is looked at before [`Maps::switch`] says at what.
    pub fn start(options: &Options) -> Result<Self, LoadError> {
        let types = types()?;
        let writes = options.propagate.is_some();
        let tried = fast(options.tier, writes, &types).and_then(|()| {
            self::types()
                .and_then(|types| Self::start_in(options, Tier::Fast, types))
                .map_err(|error| match error {
                    LoadError::NotFast(why) => why,
                    error => chain(&error),
                })
        });
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
        let doors = functions
            .as_ref()
            .map(|functions| Doors::of(&ebpf, &functions.exits));
        let doors = doors.transpose()?;
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
        kernel.attach()?;
        if let Some(mut doors) = doors {
            doors.begin()?;
            if let Some(functions) = &mut kernel.functions {
                kernel.attached.extend(functions.attach()?);
            }
            kernel.handover = Some(Handover::start(doors)?);
        }
        Ok(kernel)
    }

    /// Attaches to tracepoints.
    fn attach(&mut self) -> Result<(), LoadError> {
        let tier = self.tier;
        let by_number = self.by_number;
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
                    Ok(()) => self.attached.push(hook),
                    Err(_) if OPTIONAL.contains(&hook.as_str()) => {}
                    Err(error) => self.missing.push((hook, chain(&error))),
                }
            }
        }
        drop(ebpf);
        let reads = |name: &String| name.starts_with("sys_exit_read");
        if tier == Tier::Base && !self.attached.iter().any(reads) {
            let why = self
                .missing
                .first()
                .map_or(String::new(), |(hook, why)| format!("{hook}: {why}"));
            return Err(LoadError::NothingAttached(why));
        }
        Ok(())
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

/// Why the fast tier is not wanted, or cannot be had; it may, when it is neither. `writes`: context is written into requests.
fn fast(choice: Choice, writes: bool, types: &Btf) -> Result<(), String> {
    let host = Host::real();
    if choice == Choice::Only(Tier::Base) {
        return Err("asked for".to_owned());
    }
    if choice == Choice::Auto {
        if writes {
            // One tracepoint of a system call costs all calls what the fast tier saves.
            return Err("context is written, which takes tracepoints of writes".to_owned());
        }
        if !tier::is_proven(KernelVersion::of(&host)) {
            return Err("not proven on this kernel".to_owned());
        }
    }
    let obstacle = tier::obstacle(&host, &Features::of(&host));
    match obstacle.or_else(|| functions::obstacle(types)) {
        Some(why) => Err(why),
        None => Ok(()),
    }
}
