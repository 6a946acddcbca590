//! How long the programs ran, where the kernel measures it.

use std::os::fd::OwnedFd;

use aya::programs::Program;

use super::error::LoadError;
use super::functions::Functions;
use super::kernel::Kernel;
use super::load::Set;
use crate::telemetry::snapshot::ProgramCost;

impl Kernel {
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
