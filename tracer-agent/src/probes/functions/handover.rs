//! Between tracepoints and functions: while calls may end whose ends programs of functions do not see, tracepoints of these calls are there too.
//!
//! In: which functions changed ([`Watch`]), at the start all that move bytes; and who is in such a call ([`super::blocked`]). The kernel side
//! tells each end once while both are there, and takes a thread off `LEFT_BEHIND` with the first end of a call that it sees of
//! it; the thread cannot be in an older one then. Out: nothing; each tracepoint goes when nobody is left in its call. That may never
//! be: it costs what it costs without functions. At the start those that wait for events stay on the list until they end, and cost
//! nothing: it is read when something is first seen of a thread.

use std::collections::HashSet;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use tracer_common::abi::{left_behind, setting};

use super::super::error::LoadError;
use super::blocked::{self, In, Thread};
use super::points::Points;
use super::watch::{Changed, Watch};
use super::{Exit, descriptor};
use crate::causes::chain;

/// From one look at who is left to the next: at first, and at most.
const SOON: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(5);
/// What was found running, every time for so long, is in no call that counts: such calls wait for the other end.
const RUNS: Duration = Duration::from_secs(10);
/// From the word that a function changes until it certainly has. Who sleeps in the call then may be one whose end is not seen.
const SETTLES: Duration = Duration::from_secs(3);
/// With nothing to do.
const IDLE: Duration = Duration::from_secs(3600);

/// Goes on until it is dropped.
pub(in crate::probes) struct Handover {
    _stop: PipeWriter,
}

/// What it works with.
pub(in crate::probes) struct Doors {
    left: HashMap<MapData, u32, u32>,
    settings: Array<MapData, u32>,
    points: Points,
    watch: Watch,
}

struct Work {
    doors: Doors,
    threads: Vec<Thread>,
    /// Both tell.
    is_on: bool,
    /// When somebody's program came last.
    changed: Option<Instant>,
    /// When the list was made.
    listed: Instant,
    pause: Duration,
}

impl Doors {
    /// Takes what it needs of the loaded object, before parts of that are handed out. From then on it is known who comes to functions.
    pub(in crate::probes) fn of(ebpf: &Ebpf, exits: &[Exit]) -> Result<Self, LoadError> {
        let open = |name: &'static str| {
            let map = ebpf.map(name).and_then(descriptor);
            let file = map.and_then(|map| map.try_clone_to_owned().ok());
            let file = file.ok_or(LoadError::Mismatch(name))?;
            Ok::<_, LoadError>(MapData::from_fd(file)?)
        };
        let watch = Watch::open().map_err(|error| {
            let error = chain(&error);
            LoadError::NotFast(format!("changes of functions cannot be seen: {error}"))
        })?;
        Ok(Doors {
            left: Map::HashMap(open("LEFT_BEHIND")?).try_into()?,
            settings: Map::Array(open("SETTINGS")?).try_into()?,
            points: Points::of(ebpf, exits)?,
            watch,
        })
    }

    /// From now on both tell, each end once. Programs of functions come after this.
    pub(in crate::probes) fn begin(&mut self) -> Result<(), LoadError> {
        self.points
            .attach(|exit| blocked::moves_bytes(exit.program))?;
        Ok(self.settings.set(setting::HANDOVER, 1, 0)?)
    }
}

impl Handover {
    /// Looks who is left; when all functions are there, and before anything is looked at.
    pub(in crate::probes) fn start(mut doors: Doors) -> Result<Self, LoadError> {
        let threads = all()?;
        let (events, mut threads): (Vec<_>, Vec<_>) = threads
            .into_iter()
            .partition(|thread| thread.is_in == In::Events);
        for thread in &events {
            // What they were in is told to whoever asks, and nobody waits for its end. One more than there is room for is none
            // of an event loop until it has waited once more.
            let _ = note(&mut doors.left, thread.tid, left_behind::EVENTS);
        }
        threads.retain(|thread| !matches!(thread.is_in, In::Wait(_)));
        for point in &mut doors.points.0 {
            point.is_new = false;
        }
        let mut work = Work {
            doors,
            threads: Vec::new(),
            is_on: true,
            changed: None,
            listed: Instant::now(),
            pause: SOON,
        };
        if !work.list(threads) {
            return Err(LoadError::NotFast(format!(
                "more than {} threads are in system calls",
                left_behind::MOST
            )));
        }
        let failed = |error| LoadError::Threads(Arc::new(error));
        let (stopped, stop) = std::io::pipe().map_err(failed)?;
        let thread = std::thread::Builder::new().name("handover".into());
        thread.spawn(move || work.run(&stopped)).map_err(failed)?;
        Ok(Handover { _stop: stop })
    }
}

fn all() -> Result<Vec<Thread>, LoadError> {
    blocked::all(Path::new("/proc")).map_err(|error| LoadError::Threads(Arc::new(error)))
}

/// Puts a thread on the list.
fn note(left: &mut HashMap<MapData, u32, u32>, tid: u32, code: u32) -> Result<(), MapError> {
    left.insert(tid, code, 0)?;
    // It ended before it was on the list: another thread may get its id.
    if !Path::new("/proc").join(tid.to_string()).exists() {
        let _ = left.remove(&tid);
    }
    Ok(())
}

impl Work {
    fn run(mut self, stopped: &PipeReader) {
        loop {
            let pause = if self.is_on { self.pause } else { IDLE };
            let Some(changed) = self.doors.watch.wait(stopped.as_fd(), pause) else {
                return;
            };
            if changed != Changed::default() {
                self.both(&changed);
            } else if self.is_on {
                self.pause = (self.pause * 3 / 2).min(SELDOM);
                self.look();
            }
        }
    }

    /// Somebody's program came or went: tracepoints tell who sleeps in these functions, and whoever comes.
    fn both(&mut self, changed: &Changed) {
        let start = Instant::now();
        let Changed { functions, any } = changed;
        let is_meant = |exit: &Exit| *any || functions.contains(&exit.function);
        if !self
            .doors
            .points
            .0
            .iter()
            .any(|point| is_meant(&point.exit))
        {
            return;
        }
        if !self.is_on {
            if let Err(error) = self.doors.settings.set(setting::HANDOVER, 1, 0) {
                return tracing::warn!(%error, "ends of calls may be missed: another program came to functions of system calls");
            }
            self.is_on = true;
            tracing::info!(
                "another program came to functions of system calls, or went: tracepoints tell too"
            );
        }
        if let Err(error) = self.doors.points.attach(is_meant) {
            let why = chain(&error);
            tracing::warn!(%why, "ends of calls may be missed: another program came to functions of system calls");
        }
        self.changed = Some(Instant::now());
        self.pause = SOON;
        let took = start.elapsed();
        let count = functions.len();
        tracing::debug!(
            count,
            any,
            ?took,
            "functions of system calls changed; tracepoints tell too"
        );
    }

    fn look(&mut self) {
        match self.changed {
            Some(changed) if changed.elapsed() < SETTLES => return,
            Some(_) => {
                let Ok(found) = all() else { return };
                let new = self.doors.points.0.iter();
                let new: HashSet<&str> = new
                    .filter(|point| point.is_new)
                    .map(|point| point.exit.program)
                    .collect();
                let is_meant = |thread: &Thread| {
                    thread
                        .is_in
                        .program()
                        .is_none_or(|program| new.contains(program))
                };
                let found = found.into_iter().filter(is_meant).collect();
                // Else it is tried again, and both stay.
                if !self.list(found) {
                    return;
                }
                for point in &mut self.doors.points.0 {
                    point.is_new = false;
                }
                self.changed = None;
                self.pause = SOON;
            }
            None => {}
        }
        let is_over = self.listed.elapsed() > RUNS;
        let left = &mut self.doors.left;
        self.threads.retain_mut(|thread| {
            let stays = stays(thread, left, is_over);
            if !stays {
                // It may be there no more.
                let _ = left.remove(&thread.tid);
            }
            stays
        });
        let programs: HashSet<Option<&str>> = self
            .threads
            .iter()
            .map(|thread| thread.is_in.program())
            .collect();
        let points = self.doors.points.keep(|point| {
            point.is_new || programs.contains(&None) || programs.contains(&Some(point.exit.program))
        });
        let threads = self.threads.len();
        tracing::trace!(points, threads, "calls whose ends tracepoints tell");
        if points == 0 {
            self.end();
        }
    }

    /// Writes down threads, beside those that are left; false if there are too many.
    fn list(&mut self, found: Vec<Thread>) -> bool {
        for thread in found {
            if let Err(error) = note(&mut self.doors.left, thread.tid, left_behind::CALL) {
                tracing::debug!(%error, "threads in system calls cannot be told apart");
                return false;
            }
            self.threads.retain(|old| old.tid != thread.tid);
            self.threads.push(thread);
        }
        self.listed = Instant::now();
        true
    }

    fn end(&mut self) {
        match self.doors.settings.set(setting::HANDOVER, 0, 0) {
            Ok(()) => self.is_on = false,
            Err(error) => tracing::debug!(%error, "programs go on to mark what they tell"),
        }
        self.threads.clear();
        tracing::info!(
            "no call is left whose end functions would not see: tracepoints tell no more"
        );
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
        Some(In::Events | In::Wait(_)) | None => false,
    }
}
