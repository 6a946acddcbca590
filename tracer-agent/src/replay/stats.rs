//! What happened to the packets and bytes of a capture, for people.

use std::fmt;

use super::packet::Reason;
use super::tcp;

/// Counts of one replay. Payload bytes add up:
/// `payload_bytes = tcp.delivered + tcp.lost_cut + tcp.repeated + tcp.out_of_window + tcp.after_end
/// + ignored_bytes + stray_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets read.
    pub packets: u64,
    /// Their length on the wire.
    pub wire_bytes: u64,
    /// Capture time of the first packet, nanoseconds since the epoch.
    pub first_ns: u64,
    /// Latest capture time.
    pub last_ns: u64,
    /// The last record was incomplete and was left out.
    pub truncated: bool,
    /// TCP segments.
    pub segments: u64,
    /// TCP payload on the wire, repetitions included.
    pub payload_bytes: u64,
    /// Packets without a TCP segment, by [`Reason`].
    pub without_segment: [u64; Reason::ALL.len()],
    /// What reassembly did.
    pub tcp: tcp::Counts,
    /// Connections.
    pub connections: ConnectionCounts,
    /// Payload of ignored connections, after the decision to ignore them.
    pub ignored_bytes: u64,
    /// Delivered bytes that belong to no HTTP message: what made a connection ignored, or came
    /// before the first message of one that was joined in the middle.
    pub unclaimed_bytes: u64,
    /// Payload of resets of connections that are not known.
    pub stray_bytes: u64,
}

/// Connections by where they came from and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// All. A reused pair of addresses counts again.
    pub all: u64,
    /// Joined in the middle: their SYN is not in the capture.
    pub joined: u64,
    /// They spoke HTTP/1, at least at first.
    pub http1: u64,
    /// They spoke HTTP/2 from where they were first seen.
    pub http2: u64,
    /// They carried data, but no HTTP.
    pub ignored: u64,
    /// Closed or reset, while they were looked at.
    pub closed: u64,
    /// Forgotten because nothing was seen of them for long.
    pub timed_out: u64,
    /// Forgotten, while they were looked at, to make room for others.
    pub evicted: u64,
}

impl Stats {
    /// Packets without a TCP segment for `reason`.
    pub fn without_segment(&self, reason: Reason) -> u64 {
        self.without_segment
            .get(reason as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Bytes of payload that the handler was told of as lost.
    pub fn lost_bytes(&self) -> u64 {
        self.tcp.lost_gap + self.tcp.lost_cut
    }

    /// Every packet and every byte of payload is in exactly one count.
    pub fn adds_up(&self) -> bool {
        let tcp::Counts {
            delivered,
            lost_cut,
            repeated,
            out_of_window,
            after_end,
            ..
        } = self.tcp;
        let reassembled = delivered + lost_cut + repeated + out_of_window + after_end;
        let without: u64 = self.without_segment.iter().sum();
        self.payload_bytes == reassembled + self.ignored_bytes + self.stray_bytes
            && self.packets == self.segments + without
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stats {
            packets,
            wire_bytes,
            first_ns,
            last_ns,
            truncated,
            segments,
            payload_bytes,
            without_segment,
            tcp,
            connections,
            ignored_bytes,
            unclaimed_bytes,
            stray_bytes,
        } = self;
        let tcp::Counts {
            delivered,
            lost_gap,
            lost_cut,
            repeated,
            out_of_window,
            after_end,
            gaps,
            held_segments,
        } = tcp;
        let ConnectionCounts {
            all,
            joined,
            http1,
            http2,
            ignored,
            closed,
            timed_out,
            evicted,
        } = connections;
        let seconds = last_ns.saturating_sub(*first_ns) as f64 / 1e9;
        writeln!(
            f,
            "capture      {packets} packets, {wire_bytes} bytes, {seconds:.3} s"
        )?;
        if *truncated {
            writeln!(
                f,
                "             the last record is incomplete and was left out"
            )?;
        }
        write!(
            f,
            "tcp          {segments} segments, {payload_bytes} bytes of payload"
        )?;
        let others = Reason::ALL
            .iter()
            .zip(without_segment)
            .filter(|(_, count)| **count > 0);
        for (index, (reason, count)) in others.enumerate() {
            let lead = if index == 0 { "\nno tcp       " } else { ", " };
            write!(f, "{lead}{} {count}", reason.name())?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "bytes        delivered {delivered} (unclaimed {unclaimed_bytes}), ignored {ignored_bytes}, \
             repeated {repeated}, out of window {out_of_window}, after end {after_end}, stray {stray_bytes}"
        )?;
        writeln!(
            f,
            "lost         {lost_gap} bytes in {gaps} gaps, {lost_cut} bytes cut by the snap length; \
             {held_segments} segments reordered"
        )?;
        write!(
            f,
            "connections  {all} (joined {joined}): http/1 {http1}, http/2 {http2}, ignored {ignored}; \
             closed {closed}, timed out {timed_out}, evicted {evicted}"
        )
    }
}
