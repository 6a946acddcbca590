//! Attaches probes to processes that serve with an event loop that runs tasks, of Python or tokio: see
//! the kernel side's `cause/task.rs` and `cause/tokio.rs`.
//!
//! In: such a process. Out: probes in its interpreter and its `_asyncio`, or its program, for this
//! process alone: every task's turn passes them, and others of the same program must not pay for that.

use std::fs::File;
use std::num::NonZeroU32;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;

use aya::Ebpf;
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeLink, UProbeLinkId, UProbeScope};
use rustc_hash::FxHashMap;

use super::shared::SharedEbpf;
use super::tokio::{self, When};
use crate::discover::Runtime;
use crate::discover::binary::{self, PythonEvent, PythonPoint};
use crate::meta::ProcFs;
use crate::meta::proc_fs::Mapping;
use crate::sys;

/// Processes that probes are attached to at a time.
const MAX_PROCESSES: usize = 256;
/// Files whose points are remembered; all are forgotten when there are more.
const MAX_FILES: usize = 64;

type Attached = Vec<(&'static str, UProbeLinkId)>;
/// Program of the kernel side, and offset in a file.
type Point = (&'static str, u64);
/// Device and inode number, bytes, last change.
type FileId = (u64, u64, u64, i64);

/// What was attached so far.
#[derive(Debug, Default)]
pub struct TaskProbes {
    processes: FxHashMap<u32, Attached>,
    /// What was attached before it is known whether they serve.
    early: FxHashMap<u32, Attached>,
    /// What shows the work of executors.
    pools: FxHashMap<u32, Attached>,
    files: FxHashMap<(FileId, What), Vec<Point>>,
    /// Times that there were too many.
    left_out: u64,
}

impl TaskProbes {
    /// True if something is attached to the process.
    pub fn follows(&self, tgid: u32) -> bool {
        let all = [&self.processes, &self.early, &self.pools];
        all.iter().any(|attached| attached.contains_key(&tgid))
    }

    /// All processes that something is attached to; some more than once.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        let all = [&self.processes, &self.early, &self.pools];
        all.into_iter()
            .flat_map(|attached| attached.keys().copied())
    }

    /// How often a process was one too many.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Attaches what has to be seen of a process that may serve with tokio later, if it has that.
    pub fn foresee(&mut self, ebpf: &SharedEbpf, proc: &ProcFs, tgid: u32) {
        if self.early.contains_key(&tgid) {
            return;
        }
        let Some(exe) = proc.open_exe(tgid) else {
            return;
        };
        // Most programs have nothing of it: that takes no lock.
        if self
            .points(&exe, What::TokioEarly)
            .is_ok_and(|points| points.is_empty())
        {
            return;
        }
        if self.early.len() >= MAX_PROCESSES {
            self.left_out += 1;
            return;
        }
        match self.attach(&mut ebpf.lock_first(), tgid, vec![(exe, What::TokioEarly)]) {
            Ok(attached) if attached.is_empty() => {}
            Ok(attached) => {
                self.early.insert(tgid, attached);
            }
            Err(why) => tracing::debug!(tgid, why, "connections made from now on are not known"),
        }
    }

    /// Attaches what shows the work that executors of Python hand to their threads, once the process has loaded it.
    pub fn follow_pools(&mut self, ebpf: &SharedEbpf, proc: &ProcFs, tgid: u32) {
        if self.pools.contains_key(&tgid) {
            return;
        }
        let mappings = proc.executable_mappings(tgid).unwrap_or_default();
        let Some(mapping) = named(&mappings, "_queue.") else {
            return;
        };
        if self.pools.len() >= MAX_PROCESSES {
            self.left_out += 1;
            return;
        }
        let Ok(file) = open(proc, tgid, mapping) else {
            return;
        };
        let found = self.points(&file, What::Queues).and_then(|_| {
            let files = vec![(file, What::Queues)];
            self.attach(&mut ebpf.lock_first(), tgid, files)
        });
        let attached = found.unwrap_or_else(|why| {
            tracing::info!(
                tgid,
                why,
                "work of executors is not seen: its calls get no parents"
            );
            Attached::new()
        });
        self.pools.insert(tgid, attached);
    }

    /// Attaches to a process; true if that went well.
    pub fn follow(&mut self, ebpf: &mut Ebpf, proc: &ProcFs, tgid: u32, runtime: Runtime) -> bool {
        let result = if self.processes.contains_key(&tgid) {
            Ok(())
        } else if self.processes.len() >= MAX_PROCESSES {
            self.left_out += 1;
            Err("too many processes are followed".to_owned())
        } else {
            self.follow_new(ebpf, proc, tgid, runtime)
        };
        match result {
            Ok(()) => {
                tracing::debug!(tgid, "follows the tasks of a process");
                true
            }
            Err(why) => {
                tracing::info!(tgid, why, "cannot follow tasks: calls get no parents");
                false
            }
        }
    }

    /// Gives back what was attached to a process.
    pub fn forget(&mut self, ebpf: &mut Ebpf, tgid: u32) {
        let mut attached = self.processes.remove(&tgid).unwrap_or_default();
        attached.extend(self.early.remove(&tgid).unwrap_or_default());
        attached.extend(self.pools.remove(&tgid).unwrap_or_default());
        give_back(ebpf, attached);
    }

    fn follow_new(
        &mut self,
        ebpf: &mut Ebpf,
        proc: &ProcFs,
        tgid: u32,
        runtime: Runtime,
    ) -> Result<(), String> {
        let files = match runtime {
            Runtime::Python => files(proc, tgid)?,
            _ => {
                let exe = proc.open_exe(tgid).ok_or("its program cannot be opened")?;
                vec![(exe, What::Tokio)]
            }
        };
        let attached = self.attach(ebpf, tgid, files)?;
        self.processes.insert(tgid, attached);
        Ok(())
    }

    fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        tgid: u32,
        files: Vec<(File, What)>,
    ) -> Result<Attached, String> {
        let pid = NonZeroU32::new(tgid).ok_or("it is gone")?;
        let mut points = Vec::new();
        // As long as they are held the files have their paths.
        let mut held = Vec::new();
        for (file, what) in files {
            let path = sys::path_of(&file);
            let found = self.points(&file, what)?;
            points.extend(found.into_iter().map(|point| (path.clone(), point)));
            held.push(file);
        }
        // A context whose making is not seen would pass for the one that had its address before.
        points.sort_by_key(|(_, (name, _))| *name != program_of(PythonEvent::Copied));
        let mut attached = Attached::new();
        for (path, (name, at)) in points {
            let result = probe(ebpf, name).and_then(|probe| {
                let at = UProbeAttachLocation::AbsoluteOffset(at);
                let scope = UProbeScope::OneProcess(pid);
                probe
                    .attach(at, &path, scope)
                    .map_err(|error| format!("{name}: {error}"))
            });
            match result {
                Ok(link) => attached.push((name, link)),
                Err(why) => {
                    give_back(ebpf, attached);
                    return Err(why);
                }
            }
        }
        Ok(attached)
    }

    fn points(&mut self, file: &File, what: What) -> Result<Vec<Point>, String> {
        let facts = file.metadata().map_err(|error| error.to_string())?;
        let id = (facts.dev(), facts.ino(), facts.len(), facts.mtime());
        let id = (id, what);
        if let Some(points) = self.files.get(&id) {
            return Ok(points.clone());
        }
        let points = match what {
            What::Tokio => tokio::points(file, When::Serving)?,
            What::TokioEarly => tokio::points(file, When::Early)?,
            What::Queues => {
                let found = binary::python_queues(file, facts.len());
                named_points(found.map_err(|error| error.to_string())?)
            }
            _ => python_points(file, facts.len(), what)?,
        };
        if self.files.len() >= MAX_FILES {
            self.files.clear();
        }
        self.files.insert(id, points.clone());
        Ok(points)
    }
}

fn python_points(file: &File, len: u64, what: What) -> Result<Vec<Point>, String> {
    let mut points = Vec::new();
    if what != What::Futures {
        let found = binary::python_interpreter(file, len).map_err(|error| error.to_string())?;
        points.extend(found.ok_or("its interpreter exports no contexts")?);
    }
    if what != What::Interpreter {
        let found = binary::python_futures(file, len);
        points.extend(found.map_err(|error| error.to_string())?);
    }
    Ok(named_points(points))
}

fn named_points(points: Vec<PythonPoint>) -> Vec<Point> {
    let points = points.into_iter();
    points
        .map(|point| (program_of(point.event), point.at))
        .collect()
}

/// What is looked for in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    Interpreter,
    Futures,
    /// `_asyncio` is built into the interpreter.
    Both,
    /// `_queue`.
    Queues,
    /// tokio is built into the program.
    Tokio,
    /// What of it has to be seen early.
    TokioEarly,
}

/// Where the variables of a process's interpreter lie, the lock for all threads among them.
pub(super) fn one_lock(proc: &ProcFs, tgid: u32) -> Result<Range<u64>, String> {
    let mappings = proc.executable_mappings(tgid).ok_or("it is gone")?;
    let (file, mapping) = match named(&mappings, "libpython") {
        Some(mapping) => (open(proc, tgid, mapping)?, Some(mapping)),
        None => {
            let file = proc.open_exe(tgid).ok_or("its program cannot be opened")?;
            let inode = file.metadata().map_err(|error| error.to_string())?.ino();
            (file, mappings.iter().find(|mapping| mapping.inode == inode))
        }
    };
    let mapping = mapping.ok_or("its interpreter is not mapped")?;
    let start = mapping.range.split('-').next();
    let start = start.and_then(|start| u64::from_str_radix(start, 16).ok());
    let start = start.ok_or("its interpreter is mapped nowhere")?;
    let len = file.metadata().map_err(|error| error.to_string())?.len();
    let found = binary::python_runtime(&file, len, mapping.offset, start);
    found
        .map_err(|error| error.to_string())?
        .ok_or_else(|| "its interpreter exports no variables".to_owned())
}

/// The process's interpreter, which is a library of it or its program, and its `_asyncio`.
fn files(proc: &ProcFs, tgid: u32) -> Result<Vec<(File, What)>, String> {
    let mappings = proc.executable_mappings(tgid).ok_or("it is gone")?;
    let open = |mapping| open(proc, tgid, mapping);
    let futures = named(&mappings, "_asyncio.").map(open).transpose()?;
    let interpreter = match named(&mappings, "libpython") {
        Some(mapping) => open(mapping)?,
        None => proc.open_exe(tgid).ok_or("its program cannot be opened")?,
    };
    Ok(match futures {
        Some(futures) => vec![(interpreter, What::Interpreter), (futures, What::Futures)],
        None => vec![(interpreter, What::Both)],
    })
}

fn named<'m>(mappings: &'m [Mapping], prefix: &str) -> Option<&'m Mapping> {
    mappings.iter().find(|mapping| {
        let name = mapping.path.file_name().unwrap_or_default();
        name.as_encoded_bytes().starts_with(prefix.as_bytes())
    })
}

fn open(proc: &ProcFs, tgid: u32, mapping: &Mapping) -> Result<File, String> {
    let same = |file: &File| {
        file.metadata()
            .is_ok_and(|facts| facts.ino() == mapping.inode)
    };
    // The mapping's own link needs rights that the agent may not have.
    proc.open_mapping(tgid, mapping)
        .or_else(|| proc.open_in_root(tgid, &mapping.path).filter(same))
        .ok_or_else(|| "a file of it cannot be opened".to_owned())
}

fn program_of(event: PythonEvent) -> &'static str {
    match event {
        PythonEvent::Runs => "python_runs",
        PythonEvent::Exits => "python_exits",
        PythonEvent::Enters => "python_enters",
        PythonEvent::Copied => "python_copied",
        PythonEvent::SetsResult => "python_wakes",
        PythonEvent::Puts => "python_puts",
        PythonEvent::Gets => "python_gets",
        PythonEvent::Got => "python_got",
    }
}

fn probe<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe, String> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("there is no {name}"))
}

/// Taking a probe out waits for the kernel: not on this thread.
fn give_back(ebpf: &mut Ebpf, attached: Attached) {
    let links = attached.into_iter().filter_map(|(name, link)| {
        let probe = probe(ebpf, name).ok()?;
        probe.take_link(link).ok()
    });
    let links: Vec<UProbeLink> = links.collect();
    if links.is_empty() {
        return;
    }
    // Without a thread they are dropped here.
    let _ = std::thread::Builder::new()
        .name("detach".into())
        .spawn(move || drop(links));
}
