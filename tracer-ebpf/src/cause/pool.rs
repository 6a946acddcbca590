//! Connections of an event loop's process that wait for their next request.
//!
//! Where one is to spare, nobody waits for the connection whose answer was just read.

use tracer_common::abi::{direction, kind_of_process as kind, role};

use super::actor::thread;
use crate::connection::{Connection, mode};
use crate::kernel;
use crate::maps::{Call, POOLS, Pool};

#[inline(always)]
fn pool(tgid: u32, connection: &Connection) -> Pool {
    Pool {
        place: connection.place,
        tgid,
        reserved: 0,
    }
}

/// True when another connection of the process to the same place waits for a request.
#[inline(always)]
pub(super) fn has_spare(connection: &Connection, call: &Call) -> bool {
    // SAFETY: the value is only read.
    unsafe { POOLS.get(&pool(call.tgid, connection)) }.is_some_and(|waiting| *waiting > 0)
}

/// An answer may have been read to its end: the connection waits for its next request then.
#[inline(always)]
pub fn answer_read(call: &Call, connection: &mut Connection) {
    if connection.pooled != 0
        || connection.requests != direction::WRITE
        || connection.outstanding != 0
        || connection.read.mode != mode::START
        || connection.role != role::CLIENT
        || thread(call.tid).is_none_or(|actor| actor.kind as u32 != kind::CALLBACKS)
    {
        return;
    }
    if connection.place == 0 {
        let sock = connection.socket(call.socket);
        connection.place = kernel::remote_place(sock, connection.family);
    }
    let key = pool(call.tgid, connection);
    connection.pooled = call.tgid;
    match POOLS.get_ptr_mut(&key) {
        // SAFETY: the pointer is into the map; a process with an event loop has one thread for it.
        Some(waiting) => unsafe { *waiting += 1 },
        None => {
            let _ = POOLS.insert(&key, &1, 0);
        }
    }
}

/// A connection sends its next request, or ended.
#[inline(always)]
pub(super) fn leaves_pool(connection: &mut Connection) {
    if connection.pooled == 0 {
        return;
    }
    let key = pool(connection.pooled, connection);
    connection.pooled = 0;
    if let Some(waiting) = POOLS.get_ptr_mut(&key) {
        // SAFETY: as in `answer_read`.
        unsafe { *waiting = (*waiting).saturating_sub(1) };
    }
}
