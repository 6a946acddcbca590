//! The budget of CPU: what is switched off above it, and when it comes back.
//!
//! In: CPU time as it was measured, with times. Out: how much is switched off. What comes back and has to go
//! again soon waits twice as long for its next try, so that a host at its limit does not see the agent come
//! and go.

use std::time::Duration;

/// What is switched off, the first one first. Probes in TLS libraries cost most for what they see; without
/// "tracing" nothing is looked at any more.
pub const ORDER: [&str; 2] = ["tls", "tracing"];
/// So many measurements in a row before anything is switched off: one may be anybody's burst.
const OVER: u32 = 2;
/// What is off comes back when it would leave so much of the budget free.
const ROOM: f64 = 0.8;
/// Less than this share of all programs' time, and switching a feature off saves nothing worth having.
const NOTICEABLE: f64 = 0.1;
/// For the first try.
const FIRST_WAIT: Duration = Duration::from_secs(60);
/// And the longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// One measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// CPUs used by the agent and its eBPF programs together.
    pub cpus: f64,
    /// Share of the programs' time that went to TLS libraries; 1 where it is not known.
    pub tls: f64,
}

/// Decides.
#[derive(Debug)]
pub struct Budget {
    cpus: f64,
    /// So many of [`ORDER`] can be switched off.
    most: usize,
    over: u32,
    /// Of [`ORDER`], from its begin.
    off: usize,
    /// What each that is off took too much when it was switched off.
    excess: [f64; ORDER.len()],
    /// Nothing comes back before.
    until: Duration,
    wait: Duration,
    sheds: u64,
}

impl Budget {
    /// So many CPUs; `most` of [`ORDER`] can be switched off.
    pub fn new(cpus: f64, most: usize) -> Self {
        Budget {
            cpus,
            most: most.min(ORDER.len()),
            over: 0,
            off: 0,
            excess: [0.0; ORDER.len()],
            until: Duration::ZERO,
            wait: FIRST_WAIT,
            sheds: 0,
        }
    }

    /// The budget.
    pub fn cpus(&self) -> f64 {
        self.cpus
    }

    /// How many of [`ORDER`] are off.
    pub fn off(&self) -> usize {
        self.off
    }

    /// How often something was switched off.
    pub fn sheds(&self) -> u64 {
        self.sheds
    }

    /// Whether the next measurement should come soon.
    pub fn is_in_doubt(&self) -> bool {
        self.over > 0 && self.off < self.most
    }

    /// Judges a measurement. `now` only ever grows. Returns true when something changes.
    pub fn measured(&mut self, measured: Measured, now: Duration) -> bool {
        let Measured { cpus, tls } = measured;
        if cpus > self.cpus {
            self.over += 1;
            if self.over < OVER || self.off >= self.most {
                return false;
            }
            self.over = 0;
            let excess = cpus - self.cpus;
            // The most expensive goes first; what costs nothing would go in vain.
            let next = match self.off {
                0 if tls >= NOTICEABLE => 1,
                _ => self.most,
            };
            for one in self.excess.iter_mut().take(next).skip(self.off) {
                *one = excess;
            }
            self.off = next;
            self.sheds += 1;
            self.until = now.saturating_add(self.wait);
            self.wait = self.wait.saturating_mul(2).min(LONGEST_WAIT);
            return true;
        }
        self.over = 0;
        let Some(last) = self.off.checked_sub(1) else {
            // A long time of peace makes it bold again.
            if now >= self.until.saturating_add(self.wait) {
                self.wait = FIRST_WAIT;
            }
            return false;
        };
        let excess = self.excess.get(last).copied().unwrap_or_default();
        if now < self.until || cpus + excess > self.cpus * ROOM {
            return false;
        }
        self.off = last;
        self.until = now.saturating_add(self.wait);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn with_tls(cpus: f64) -> Measured {
        Measured { cpus, tls: 0.5 }
    }

    #[test]
    fn goes_in_order_and_comes_back_with_room() {
        let mut budget = Budget::new(1.0, 2);
        assert!(!budget.measured(with_tls(1.2), at(0)));
        assert!(budget.is_in_doubt());
        // One burst is none.
        assert!(!budget.measured(with_tls(0.5), at(1)));
        assert!(!budget.is_in_doubt());
        assert!(!budget.measured(with_tls(1.2), at(2)));
        assert!(budget.measured(with_tls(1.2), at(3)));
        assert_eq!(budget.off(), 1);
        assert!(!budget.measured(with_tls(1.3), at(4)));
        assert!(budget.measured(with_tls(1.3), at(5)));
        assert_eq!(budget.off(), 2);
        // There is no more to switch off.
        assert!(!budget.measured(with_tls(9.9), at(6)));
        assert!(!budget.measured(with_tls(9.9), at(7)));
        assert_eq!((budget.off(), budget.sheds()), (2, 2));
        // Early, or without room, nothing comes back.
        assert!(!budget.measured(with_tls(0.1), at(8)));
        assert!(!budget.measured(with_tls(0.6), at(500)));
        assert!(budget.measured(with_tls(0.1), at(501)));
        assert_eq!(budget.off(), 1);
    }

    #[test]
    fn what_costs_nothing_does_not_go_alone() {
        let mut budget = Budget::new(1.0, 2);
        let much = Measured {
            cpus: 3.0,
            tls: 0.01,
        };
        assert!(!budget.measured(much, at(0)));
        assert!(budget.measured(much, at(1)));
        assert_eq!((budget.off(), budget.sheds()), (2, 1));
        // Where tracing cannot be switched off, TLS is all there is.
        let mut budget = Budget::new(1.0, 1);
        for second in 0..9 {
            budget.measured(much, at(second));
        }
        assert_eq!((budget.off(), budget.sheds()), (1, 1));
        assert!(!budget.is_in_doubt());
    }

    #[test]
    fn what_does_not_work_is_tried_less_often() {
        let mut budget = Budget::new(1.0, 2);
        let mut now = 0;
        let mut changes = Vec::new();
        while now < 20_000 {
            // With TLS it takes 1.1, without 0.1.
            let cpus = if budget.off() == 0 { 1.1 } else { 0.1 };
            if budget.measured(with_tls(cpus), at(now)) {
                changes.push(now);
            }
            now += 30;
        }
        assert!(changes.len() < 24, "{changes:?}");
        assert!(changes.len() > 4, "{changes:?}");
    }
}
