//! What the agent counts, as one picture of one moment.
//!
//! In: counts of the other rooms. Out: what [`metrics`](super::metrics) names and shows.

use std::collections::BTreeMap;

use super::Usage;
use super::ledger::{BytesSnapshot, StageSnapshot};
use super::services::ServiceSnapshot;
use crate::export::ExporterSnapshot;
use crate::meta::kubernetes::StoreCounts;
use crate::metrics::{GraphCounts, RecorderCounts};
use crate::trace::sdk::SdkCounts;

/// Everything the agent counts, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// [`Ledger::snapshot`](super::ledger::Ledger::snapshot).
    pub ledger: BTreeMap<&'static str, StageSnapshot>,
    /// What the kernel side gave up, by reason (`tracer_common::abi::drop_reason::NAMES`).
    pub kernel_drops: Vec<(&'static str, u64)>,
    /// Runs of eBPF programs that the kernel left out.
    pub skipped_runs: u64,
    /// Connections that are not parsed, by what they speak.
    pub unparsed_connections: Vec<(&'static str, u64)>,
    /// What the protocol sessions counted beside exchanges, by protocol and name.
    pub sessions_counted: Vec<(&'static str, &'static str, u64)>,
    /// Bytes of the connections that are parsed.
    pub bytes: BytesSnapshot,
    /// The ledger by service.
    pub services: BTreeMap<Box<str>, ServiceSnapshot>,
    /// Sampling decisions by what made them.
    pub decisions: Vec<(&'static str, u64)>,
    /// Spans that wait for one.
    pub undecided_spans: u64,
    /// Spans by what gave them a route.
    pub routed: Vec<(&'static str, u64)>,
    /// Spans by how their parent was found.
    pub parents: Vec<(&'static str, u64)>,
    /// What could not be joined, by reason.
    pub unjoined: Vec<(&'static str, u64)>,
    /// What was not followed, by reason.
    pub unfollowed: Vec<(&'static str, u64)>,
    /// Requests that could have got a header, by what became of them; empty when none is written.
    pub propagated: Vec<(&'static str, u64)>,
    /// Spans that wait until their trace is certain.
    pub waiting_spans: u64,
    /// What is left to the SDKs of processes.
    pub sdks: SdkCounts,
    /// Connections that user space knows.
    pub connections: u64,
    /// Protocol sessions alive, by protocol.
    pub sessions: Vec<(&'static str, u64)>,
    /// Spans that wait to be batched.
    pub queue_spans: u64,
    /// eBPF programs and what they cost, where the kernel counts it.
    pub programs: Vec<ProgramCost>,
    /// How full the room `metrics` is.
    pub recorder: RecorderCounts,
    /// What became of the ends of exchanges.
    pub graph: GraphCounts,
    /// Ring buffer.
    pub ring: Ring,
    /// One per exporter in use.
    pub exporters: Vec<ExporterSnapshot>,
    /// Processes in the metadata cache.
    pub processes: u64,
    /// Programs attached, and programs wanted.
    pub probes: Probes,
    /// Probes in TLS libraries.
    pub tls: Tls,
    /// What Kubernetes said, if it is asked.
    pub kubernetes: Option<Kubernetes>,
    /// What the agent itself uses.
    pub usage: Usage,
    /// What it may use.
    pub limits: Limits,
}

/// Bounds of what the agent uses, and how often they were met.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Bytes of memory, where there is a bound.
    pub memory_bytes: Option<u64>,
    /// How often more was used.
    pub memory_sheds: u64,
    /// The budget of CPU, where there is one.
    pub cpu: Option<CpuLimit>,
}

/// The budget of CPU at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CpuLimit {
    /// CPUs that may be used.
    pub cpus: f64,
    /// That were used when it was last measured.
    pub used: f64,
    /// Features, and whether they are switched off.
    pub off: Vec<(&'static str, bool)>,
    /// How often one was.
    pub sheds: u64,
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

/// What Kubernetes said at one moment, and who waits for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// What is known.
    pub store: StoreCounts,
    /// Spans that wait.
    pub waiting_spans: u64,
    /// Spans let go because too many waited.
    pub hurried: u64,
    /// Processes whose container was known at once.
    pub known: u64,
    /// Containers whose spans waited.
    pub awaited: u64,
    /// Containers whose spans waited in vain.
    pub given_up: u64,
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

/// What an eBPF program cost so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramCost {
    /// Its name.
    pub program: String,
    /// Times it ran.
    pub runs: u64,
    /// Time it took, nanoseconds.
    pub run_ns: u64,
}
