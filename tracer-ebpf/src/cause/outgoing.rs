//! Requests that go out, and connections that are opened: for whom.

use tracer_common::abi::{cause_method as method, kind_of_process as kind};

use super::Cause;
use super::actor::{Actor, actor, flag, kind_of};
use super::made::runs_now;
use super::pool::{has_spare, leaves_pool};
use super::task::created_task_calls;
use super::thread::created_thread_calls;
use super::tokio::writes;
use super::woken::woken_calls;
use crate::connection::Connection;
use crate::maps::{Call, OPENERS};
use crate::probes::io::Caller;

#[inline(always)]
pub(super) fn goes_out(call: &mut Call, connection: &mut Connection) {
    let before = connection.call;
    let (opened_for, opener, answered_for) = if connection.called == 0 {
        (before, connection.caller, Cause::NONE)
    } else {
        (Cause::NONE, 0, before)
    };
    leaves_pool(connection);
    connection.called = 1;
    connection.call = Cause::NONE;
    connection.caller = 0;
    let kind = kind_of(call.tgid);
    if kind == kind::NONE {
        return;
    }
    let actor = actor(kind, call.tgid, call.tid, false);
    let owner = actor.as_ref().map_or(0, |actor| actor.owner);
    let is_first = connection.from_start != 0 && connection.write.position == 0;
    let (cause, found) = match kind & kind::MASK {
        kind::CALLBACKS if is_first => (opened_for, method::CONNECTION),
        // Goes on over the connection that it has just read the answer from: its own next request,
        // or another one's that waited for a connection. With one to spare nobody waits.
        kind::CALLBACKS
            if actor.as_ref().is_some_and(|actor| {
                actor.method as u32 == method::CONTINUATION && actor.cause == answered_for
            }) && !has_spare(connection, call) =>
        {
            return;
        }
        kind::CALLBACKS | kind::GO | kind::TASKS => match actor {
            Some(actor) => {
                created_task_calls(actor, call.tgid);
                used(actor, kind)
            }
            None => return,
        },
        kind::TOKIO => match actor {
            Some(actor) if kind & kind::MULTIPLEXED == 0 => writes(actor, call.tgid, connection.id),
            _ => return,
        },
        _ if kind & kind::MULTIPLEXED != 0 => return,
        _ => {
            let (mut cause, mut found) = (Cause::NONE, method::NONE);
            if let Some(actor) = actor {
                if actor.flags & flag::LOOP != 0 {
                    return;
                }
                if actor.cause.connection != 0 {
                    created_thread_calls(actor, kind, call.tgid);
                    (cause, found) = used(actor, kind);
                } else if is_first && opener == actor.owner {
                    (cause, found) = (opened_for, method::CONNECTION);
                }
            }
            if !cause.is_open() {
                cause = woken_calls(kind, call.tgid, call.tid);
                if cause.connection != 0 {
                    call.cause = cause;
                    call.cause_method = method::THREAD_WOKEN;
                }
                // Who reads the answer may work for another exchange by then.
                return;
            }
            (cause, found)
        }
    };
    if !cause.is_open() || found == method::NONE {
        return;
    }
    call.cause = cause;
    call.cause_method = found;
    if found == method::THREAD_HANDED {
        // It may do other work by the time that it reads the answer.
        return;
    }
    connection.caller = owner;
    // As to requests in a row, whose response is read next is not known.
    if connection.outstanding == 0 {
        connection.call = cause;
    }
}

/// What an actor works for, and how that was found.
#[inline(always)]
pub(super) fn used(actor: &Actor, kind: u32) -> (Cause, u32) {
    let found = actor.method as u32;
    // Threads and tasks made for one request serve others later where they are kept: only programs
    // that were seen to let them end, and never to keep one, are believed.
    let kept = kind & (kind::THREADS_END | kind::THREADS_STAY) != kind::THREADS_END;
    if matches!(found, method::THREAD_CREATED | method::TASK_CREATED) && kept {
        return (Cause::NONE, method::NONE);
    }
    (actor.cause, found)
}

/// Who opens a connection, and for which exchange.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Opener {
    pub cause: Cause,
    /// Thread or goroutine.
    pub owner: u64,
}

impl Opener {
    /// It is not known.
    pub const NOBODY: Opener = Opener {
        cause: Cause::NONE,
        owner: 0,
    };
}

/// The current thread opens a connection.
#[inline(always)]
pub fn opening(sock: u64) {
    let Some(caller) = Caller::traced() else {
        return;
    };
    if let Some(opener) = opener(&caller) {
        let _ = OPENERS.insert(&sock, &opener, 0);
    } else {
        // What an earlier attempt with the same socket left.
        let _ = OPENERS.remove(&sock);
    }
}

#[inline(always)]
fn opener(caller: &Caller) -> Option<Opener> {
    let kind = kind_of(caller.tgid);
    if kind == kind::NONE || kind & kind::MULTIPLEXED != 0 || kind & kind::MASK == kind::TOKIO {
        return None;
    }
    let actor = actor(kind, caller.tgid, caller.tid, false)?;
    if kind & kind::MASK == kind::CALLBACKS {
        runs_now(actor, true);
    }
    let (cause, found) = used(actor, kind);
    if !cause.is_open() || found == method::THREAD_HANDED {
        return None;
    }
    Some(Opener {
        cause,
        owner: actor.owner,
    })
}

/// Who opened a connection that is established now.
#[inline(always)]
pub fn take_opener(sock: u64) -> Opener {
    // SAFETY: the value is copied before the map is changed.
    match unsafe { OPENERS.get(&sock) }.copied() {
        Some(opener) => {
            let _ = OPENERS.remove(&sock);
            opener
        }
        None => Opener::NOBODY,
    }
}
