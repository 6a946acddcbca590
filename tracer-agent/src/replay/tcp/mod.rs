//! TCP reassembly of one connection seen from the wire. Pure: segments and capture times in; for
//! both directions their bytes in order, losses, FIN and RST out.
//!
//! Two rules decide what is handed on when:
//!
//! - *Order within a direction*: a segment waits until everything before it was handed on.
//! - *Order between directions*: a segment that acknowledges bytes of the other direction was sent
//!   after them, so it waits for them. A response thus never overtakes its request, however the
//!   capture shuffled the packets.
//!
//! What waits in vain (see [`Limits`]) ends the wait: the bytes in front of it become
//! [`Input::Lost`]. Each piece is handed on with the time of its own packet, or of the packet that
//! closed the gap before it, so waiting does not falsify durations.
//!
//! Where segments overlap the bytes that were handed on first win. Sequence numbers are compared
//! modulo 2^32 (RFC 9293, section 3.4). Cannot see: bytes before the capture began, and which of two
//! contradicting retransmissions the receiver took.

mod half;
#[cfg(test)]
mod tests;
mod types;

use crate::protocol::Input;
use half::{Half, Held, Kept, ahead, distance};
pub use types::{Counts, Event, Limits, Pair, Receiver, Segment, Shared, Side, Verdict};

/// Segments far from the expected number that are left out before they mean a new connection.
const FAR_SEGMENTS: u8 = 3;
/// How far behind the expected number a repeated segment can be: more than any send buffer.
const MAX_BEHIND: i32 = -(64 << 20);

/// Reassembles one connection.
#[derive(Debug, Default)]
pub struct Reassembler {
    halves: Pair<Half>,
    /// What this connection has of [`Shared::held`].
    held: usize,
    /// Latest time handed on.
    emitted_ns: u64,
    opened_by: Option<Side>,
    far: u8,
}

impl Reassembler {
    /// A connection of which nothing was seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Who sent the SYN; `None` if that was before the capture.
    pub fn opened_by(&self) -> Option<Side> {
        self.opened_by
    }

    /// The segment is another sighting of this connection's SYN.
    pub fn is_repeated_syn(&self, segment: &Segment<'_>) -> bool {
        segment.syn && self.halves.side(segment.from).initial == Some(segment.seq)
    }

    /// Takes the next packet of the capture.
    pub fn push(
        &mut self,
        segment: &Segment<'_>,
        shared: &mut Shared,
        out: &mut impl Receiver,
    ) -> Verdict {
        let Segment {
            from,
            time_ns,
            seq,
            ack,
            syn,
            fin,
            rst,
            payload,
            wire_len,
        } = *segment;
        let wire_len = wire_len
            .max(u32::try_from(payload.len()).unwrap_or(u32::MAX))
            .min(half::MAX_AHEAD as u32);
        if syn && !self.open(segment) {
            return Verdict::Restart;
        }
        let start = seq.wrapping_add(u32::from(syn));
        let has_content = wire_len > 0 || fin;
        if has_content && self.is_far(from, start) {
            self.far += 1;
            if self.far >= FAR_SEGMENTS {
                return Verdict::Restart;
            }
            shared.counts.out_of_window += u64::from(wire_len);
            return Verdict::Open;
        }
        if let Some(ack) = ack.filter(|_| !rst) {
            self.halves.side_mut(from.other()).acknowledge(ack);
        }
        if has_content {
            self.far = 0;
            self.take(
                from,
                Held {
                    start,
                    wire_len,
                    ack,
                    fin,
                    time_ns,
                    bytes: payload,
                },
                shared,
                out,
            );
        }
        if !self.nothing_held() {
            self.drain(Some(time_ns), shared, out);
        }
        if rst {
            self.drain(None, shared, out);
            for half in Side::BOTH {
                self.halves.side_mut(half).ended = true;
            }
            self.emit(from, Event::Reset, time_ns, out);
        }
        let ended = Side::BOTH.iter().all(|side| self.halves.side(*side).ended);
        if ended {
            Verdict::Closed
        } else {
            Verdict::Open
        }
    }

    /// Nothing more will come: hands on what was held back, with the gaps as losses.
    pub fn finish(&mut self, shared: &mut Shared, out: &mut impl Receiver) {
        self.drain(None, shared, out);
    }

    /// False if the SYN is not of this connection.
    fn open(&mut self, segment: &Segment<'_>) -> bool {
        let Segment { from, seq, ack, .. } = *segment;
        let half = self.halves.side_mut(from);
        let first = seq.wrapping_add(1);
        match (half.initial, half.next) {
            (Some(initial), _) if initial == seq => return true,
            (Some(_), _) => return false,
            // The other end's acknowledgement came first.
            (None, Some(next)) if next == first && !half.moved => {}
            (None, Some(_)) => return false,
            (None, None) => {}
        }
        half.initial = Some(seq);
        half.next = Some(first);
        self.opened_by
            .get_or_insert(if ack.is_some() { from.other() } else { from });
        true
    }

    fn is_far(&self, from: Side, start: u32) -> bool {
        let next = self.halves.side(from).next;
        next.is_some_and(|next| !(MAX_BEHIND..=half::MAX_AHEAD).contains(&distance(next, start)))
    }

    fn nothing_held(&self) -> bool {
        Side::BOTH
            .iter()
            .all(|side| self.halves.side(*side).held.is_empty())
    }

    /// Hands a segment's payload and FIN on, or holds them back.
    fn take(
        &mut self,
        from: Side,
        segment: Held<&[u8]>,
        shared: &mut Shared,
        out: &mut impl Receiver,
    ) {
        let half = self.halves.side_mut(from);
        let end = segment.start.wrapping_add(segment.wire_len);
        let Some(next) = half.next else {
            if segment.wire_len == 1 && !segment.fin {
                // Perhaps a keep-alive probe, whose byte is garbage (RFC 9293, section 3.8.4).
                half.next = Some(end);
                shared.counts.repeated += 1;
            } else {
                half.next = Some(segment.start);
                self.hand_on(from, segment, shared, out);
            }
            return;
        };
        let is_old = distance(next, end) <= 0 && (!segment.fin || half.ended);
        if is_old || self.is_ready(from, &segment) {
            return self.hand_on(from, segment, shared, out);
        }
        let half = self.halves.side_mut(from);
        if half.ended {
            shared.counts.after_end += u64::from(segment.wire_len);
            return;
        }
        let Kept { cost, repeated } = half.hold(segment);
        self.held = self.held.saturating_add_signed(cost);
        shared.held = shared.held.saturating_add_signed(cost);
        shared.counts.held_segments += u64::from(cost != 0);
        shared.counts.repeated += u64::from(repeated);
    }

    /// Nothing that comes before the segment, in either direction, is missing.
    fn is_ready<T>(&self, from: Side, segment: &Held<T>) -> bool {
        let half = self.halves.side(from);
        half.next
            .is_none_or(|next| distance(next, segment.start) <= 0)
            && !self.awaits_other(from, segment)
    }

    fn awaits_other<T>(&self, from: Side, segment: &Held<T>) -> bool {
        match (segment.ack, self.halves.side(from.other()).next) {
            (Some(ack), Some(next)) => ahead(next, ack),
            _ => false,
        }
    }

    /// Hands on everything that is ready, and what has waited long enough. Without a time,
    /// everything.
    fn drain(&mut self, now_ns: Option<u64>, shared: &mut Shared, out: &mut impl Receiver) {
        loop {
            let mut progress = false;
            for side in Side::BOTH {
                while let Some(front) = self.halves.side(side).held.front()
                    && self.is_ready(side, front)
                    && let Some(held) = self.halves.side_mut(side).held.pop_front()
                {
                    progress = true;
                    self.held = self.held.saturating_sub(held.cost());
                    shared.held = shared.held.saturating_sub(held.cost());
                    let Held {
                        start,
                        wire_len,
                        ack,
                        fin,
                        time_ns,
                        bytes,
                    } = held;
                    let segment = Held {
                        start,
                        wire_len,
                        ack,
                        fin,
                        time_ns,
                        bytes: &*bytes,
                    };
                    self.hand_on(side, segment, shared, out);
                }
            }
            if progress {
                continue;
            }
            let Some(side) = self.longest_waiting() else {
                return;
            };
            if let Some(now_ns) = now_ns
                && !self.is_overdue(side, now_ns, &shared.limits)
                && !self.is_over_limit(shared)
            {
                return;
            }
            self.give_up(side, shared, out);
        }
    }

    fn longest_waiting(&self) -> Option<Side> {
        let since = |side| {
            self.halves
                .side(side)
                .held
                .front()
                .map(|front| front.time_ns)
        };
        match (since(Side::A), since(Side::B)) {
            (Some(a), Some(b)) if b < a => Some(Side::B),
            (Some(_), _) => Some(Side::A),
            (None, Some(_)) => Some(Side::B),
            (None, None) => None,
        }
    }

    fn is_overdue(&self, side: Side, now_ns: u64, limits: &Limits) -> bool {
        let half = self.halves.side(side);
        let Some(front) = half.held.front() else {
            return false;
        };
        let acknowledged = self.awaits_other(side, front)
            || half
                .acknowledged
                .is_some_and(|acknowledged| distance(front.start, acknowledged) >= 0);
        let bound = if acknowledged {
            limits.acknowledged_gap_ns
        } else {
            limits.gap_ns
        };
        now_ns.saturating_sub(front.time_ns) > bound
    }

    fn is_over_limit(&self, shared: &Shared) -> bool {
        let Limits {
            held_per_connection,
            held_in_all,
            held_segments,
            ..
        } = shared.limits;
        self.held > held_per_connection
            || shared.held > held_in_all
            || Side::BOTH
                .iter()
                .any(|side| self.halves.side(*side).held.len() > held_segments)
    }

    /// Ends the wait of the first segment held back on `side`, which is not ready. Makes progress:
    /// a direction moves on, or the segment no longer waits for the other direction.
    fn give_up(&mut self, side: Side, shared: &mut Shared, out: &mut impl Receiver) {
        let other = self.halves.side(side.other());
        let half = self.halves.side(side);
        let Some(front) = half.held.front() else {
            return;
        };
        let time_ns = front.time_ns;
        if let (true, Some(ack), Some(other_next)) =
            (self.awaits_other(side, front), front.ack, other.next)
        {
            match other.held.front().map(|held| held.start) {
                // The other direction's next bytes are there and wait for this direction: two
                // segments cannot have been sent after each other.
                Some(start) if distance(other_next, start) <= 0 => {
                    let own_start = front.start;
                    if half.next.is_some_and(|next| distance(next, own_start) > 0) {
                        // Perhaps both only wait for what is missing before this one.
                        return self.lose(side, own_start, time_ns, shared, out);
                    }
                    if let Some(front) = self.halves.side_mut(side).held.front_mut() {
                        front.ack = None;
                    }
                }
                Some(start) if distance(start, ack) > 0 => {
                    self.lose(side.other(), start, time_ns, shared, out)
                }
                _ => self.lose(side.other(), ack, time_ns, shared, out),
            }
        } else {
            let start = front.start;
            self.lose(side, start, time_ns, shared, out);
        }
    }

    fn lose(
        &mut self,
        from: Side,
        until: u32,
        time_ns: u64,
        shared: &mut Shared,
        out: &mut impl Receiver,
    ) {
        let half = self.halves.side_mut(from);
        let next = half.next.replace(until).unwrap_or(until);
        half.moved = true;
        let lost = u64::try_from(distance(next, until)).unwrap_or_default();
        if lost > 0 && !half.ended {
            shared.counts.lost_gap += lost;
            shared.counts.gaps += 1;
            self.emit(from, Event::Data(Input::Lost(lost)), time_ns, out);
        }
    }

    /// Hands on what is new of a segment that starts at or before the expected number.
    fn hand_on(
        &mut self,
        from: Side,
        segment: Held<&[u8]>,
        shared: &mut Shared,
        out: &mut impl Receiver,
    ) {
        let Held {
            start,
            wire_len,
            ack: _,
            fin,
            time_ns,
            bytes,
        } = segment;
        let half = self.halves.side_mut(from);
        let next = half.next.unwrap_or(start);
        let old = u32::try_from(distance(start, next))
            .unwrap_or_default()
            .min(wire_len);
        shared.counts.repeated += u64::from(old);
        if half.ended {
            shared.counts.after_end += u64::from(wire_len - old);
            return;
        }
        let new_len = wire_len - old;
        half.moved |= new_len > 0;
        half.next = Some(next.wrapping_add(new_len).wrapping_add(u32::from(fin)));
        half.ended = fin;
        let bytes = bytes.get(old as usize..).unwrap_or_default();
        let cut = u64::from(new_len).saturating_sub(bytes.len() as u64);
        if !bytes.is_empty() {
            shared.counts.delivered += bytes.len() as u64;
            self.emit(from, Event::Data(Input::Bytes(bytes)), time_ns, out);
        }
        if cut > 0 {
            shared.counts.lost_cut += cut;
            self.emit(from, Event::Data(Input::Lost(cut)), time_ns, out);
        }
        if fin {
            self.emit(from, Event::Fin, time_ns, out);
        }
    }

    fn emit(&mut self, from: Side, event: Event<'_>, time_ns: u64, out: &mut impl Receiver) {
        self.emitted_ns = self.emitted_ns.max(time_ns);
        out.receive(from, event, self.emitted_ns);
    }
}
