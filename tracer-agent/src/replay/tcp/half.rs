//! One direction of a connection: the number expected next, and what is held back beyond it.

use std::collections::VecDeque;

/// Largest TCP window (RFC 7323, section 2.3): nothing genuine is further ahead.
pub(super) const MAX_AHEAD: i32 = 1 << 30;
/// Memory a held segment costs beside its bytes: the entry in the queue and the allocation.
const HELD_OVERHEAD: usize = size_of::<Held<Box<[u8]>>>() + 16;

/// How far `to` is ahead of `from`, modulo 2^32; negative when it is behind.
pub(super) fn distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from).cast_signed()
}

/// `number` is believably ahead of `next`.
pub(super) fn ahead(next: u32, number: u32) -> bool {
    (1..=MAX_AHEAD).contains(&distance(next, number))
}

/// A segment, with its captured bytes borrowed from the packet or owned while it is held back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held<T> {
    pub(super) start: u32,
    pub(super) wire_len: u32,
    pub(super) ack: Option<u32>,
    pub(super) fin: bool,
    pub(super) time_ns: u64,
    pub(super) bytes: T,
}

impl<T: AsRef<[u8]>> Held<T> {
    pub(super) fn cost(&self) -> usize {
        self.bytes.as_ref().len() + HELD_OVERHEAD
    }
}

#[derive(Debug, Default)]
pub(super) struct Half {
    /// Sequence number of the SYN, if it was seen.
    pub(super) initial: Option<u32>,
    /// Next number to be handed on; `None` until anything tells.
    pub(super) next: Option<u32>,
    /// Bytes were handed on.
    pub(super) moved: bool,
    /// Highest acknowledgement by the other end.
    pub(super) acknowledged: Option<u32>,
    /// Segments beyond `next`, by start. Starts are unique.
    pub(super) held: VecDeque<Held<Box<[u8]>>>,
    /// FIN was handed on, or the connection was reset.
    pub(super) ended: bool,
}

impl Half {
    /// The other end has everything before `ack`.
    pub(super) fn acknowledge(&mut self, ack: u32) {
        // What was acknowledged before anything of this direction was seen came before the capture.
        let next = *self.next.get_or_insert(ack);
        let highest = self.acknowledged.unwrap_or(next);
        if ahead(highest, ack) && distance(next, ack) <= MAX_AHEAD {
            self.acknowledged = Some(ack);
        }
    }

    /// Keeps a copy of the segment for later, unless one that covers it is there already.
    pub(super) fn hold(&mut self, segment: Held<&[u8]>) -> Kept {
        let position = self
            .held
            .partition_point(|held| distance(held.start, segment.start) > 0);
        if let Some(held) = self
            .held
            .get_mut(position)
            .filter(|held| held.start == segment.start)
        {
            if held.wire_len >= segment.wire_len && held.fin >= segment.fin {
                return Kept {
                    cost: 0,
                    repeated: segment.wire_len,
                };
            }
            // The same start with more behind it: the longer one replaces the shorter one.
            let segment = own(segment);
            let cost = segment.cost().cast_signed() - held.cost().cast_signed();
            let shorter = std::mem::replace(held, segment);
            return Kept {
                cost,
                repeated: shorter.wire_len,
            };
        }
        let held = own(segment);
        let cost = held.cost().cast_signed();
        self.held.insert(position, held);
        Kept { cost, repeated: 0 }
    }
}

/// What holding a segment back came to.
pub(super) struct Kept {
    /// Memory it costs; less than nothing if it replaced one with more captured bytes.
    pub(super) cost: isize,
    /// Bytes of the segment, or of the one it replaced, that were there twice.
    pub(super) repeated: u32,
}

fn own(segment: Held<&[u8]>) -> Held<Box<[u8]>> {
    let Held {
        start,
        wire_len,
        ack,
        fin,
        time_ns,
        bytes,
    } = segment;
    Held {
        start,
        wire_len,
        ack,
        fin,
        time_ns,
        bytes: bytes.into(),
    }
}
