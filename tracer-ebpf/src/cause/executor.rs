//! Work that Python's `ThreadPoolExecutor` hands to its threads, known by its object.
//!
//! In: what is put into queues (`queue.SimpleQueue`) and taken from them. Out: what a thread works for from one
//! item to the next. An item is an object of its own for each call of `submit`, and one thread takes it; so it
//! says exactly whose work that thread does, however many requests there are.
//!
//! It cannot see other queues (`queue.Queue` is made of Python's own parts), nor items that others than the
//! executor put into this one: one thread may take many of those before it calls.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use tracer_common::abi::{cause_method as method, kind_of_process as kind};

use super::Cause;
use super::actor::{flag, kind_of, reset, thread, thread_slot};
use super::outgoing::used;
use super::turn::handed_key;
use super::woken::goes_on_later;
use crate::maps::HANDED;

/// `PyObject.ob_type` and `PyTypeObject.tp_name`: parts of the stable ABI. (Builds without the global lock
/// have them elsewhere, where no such name is.)
const OB_TYPE: u64 = 8;
const TP_NAME: u64 = 24;

#[inline(always)]
fn user<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address itself, and any bits are a value of the integers that are read.
    unsafe { bpf_probe_read_user::<T>(address as *const T) }.ok()
}

/// True for what `submit` makes.
#[inline(always)]
fn is_work(object: u64) -> Option<bool> {
    let kind: u64 = user(object.wrapping_add(OB_TYPE))?;
    let name: u64 = user(kind.wrapping_add(TP_NAME))?;
    let begin: u64 = user(name)?;
    let end: u16 = user(name.wrapping_add(8))?;
    Some(begin == u64::from_le_bytes(*b"_WorkIte") && end == u16::from_le_bytes(*b"m\0"))
}

/// The current thread puts the first of these arguments into a queue.
#[inline(always)]
pub fn puts(arguments: u64) -> Option<()> {
    let item: u64 = user(arguments)?;
    if !is_work(item)? {
        return None;
    }
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    let kind = kind_of(tgid);
    let mut cause = Cause::NONE;
    if let Some(actor) = thread(tid)
        && actor.tgid == tgid
        && kind & kind::MULTIPLEXED == 0
        && (kind & kind::MASK == kind::TASKS
            || (kind & kind::MASK == kind::THREADS && actor.flags & flag::LOOP == 0))
    {
        let (found, _) = used(actor, kind);
        if found.is_open() {
            cause = found;
        }
    }
    // Of nobody in particular too: there may be another one's of the same address that was never taken.
    let _ = HANDED.insert(&handed_key(tgid, item), &cause, 0);
    None
}

/// The current thread asks a queue for an item: what it took before is done.
#[inline(always)]
pub fn gets() {
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    if let Some(actor) = thread(tid)
        && actor.tgid == tgid
        && actor.method as u32 == method::THREAD_HANDED
    {
        actor.cause.clear();
        actor.context = 0;
    }
}

/// The current thread took an item from a queue. Of functions within each other it is told by each.
#[inline(always)]
pub fn got(item: u64) {
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    let Some(actor) = thread_slot(tid) else {
        return;
    };
    let is_own = actor.owner == tid as u64 && actor.tgid == tgid;
    if is_own && actor.flags & flag::LOOP != 0 {
        return;
    }
    let key = handed_key(tgid, item);
    // SAFETY: the value is copied before the map is changed.
    let Some(cause) = (unsafe { HANDED.get(&key) }).copied() else {
        if is_own && actor.method as u32 == method::THREAD_HANDED && actor.context != item {
            actor.cause.clear();
        }
        return;
    };
    let _ = HANDED.remove(&key);
    if !is_own {
        reset(actor, tid as u64, tgid);
    }
    // Whose this is, nobody's included, is known better than by who woke the thread.
    goes_on_later(false);
    // What it was made for says nothing any more.
    actor.flags &= !(flag::CREATED | flag::CALLED);
    actor.method = method::THREAD_HANDED as u8;
    actor.context = item;
    actor.cause = cause;
}
