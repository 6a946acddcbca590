//! Spans per second: thresholds that follow the rate of each service.
//!
//! In: the spans of decided traces, each with the probability that the standard sampler gave it.
//! Out: once a second, a threshold per service. A threshold is made from what was offered before,
//! never from what was kept nor from a trace's own randomness, so the adjusted counts of the spans
//! that it keeps are exact. It is a goal and not a limit: a burst passes until the rate has followed.

use rustc_hash::FxHashMap;

use super::threshold::Threshold;

/// Services with a budget of their own; all further ones share one.
const MAX_SERVICES: usize = 1024;
/// Thresholds are made anew this often.
const WINDOW_NS: u64 = 1_000_000_000;
/// Weight of the newest window in the rates: about three windows to follow a change.
const WEIGHT: f64 = 0.3;
/// Share of the budget that is left to ordinary traces, however many are kept for themselves.
const ORDINARY: f64 = 0.01;
/// The probability rises at most so much per window, falls as fast as it must.
const RISE: f64 = 2.0;
/// A service unheard of for so many windows is forgotten.
const IDLE_WINDOWS: u32 = 60;

/// The budgets of all services.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    services: FxHashMap<Box<str>, Service>,
    window_start_ns: u64,
}

#[derive(Debug)]
struct Service {
    goal: f64,
    /// Of ordinary traces: the share that the budget lets through.
    share: f64,
    threshold: Threshold,
    /// In this window.
    now: Rates,
    /// Per second, smoothed; `None` before the first window ended.
    smooth: Option<Rates>,
    idle: u32,
}

/// Spans by who limits them.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    /// Kept for themselves.
    certain: f64,
    /// Expected to be kept, by probabilities below that of the budget.
    below: f64,
    /// Offered with probabilities above that of the budget.
    above: f64,
}

impl Budgets {
    /// The threshold of `service`, which has this goal.
    pub(super) fn threshold(&mut self, service: &str, goal: f64) -> Threshold {
        let service = self.service(service, goal);
        service.map_or(Threshold::ALWAYS, |service| service.threshold)
    }

    /// A span of `service` was decided about. `probability` is what it was before this budget; 1 for
    /// one that was kept for itself.
    pub(super) fn note(&mut self, service: &str, goal: f64, certain: bool, probability: f64) {
        let Some(service) = self.service(service, goal) else {
            return;
        };
        let Rates {
            certain: of_certain,
            below,
            above,
        } = &mut service.now;
        match (certain, probability >= service.share) {
            (true, _) => *of_certain += 1.0,
            (false, true) => *above += 1.0,
            (false, false) => *below += probability,
        }
    }

    /// Time passed.
    pub(super) fn tick(&mut self, now_ns: u64) {
        let elapsed_ns = now_ns.saturating_sub(self.window_start_ns);
        if elapsed_ns < WINDOW_NS {
            return;
        }
        let first = self.window_start_ns == 0;
        self.window_start_ns = now_ns;
        if first {
            return;
        }
        let seconds = elapsed_ns as f64 / WINDOW_NS as f64;
        self.services.retain(|_, service| service.adapt(seconds));
    }

    /// There always is one.
    fn service(&mut self, name: &str, goal: f64) -> Option<&mut Service> {
        let known = self.services.contains_key(name);
        let name = if known || self.services.len() < MAX_SERVICES {
            name
        } else {
            ""
        };
        if !self.services.contains_key(name) {
            self.services.insert(name.into(), Service::new(goal));
        }
        let service = self.services.get_mut(name)?;
        service.goal = goal;
        Some(service)
    }
}

impl Service {
    fn new(goal: f64) -> Service {
        Service {
            goal,
            share: 1.0,
            threshold: Threshold::ALWAYS,
            now: Rates::default(),
            smooth: None,
            idle: 0,
        }
    }

    /// A window of so many seconds ended. Returns false when the service can be forgotten.
    fn adapt(&mut self, seconds: f64) -> bool {
        let Rates {
            certain,
            below,
            above,
        } = std::mem::take(&mut self.now);
        let is_idle = certain + below + above == 0.0;
        self.idle = if is_idle { self.idle + 1 } else { 0 };
        let blend = |old: f64, count: f64| old + (count / seconds - old) * WEIGHT;
        let rates = match self.smooth {
            None => Rates {
                certain: certain / seconds,
                below: below / seconds,
                above: above / seconds,
            },
            Some(old) => Rates {
                certain: blend(old.certain, certain),
                below: blend(old.below, below),
                above: blend(old.above, above),
            },
        };
        self.smooth = Some(rates);
        let room = (self.goal - rates.certain).max(self.goal * ORDINARY);
        let wanted = (room - rates.below) / rates.above;
        // No number, infinite or negative: nothing is offered, or others take all there is.
        let wanted = if rates.above <= 0.0 { 1.0 } else { wanted };
        let floor = self.goal * ORDINARY / rates.above.max(self.goal);
        self.share = wanted.max(floor).min(self.share * RISE).min(1.0);
        self.threshold = Threshold::of_probability(self.share);
        self.idle < IDLE_WINDOWS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds of a constant offer; returns what was let through in the last of them.
    fn offer(budgets: &mut Budgets, from: u64, seconds: u64, ordinary: u32, errors: u32) -> f64 {
        let mut kept = 0.0;
        for second in from..from + seconds {
            kept = f64::from(errors);
            for _ in 0..ordinary {
                kept += budgets.threshold("shop", 100.0).probability();
                budgets.note("shop", 100.0, false, 1.0);
            }
            for _ in 0..errors {
                budgets.note("shop", 100.0, true, 1.0);
            }
            budgets.tick((second + 1) * WINDOW_NS);
        }
        kept
    }

    #[test]
    fn the_rate_is_followed_up_and_down() {
        let mut budgets = Budgets::default();
        budgets.tick(WINDOW_NS);
        let near = |kept: f64, wanted: f64| {
            assert!((kept - wanted).abs() < wanted * 0.1, "{kept}, not {wanted}");
        };
        near(offer(&mut budgets, 1, 20, 50, 0), 50.0);
        near(offer(&mut budgets, 21, 20, 5000, 0), 100.0);
        near(offer(&mut budgets, 41, 20, 5000, 40), 100.0);
        near(offer(&mut budgets, 61, 20, 5000, 500), 501.0);
        near(offer(&mut budgets, 81, 40, 50, 0), 50.0);
    }

    #[test]
    fn lower_probabilities_leave_room_for_others() {
        let mut budgets = Budgets::default();
        budgets.tick(WINDOW_NS);
        let mut kept = 0.0;
        for second in 1..40 {
            kept = 0.0;
            for _ in 0..1000 {
                for head in [1.0, 0.02] {
                    let share = budgets.threshold("shop", 100.0).probability();
                    kept += f64::min(share, head);
                    budgets.note("shop", 100.0, false, head);
                }
            }
            budgets.tick((second + 1) * WINDOW_NS);
        }
        assert!((kept - 100.0).abs() < 5.0, "{kept}");
    }

    #[test]
    fn services_are_bounded_and_forgotten() {
        let mut budgets = Budgets::default();
        for number in 0..5000 {
            budgets.note(&number.to_string(), 1.0, false, 1.0);
        }
        assert!(budgets.services.len() <= MAX_SERVICES + 1);
        for second in 1..100 {
            budgets.tick(second * WINDOW_NS);
        }
        assert!(budgets.services.is_empty());
    }
}
