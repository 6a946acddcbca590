//! What the capture thread asks: numbers, parts, and processes whose runtimes are to be followed.

use std::os::unix::fs::MetadataExt as _;

use tracer_common::abi::kind_of_process;

use super::Pipeline;
use crate::app::outlet::Outlet;
use crate::app::pods::PodStage;
use crate::app::side::{Side, path_of};
use crate::app::takeover::gate::Gate;
use crate::discover::{EventLoops, Runtime};
use crate::meta::table::PodCounts;
use crate::probes::Maps;
use crate::protocol::Role;
use crate::telemetry::open::{MOST_OPEN, OpenExchange};
use crate::trace::JoinCounts;
use crate::trace::sdk::SdkCounts;

/// Kinds of processes whose threads also do work that nobody asked them for.
const LOST: u32 = kind_of_process::OTHER_WORK | kind_of_process::MULTIPLEXED;

impl Pipeline {
    /// Records used so far. The ledger gets them together with the kernel side's counters, so that
    /// it never shows more taken out of the ring than was put in.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// What decides who reports.
    pub fn gate(&mut self) -> &mut Gate {
        &mut self.host.gate
    }

    /// Doors to the kernel side.
    pub fn maps(&mut self) -> &mut Maps {
        &mut self.host.maps
    }

    /// What was joined so far.
    pub fn joins(&self) -> (&JoinCounts, usize) {
        let assembler = &self.host.assembler;
        (assembler.counts(), assembler.waiting())
    }

    /// What was left to SDKs so far.
    pub fn sdks(&self) -> SdkCounts {
        self.host.sdks.stage.counts()
    }

    /// Where spans wait for what Kubernetes says, and the processes that it says it of.
    pub fn pods(&self) -> Option<(&PodStage, PodCounts)> {
        let pods = self.pods.as_ref()?;
        Some((pods, self.host.processes.pod_counts()))
    }

    /// The stages behind this.
    pub fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// Connections tracked, processes known.
    pub fn sizes(&self) -> (usize, usize) {
        (self.ingest.connections(), self.host.processes.len())
    }

    /// Processes whose runtimes are to be followed, since the last call: they and those that ran
    /// already when tracing began.
    pub fn take_to_follow(&mut self) -> Vec<(u32, Runtime)> {
        std::mem::take(&mut self.host.to_follow)
    }

    /// Processes that ended or run something else now, since the last call, and whether their event loops may
    /// have been followed.
    pub fn take_gone(&mut self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.host.gone)
    }

    /// Tells of processes that were seen to serve with an event loop, until `follow` takes them.
    pub fn each_event_loop(&mut self, mut follow: impl FnMut(u32, Runtime) -> bool) {
        let Side {
            event_loops, maps, ..
        } = &mut self.host;
        event_loops.retain_candidates(|tgid, runtime| {
            let Some(kind) = maps.kind(tgid) else {
                return false;
            };
            let may_have_tasks = !matches!(runtime, Runtime::Kind(_));
            may_have_tasks && (kind & kind_of_process::MULTIPLEXED == 0 || !follow(tgid, runtime))
        });
    }

    /// Tells now and then of processes in which threads work for others.
    pub fn each_with_pools(&mut self, look: impl FnMut(u32, Runtime)) {
        let Side {
            event_loops, maps, ..
        } = &mut self.host;
        let may_have_some = |tgid, runtime| {
            let sign = match runtime {
                Runtime::Python => kind_of_process::SERVES,
                Runtime::Kind(_) | Runtime::Rust => kind_of_process::STRANGERS,
                _ => return false,
            };
            maps.kind(tgid).is_some_and(|kind| {
                kind & sign != 0 && (runtime == Runtime::Python || kind & LOST == 0)
            })
        };
        event_loops.look(may_have_some, look);
    }

    /// Tells of processes of interpreters in which threads were seen to work for others; not at once, because following their
    /// executors says more, and would have to wait for what this has attached.
    pub fn each_with_strangers(&self, mut each: impl FnMut(u32, Runtime)) {
        let wanted = kind_of_process::WOKEN | kind_of_process::STRANGERS;
        for (tgid, runtime) in self.host.event_loops.settled() {
            let kind = || self.host.maps.kind(tgid).unwrap_or_default();
            if runtime == Runtime::Python && kind() & (wanted | LOST) == wanted {
                each(tgid, runtime);
            }
        }
    }

    /// True for a process in which no thread is believed any more to work for who woke it.
    pub fn is_lost(&self, tgid: u32) -> bool {
        let kind = self.host.maps.kind(tgid);
        kind.is_some_and(|kind| kind & LOST != 0)
    }

    /// True for a process that runs: the kernel side forgets how it does when it ends.
    pub fn runs(&self, tgid: u32) -> bool {
        self.host.maps.kind(tgid).is_some()
    }

    /// Says how a process runs what it serves.
    pub fn set_kind(&mut self, tgid: u32, kind: u32) {
        if let Err(error) = self.host.maps.set_kind(tgid, kind) {
            tracing::warn!(tgid, %error, "cannot say how a process runs: its calls get no parents");
        }
    }

    /// Looks at the processes that run already.
    pub fn find_runtimes(&mut self) {
        let Side {
            proc,
            runtimes,
            to_follow,
            ..
        } = &mut self.host;
        for pid in proc.pids() {
            to_follow.extend(runtimes.of(proc, pid).map(|runtime| (pid, runtime)));
        }
    }

    /// The processes that may serve with an event loop.
    pub fn event_loops(&mut self) -> &mut EventLoops {
        &mut self.host.event_loops
    }

    /// Device and inode number of a process's program.
    pub fn exe_id(&self, tgid: u32) -> Option<(u64, u64)> {
        let facts = std::fs::metadata(self.host.proc.exe_path(tgid)).ok()?;
        Some((facts.dev(), facts.ino()))
    }

    /// Connections by the protocol they are parsed as.
    pub fn sessions(&self) -> [(&'static str, u64); 3] {
        self.ingest.sessions()
    }

    /// Exchanges that have begun and not ended, as far as there is room to show them.
    pub fn unfinished(&mut self, now_ns: u64) -> Vec<OpenExchange> {
        let processes = &mut self.host.processes;
        let open = self.ingest.unfinished().take(MOST_OPEN);
        open.map(|(one, connection)| OpenExchange {
            service: processes.get(one.tgid).service_name.clone(),
            pid: one.tgid,
            role: one.role.map(|role| match role {
                Role::Server => "server",
                Role::Client => "client",
            }),
            method: one.request.method.clone(),
            path: path_of(&one.request.target).into(),
            peer: connection.remote.to_string().into(),
            seconds: now_ns.saturating_sub(one.began_ns) as f64 / 1e9,
            answered: one.answered,
        })
        .collect()
    }

    /// Applies the policy to the processes that run already.
    pub fn apply_policy(&mut self) {
        for update in self.host.discovery.start(&self.host.proc) {
            self.host.apply(update);
        }
    }
}
