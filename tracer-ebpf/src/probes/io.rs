//! Data syscalls: every way bytes move on a stream socket.
//!
//! Hooks: `syscalls:sys_exit_*` (context: `__syscall_nr` at 8, `ret` at 16; stable since 2.6.32), or the end of the function
//! that does the call ([`crate::hook`]), of read, readv, preadv2, recvfrom, recvmsg, recvmmsg, write, writev, pwritev2, sendto, sendmsg,
//! sendmmsg, sendfile64, splice; and the entries of the writes, for their start time only.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, bpf_probe_read_user};
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use tracer_common::abi::{cause_method, direction, end, policy, setting};

use crate::cause;
use crate::connection::{self, Connection, Direction, mark, mode, verdict};
use crate::emit::{self, Ended};
use crate::hook;
use crate::kernel::{self, Arguments};
use crate::maps::{
    AGENT_TGID, BUFFER, Call, ENTERED, ENTERED_SLOTS, Entered, NO_BYTES, PROCESSES, PROGRAMS,
    SCRATCH, WINDOW_PROGRAM, read_setting,
};
use crate::memory::zero;
use crate::tls;

/// How a syscall names its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `(fd, buffer, length)`.
    Buffer,
    /// `(fd, buffer, length, flags)`.
    BufferFlags,
    /// `(fd, iovec[], count)`.
    Vectors,
    /// `(fd, msghdr, flags)`.
    Message,
    /// `(fd, mmsghdr[], count, flags)`; returns the number of messages.
    Messages,
    /// `(out_fd, in_fd, ...)`.
    SendFile,
}

pub const MSG_OOB: u64 = 0x1;
pub const MSG_PEEK: u64 = 0x2;
pub const MSG_TRUNC: u64 = 0x20;
pub const MSG_ERRQUEUE: u64 = 0x2000;

macro_rules! exits {
    ($($call:literal $name:ident: $direction:ident, $shape:ident;)*) => {
        $(
            #[tracepoint]
            pub fn $name(ctx: TracePointContext) -> u32 {
                if hook::tells($call) {
                    let _ = data(&ctx, direction::$direction, Shape::$shape);
                    // Nobody looked at the call: those that are looked at do not come back here.
                    if direction::$direction == direction::WRITE && kernel::SKIPS_ENTRIES.load() != 0 {
                        forget_entry();
                    }
                }
                0
            }
        )*
    };
}

exits! {
    1 sys_exit_read: READ, Buffer;
    2 sys_exit_readv: READ, Vectors;
    3 sys_exit_preadv2: READ, Vectors;
    4 sys_exit_recvfrom: READ, BufferFlags;
    5 sys_exit_recvmsg: READ, Message;
    6 sys_exit_recvmmsg: READ, Messages;
    7 sys_exit_write: WRITE, Buffer;
    8 sys_exit_writev: WRITE, Vectors;
    9 sys_exit_pwritev2: WRITE, Vectors;
    10 sys_exit_sendto: WRITE, BufferFlags;
    11 sys_exit_sendmsg: WRITE, Message;
    12 sys_exit_sendmmsg: WRITE, Messages;
    13 sys_exit_sendfile64: WRITE, SendFile;
}

/// Its number among those of [`exits`].
const SPLICE: u32 = 14;

/// One program for the entries of all writes: the time is wanted, and of pipes and eventfds what is left there, because
/// whoever takes it may be there sooner than the writer is back.
#[tracepoint]
pub fn sys_enter_write(ctx: TracePointContext) -> u32 {
    let tid = bpf_get_current_pid_tgid() as u32;
    if let Some(slot) = ENTERED.get_ptr_mut(tid & (ENTERED_SLOTS - 1)) {
        // SAFETY: the pointer is into the map; the slot is this thread's while it is in the call,
        // or another's, which the thread id tells.
        unsafe {
            *slot = Entered {
                time_ns: bpf_ktime_get_boot_ns(),
                tid,
                reserved: 0,
            }
        };
    }
    if read_setting(setting::WAKES) != 0
        && cause::waits_are_followed()
        && let Some(arguments) = Arguments::of_current()
        && let Some([fd, _, length, _]) = arguments.four()
    {
        // Of the others it is the number of vectors.
        let is_length = hook::number(&ctx, &arguments) == Some(kernel::WRITE_CALL.load());
        cause::leaves_message(fd as i32, is_length.then_some(length));
    }
    0
}

/// `splice(fd_in, off_in, fd_out, off_out, length, flags)`: one of the two is a pipe. Nobody takes note of its
/// beginning: it moves bodies.
#[tracepoint]
pub fn sys_exit_splice(ctx: TracePointContext) -> u32 {
    if hook::tells(SPLICE) {
        let _ = splice(&ctx);
    }
    0
}

#[inline(always)]
fn splice(ctx: &TracePointContext) -> Option<()> {
    let ret = hook::result(ctx);
    if ret <= 0 {
        return None;
    }
    let caller = Caller::traced()?;
    let arguments = Arguments::of_current()?;
    if let Some(file) = kernel::socket_of(arguments.first()? as i32) {
        account(
            ctx,
            &caller,
            &file,
            direction::READ,
            0,
            NO_BYTES,
            ret as u32,
            None,
            Begun::Now,
        );
        return None;
    }
    let file = kernel::socket_of(arguments.third()? as i32)?;
    account(
        ctx,
        &caller,
        &file,
        direction::WRITE,
        0,
        NO_BYTES,
        ret as u32,
        None,
        Begun::Now,
    );
    None
}

/// Who makes the call.
#[derive(Clone, Copy)]
pub struct Caller {
    pub tgid: u32,
    pub tid: u32,
}

impl Caller {
    /// The current process, unless policy says not to look.
    #[inline(always)]
    pub fn traced() -> Option<Self> {
        let id = bpf_get_current_pid_tgid();
        let caller = Caller {
            tgid: (id >> 32) as u32,
            tid: id as u32,
        };
        if caller.tgid == AGENT_TGID.load() {
            return None;
        }
        let active = read_setting(setting::POLICY_ACTIVE);
        if active != 0 {
            if active & setting::CLOSED != 0 {
                return None;
            }
            // SAFETY: the value is only read.
            let flags = match unsafe { PROCESSES.get(&caller.tgid) } {
                Some(flags) => *flags,
                None => read_setting(setting::POLICY_DEFAULT),
            };
            if flags & policy::IGNORE != 0 {
                return None;
            }
        }
        Some(caller)
    }

    /// The current process, if it is decided that it is traced: what it sends may be changed.
    #[inline(always)]
    pub fn decided() -> Option<Self> {
        let caller = Self::traced()?;
        if read_setting(setting::POLICY_ACTIVE) & setting::NEW_UNDECIDED != 0 {
            // SAFETY: the value is only read.
            let flags = unsafe { PROCESSES.get(&caller.tgid) }.copied().unwrap_or(0);
            if flags & (policy::UNDECIDED | policy::UNDECIDED_CHILD) != 0 {
                return None;
            }
        }
        Some(caller)
    }
}

#[inline(always)]
fn data(ctx: &TracePointContext, direction: u8, shape: Shape) -> Option<()> {
    let ret = hook::result(ctx);
    if ret <= 0 {
        return no_data(ret, direction, shape);
    }
    let caller = Caller::traced()?;
    let [first, address, third, fourth] = Arguments::of_current()?.four()?;
    let flags = match shape {
        Shape::BufferFlags | Shape::Messages => fourth,
        Shape::Message => third,
        Shape::Buffer | Shape::Vectors | Shape::SendFile => 0,
    };
    if flags & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE) != 0 && direction == direction::READ {
        return None;
    }
    if flags & MSG_OOB != 0 {
        return None;
    }
    let Some(file) = kernel::socket_of(first as i32) else {
        if shape == Shape::Buffer && direction == direction::READ {
            cause::read_elsewhere(&caller, first as i32);
            if read_setting(setting::WAKES) != 0 {
                cause::takes_message(first as i32, third, ret as u64);
            }
        }
        return None;
    };
    let discarded = direction == direction::READ && flags & MSG_TRUNC != 0;
    match shape {
        Shape::Buffer | Shape::BufferFlags => {
            let vectors = if discarded { NO_BYTES } else { BUFFER };
            account(
                ctx,
                &caller,
                &file,
                direction,
                address,
                vectors,
                ret as u32,
                None,
                Begun::AtEntry,
            )
        }
        Shape::Vectors => {
            let count = third as u32;
            account(
                ctx,
                &caller,
                &file,
                direction,
                address,
                count,
                ret as u32,
                None,
                Begun::AtEntry,
            )
        }
        Shape::Message => {
            let message = Message::read(address)?;
            let vectors = if discarded { NO_BYTES } else { message.vectors };
            account(
                ctx,
                &caller,
                &file,
                direction,
                message.base,
                vectors,
                ret as u32,
                None,
                Begun::AtEntry,
            )
        }
        Shape::Messages => {
            let message = Message::read(address)?;
            let rest = Rest {
                messages: ret as u32 - 1,
                next: address + Message::STRIDE,
            };
            let total = message.length;
            account(
                ctx,
                &caller,
                &file,
                direction,
                message.base,
                message.vectors,
                total,
                Some(rest),
                Begun::AtEntry,
            )
        }
        Shape::SendFile => account(
            ctx,
            &caller,
            &file,
            direction,
            0,
            NO_BYTES,
            ret as u32,
            None,
            Begun::AtEntry,
        ),
    }
    None
}

/// Parts of `struct user_msghdr`, and of `struct mmsghdr` around it.
pub struct Message {
    pub base: u64,
    pub vectors: u32,
    /// `msg_len`; only meaningful in a `struct mmsghdr`.
    pub length: u32,
}

impl Message {
    /// Size of `struct mmsghdr`.
    pub const STRIDE: u64 = 64;

    /// Reads it from the process.
    #[inline(always)]
    pub fn read(address: u64) -> Option<Self> {
        // struct user_msghdr: name 0, namelen 8, iov 16, iovlen 24, control 32, controllen 40,
        // flags 48; struct mmsghdr: msg_len 56.
        // SAFETY: the helper checks the addresses.
        let [base, vectors]: [u64; 2] =
            unsafe { bpf_probe_read_user((address + 16) as *const _) }.ok()?;
        // SAFETY: as above.
        let length: u32 = unsafe { bpf_probe_read_user((address + 56) as *const _) }.unwrap_or(0);
        let vectors = if vectors > 1024 { 1024 } else { vectors as u32 };
        Some(Message {
            base,
            vectors,
            length,
        })
    }
}

/// When a call that writes began.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// At the thread's last entry of such a call.
    AtEntry,
    /// Nobody knows: it has its end's time.
    Now,
}

/// What follows of a `*mmsg` call.
#[derive(Clone, Copy)]
pub struct Rest {
    messages: u32,
    next: u64,
}

/// A call that moved nothing: the end of a direction, an error, or nothing at all.
#[inline(always)]
fn no_data(ret: i64, direction: u8, shape: Shape) -> Option<()> {
    let is_end = ret == 0 && direction == direction::READ && shape != Shape::Messages;
    if !is_end && !is_fatal(ret) {
        return None;
    }
    let caller = Caller::traced()?;
    let arguments = Arguments::of_current()?;
    if is_end && !wanted_bytes(&arguments, shape)? {
        return None;
    }
    let file = kernel::socket_of(arguments.first()? as i32)?;
    tell_end(&caller, &file, ret, direction, is_end)
}

/// Tells of a request's result that is no data, if it is the end of a direction or a fatal error.
#[inline(always)]
pub fn ended(
    caller: &Caller,
    file: &kernel::SocketFile,
    ret: i64,
    direction: u8,
    is_end: bool,
) -> Option<()> {
    if !is_end && !is_fatal(ret) {
        return None;
    }
    tell_end(caller, file, ret, direction, is_end)
}

#[inline(always)]
fn is_fatal(ret: i64) -> bool {
    const FATAL: [i64; 7] = [-104, -32, -110, -113, -101, -103, -100];
    let mut fatal = false;
    let mut i = 0;
    while i < FATAL.len() {
        fatal |= ret == FATAL[i];
        i += 1;
    }
    fatal
}

#[inline(always)]
fn tell_end(
    caller: &Caller,
    file: &kernel::SocketFile,
    ret: i64,
    direction: u8,
    is_end: bool,
) -> Option<()> {
    let Some(connection) = connection::find(file.sock) else {
        if direction == direction::READ {
            cause::read_unknown(caller);
        }
        return None;
    };
    // In an event loop what comes next is about this one, and not about what was read before.
    if direction == direction::READ {
        cause::touched(connection, direction, caller);
    }
    // SAFETY: the helper has no preconditions.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    let cause = if is_end { end::READ_EOF } else { end::ERROR };
    let &Caller { tgid, tid } = caller;
    let ended = Ended {
        cause,
        direction,
        errno: (-ret) as u32,
        time_ns,
        tgid,
        tid,
    };
    emit::end(connection, &ended);
    // The end of what is read of a session is what its library says: some may wait in a buffer.
    if !is_end && let Some(session) = connection.session() {
        emit::end(session, &ended);
    }
    None
}

/// True when a call that returned 0 asked for at least one byte (and did not ask for the error
/// queue or for out-of-band data), so that 0 means the end.
#[inline(always)]
fn wanted_bytes(arguments: &Arguments, shape: Shape) -> Option<bool> {
    let (mut base, mut count) = (arguments.second()?, 0);
    match shape {
        Shape::Buffer => return Some(arguments.third()? > 0),
        Shape::BufferFlags => {
            let odd = arguments.fourth()? & (MSG_OOB | MSG_ERRQUEUE) != 0;
            return Some(arguments.third()? > 0 && !odd);
        }
        Shape::SendFile | Shape::Messages => return Some(false),
        Shape::Vectors => count = arguments.third()?,
        Shape::Message => {
            if arguments.third()? & (MSG_OOB | MSG_ERRQUEUE) != 0 {
                return Some(false);
            }
            let message = Message::read(base)?;
            base = message.base;
            count += message.vectors as u64;
        }
    }
    let mut i = 0;
    while i < 8 {
        if i >= count {
            return Some(false);
        }
        // SAFETY: the helper checks the address.
        let length: u64 = unsafe { bpf_probe_read_user((base + i * 16 + 8) as *const _) }.ok()?;
        if length > 0 {
            return Some(true);
        }
        i += 1;
    }
    Some(true)
}

/// Accounts for a call's bytes; has the window program look at them unless they are all body.
#[inline(always)]
#[allow(
    clippy::too_many_arguments,
    reason = "inlined; a struct would live on the small stack"
)]
pub fn account(
    ctx: &TracePointContext,
    caller: &Caller,
    file: &kernel::SocketFile,
    direction: u8,
    base: u64,
    vectors: u32,
    total: u32,
    rest: Option<Rest>,
    begun: Begun,
) {
    // SAFETY: the helper has no preconditions.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    let Some(connection) = connection::find_or_join(file, direction, total, time_ns) else {
        if direction == direction::READ {
            cause::read_unknown(caller);
        }
        return;
    };
    tls::on_socket(caller, file, connection, direction, base, vectors, total);
    // Of ciphertext that is read nobody knows what it is for until its plaintext tells: in an event loop
    // the last callback's cause ends here.
    cause::touched(connection, direction, caller);
    if connection.tls_tgid != 0 {
        connection.blocking = file.is_blocking() as u8;
    }
    if !wants_a_look(connection, direction, total, rest.is_some()) {
        return;
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return;
    };
    let start_ns = if direction == direction::WRITE && begun == Begun::AtEntry {
        entered(caller.tid, time_ns)
    } else {
        time_ns
    };
    let rest = rest.unwrap_or(Rest {
        messages: 0,
        next: 0,
    });
    // SAFETY: the per-CPU slot is ours until this program and its tail calls return.
    unsafe {
        let call = &mut (*scratch).call;
        let Call {
            socket,
            base: first,
            vectors: count,
            direction: way,
            total: length,
            offset,
            time_ns: time,
            start_ns: start,
            tgid,
            tid,
            blocking,
            cause_method: method,
            cause,
            messages,
            runs,
            noting,
            next_message,
            before,
            streams,
            fresh,
            stream,
            last,
        } = call;
        *socket = file.sock;
        *first = base;
        *count = vectors;
        *way = direction as u32;
        *length = total;
        *offset = 0;
        *time = time_ns;
        *start = start_ns;
        *tgid = caller.tgid;
        *tid = caller.tid;
        *blocking = file.is_blocking() as u32;
        *method = cause_method::NONE;
        *messages = rest.messages;
        *runs = 0;
        *noting = 0;
        *next_message = rest.next;
        cause.clear();
        zero(before);
        *streams = 0;
        *fresh = 0;
        stream.clear();
        *last = 0;
        PROGRAMS.tail_call(ctx, WINDOW_PROGRAM);
    }
}

/// Takes note of a call. False when none of its bytes needs a look: then it is accounted for.
#[inline(always)]
pub fn wants_a_look(connection: &mut Connection, direction: u8, total: u32, several: bool) -> bool {
    let verdict = connection.verdict;
    let turned = connection.last != direction;
    connection.last = direction;
    if turned && direction == direction::WRITE && connection.write.mode == mode::UNFRAMED {
        connection.marks |= mark::GUESSED;
    }
    let side = side(connection, direction);
    if !several && whole_call_is_skipped(verdict, side, total) {
        side.position += total as u64;
        side.skipped += total as u64;
        return false;
    }
    if turned {
        if side.mode == mode::UNFRAMED {
            side.mode = mode::START;
            side.unframed = 0;
        }
        connection.turned = 1;
    }
    true
}

/// One direction of a connection.
#[inline(always)]
pub fn side(connection: &mut Connection, direction: u8) -> &mut Direction {
    if direction == direction::READ {
        &mut connection.read
    } else {
        &mut connection.write
    }
}

/// True when no byte of the call needs a look: nothing we parse, or inside a body that goes on.
#[inline(always)]
fn whole_call_is_skipped(verdict: u8, side: &mut Direction, total: u32) -> bool {
    if verdict == verdict::IGNORED {
        return true;
    }
    let total = total as u64;
    let in_body = side.mode == mode::BODY && side.skip > total;
    let in_chunk = side.mode == mode::CHUNKED && side.skip >= total;
    // The end of a DATA frame may be the end of a stream: it has to be told.
    let in_frame = side.mode == mode::FRAMES && side.skip > total;
    let skipped = in_body || in_chunk || in_frame;
    if skipped {
        side.skip -= total;
    }
    skipped
}

/// When this thread entered the call it is leaving. It is forgotten then: see [`kernel::SKIPS_ENTRIES`].
#[inline(always)]
fn entered(tid: u32, time_ns: u64) -> u64 {
    let Some(slot) = ENTERED.get_ptr_mut(tid & (ENTERED_SLOTS - 1)) else {
        return time_ns;
    };
    // SAFETY: the pointer is into the map; the slot is this thread's, which the thread id tells.
    unsafe {
        let Entered {
            time_ns: entered,
            tid: owner,
            ..
        } = *slot;
        if owner != tid || entered > time_ns {
            return time_ns;
        }
        (*slot).tid = 0;
        entered
    }
}

/// Forgets when this thread entered the call it is leaving.
#[inline(always)]
fn forget_entry() {
    let tid = bpf_get_current_pid_tgid() as u32;
    if let Some(slot) = ENTERED.get_ptr_mut(tid & (ENTERED_SLOTS - 1)) {
        // SAFETY: the pointer is into the map; the slot is this thread's, which the thread id tells.
        unsafe {
            if (*slot).tid == tid {
                (*slot).tid = 0;
            }
        }
    }
}
