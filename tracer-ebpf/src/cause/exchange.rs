//! Exchanges that came in and are being served.
//!
//! In: where a request begins, bytes of its answer, ends of connections. Out: whether an exchange is
//! still open: what is called for it later is not its own any more.

use tracer_common::abi::direction;

use super::pool::leaves_pool;
use super::stream;
use super::woken::ends;
use crate::connection::{Connection, mark, mode, open, verdict};
use crate::maps::{EXCHANGE_SLOTS, EXCHANGE_WAYS, EXCHANGES};
use crate::memory::zero;

/// An exchange that came in.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    /// Id of its connection; 0 for none.
    pub connection: u64,
    /// Position of its request's first byte.
    pub key: u64,
}

impl Cause {
    /// There is none.
    pub const NONE: Cause = Cause {
        connection: 0,
        key: 0,
    };

    /// Makes it none, in place.
    #[inline(always)]
    pub fn clear(&mut self) {
        zero(&mut self.connection);
        zero(&mut self.key);
    }

    /// The first of the slots where it may be.
    #[inline(always)]
    fn slot(&self) -> u32 {
        const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed = (self.connection ^ self.key.wrapping_mul(MIX)).wrapping_mul(MIX);
        (mixed >> 40) as u32 & (EXCHANGE_SLOTS - 1) & !(EXCHANGE_WAYS - 1)
    }

    /// The slot that holds `what`, of those where this may be.
    #[inline(always)]
    fn find(&self, what: Cause) -> Option<*mut Cause> {
        let first = self.slot();
        let mut way = 0;
        while way < EXCHANGE_WAYS {
            let entry = EXCHANGES.get_ptr_mut(first + way)?;
            // SAFETY: the pointer is into the map.
            if unsafe { *entry } == what {
                return Some(entry);
            }
            way += 1;
        }
        None
    }

    /// True until its response was written.
    #[inline(always)]
    pub(super) fn is_open(&self) -> bool {
        self.connection != 0 && (self.find(*self).is_some() || self.is_open_stream())
    }

    #[inline(always)]
    pub(super) fn begin(&self) {
        let free = self.find(Cause::NONE);
        if let Some(entry) = free.or_else(|| EXCHANGES.get_ptr_mut(self.slot())) {
            // SAFETY: the pointer is into the map; a torn entry of two writers equals neither cause.
            unsafe { *entry = *self };
        }
    }

    #[inline(always)]
    pub(super) fn end(&self) {
        if let Some(entry) = self.find(*self) {
            // SAFETY: as in `begin`.
            unsafe { *entry = Cause::NONE };
        }
    }
}

/// Bytes of a response may have been written: the exchange has ended if that was all. Where a
/// response of unknown length ends is not known: then it has ended with its head.
#[inline(always)]
pub fn answered(connection: &mut Connection) {
    if connection.open == open::NOTHING {
        return;
    }
    // Behind a 101 it is another protocol.
    if matches!(
        connection.verdict,
        verdict::IGNORED | verdict::UPGRADED | verdict::HTTP2
    ) {
        exchange_ended(connection);
        return;
    }
    if connection.outstanding != 0
        || connection.requests != direction::READ
        || !(connection.write.mode == mode::START || connection.write.mode == mode::UNFRAMED)
    {
        return;
    }
    exchange_ended(connection);
}

/// The connection ended, and what it carried with it.
#[inline(always)]
pub fn closed(connection: &mut Connection) {
    leaves_pool(connection);
    exchange_ended(connection);
    stream::ended(connection);
}

#[inline(always)]
fn exchange_ended(connection: &mut Connection) {
    let cause = Cause {
        connection: connection.id,
        key: connection.open_key,
    };
    if connection.open == open::ONE {
        cause.end();
    }
    if connection.marks & mark::COUNTED != 0 {
        connection.marks &= !mark::COUNTED;
        ends(&cause);
    }
    connection.open = open::NOTHING;
}
