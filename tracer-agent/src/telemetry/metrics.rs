//! The agent's own metrics: declared once in [`METRICS`], read from a [`Snapshot`] for `/metrics`
//! and for OTLP, documented in `docs/metrics.md` from the same table.
//!
//! It cannot see the durations of traced requests: those are in the room `metrics`.

use std::fmt::Write as _;

use super::exposition::{Format, Kind, Page};
use super::ledger::BytesSnapshot;
use super::snapshot::{Kubernetes, ProgramCost, Snapshot};
use crate::metrics::{GraphCounts, Recorded, page as red};

/// One metric of the table.
pub struct Metric {
    /// Its name, units and `_total` included.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Names of its labels, in the order [`Metric::read`] gives their values.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
    read: fn(&Snapshot, &mut Samples<'_>),
}

/// One value of a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Values of the metric's labels, in their order.
    pub labels: Vec<String>,
    /// The number.
    pub value: Number,
}

/// Counts are exact, times are not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// A count.
    Count(u64),
    /// Anything else.
    Float(f64),
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Number::Count(count) => count.fmt(f),
            Number::Float(number) => number.fmt(f),
        }
    }
}

impl Metric {
    /// Its values.
    pub fn points(&self, now: &Snapshot) -> Vec<Point> {
        let mut points = Vec::new();
        (self.read)(now, &mut Samples(&mut points));
        points
    }
}

/// Takes the samples of one metric.
struct Samples<'a>(&'a mut Vec<Point>);

impl Samples<'_> {
    fn count(&mut self, labels: &[&str], value: u64) {
        self.point(labels, Number::Count(value));
    }

    fn number(&mut self, labels: &[&str], value: f64) {
        self.point(labels, Number::Float(value));
    }

    fn point(&mut self, labels: &[&str], value: Number) {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.0.push(Point { labels, value });
    }
}

macro_rules! metrics {
    ($($name:literal $kind:ident [$($label:literal),*] $help:literal => |$now:ident, $out:ident| $read:expr;)*) => {
        /// Every metric of the agent about itself.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: $name,
            kind: Kind::$kind,
            labels: &[$($label),*],
            help: $help,
            read: |$now, $out| $read,
        },)*];
    };
}

metrics! {
    "tracer_agent_build_info" Gauge ["version", "arch"] "Always 1; says which build runs." => |_now, out|
        out.count(&[env!("CARGO_PKG_VERSION"), std::env::consts::ARCH], 1);
    "tracer_agent_probes_wanted" Gauge [] "eBPF programs to be attached on this kernel." => |now, out|
        out.count(&[], now.probes.wanted);
    "tracer_agent_probes_attached" Gauge [] "eBPF programs attached; all of them are when the agent is ready." => |now, out|
        out.count(&[], now.probes.attached);
    "tracer_agent_memory_limit_bytes" Gauge [] "Bound of the agent's memory; absent without one." => |now, out|
        if let Some(bytes) = now.limits.memory_bytes {
            out.count(&[], bytes);
        };
    "tracer_agent_memory_sheds_total" Counter [] "Times the agent used more memory than that, and gave up what was open." => |now, out|
        out.count(&[], now.limits.memory_sheds);
    "tracer_agent_cpu_limit_cores" Gauge [] "CPUs that the agent and its eBPF programs may take (`limits.cpu`); absent without a limit." => |now, out|
        if let Some(cpu) = &now.limits.cpu {
            out.number(&[], cpu.cpus);
        };
    "tracer_agent_cpu_used_cores" Gauge [] "CPUs that they took when it was last measured; absent without a limit." => |now, out|
        if let Some(cpu) = &now.limits.cpu {
            out.number(&[], cpu.used);
        };
    "tracer_agent_cpu_switched_off" Gauge ["feature"] "1 for what is switched off because more CPU was taken; absent without a limit." => |now, out|
        if let Some(cpu) = &now.limits.cpu {
            for (feature, off) in &cpu.off {
                out.count(&[feature], u64::from(*off));
            }
        };
    "tracer_agent_cpu_sheds_total" Counter [] "Times that something was switched off because more CPU was taken; absent without a limit." => |now, out|
        if let Some(cpu) = &now.limits.cpu {
            out.count(&[], cpu.sheds);
        };
    "tracer_agent_tls_files" Gauge [] "Files with a TLS library that has probes." => |now, out|
        out.count(&[], now.tls.files);
    "tracer_agent_tls_probes" Gauge [] "Probes in TLS libraries." => |now, out|
        out.count(&[], now.tls.probes);
    "tracer_agent_tls_failures_total" Counter [] "Files, or functions of them, that could not be looked into for TLS or probed; the log says why." => |now, out|
        out.count(&[], now.tls.failures);
    "tracer_agent_kubernetes_watches" Gauge ["state"] "Watches of the Kubernetes API: wanted, and standing at the moment. Only where Kubernetes is asked, as all of these." => |now, out|
        if let Some(Kubernetes { store, .. }) = &now.kubernetes {
            out.count(&["wanted"], store.wanted);
            out.count(&["standing"], store.watching);
        };
    "tracer_agent_kubernetes_objects" Gauge ["what"] "What is known of Kubernetes: pods of this node, containers by their ids, addresses of peers." => |now, out|
        if let Some(Kubernetes { store, .. }) = &now.kubernetes {
            for (what, n) in [("pods", store.pods), ("containers", store.containers), ("addresses", store.addresses)] {
                out.count(&[what], n);
            }
        };
    "tracer_agent_kubernetes_api_total" Counter ["what"] "What the watches of the Kubernetes API counted: lists taken, changes told (events), failures (refused, broken off, out of reach), objects that could not be read (malformed) or for which there was no room (left_out)." => |now, out|
        if let Some(Kubernetes { store, .. }) = &now.kubernetes {
            for (what, n) in [("lists", store.lists), ("events", store.events), ("failures", store.failures), ("malformed", store.malformed), ("left_out", store.left_out)] {
                out.count(&[what], n);
            }
        };
    "tracer_agent_kubernetes_waiting_spans" Gauge [] "Spans that wait for what Kubernetes says of their pod." => |now, out|
        if let Some(kubernetes) = &now.kubernetes {
            out.count(&[], kubernetes.waiting_spans);
        };
    "tracer_agent_kubernetes_lookups_total" Counter ["outcome"] "Processes whose container was known when their first span came (known); containers whose spans waited (awaited), and waited in vain (given_up); spans let go because too many waited (hurried)." => |now, out|
        if let Some(Kubernetes { known, awaited, given_up, hurried, .. }) = &now.kubernetes {
            for (outcome, n) in [("known", known), ("awaited", awaited), ("given_up", given_up), ("hurried", hurried)] {
                out.count(&[outcome], *n);
            }
        };
    "tracer_agent_stage_seen_total" Counter ["stage"] "What entered a stage of the pipeline: events, exchanges, spans, spool." => |now, out|
        for (name, stage) in &now.ledger {
            out.count(&[name], stage.seen);
        };
    "tracer_agent_stage_exported_total" Counter ["stage"] "What a stage handed on." => |now, out|
        for (name, stage) in &now.ledger {
            out.count(&[name], stage.exported);
        };
    "tracer_agent_stage_sampled_out_total" Counter ["stage"] "What sampling left out at a stage, on purpose." => |now, out|
        for (name, stage) in &now.ledger {
            out.count(&[name], stage.sampled_out);
        };
    "tracer_agent_stage_dropped_total" Counter ["stage", "reason"] "What a stage lost, by reason; no series means no loss." => |now, out|
        for (name, stage) in &now.ledger {
            for (reason, count) in &stage.dropped {
                out.count(&[name, reason], *count);
            }
        };
    "tracer_agent_stage_pending" Gauge ["stage"] "What is inside a stage: seen minus exported, sampled out and dropped." => |now, out|
        for (name, stage) in &now.ledger {
            out.count(&[name], stage.pending);
        };
    "tracer_agent_sampler_decisions_total" Counter ["by"] "Traces decided because their root was known, at the deadline or because too many waited; spans that came late; tracestates without room." => |now, out|
        for (by, n) in &now.decisions {
            out.count(&[by], *n);
        };
    "tracer_agent_sampler_waiting_spans" Gauge [] "Spans that wait for a sampling decision." => |now, out|
        out.count(&[], now.undecided_spans);
    "tracer_agent_route_spans_total" Counter ["by"] "Spans named by configured routes, by guessed ones, or by none because a bound was reached." => |now, out|
        for (by, n) in &now.routed {
            out.count(&[by], *n);
        };
    "tracer_agent_kernel_drops_total" Counter ["reason"] "What the kernel side gave up, by reason." => |now, out|
        for (reason, count) in &now.kernel_drops {
            out.count(&[reason], *count);
        };
    "tracer_agent_connections_unparsed_total" Counter ["protocol"] "Connections that the kernel side found to speak something that is not parsed." => |now, out|
        for (protocol, count) in &now.unparsed_connections {
            out.count(&[protocol], *count);
        };
    "tracer_agent_sessions_total" Counter ["protocol", "what"] "What protocol sessions counted beside exchanges. Both: sessions begun, responses whose request was not seen, directions that had to look for the next message or frame (resyncs), bytes that belong to no message or frame. http/1: upgrades to HTTP/2 (the session goes on), responses nobody asked for. http/2: header fields that refer to what was not seen, header blocks that could not be read to their ends, header blocks of which it is not known what they belong to." => |now, out|
        for (protocol, what, count) in &now.sessions_counted {
            out.count(&[protocol, what], *count);
        };
    "tracer_agent_lost_bytes_total" Counter [] "Bytes of traced connections that were lost between the kernel side and the parsers, found by position." => |now, out|
        out.count(&[], now.bytes.lost);
    "tracer_agent_bytes_total" Counter ["what"] "Bytes of traced connections: seen is the sum of parsed, skipped (left out on purpose) and lost." => |now, out| {
        let BytesSnapshot { seen, parsed, skipped, lost } = now.bytes;
        for (what, bytes) in [("seen", seen), ("parsed", parsed), ("skipped", skipped), ("lost", lost)] {
            out.count(&[what], bytes);
        }
    };
    "tracer_agent_service_seen_total" Counter ["service"] "Exchanges of a service that ended." => |now, out|
        for (service, row) in &now.services {
            out.count(&[service], row.seen);
        };
    "tracer_agent_service_exported_total" Counter ["service"] "Exchanges of a service whose span every exporter delivered." => |now, out|
        for (service, row) in &now.services {
            out.count(&[service], row.exported);
        };
    "tracer_agent_service_sampled_out_total" Counter ["service"] "Exchanges of a service that sampling left out, on purpose." => |now, out|
        for (service, row) in &now.services {
            out.count(&[service], row.sampled_out);
        };
    "tracer_agent_service_dropped_total" Counter ["service", "reason"] "Exchanges of a service that were lost, by reason; no series means no loss." => |now, out|
        for (service, row) in &now.services {
            for (reason, count) in &row.dropped {
                out.count(&[service, reason], *count);
            }
        };
    "tracer_agent_service_unknown_total" Counter ["service"] "Exchanges of a service in batches of which a part was lost and nobody said which." => |now, out|
        for (service, row) in &now.services {
            out.count(&[service], row.unknown);
        };
    "tracer_agent_service_pending" Gauge ["service"] "Spans of a service that are on their way." => |now, out|
        for (service, row) in &now.services {
            out.count(&[service], row.pending);
        };
    "tracer_agent_parents_total" Counter ["method"] "Spans by how their parent was found; none: they begin a trace." => |now, out|
        for (method, count) in &now.parents {
            out.count(&[method], *count);
        };
    "tracer_agent_unjoined_total" Counter ["reason"] "Where joining fell short: spans let go before their trace was certain (hurried), exchanges forgotten before they ended (forgotten), ends of one connection on this host found too late, as far as both have addresses that say so (late), a trace id that was on the wire before it turned out that there was another one (conflict)." => |now, out|
        for (reason, count) in &now.unjoined {
            out.count(&[reason], *count);
        };
    "tracer_agent_unfollowed_total" Counter ["reason"] "Times that a process was not looked into for what its calls are made for, because too many waited for it (queue_full) or too many are followed (table_full); ends of followed processes of which not all was taken back at once (end_later)." => |now, out|
        for (reason, count) in &now.unfollowed {
            out.count(&[reason], *count);
        };
    "tracer_agent_propagated_total" Counter ["outcome"] "With --propagate: requests by what became of them. injected: got a header; option: context went out in a TCP option; received: came in in one, which is not one of the requests sent; all others were left as they were." => |now, out|
        for (outcome, count) in &now.propagated {
            out.count(&[outcome], *count);
        };
    "tracer_agent_waiting_spans" Gauge [] "Spans that wait until their trace is certain." => |now, out|
        out.count(&[], now.waiting_spans);
    "tracer_agent_sdk_processes" Gauge [] "Processes whose own OpenTelemetry SDK exports spans." => |now, out|
        out.count(&[], now.sdks.processes);
    "tracer_agent_sdk_waiting_spans" Gauge [] "Spans that wait until it is known what their process's SDK reports." => |now, out|
        out.count(&[], now.sdks.waiting);
    "tracer_agent_sdk_left_spans_total" Counter [] "Spans that were left to an SDK, as the ledger's `reported_by_sdk`." => |now, out|
        out.count(&[], now.sdks.left);
    "tracer_agent_sdk_hurried_spans_total" Counter [] "Spans whose SDK was judged early, because too many waited." => |now, out|
        out.count(&[], now.sdks.hurried);
    "tracer_agent_ring_highest_bytes" Gauge [] "Most bytes that ever waited in the ring buffer to be read." => |now, out|
        out.count(&[], now.ring.highest_bytes);
    "tracer_agent_ring_size_bytes" Gauge [] "Size of the ring buffer." => |now, out|
        out.count(&[], now.ring.size_bytes);
    "tracer_agent_connections" Gauge [] "Connections tracked." => |now, out|
        out.count(&[], now.connections);
    "tracer_agent_sessions" Gauge ["protocol"] "Connections by the protocol that they are parsed as; none: those found to speak something else." => |now, out|
        for (protocol, sessions) in &now.sessions {
            out.count(&[protocol], *sessions);
        };
    "tracer_agent_program_runs_total" Counter ["program"] "Times an eBPF program ran; only while the kernel counts (`telemetry.bpf_stats`, or the sysctl kernel.bpf_stats_enabled)." => |now, out|
        for ProgramCost { program, runs, .. } in &now.programs {
            out.count(&[program], *runs);
        };
    "tracer_agent_program_run_seconds_total" Counter ["program"] "Time an eBPF program took; only while the kernel counts." => |now, out|
        for ProgramCost { program, run_ns, .. } in &now.programs {
            out.number(&[program], *run_ns as f64 / 1e9);
        };
    "tracer_agent_metric_processes" Gauge [] "Processes with series of request durations." => |now, out|
        out.count(&[], now.recorder.processes);
    "tracer_agent_metric_series" Gauge [] "Series of request durations." => |now, out|
        out.count(&[], now.recorder.series);
    "tracer_agent_metric_overflow_total" Counter [] "Requests counted in a series with `otel_metric_overflow`, because their attribute set was one too many." => |now, out|
        out.count(&[], now.recorder.overflowed);
    "tracer_agent_metric_processes_evicted_total" Counter [] "Processes whose series were given up before their time for want of room." => |now, out|
        out.count(&[], now.recorder.evicted);
    "tracer_agent_graph_ends_total" Counter ["outcome"] "Ends of exchanges over TCP, for the service graph: paired (exchanges of which both ends were seen), unpaired (the other end was not seen on this host), ambiguous (more than one would fit)." => |now, out| {
        let GraphCounts { paired, unpaired, ambiguous } = now.graph;
        for (outcome, count) in [("paired", paired), ("unpaired", unpaired), ("ambiguous", ambiguous)] {
            out.count(&[outcome], count);
        }
    };
    "tracer_agent_queue_spans" Gauge [] "Spans that wait to be put into a batch." => |now, out|
        out.count(&[], now.queue_spans);
    "tracer_agent_processes" Gauge [] "Processes whose metadata is cached." => |now, out|
        out.count(&[], now.processes);
    "tracer_agent_export_spans_total" Counter ["exporter"] "Spans that an exporter delivered." => |now, out|
        for exporter in &now.exporters {
            out.count(&[exporter.exporter], exporter.spans);
        };
    "tracer_agent_export_spans_lost_total" Counter ["exporter"] "Spans that an exporter could not deliver; the reasons are those of the stage spans." => |now, out|
        for exporter in &now.exporters {
            out.count(&[exporter.exporter], exporter.lost);
        };
    "tracer_agent_export_batches_total" Counter ["exporter"] "Batches that an exporter is done with, delivered or not." => |now, out|
        for exporter in &now.exporters {
            out.count(&[exporter.exporter], exporter.batches);
        };
    "tracer_agent_export_attempts_total" Counter ["exporter", "outcome"] "Requests or writes of an exporter, retries included, by outcome: ok, failed." => |now, out|
        for exporter in &now.exporters {
            out.count(&[exporter.exporter, "ok"], exporter.attempts.saturating_sub(exporter.failures));
            out.count(&[exporter.exporter, "failed"], exporter.failures);
        };
    "tracer_agent_export_retries_total" Counter ["exporter"] "Attempts that repeated a failed one." => |now, out|
        for exporter in &now.exporters {
            out.count(&[exporter.exporter], exporter.retries);
        };
    "tracer_agent_export_attempt_seconds_total" Counter ["exporter"] "Time an exporter spent in attempts." => |now, out|
        for exporter in &now.exporters {
            out.number(&[exporter.exporter], exporter.attempt_ns as f64 / 1e9);
        };
    "tracer_agent_export_backlog" Gauge ["exporter"] "Spans that wait for an exporter or that it is working on." => |now, out|
        for exporter in &now.exporters {
            out.count(&[exporter.exporter], exporter.backlog);
        };
    "tracer_agent_spool_bytes" Gauge ["exporter"] "Bytes that an exporter has on disk (--spool)." => |now, out|
        for exporter in &now.exporters {
            out.count(&[exporter.exporter], exporter.spool_bytes);
        };
    "tracer_agent_spool_write_failures_total" Counter ["exporter"] "Messages that could not be written to the spool; their spans wait in memory." => |now, out|
        for exporter in &now.exporters {
            out.count(&[exporter.exporter], exporter.spool_failures);
        };
    "tracer_agent_spool_damaged_total" Counter ["exporter"] "Pieces of a spool that were damaged beyond counting their spans, and skipped." => |now, out|
        for exporter in &now.exporters {
            out.count(&[exporter.exporter], exporter.spool_damaged);
        };
    "process_cpu_seconds_total" Counter [] "CPU time of the agent itself, user and system." => |now, out|
        out.number(&[], now.usage.cpu_seconds);
    "process_resident_memory_bytes" Gauge [] "Resident memory of the agent itself." => |now, out|
        out.count(&[], now.usage.resident_bytes);
    "process_threads" Gauge [] "Threads of the agent itself." => |now, out|
        out.count(&[], now.usage.threads);
    "process_virtual_memory_bytes" Gauge [] "Virtual memory of the agent itself." => |now, out|
        out.count(&[], now.usage.virtual_bytes);
    "process_open_fds" Gauge [] "File descriptors that the agent itself has open." => |now, out|
        out.count(&[], now.usage.open_fds);
    "process_max_fds" Gauge [] "File descriptors that the agent itself may open." => |now, out|
        out.count(&[], now.usage.max_fds);
    "process_start_time_seconds" Gauge [] "When the agent itself started, Unix time." => |now, out|
        out.number(&[], now.usage.start_unix_seconds);
}

/// The whole page: the agent about itself, then what it recorded. A metric without samples is left out.
pub fn render(now: &Snapshot, recorded: &Recorded, format: Format) -> String {
    let mut page = Page::new(format);
    for metric in METRICS {
        page.family(metric.name, metric.kind, metric.help);
        for Point { labels, value } in metric.points(now) {
            let names = metric.labels.iter().copied();
            let labels = names.zip(labels.iter().map(String::as_str));
            page.sample(metric.name, labels, value);
        }
    }
    red::write(&mut page, recorded);
    page.finish()
}

/// The metrics reference, as kept in `docs/metrics.md`.
pub fn reference() -> String {
    let mut text = String::from(include_str!("metrics.md"));
    text.push_str("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    for (name, kind, labels, help) in red::reference() {
        let _ = writeln!(text, "| `{name}` | {} | {labels} | {help} |", kind.as_str());
    }
    text.push_str(
        "\n## The agent about itself\n\n\
         | metric | type | labels | meaning |\n| --- | --- | --- | --- |\n",
    );
    for Metric {
        name,
        kind,
        labels,
        help,
        ..
    } in METRICS
    {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(
            text,
            "| `{name}` | {} | {} | {help} |",
            kind.as_str(),
            labels.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests;
