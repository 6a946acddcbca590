//! Attaches what shows which thread wakes which one, while processes run that are followed for it: see the
//! kernel side's `cause/woken.rs`.
//!
//! In: such processes, and their ends. Out: nothing: what their threads do is seen then. Every program of the
//! host calls futexes, so nothing is attached without need.

use std::ops::Range;
use std::thread::JoinHandle;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use aya::programs::TracePoint;
use aya::programs::trace_point::{TracePointLink, TracePointLinkId};
use rustc_hash::FxHashSet;
use tracer_common::abi::setting;

use super::attach::targets;

/// Processes that are followed at a time.
const MAX_PROCESSES: usize = 1024;

/// The tracepoints, which are the programs' names as well.
pub(super) const HOOKS: [&str; 3] = [
    "sys_enter_futex",
    "sys_exit_futex",
    "sys_exit_clock_nanosleep",
];

/// `abi::setting`.
pub type Settings = Array<MapData, u32>;

/// See the module's text.
pub struct FutexHooks {
    settings: Option<Settings>,
    processes: FxHashSet<u32>,
    attached: Vec<(&'static str, TracePointLinkId)>,
    /// Goes on until the kernel has detached them; nothing is attached again before.
    detaching: Option<JoinHandle<()>>,
    /// It was tried in vain, which was said.
    refused: bool,
    /// Processes that were too many.
    left_out: u64,
}

impl FutexHooks {
    /// Without settings nothing is ever attached: where the kernel leaves out runs of such programs, a wait that was not
    /// seen would leave a thread the cause it had before.
    pub fn new(settings: Option<Settings>) -> Self {
        FutexHooks {
            refused: settings.is_none(),
            settings,
            processes: FxHashSet::default(),
            attached: Vec::new(),
            detaching: None,
            left_out: 0,
        }
    }

    /// True if the process is followed.
    pub fn follows(&self, tgid: u32) -> bool {
        self.processes.contains(&tgid)
    }

    /// How many were too many.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// A process has to be followed from now on.
    pub fn follow(&mut self, ebpf: &mut Ebpf, tgid: u32) {
        if self.refused {
            return;
        }
        if self.processes.len() >= MAX_PROCESSES {
            self.left_out += 1;
            return;
        }
        self.processes.insert(tgid);
        if !self.attached.is_empty() {
            return;
        }
        if let Some(thread) = self.detaching.take() {
            // It only drops.
            let _ = thread.join();
        }
        // Other programs say what else threads wait for from now on; later than these would be wrong.
        let attached = self.set(1).and_then(|()| self.attach(ebpf));
        if let Err(why) = attached {
            self.refused = true;
            tracing::info!(
                why,
                "threads that wake others are not seen: work handed to a pool has no parents"
            );
            self.detach(ebpf);
            return;
        }
        tracing::debug!("follows who wakes threads");
    }

    /// A process ended, runs something else now, or is not believed any more.
    pub fn forget(&mut self, ebpf: &mut Ebpf, tgid: u32) {
        if self.processes.remove(&tgid) && self.processes.is_empty() {
            self.detach(ebpf);
        }
    }

    /// Says whether anybody is followed.
    fn set(&mut self, value: u32) -> Result<(), String> {
        let settings = self.settings.as_mut().ok_or("there are no settings")?;
        let written = settings.set(setting::WAKES, value, 0);
        written.map_err(|error| error.to_string())
    }

    fn attach(&mut self, ebpf: &mut Ebpf) -> Result<(), String> {
        for name in HOOKS {
            let point = program(ebpf, name)?;
            for target in targets(&name) {
                let link = point.attach("syscalls", target);
                let link = link.map_err(|error| format!("{target}: {error}"))?;
                self.attached.push((name, link));
            }
        }
        Ok(())
    }

    fn detach(&mut self, ebpf: &mut Ebpf) {
        if let Err(why) = self.set(0) {
            tracing::warn!(why, "who waits for what is looked at without need");
        }
        let links = self.attached.drain(..).filter_map(|(name, link)| {
            let point = program(ebpf, name).ok()?;
            point.take_link(link).ok()
        });
        let links: Vec<TracePointLink> = links.collect();
        if links.is_empty() {
            return;
        }
        tracing::debug!("follows nobody who wakes threads any more");
        // The kernel takes a while for it: not on this thread. Without another one they are dropped here.
        let thread = std::thread::Builder::new().name("detach".into());
        self.detaching = thread.spawn(move || drop(links)).ok();
    }
}

/// Says where the locks of an interpreter with one for all threads lie.
pub(super) fn set_lock(ebpf: &mut Ebpf, tgid: u32, range: Range<u64>) -> Result<(), String> {
    let map = ebpf.map_mut("LOCKS").ok_or("there are no locks")?;
    let mut locks =
        HashMap::<_, u32, [u64; 2]>::try_from(map).map_err(|error| error.to_string())?;
    let written = locks.insert(tgid, [range.start, range.end], 0);
    written.map_err(|error| error.to_string())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut TracePoint, String> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("there is no {name}"))
}
