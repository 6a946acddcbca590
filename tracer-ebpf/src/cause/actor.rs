//! Who works for an exchange: threads and goroutines, and how their process runs them.

use tracer_common::abi::kind_of_process as kind;

use super::Cause;
use super::crowd::crowd_ended;
use super::made::ids_end;
use super::tokio::running;
use crate::hook;
use crate::kernel::Arguments;
use crate::maps::{ACTOR_SLOTS, GOROUTINE_SLOTS, GOROUTINE_WAYS, GOROUTINES, KINDS, THREADS};
use crate::memory::zero;

/// What a thread or a goroutine is doing.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Actor {
    /// Thread id, or address of the goroutine or the task.
    pub owner: u64,
    /// Its process.
    pub tgid: u32,
    /// Low byte of the process's kind, when it last read a request.
    pub kind: u8,
    /// How `cause` was found.
    pub method: u8,
    /// See [`flag`].
    pub flags: u8,
    /// Wakes of futures ([`super::Wake`]) that its turns may still meet.
    pub wakes: u8,
    /// The exchange that it works for now.
    pub cause: Cause,
    /// The request that it read last.
    pub serving: Cause,
    /// The context that it is in, of a Python program; the task that it runs, of tokio's; of such a
    /// task the channel that it receives from. 0 for none.
    pub context: u64,
    /// Stack pointer where its event loop entered a context last; 0 for not since it waited. Of a
    /// thread of tokio's: the task that it is making.
    pub top: u64,
}

/// [`Actor::flags`].
pub(super) mod flag {
    /// It waits for events of many descriptors.
    pub const LOOP: u8 = 1;
    /// It was made by a thread that served a request.
    pub const CREATED: u8 = 2;
    /// It sent a request while that one was open.
    pub const CALLED: u8 = 4;
    /// It is making a goroutine.
    pub const MAKES: u8 = 8;
    /// It read a request in this turn of its event loop.
    pub const READS: u8 = 16;
    /// It accepted a connection, and has made no context since.
    pub const ACCEPTED: u8 = 32;
    /// A task that read requests of several connections.
    pub const SHARED: u8 = 64;
    /// It makes a connection of hyper's client.
    pub const CONNECTS: u8 = 128;
    /// Of Node's: it is known where the ids of what runs are (`made.rs`).
    pub const IDS: u8 = 8;
    /// Of Node's: callbacks of timers, or of `setImmediate`, run in this turn, anybody's.
    pub const TIMERS: u8 = 128;
}

/// A thread's slot, whoever's it is.
#[inline(always)]
pub(super) fn thread_slot(tid: u32) -> Option<&'static mut Actor> {
    // SAFETY: the pointer is into the map; the owner tells whose it is, and only that thread (or,
    // before it runs, its creator) writes to it as such.
    unsafe { THREADS.get_ptr_mut(tid & (ACTOR_SLOTS - 1))?.as_mut() }
}

/// A thread's entry, if it has one.
#[inline(always)]
pub(super) fn thread(tid: u32) -> Option<&'static mut Actor> {
    let actor = thread_slot(tid)?;
    (actor.owner == tid as u64).then_some(actor)
}

/// The goroutine that runs now.
#[inline(always)]
fn goroutine() -> Option<u64> {
    Arguments::of_current()?.goroutine().filter(|g| *g != 0)
}

/// The slot of a goroutine or a task, or one that it may have.
#[inline(always)]
pub(super) fn goroutine_slot(g: u64, tgid: u32) -> Option<&'static mut Actor> {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = (g ^ (tgid as u64) << 48).wrapping_mul(MIX) >> 40;
    let first = mixed as u32 & (GOROUTINE_SLOTS - 1) & !(GOROUTINE_WAYS - 1);
    // Where none is free another one goes, not always the same.
    let mut place = first + ((mixed >> 16) as u32 & (GOROUTINE_WAYS - 1));
    let mut way = 0;
    while way < GOROUTINE_WAYS {
        let actor = GOROUTINES.get(first + way)?;
        if actor.owner == g && actor.tgid == tgid {
            place = first + way;
            break;
        }
        if actor.owner == 0 {
            place = first + way;
        }
        way += 1;
    }
    // SAFETY: as in `thread_slot`.
    unsafe { GOROUTINES.get_ptr_mut(place)?.as_mut() }
}

/// Makes a slot somebody's, as if it never had done anything.
#[inline(always)]
pub(super) fn reset(actor: &mut Actor, owner: u64, tgid: u32) {
    const WORDS: usize = size_of::<Actor>() / 8;
    const { assert!(size_of::<Actor>().is_multiple_of(8) && align_of::<Actor>() == 8) };
    let words = core::ptr::from_mut(actor).cast::<u64>();
    let mut at = 0;
    while at < WORDS {
        // SAFETY: the place is within the slot, and all bits zero are a value of every field of it.
        zero(unsafe { &mut *words.add(at) });
        at += 1;
    }
    actor.owner = owner;
    actor.tgid = tgid;
}

/// The entry of whoever makes this call in a process of this kind; a new one if `make`.
#[inline(always)]
pub(super) fn actor(kind: u32, tgid: u32, tid: u32, make: bool) -> Option<&'static mut Actor> {
    let (owner, actor) = if kind & kind::MASK == kind::GO {
        let g = goroutine()?;
        (g, goroutine_slot(g, tgid)?)
    } else if kind & kind::MASK == kind::TOKIO {
        let task = running(tgid, tid)?;
        (task, goroutine_slot(task, tgid)?)
    } else {
        (tid as u64, thread_slot(tid)?)
    };
    if actor.owner != owner || actor.tgid != tgid {
        if !make {
            return None;
        }
        reset(actor, owner, tgid);
        if owner == tid as u64 && hook::waits_for_events(tid) {
            actor.flags |= flag::LOOP;
        }
    }
    Some(actor)
}

#[inline(always)]
pub(super) fn kind_of(tgid: u32) -> u32 {
    // SAFETY: the value is only read.
    unsafe { KINDS.get(&tgid) }.copied().unwrap_or(kind::NONE)
}

#[inline(always)]
pub(super) fn add_to_kind(tgid: u32, flags: u32) {
    if let Some(kind) = KINDS.get_ptr_mut(&tgid) {
        // SAFETY: the pointer is into the map; a flag that gets lost to another CPU is set again.
        unsafe { *kind |= flags };
    }
}

/// A process was forked: its child is the same program.
#[inline(always)]
pub fn process_made(parent: u32, child: u32) {
    let of_parent = kind_of(parent);
    let kind = match of_parent & kind::MASK {
        // Probes of tasks are attached to one process.
        kind::TASKS => kind::THREADS,
        kind::TOKIO => kind::BLOCKING,
        kind => kind | of_parent & (kind::WOKEN | kind::ONE_LOCK),
    };
    if kind != kind::NONE {
        let _ = KINDS.insert(&child, &kind, 0);
    } else {
        // What a process of the same id left.
        let _ = KINDS.remove(&child);
    }
}

/// A process ended, or is another program from now on.
#[inline(always)]
pub fn process_ended(tgid: u32) {
    crowd_ended(tgid);
    ids_end(tgid);
    let _ = KINDS.remove(&tgid);
}
