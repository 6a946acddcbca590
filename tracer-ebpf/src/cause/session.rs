//! Sessions of Node's HTTP/2: which streams they make, read and write.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use tracer_common::abi::cause_method as method;

use super::Cause;
use super::actor::{flag, reset, thread, thread_slot};
use super::begun::made;
use super::made::{runs_now, settle};
use crate::maps::STREAMS;

/// Node: the callback makes a stream of this session.
#[inline(always)]
pub fn session_makes(session: u64, id: u32) {
    let all = bpf_get_current_pid_tgid();
    if let Some(actor) = thread(all as u32) {
        runs_now(actor, false);
        let (cause, method) = (actor.cause, actor.method as u32);
        made((all >> 32) as u32, session, id, cause, method);
    }
}

/// Node: the session is about to write.
#[inline(always)]
pub fn session_writes(session: u64) {
    let all = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((all >> 32) as u32, all as u32);
    let Some(actor) = thread_slot(tid) else {
        return;
    };
    if actor.owner != tid as u64 || actor.tgid != tgid {
        reset(actor, tid as u64, tgid);
    }
    actor.context = session;
}

/// Node: what comes next belongs to this stream of the connection that was read from last.
#[inline(always)]
pub fn session_reads(id: u32) {
    let Some(actor) = thread(bpf_get_current_pid_tgid() as u32) else {
        return;
    };
    settle(actor);
    actor.flags &= !flag::TIMERS;
    let key = Cause {
        connection: actor.serving.connection,
        key: id as u64,
    };
    // SAFETY: the value is only read.
    let Some(stream) = (unsafe { STREAMS.get(&key) }) else {
        actor.cause = Cause::NONE;
        return;
    };
    actor.cause = stream.cause;
    actor.method = if stream.cause == key {
        method::TURN as u8
    } else {
        method::CONTINUATION as u8
    };
}
