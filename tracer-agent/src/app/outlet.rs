//! From finished spans to the export queue: metrics, names of routes, sampling, and what of it is
//! counted.
//!
//! In: spans with their final ids. Out: those to export, to the queue. The ledger's `exchanges`
//! stage counts here what was handed on and what was sampled out; what waits for a decision is
//! pending there.

use std::sync::Arc;

use crate::config::Config;
use crate::export::SpanSink;
use crate::metrics::Recorder;
use crate::telemetry::ledger::Ledger;
use crate::telemetry::services::Outcome;
use crate::trace::Span;
use crate::trace::routes::{self, Router};
use crate::trace::sampling::{self, Sampler};
use crate::trace::sdk::Left;

/// The last stages before the queue.
#[derive(Debug)]
pub struct Outlet {
    /// Sees every span: metrics count what sampling leaves out too.
    recorder: Option<Recorder>,
    router: Router,
    sampler: Sampler,
    sink: SpanSink,
    ledger: Arc<Ledger>,
    /// Told to the ledger so far.
    sampled_out: u64,
}

impl Outlet {
    /// By the configuration.
    pub fn new(
        config: &Config,
        recorder: Option<Recorder>,
        sink: SpanSink,
        ledger: Arc<Ledger>,
    ) -> Self {
        Outlet {
            recorder,
            router: Router::new(config.routes.clone()),
            sampler: Sampler::new(config.sampling.clone()),
            sink,
            ledger,
            sampled_out: 0,
        }
    }

    /// Takes finished spans.
    pub fn take(&mut self, mut spans: Vec<Span>, now_ns: u64) {
        for span in &mut spans {
            if let Some(recorder) = &mut self.recorder {
                recorder.record(span);
            }
            self.router.route(span);
        }
        // Without sampling all stay where they are.
        let other = spans.iter_mut().position(|span| !self.sampler.keeps(span));
        if let Some(first) = other {
            for span in spans.split_off(first) {
                self.sampler.push(span, now_ns, &mut spans);
            }
        }
        self.hand_on(spans);
    }

    /// What SDKs report: counts the durations of what no SDK counts.
    pub fn left(&mut self, left: &[Left]) {
        if let Some(recorder) = &mut self.recorder {
            let counted = left.iter().filter(|left| left.counted);
            counted.for_each(|left| recorder.record(&left.span));
        }
    }

    /// Time passed.
    pub fn tick(&mut self, now_ns: u64) {
        let mut kept = Vec::new();
        self.sampler.tick(now_ns, &mut kept);
        self.hand_on(kept);
        if let Some(recorder) = &mut self.recorder {
            recorder.expire(now_ns);
        }
    }

    /// What is known of a process may go: it ended.
    pub fn process_ended(&mut self, tgid: u32, time_ns: u64) {
        if let Some(recorder) = &mut self.recorder {
            recorder.process_ended(tgid, time_ns);
        }
    }

    /// The end: decides about everything.
    pub fn finish(&mut self) {
        let mut kept = Vec::new();
        self.sampler.finish(&mut kept);
        self.hand_on(kept);
    }

    /// What decides.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// What names.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Follows other settings from now on.
    pub fn reload(&mut self, sampling: sampling::Settings, routes: routes::Settings) {
        self.sampler.reload(sampling);
        self.router.reload(routes);
    }

    fn hand_on(&mut self, kept: Vec<Span>) {
        let exchanges = &self.ledger.exchanges;
        let sampled_out = self.sampler.counts().sampled_out;
        exchanges.sampled_out(sampled_out - self.sampled_out);
        self.sampled_out = sampled_out;
        let left_out = self.sampler.take_left_out();
        if !left_out.is_empty() {
            self.ledger.services.entered(&left_out);
            self.ledger.services.settled(&left_out, Outcome::SampledOut);
        }
        if !kept.is_empty() {
            if let Some(recorder) = &mut self.recorder {
                // Examples are of spans that can be looked up.
                kept.iter().for_each(|span| recorder.exemplar(span));
            }
            exchanges.exported(kept.len() as u64);
            self.sink.submit(kept);
        }
    }
}
