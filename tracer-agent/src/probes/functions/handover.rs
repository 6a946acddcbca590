//! From tracepoints to functions, while calls may end that began before: those are told by the tracepoints, which stay until none is left.
//!
//! In: the tracepoints of calls that move bytes, and who is in such a call ([`super::blocked`]). The kernel side takes a thread off
//! `LEFT_BEHIND` with the first call that it tells of it; nothing older can come from that thread then. Out: nothing; each
//! tracepoint goes when nobody is left in its call. That may never be: it costs what it costs without functions. Those that wait for
//! events stay on the list until they end, and cost nothing: it is read when something is first seen of a thread.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::programs::trace_point::TracePointLink;
use tracer_common::abi::{left_behind, setting};

use super::super::error::LoadError;
use super::blocked::{self, In, Thread};
use super::descriptor;

/// From one look at who is left to the next: at first, and at most.
const SOON: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(5);
/// What was found running, every time for so long, is in no call that counts: such calls wait for the other end.
const RUNS: Duration = Duration::from_secs(10);

/// Tracepoints by program.
pub(in crate::probes) type Links = Vec<(&'static str, TracePointLink)>;

/// Goes on until it is dropped, or done.
pub(in crate::probes) struct Handover {
    _stop: Sender<()>,
}

struct Work {
    links: Links,
    threads: Vec<Thread>,
    left: HashMap<MapData, u32, u32>,
    settings: Array<MapData, u32>,
    started: Instant,
}

/// What it needs of the loaded object, before parts of that are handed out.
pub(in crate::probes) struct Doors {
    left: HashMap<MapData, u32, u32>,
    settings: Array<MapData, u32>,
}

impl Doors {
    /// Takes them.
    pub(in crate::probes) fn of(ebpf: &Ebpf) -> Result<Self, LoadError> {
        let open = |name: &'static str| {
            let map = ebpf.map(name).and_then(descriptor);
            let file = map.and_then(|map| map.try_clone_to_owned().ok());
            let file = file.ok_or(LoadError::Mismatch(name))?;
            Ok::<_, LoadError>(MapData::from_fd(file)?)
        };
        Ok(Doors {
            left: Map::HashMap(open("LEFT_BEHIND")?).try_into()?,
            settings: Map::Array(open("SETTINGS")?).try_into()?,
        })
    }

    /// From now on programs of functions mark what they told. All tracepoints have to be there, and no functions yet.
    pub(in crate::probes) fn begin(&mut self) -> Result<(), MapError> {
        self.settings.set(setting::HANDOVER, 1, 0)
    }
}

impl Handover {
    /// Looks who is left; when all functions are there, and before anything is looked at.
    pub(in crate::probes) fn start(doors: Doors, links: Links) -> Result<Self, LoadError> {
        let Doors { mut left, settings } = doors;
        let mut threads = blocked::all(Path::new("/proc"))
            .map_err(|error| LoadError::Threads(Arc::new(error)))?;
        if u32::try_from(threads.len()).is_ok_and(|count| count > left_behind::MOST) {
            return Err(LoadError::NotFast(format!(
                "{} threads are in system calls, and {} can be told apart",
                threads.len(),
                left_behind::MOST
            )));
        }
        for thread in &threads {
            left.insert(thread.tid, thread.is_in.code(), 0)?;
            // It ended before it was on the list: another thread may get its id.
            if !Path::new("/proc").join(thread.tid.to_string()).exists() {
                let _ = left.remove(&thread.tid);
            }
        }
        // What they were in is told to whoever asks, and nobody waits for its end.
        threads.retain(|thread| thread.is_in != In::Events);
        let (stop, stopped) = channel();
        let work = Work {
            links,
            threads,
            left,
            settings,
            started: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("handover".into());
        thread
            .spawn(move || work.run(&stopped))
            .map_err(|error| LoadError::Threads(Arc::new(error)))?;
        Ok(Handover { _stop: stop })
    }
}

impl Work {
    fn run(mut self, stopped: &Receiver<()>) {
        let mut pause = SOON;
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            pause = (pause * 3 / 2).min(SELDOM);
            self.look();
            if self.threads.is_empty() && self.links.is_empty() {
                self.end();
                return;
            }
        }
    }

    fn look(&mut self) {
        let is_over = self.started.elapsed() > RUNS;
        let Work { threads, left, .. } = self;
        threads.retain_mut(|thread| {
            let stays = stays(thread, left, is_over);
            if !stays {
                // It may be there no more.
                let _ = left.remove(&thread.tid);
            }
            stays
        });
        let is_needed = |program: &str| {
            let of_it = |thread: &Thread| match thread.is_in {
                In::Data(its) => its == program,
                In::Unknown => true,
                In::Events => false,
            };
            self.threads.iter().any(of_it)
        };
        let before = self.links.len();
        // Detached here, which takes the kernel a while, and nobody waits for it.
        self.links.retain(|(program, _)| is_needed(program));
        if self.links.len() < before {
            let left = self.links.len();
            tracing::debug!(left, "tracepoints of calls that began before the agent");
        }
    }

    fn end(&mut self) {
        if let Err(error) = self.settings.set(setting::HANDOVER, 0, 0) {
            tracing::debug!(%error, "programs go on to mark what they tell");
        }
        // The programs stay loaded: what they ran is part of what the agent says it took.
        tracing::debug!("no call is left that began before the agent");
    }
}

/// Whether a thread may still be in a call that began before.
fn stays(thread: &mut Thread, left: &HashMap<MapData, u32, u32>, is_over: bool) -> bool {
    let proc = Path::new("/proc");
    if !proc.join(thread.tid.to_string()).exists()
        || matches!(left.get(&thread.tid, 0), Err(MapError::KeyNotFound))
    {
        return false;
    }
    if thread.is_in != In::Unknown {
        return true;
    }
    match thread.look_again(proc) {
        Some(In::Unknown) => !is_over,
        Some(is_in @ In::Data(_)) => {
            thread.is_in = is_in;
            true
        }
        // What it waits for now began after the functions were there, and is told.
        Some(In::Events) | None => false,
    }
}
