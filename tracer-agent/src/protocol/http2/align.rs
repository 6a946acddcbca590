//! Finding frame borders in the middle of bytes, by strict tiling.
//!
//! In: bytes of one direction whose place in the frames is not known, with the places where bytes
//! were left out or lost. Out: where a chain of frames begins that leaves no reasonable doubt.
//!
//! A chain is believed when its frames tile without a flaw and their weights add up: a header block
//! that decodes weighs as much as two frames of fixed form, beginning where the session joined
//! counts as one (calls begin at borders more often than not). What is left out lies within DATA.

use super::super::hpack::{Decoder, Field};
use super::frame::{
    self, CONTINUATION, DATA, END_HEADERS, GOAWAY, HEADER, HEADERS, Header, PADDED, PREFACE,
    PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};

/// Weight of a chain that is believed.
const SURE: u32 = 3;
/// Weight that is enough when the chain tiles to the very end and nothing follows.
const SURE_AT_END: u32 = 2;
/// Longest header block that is looked into. Whoever wants the search to be slow lets many places
/// begin long ones; a real one that is longer says nothing, and what comes behind it does.
const MAX_WEIGHED: usize = 2048;
/// Last error code (RFC 9113, section 7).
const LAST_ERROR: u32 = 0xd;
/// Largest number of a setting in use; GREASE and experiments are higher.
const LAST_SETTING: u16 = 0x10;

/// Bytes that wait, with the places where some are missing.
#[derive(Debug, Default)]
pub(super) struct Window {
    bytes: Vec<u8>,
    /// Index of the byte behind, and length; `None`: lost.
    gaps: std::collections::VecDeque<(usize, Option<u64>)>,
}

/// What a search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A border, behind so many bytes.
    Border(usize),
    /// There may be one behind so many bytes; more is needed to tell.
    Perhaps(usize),
    /// None in so many bytes: all up to the end or to where bytes were lost.
    Nowhere(usize),
}

impl Window {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn push_skipped(&mut self, length: u64) {
        self.gaps.push_back((self.bytes.len(), Some(length)));
    }

    pub(super) fn push_lost(&mut self) {
        self.gaps.push_back((self.bytes.len(), None));
    }

    /// Bytes that wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes the first so many bytes out; what is missing in front of them must be taken before.
    pub(super) fn take(&mut self, length: usize) -> Vec<u8> {
        let length = length.min(self.bytes.len());
        let rest = self.bytes.split_off(length);
        for (index, _) in &mut self.gaps {
            *index = index.saturating_sub(length);
        }
        std::mem::replace(&mut self.bytes, rest)
    }

    /// Gives back what was taken.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.bytes.splice(..0, bytes.iter().copied());
        for (index, _) in &mut self.gaps {
            *index += bytes.len();
        }
    }

    /// Takes the first place out where bytes are missing.
    pub(super) fn take_gap(&mut self) {
        self.gaps.pop_front();
    }

    /// True if exactly these bytes come next.
    pub(super) fn starts_with(&self, bytes: &[u8]) -> bool {
        self.bytes.starts_with(bytes)
    }

    /// Takes so many bytes out, and what was left out before and right behind them.
    pub(super) fn discard(&mut self, length: usize) {
        while let Some((index, Some(_))) = self.gaps.front()
            && *index <= length
        {
            self.gaps.pop_front();
        }
        self.take(length);
    }

    /// Looks for a border. `joined`: the first byte is the first that the session saw; `ended`:
    /// no more will come.
    pub(super) fn search(&self, joined: bool, ended: bool) -> Found {
        let lost = self.gaps.iter().find(|(_, length)| length.is_none());
        let end = lost.map_or(self.bytes.len(), |(index, _)| *index);
        let ended = ended || lost.is_some();
        let mut decoder = Decoder::new(false);
        for start in 0..end {
            let chain = Chain {
                bytes: self.bytes.get(..end).unwrap_or_default(),
                gaps: &self.gaps,
                gap: self.gaps.partition_point(|(index, _)| *index <= start),
                at: start,
                weight: u32::from(joined && start == 0),
                block: None,
            };
            match chain.follow(&mut decoder) {
                Verdict::Sure => return Found::Border(start),
                Verdict::Tiled(weight) if ended && weight >= SURE_AT_END => {
                    return Found::Border(start);
                }
                Verdict::Tiled(_) | Verdict::Short if !ended => return Found::Perhaps(start),
                Verdict::Tiled(_) | Verdict::Short | Verdict::Not => {}
            }
        }
        Found::Nowhere(end)
    }
}

/// True if `bytes`, the first ones seen of a direction of a connection that was not tracked from
/// its start, look like HTTP/2 frames from their first byte on: for those who have to choose a
/// parser. More bytes may be needed to tell.
pub fn looks_like_http2(bytes: &[u8]) -> bool {
    let mut window = Window::default();
    window.push(bytes);
    window.search(true, true) == Found::Border(0)
}

/// What following a chain told.
enum Verdict {
    Sure,
    /// Frames up to exactly the end, of this weight.
    Tiled(u32),
    /// The end is within a frame.
    Short,
    Not,
}

/// A chain of frames being followed.
struct Chain<'a> {
    bytes: &'a [u8],
    gaps: &'a std::collections::VecDeque<(usize, Option<u64>)>,
    /// First gap not behind.
    gap: usize,
    at: usize,
    weight: u32,
    /// Stream of a header block that goes on.
    block: Option<u32>,
}

/// A step that could not be taken.
enum Stop {
    Short,
    Not,
}

impl<'a> Chain<'a> {
    fn follow(mut self, decoder: &mut Decoder) -> Verdict {
        if self
            .bytes
            .get(self.at..)
            .is_some_and(|bytes| bytes.starts_with(PREFACE))
        {
            // The caller's lane takes the preface itself.
            return Verdict::Sure;
        }
        loop {
            if self.weight >= SURE && self.block.is_none() {
                return Verdict::Sure;
            }
            if self.at == self.bytes.len() && self.gap_here().is_none() {
                return if self.block.is_none() {
                    Verdict::Tiled(self.weight)
                } else {
                    Verdict::Short
                };
            }
            match self.frame(decoder) {
                Ok(()) => {}
                Err(Stop::Short) if self.weight >= SURE => return Verdict::Sure,
                Err(Stop::Short) => return Verdict::Short,
                Err(Stop::Not) => return Verdict::Not,
            }
        }
    }

    fn gap_here(&self) -> Option<u64> {
        let (index, length) = self.gaps.get(self.gap)?;
        length.filter(|_| *index == self.at)
    }

    fn frame(&mut self, decoder: &mut Decoder) -> Result<(), Stop> {
        let bytes = self.take(HEADER)?;
        let bytes: &[u8; HEADER] = bytes.first_chunk().ok_or(Stop::Not)?;
        let header = Header::parse(bytes);
        let in_order = match self.block {
            Some(stream) => header.kind == CONTINUATION && header.stream == stream,
            None => header.kind != CONTINUATION,
        };
        if !in_order || !header.is_plausible(bytes) {
            return Err(Stop::Not);
        }
        if header.kind == DATA {
            return self.data(&header);
        }
        let payload = self.take(usize::try_from(header.length).map_err(|_| Stop::Not)?)?;
        self.weight += weigh(&header, payload, decoder).ok_or(Stop::Not)?;
        self.block = matches!(header.kind, HEADERS | frame::PUSH_PROMISE | CONTINUATION)
            .then_some(header.stream)
            .filter(|_| !header.has(END_HEADERS));
        Ok(())
    }

    /// Bytes that must all be there.
    fn take(&mut self, length: usize) -> Result<&'a [u8], Stop> {
        if let Some((index, Some(_))) = self.gaps.get(self.gap)
            && *index < self.at + length
        {
            return Err(Stop::Not);
        }
        let taken = self
            .bytes
            .get(self.at..self.at + length)
            .ok_or(Stop::Short)?;
        self.at += length;
        Ok(taken)
    }

    /// Steps over a payload of which bytes may be left out.
    fn data(&mut self, header: &Header) -> Result<(), Stop> {
        let mut left = u64::from(header.length);
        // Frames larger than the default are seldom; to be believed they must have been recognised
        // by whoever left their payload out.
        if header.length > frame::DEFAULT_MAX && self.gap_here().is_none() {
            return Err(if self.at == self.bytes.len() {
                Stop::Short
            } else {
                Stop::Not
            });
        }
        if header.length > 0 {
            self.weight += 1;
        }
        while left > 0 {
            if let Some(length) = self.gap_here() {
                left = left.checked_sub(length).ok_or(Stop::Not)?;
                self.gap += 1;
                continue;
            }
            let to = self
                .gaps
                .get(self.gap)
                .map_or(self.bytes.len(), |(index, _)| *index);
            let there = to.min(self.bytes.len()).saturating_sub(self.at);
            if there == 0 {
                return Err(Stop::Short);
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(there);
            self.at += step;
            left -= step as u64;
        }
        Ok(())
    }
}

/// How much a frame says for the chain; `None` if no careful endpoint sends it.
fn weigh(header: &Header, payload: &[u8], decoder: &mut Decoder) -> Option<u32> {
    let word = |at: usize| payload.get(at..).and_then(frame::word);
    match header.kind {
        HEADERS => {
            if header.has(frame::PRIORITIZED) {
                let at = usize::from(header.has(PADDED));
                word(at).filter(|dependency| dependency & 0x7fff_ffff != header.stream)?;
            }
            if header.has(PADDED) {
                let padding = usize::from(*payload.first()?);
                let zeros = payload.get(payload.len().checked_sub(padding)?..)?;
                zeros.iter().all(|byte| *byte == 0).then_some(())?;
            }
            let fragment = header.fragment(payload)?;
            if !header.has(END_HEADERS) || fragment.len() > MAX_WEIGHED {
                return Some(0);
            }
            is_header_block(fragment, decoder).then_some(2)
        }
        PRIORITY => {
            word(0).filter(|dependency| dependency & 0x7fff_ffff != header.stream)?;
            Some(1)
        }
        RST_STREAM => word(0).filter(|code| *code <= LAST_ERROR).map(|_| 1),
        SETTINGS => payload
            .chunks(6)
            .all(|setting| {
                setting
                    .first_chunk()
                    .is_some_and(|id| (1..=LAST_SETTING).contains(&u16::from_be_bytes(*id)))
            })
            .then_some(1),
        GOAWAY => {
            word(0).filter(|stream| stream >> 31 == 0)?;
            word(4).filter(|code| *code <= LAST_ERROR).map(|_| 1)
        }
        WINDOW_UPDATE => word(0)
            .filter(|increment| (1..1 << 31).contains(increment))
            .map(|_| 1),
        // PING; and PUSH_PROMISE and CONTINUATION, which are not looked into.
        frame::PING => Some(1),
        _ => Some(0),
    }
}

/// True if these bytes are a header block that a careful endpoint sends.
fn is_header_block(block: &[u8], decoder: &mut Decoder) -> bool {
    decoder.forget();
    let mut regular = false;
    let mut fields = 0u32;
    let mut good = true;
    let result = decoder.decode(block, &mut |field: Field<'_>| {
        fields += 1;
        if let Some(name) = field.name {
            match name {
                b":method" | b":path" | b":scheme" | b":authority" | b":status" | b":protocol" => {
                    good &= !regular;
                }
                name => {
                    regular = true;
                    good &= is_name(name);
                }
            }
        }
        good &= field
            .value
            .is_none_or(|value| value.iter().all(|byte| *byte >= b' ' || *byte == b'\t'));
    });
    result.is_ok() && good && fields > 0
}

/// A field name: a token in lower case (RFC 9113, section 8.2.1).
fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.iter().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(byte)
        })
}
