//! The attribute sets of one process.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHasher};

use super::histogram::{Exemplar, Histogram};
use crate::trace::semconv::metric::{Instrument, MetricAttributes};

/// Attribute sets of one instrument of one process; further ones share the overflow series.
pub const MAX_SETS: usize = 1000;
/// Sets whose hashes fall together that are told apart. More is somebody's intention.
const MAX_PROBES: u64 = 8;

/// What a series counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeriesKey {
    /// Measurements with these attributes.
    Set(MetricAttributes<'static>),
    /// Measurements of sets beyond the bound.
    Overflow(Instrument),
}

impl SeriesKey {
    /// The histogram it belongs to.
    pub fn instrument(&self) -> Instrument {
        match self {
            SeriesKey::Set(attributes) => attributes.instrument,
            SeriesKey::Overflow(instrument) => *instrument,
        }
    }
}

/// One histogram with its attributes.
#[derive(Debug)]
pub struct Series {
    /// Its attributes.
    pub key: SeriesKey,
    /// When it began, wall clock.
    pub start_unix_ns: u64,
    /// The measurements.
    pub histogram: Histogram,
}

impl Series {
    fn new(key: SeriesKey, start_unix_ns: u64) -> Self {
        Series {
            key,
            start_unix_ns,
            histogram: Histogram::default(),
        }
    }
}

/// What was found for a measurement.
pub(super) enum Found {
    /// The series, and whether it is new.
    Series(Arc<Series>),
    /// A new one.
    New(Arc<Series>),
}

/// The recording thread's way from attributes to series.
#[derive(Debug, Default)]
pub(super) struct Table {
    series: FxHashMap<u64, Arc<Series>>,
    sets: [usize; Instrument::ALL.len()],
    overflow: [Option<Arc<Series>>; Instrument::ALL.len()],
}

impl Table {
    /// Series of this table.
    pub(super) fn len(&self) -> usize {
        self.series.len() + self.overflow.iter().flatten().count()
    }

    /// The series of `attributes`, if there is one.
    pub(super) fn get(&self, attributes: &MetricAttributes<'_>) -> Option<&Arc<Series>> {
        match self.probe(attributes) {
            Ok(series) => Some(series),
            Err(_) => self.overflow.get(attributes.instrument as usize)?.as_ref(),
        }
    }

    /// The series of `attributes`, made if there is room (`may_grow`), else that of the overflow.
    pub(super) fn find(
        &mut self,
        attributes: MetricAttributes<'_>,
        unix_ns: u64,
        may_grow: bool,
    ) -> Found {
        let free = match self.probe(&attributes) {
            Ok(series) => return Found::Series(Arc::clone(series)),
            Err(free) => free,
        };
        let instrument = attributes.instrument;
        let sets = self.sets.get_mut(instrument as usize);
        if let (Some(free), Some(sets)) = (free, sets)
            && may_grow
            && *sets < MAX_SETS
        {
            *sets += 1;
            let key = SeriesKey::Set(attributes.into_owned());
            let series = Arc::new(Series::new(key, unix_ns));
            self.series.insert(free, Arc::clone(&series));
            return Found::New(series);
        }
        match self.overflow.get_mut(instrument as usize) {
            Some(Some(series)) => Found::Series(Arc::clone(series)),
            slot => {
                let series = Arc::new(Series::new(SeriesKey::Overflow(instrument), unix_ns));
                if let Some(slot) = slot {
                    *slot = Some(Arc::clone(&series));
                }
                Found::New(series)
            }
        }
    }

    /// The series, or a free place for it if there is one.
    fn probe(&self, attributes: &MetricAttributes<'_>) -> Result<&Arc<Series>, Option<u64>> {
        let mut hasher = FxHasher::default();
        attributes.hash(&mut hasher);
        let hash = hasher.finish();
        for probe in 0..MAX_PROBES {
            let place = hash.wrapping_add(probe);
            match self.series.get(&place) {
                None => return Err(Some(place)),
                Some(series) if matches!(&series.key, SeriesKey::Set(known) if known == attributes) =>
                {
                    return Ok(series);
                }
                Some(_) => {}
            }
        }
        Err(None)
    }
}

/// Counts a measurement and, if it leads to a trace, remembers that.
pub(super) fn exemplar_of(span: &crate::trace::Span, duration_ns: u64) -> Exemplar {
    Exemplar {
        bucket: super::histogram::bucket_of(duration_ns),
        duration_ns,
        unix_ns: span.end_unix_ns,
        trace_id: span.trace_id,
        span_id: span.span_id,
    }
}
