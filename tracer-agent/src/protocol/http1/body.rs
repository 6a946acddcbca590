//! Bodies of messages: where they end, and how many bytes they have.
//!
//! In: pieces of a body, as bytes or as ranges that were left out. Out: how much of a piece belongs
//! to the body and whether it ended. Content is counted without its framing (RFC 9112 section 7.1).

/// A body that is being received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunk),
    /// Ends with the direction.
    UntilClose,
    /// Where it ends cannot be known any more; until the direction's next turn.
    Unknown,
}

/// Place within a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// In the hexadecimal size.
    Size { value: u64, digits: u8 },
    /// Behind the size, up to the line feed.
    Extension { size: u64 },
    /// So many bytes of content are left.
    Data(u64),
    /// Between the content and the line feed behind it; whether the carriage return was there.
    DataEnd { cr: bool },
    /// In the trailer section; whether the line has a byte yet.
    Trailer { empty: bool },
}

impl Chunk {
    /// Before the first chunk.
    pub(super) const START: Chunk = Chunk::Size {
        value: 0,
        digits: 0,
    };
}

/// What a piece did to a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Bytes of the piece that belong to the body, framing included.
    pub used: u64,
    /// Those of them that are content.
    pub content: u64,
    /// The body ended with them.
    pub ended: bool,
}

impl Body {
    /// Takes bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Step {
        match self {
            Body::Chunked(chunk) => match chunk.bytes(bytes) {
                Some(step) => step,
                None => {
                    *self = Body::Unknown;
                    self.range(bytes.len() as u64)
                }
            },
            Body::Length(_) | Body::UntilClose | Body::Unknown => self.range(bytes.len() as u64),
        }
    }

    /// Takes a range of which only the length is known. In a chunked body a range that reaches
    /// beyond the current chunk and its line end hides where the next ones start.
    pub(super) fn range(&mut self, length: u64) -> Step {
        match self {
            Body::Length(left) => {
                let used = length.min(*left);
                *left -= used;
                Step {
                    used,
                    content: used,
                    ended: *left == 0,
                }
            }
            Body::Chunked(chunk) => {
                let content = chunk.range(length);
                if content.is_none() {
                    *self = Body::Unknown;
                }
                Step {
                    used: length,
                    content: content.unwrap_or_default(),
                    ended: false,
                }
            }
            Body::UntilClose | Body::Unknown => Step {
                used: length,
                content: length,
                ended: false,
            },
        }
    }

    /// Whether a range of this length is known to lie within the body and to leave its end known.
    pub(super) fn contains(&self, length: u64) -> bool {
        match *self {
            Body::Length(left) => length <= left,
            Body::Chunked(mut chunk) => chunk.range(length).is_some(),
            Body::UntilClose => true,
            Body::Unknown => false,
        }
    }
}

impl Chunk {
    /// Takes a range of content and of the line end behind it, which the kernel side leaves out with
    /// the content; that line end is taken to be CR LF. Returns the content in it, `None` if the
    /// range reaches further.
    fn range(&mut self, length: u64) -> Option<u64> {
        let (left, line_end) = match *self {
            Chunk::Data(left) => (left, 2),
            Chunk::DataEnd { cr: false } => (0, 2),
            Chunk::DataEnd { cr: true } => (0, 1),
            _ => return None,
        };
        let content = length.min(left);
        *self = match (left - content, length - content) {
            (0, n) if n == line_end => Chunk::START,
            (0, 0) if line_end == 2 => Chunk::DataEnd { cr: false },
            (0, 1) => Chunk::DataEnd { cr: true },
            (left, 0) if left > 0 => Chunk::Data(left),
            _ => return None,
        };
        Some(content)
    }

    /// `None` when the bytes are no chunked body.
    fn bytes(&mut self, bytes: &[u8]) -> Option<Step> {
        let mut used = 0;
        let mut content = 0;
        while let Some(&byte) = bytes.get(used) {
            if let Chunk::Data(left) = self {
                let taken = (bytes.len() - used).min(usize::try_from(*left).unwrap_or(usize::MAX));
                used += taken;
                content += taken as u64;
                *left -= taken as u64;
                if *left == 0 {
                    *self = Chunk::DataEnd { cr: false };
                }
                continue;
            }
            used += 1;
            if self.framing(byte)? {
                return Some(Step {
                    used: used as u64,
                    content,
                    ended: true,
                });
            }
        }
        Some(Step {
            used: used as u64,
            content,
            ended: false,
        })
    }

    /// Takes one byte of framing; true when the body ended. Bare line feeds are taken for line ends.
    fn framing(&mut self, byte: u8) -> Option<bool> {
        *self = match (*self, byte) {
            (Chunk::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = u64::from(char::from(byte).to_digit(16)?);
                let value = value.checked_mul(16)?.checked_add(digit)?;
                Chunk::Size {
                    value,
                    digits: digits.saturating_add(1),
                }
            }
            (Chunk::Size { digits: 0, .. }, _) => return None,
            (Chunk::Size { value, .. } | Chunk::Extension { size: value }, b'\n') => match value {
                0 => Chunk::Trailer { empty: true },
                size => Chunk::Data(size),
            },
            (Chunk::Size { value, .. }, b';' | b' ' | b'\t' | b'\r') => {
                Chunk::Extension { size: value }
            }
            (Chunk::Size { .. }, _) => return None,
            (Chunk::Extension { size }, _) => Chunk::Extension { size },
            (Chunk::DataEnd { .. }, b'\r') => Chunk::DataEnd { cr: true },
            (Chunk::DataEnd { .. }, b'\n') => Chunk::START,
            (Chunk::DataEnd { .. }, _) => return None,
            (Chunk::Trailer { empty: true }, b'\n') => return Some(true),
            (Chunk::Trailer { empty: false }, b'\n') => Chunk::Trailer { empty: true },
            (Chunk::Trailer { empty }, b'\r') => Chunk::Trailer { empty },
            (Chunk::Trailer { .. }, _) => Chunk::Trailer { empty: false },
            // Content is taken in whole runs, not byte by byte.
            (Chunk::Data(left), _) => Chunk::Data(left),
        };
        Some(false)
    }
}
