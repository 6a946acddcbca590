//! The wire ABI between kernel and agent: plain data, little endian, no padding, size-asserted.
//!
//! Every record starts with [`Header`]; `kind` says which struct it is. Times are nanoseconds of
//! `CLOCK_BOOTTIME`. Positions count the bytes of one direction of one connection from where
//! tracking began; they are what loss is detected by.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a record is.
pub mod kind {
    /// [`super::ConnectionEvent`]: a connection that is worth telling about, before its first data.
    pub const CONNECTION: u8 = 1;
    /// [`super::DataEvent`] followed by `captured` bytes.
    pub const DATA: u8 = 2;
    /// [`super::EndEvent`]: a direction, or the whole connection, ended.
    pub const END: u8 = 3;
    /// [`super::ExecEvent`] followed by `args_len` + `env_len` bytes.
    pub const EXEC: u8 = 4;
    /// [`super::ExitEvent`]: a process (its thread group leader) ended.
    pub const EXIT: u8 = 5;
    /// [`super::ForkEvent`]: a process made another one.
    pub const FORK: u8 = 6;
    /// [`super::MappedEvent`]: a process mapped an executable file that nobody has looked into yet.
    pub const MAPPED: u8 = 7;
    /// [`super::CausedEvent`]: a stream of HTTP/2 that is about to be told is begun for an exchange.
    pub const CAUSED: u8 = 8;
    /// [`super::InjectedEvent`]: a request that is about to be written got a header of ours.
    pub const INJECTED: u8 = 16;
    /// [`super::CarriedEvent`]: a segment came that carries a request's context.
    pub const CARRIED: u8 = 17;
}

/// Direction of bytes as the traced process sees it.
pub mod direction {
    /// Bytes the process reads from the socket.
    pub const READ: u8 = 0;
    /// Bytes the process writes to the socket.
    pub const WRITE: u8 = 1;
}

/// Who opened the connection.
pub mod role {
    /// Not seen; decided by who sends the first request.
    pub const UNKNOWN: u8 = 0;
    /// This end accepted it.
    pub const SERVER: u8 = 1;
    /// This end opened it.
    pub const CLIENT: u8 = 2;
}

/// How a direction or a connection ended ([`EndEvent::cause`]).
pub mod end {
    /// A read returned 0: the peer sent everything it will send.
    pub const READ_EOF: u8 = 1;
    /// A read or write failed; `errno` says how. The connection is unusable in that direction.
    pub const ERROR: u8 = 2;
    /// This end will send no more (shutdown or close).
    pub const WRITE_SHUTDOWN: u8 = 3;
    /// The kernel's socket is gone. `errno` is the socket's error (0 for an orderly end).
    pub const CLOSED: u8 = 4;
}

/// [`ConnectionEvent::flags`].
pub mod connection_flags {
    /// Tracked from its first byte; without it the connection was joined in the middle.
    pub const FROM_START: u8 = 1;
    /// `read_sequence` and `write_sequence` are known.
    pub const SEQUENCES: u8 = 2;
    /// The plaintext of a TLS session. Told again, with the same id, when its socket becomes known.
    pub const TLS: u8 = 4;
}

/// `flags` of the header of data events.
pub mod data_flags {
    /// The connection speaks HTTP/2 (else HTTP/1).
    pub const HTTP2: u8 = 1;
}

/// [`ProcessPolicy::flags`], and the default for processes without an entry.
pub mod policy {
    /// Do not look at this process's calls.
    pub const IGNORE: u32 = 1;
    /// Look at this process's calls although the default says otherwise.
    pub const TRACE: u32 = 2;
    /// Children inherit this entry at fork, in the kernel.
    pub const INHERIT: u32 = 4;
    /// Nobody has decided yet: it is a new program, looked at until user space says.
    pub const UNDECIDED: u32 = 8;
    /// Instead of that: its parent was undecided when it was forked, and it runs the same program.
    pub const UNDECIDED_CHILD: u32 = 16;
    /// Of an undecided program, above the flags: when it was started, so that what is decided about the one before it
    /// is not taken for this one's.
    pub const fn started(time_ns: u64) -> u32 {
        const UNIT_SHIFT: u32 = 12;
        const FLAGS: u32 = 8;
        ((time_ns >> UNIT_SHIFT) as u32) << FLAGS
    }
}

/// How the cause of a call was found ([`DataEvent::cause_method`]).
pub mod cause_method {
    /// There is none.
    pub const NONE: u32 = 0;
    /// The thread read the request that it serves, and waits for what it calls.
    pub const SAME_THREAD: u32 = 1;
    /// The thread of an event loop touched that exchange last, in this turn of the loop.
    pub const TURN: u32 = 2;
    /// It goes on with the response of a call of that exchange.
    pub const CONTINUATION: u32 = 3;
    /// The connection was opened for that exchange, and this is its first request.
    pub const CONNECTION: u32 = 4;
    /// The thread was made by a thread that served that exchange.
    pub const THREAD_CREATED: u32 = 5;
    /// The goroutine read the request that it serves.
    pub const GOROUTINE: u32 = 6;
    /// The goroutine was started by one that served that exchange.
    pub const GOROUTINE_CREATED: u32 = 7;
    /// The goroutine was woken by one that served that exchange.
    pub const GOROUTINE_WOKEN: u32 = 8;
    /// The task was made, or woken, when that exchange's request was read.
    pub const TASK: u32 = 9;
    /// The task was made by one that serves that exchange.
    pub const TASK_CREATED: u32 = 10;
    /// A task that serves that exchange sent it to the task that writes to the connection.
    pub const TASK_HANDED: u32 = 11;
    /// The thread was woken for that exchange, the only one in its process.
    pub const THREAD_WOKEN: u32 = 12;
    /// The thread took work that was handed over for that exchange.
    pub const THREAD_HANDED: u32 = 13;
    /// The timer (or the like) whose callback runs was made for that exchange.
    pub const TIMER: u32 = 14;
    /// Number of methods.
    pub const COUNT: u32 = 15;
}

/// How a process runs what it serves, which decides what can be said about causes. Low byte of
/// the value in the kernel side's `KINDS` map; the flags are above it.
pub mod kind_of_process {
    /// Not known, or none of the rules holds.
    pub const NONE: u32 = 0;
    /// A thread serves one request at a time if it waits for it in a blocking read.
    pub const BLOCKING: u32 = 1;
    /// A thread serves one request at a time.
    pub const THREADS: u32 = 2;
    /// Event loops whose callbacks run to their ends.
    pub const CALLBACKS: u32 = 3;
    /// Goroutines.
    pub const GO: u32 = 4;
    /// Tasks of an event loop, which run in contexts of their own (Python's asyncio).
    pub const TASKS: u32 = 5;
    /// Tasks of tokio.
    pub const TOKIO: u32 = 6;
    /// The low byte.
    pub const MASK: u32 = 0xff;
    /// A thread was seen to have two requests open, or turns of tasks are not all seen: what a thread
    /// does says nothing.
    pub const MULTIPLEXED: u32 = 0x100;
    /// Threads made while serving a request were seen to end with it.
    pub const THREADS_END: u32 = 0x200;
    /// A thread made while serving a request was seen to serve on after it.
    pub const THREADS_STAY: u32 = 0x400;
    /// Waits and wakes of its threads say what they work for, where they are seen.
    pub const WOKEN: u32 = 0x800;
    /// Threads that were woken for requests were seen to do other work as well, or not all requests are counted: who
    /// woke a thread says nothing.
    pub const OTHER_WORK: u32 = 0x1000;
    /// It was seen to read a request.
    pub const SERVES: u32 = 0x2000;
    /// Of one with [`WOKEN`]: a thread that serves nothing sent a request while another one served.
    pub const STRANGERS: u32 = 0x4000;
    /// Callbacks write the streams of HTTP/2 that they begin themselves (nginx).
    pub const OWN_STREAMS: u32 = 0x8000;
    /// Of one with [`WOKEN`]: an interpreter with a lock for all threads. Who wakes whom says something only where it is known
    /// which waits are for that.
    pub const ONE_LOCK: u32 = 0x1_0000;
}

/// Indexes of what user space may change while the kernel side runs.
pub mod setting {
    /// Whether the policy of processes has to be asked for every call: 0, or of [`ASK`], [`CLOSED`] and
    /// [`NEW_UNDECIDED`].
    pub const POLICY_ACTIVE: u32 = 0;
    /// [`super::policy`] flags of processes without an entry.
    pub const POLICY_DEFAULT: u32 = 1;
    /// 1 when there are ports that are not looked at.
    pub const PORTS_ACTIVE: u32 = 2;
    /// 1 while calls may end that programs of functions do not see the end of: tracepoints tell these.
    pub const HANDOVER: u32 = 3;
    /// 1 while processes run whose threads are followed by who wakes them.
    pub const WAKES: u32 = 4;
    /// Number of settings.
    pub const COUNT: u32 = 5;
    /// The policy is asked.
    pub const ASK: u32 = 1;
    /// Nothing is looked at, whatever the policy: not all programs are attached yet, and what only some
    /// of them see of a connection would pass for the whole of it.
    pub const CLOSED: u32 = 2;
    /// New programs are looked at until it is decided whether they are traced, so that nothing of those that
    /// are is missing, however late that is.
    pub const NEW_UNDECIDED: u32 = 4;
}

/// What a thread was in when something came to functions.
pub mod left_behind {
    /// A call that moves bytes, or another one of which the end is told at a tracepoint.
    pub const CALL: u32 = 1;
    /// A wait for events of many descriptors, whose end nobody tells.
    pub const EVENTS: u32 = 2;
    /// Threads that can be told apart.
    pub const MOST: u32 = 65_536;
}

/// What is wanted of a system call, where all of them come by one hook.
pub mod wanted {
    /// Its beginning.
    pub const ENTER: u32 = 1;
    /// Its end.
    pub const EXIT: u32 = 2;
    /// Numbers of system calls are below this; the highest of today is 471.
    pub const NUMBERS: u32 = 512;
}

/// Cookie of a probe in a TLS library: which instruction it is at. 0 at entries and RETs.
pub mod place {
    /// How much lower the stack pointer is here than at the entry and at the RET.
    pub const DEPTH: u64 = 0xffff;
    /// The call returns from here only if what was compared last is equal.
    pub const IF_EQUAL: u64 = 1 << 16;
    /// Of functions that Go defers: where the result is, from the stack pointer at the entry of
    /// the function that returns downwards.
    pub const RESULT_SHIFT: u32 = 32;
}

/// What user space knows of the kernel's connection table entries; asserted by the kernel side.
pub mod connection_entry {
    /// 64-bit words of an entry; the first is the connection's id.
    pub const WORDS: usize = 24;
    /// Word that says since when the entry is there, `CLOCK_BOOTTIME` nanoseconds.
    pub const SINCE_WORD: usize = 2;
    /// Where the verdict is.
    pub const VERDICT_BYTE: usize = 107;
    /// The verdict that stops looking.
    pub const IGNORED: u8 = 2;
    /// Word with the position of the request that is being served.
    pub const OPEN_KEY_WORD: usize = 15;
}

/// The kernel side's table of exchanges that are being served: connection and position of the request, in one of a few slots.
pub mod exchanges {
    /// Slots in all; a power of two, so that a slot is a mask.
    pub const SLOTS: u32 = 32768;
    /// Slots where one exchange may be; a power of two.
    pub const WAYS: u32 = 4;

    /// The first of the slots where an exchange may be.
    #[inline(always)]
    pub const fn first_slot(connection: u64, key: u64) -> u32 {
        const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed = (connection ^ key.wrapping_mul(MIX)).wrapping_mul(MIX);
        (mixed >> 40) as u32 & (SLOTS - 1) & !(WAYS - 1)
    }
}

/// Why the kernel side gave something up; indexes the per-CPU `DROPS` array.
pub mod drop_reason {
    /// The ring buffer was full: a data event was lost (its bytes show up as a gap).
    pub const RING_FULL_DATA: u32 = 0;
    /// The ring buffer was full: a connection, end or process event was lost.
    pub const RING_FULL_CONTROL: u32 = 1;
    /// The connection table was full: calls on that connection are not seen.
    pub const CONNECTIONS_FULL: u32 = 2;
    /// The traced program's memory could not be read: counted as uncaptured bytes.
    pub const USER_MEMORY: u32 = 3;
    /// A call had more messages or vectors than are looked at in one go.
    pub const CALL_TOO_COMPLEX: u32 = 4;
    /// A TLS call returned whose entry was not seen: its plaintext is not known to be missing.
    pub const TLS_CALL_UNMATCHED: u32 = 5;
    /// More TLS calls were under way on a CPU, or within each other, than there is room for.
    pub const TLS_BUSY: u32 = 6;
    /// Calls by io_uring whose bytes are not looked for: with vectors, or answered many times.
    pub const IO_URING: u32 = 7;
    /// Of a connection's frames some were not looked at: which of its streams are open is not known any more, and calls
    /// made for them have no parents.
    pub const STREAMS_GIVEN_UP: u32 = 8;
    /// Of a connection's header blocks some were not looked at: the traces of its requests are not known any more.
    pub const BLOCKS_GIVEN_UP: u32 = 9;
    /// Number of reasons.
    pub const COUNT: u32 = 10;
    /// Names of the reasons, as they appear in the ledger and in metrics.
    pub const NAMES: [&str; COUNT as usize] = [
        "ring_full_data",
        "ring_full_control",
        "connections_full",
        "user_memory",
        "call_too_complex",
        "tls_call_unmatched",
        "tls_busy",
        "io_uring",
        "streams_given_up",
        "blocks_given_up",
    ];
}

macro_rules! abi {
    ($(#[$meta:meta])* $name:ident[$size:literal] { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "user", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
    };
}

abi! {
    /// First eight bytes of every record.
    Header[8] {
        /// One of [`kind`].
        kind: u8,
        /// Data and end events: one of [`direction`]. Connection events: one of [`role`].
        selector: u8,
        /// Connection events: [`connection_flags`]. End events: one of [`end`].
        flags: u8,
        /// Zero.
        reserved: u8,
        /// Data events: bytes that follow the struct. End events: errno. Others: 0.
        value: u32,
    }
}

abi! {
    /// A connection, told before its first data event.
    ConnectionEvent[208] {
        /// `selector` is the role, `flags` are [`connection_flags`].
        header: Header,
        /// When tracking began.
        time_ns: u64,
        /// Unique for the life of the kernel side.
        connection: u64,
        /// Address of the kernel's socket; a second connection with the same one replaces the first.
        socket: u64,
        /// Inode number of the socket, as in `/proc/PID/fd`.
        inode: u64,
        /// Process whose call made the connection known.
        tgid: u32,
        /// `AF_INET` 2, `AF_INET6` 10, `AF_UNIX` 1; 0 for a TLS session whose socket is not known.
        family: u16,
        /// Local port, host order; 0 for unix sockets.
        local_port: u16,
        /// Remote port, host order.
        remote_port: u16,
        /// Valid bytes of `path`.
        path_len: u16,
        /// Local address: 4 or 16 bytes used.
        local: [u8; 16],
        /// Remote address: 4 or 16 bytes used.
        remote: [u8; 16],
        /// Unix: path of the listening end (leading NUL: abstract), else empty.
        path: [u8; 108],
        /// TCP, with [`connection_flags::SEQUENCES`]: sequence number of the byte at read position 0.
        read_sequence: u32,
        /// The same of the byte at write position 0.
        write_sequence: u32,
        /// Unix: address of the kernel's socket at the other end; 0 if there is none.
        peer: u64,
    }
}

abi! {
    /// Bytes moved by one call (or a part of one), followed by `header.value` captured bytes.
    ///
    /// The bytes `[position - skipped, position)` were left out on purpose since the previous data
    /// event of this direction; anything else missing before `position` was lost. Of
    /// `[position, position + length)` the first `captured` follow, the rest was left out on purpose.
    DataEvent[80] {
        /// `selector` is the direction, `value` the number of captured bytes.
        header: Header,
        /// When the call returned.
        time_ns: u64,
        /// When the call was entered, for writes; equal to `time_ns` where unknown and for reads.
        start_ns: u64,
        /// Connection it belongs to.
        connection: u64,
        /// Position of the first byte in this direction.
        position: u64,
        /// Bytes left out on purpose before `position`.
        skipped: u64,
        /// Bytes of this direction that this event accounts for.
        length: u32,
        /// Process that made the call.
        tgid: u32,
        /// Thread that made the call.
        tid: u32,
        /// One of [`cause_method`]; not `NONE` only for the beginning of an outgoing request.
        cause_method: u32,
        /// The connection on which the exchange came in that this request is sent for.
        cause_connection: u64,
        /// Which exchange of that connection: position of its request's first byte.
        cause_key: u64,
    }
}

abi! {
    /// A direction or a connection ended; final positions of both directions.
    EndEvent[64] {
        /// `selector` is the direction, `flags` one of [`end`], `value` the errno.
        header: Header,
        /// When it ended.
        time_ns: u64,
        /// Connection it belongs to.
        connection: u64,
        /// Bytes read in all.
        read_position: u64,
        /// Bytes written in all.
        write_position: u64,
        /// Bytes left out on purpose before `read_position`, since the last data event.
        read_skipped: u64,
        /// Bytes left out on purpose before `write_position`, since the last data event.
        write_skipped: u64,
        /// Process whose call ended it; 0 when the kernel did.
        tgid: u32,
        /// Thread whose call ended it.
        tid: u32,
    }
}

abi! {
    /// A process started another program; followed by `args_len` bytes of NUL-separated arguments
    /// and `env_len` bytes of NUL-separated environment (both may be cut).
    ExecEvent[64] {
        /// No selector.
        header: Header,
        /// When it happened.
        time_ns: u64,
        /// Start of the process, `CLOCK_BOOTTIME`.
        start_ns: u64,
        /// The process.
        tgid: u32,
        /// Its parent.
        parent_tgid: u32,
        /// Its user.
        uid: u32,
        /// Bytes of arguments that follow.
        args_len: u16,
        /// Bytes of environment that follow the arguments.
        env_len: u16,
        /// Its cgroup (v2) id.
        cgroup: u64,
        /// Name of the main thread, NUL-padded.
        comm: [u8; 16],
    }
}

abi! {
    /// A process ended.
    ExitEvent[24] {
        /// No selector.
        header: Header,
        /// When it happened.
        time_ns: u64,
        /// The process.
        tgid: u32,
        /// Zero.
        reserved: u32,
    }
}

abi! {
    /// A process was forked. It is the same program as its parent until it executes another.
    ForkEvent[24] {
        /// No selector.
        header: Header,
        /// When it happened.
        time_ns: u64,
        /// The new process.
        tgid: u32,
        /// Its parent.
        parent_tgid: u32,
    }
}

abi! {
    /// A file as the kernel knows it; key of the kernel side's table of known files.
    MappedFile[24] {
        /// Inode number.
        inode: u64,
        /// Bytes.
        size: u64,
        /// The kernel's device number (not encoded as for user space).
        device: u32,
        /// Generation of the inode, where the file system has them.
        generation: u32,
    }
}

abi! {
    /// A process mapped an executable file that is not in the kernel side's table of known files.
    MappedEvent[48] {
        /// No selector.
        header: Header,
        /// When it happened.
        time_ns: u64,
        /// The file, as the table of known files has it.
        file: MappedFile,
        /// The process.
        tgid: u32,
        /// Zero.
        reserved: u32,
    }
}

abi! {
    /// Context goes out with a request: as a header, or in a TCP option; told before the request's own
    /// data. If its write fails, the request never comes.
    InjectedEvent[88] {
        /// `value` is the number of bytes added to what the process wrote: 0 for a TCP option.
        header: Header,
        /// When it happened.
        time_ns: u64,
        /// Connection on which the request goes out.
        connection: u64,
        /// Which request: position of its first byte, as the process counts, or its stream (HTTP/2).
        position: u64,
        /// Halves of the trace id, the first is the more significant one.
        trace: [u64; 2],
        /// Id of the client span.
        span: u64,
        /// The connection on which the exchange came in that the request is sent for; 0 for none.
        cause_connection: u64,
        /// Which exchange of that connection.
        cause_key: u64,
        /// One of [`cause_method`].
        cause_method: u32,
        /// Bytes added on this connection before.
        shift: u32,
        /// Flags of `traceparent`.
        flags: u32,
        /// 1 if the cause's trace id was read from its request, 0 if it was made from its name.
        adopted: u32,
    }
}

abi! {
    /// What a stream of HTTP/2 is begun for; told before the data of its head.
    CausedEvent[48] {
        /// `value` is one of [`cause_method`].
        header: Header,
        /// When it was written.
        time_ns: u64,
        /// Its connection.
        connection: u64,
        /// Its number.
        stream: u64,
        /// The connection on which the exchange came in that it is begun for.
        cause_connection: u64,
        /// Which exchange of that connection.
        cause_key: u64,
    }
}

abi! {
    /// Context in a TCP option that came in; told before the data of the request.
    CarriedEvent[88] {
        /// No selector.
        header: Header,
        /// When it came.
        time_ns: u64,
        /// Halves of the trace id.
        trace: [u64; 2],
        /// Id of the client span.
        span: u64,
        /// `option::Carried::place`.
        place: u32,
        /// `option::Carried::flags`.
        flags: u32,
        /// `AF_INET` 2, `AF_INET6` 10.
        family: u16,
        /// Local port, host order.
        local_port: u16,
        /// Remote port, host order.
        remote_port: u16,
        /// Zero.
        reserved: u16,
        /// Local address: 4 or 16 bytes used.
        local: [u8; 16],
        /// Remote address: 4 or 16 bytes used.
        remote: [u8; 16],
    }
}

/// What became of requests that could have got a header; indexes of the kernel side's `PROPAGATED`.
pub mod propagated {
    /// It got one.
    pub const INJECTED: u32 = 0;
    /// It carries context already.
    pub const PRESENT: u32 = 1;
    /// It is not certainly a whole head.
    pub const UNCLEAR: u32 = 2;
    /// What was sent before has not left yet, so that the write may be cut anywhere.
    pub const BUSY: u32 = 3;
    /// The trace of what it is sent for is not known.
    pub const UNKNOWN_TRACE: u32 = 4;
    /// With the header it would be longer than a limit that servers commonly have.
    pub const TOO_LONG: u32 = 5;
    /// No room in the ring to tell of it, or the kernel could not make room in the message.
    pub const FAILED: u32 = 6;
    /// Bytes were sent that were not seen.
    pub const UNSEEN: u32 = 7;
    /// Its context went out in a TCP option.
    pub const OPTION: u32 = 8;
    /// As to a TCP option: the place was taken by another request of the same write or segment.
    pub const CROWDED: u32 = 9;
    /// Not sent, but received: context in a TCP option.
    pub const RECEIVED: u32 = 10;
    /// Number of outcomes.
    pub const COUNT: u32 = 11;
    /// Names of the outcomes, as they appear in metrics.
    pub const NAMES: [&str; COUNT as usize] = [
        "injected",
        "present",
        "unclear",
        "busy",
        "unknown_trace",
        "too_long",
        "failed",
        "unseen",
        "option",
        "crowded",
        "received",
    ];
}

/// What user space may change while requests get headers; indexes of the kernel side's `PROPAGATION`.
pub mod propagation {
    /// Not 0 while headers are written.
    pub const ACTIVE: u32 = 0;
    /// Lowest random part (the low 56 bits) of the ids of traces that begin here and are sampled.
    pub const THRESHOLD: u32 = 1;
    /// Not 0 when the decision that a request came with is followed.
    pub const PARENT_BASED: u32 = 2;
    /// Not 0 when headers are put into messages.
    pub const HEADERS: u32 = 3;
    /// Not 0 when context is sent in TCP options.
    pub const OPTIONS: u32 = 4;
    /// Not 0 during the self-test of options: the port of this host's loopback to which connections get one.
    pub const SELFTEST: u32 = 5;
    /// Told by the kernel side: options of the self-test that arrived.
    pub const ARRIVED: u32 = 6;
    /// Number of settings.
    pub const COUNT: u32 = 7;
}
