//! The ledger by service, from a finished exchange to its delivery.
//!
//! In: what became of spans and of exchanges that never became one. Out: one row per service in which
//! `seen = exported + sampled_out + sum(dropped) + unknown + pending` holds at every moment: pending
//! is derived. An exchange enters when it ends, because only then it is known whose it is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::meta::Process;
use crate::trace::Span;

/// Services that have a row of their own; further ones share [`OTHERS`].
const MAX_SERVICES: usize = 1024;
/// Name of the row that services beyond the bound share.
pub const OTHERS: &str = "(others)";

/// What became of spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every exporter delivered them.
    Exported,
    /// Left out by sampling.
    SampledOut,
    /// Lost, for this reason.
    Dropped(&'static str),
    /// A backend took part of them and did not say which.
    Unknown,
}

/// All services. Cheap to lock: it is asked once per batch.
#[derive(Debug, Default)]
pub struct Services {
    rows: Mutex<BTreeMap<Box<str>, ServiceSnapshot>>,
}

/// One service at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ServiceSnapshot {
    /// Exchanges that ended.
    pub seen: u64,
    /// Delivered by every exporter.
    pub exported: u64,
    /// Left out by sampling.
    pub sampled_out: u64,
    /// Lost, by reason: given up before a span was made, or as a span.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Of these a backend refused some and did not say which.
    pub unknown: u64,
    /// On their way.
    pub pending: u64,
}

impl Services {
    /// Spans on their way to the exporters.
    pub fn entered(&self, spans: &[Span]) {
        let mut rows = self.lock();
        for_each_service(spans, |service, n| row(&mut rows, service).seen += n);
    }

    /// Spans that entered before and are done.
    pub fn settled(&self, spans: &[Span], outcome: Outcome) {
        let mut rows = self.lock();
        for_each_service(spans, |service, n| {
            row(&mut rows, service).settle(outcome, n)
        });
    }

    /// Spans that entered before, of which so many were lost and the others exported, but nobody said
    /// which. If all are of one service that is no matter.
    pub fn settled_in_part(&self, spans: &[Span], lost: &[(&'static str, u64)]) {
        let mut services = Vec::new();
        for_each_service(spans, |service, n| services.push((service.to_owned(), n)));
        let mut rows = self.lock();
        if let Some((service, _)) = services.first()
            && services.iter().all(|(other, _)| other == service)
        {
            let row = row(&mut rows, service);
            let mut left = spans.len() as u64;
            for (reason, n) in lost {
                let n = (*n).min(left);
                left -= n;
                row.settle(Outcome::Dropped(reason), n);
            }
            row.settle(Outcome::Exported, left);
            return;
        }
        for (service, n) in services {
            row(&mut rows, &service).settle(Outcome::Unknown, n);
        }
    }

    /// `n` exchanges of `service` that are done without having entered.
    pub fn ended(&self, service: &str, outcome: Outcome, n: u64) {
        let mut rows = self.lock();
        let row = row(&mut rows, service);
        row.seen += n;
        row.settle(outcome, n);
    }

    /// All rows by the services' names.
    pub fn snapshot(&self) -> BTreeMap<Box<str>, ServiceSnapshot> {
        let mut rows = self.lock().clone();
        for row in rows.values_mut() {
            let done = row.exported + row.sampled_out + row.dropped.values().sum::<u64>();
            row.pending = row.seen.saturating_sub(done + row.unknown);
        }
        rows
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, ServiceSnapshot>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServiceSnapshot {
    fn settle(&mut self, outcome: Outcome, n: u64) {
        match outcome {
            Outcome::Exported => self.exported += n,
            Outcome::SampledOut => self.sampled_out += n,
            Outcome::Dropped(reason) if n > 0 => *self.dropped.entry(reason).or_default() += n,
            Outcome::Dropped(_) => {}
            Outcome::Unknown => self.unknown += n,
        }
    }
}

fn row<'a>(
    rows: &'a mut BTreeMap<Box<str>, ServiceSnapshot>,
    service: &str,
) -> &'a mut ServiceSnapshot {
    let name = if rows.contains_key(service) || rows.len() < MAX_SERVICES {
        service
    } else {
        OTHERS
    };
    rows.entry(name.into()).or_default()
}

/// Spans are mostly those of a few processes in turn: counted by process, then looked up. A service may be
/// told of more than once.
fn for_each_service(spans: &[Span], mut each: impl FnMut(&str, u64)) {
    /// Further back than this no process is looked for.
    const NEAR: usize = 8;
    let mut counted: Vec<(&Arc<Process>, u64)> = Vec::new();
    for span in spans {
        let mut near = counted.iter_mut().rev().take(NEAR);
        match near.find(|(process, _)| Arc::ptr_eq(process, &span.process)) {
            Some((_, n)) => *n += 1,
            None => counted.push((&span.process, 1)),
        }
    }
    for (process, n) in counted {
        each(&process.service_name, n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::tests::spans;

    #[test]
    fn rows_add_up_whatever_happens() {
        let services = Services::default();
        let spans = spans(10);
        services.entered(&spans);
        services.settled(&spans[..4], Outcome::Exported);
        services.settled(&spans[4..6], Outcome::Dropped("queue_full"));
        services.settled(&spans[6..7], Outcome::Unknown);
        services.settled_in_part(&spans[7..9], &[("rejected", 1)]);
        services.ended("shop", Outcome::SampledOut, 5);
        services.ended("shop", Outcome::Dropped("lost"), 2);
        let expected = ServiceSnapshot {
            seen: 17,
            exported: 5,
            sampled_out: 5,
            dropped: BTreeMap::from([("lost", 2), ("queue_full", 2), ("rejected", 1)]),
            unknown: 1,
            pending: 1,
        };
        assert_eq!(services.snapshot().remove("shop"), Some(expected));
    }

    #[test]
    fn a_loss_among_several_services_is_nobody_s_in_particular() {
        let services = Services::default();
        let mut spans = spans(4);
        let mut other = (*spans[0].process).clone();
        other.service_name = "bank".into();
        spans[3].process = other.into();
        services.entered(&spans);
        services.settled_in_part(&spans, &[("rejected", 1)]);
        for (service, n) in [("shop", 3), ("bank", 1)] {
            let row = services.snapshot().remove(service).expect("a row");
            assert_eq!((row.seen, row.unknown, row.pending), (n, n, 0));
        }
    }

    #[test]
    fn services_beyond_the_bound_share_a_row() {
        let services = Services::default();
        for service in 0..MAX_SERVICES + 10 {
            services.ended(&format!("s{service}"), Outcome::Exported, 1);
        }
        let rows = services.snapshot();
        assert_eq!(rows.len(), MAX_SERVICES + 1);
        assert_eq!(rows.get(OTHERS).map(|row| row.seen), Some(10));
    }
}
