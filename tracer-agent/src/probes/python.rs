//! Attaches probes to Python processes that serve with an event loop: see the kernel side's
//! `cause/task.rs`.
//!
//! In: such a process. Out: probes in its interpreter and its `_asyncio`, for this process alone: every
//! callback passes them, and other programs of the same interpreter must not pay for that.

use std::fs::File;
use std::num::NonZeroU32;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use aya::Ebpf;
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeLink, UProbeLinkId, UProbeScope};
use rustc_hash::FxHashMap;

use crate::discover::binary::{self, PythonEvent, PythonPoint};
use crate::meta::ProcFs;
use crate::meta::proc_fs::Mapping;

/// Processes that probes are attached to at a time.
const MAX_PROCESSES: usize = 256;
/// Files whose points are remembered; all are forgotten when there are more.
const MAX_FILES: usize = 64;

type Attached = Vec<(&'static str, UProbeLinkId)>;
/// Device and inode number, bytes, last change.
type FileId = (u64, u64, u64, i64);

/// What was attached so far.
#[derive(Debug, Default)]
pub struct PythonProbes {
    processes: FxHashMap<u32, Attached>,
    files: FxHashMap<FileId, Vec<PythonPoint>>,
}

impl PythonProbes {
    /// True if something is attached to the process.
    pub fn follows(&self, tgid: u32) -> bool {
        self.processes.contains_key(&tgid)
    }

    /// Attaches to a process; true if that went well.
    pub fn follow(&mut self, ebpf: &mut Ebpf, proc: &ProcFs, tgid: u32) -> bool {
        let result = if self.follows(tgid) {
            Ok(())
        } else if self.processes.len() >= MAX_PROCESSES {
            Err("too many processes are followed".to_owned())
        } else {
            self.attach(ebpf, proc, tgid)
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
        let attached = self.processes.remove(&tgid).unwrap_or_default();
        give_back(ebpf, attached);
    }

    fn attach(&mut self, ebpf: &mut Ebpf, proc: &ProcFs, tgid: u32) -> Result<(), String> {
        let pid = NonZeroU32::new(tgid).ok_or("it is gone")?;
        let mut points = Vec::new();
        // Where the files can be opened as long as they are held.
        let mut held = Vec::new();
        for (file, what) in files(proc, tgid)? {
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            let found = self.points(&file, what)?;
            points.extend(found.into_iter().map(|point| (path.clone(), point)));
            held.push(file);
        }
        // A context whose making is not seen would pass for the one that had its address before.
        points.sort_by_key(|(_, point)| point.event != PythonEvent::Copied);
        let mut attached = Attached::new();
        for (path, point) in points {
            let name = program_of(point.event);
            let result = probe(ebpf, name).and_then(|probe| {
                let at = UProbeAttachLocation::AbsoluteOffset(point.at);
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
        self.processes.insert(tgid, attached);
        Ok(())
    }

    fn points(&mut self, file: &File, what: What) -> Result<Vec<PythonPoint>, String> {
        let facts = file.metadata().map_err(|error| error.to_string())?;
        let id = (facts.dev(), facts.ino(), facts.len(), facts.mtime());
        if let Some(points) = self.files.get(&id) {
            return Ok(points.clone());
        }
        let mut points = Vec::new();
        if what != What::Futures {
            let found = binary::python_interpreter(file, facts.len());
            let found = found.map_err(|error| error.to_string())?;
            points.extend(found.ok_or("its interpreter exports no contexts")?);
        }
        if what != What::Interpreter {
            let found = binary::python_futures(file, facts.len());
            points.extend(found.map_err(|error| error.to_string())?);
        }
        if self.files.len() >= MAX_FILES {
            self.files.clear();
        }
        self.files.insert(id, points.clone());
        Ok(points)
    }
}

/// What is looked for in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Interpreter,
    Futures,
    /// `_asyncio` is built into the interpreter.
    Both,
}

/// The process's interpreter, which is a library of it or its program, and its `_asyncio`.
fn files(proc: &ProcFs, tgid: u32) -> Result<Vec<(File, What)>, String> {
    let mappings = proc.executable_mappings(tgid).ok_or("it is gone")?;
    let named = |prefix: &str| {
        mappings.iter().find(|mapping| {
            let name = mapping.path.file_name().unwrap_or_default();
            name.as_encoded_bytes().starts_with(prefix.as_bytes())
        })
    };
    let open = |mapping: &Mapping| {
        let same = |file: &File| {
            file.metadata()
                .is_ok_and(|facts| facts.ino() == mapping.inode)
        };
        // The mapping's own link needs rights that the agent may not have.
        proc.open_mapping(tgid, mapping)
            .or_else(|| proc.open_in_root(tgid, &mapping.path).filter(same))
            .ok_or("a file of it cannot be opened")
    };
    let futures = named("_asyncio.").map(open).transpose()?;
    let interpreter = match named("libpython") {
        Some(mapping) => open(mapping)?,
        None => proc.open_exe(tgid).ok_or("its program cannot be opened")?,
    };
    Ok(match futures {
        Some(futures) => vec![(interpreter, What::Interpreter), (futures, What::Futures)],
        None => vec![(interpreter, What::Both)],
    })
}

fn program_of(event: PythonEvent) -> &'static str {
    match event {
        PythonEvent::Runs => "python_runs",
        PythonEvent::Exits => "python_exits",
        PythonEvent::Enters => "python_enters",
        PythonEvent::Copied => "python_copied",
        PythonEvent::SetsResult => "python_wakes",
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
