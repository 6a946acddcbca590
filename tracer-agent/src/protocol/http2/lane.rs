//! One direction: where in its frames it is.
//!
//! ```text
//! Start ─► Preface ─► Header ◄─► Payload        Header, Payload ─► Unaligned (a loss, no frame)
//!   └───────────────────▲ └──────────────────────────────────────────┘ (see `align`)
//! ```

use super::super::At;
use super::super::hpack::Decoder;
use super::align::Window;
use super::frame::{self, HEADER, Header};

/// Bytes of a header block, or of a frame that is read as a whole, that are kept.
const MAX_BLOCK: usize = 64 * 1024;
/// Capacity that buffers keep between frames.
const KEPT_BUFFER: usize = 1024;

/// Where in its frames a direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Before its first byte.
    Start,
    /// So many bytes of the client's preface seen.
    Preface(usize),
    /// So many bytes of a frame header seen.
    Header(usize),
    Payload,
    /// Not known; at the join (true) or after a loss.
    Unaligned(bool),
    /// Nothing more can come.
    Ended,
}

/// A header block that goes on in CONTINUATION frames.
#[derive(Debug)]
pub(super) struct Block {
    pub header: Header,
    pub first: At,
    bytes: Vec<u8>,
    /// Some of it is missing.
    pub broken: bool,
}

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Lane {
    pub state: State,
    header: [u8; HEADER],
    /// Header of the frame whose payload is being received.
    pub frame: Header,
    /// Bytes of that payload still to come.
    pub left: u32,
    /// When the frame's first byte came.
    pub first: At,
    payload: Vec<u8>,
    /// Some of the payload is missing.
    pub broken: bool,
    pub block: Option<Block>,
    pub hpack: Decoder,
    /// Largest payload that the peer may have allowed.
    pub max_frame: u32,
    /// Every frame since the connection began was seen.
    pub whole: bool,
    /// Frames were found at some time.
    pub found: bool,
    /// Bytes given up since a border was last known.
    pub fruitless: u64,
    /// Bytes that wait: for a border to be found, or for the other direction.
    pub window: Window,
}

impl Lane {
    pub(super) fn new(from_start: bool) -> Self {
        Lane {
            state: if from_start {
                State::Start
            } else {
                State::Unaligned(true)
            },
            header: [0; HEADER],
            frame: Header::default(),
            left: 0,
            first: At::default(),
            payload: Vec::new(),
            broken: false,
            block: None,
            hpack: Decoder::new(from_start),
            max_frame: if from_start {
                frame::DEFAULT_MAX
            } else {
                frame::MAX
            },
            whole: from_start,
            found: false,
            fruitless: 0,
            window: Window::default(),
        }
    }

    pub(super) fn is_aligned(&self) -> bool {
        !matches!(self.state, State::Unaligned(_))
    }

    /// Takes bytes of a frame header; the number taken, and the header once it is whole.
    pub(super) fn header(&mut self, have: usize, bytes: &[u8], at: &At) -> (usize, Option<Header>) {
        if have == 0 {
            self.first = *at;
        }
        let Some(missing) = self.header.get_mut(have..) else {
            return (0, None);
        };
        let take = missing.len().min(bytes.len());
        for (to, from) in missing.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.state = State::Header(have + take);
        let whole = have + take == HEADER;
        (take, whole.then(|| Header::parse(&self.header)))
    }

    /// True if a frame with this header may come here.
    pub(super) fn accepts(&self, header: &Header) -> bool {
        let continues = header.kind == frame::CONTINUATION;
        let in_order = match &self.block {
            Some(block) => continues && block.header.stream == header.stream,
            None => !continues,
        };
        in_order && header.is_valid(self.max_frame)
    }

    /// The payload of a frame begins.
    pub(super) fn begin(&mut self, header: Header) {
        self.state = State::Payload;
        self.frame = header;
        self.left = header.length;
        self.broken = false;
        self.found = true;
    }

    /// Keeps a piece of the payload.
    pub(super) fn keep(&mut self, piece: &[u8]) {
        append(&mut self.payload, piece, &mut self.broken);
    }

    /// The whole payload; `last` is its last piece, not yet kept.
    pub(super) fn take_payload(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.payload)
    }

    /// Nothing was kept of the payload yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.payload.is_empty()
    }

    /// Gives the buffer of [`Lane::take_payload`] back.
    pub(super) fn put_payload(&mut self, mut payload: Vec<u8>) {
        payload.clear();
        payload.shrink_to(KEPT_BUFFER);
        self.payload = payload;
    }

    /// A header block begins that goes on in the next frame.
    pub(super) fn open_block(&mut self, fragment: &[u8], broken: bool) {
        let mut block = Block {
            header: self.frame,
            first: self.first,
            bytes: Vec::new(),
            broken,
        };
        block.append(fragment, broken);
        self.block = Some(block);
    }

    /// The border of frames is not known any more.
    pub(super) fn lose(&mut self) {
        self.state = State::Unaligned(false);
        self.payload = Vec::new();
        self.block = None;
        self.left = 0;
        self.hpack.forget();
        self.whole = false;
    }

    /// A border was found.
    pub(super) fn align(&mut self) {
        self.state = State::Header(0);
        self.fruitless = 0;
    }
}

impl Block {
    pub(super) fn append(&mut self, fragment: &[u8], broken: bool) {
        self.broken |= broken;
        // What comes behind a part that is missing cannot be decoded.
        if !self.broken {
            append(&mut self.bytes, fragment, &mut self.broken);
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn append(buffer: &mut Vec<u8>, piece: &[u8], broken: &mut bool) {
    let room = MAX_BLOCK.saturating_sub(buffer.len());
    *broken |= piece.len() > room;
    buffer.extend_from_slice(piece.get(..room).unwrap_or(piece));
}
