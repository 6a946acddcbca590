//! Tasks of tokio, known by their headers, and channels between them.
//!
//! In: a task takes a turn, leaves it, ends, makes another; a task waits for what comes through a
//! channel; something is sent through one. Out: what the task that runs works for.
//!
//! A task that reads the requests of one connection serves them (a server's task for each
//! connection), and what it makes meanwhile does so too, where earlier ones of the same place in the program were seen
//! to end with their request. A connection of hyper's client has a task of its own, which writes what
//! others send it through a channel; one of them at a time, for who may send is told so by the
//! connection, when it waits. Such tasks are made right behind the two halves of that arrangement
//! (`want::new`), and where in the program they receive tells all others. Each is believed as long as it
//! receives from one channel, writes to one connection, and sends and writes alternate without exception.
//!
//! It cannot see what goes through other things than channels, nor several futures within one task.

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST as NOEXIST;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::abi::{cause_method as method, kind_of_process as kind};

use super::Cause;
use super::actor::{Actor, add_to_kind, flag, goroutine_slot, kind_of, reset, thread, thread_slot};
use super::goroutine::{SITE_ENDS, SITE_STAYS};
use super::stream;
use super::turn::handed_key;
use crate::connection::Connection;
use crate::maps::{CHANNELS, Call, SITES};

/// A channel that one task receives from, known by the cell for that task's waker.
#[repr(C)]
pub struct Channel {
    /// What was sent last is for this exchange.
    cause: Cause,
    /// The task that receives.
    task: u64,
    /// The connection that it writes requests to; 0 before the first.
    connection: u64,
    /// Things that began to be sent, and that were.
    begun: u64,
    sent: u64,
    /// Requests that the task wrote.
    written: u64,
    /// Not 0 once they did not alternate, or the task was seen to do other things.
    broken: u32,
    /// How `cause` was found.
    method: u32,
    /// Where in the program it is received from.
    site: u64,
}

/// [`Actor::flags`] of a task: it reads streams of HTTP/2, each of which has a task of its own.
const STREAMS: u8 = flag::ACCEPTED;

/// [`Actor::flags`] of a task: it is that of a connection of hyper's client.
const WRITER: u8 = flag::LOOP;

/// Tasks that receive here are those of connections of hyper's client.
const SITE_CONNECTION: u32 = 3;

/// The task that runs on this thread, if it is known.
#[inline(always)]
pub(super) fn running(tgid: u32, tid: u32) -> Option<u64> {
    let thread = thread(tid)?;
    (thread.tgid == tgid && thread.kind as u32 == kind::TOKIO && thread.context != 0)
        .then_some(thread.context)
}

#[inline(always)]
fn known(task: u64, tgid: u32) -> Option<&'static mut Actor> {
    goroutine_slot(task, tgid).filter(|actor| actor.owner == task && actor.tgid == tgid)
}

#[inline(always)]
fn ids() -> (u32, u32) {
    let id = bpf_get_current_pid_tgid();
    ((id >> 32) as u32, id as u32)
}

/// Beginnings and ends of turns do not match: some are not seen, and nothing can be said.
#[inline(always)]
fn give_up(tgid: u32) {
    if kind_of(tgid) & kind::MULTIPLEXED == 0 {
        add_to_kind(tgid, kind::MULTIPLEXED);
    }
}

/// A task takes its turn on this thread.
#[inline(always)]
pub fn tokio_runs(task: u64) {
    let (tgid, tid) = ids();
    let Some(thread) = thread_slot(tid) else {
        return;
    };
    if thread.owner != tid as u64 || thread.tgid != tgid || thread.kind as u32 != kind::TOKIO {
        if kind_of(tgid) & kind::MASK != kind::TOKIO {
            return;
        }
        reset(thread, tid as u64, tgid);
        thread.kind = kind::TOKIO as u8;
    }
    if thread.context != 0 {
        give_up(tgid);
    }
    thread.context = task;
    thread.flags &= !(flag::CONNECTS | flag::READS);
}

/// A task's turn is over.
#[inline(always)]
pub fn tokio_pauses(task: u64) {
    let (tgid, tid) = ids();
    if let Some(thread) = thread(tid)
        && thread.tgid == tgid
        && thread.kind as u32 == kind::TOKIO
    {
        if thread.context != task {
            give_up(tgid);
        }
        thread.context = 0;
        thread.flags &= !(flag::CONNECTS | flag::READS);
    }
}

/// The thread waited for events: between turns.
#[inline(always)]
pub(super) fn waited(thread: &mut Actor) {
    if thread.context != 0 {
        give_up(thread.tgid);
    }
    thread.context = 0;
    thread.flags &= !(flag::CONNECTS | flag::READS);
}

/// A task ends; its address may be used again.
#[inline(always)]
pub fn tokio_ends(task: u64) {
    let (tgid, tid) = ids();
    if let Some(thread) = thread(tid)
        && thread.tgid == tgid
        && thread.kind as u32 == kind::TOKIO
        && thread.context == task
    {
        thread.context = 0;
    }
    let Some(actor) = known(task, tgid) else {
        return;
    };
    if actor.context != 0 {
        let _ = CHANNELS.remove(&handed_key(tgid, actor.context));
    }
    actor.owner = 0;
    if actor.method as u32 == method::TASK_CREATED
        && actor.flags & flag::CALLED != 0
        && actor.cause.is_open()
    {
        // Only where nothing is known of it yet: one that was seen to stay never is believed.
        let site = handed_key(tgid, actor.serving.key);
        let _ = SITES.insert(&site, &SITE_ENDS, NOEXIST as u64);
    }
}

/// This thread's entry, a new one if it has none.
#[inline(always)]
fn this_thread(tgid: u32, tid: u32) -> Option<&'static mut Actor> {
    let thread = thread_slot(tid)?;
    if thread.owner != tid as u64 || thread.tgid != tgid {
        reset(thread, tid as u64, tgid);
    }
    Some(thread)
}

/// The thread makes what a connection of hyper's client and its users agree by: the next task that it
/// makes is the connection's.
#[inline(always)]
pub fn tokio_connects() {
    let (tgid, tid) = ids();
    if let Some(thread) = this_thread(tgid, tid) {
        thread.flags |= flag::CONNECTS;
    }
}

/// The thread makes a task, called from this place, in the first of two functions, which may be part
/// of their callers.
#[inline(always)]
pub fn tokio_makes_first(task: u64, site: u64) {
    let (tgid, tid) = ids();
    if let Some(thread) = this_thread(tgid, tid) {
        thread.top = task;
        makes(thread, task, site);
    }
}

/// The same, in the second one.
#[inline(always)]
pub fn tokio_makes(task: u64, site: u64) {
    let (tgid, tid) = ids();
    let Some(thread) = this_thread(tgid, tid) else {
        return;
    };
    if thread.top == task {
        thread.top = 0;
    } else {
        makes(thread, task, site);
    }
}

#[inline(always)]
fn makes(thread: &mut Actor, task: u64, site: u64) {
    let (tgid, tid) = (thread.tgid, thread.owner as u32);
    if thread.flags & flag::CONNECTS != 0 {
        thread.flags &= !flag::CONNECTS;
        if let Some(actor) = goroutine_slot(task, tgid) {
            reset(actor, task, tgid);
            actor.flags = WRITER;
        }
        return;
    }
    // Without combinators of `Option`: LLVM may leave them functions of their own, whose arguments are not all set.
    let has_read = thread.flags & flag::READS != 0;
    let mut cause = Cause::NONE;
    if let Some(running) = running(tgid, tid)
        && let Some(maker) = known(running, tgid)
        && (has_read || maker.flags & STREAMS == 0)
    {
        (cause, _) = works_for(maker);
    }
    if cause.connection == 0 {
        // What a task of the same address left, should its end not have been seen.
        if let Some(actor) = known(task, tgid) {
            actor.owner = 0;
        }
        return;
    }
    let Some(actor) = goroutine_slot(task, tgid) else {
        return;
    };
    reset(actor, task, tgid);
    actor.cause = cause;
    actor.method = method::TASK_CREATED as u8;
    actor.serving.key = site;
}

/// A task has read frames of HTTP/2 as a server: if one stream alone was begun in this turn, the tasks that it
/// makes in the same turn serve that one.
#[inline(always)]
pub(super) fn reads_streams(call: &Call, connection: &Connection) {
    let Some(task) = running(call.tgid, call.tid) else {
        return;
    };
    let (Some(actor), Some(thread)) = (goroutine_slot(task, call.tgid), thread(call.tid)) else {
        return;
    };
    if actor.owner != task || actor.tgid != call.tgid {
        reset(actor, task, call.tgid);
    }
    let before = actor.serving.connection;
    if before != 0 && before != connection.id {
        actor.flags |= flag::SHARED;
    }
    actor.flags |= STREAMS;
    actor.kind = kind::TOKIO as u8;
    actor.method = method::TASK as u8;
    actor.serving.connection = connection.id;
    if call.fresh == 0 {
        return;
    }
    let alone = call.fresh != stream::MANY && thread.flags & flag::READS == 0;
    thread.flags |= flag::READS;
    actor.serving.key = call.fresh as u64;
    actor.cause = if alone { actor.serving } else { Cause::NONE };
}

/// What a task works for, and how that was found.
#[inline(always)]
fn works_for(actor: &mut Actor) -> (Cause, u32) {
    const NOTHING: (Cause, u32) = (Cause::NONE, method::NONE);
    if actor.flags & flag::SHARED != 0 || actor.cause.connection == 0 {
        return NOTHING;
    }
    let is_open = actor.cause.is_open();
    if actor.method as u32 != method::TASK_CREATED {
        return if is_open {
            (actor.cause, method::TASK_HANDED)
        } else {
            NOTHING
        };
    }
    let site = handed_key(actor.tgid, actor.serving.key);
    if !is_open {
        // One that outlives what it was made for serves anybody.
        let _ = SITES.insert(&site, &SITE_STAYS, 0);
        actor.cause = Cause::NONE;
        return NOTHING;
    }
    actor.flags |= flag::CALLED;
    // SAFETY: the value is only read.
    if unsafe { SITES.get(&site) }.is_none_or(|known| *known != SITE_ENDS) {
        return NOTHING;
    }
    (actor.cause, method::TASK_CREATED)
}

#[inline(always)]
fn channel(tgid: u32, cell: u64) -> Option<&'static mut Channel> {
    // SAFETY: the pointer is into the map. An entry that is reused meanwhile is another channel's:
    // its task's address or its counts tell.
    unsafe { CHANNELS.get_ptr_mut(&handed_key(tgid, cell))?.as_mut() }
}

/// The task that runs waits for what comes through a channel (or for a timer, which looks alike); called
/// from this place.
#[inline(always)]
pub fn tokio_receives(cell: u64, site: u64) {
    let (tgid, tid) = ids();
    let Some(task) = running(tgid, tid) else {
        return;
    };
    let Some(actor) = goroutine_slot(task, tgid) else {
        return;
    };
    if actor.owner != task || actor.tgid != tgid {
        reset(actor, task, tgid);
    }
    if actor.context != 0 && actor.context != cell {
        if let Some(channel) = channel(tgid, actor.context) {
            channel.broken = 1;
        }
        return;
    }
    if actor.context == cell && channel(tgid, cell).is_some_and(|channel| channel.task == task) {
        return;
    }
    if actor.flags & WRITER != 0 {
        let _ = SITES.insert(&handed_key(tgid, site), &SITE_CONNECTION, 0);
    }
    actor.context = cell;
    let new = Channel {
        cause: Cause::NONE,
        task,
        connection: 0,
        method: method::NONE,
        site,
        begun: 0,
        sent: 0,
        written: 0,
        broken: 0,
    };
    let _ = CHANNELS.insert(&handed_key(tgid, cell), &new, 0);
}

/// Counts what several threads may count at a time.
#[inline(always)]
fn count(counter: &mut u64) {
    // SAFETY: one atomic addition to a number in a map; the target's atomics know no addition whose
    // result is not wanted, the only one that kernels before 5.12 have.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {one}",
            counter = in(reg) core::ptr::from_mut(counter),
            one = in(reg) 1u64,
        );
    }
}

#[inline(always)]
fn read(counter: &u64) -> u64 {
    // SAFETY: a reference is valid; others may count meanwhile.
    unsafe { core::ptr::read_volatile(counter) }
}

/// Something was sent through a channel.
#[inline(always)]
pub fn tokio_sends(cell: u64) {
    let (tgid, tid) = ids();
    let Some(channel) = channel(tgid, cell) else {
        return;
    };
    count(&mut channel.begun);
    let sender = running(tgid, tid).and_then(|task| known(task, tgid));
    let (cause, found) = sender.map_or((Cause::NONE, method::NONE), works_for);
    channel.cause = cause;
    channel.method = found;
    count(&mut channel.sent);
}

/// A task writes a request to a connection: for whom.
#[inline(always)]
pub(super) fn writes(actor: &mut Actor, tgid: u32, connection: u64) -> (Cause, u32) {
    const NOTHING: (Cause, u32) = (Cause::NONE, method::NONE);
    if actor.method as u32 == method::TASK
        && actor.flags & (flag::SHARED | STREAMS) == 0
        && actor.cause.is_open()
    {
        return (actor.cause, method::TASK);
    }
    if actor.context == 0 {
        return NOTHING;
    }
    let Some(channel) = channel(tgid, actor.context) else {
        return NOTHING;
    };
    if channel.task != actor.owner {
        return NOTHING;
    }
    if channel.connection == 0 {
        channel.connection = connection;
    }
    let written = channel.written.wrapping_add(1);
    channel.written = written;
    let (cause, found) = (channel.cause, channel.method);
    // The order of the counts is that of the sender's writes, turned around.
    if channel.connection != connection
        || read(&channel.sent) != written
        || read(&channel.begun) != written
    {
        channel.broken = 1;
    }
    let site = handed_key(tgid, channel.site);
    // SAFETY: the value is only read.
    let is_known = unsafe { SITES.get(&site) }.is_some_and(|site| *site == SITE_CONNECTION);
    if channel.broken != 0 || !is_known {
        return NOTHING;
    }
    (cause, found)
}
