//! What goes into reassembly and what comes out of it.

use crate::protocol::Input;

/// One of the two ends of a connection; which is which is the caller's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one end.
    A,
    /// The other end.
    B,
}

impl Side {
    /// Both, in order.
    pub const BOTH: [Side; 2] = [Side::A, Side::B];

    /// The opposite end.
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// A pair of values, one per side.
#[derive(Clone, Debug, Default)]
pub struct Pair<T> {
    a: T,
    b: T,
}

impl<T> Pair<T> {
    /// The value of a side.
    pub fn side(&self, side: Side) -> &T {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    /// The value of a side.
    pub fn side_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }
}

/// A segment of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Who sent it.
    pub from: Side,
    /// Capture time.
    pub time_ns: u64,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number, if the segment has one.
    pub ack: Option<u32>,
    /// SYN flag.
    pub syn: bool,
    /// FIN flag.
    pub fin: bool,
    /// RST flag.
    pub rst: bool,
    /// Captured payload.
    pub payload: &'a [u8],
    /// Length of the payload on the wire; what is less than `payload.len()` counts as that.
    pub wire_len: u32,
}

/// What a side sent, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The next piece; [`Input::Bytes`] or [`Input::Lost`], never empty.
    Data(Input<'a>),
    /// It will send no more.
    Fin,
    /// It broke the connection off.
    Reset,
}

/// Takes what was reassembled.
pub trait Receiver {
    /// `from` sent `event`, at `time_ns`; times never go back within a connection.
    fn receive(&mut self, from: Side, event: Event<'_>, time_ns: u64);
}

impl<F: FnMut(Side, Event<'_>, u64)> Receiver for F {
    fn receive(&mut self, from: Side, event: Event<'_>, time_ns: u64) {
        self(from, event, time_ns);
    }
}

/// When waiting ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes held back on one connection, both directions together, bookkeeping included.
    pub held_per_connection: usize,
    /// Bytes held back on all connections together.
    pub held_in_all: usize,
    /// Segments held back on one direction.
    pub held_segments: usize,
    /// How long missing bytes are waited for: they may be sent again.
    pub gap_ns: u64,
    /// The same for bytes that the receiver acknowledged: nobody will send them again, at most the
    /// capture shows the packets in a wrong order.
    pub acknowledged_gap_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            held_per_connection: 1 << 20,
            held_in_all: 64 << 20,
            held_segments: 1024,
            gap_ns: 10_000_000_000,
            acknowledged_gap_ns: 200_000_000,
        }
    }
}

/// What all connections of a capture share: limits, what is held back now, and counts.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// When waiting ends.
    pub limits: Limits,
    /// Bytes held back now, bookkeeping included.
    pub held: usize,
    /// What happened to the bytes.
    pub counts: Counts,
}

/// Payload bytes by what became of them, and how often order had to be restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Handed on.
    pub delivered: u64,
    /// Handed on as lost: the packets are not in the capture.
    pub lost_gap: u64,
    /// Handed on as lost: the snap length cut them off.
    pub lost_cut: u64,
    /// Seen again (retransmissions, packets captured twice, keep-alive probes).
    pub repeated: u64,
    /// Left out: sequence number far from the connection's.
    pub out_of_window: u64,
    /// Left out: the bytes came after the end of their direction.
    pub after_end: u64,
    /// Gaps that became losses.
    pub gaps: u64,
    /// Segments that had to wait.
    pub held_segments: u64,
}

/// What the caller has to do after a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Go on.
    Open,
    /// Both directions ended; nothing more will come.
    Closed,
    /// The segment belongs to another connection between the same ends. It was not looked at:
    /// finish this reassembler and give it to a new one.
    Restart,
}
