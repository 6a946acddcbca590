//! Attaches probes to programs whose runtime hides from system calls what a request is served by.
//!
//! In: a program that a process runs. Out: the kind of the process (`abi::kind_of_process`): which
//! rules about causes hold. A program in which something that has to be seen cannot be found gets
//! none: its calls have no parents then, which is said once.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::Ebpf;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeScope};
use aya::programs::{Program, UProbe};
use rustc_hash::FxHashMap;
use tracer_common::abi::kind_of_process as kind;

use super::load::{Set, load_programs};
use super::shared::SharedEbpf;
use super::symbols;
use crate::causes::chain;
use crate::discover::{Runtime, binary};
use crate::sys;

/// Programs that probes are attached to at a time, replaced ones included.
const MAX_PROGRAMS: usize = 256;

/// What it was taken for, device and inode number: a process may run something else by the time it is opened.
type ProgramId = (Runtime, u64, u64);

/// Where a program of the kernel side is attached.
struct Hook {
    program: &'static str,
    symbol: &'static str,
    /// Without it nothing can be said with certainty; without others some calls have no parent.
    required: bool,
}

const fn required(program: &'static str, symbol: &'static str) -> Hook {
    Hook {
        program,
        symbol,
        required: true,
    }
}

const fn optional(program: &'static str, symbol: &'static str) -> Hook {
    Hook {
        program,
        symbol,
        required: false,
    }
}

/// Timers, `setImmediate` and ends of sockets run callbacks within a turn of the loop that are none of
/// the turn's (what waited for a connection to end, among them).
const NODE: &[Hook] = &[
    required(
        "node_runs_timers",
        "_ZN4node11Environment9RunTimersEP10uv_timer_s",
    ),
    required(
        "node_runs_timers",
        "_ZN4node11Environment14CheckImmediateEP10uv_check_s",
    ),
    required(
        "node_other_work",
        "_ZN4node10HandleWrap7OnCloseEP11uv_handle_s",
    ),
    optional(
        "node_makes_socket",
        "_ZN4node7TCPWrap3NewERKN2v820FunctionCallbackInfoINS1_5ValueEEE",
    ),
    optional(
        "node_makes_handle",
        "_ZN4node8PipeWrap3NewERKN2v820FunctionCallbackInfoINS1_5ValueEEE",
    ),
    optional(
        "node_makes_handle",
        "_ZN4node6crypto7TLSWrap4WrapERKN2v820FunctionCallbackInfoINS2_5ValueEEE",
    ),
    optional(
        "node_makes_handle",
        "_ZN4node9AsyncWrap10AsyncResetERKN2v820FunctionCallbackInfoINS1_5ValueEEE",
    ),
    optional(
        "node_makes_stream",
        "_ZN4node5http211Http2StreamC1EPNS0_12Http2SessionEN2v85LocalINS4_6ObjectEEEi24nghttp2_headers_categoryi",
    ),
    optional(
        "node_session_writes",
        "_ZN4node5http212Http2Session15SendPendingDataEv",
    ),
    optional(
        "node_reads_frame",
        "_ZN4node5http212Http2Session18HandleHeadersFrameEPK13nghttp2_frame",
    ),
    optional(
        "node_reads_frame",
        "_ZN4node5http212Http2Session15HandleDataFrameEPK13nghttp2_frame",
    ),
    optional(
        "node_reads_data",
        "_ZN4node5http212Http2Session19OnDataChunkReceivedEP15nghttp2_sessionhiPKhmPv",
    ),
    optional("uv_begins_second", "uv_getaddrinfo"),
    optional("uv_begins_first", "uv_tcp_connect"),
    optional(
        "uv_done",
        "_ZN4node10cares_wrap12_GLOBAL__N_116AfterGetAddrInfoEP16uv_getaddrinfo_siP8addrinfo",
    ),
    optional(
        "uv_done",
        "_ZN4node14ConnectionWrapINS_7TCPWrapE8uv_tcp_sE12AfterConnectEP12uv_connect_si",
    ),
];

/// Where libuv calls back for all work that its threads have done: behind it other callbacks may run. Without
/// its end nothing is said about such work.
const UV_WORK_DONE: &str = "uv__work_done";
/// One piece of such work: files, `crypto`, `zlib`, names.
const UV_WORK: &[Hook] = &[
    required("uv_worked", "uv__queue_done"),
    required("uv_worked", "uv__fs_done"),
    optional("uv_worked", "uv__getaddrinfo_done"),
    optional("uv_worked", "uv__getnameinfo_done"),
    optional("uv_worked", "uv__random_done"),
    required("uv_begins_second", "uv__work_submit"),
    required("uv_queues", "uv_queue_work"),
];

/// A goroutine's address is used again: without its beginning and its end it is not known whose it is.
const GO: &[Hook] = &[
    required("go_makes", "runtime.newproc1"),
    required("go_runnable", "runtime.runqput"),
    required("go_ends", "runtime.goexit1"),
    optional("go_writes", "net/http.persistConnWriter.Write"),
    optional("go_sends", "net/http.(*persistConn).roundTrip"),
    optional("go_reads_head", "net/http.http2parseHeadersFrame"),
    optional("go_reads_head", "golang.org/x/net/http2.parseHeadersFrame"),
    optional("go_serves", "net/http.(*http2serverConn).readFrames"),
    optional(
        "go_serves",
        "golang.org/x/net/http2.(*serverConn).readFrames",
    ),
    optional("go_begins_handler", "net/http.(*http2serverConn).newStream"),
    optional(
        "go_begins_handler",
        "golang.org/x/net/http2.(*serverConn).newStream",
    ),
    optional(
        "go_hands_over",
        "google.golang.org/grpc/internal/transport.(*controlBuffer).executeAndPut",
    ),
    optional(
        "go_takes_over",
        "google.golang.org/grpc/internal/transport.(*loopyWriter).headerHandler",
    ),
    optional(
        "go_takes_over",
        "google.golang.org/grpc/internal/transport.(*loopyWriter).clientHeaderHandler",
    ),
    optional(
        "go_begins_stream",
        "google.golang.org/grpc/internal/transport.(*loopyWriter).writeHeader",
    ),
];

/// What was attached so far.
#[derive(Debug)]
pub struct RuntimeProbes {
    /// Uprobes may be placed at all; what is missing otherwise was said once, at start.
    allowed: bool,
    /// The kind of processes that run it.
    programs: FxHashMap<ProgramId, u32>,
}

impl RuntimeProbes {
    /// Nothing attached.
    pub fn new(allowed: bool) -> Self {
        RuntimeProbes {
            allowed,
            programs: FxHashMap::default(),
        }
    }

    /// Attaches what `runtime` needs to the program, unless it has it; returns the kind that processes then are
    /// of. It locks only to attach.
    pub fn follow(&mut self, ebpf: &SharedEbpf, runtime: Runtime, exe: &File) -> u32 {
        let (hooks, then) = match runtime {
            Runtime::Node => (NODE, kind::CALLBACKS),
            Runtime::Go => (GO, kind::GO),
            Runtime::Kind(_) | Runtime::Python | Runtime::Rust => return kind::NONE,
        };
        if !self.allowed {
            return kind::NONE;
        }
        let Some(id) = program_id(runtime, exe) else {
            return kind::NONE;
        };
        if let Some(kind) = self.programs.get(&id) {
            return *kind;
        }
        let path = sys::path_of(exe);
        let kind = if self.programs.len() >= MAX_PROGRAMS {
            tracing::warn!("too many programs are followed: calls of more of them get no parents");
            return kind::NONE;
        } else if let Err(why) = attach(&mut ebpf.lock_first(), runtime, hooks, &path) {
            let program = std::fs::read_link(&path).unwrap_or_default();
            tracing::warn!(
                program = %program.display(), why,
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

fn program_id(runtime: Runtime, exe: &File) -> Option<ProgramId> {
    let facts = exe.metadata().ok()?;
    Some((runtime, facts.dev(), facts.ino()))
}

/// From the table that Go's runtime needs itself, which stripping leaves.
fn go_offsets<'n>(exe: &Path, names: &[&'n str]) -> Result<FxHashMap<&'n str, u64>, String> {
    let file = File::open(exe).map_err(|error| error.to_string())?;
    let len = file.metadata().map_err(|error| error.to_string())?.len();
    let functions = binary::go_functions(&file, len, names).map_err(|error| error.to_string())?;
    let functions = functions.ok_or("it has no build information")?;
    let known = |name: &str| names.iter().find(|known| **known == name).copied();
    let found = functions
        .iter()
        .filter_map(|function| Some((known(&function.name)?, function.entry)));
    Ok(found.collect())
}

fn attach(ebpf: &mut Ebpf, runtime: Runtime, hooks: &[Hook], exe: &Path) -> Result<(), String> {
    let mut names: Vec<&str> = hooks.iter().map(|hook| hook.symbol).collect();
    if runtime == Runtime::Node {
        names.extend(UV_WORK.iter().map(|hook| hook.symbol));
        names.push(UV_WORK_DONE);
    }
    let found = match runtime {
        Runtime::Go => go_offsets(exe, &names)?,
        _ => symbols::offsets(exe, &names),
    };
    // Either everything that is needed is attached, or nothing.
    for hook in hooks {
        if hook.required && !found.contains_key(hook.symbol) {
            return Err(format!("it has no function {}", hook.symbol));
        }
    }
    if runtime == Runtime::Node && !is_loaded(ebpf, hooks) {
        load_programs(ebpf, Set::Node).map_err(|error| chain(&error))?;
    }
    for hook in hooks {
        let Some(&offset) = found.get(hook.symbol) else {
            tracing::debug!(symbol = hook.symbol, "not there");
            continue;
        };
        match attach_at(ebpf, hook.program, exe, offset) {
            Ok(()) => {}
            Err(error) if hook.required => return Err(format!("{}: {error}", hook.symbol)),
            Err(error) => tracing::debug!(symbol = hook.symbol, %error, "not attached"),
        }
    }
    if runtime == Runtime::Node
        && let Err(why) = attach_work(ebpf, exe, &found)
    {
        tracing::info!(
            why,
            "work of libuv's threads is not seen: its calls get no parents"
        );
    }
    Ok(())
}

/// Whether the verifier took them already.
fn is_loaded(ebpf: &Ebpf, hooks: &[Hook]) -> bool {
    let programs = hooks.iter().map(|hook| ebpf.program(hook.program));
    let mut programs = programs.flatten();
    programs.any(|program| matches!(program, Program::UProbe(probe) if probe.fd().is_ok()))
}

/// Attaches what follows the work of libuv's threads, its ends first; nothing if some of it is not found.
fn attach_work(ebpf: &mut Ebpf, exe: &Path, found: &FxHashMap<&str, u64>) -> Result<(), String> {
    let mut hooks = UV_WORK.iter();
    if let Some(hook) = hooks.find(|hook| hook.required && !found.contains_key(hook.symbol)) {
        return Err(format!("it has no function {}", hook.symbol));
    }
    let done = found.get(UV_WORK_DONE).ok_or("its end is not there")?;
    let file = File::open(exe).map_err(|error| error.to_string())?;
    let len = file.metadata().map_err(|error| error.to_string())?.len();
    let ends = binary::returns(&file, len, *done).map_err(|error| error.to_string())?;
    for at in ends {
        attach_at(ebpf, "node_other_work", exe, at)?;
    }
    for hook in UV_WORK {
        if let Some(&offset) = found.get(hook.symbol) {
            attach_at(ebpf, hook.program, exe, offset)?;
        }
    }
    Ok(())
}

fn attach_at(ebpf: &mut Ebpf, program: &str, exe: &Path, offset: u64) -> Result<(), String> {
    let probe: &mut UProbe = ebpf
        .program_mut(program)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| format!("there is no {program}"))?;
    let attached = probe.attach(
        UProbeAttachLocation::AbsoluteOffset(offset),
        exe,
        UProbeScope::AllProcesses,
    );
    attached.map(|_| ()).map_err(|error| error.to_string())
}
