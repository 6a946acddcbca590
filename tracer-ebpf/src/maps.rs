//! Every map and its bound. User space may shrink or grow the ring and the table at load.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use tracer_common::abi::{
    DataEvent, MappedFile, drop_reason, exchanges, left_behind, setting, wanted,
};
use tracer_common::limits::WINDOW;

use crate::cause::{
    Actor, Begun, Cause, Channel, Crowd, Due, Flight, Ids, Made, Noted, Opener, Stream, Task, Wake,
    Waker, Worker,
};
use crate::connection::Connection;
use crate::hello::{Hello, HelloKey};
use crate::tls::{Session, SessionKey, Thread, ThreadKey};
use crate::way::Lock;

/// All events, in the order they were reserved.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(16 * 1024 * 1024, 0);

/// `struct sock` address to what we know of the connection. Least recently used ones go first:
/// unix sockets that never spoke HTTP have no end event that would take them out.
#[map]
pub static CONNECTIONS: LruHashMap<u64, Connection> = LruHashMap::with_max_entries(32768, 0);

/// Policy of single processes (tgid to `abi::policy` flags).
#[map]
pub static PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(16384, BPF_F_NO_PREALLOC);

/// Ports that are not looked at: `port << 1 | 1` for remote ports, `port << 1` for local ones.
#[map]
pub static IGNORED_PORTS: HashMap<u32, u8> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// What user space may change while programs run, by the indexes of `abi::setting`. A lookup by a
/// constant index is a few instructions, no call.
#[map]
pub static SETTINGS: Array<u32> = Array::with_max_entries(setting::COUNT, 0);

/// The setting's value now.
#[inline(always)]
pub fn read_setting(index: u32) -> u32 {
    SETTINGS.get(index).copied().unwrap_or(0)
}

/// When a thread entered its write call, direct-mapped by thread id; checked by the full id.
#[map]
pub static ENTERED: Array<Entered> = Array::with_max_entries(ENTERED_SLOTS, 0);
/// Power of two, so that the slot is a mask.
pub const ENTERED_SLOTS: u32 = 16384;

/// What threads are doing, direct-mapped by thread id; checked by the full id.
#[map]
pub static THREADS: Array<Actor> = Array::with_max_entries(ACTOR_SLOTS, 0);
/// What goroutines and tasks of tokio are doing, in one of a few slots that a hash names; checked by the
/// goroutine and its process.
#[map]
pub static GOROUTINES: Array<Actor> = Array::with_max_entries(GOROUTINE_SLOTS, 0);
/// Power of two, so that the slot is a mask.
pub const ACTOR_SLOTS: u32 = 16384;
/// See [`ACTOR_SLOTS`].
pub const GOROUTINE_SLOTS: u32 = 16384;
/// Slots where one goroutine may be; a power of two.
pub const GOROUTINE_WAYS: u32 = 4;

/// Where threads of Node's keep the ids of what they call back. One that finds no room has no parents there.
#[map]
pub static IDS: HashMap<u32, Ids> = HashMap::with_max_entries(512, BPF_F_NO_PREALLOC);

/// An entry of [`IDS`] to begin with; never written.
#[map]
pub static NO_IDS: Array<Ids> = Array::with_max_entries(1, 0);

/// For whom such ids were given, in one of a few slots that a hash of thread and id names. The oldest go
/// first: a thread has room for some 30,000 ids.
#[map]
pub static MADE: Array<Made> = Array::with_max_entries(MADE_SLOTS, 0);
/// Power of two, so that the slot is a mask.
pub const MADE_SLOTS: u32 = 4096;
/// Slots where an id may be; a power of two.
pub const MADE_WAYS: u32 = 4;

/// Exchanges that are being served, in one of a few slots that a hash names. One that loses its slot
/// to another is taken for ended: what is called for it has no parent.
#[map]
pub static EXCHANGES: Array<Cause> = Array::with_max_entries(exchanges::SLOTS, 0);

/// How processes run what they serve (tgid to `abi::kind_of_process`).
#[map]
pub static KINDS: HashMap<u32, u32> = HashMap::with_max_entries(16384, BPF_F_NO_PREALLOC);

/// Exchanges in flight of processes whose threads are followed by who wakes them. One that finds no room has none of
/// that.
#[map]
pub static CROWDS: HashMap<u32, Crowd> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);

/// Where the locks of interpreters with one for all threads lie, by process: first address and the one behind the last. Put
/// there when such a process is to be followed.
#[map]
pub static LOCKS: HashMap<u32, [u64; 2]> = HashMap::with_max_entries(256, BPF_F_NO_PREALLOC);

/// Exchanges that are counted in [`CROWDS`].
#[map]
pub static FLIGHTS: HashMap<Cause, Flight> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

/// Threads of such processes that were woken by one that serves an exchange, or were seen to call by themselves.
#[map]
pub static WORKERS: LruHashMap<u32, Worker> = LruHashMap::with_max_entries(1024, 0);

/// Who woke whoever waits at an address, by process and address: from the wake to the end of the wait.
#[map]
pub static WAKERS: LruHashMap<Handed, Waker> = LruHashMap::with_max_entries(1024, 0);

/// Who opens a connection, from the first packet until it is established: as many as are opened at a time,
/// which backlogs and round trips keep small.
#[map]
pub static OPENERS: LruHashMap<u64, Opener> = LruHashMap::with_max_entries(1024, 0);

/// What is handed over within a process, by process and address: the exchange that a request of
/// libuv's or a connection of Go's client works for. An entry lasts as long as that: as many as calls under
/// way in such programs.
#[map]
pub static HANDED: LruHashMap<Handed, Cause> = LruHashMap::with_max_entries(2048, 0);

/// Streams of HTTP/2: those that came in and are being served, and what begun ones are for. As many as are under
/// way on forty connections that allow a hundred each.
#[map]
pub static STREAMS: LruHashMap<Cause, Stream> = LruHashMap::with_max_entries(2048, 0);

/// Streams that are made in a process and not written yet, by who makes them.
#[map]
pub static DUE: LruHashMap<Handed, Due> = LruHashMap::with_max_entries(1024, 0);

/// Contexts of Python processes, by process and address: one for each task that runs. Like most tables
/// of this kind it is made larger where there are many CPUs.
#[map]
pub static CONTEXTS: LruHashMap<Handed, Task> = LruHashMap::with_max_entries(4096, 0);

/// Futures of Python processes whose results were set in a turn that read a request.
#[map]
pub static WAKES: LruHashMap<Handed, Wake> = LruHashMap::with_max_entries(1024, 0);

/// Channels that tasks of tokio wait for, by process and address. Those that count belong to client
/// connections, so there are as many as of [`POOLS`]; others come and go with what is used seldom.
#[map]
pub static CHANNELS: LruHashMap<Handed, Channel> = LruHashMap::with_max_entries(3072, 0);

/// Client connections of processes with event loops that wait for their next request.
#[map]
pub static POOLS: LruHashMap<Pool, u32> = LruHashMap::with_max_entries(3072, 0);

/// Connections of one process to one place.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pool {
    /// Of address and port, mixed.
    pub place: u64,
    pub tgid: u32,
    pub reserved: u32,
}

/// What became of the goroutines that a `go` statement made, or the tasks that a call of tokio's made, by process and address. A
/// place in a program's code each: those that run while requests are served are few.
#[map]
pub static SITES: LruHashMap<Handed, u32> = LruHashMap::with_max_entries(1024, 0);

/// See [`HANDED`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Handed {
    pub address: u64,
    pub tgid: u32,
    /// A stream, of [`DUE`].
    pub reserved: u32,
}

/// What was given up, by reason.
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(drop_reason::COUNT, 0);

/// Records submitted (index 0), connections not parsed by what they speak (see [`count`]).
#[map]
pub static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(count::COUNT, 0);

/// The call being looked at. Programs of one kind never nest on a CPU (`bpf_prog_active`).
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// TLS calls under way, and what the thread did with TLS last.
#[map]
pub static TLS_THREADS: LruHashMap<ThreadKey, Thread> = LruHashMap::with_max_entries(3584, 0);

/// Where the entry of a connection that is joined in the middle is made; the stack has no room for it.
#[map]
pub static JOINED: PerCpuArray<Connection> = PerCpuArray::with_max_entries(1, 0);

/// All zeros, to make entries from; never written.
#[map]
pub static EMPTY_CONNECTION: Array<Connection> = Array::with_max_entries(1, 0);

/// A thread that does nothing, to make entries from; never written.
#[map]
pub static TLS_EMPTY_THREAD: Array<Thread> = Array::with_max_entries(1, 0);

/// TLS sessions by object and process.
#[map]
pub static TLS_SESSIONS: LruHashMap<SessionKey, Session> = LruHashMap::with_max_entries(7680, 0);

/// ClientHellos whose sessions are not known yet: as many as programs that move their ciphertext themselves shake hands at a time.
#[map]
pub static HELLOS: LruHashMap<HelloKey, Hello> = LruHashMap::with_max_entries(256, 0);

/// Not 0 once a TLS library is probed: before that no socket is asked for its session.
#[map]
pub static TLS_ACTIVE: Array<u32> = Array::with_max_entries(1, 0);

/// Like [`SCRATCH`], for uprobes; see `way::Uprobes`.
#[map]
pub static TLS_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(TLS_SCRATCH_SLOTS, 0);
/// Threads that can be in such a program on one CPU at a time.
pub const TLS_SCRATCH_SLOTS: u32 = 4;

/// Who has which slot of [`TLS_SCRATCH`].
#[map]
pub static TLS_LOCKS: PerCpuArray<Lock> = PerCpuArray::with_max_entries(TLS_SCRATCH_SLOTS, 0);

/// Like [`PROGRAMS`], for uprobes.
#[map]
pub static TLS_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(9, 0);

/// Executable files that user space has looked into without finding anything to probe. One that is
/// forgotten is looked into once more: as many as programs and libraries run all the time on a host.
#[map]
pub static KNOWN_FILES: LruHashMap<MappedFile, u8> = LruHashMap::with_max_entries(1024, 0);

/// Not 0 while user space wants to be told of mapped files.
#[map]
pub static MAPPED_WANTED: Array<u32> = Array::with_max_entries(1, 0);

/// Not 0 once user space was told of a unix connection: before that close() is not looked at.
#[map]
pub static UNIX_SEEN: Array<u32> = Array::with_max_entries(1, 0);

/// Buffer for an exec event.
#[map]
pub static EXEC_SCRATCH: PerCpuArray<ExecScratch> = PerCpuArray::with_max_entries(1, 0);

/// Tail calls, by the indexes below.
#[map]
pub static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(8, 0);

/// The same for programs of functions, by the same indexes; see `hook`.
#[map]
pub static FUNCTION_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(8, 0);

/// The same for functions whose signature the kernel counts as another one.
#[map]
pub static FUNCTION_PROGRAMS_TOO: ProgramArray = ProgramArray::with_max_entries(8, 0);

/// Threads that were in a call whose end programs of functions may not see, until they are out of it
/// (tid to `abi::left_behind`).
#[map]
pub static LEFT_BEHIND: HashMap<u32, u32> =
    HashMap::with_max_entries(left_behind::MOST, BPF_F_NO_PREALLOC);

/// Which call a function's program has told last on this CPU, while its tracepoint runs too.
#[map]
pub static TOLD: PerCpuArray<Told> = PerCpuArray::with_max_entries(1, 0);

/// See [`TOLD`].
#[repr(C)]
pub struct Told {
    pub tid: u32,
    /// Which kind of call.
    pub call: u32,
    /// How often the thread has waited, and has lost its CPU without that.
    pub waits: u64,
    pub losses: u64,
}

/// Index of the window program.
pub const WINDOW_PROGRAM: u32 = 0;
/// Index of the head program.
pub const HEAD_PROGRAM: u32 = 1;
/// Index of the chunks program.
pub const CHUNKS_PROGRAM: u32 = 2;
/// Index of the frames program.
pub const FRAMES_PROGRAM: u32 = 3;
/// Index of the program that looks at what frames say of streams.
pub const STREAMS_PROGRAM: u32 = 4;
/// Index of the program that looks for trace context; it is there only when context is written.
pub const CONTEXT_PROGRAM: u32 = 5;
/// Index of the program that offers context in a TCP option; it is there only when context is written so.
pub const OFFER_PROGRAM: u32 = 6;
/// Index of the program that looks for trace context in header blocks; it is there only when context is written.
pub const BLOCKS_PROGRAM: u32 = 7;
/// Index of the program that looks for a session's socket; of those of uprobes only.
pub const PROVE_PROGRAM: u32 = 8;

/// What is wanted of a system call, by its number (`abi::wanted`); for `probes::raw`.
#[map]
pub static WANTED: Array<u32> = Array::with_max_entries(wanted::NUMBERS, 0);
/// The programs for ends of system calls, by their numbers.
#[map]
pub static EXITS: ProgramArray = ProgramArray::with_max_entries(wanted::NUMBERS, 0);
/// The same for their beginnings.
#[map]
pub static ENTERS: ProgramArray = ProgramArray::with_max_entries(wanted::NUMBERS, 0);

/// The agent itself, never looked at.
#[unsafe(no_mangle)]
pub static AGENT_TGID: Global<u32> = Global::new(0);
/// Bytes pending in the ring from which on the reader is woken.
#[unsafe(no_mangle)]
pub static WAKE_BYTES: Global<u64> = Global::new(2 * 1024 * 1024);

/// Indexes of [`COUNTS`].
pub mod count {
    /// Records submitted to the ring.
    pub const SUBMITTED: u32 = 0;
    /// Connections that speak TLS.
    pub const TLS: u32 = 1;
    /// Connections that speak HTTP/2; they are parsed since.
    #[allow(
        dead_code,
        reason = "the index is part of the layout that user space reads"
    )]
    pub const HTTP2: u32 = 2;
    /// Connections that speak nothing we know.
    pub const OTHER: u32 = 3;
    /// Most bytes ever pending in the ring.
    pub const RING_HIGHEST: u32 = 4;
    /// Number of counters.
    pub const COUNT: u32 = 5;
}

/// See [`ENTERED`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entered {
    pub time_ns: u64,
    pub tid: u32,
    pub reserved: u32,
}

/// A data event under construction and the call it comes from.
#[repr(C)]
pub struct Scratch {
    pub event: DataEvent,
    /// The window; its second half takes what a masked offset may overshoot.
    pub window: [u8; 2 * WINDOW],
    pub slack: [u8; 32],
    pub call: Call,
    pub fields: tracer_common::frame::Fields,
    pub found: Found,
    pub walk: Walk,
    /// Streams that are begun in the window.
    pub begun: Begun,
    /// Frames in it that say something of a stream.
    pub noted: Noted,
    /// Header blocks that ended in it.
    pub ended: crate::propagate::blocks::Ended,
    pub context: tracer_common::context::Found,
    pub gather: Gather,
    /// Only a prefix of the call is read; kept here as a value that the verifier should forget.
    pub exhausted: u64,
    /// Of a head that is looked at: `frame::Head::carry` of its part before this one.
    pub carry: u64,
    /// Of a call of a TLS library: the session.
    pub session: SessionKey,
    /// 1: what it wrote was not sent yet.
    pub unsent: u64,
    /// Halves of a trace id.
    pub ids: [u64; 2],
}

/// One data call, normalised over the syscalls.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Call {
    /// `struct sock` of the connection.
    pub socket: u64,
    /// Address of the buffer or of the iovec array.
    pub base: u64,
    /// Number of I/O vectors from there on; [`BUFFER`] for one plain buffer; [`NO_BYTES`] when there is nothing to read.
    pub vectors: u32,
    /// One of `abi::direction`.
    pub direction: u32,
    /// Bytes the call moved.
    pub total: u32,
    /// Bytes of them already accounted for.
    pub offset: u32,
    pub time_ns: u64,
    pub start_ns: u64,
    pub tgid: u32,
    pub tid: u32,
    /// The call waits where there is nothing to read.
    pub blocking: u32,
    /// How the cause of the request that begins here was found, and the cause.
    pub cause_method: u32,
    pub cause: Cause,
    /// Messages of a `*mmsg` call still to come behind this one, and where the next one is.
    pub messages: u32,
    /// Window programs run for this call.
    pub runs: u32,
    /// Tail calls to programs that look at what frames say.
    pub noting: u32,
    pub next_message: u64,
    /// Bytes of the call before `base`: in I/O vectors that are done with.
    pub before: u64,
    /// What the streams of HTTP/2 that were read are (for): 0 for none, 1 for `stream` alone, or many.
    pub streams: u32,
    /// Stream that was begun by the other end; 0 for none, or many.
    pub fresh: u32,
    pub stream: Cause,
    /// Stream of the last frame that was noted.
    pub last: u32,
}

/// What the window program found out for the deliver program.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Found {
    /// Valid bytes of the window.
    pub len: u32,
    /// Bytes of the call from the window's start on.
    pub left: u32,
    /// One of `window::action`.
    pub action: u32,
    /// The message is a request.
    pub is_request: u32,
    /// Bytes to scan for the end of a head; 0 when no head is looked at.
    pub scan: u32,
    /// Bytes from the window's start that user space has to see, as found so far.
    pub seen: u32,
}

/// How far the window has been filled from I/O vectors.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Gather {
    /// Bytes of the call still to go over before the window begins.
    pub skip: u64,
    /// Bytes of the window filled.
    pub filled: u32,
    /// Bytes wanted.
    pub want: u32,
    /// Vectors wholly before the window, and the bytes in them.
    pub passed: u32,
    pub reserved: u32,
    pub passed_bytes: u64,
}

/// Where the walk over a chunked body, or over frames, is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walk {
    /// Bytes of chunk data, or of DATA payload, to go over.
    pub skip: u64,
    /// Size being read; of frames the first four bytes of a cut header.
    pub size: u64,
    /// Offset in the window.
    pub at: u32,
    /// Offset behind the last framing byte.
    pub seen: u32,
    /// `frame::chunk` phase; of frames the bytes of a cut header.
    pub phase: u32,
    /// Frames: payload still to be shipped.
    pub keep: u32,
}

/// [`Call::vectors`]: `base` is the data itself.
pub const BUFFER: u32 = u32::MAX;
/// [`Call::vectors`]: the bytes never were in the process's memory.
pub const NO_BYTES: u32 = u32::MAX - 1;

/// An exec event under construction.
#[repr(C)]
pub struct ExecScratch {
    pub event: tracer_common::abi::ExecEvent,
    pub bytes: [u8; 2 * (tracer_common::limits::ARGS_MAX + tracer_common::limits::ENV_MAX)],
}
