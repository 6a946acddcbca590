//! The reading end of the event ring.

use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};

use crate::sys;

/// Reads records in the order the kernel side reserved them.
pub struct Reader {
    ring: RingBuf<MapData>,
    size: usize,
}

impl Reader {
    pub(super) fn new(ring: RingBuf<MapData>, size: usize) -> Self {
        Reader { ring, size }
    }

    /// Bytes of the ring.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Hands up to `max` records to `each`; returns how many there were.
    pub fn drain(&mut self, max: usize, mut each: impl FnMut(&[u8])) -> usize {
        for n in 0..max {
            let Some(record) = self.ring.next() else {
                return n;
            };
            each(&record);
        }
        max
    }

    /// Waits until the kernel side calls for attention, or the time is over.
    pub fn wait(&self, timeout: Duration) {
        sys::wait_readable(self.ring.as_fd(), timeout);
    }
}
