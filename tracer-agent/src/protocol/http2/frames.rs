//! What whole frames mean.
//!
//! In: frame headers and payloads of one direction, in order. Out: header blocks, bodies and resets
//! of streams.

use super::super::{At, Direction, Outcome, began_ns, opposite};
use super::Output;
use super::frame::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Header, PADDED,
    PUSH_PROMISE, RST_STREAM, SETTINGS,
};
use super::lane::State;
use super::session::{Kind, Session};

/// Error code of a stream that was not looked at (RFC 9113, section 7).
const REFUSED_STREAM: u32 = 7;

const SETTINGS_HEADER_TABLE_SIZE: u16 = 1;
const SETTINGS_MAX_FRAME_SIZE: u16 = 5;

/// True for frames whose payload has to be seen.
fn is_read(kind: u8) -> bool {
    matches!(
        kind,
        HEADERS | CONTINUATION | PUSH_PROMISE | RST_STREAM | SETTINGS | GOAWAY
    )
}

impl Session {
    pub(super) fn frame_begins(
        &mut self,
        direction: Direction,
        header: Header,
        at: &At,
        out: &mut Output,
    ) {
        let first = self.first_is_settings(direction);
        let lane = self.lane(direction);
        if first && header.kind != SETTINGS || !lane.accepts(&header) {
            out.unparsed(frame::HEADER as u64);
            if first {
                self.give_up(out);
            } else {
                self.lose(direction, out);
            }
            return;
        }
        lane.begin(header);
        if header.kind == DATA
            && header.has(PADDED)
            && let Some(flow) = self.flow(direction, header.stream, at)
        {
            // What is left out may be padding: the same is said of what is not.
            flow.unknown();
        }
        if header.length == 0 {
            self.frame_ends(direction, &[], at, out);
        }
    }

    /// The server's first frame must be SETTINGS (RFC 9113, section 3.4).
    fn first_is_settings(&mut self, direction: Direction) -> bool {
        let lane = self.lane(direction);
        lane.whole && !lane.found
    }

    /// A piece of a frame's payload.
    pub(super) fn payload(
        &mut self,
        direction: Direction,
        piece: &[u8],
        at: &At,
        out: &mut Output,
    ) {
        let length = piece.len() as u64;
        let lane = self.lane(direction);
        let frame = lane.frame;
        lane.left = lane
            .left
            .saturating_sub(u32::try_from(length).unwrap_or(u32::MAX));
        let last = lane.left == 0;
        if is_read(frame.kind) {
            if last && lane.is_fresh() {
                self.frame_ends(direction, piece, at, out);
                return;
            }
            lane.keep(piece);
            if last {
                let payload = lane.take_payload();
                self.frame_ends(direction, &payload, at, out);
                self.lane(direction).put_payload(payload);
            }
            return;
        }
        if frame.kind == DATA
            && let Some(flow) = self.flow(direction, frame.stream, at)
        {
            flow.take(Some(piece), length);
        }
        if last {
            self.frame_ends(direction, &[], at, out);
        }
    }

    /// So many bytes of a frame's payload, and no more than that, were not seen.
    pub(super) fn missing(&mut self, direction: Direction, length: u64, at: &At, out: &mut Output) {
        let lane = self.lane(direction);
        let frame = lane.frame;
        lane.left = lane
            .left
            .saturating_sub(u32::try_from(length).unwrap_or(u32::MAX));
        lane.broken = true;
        let last = lane.left == 0;
        if frame.kind == DATA
            && let Some(flow) = self.flow(direction, frame.stream, at)
        {
            flow.take(None, length);
        }
        if last {
            let payload = self.lane(direction).take_payload();
            self.frame_ends(direction, &payload, at, out);
            self.lane(direction).put_payload(payload);
        }
    }

    fn frame_ends(&mut self, direction: Direction, payload: &[u8], at: &At, out: &mut Output) {
        let lane = self.lane(direction);
        lane.state = State::Header(0);
        let (frame, broken) = (lane.frame, lane.broken);
        match frame.kind {
            DATA if frame.has(END_STREAM) => {
                self.direction_of_stream_ends(direction, frame.stream, at, out);
            }
            HEADERS | PUSH_PROMISE => {
                let fragment = frame.fragment(payload).filter(|_| !broken);
                let broken = fragment.is_none();
                let fragment = fragment.unwrap_or_default();
                if frame.has(END_HEADERS) {
                    let first = lane.first;
                    self.header_block(direction, &frame, &first, fragment, broken, at, out);
                } else {
                    lane.open_block(fragment, broken);
                }
            }
            CONTINUATION => {
                let Some(mut block) = lane.block.take() else {
                    return;
                };
                block.append(payload, broken);
                if frame.has(END_HEADERS) {
                    let (header, first) = (block.header, block.first);
                    let broken = block.broken;
                    self.header_block(direction, &header, &first, block.bytes(), broken, at, out);
                } else {
                    lane.block = Some(block);
                }
            }
            RST_STREAM => {
                let code = frame::word(payload).filter(|_| !broken);
                let outcome = code.map_or(Outcome::Lost, |code| reset(direction, code));
                self.stream_ends(direction, frame.stream, outcome, at, out);
            }
            SETTINGS if !frame.has(ACK) => self.settings(direction, payload, broken),
            GOAWAY if !broken && self.kind(direction) == Some(Kind::Responses) => {
                if let Some(last) = frame::word(payload) {
                    self.refused(
                        last & 0x7fff_ffff,
                        reset(direction, REFUSED_STREAM),
                        at,
                        out,
                    );
                }
            }
            _ => {}
        }
    }

    /// What this direction's sender allows the other direction's.
    fn settings(&mut self, direction: Direction, payload: &[u8], broken: bool) {
        let other = self.lane(opposite(direction));
        if broken {
            other.max_frame = frame::MAX;
            return;
        }
        for setting in payload.chunks_exact(6) {
            let (Some(id), Some(value)) = (
                setting.first_chunk().map(|id| u16::from_be_bytes(*id)),
                setting.get(2..).and_then(frame::word),
            ) else {
                continue;
            };
            match id {
                // Until the acknowledgement both sizes may be in use: the larger one allows both.
                SETTINGS_MAX_FRAME_SIZE => {
                    other.max_frame = other.max_frame.max(value.min(frame::MAX));
                }
                SETTINGS_HEADER_TABLE_SIZE => other.hpack.allowed(value),
                _ => {}
            }
        }
    }

    /// The other side will not look at streams behind `last` (RFC 9113, section 6.8).
    fn refused(&mut self, last: u32, outcome: Outcome, at: &At, out: &mut Output) {
        if last >= self.last {
            return;
        }
        self.last = last;
        let mut refused: Vec<u32> = self
            .streams
            .keys()
            .copied()
            .filter(|stream| *stream > last)
            .collect();
        refused.sort_unstable();
        for stream in refused {
            self.finish(stream, outcome, at.time_ns, out);
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "all of it is the block's place and time"
    )]
    fn header_block(
        &mut self,
        direction: Direction,
        header: &Header,
        first: &At,
        block: &[u8],
        broken: bool,
        at: &At,
        out: &mut Output,
    ) {
        let mut fields = super::fields::Fields::default();
        let lane = self.lane(direction);
        let result = lane.hpack.decode(block, &mut |field| fields.take(&field));
        if broken || result.is_err() {
            lane.hpack.forget();
            fields.unknown += 1;
            out.counts.broken_blocks += 1;
        }
        out.counts.unknown_fields += fields.unknown;
        if header.kind == PUSH_PROMISE {
            // Only for the table: what a server pushes answers no request that was sent.
            return;
        }
        if self.role.is_none() {
            let requests = Self::role_with_requests(direction);
            if fields.is_request {
                self.role = Some(requests);
            } else if fields.status.is_some() {
                self.role = Some(Self::role_with_requests(opposite(direction)));
            }
        }
        let end = header.has(END_STREAM);
        let began_ns = began_ns(direction, first);
        match self.kind(direction) {
            // Even streams are pushed ones.
            _ if header.stream.is_multiple_of(2) => {}
            None => out.counts.undecided_blocks += 1,
            Some(Kind::Requests) => {
                self.request(
                    direction,
                    header.stream,
                    fields,
                    end,
                    began_ns,
                    first,
                    at,
                    out,
                );
            }
            Some(Kind::Responses) => {
                self.response(
                    direction,
                    header.stream,
                    &fields,
                    end,
                    began_ns,
                    first,
                    at,
                    out,
                );
            }
        }
    }
}

/// The sender of this direction resets a stream.
fn reset(direction: Direction, code: u32) -> Outcome {
    match direction {
        Direction::Read => Outcome::PeerReset(code),
        Direction::Write => Outcome::LocalReset(code),
    }
}
