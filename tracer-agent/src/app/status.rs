//! What the capture thread last said of itself, for the admin endpoint.

use std::sync::{Arc, Mutex, PoisonError};

use tracer_common::abi::drop_reason;

use crate::export::ExporterStats;
use crate::ingest::Counts;
use crate::probes::KernelCounts;
use crate::telemetry::Usage;
use crate::telemetry::ledger::Ledger;
use crate::telemetry::metrics::{Exporter, Probes, Snapshot, Tls, render};

/// Shared by the capture thread (which writes) and the admin endpoint (which reads).
#[derive(Debug, Default)]
pub struct Status {
    latest: Mutex<Snapshot>,
}

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
        let mut seen = counts.submitted;
        let mut drops = Vec::with_capacity(counts.drops.len());
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

    /// Probes in TLS libraries.
    pub fn tls(&self, counts: Tls) {
        self.lock().tls = counts;
    }

    /// Sizes of tables.
    pub fn sizes(&self, connections: usize, processes: usize) {
        let mut latest = self.lock();
        latest.connections = connections as u64;
        latest.sessions = connections as u64;
        latest.processes = processes as u64;
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
        latest.lost_bytes += counts.lost_bytes;
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

    /// The metrics page.
    pub fn page(&self, ledger: &Ledger, exporters: &[Arc<ExporterStats>]) -> String {
        let mut snapshot = self.lock().clone();
        snapshot.ledger = ledger.snapshot();
        snapshot.usage = Usage::now();
        snapshot.exporters = exporters.iter().map(|stats| exporter(stats)).collect();
        render(&snapshot)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Snapshot> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exporter(stats: &ExporterStats) -> Exporter {
    let now = stats.snapshot();
    Exporter {
        exporter: now.exporter,
        batches: now.batches,
        spans: now.spans,
        lost: now.lost,
        attempts: now.attempts,
        failures: now.failures,
        retries: now.retries,
        attempt_ns: now.attempt_ns,
        backlog: now.backlog,
    }
}
