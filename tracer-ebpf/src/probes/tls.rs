//! Calls of TLS libraries: plaintext, and the beginnings and ends of sessions.
//!
//! Hooks: uprobes at the entry of a function, and at each of its RET instructions; never
//! uretprobes, which put a return address of their own on the stack. A return belongs to the entry at
//! the same stack pointer. Of calls within each other for the same session only the outer one counts.
//! A probe may be at another instruction in place of an entry or of a RET (`abi::place`).

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::bpf_get_attach_cookie;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use tracer_common::abi::{cause_method, direction, drop_reason, end, place};
use tracer_common::context;

use super::deliver::go_on;
use super::io::{Caller, wants_a_look};
use super::window::at_most;
use crate::cause::{self, Cause};
use crate::connection::{self, verdict};
use crate::emit::{self, Ended};
use crate::hello::layout;
use crate::kernel::{self, field};
use crate::maps::{BUFFER, Call, NO_BYTES, PROVE_PROGRAM, WINDOW_PROGRAM};
use crate::propagate::offer::PREFACE_WORD;
use crate::tls::{self, SessionKey, ThreadKey, TlsCall, kind, now};
use crate::way::{Uprobes, Way};

/// One register of the context, if this architecture has it. Read through the helper: offsets in it come
/// from BTF.
#[inline(always)]
fn register(ctx: &ProbeContext, offset: &aya_ebpf::Global<u32>) -> Option<u64> {
    if !kernel::has(offset) {
        return None;
    }
    field(ctx.as_ptr() as u64, offset)
}

/// What user space says of the place of this probe (`abi::place`).
#[inline(always)]
fn cookie(ctx: &ProbeContext) -> u64 {
    if kernel::COOKIES.load() == 0 {
        return 0;
    }
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_attach_cookie(ctx.as_ptr()) }
}

/// The stack pointer at the entry and at the RET, whichever instruction this is; `None` if the call
/// does not return from here.
#[inline(always)]
fn stack_pointer(ctx: &ProbeContext) -> Option<u64> {
    const ZERO: u64 = 1 << 6;
    let cookie = cookie(ctx);
    if cookie & place::IF_EQUAL != 0 && register(ctx, &kernel::REGS_FLAGS)? & ZERO == 0 {
        return None;
    }
    Some(register(ctx, &kernel::REGS_SP)?.wrapping_add(cookie & place::DEPTH))
}

macro_rules! entries {
    ($($(#[$meta:meta])* $name:ident: $kind:ident, out $out:literal;)*) => {
        $(
            $(#[$meta])*
            #[uprobe]
            pub fn $name(ctx: ProbeContext) -> u32 {
                let _ = enter(&ctx, kind::$kind, $out);
                0
            }
        )*
    };
}

entries! {
    /// `(session, buffer, length)`, returns the length.
    tls_read: READ, out 0;
    /// `(session, buffer, length)`, returns the length.
    tls_write: WRITE, out 0;
    /// `(session, buffer, length, size_t *read)`.
    tls_read_ex: READ_EX, out 3;
    /// `(session, buffer, length, size_t *written)`.
    tls_write_ex: WRITE_EX, out 3;
    /// `(session, buffer, length, flags, size_t *written)`.
    tls_write_ex2: WRITE_EX, out 4;
    /// `(session, fd, offset, length, flags)`, returns the length.
    tls_sendfile: SEND_FILE, out 0;
    /// `(session)`.
    tls_handshake: HANDSHAKE, out 0;
    /// Returns a session.
    tls_new: NEW, out 0;
    /// Returns a session of OpenSSL 1.1.
    tls_new_1: NEW_1, out 0;
    /// Returns a session of OpenSSL 3.
    tls_new_3: NEW_3, out 0;
    /// `(session *)`.
    tls_new_out: NEW_OUT, out 0;
}

/// The thread's key, and a number that is the same at the entry and at the RET of a call, and
/// lower in calls within it.
#[inline(always)]
fn thread_of_c(ctx: &ProbeContext, caller: &Caller) -> Option<(ThreadKey, u64)> {
    let key = ThreadKey {
        id: (caller.tgid as u64) << 32 | caller.tid as u64,
        goroutine: 0,
    };
    Some((key, stack_pointer(ctx)?))
}

/// The same of a goroutine, whose stack may be moved meanwhile: its place is told from the stack's
/// upper end (`g.stack.hi`).
#[inline(always)]
fn goroutine(ctx: &ProbeContext, caller: &Caller) -> Option<(ThreadKey, u64)> {
    let goroutine = register(ctx, &kernel::REGS_GOROUTINE)?;
    // SAFETY: the helper checks the address.
    let end: u64 = unsafe { bpf_probe_read_user((goroutine + 8) as *const _) }.ok()?;
    let depth = end.wrapping_sub(stack_pointer(ctx)?);
    let key = ThreadKey {
        id: (caller.tgid as u64) << 32,
        goroutine,
    };
    Some((key, u64::MAX - depth))
}

/// True of calls that return a session.
#[inline(always)]
fn is_new(kind: u8) -> bool {
    kind == kind::NEW || kind == kind::NEW_1 || kind == kind::NEW_3
}

#[inline(always)]
fn enter(ctx: &ProbeContext, kind: u8, out: usize) -> Option<()> {
    let caller = Caller::traced()?;
    let (key, stack) = thread_of_c(ctx, &caller)?;
    let call = TlsCall {
        stack,
        object: if is_new(kind) { 0 } else { ctx.arg(0)? },
        buffer: ctx.arg(1)?,
        out: if out == 0 { 0 } else { ctx.arg(out)? },
        start_ns: now(),
        kind,
        nested: 0,
        reserved: [0; 2],
        length: at_most(ctx.arg(2)?, u32::MAX),
    };
    remember(&key, call)
}

/// `crypto/tls.(*Conn).Read(b []byte) (n int, err error)`.
#[uprobe]
pub fn go_tls_read(ctx: ProbeContext) -> u32 {
    let _ = enter_go(&ctx, kind::READ);
    0
}

/// `crypto/tls.(*Conn).Write(b []byte) (n int, err error)`.
#[uprobe]
pub fn go_tls_write(ctx: ProbeContext) -> u32 {
    let _ = enter_go(&ctx, kind::WRITE);
    0
}

/// `crypto/tls.(*Conn).clientHandshake(ctx context.Context) error`, and the server's.
#[uprobe]
pub fn go_tls_handshake(ctx: ProbeContext) -> u32 {
    let _ = enter_go(&ctx, kind::HANDSHAKE);
    0
}

#[inline(always)]
fn enter_go(ctx: &ProbeContext, kind: u8) -> Option<()> {
    let caller = Caller::traced()?;
    let (key, stack) = goroutine(ctx, &caller)?;
    let call = TlsCall {
        stack,
        object: register(ctx, &kernel::REGS_GO0)?,
        buffer: register(ctx, &kernel::REGS_GO1)?,
        out: 0,
        start_ns: now(),
        kind,
        nested: 0,
        reserved: [0; 2],
        length: at_most(register(ctx, &kernel::REGS_GO2)?, u32::MAX),
    };
    remember(&key, call)
}

#[inline(always)]
fn remember(key: &ThreadKey, call: TlsCall) -> Option<()> {
    let thread = tls::thread_or_new(key)?;
    let [outer, inner] = &mut thread.calls;
    // What is not above this call's place on the stack was left without a return.
    if inner.stack <= call.stack {
        inner.stack = 0;
    }
    if outer.stack <= call.stack {
        *outer = call;
        inner.stack = 0;
    } else if outer.object == call.object && call.object != 0 {
        return None;
    } else if inner.stack == 0 {
        *inner = call;
    } else if inner.object != call.object {
        emit::drop_one(drop_reason::TLS_BUSY);
    }
    None
}

/// At every RET of C libraries.
#[uprobe]
pub fn tls_return(ctx: ProbeContext) -> u32 {
    if let Some(caller) = Caller::traced()
        && let Some((key, stack)) = thread_of_c(&ctx, &caller)
    {
        let _ = leave(
            &ctx,
            &caller,
            &key,
            stack,
            register(&ctx, &kernel::REGS_RESULT),
        );
    }
    Uprobes::done();
    0
}

/// At every RET of Go functions.
#[uprobe]
pub fn go_tls_return(ctx: ProbeContext) -> u32 {
    if let Some(caller) = Caller::traced()
        && let Some((key, stack)) = goroutine(&ctx, &caller)
    {
        let _ = leave(
            &ctx,
            &caller,
            &key,
            stack,
            register(&ctx, &kernel::REGS_GO0),
        );
    }
    Uprobes::done();
    0
}

/// At a function that Go's functions call at their end: the result is on the stack.
#[uprobe]
pub fn go_tls_deferred(ctx: ProbeContext) -> u32 {
    if let Some(caller) = Caller::traced()
        && let Some((key, stack)) = goroutine(&ctx, &caller)
    {
        let _ = leave(&ctx, &caller, &key, stack, deferred_result(&ctx));
    }
    Uprobes::done();
    0
}

#[inline(always)]
fn deferred_result(ctx: &ProbeContext) -> Option<u64> {
    let below = (cookie(ctx) >> place::RESULT_SHIFT) & place::DEPTH;
    let result = stack_pointer(ctx)?.wrapping_sub(below);
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(result as *const u64) }.ok()
}

#[inline(always)]
fn leave(
    ctx: &ProbeContext,
    caller: &Caller,
    thread_key: &ThreadKey,
    stack: u64,
    result: Option<u64>,
) -> Option<()> {
    let thread = tls::thread_or_new(thread_key)?;
    let [outer, inner] = &mut thread.calls;
    let call = if inner.stack == stack {
        inner
    } else if outer.stack == stack {
        inner.stack = 0;
        outer
    } else {
        if outer.stack <= stack {
            emit::drop_one(drop_reason::TLS_CALL_UNMATCHED);
        }
        return None;
    };
    call.stack = 0;
    let TlsCall {
        object,
        buffer,
        out,
        start_ns,
        kind,
        nested,
        ..
    } = *call;
    let result = result?;
    let mut key = SessionKey {
        object,
        tgid: caller.tgid,
        reserved: 0,
    };
    let (direction, vectors) = match kind {
        kind::READ | kind::READ_EX => (direction::READ, BUFFER),
        kind::WRITE | kind::WRITE_EX => (direction::WRITE, BUFFER),
        kind::SEND_FILE => (direction::WRITE, NO_BYTES),
        kind::NEW | kind::NEW_1 | kind::NEW_3 | kind::NEW_OUT => {
            if is_new(kind) {
                key.object = result;
            } else {
                // SAFETY: the helper checks the address.
                key.object = unsafe { bpf_probe_read_user(object as *const _) }.ok()?;
            }
            if key.object != 0 {
                let layout = match kind {
                    kind::NEW_1 => layout::BEHIND,
                    kind::NEW_3 => layout::WITHIN,
                    _ => layout::NONE,
                };
                tls::end_session(&key, caller);
                tls::new_session(&key, true, layout);
            }
            return None;
        }
        _ => return None,
    };
    let total = if kind == kind::READ_EX || kind == kind::WRITE_EX {
        if result as u32 != 1 {
            return None;
        }
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_user::<u64>(out as *const _) }.ok()? as i64
    } else if kind == kind::SEND_FILE {
        result as i64
    } else {
        // `int` or `ssize_t` or Go's `int`; no call moves 2 GiB at once.
        result as i32 as i64
    };
    if total <= 0 || total > i32::MAX as i64 {
        // In Go 0 comes with an error, which may be a deadline: an HTTP server reads ahead and gives up.
        let is_end = total == 0 && kind == kind::READ && thread_key.goroutine == 0;
        thread.readers = 0;
        return if is_end { read_end(&key, caller) } else { None };
    }
    let total = total as u32;
    let session = tls::session_or_new(&key, false)?;
    let carrier = tls::carrier(session);
    let is_bound = carrier.is_some();
    let unsent = direction == direction::WRITE && is_bound && session.proved != 0;
    let mut next = WINDOW_PROGRAM;
    if !is_bound && nested == 0 {
        let bit = 1 << direction;
        let is_first = session.layout != layout::NONE && session.searched & bit == 0;
        session.searched |= bit;
        if is_first && begins_request(buffer) {
            next = PROVE_PROGRAM;
        } else if direction == direction::READ {
            tls::match_read(thread, &key, total, caller);
        } else {
            tls::note_write(thread, object, total);
        }
    }
    if direction == direction::READ && next != PROVE_PROGRAM {
        thread.readers = 0;
    }
    let connection = tls::plaintext(session)?;
    cause::touched(connection, direction, caller);
    if !wants_a_look(connection, direction, total, false) {
        return None;
    }
    let Some(scratch) = Uprobes::take() else {
        // What is missing will be told by the position.
        let side = super::io::side(connection, direction);
        let has_frames = side.mode == connection::mode::FRAMES;
        side.position += total as u64;
        side.mode = connection::mode::UNFRAMED;
        emit::drop_one(drop_reason::TLS_BUSY);
        if has_frames {
            cause::gives_up(connection);
        }
        return None;
    };
    let time_ns = now();
    scratch.session = key;
    scratch.unsent = unsent as u64;
    scratch.call = Call {
        socket: session.key,
        base: buffer,
        vectors,
        direction: direction as u32,
        total,
        offset: 0,
        time_ns,
        start_ns: if direction == direction::WRITE {
            start_ns
        } else {
            time_ns
        },
        tgid: caller.tgid,
        tid: caller.tid,
        // What a session without a socket does is not known.
        blocking: carrier
            .or_else(|| connection::find(connection.other))
            .map_or(0, |carrier| carrier.blocking as u32),
        cause_method: cause_method::NONE,
        cause: Cause::NONE,
        messages: 0,
        runs: 0,
        noting: 0,
        next_message: 0,
        before: 0,
        streams: 0,
        fresh: 0,
        stream: Cause::NONE,
        last: 0,
    };
    Uprobes::tail_call(ctx, next);
    None
}

/// True if this is what a client says first.
#[inline(always)]
fn begins_request(buffer: u64) -> bool {
    // SAFETY: the helper checks the address.
    let first: u64 = unsafe { bpf_probe_read_user(buffer as *const _) }.unwrap_or(0);
    first == PREFACE_WORD || context::begins_request(first)
}

/// Reached by tail call only: looks for the socket of a session.
#[uprobe]
pub fn tls_prove(ctx: ProbeContext) -> u32 {
    let _ = prove(&ctx);
    Uprobes::done();
    0
}

#[inline(always)]
fn prove(ctx: &ProbeContext) -> Option<()> {
    let scratch = Uprobes::scratch()?;
    let caller = Caller {
        tgid: scratch.call.tgid,
        tid: scratch.call.tid,
    };
    let key = scratch.session;
    let proved = tls::prove(scratch, &key, &caller);
    let connection = connection::find(scratch.call.socket)?;
    let is_write = scratch.call.direction == direction::WRITE as u32;
    if proved {
        scratch.unsent = is_write as u64;
        scratch.call.blocking =
            connection::find(connection.other).map_or(0, |carrier| carrier.blocking as u32);
    }
    if connection.verdict == verdict::IGNORED {
        // The socket's ports are.
        let side = super::io::side(connection, scratch.call.direction as u8);
        side.position += scratch.call.total as u64;
        side.skipped += scratch.call.total as u64;
        return None;
    }
    go_on::<Uprobes>(ctx, scratch, connection, WINDOW_PROGRAM);
    None
}

/// A read call said that nothing more will come.
#[inline(always)]
fn read_end(key: &SessionKey, caller: &Caller) -> Option<()> {
    ended(key, caller, end::READ_EOF, direction::READ)
}

#[inline(always)]
fn ended(key: &SessionKey, caller: &Caller, cause: u8, direction: u8) -> Option<()> {
    let session = tls::session(key)?;
    let plaintext = connection::find(session.key)?;
    let ended = Ended {
        cause,
        direction,
        errno: 0,
        time_ns: now(),
        tgid: caller.tgid,
        tid: caller.tid,
    };
    emit::end(plaintext, &ended);
    None
}

/// `(session)`: it will send no more.
#[uprobe]
pub fn tls_shutdown(ctx: ProbeContext) -> u32 {
    if let Some((key, caller)) = session_of(ctx.arg(0)) {
        let _ = ended(&key, &caller, end::WRITE_SHUTDOWN, direction::WRITE);
    }
    0
}

/// `(session)`: it is no more.
#[uprobe]
pub fn tls_free(ctx: ProbeContext) -> u32 {
    if let Some((key, caller)) = session_of(ctx.arg(0)) {
        tls::end_session(&key, &caller);
    }
    0
}

/// `crypto/tls.(*Conn).Close() error`.
#[uprobe]
pub fn go_tls_close(ctx: ProbeContext) -> u32 {
    if let Some((key, caller)) = session_of(register(&ctx, &kernel::REGS_GO0)) {
        let _ = ended(&key, &caller, end::WRITE_SHUTDOWN, direction::WRITE);
    }
    0
}

#[inline(always)]
fn session_of(object: Option<u64>) -> Option<(SessionKey, Caller)> {
    let caller = Caller::traced()?;
    let key = SessionKey {
        object: object?,
        tgid: caller.tgid,
        reserved: 0,
    };
    Some((key, caller))
}
