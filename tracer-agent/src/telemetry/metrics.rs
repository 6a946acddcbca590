//! The agent's own metrics: declared once in [`METRICS`], rendered from a [`Snapshot`] in the
//! Prometheus text format (0.0.4), documented in `docs/metrics.md` from the same table.
//!
//! It cannot see the durations of traced requests: those histograms belong to the export room and
//! are appended by whoever serves `/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Usage;
use super::ledger::StageSnapshot;

/// Everything the agent counts, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// [`Ledger::snapshot`](super::ledger::Ledger::snapshot).
    pub ledger: BTreeMap<&'static str, StageSnapshot>,
    /// What the kernel side gave up, by reason (`tracer_common::abi::drop_reason::NAMES`).
    pub kernel_drops: Vec<(&'static str, u64)>,
    /// Connections that are not parsed, by what they speak.
    pub unparsed_connections: Vec<(&'static str, u64)>,
    /// What the protocol sessions counted beside exchanges, by protocol and name.
    pub sessions_counted: Vec<(&'static str, &'static str, u64)>,
    /// Bytes that were lost between the kernel side and the sessions.
    pub lost_bytes: u64,
    /// Connections that user space knows.
    pub connections: u64,
    /// Protocol sessions alive.
    pub sessions: u64,
    /// Ring buffer.
    pub ring: Ring,
    /// One per exporter in use.
    pub exporters: Vec<Exporter>,
    /// Processes in the metadata cache.
    pub processes: u64,
    /// Programs attached, and programs wanted.
    pub probes: Probes,
    /// Probes in TLS libraries.
    pub tls: Tls,
    /// What the agent itself uses.
    pub usage: Usage,
}

/// The ring buffer at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// Most bytes that were ever written and not yet read.
    pub highest_bytes: u64,
    /// Its size.
    pub size_bytes: u64,
}

/// eBPF programs at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Attached.
    pub attached: u64,
    /// To be attached on this kernel.
    pub wanted: u64,
}

/// Probes in TLS libraries at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Files with probes in them.
    pub files: u64,
    /// Probes in them.
    pub probes: u64,
    /// Functions and files that could not be looked at or attached to.
    pub failures: u64,
}

/// One exporter at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exporter {
    /// `otlp`, `console`, `file`, `zipkin`.
    pub exporter: &'static str,
    /// Batches it is done with, delivered or not.
    pub batches: u64,
    /// Spans it delivered.
    pub spans: u64,
    /// Spans it did not deliver; the ledger knows the reasons.
    pub lost: u64,
    /// Requests or writes made, retries included.
    pub attempts: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Attempts that repeated a failed one.
    pub retries: u64,
    /// Time spent in attempts, nanoseconds.
    pub attempt_ns: u64,
    /// Spans that wait for it or that it is working on.
    pub backlog: u64,
}

/// Type of a metric, as Prometheus names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        }
    }
}

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

/// Takes the samples of one metric.
struct Samples<'a> {
    metric: &'a Metric,
    text: &'a mut String,
}

impl Samples<'_> {
    fn count(&mut self, labels: &[&str], value: u64) {
        self.sample(labels, format_args!("{value}"));
    }

    fn number(&mut self, labels: &[&str], value: f64) {
        self.sample(labels, format_args!("{value}"));
    }

    fn sample(&mut self, values: &[&str], number: std::fmt::Arguments<'_>) {
        self.text.push_str(self.metric.name);
        for (position, (label, value)) in self.metric.labels.iter().zip(values).enumerate() {
            self.text.push_str(if position == 0 { "{" } else { "," });
            self.text.push_str(label);
            self.text.push_str("=\"");
            escape(value, self.text);
            self.text.push('"');
        }
        self.text
            .push_str(if values.is_empty() { " " } else { "} " });
        let _ = writeln!(self.text, "{number}");
    }
}

/// Label values: backslash, quote and line feed are escaped.
fn escape(value: &str, text: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
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
    "tracer_agent_tls_files" Gauge [] "Files with a TLS library that has probes." => |now, out|
        out.count(&[], now.tls.files);
    "tracer_agent_tls_probes" Gauge [] "Probes in TLS libraries." => |now, out|
        out.count(&[], now.tls.probes);
    "tracer_agent_tls_failures_total" Counter [] "Files, or functions of them, that could not be looked into for TLS or probed; the log says why." => |now, out|
        out.count(&[], now.tls.failures);
    "tracer_agent_stage_seen_total" Counter ["stage"] "What entered a stage of the pipeline: events, exchanges, spans." => |now, out|
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
        out.count(&[], now.lost_bytes);
    "tracer_agent_ring_highest_bytes" Gauge [] "Most bytes that ever waited in the ring buffer to be read." => |now, out|
        out.count(&[], now.ring.highest_bytes);
    "tracer_agent_ring_size_bytes" Gauge [] "Size of the ring buffer." => |now, out|
        out.count(&[], now.ring.size_bytes);
    "tracer_agent_connections" Gauge [] "Connections tracked." => |now, out|
        out.count(&[], now.connections);
    "tracer_agent_sessions" Gauge [] "Connections whose protocol is parsed." => |now, out|
        out.count(&[], now.sessions);
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
    "process_cpu_seconds_total" Counter [] "CPU time of the agent itself, user and system." => |now, out|
        out.number(&[], now.usage.cpu_seconds);
    "process_resident_memory_bytes" Gauge [] "Resident memory of the agent itself." => |now, out|
        out.count(&[], now.usage.resident_bytes);
    "process_threads" Gauge [] "Threads of the agent itself." => |now, out|
        out.count(&[], now.usage.threads);
}

/// The snapshot as Prometheus text. A metric without samples is left out.
pub fn render(now: &Snapshot) -> String {
    let mut text = String::with_capacity(8 * 1024);
    for metric in METRICS {
        let before = text.len();
        let _ = writeln!(text, "# HELP {} {}", metric.name, metric.help);
        let _ = writeln!(text, "# TYPE {} {}", metric.name, metric.kind.as_str());
        let described = text.len();
        (metric.read)(
            now,
            &mut Samples {
                metric,
                text: &mut text,
            },
        );
        if text.len() == described {
            text.truncate(before);
        }
    }
    text
}

/// The metrics reference, as kept in `docs/metrics.md`.
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics of the agent about itself\n\n\
         <!-- Generated from tracer-agent/src/telemetry/metrics.rs; `UPDATE_DOCS=1 cargo test -p tracer-agent` rewrites it. -->\n\n\
         Served on `/metrics` of the admin endpoint (default 127.0.0.1:9468) in the Prometheus text format.\n\n\
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
mod tests {
    use super::*;
    use crate::telemetry::ledger::Ledger;

    fn check(now: &Snapshot, expected: &[&str]) {
        let text = render(now);
        for line in expected {
            assert!(
                text.lines().any(|found| found == *line),
                "{line:?} is missing in\n{text}"
            );
        }
    }

    #[test]
    fn counts_become_samples() {
        let ledger = Ledger::default();
        ledger.spans.seen(10);
        ledger.spans.exported(6);
        ledger.spans.dropped("queue_full", 3);
        let exporter = Exporter {
            exporter: "otlp",
            spans: 6,
            lost: 2,
            batches: 3,
            attempts: 5,
            failures: 1,
            retries: 1,
            attempt_ns: 1_500_000_000,
            backlog: 1,
        };
        let now = Snapshot {
            ledger: ledger.snapshot(),
            kernel_drops: vec![("ring_full_data", 7)],
            connections: 3,
            exporters: vec![exporter],
            usage: Usage {
                cpu_seconds: 1.25,
                resident_bytes: 4096,
                threads: 2,
            },
            ..Snapshot::default()
        };
        check(
            &now,
            &[
                "# TYPE tracer_agent_stage_seen_total counter",
                "tracer_agent_stage_seen_total{stage=\"spans\"} 10",
                "tracer_agent_stage_exported_total{stage=\"spans\"} 6",
                "tracer_agent_stage_dropped_total{stage=\"spans\",reason=\"queue_full\"} 3",
                "tracer_agent_stage_pending{stage=\"spans\"} 1",
                "tracer_agent_stage_seen_total{stage=\"events\"} 0",
                "tracer_agent_kernel_drops_total{reason=\"ring_full_data\"} 7",
                "tracer_agent_connections 3",
                "tracer_agent_export_spans_total{exporter=\"otlp\"} 6",
                "tracer_agent_export_spans_lost_total{exporter=\"otlp\"} 2",
                "tracer_agent_export_batches_total{exporter=\"otlp\"} 3",
                "tracer_agent_export_attempts_total{exporter=\"otlp\",outcome=\"ok\"} 4",
                "tracer_agent_export_attempts_total{exporter=\"otlp\",outcome=\"failed\"} 1",
                "tracer_agent_export_retries_total{exporter=\"otlp\"} 1",
                "tracer_agent_export_attempt_seconds_total{exporter=\"otlp\"} 1.5",
                "tracer_agent_export_backlog{exporter=\"otlp\"} 1",
                "process_cpu_seconds_total 1.25",
                "process_resident_memory_bytes 4096",
            ],
        );
    }

    #[test]
    fn label_values_are_escaped() {
        let exporter = Exporter {
            exporter: "a\\b\"c\nd",
            ..Exporter::default()
        };
        let now = Snapshot {
            exporters: vec![exporter],
            ..Snapshot::default()
        };
        check(
            &now,
            &["tracer_agent_export_spans_total{exporter=\"a\\\\b\\\"c\\nd\"} 0"],
        );
    }

    #[test]
    fn metrics_without_samples_are_left_out() {
        let text = render(&Snapshot::default());
        assert!(!text.contains("kernel_drops"), "{text}");
        assert!(!text.contains("stage_seen"), "{text}");
    }

    #[test]
    fn names_follow_the_customs() {
        for metric in METRICS {
            assert_eq!(
                metric.name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{}",
                metric.name
            );
            assert_eq!(
                METRICS
                    .iter()
                    .filter(|other| other.name == metric.name)
                    .count(),
                1,
                "{}",
                metric.name
            );
            let name_is_plain = metric
                .name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c == '_');
            assert!(
                name_is_plain && !metric.help.contains(['\n', '\\', '|']),
                "{}",
                metric.name
            );
        }
    }

    #[test]
    fn the_reference_is_up_to_date() {
        crate::telemetry::docs::check("metrics.md", &reference());
    }
}
