//! What the capture thread last said of itself, for the admin endpoint.

use std::sync::{Arc, Mutex, PoisonError};

use tracer_common::abi::drop_reason;

use crate::export::ExporterStats;
use crate::ingest::Counts;
use crate::metrics::Recorded;
use crate::probes::KernelCounts;
use crate::telemetry::Usage;
use crate::telemetry::ledger::Ledger;
use crate::telemetry::open::OpenExchanges;
use crate::telemetry::snapshot::{Kubernetes, Limits, Probes, ProgramCost, Snapshot, Tls};
use crate::trace::routes::RouteCounts;
use crate::trace::sampling::SamplerCounts;
use crate::trace::sdk::SdkCounts;
use crate::trace::{JoinCounts, Link};

use super::outlet::Outlet;
use super::pods::PodStage;
use crate::meta::table::PodCounts;

/// Shared by the capture thread (which writes) and the admin endpoint (which reads).
#[derive(Debug, Default)]
pub struct Status {
    latest: Mutex<Snapshot>,
    open: Arc<OpenExchanges>,
}

/// Name of the loss that only the kernel counts; see [`crate::kernel::programs`].
const SKIPPED: &str = "kernel_skipped";

impl Status {
    /// Probes are attached.
    pub fn attached(&self, attached: usize, missing: usize, ring_bytes: usize) {
        let mut latest = self.lock();
        latest.probes = Probes {
            attached: attached as u64,
            wanted: (attached + missing) as u64,
        };
        latest.ring.size_bytes = ring_bytes as u64;
    }

    /// The kernel side's counters; the ledger's events stage is counted there.
    pub fn kernel(&self, ledger: &Ledger, counts: &KernelCounts, records: u64) {
        let skipped = self.lock().skipped_runs;
        ledger.events.set_dropped(SKIPPED, skipped);
        let mut seen = counts.submitted + skipped;
        let mut drops = Vec::with_capacity(counts.drops.len() + 1);
        drops.push((SKIPPED, skipped));
        for (index, (name, n)) in drop_reason::NAMES.into_iter().zip(counts.drops).enumerate() {
            drops.push((name, n));
            if [drop_reason::RING_FULL_DATA, drop_reason::RING_FULL_CONTROL]
                .contains(&(index as u32))
            {
                seen += n;
                ledger.events.set_dropped(name, n);
            }
        }
        ledger.events.set_seen(seen);
        ledger.events.set_exported(records);
        let mut latest = self.lock();
        latest.kernel_drops = drops;
        latest.ring.highest_bytes = counts.ring_highest;
        latest.unparsed_connections = counts.unparsed_connections.to_vec();
    }

    /// Where exchanges that have not ended are asked for.
    pub fn open(&self) -> Arc<OpenExchanges> {
        Arc::clone(&self.open)
    }

    /// Bounds of what is used.
    pub fn limits(&self, counts: Limits) {
        self.lock().limits = counts;
    }

    /// Probes in TLS libraries.
    pub fn tls(&self, counts: Tls) {
        self.lock().tls = counts;
    }

    /// What the kernel says that it left out.
    pub fn skipped_runs(&self, n: u64) {
        let mut latest = self.lock();
        if n > 0 && latest.skipped_runs == 0 {
            tracing::warn!(
                "this kernel skips probes while another one is preempted on the same CPU: what those calls moved is lost"
            );
        }
        latest.skipped_runs = n;
    }

    /// Sizes of tables.
    pub fn sizes(&self, connections: usize, processes: usize) {
        let mut latest = self.lock();
        latest.connections = connections as u64;
        latest.processes = processes as u64;
    }

    /// What is left to SDKs.
    pub fn sdks(&self, counts: SdkCounts) {
        self.lock().sdks = counts;
    }

    /// What was joined so far.
    pub fn joins(&self, counts: &JoinCounts, waiting: usize) {
        let JoinCounts {
            parents,
            roots,
            hurried,
            forgotten,
            late,
            conflicts,
        } = counts;
        let mut latest = self.lock();
        latest.parents = Link::ALL
            .into_iter()
            .map(Link::name)
            .zip(*parents)
            .chain([("none", *roots)])
            .collect();
        latest.unjoined = vec![
            ("hurried", *hurried),
            ("forgotten", *forgotten),
            ("late", *late),
            ("conflict", *conflicts),
        ];
        latest.waiting_spans = waiting as u64;
    }

    /// What was not followed.
    pub fn unfollowed(&self, counts: Vec<(&'static str, u64)>) {
        self.lock().unfollowed = counts;
    }

    /// What became of requests that could have got a header.
    pub fn propagated(&self, outcomes: Vec<(&'static str, u64)>) {
        self.lock().propagated = outcomes;
    }

    /// What is asked for less often, because it takes a walk over all connections or a system call
    /// per program.
    pub fn rarely(&self, sessions: &[(&'static str, u64)], programs: Option<Vec<ProgramCost>>) {
        let mut latest = self.lock();
        latest.sessions = sessions.to_vec();
        if let Some(programs) = programs {
            latest.programs = programs;
        }
    }

    /// What sampling and routes did so far.
    pub fn outlet(&self, outlet: &Outlet) {
        let SamplerCounts {
            kept: _,
            sampled_out: _,
            by_root,
            by_deadline,
            by_bound,
            late,
            tracestate_full,
        } = outlet.sampler().counts();
        let RouteCounts {
            configured,
            guessed,
            overflow,
        } = outlet.router().counts();
        let mut latest = self.lock();
        latest.decisions = vec![
            ("root", by_root),
            ("deadline", by_deadline),
            ("bound", by_bound),
            ("late", late),
            ("tracestate_full", tracestate_full),
        ];
        latest.undecided_spans = outlet.sampler().buffered() as u64;
        latest.routed = vec![
            ("configured", configured),
            ("guessed", guessed),
            ("overflow", overflow),
        ];
    }

    /// What Kubernetes said so far, and who waits for it.
    pub fn pods(&self, stage: &PodStage, counts: PodCounts) {
        let mut latest = self.lock();
        latest.kubernetes = Some(Kubernetes {
            store: stage.store().counts(),
            waiting_spans: stage.waiting() as u64,
            hurried: stage.hurried(),
            known: counts.known,
            awaited: counts.awaited,
            given_up: counts.given_up,
        });
    }

    /// What the sessions counted since the last call.
    pub fn sessions(&self, counts: &Counts) {
        let Counts {
            http1,
            http2,
            sessions,
            ..
        } = counts;
        let mut latest = self.lock();
        let of_http1 = [
            ("sessions", sessions.http1),
            ("upgrades_to_http2", sessions.upgraded),
            ("unsolicited_responses", http1.unsolicited_responses),
            ("responses_without_request", http1.responses_without_request),
            ("resyncs", http1.resyncs),
            ("unparsed_bytes", http1.unparsed_bytes),
            ("tls_exchanges_without_socket", counts.unbound),
        ];
        let of_http2 = [
            ("sessions", sessions.http2),
            ("responses_without_request", http2.responses_without_request),
            ("resyncs", http2.resyncs),
            ("unparsed_bytes", http2.unparsed_bytes),
            ("unknown_fields", http2.unknown_fields),
            ("broken_header_blocks", http2.broken_blocks),
            ("undecided_header_blocks", http2.undecided_blocks),
        ];
        let more = of_http1.map(|(what, n)| ("http/1", what, n)).into_iter();
        let more = more.chain(of_http2.map(|(what, n)| ("http/2", what, n)));
        if latest.sessions_counted.is_empty() {
            latest.sessions_counted = more.collect();
        } else {
            for ((_, _, total), (_, _, n)) in latest.sessions_counted.iter_mut().zip(more) {
                *total += n;
            }
        }
    }

    /// Everything counted, now.
    pub fn snapshot(
        &self,
        ledger: &Ledger,
        exporters: &[Arc<ExporterStats>],
        recorded: &Recorded,
    ) -> Snapshot {
        let mut snapshot = self.lock().clone();
        snapshot.ledger = ledger.snapshot();
        snapshot.bytes = ledger.bytes.snapshot();
        snapshot.services = ledger.services.snapshot();
        snapshot.usage = Usage::now();
        snapshot.exporters = exporters.iter().map(|stats| stats.snapshot()).collect();
        snapshot.recorder = recorded.counts();
        snapshot.graph = recorded.graph_counts();
        snapshot
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Snapshot> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
