//! Threads that are made for a request, in programs that let them end with it.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::abi::{cause_method as method, kind_of_process as kind};

use super::actor::{Actor, add_to_kind, flag, kind_of, reset, thread, thread_slot};
use super::made::ids_end;
use super::woken::worker_ended;

/// The current thread makes another one in its process.
#[inline(always)]
pub fn thread_made(tgid: u32, child: u32) {
    let id = bpf_get_current_pid_tgid();
    let creator = thread(id as u32)
        .filter(|actor| actor.tgid == tgid && actor.flags & flag::LOOP == 0)
        .filter(|actor| matches!(actor.kind as u32, kind::BLOCKING | kind::THREADS))
        .filter(|actor| actor.cause.is_open());
    let Some(creator) = creator else {
        return;
    };
    // One that was itself made for a request, only where it could be believed if it called.
    if creator.flags & flag::CREATED != 0
        && kind_of(tgid) & (kind::THREADS_END | kind::THREADS_STAY) != kind::THREADS_END
    {
        return;
    }
    let (kind, cause) = (creator.kind, creator.cause);
    if let Some(actor) = thread_slot(child) {
        reset(actor, child as u64, tgid);
        actor.kind = kind;
        actor.cause = cause;
        actor.method = method::THREAD_CREATED as u8;
        actor.flags = flag::CREATED;
    }
}

/// The current thread ends; its id may be used again.
#[inline(always)]
pub fn thread_ended() {
    let id = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((id >> 32) as u32, id as u32);
    worker_ended(tid);
    ids_end(tid);
    let Some(actor) = thread(tid) else {
        return;
    };
    if actor.flags & flag::CALLED != 0 && actor.cause.is_open() {
        add_to_kind(tgid, kind::THREADS_END);
    }
    actor.owner = 0;
}

/// Learns whether threads that are made while serving a request end with it.
#[inline(always)]
pub(super) fn created_thread_calls(actor: &mut Actor, kind: u32, tgid: u32) {
    if actor.flags & flag::CREATED == 0 {
        return;
    }
    if actor.cause.is_open() {
        actor.flags |= flag::CALLED;
    } else if kind & kind::THREADS_STAY == 0 {
        add_to_kind(tgid, kind::THREADS_STAY);
    }
}
