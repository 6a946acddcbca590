use super::*;
use crate::export::ExporterSnapshot;
use crate::telemetry::Usage;
use crate::telemetry::ledger::Ledger;

fn check(now: &Snapshot, expected: &[&str]) {
    let text = render(now, &Recorded::default(), Format::Text);
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
    let exporter = ExporterSnapshot {
        exporter: "otlp",
        spans: 6,
        lost: 2,
        batches: 3,
        attempts: 5,
        failures: 1,
        retries: 1,
        attempt_ns: 1_500_000_000,
        backlog: 1,
        spool_bytes: 2,
        spool_failures: 3,
        spool_damaged: 4,
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
            ..Usage::default()
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
fn metrics_without_samples_are_left_out() {
    let text = render(&Snapshot::default(), &Recorded::default(), Format::Text);
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
