//! Tasks of Python's asyncio, known by their contexts (`contextvars.Context`).
//!
//! In: the loop's thread runs a callback in a context, copies the current context, sets a future's
//! result, accepts a connection. Out: what the thread works for while it is in a context.
//!
//! Every task runs in a context of its own, which is a copy of the one that was current where the
//! task was made. So a context serves the exchange
//! - whose request was read in the turn that made the copy (a task for each request: uvicorn), or
//!   that the context serves in which the copy was made (`gather`), or
//! - whose request woke it: the turn that read the request set the result of the future that the
//!   task waited for (a task for each connection: aiohttp). It counts only if the task was made
//!   for no request, and if it and who reads the connection both come from the task that was made when
//!   the connection was accepted.
//!
//! It cannot see a queue between tasks, nor functions that are run in other threads. One that is made for a request and kept for others is why
//! copies of copies are only believed in processes that were seen to let them end.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, bpf_probe_read_user};
use tracer_common::abi::{cause_method as method, kind_of_process as kind};

use super::Cause;
use super::actor::{Actor, add_to_kind, flag, kind_of, thread};
use super::turn::{ends_timers, handed_key};
use crate::maps::{CONTEXTS, Handed, WAKES};

/// What is known of a context.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Task {
    /// The exchange that it serves.
    pub cause: Cause,
    /// Common to all that come from one accepted connection; 0 for the others.
    pub family: u64,
    /// How `cause` was found.
    pub method: u32,
    /// See [`state`].
    pub flags: u32,
}

/// [`Task::flags`].
mod state {
    /// A request was sent in it while the exchange was open.
    pub const CALLED: u32 = 1;
    /// It was made for no exchange: one that waits for requests.
    pub const WAITS: u32 = 2;
}

/// A future that was given its result in the turn that read a request.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Wake {
    pub cause: Cause,
    /// That of the context which read it.
    pub family: u64,
}

/// [`Actor::context`]: in one, but in which is not known. No object is there.
const UNKNOWN: u64 = 1;

/// The current thread's entry, if it is one of this process.
#[inline(always)]
fn current() -> Option<(&'static mut Actor, u32)> {
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    let actor = thread(tid)?;
    (actor.tgid == tgid).then_some((actor, tgid))
}

#[inline(always)]
fn find(key: &Handed) -> Option<&'static mut Task> {
    // SAFETY: the pointer is into the map; an entry that is reused meanwhile is another context's, of
    // which a torn value equals no open exchange.
    unsafe { CONTEXTS.get_ptr_mut(key)?.as_mut() }
}

/// The thread goes on in this context, with the `count` arguments at `arguments`: of a callback of a
/// future's these are the callback and the future. `stack` is the stack pointer.
#[inline(always)]
pub fn enters_context(context: u64, arguments: u64, count: u64, stack: u64) {
    let Some((actor, tgid)) = current() else {
        return;
    };
    if actor.flags & flag::LOOP == 0 {
        // When a thread of a pool leaves the context is not seen.
        return;
    }
    actor.kind = kind::TASKS as u8;
    if stack < actor.top {
        // Within another one. When this ends is not seen, and what then goes on is that one.
        actor.flags &= !flag::READS;
        actor.context = UNKNOWN;
        actor.cause = Cause::NONE;
        return;
    }
    // The first one after a wait is called by the loop itself, as all those at the same depth are.
    actor.top = stack;
    let has_read = actor.context == 0 && actor.flags & flag::READS != 0;
    actor.context = context;
    if has_read {
        // uvloop reads first, and then calls the protocol in its context.
        return;
    }
    actor.flags &= !flag::READS;
    actor.cause = Cause::NONE;
    let Some(task) = find(&handed_key(tgid, context)) else {
        return;
    };
    if actor.wakes > 0 && count == 2 && task.flags & state::WAITS != 0 {
        woken(actor, task, tgid, arguments);
    }
    actor.cause = task.cause;
    actor.method = task.method as u8;
}

#[inline(always)]
fn woken(actor: &mut Actor, task: &mut Task, tgid: u32, arguments: u64) {
    // SAFETY: the helper checks the address itself.
    let Ok(future) = (unsafe { bpf_probe_read_user::<u64>((arguments + 8) as *const _) }) else {
        return;
    };
    let key = handed_key(tgid, future);
    // SAFETY: the value is copied before the map is changed.
    let Some(wake) = unsafe { WAKES.get(&key) }.copied() else {
        return;
    };
    let _ = WAKES.remove(&key);
    actor.wakes = actor.wakes.saturating_sub(1);
    if task.family != 0 && wake.family == task.family && !task.cause.is_open() {
        task.cause = wake.cause;
        task.method = method::TASK;
    }
}

/// The thread leaves the context that it entered last (uvloop).
#[inline(always)]
pub fn leaves_context() {
    if let Some((actor, _)) = current() {
        actor.flags &= !flag::READS;
        actor.context = 0;
        actor.top = 0;
        actor.cause = Cause::NONE;
    }
}

/// The thread made a copy of its current context.
#[inline(always)]
pub fn context_made(context: u64) {
    if context == 0 {
        return;
    }
    let Some((actor, tgid)) = current() else {
        return;
    };
    let key = handed_key(tgid, context);
    let mut made = Task {
        cause: Cause::NONE,
        family: 0,
        method: method::NONE,
        flags: state::WAITS,
    };
    if actor.cause.is_open() {
        made.cause = actor.cause;
        made.flags = 0;
        made.method = if actor.method as u32 == method::TURN {
            method::TASK
        } else {
            method::TASK_CREATED
        };
    }
    if actor.flags & flag::ACCEPTED != 0 {
        actor.flags &= !flag::ACCEPTED;
        // SAFETY: the helper has no preconditions.
        made.family = unsafe { bpf_ktime_get_boot_ns() } ^ (actor.owner << 40);
    } else if actor.context != 0
        && let Some(parent) = find(&handed_key(tgid, actor.context))
    {
        made.family = parent.family;
    }
    match find(&key) {
        Some(before) => {
            // The address of one that is gone. Had it served anybody else, that would be known.
            if before.flags & state::CALLED != 0 {
                learn(tgid, kind::THREADS_END);
            }
            *before = made;
        }
        None if made.cause.connection != 0 || made.family != 0 => {
            let _ = CONTEXTS.insert(&key, &made, 0);
        }
        None => {}
    }
}

/// Adds to what is known of how a process ends its tasks.
#[inline(always)]
fn learn(tgid: u32, flags: u32) {
    if kind_of(tgid) & flags == 0 {
        add_to_kind(tgid, flags);
    }
}

/// The thread gives a future its result.
#[inline(always)]
pub fn wakes(future: u64) {
    let Some((actor, tgid)) = current() else {
        return;
    };
    if actor.flags & flag::READS == 0 || actor.context == 0 || !actor.cause.is_open() {
        return;
    }
    let Some(task) = find(&handed_key(tgid, actor.context)) else {
        return;
    };
    if task.family == 0 {
        return;
    }
    let wake = Wake {
        cause: actor.cause,
        family: task.family,
    };
    if WAKES.insert(&handed_key(tgid, future), &wake, 0).is_ok() {
        actor.wakes = actor.wakes.saturating_add(1);
    }
}

/// The thread accepted a connection: the next context that it makes is for that one.
#[inline(always)]
pub fn accepted() {
    if let Some((actor, _)) = current() {
        actor.flags |= flag::ACCEPTED;
        if actor.kind as u32 == kind::CALLBACKS {
            // What the callback makes for a new connection is nobody's.
            ends_timers(actor);
            actor.cause = Cause::NONE;
        }
    }
}

/// A request is sent by a task: learns whether tasks that others made end with what they were made for.
#[inline(always)]
pub(super) fn created_task_calls(actor: &Actor, tgid: u32) {
    if actor.method as u32 != method::TASK_CREATED || actor.cause.connection == 0 {
        return;
    }
    if !actor.cause.is_open() {
        learn(tgid, kind::THREADS_STAY);
    } else if let Some(task) = find(&handed_key(tgid, actor.context)) {
        task.flags |= state::CALLED;
    }
}
