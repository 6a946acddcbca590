//! Measures what the agent and its eBPF programs take of the CPUs, now and then.
//!
//! In: the kernel side, times. Out: measurements for the [`Budget`], and what it decides, in the log. The
//! kernel measures programs only while it is asked to, and that costs every program of the host some time at
//! each run: so it is asked for a second at a time. It cannot see what the traps of uprobes cost, which
//! come before the programs are run.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::cpu::{Budget, Measured, ORDER};
use crate::probes::{self, Kernel, RunTime};
use crate::sys;
use crate::telemetry::snapshot::CpuLimit;

/// How long a measurement takes.
const MEASURED: Duration = Duration::from_secs(1);
/// From one measurement to the next.
const PAUSE: Duration = Duration::from_secs(29);
/// When the last one was over the budget, and after the start.
const SHORT_PAUSE: Duration = Duration::from_secs(2);

/// Measures now and then.
#[derive(Debug)]
pub struct Meter {
    budget: Budget,
    /// When the next measurement begins; `None` before the first step.
    next: Option<Duration>,
    running: Option<Running>,
    /// That programs are not measured was said.
    told: bool,
    last: Measured,
}

/// A measurement that has begun.
#[derive(Debug)]
struct Running {
    since: Duration,
    own: Duration,
    /// Of the programs, and what has the kernel measure them.
    programs: Option<(RunTime, OwnedFd)>,
}

impl Meter {
    /// For a budget of so many CPUs; `most` of [`ORDER`] can be switched off.
    pub fn new(cpus: f64, most: usize) -> Self {
        Meter {
            budget: Budget::new(cpus, most),
            next: None,
            running: None,
            told: false,
            last: Measured::default(),
        }
    }

    /// Goes on measuring; how many of [`ORDER`] are to be off, when that has changed.
    pub fn step(&mut self, kernel: &Kernel, now: Duration) -> Option<usize> {
        let Some(running) = &self.running else {
            let next = *self.next.get_or_insert(now.saturating_add(SHORT_PAUSE));
            if now >= next {
                self.running = Some(self.begin(kernel, now));
            }
            return None;
        };
        let elapsed = now.saturating_sub(running.since);
        if elapsed < MEASURED {
            return None;
        }
        let programs = match &running.programs {
            // While a TLS library gets its probes: a moment later.
            Some((before, _)) => Some(kernel.run_time()?.since(*before)),
            None => None,
        };
        let own = sys::clock(libc::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(running.own);
        self.running = None;
        self.last = measured(own, programs, elapsed);
        let before = self.budget.off();
        let changed = self.budget.measured(self.last, now);
        let pause = match self.budget.is_in_doubt() {
            true => SHORT_PAUSE,
            false => PAUSE,
        };
        self.next = Some(now.saturating_add(pause));
        if !changed {
            return None;
        }
        self.tell(before);
        Some(self.budget.off())
    }

    fn tell(&self, before: usize) {
        let (off, used, budget) = (self.budget.off(), self.last.cpus, self.budget.cpus());
        let names = |from: usize, to: usize| ORDER.get(from..to).unwrap_or_default().join(", ");
        if off > before {
            let switched_off = names(before, off);
            tracing::warn!(
                used,
                budget,
                switched_off,
                "more CPU than allowed: what was open there is given up and counted (cpu_limit)"
            );
        } else {
            let switched_on = names(off, before);
            tracing::info!(used, budget, switched_on, "there is enough CPU again");
        }
    }

    fn begin(&mut self, kernel: &Kernel, now: Duration) -> Running {
        let measuring = probes::measure().map_err(|error| {
            if !self.told {
                self.told = true;
                let error = anyhow::Error::from(error);
                tracing::warn!(
                    "the budget of CPU counts the agent without its eBPF programs (is CAP_SYS_ADMIN missing?): {error:#}"
                );
            }
        });
        Running {
            since: now,
            own: sys::clock(libc::CLOCK_PROCESS_CPUTIME_ID),
            programs: kernel.run_time().zip(measuring.ok()),
        }
    }

    /// For the metrics.
    pub fn counts(&self) -> CpuLimit {
        CpuLimit {
            cpus: self.budget.cpus(),
            used: self.last.cpus,
            off: ORDER
                .into_iter()
                .enumerate()
                .map(|(index, feature)| (feature, index < self.budget.off()))
                .collect(),
            sheds: self.budget.sheds(),
        }
    }
}

fn measured(own: Duration, programs: Option<RunTime>, elapsed: Duration) -> Measured {
    let RunTime { all_ns, tls_ns } = programs.unwrap_or_default();
    let used = own.saturating_add(Duration::from_nanos(all_ns));
    Measured {
        cpus: used.as_secs_f64() / elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
        tls: match (programs, all_ns) {
            (None, _) => 1.0,
            (Some(_), 0) => 0.0,
            (Some(_), _) => tls_ns as f64 / all_ns as f64,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_shares() {
        let check = |own_ms: u64, programs: Option<(u64, u64)>, cpus: f64, tls: f64| {
            let programs = programs.map(|(all_ns, tls_ns)| RunTime { all_ns, tls_ns });
            let own = Duration::from_millis(own_ms);
            let found = measured(own, programs, Duration::from_secs(2));
            assert_eq!(found, Measured { cpus, tls }, "{own_ms} {programs:?}");
        };
        check(500, None, 0.25, 1.0);
        check(500, Some((0, 0)), 0.25, 0.0);
        check(500, Some((1_500_000_000, 300_000_000)), 1.0, 0.2);
    }
}
