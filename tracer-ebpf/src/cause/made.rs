//! Callbacks of Node's timers and of `setImmediate`: whom the one that runs works for.
//!
//! In: the ids that Node gives to what it will call back. They count up and are never used again, and stand in memory
//! that JavaScript writes to: which one runs, by which one that was made, and the last one given. Out: the exchange in
//! whose turn the one that runs was made: by its own id, since ids that were given in a row between two changes of the thread's
//! cause were given for the first of the two.
//!
//! Where that memory is is found in the environment, by what stands there between two turns (nothing runs, no default, a whole number of
//! ids), and looked at again whenever it is used.

use aya_ebpf::helpers::generated::bpf_probe_read_user as read_user_into;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, bpf_probe_read_user};
use tracer_common::abi::{cause_method as method, kind_of_process as kind};

use super::Cause;
use super::actor::{Actor, flag, thread};
use super::crowd::again;
use crate::maps::{HANDED, Handed, IDS, MADE, MADE_SLOTS, MADE_WAYS, NO_IDS};
use crate::memory::zero;

/// Where a thread of Node's keeps its ids, and what was given since its timers ran last.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ids {
    /// 0 if it was not found.
    pub address: u64,
    /// The last one that was given when it was looked at.
    pub last: u64,
    /// The last one that was given when timers, or what `setImmediate` left, began to run.
    pub begun: u64,
    pub tgid: u32,
    /// Searches without a result.
    pub tries: u32,
    /// Of `spans`, in use and done with.
    pub count: u32,
    pub done: u32,
    /// Whose place goes, while that is looked for: a slot and its age.
    pub slot: u32,
    pub oldest: u32,
    /// What was read at `address`; here, because stacks are short.
    pub words: [u64; WORDS as usize],
    /// Between the steps of [`runs_now`]: which one runs, which one that was made by, and which one is looked for.
    pub runs: u64,
    pub by: u64,
    pub wanted: u64,
    /// What [`made_for`] found.
    pub found: Cause,
    /// Of those that timers made, the one that was asked for last, with its cause.
    pub asked: u64,
    pub answer: Cause,
    pub spans: [Span; SPANS],
}

/// Ids that were given in a row, and for whom.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Span {
    pub first: u64,
    pub last: u64,
    pub cause: Cause,
}

/// Some of the ids that were given for an exchange, or by timers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Made {
    pub tid: u32,
    /// The ids' number without their lowest bits.
    pub block: u32,
    /// Which of the block's.
    pub bits: u32,
    /// When it was noted, in about milliseconds.
    pub stamp: u32,
    pub cause: Cause,
}

/// In place of an exchange: a callback of a timer, anybody's, made it.
const BY_TIMER: Cause = Cause {
    connection: u64::MAX,
    key: 0,
};
/// In place of the last id that was given: for whom those since were is not known.
const LOST: u64 = u64::MAX;
/// Spans that wait to be looked at; a power of two. More than there are events in most turns of a loop.
const SPANS: usize = 64;
/// Ids of one span that are noted, the last ones.
const LONGEST: u64 = 1024;
/// Blocks that are noted at a time.
const STEPS: u32 = 160;
/// Words of an environment behind a handle in it that are looked at.
const SEARCHED: u64 = 256;
/// Searches of one thread, at most.
const TRIES: u32 = 16;
/// Words of the array of ids.
const WORDS: u64 = 4;
/// Ids of a block, as bits.
const BLOCK_BITS: u32 = 3;
const IN_BLOCK: u64 = (1 << BLOCK_BITS) - 1;
/// No number of a [`Handed`](crate::maps::Handed) that is an address: a socket's, by its id.
const SOCKET: u64 = 1 << 63;

/// What stands in the memory of ids.
struct Now {
    /// Which one runs; 0 for none.
    runs: u64,
    /// Which one that was made by.
    by: u64,
    /// The last one that was given.
    last: u64,
    /// Nobody set another maker for what is made.
    plain: bool,
}

/// A double that is a whole number.
#[inline(always)]
fn whole(bits: u64) -> Option<u64> {
    if bits == 0 {
        return Some(0);
    }
    let exponent = bits >> 52;
    // From 1 to 2^53; negative ones are out of it.
    if !(1023..=1075).contains(&exponent) {
        return None;
    }
    let left = 1075 - exponent;
    let digits = bits & ((1 << 52) - 1) | 1 << 52;
    (digits & ((1 << left) - 1) == 0).then_some(digits >> left)
}

/// False where the memory cannot be read; for a moment, if its page was taken elsewhere.
#[inline(always)]
fn fetch(ids: &mut Ids, address: u64) -> bool {
    let words = ids.words.as_mut_ptr();
    // SAFETY: they are as many; the helper checks the source.
    unsafe { read_user_into(words.cast(), WORDS as u32 * 8, address as *const _) == 0 }
}

/// What was fetched, if it makes sense.
#[inline(always)]
fn fetched(ids: &Ids) -> Option<Now> {
    let [runs, by, last, default] = ids.words;
    let plain = default == (-1f64).to_bits();
    let (runs, last) = (whole(runs)?, whole(last)?);
    // Programs may name any number as the maker.
    let by = whole(by).unwrap_or(0);
    let fits = runs <= last && last != 0 && (plain || whole(default).is_some());
    fits.then_some(Now {
        runs,
        by,
        last,
        plain,
    })
}

#[inline(always)]
fn place(tid: u32) -> Option<&'static mut Ids> {
    // SAFETY: the pointer is into the map; only the thread itself writes to it.
    unsafe { IDS.get_ptr_mut(&tid)?.as_mut() }
}

#[inline(always)]
fn has_ids(actor: &Actor) -> bool {
    actor.flags & flag::IDS != 0 && actor.kind as u32 == kind::CALLBACKS
}

/// What stands there now. Where it makes no sense nothing is believed any more; where it cannot be read, nothing of what
/// was made since it was read last.
#[inline(always)]
fn look(actor: &mut Actor) -> Option<(&'static mut Ids, Now)> {
    if let Some(ids) = place(actor.owner as u32) {
        if !fetch(ids, ids.address) {
            ids.last = LOST;
            return None;
        }
        if let Some(now) = fetched(ids)
            && (ids.last == LOST || now.last >= ids.last)
        {
            return Some((ids, now));
        }
        ids.address = 0;
        ids.tries = TRIES;
    }
    actor.flags &= !flag::IDS;
    None
}

/// Before a thread's cause changes: what it made until now was made for that.
#[inline(always)]
pub(super) fn settle(actor: &mut Actor) {
    if has_ids(actor) {
        settle_made(actor.owner as u32);
    }
}

/// A function of its own for the verifier, as the others of this kind below: it goes over it once for each program, and not
/// for each state in which the program may come here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn settle_made(tid: u32) -> u32 {
    if let Some(actor) = thread(tid) {
        settles(actor);
    }
    0
}

#[inline(always)]
fn settles(actor: &mut Actor) {
    let Some((ids, now)) = look(actor) else {
        return;
    };
    let before = ids.last;
    ids.last = now.last;
    if before == LOST {
        return;
    }
    let first = before + 1;
    let cause = if actor.flags & flag::TIMERS == 0 {
        actor.cause
    } else {
        BY_TIMER
    };
    if now.last >= first && cause.connection != 0 {
        push(ids, first, now.last, cause);
    }
}

/// Takes note of ids; of too many at once for none of the last ones.
#[inline(always)]
fn push(ids: &mut Ids, first: u64, last: u64, cause: Cause) {
    let count = ids.count as usize;
    if count < SPANS {
        ids.spans[count & (SPANS - 1)] = Span { first, last, cause };
        ids.count = count as u32 + 1;
    }
}

/// Moves what was noted to where it is found by its number.
#[inline(always)]
fn store(tid: u32, ids: &mut Ids) {
    let mut step = 0;
    while step < STEPS && ids.done < ids.count {
        let span = &mut ids.spans[ids.done as usize & (SPANS - 1)];
        let (mut first, last, cause) = (span.first, span.last, span.cause);
        if last - first >= LONGEST {
            first = last + 1 - LONGEST;
        }
        let mut bits = (u32::MAX >> (31 - IN_BLOCK)) << (first & IN_BLOCK);
        let next = (first | IN_BLOCK) + 1;
        if next > last {
            bits &= u32::MAX >> (31 - (last & IN_BLOCK));
            ids.done += 1;
        } else {
            span.first = next;
        }
        add(tid, ids, (first >> BLOCK_BITS) as u32, bits, cause);
        step += 1;
    }
    if ids.done >= ids.count {
        ids.done = 0;
        ids.count = 0;
    }
}

#[inline(always)]
fn first_slot(tid: u32, block: u32) -> u32 {
    const MIX: u32 = 0x9e37_79b1;
    let mixed = (block ^ tid.rotate_left(16)).wrapping_mul(MIX) >> 12;
    mixed & (MADE_SLOTS - 1) & !(MADE_WAYS - 1)
}

#[inline(always)]
fn add(tid: u32, ids: &mut Ids, block: u32, bits: u32, cause: Cause) {
    let first = first_slot(tid, block);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { (bpf_ktime_get_boot_ns() >> 20) as u32 };
    // In map memory for the verifier, see `memory.rs`.
    let [slot, oldest] = [&raw mut ids.slot, &raw mut ids.oldest];
    // SAFETY: both are fields of the entry, here and below.
    unsafe {
        slot.write_volatile(first);
        oldest.write_volatile(0);
    }
    let mut way = 0;
    while way < MADE_WAYS {
        let Some(made) = MADE.get_ptr_mut(first + way) else {
            return;
        };
        // SAFETY: the pointer is into the map; entries of two threads may fight for it, and are then missed, or
        // name an id that the thread never gives again.
        let made = unsafe { &mut *made };
        if made.tid == tid && made.block == block && made.cause == cause {
            made.bits |= bits;
            return;
        }
        // SAFETY: as above.
        unsafe {
            let age = now.wrapping_sub(made.stamp);
            if age > oldest.read_volatile() {
                oldest.write_volatile(age);
                slot.write_volatile(first + way);
            }
        }
        way += 1;
    }
    // SAFETY: as above.
    let slot = unsafe { slot.read_volatile() };
    if let Some(made) = MADE.get_ptr_mut(slot) {
        // SAFETY: as above.
        unsafe {
            *made = Made {
                tid,
                block,
                bits,
                stamp: now,
                cause,
            }
        };
    }
}

/// Finds the exchange that an id was given for, [`BY_TIMER`] or none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn made_for(tid: u32) -> u32 {
    if let Some(ids) = place(tid) {
        find(tid, ids);
    }
    0
}

/// What is looked for and what is found stay in the map: kernels before 6.x leave 32 bytes of stack here.
#[inline(always)]
fn find(tid: u32, ids: &mut Ids) {
    zero(&mut ids.found.connection);
    zero(&mut ids.found.key);
    // What was noted, but not moved yet.
    let mut n = 0;
    while n < SPANS && n < ids.count as usize {
        let span = &ids.spans[n & (SPANS - 1)];
        let better = ids.found.connection == 0 || span.cause != BY_TIMER;
        if span.first <= ids.wanted && ids.wanted <= span.last && better {
            ids.found = span.cause;
        }
        n += 1;
    }
    let block = (ids.wanted >> BLOCK_BITS) as u32;
    let first = first_slot(tid, block);
    let mut way = 0;
    while way < MADE_WAYS {
        if let Some(made) = MADE.get(first + way)
            && made.tid == tid
            && made.block == block
            && made.bits >> (again(&ids.wanted) & IN_BLOCK) & 1 != 0
            && (again(&ids.found.connection) == 0 || made.cause != BY_TIMER)
        {
            ids.found = made.cause;
        }
        way += 1;
    }
}

/// Each thread counts its own ids.
#[inline(always)]
fn socket_key(actor: &Actor, id: u64) -> Handed {
    Handed {
        address: SOCKET | id,
        tgid: actor.tgid,
        reserved: actor.owner as u32,
    }
}

/// Before a cause is asked for: among callbacks of timers it is by the id of the one that runs now. Behind the last of
/// them, in what their promises go on with, none runs.
#[inline(always)]
pub(super) fn runs_now(actor: &mut Actor, connects: bool) {
    if actor.flags & flag::TIMERS == 0 || actor.kind as u32 != kind::CALLBACKS {
        return;
    }
    actor.cause = Cause::NONE;
    if !has_ids(actor) {
        return;
    }
    // None of these calls another one: their stacks add up.
    let tid = actor.owner as u32;
    if made_runs(tid) != 0 {
        made_for(tid);
        let step = made_by_whom(tid);
        if step == ASKS {
            made_for(tid);
        }
        if step != KNOWN {
            made_by_timer(tid, connects as u32);
        }
    }
}

/// What [`made_by_whom`] returns: it is known whom the callback works for.
const KNOWN: u32 = 0;
/// That tells its maker, of whom it has to be found first.
const ASKS: u32 = 1;
/// The same, and it was found already.
const ASKED: u32 = 2;

/// Looks at which callback runs; 0 if none does.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn made_runs(tid: u32) -> u32 {
    let Some((ids, now)) = thread(tid).and_then(look) else {
        return 0;
    };
    ids.runs = now.runs;
    ids.by = now.by;
    ids.wanted = now.runs;
    (now.runs != 0) as u32
}

/// Takes what was found of the callback's own id, if that tells.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn made_by_whom(tid: u32) -> u32 {
    let (Some(actor), Some(ids)) = (thread(tid), place(tid)) else {
        return KNOWN;
    };
    let cause = ids.found;
    if cause == BY_TIMER || (cause.connection == 0 && ids.runs > ids.begun) {
        // A timer that a timer made, or what it left for the end of its turn. Other makers may be anybody's.
        if ids.by == ids.asked {
            ids.found = ids.answer;
            return ASKED;
        }
        ids.wanted = ids.by;
        return ASKS;
    }
    actor.cause = cause;
    actor.method = method::TIMER as u8;
    KNOWN
}

/// Takes what was found of its maker.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn made_by_timer(tid: u32, connects: u32) -> u32 {
    let (Some(actor), Some(ids)) = (thread(tid), place(tid)) else {
        return 0;
    };
    let mut cause = ids.found;
    if cause == BY_TIMER {
        cause = Cause::NONE;
    }
    if cause.connection == 0 && connects != 0 {
        let key = socket_key(actor, ids.by);
        // SAFETY: the value is copied.
        cause = unsafe { HANDED.get(&key) }.copied().unwrap_or(Cause::NONE);
    } else if cause.connection != 0 {
        push(ids, ids.runs, ids.runs, cause);
        // What it leaves for the end of its turn runs before the next timer does.
        ids.asked = ids.runs;
        ids.answer = cause;
    }
    actor.cause = cause;
    actor.method = method::TIMER as u8;
    0
}

/// The same for who is about to write.
#[inline(always)]
pub fn writes_now(tid: u32) {
    if let Some(actor) = thread(tid) {
        runs_now(actor, false);
    }
}

/// Node: callbacks of timers, or of `setImmediate`, are run next; the handle is a part of the thread's environment.
#[inline(always)]
pub fn runs_timers(handle: u64) {
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    let Some(actor) = thread(tid) else {
        return;
    };
    if actor.kind as u32 != kind::CALLBACKS {
        actor.cause = Cause::NONE;
        return;
    }
    settle(actor);
    actor.cause = Cause::NONE;
    actor.flags |= flag::TIMERS;
    if let Some(ids) = place(tid)
        && ids.tgid == tgid
    {
        if ids.address == 0 && ids.tries < TRIES {
            ids.tries += 1;
            search(ids, handle);
        }
        if ids.address == 0 {
            return;
        }
        if actor.flags & flag::IDS == 0 {
            // Nobody looked at its turns since, if ever.
            ids.last = LOST;
        }
        actor.flags |= flag::IDS;
        // Within a callback (of a program that runs loops in loops) everything could be somebody else's.
        if let Some((ids, now)) = look(actor)
            && now.runs == 0
        {
            ids.last = now.last;
            ids.begun = now.last;
            store(tid, ids);
            return;
        }
        if ids.address != 0 && ids.last == LOST {
            // Not to be read now.
            ids.begun = LOST;
            return;
        }
        ids.address = 0;
        ids.tries = TRIES;
        actor.flags &= !flag::IDS;
        return;
    }
    if let Some(new) = NO_IDS.get(0) {
        let _ = IDS.insert(&tid, new, 0);
    }
    if let Some(ids) = place(tid) {
        ids.tgid = tgid;
    }
}

/// Arrays that both sides of Node use are told by their length, where they begin in their memory (0), and that memory's address.
#[inline(always)]
fn search(ids: &mut Ids, handle: u64) {
    let mut at = 0;
    while at < SEARCHED {
        // SAFETY: the helper checks the address.
        let words: Result<[u64; 3], _> =
            unsafe { bpf_probe_read_user((handle + at * 8) as *const _) };
        if let Ok([WORDS, 0, address]) = words
            && fetch(ids, address)
            && let Some(now) = fetched(ids)
            && now.runs == 0
            && now.plain
        {
            ids.address = address;
            ids.last = now.last;
            return;
        }
        at += 1;
    }
}

/// Node: a handle is made, or made anew for another use, with the next id. What names it as its maker may be
/// anybody's who uses it then.
#[inline(always)]
pub fn makes_handle(is_socket: bool) {
    let Some(actor) = thread(bpf_get_current_pid_tgid() as u32) else {
        return;
    };
    if !has_ids(actor) {
        return;
    }
    if actor.flags & flag::TIMERS == 0 {
        settle(actor);
        if let Some(ids) = place(actor.owner as u32)
            && ids.last != LOST
        {
            ids.last += 1;
        }
        return;
    }
    runs_now(actor, false);
    let cause = actor.cause;
    if is_socket && let Some((_, now)) = look(actor) {
        // It may be connected by what was left for the end of the turn, in its name.
        let key = socket_key(actor, now.last + 1);
        if cause.is_open() {
            let _ = HANDED.insert(&key, &cause, 0);
        }
    }
}

/// A thread ended.
#[inline(always)]
pub(super) fn ids_end(tid: u32) {
    let _ = IDS.remove(&tid);
}
