//! Attaches probes to programs whose runtime hides from system calls what a request is served by.
//!
//! In: a program that a process runs. Out: the kind of the process (`abi::kind_of_process`): which
//! rules about causes hold. A program in which something that has to be seen cannot be found gets
//! none: its calls have no parents then, which is said once.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::Ebpf;
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeScope};
use rustc_hash::FxHashMap;
use tracer_common::abi::kind_of_process as kind;

use crate::discover::Runtime;

/// Programs that probes are attached to at a time, replaced ones included.
const MAX_PROGRAMS: usize = 256;

/// Program of the kernel side, and the symbol that it is attached to.
type Hook = (&'static str, &'static str);

/// Callbacks of timers and `setImmediate`, which run within a turn of the loop.
const NODE: &[Hook] = &[
    (
        "node_other_work",
        "_ZN4node11Environment9RunTimersEP10uv_timer_s",
    ),
    (
        "node_other_work",
        "_ZN4node11Environment14CheckImmediateEP10uv_check_s",
    ),
];

/// What was attached so far.
#[derive(Debug, Default)]
pub struct RuntimeProbes {
    /// By device and inode number: the kind of processes that run it.
    programs: FxHashMap<(u64, u64), u32>,
}

impl RuntimeProbes {
    /// Attaches what `runtime` needs to the program, unless it has it.
    pub fn follow(&mut self, ebpf: &mut Ebpf, runtime: Runtime, exe: &Path) -> u32 {
        let (hooks, then) = match runtime {
            Runtime::Kind(kind) => return kind,
            Runtime::Node => (NODE, kind::CALLBACKS),
            Runtime::Go => return kind::NONE,
        };
        let Ok(file) = std::fs::metadata(exe) else {
            return kind::NONE;
        };
        let id = (file.dev(), file.ino());
        if let Some(kind) = self.programs.get(&id) {
            return *kind;
        }
        let kind = if self.programs.len() >= MAX_PROGRAMS {
            tracing::warn!("too many programs are followed: calls of more of them get no parents");
            return kind::NONE;
        } else if let Err(why) = attach(ebpf, hooks, exe) {
            tracing::warn!(
                program = %exe.display(), why,
                "cannot follow a program: its calls get no parents"
            );
            kind::NONE
        } else {
            then
        };
        self.programs.insert(id, kind);
        kind
    }
}

fn attach(ebpf: &mut Ebpf, hooks: &[Hook], exe: &Path) -> Result<(), String> {
    for &(program, symbol) in hooks {
        let probe: &mut UProbe = ebpf
            .program_mut(program)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| format!("there is no {program}"))?;
        probe
            .attach(
                UProbeAttachLocation::Symbol(symbol),
                exe,
                UProbeScope::AllProcesses,
            )
            .map_err(|error| format!("{symbol}: {error}"))?;
    }
    Ok(())
}
