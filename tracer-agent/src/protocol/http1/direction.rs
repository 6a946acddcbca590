//! One direction of a connection: what its next byte belongs to.
//!
//! In: bytes at a message start. Out: whole heads. A head that comes in one piece is read in place;
//! only parts of heads are kept.
//!
//! ```text
//!   Start --head--> Body --end--> Start          Seeking --turn--> Start
//!     \--garbage, loss--> Seeking                Waiting --refused--> Start | Seeking
//! ```

use super::super::At;
use super::body::Body;
use super::head::{self, Head, Kind, MAX_HEAD, Scan, Scanner};

/// What the next byte of a direction belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A message may start here, or its head has begun.
    Start,
    Body(Body),
    /// Where the next message starts is unknown; looked for after the peer's turn.
    Seeking,
    /// A CONNECT waits for its answer: what follows is a tunnel if that is positive.
    Waiting {
        received: bool,
    },
    /// The direction has ended.
    Ended,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Lane {
    pub state: State,
    /// No byte since the last message is unaccounted for.
    pub synced: bool,
    /// When the last byte of a message was seen.
    pub last_ns: u64,
    /// Bytes of the direction, this piece included.
    pub position: u64,
    /// Where the head that was found last began.
    pub head_position: u64,
    partial: Vec<u8>,
    scanner: Scanner,
    first: At,
}

/// What became of bytes at a message start.
#[derive(Debug)]
pub(super) enum Found {
    /// A head, the piece with its first byte, and the bytes of this piece that it took.
    Head { head: Head, first: At, used: usize },
    /// All were taken; the head is not whole yet.
    Partial,
    /// All bytes of this piece and those kept before, so many, are not a head.
    Garbage { unparsed: u64 },
    /// They begin one, but it is too long.
    TooLong { unparsed: u64 },
}

impl Lane {
    pub(super) fn new(synced: bool) -> Self {
        Lane {
            state: State::Start,
            synced,
            last_ns: 0,
            position: 0,
            head_position: 0,
            partial: Vec::new(),
            scanner: Scanner::default(),
            first: At::default(),
        }
    }

    /// Looks for a head in bytes at a message start; `kind` if it is known what this direction carries.
    pub(super) fn find(&mut self, kind: Option<Kind>, bytes: &[u8], at: &At) -> Found {
        let mut blank = 0;
        if self.partial.is_empty() {
            // Blank lines before a message are to be ignored (RFC 9112 section 2.2).
            blank = bytes
                .iter()
                .take_while(|byte| matches!(byte, b'\r' | b'\n'))
                .count();
            self.first = *at;
            // Of the first byte behind them, which does not depend on how the bytes came.
            let behind = bytes.len().saturating_sub(blank) as u64;
            self.head_position = self.position.saturating_sub(behind);
        }
        let bytes = bytes.get(blank..).unwrap_or_default();
        if bytes.is_empty() {
            return Found::Partial;
        }
        if self.partial.is_empty() {
            if let Some((head, used)) =
                kind_of(kind, bytes).and_then(|kind| head::parse(kind, bytes))
            {
                if used > MAX_HEAD {
                    return Found::TooLong {
                        unparsed: bytes.len() as u64,
                    };
                }
                return Found::Head {
                    head,
                    first: self.first,
                    used: blank + used,
                };
            }
            self.scanner = Scanner::default();
        }
        let kept = self.partial.len();
        let scan = self.scanner.feed(kind, bytes);
        let used = if let Scan::End(used) = scan {
            used
        } else {
            bytes.len()
        };
        match scan {
            Scan::Bad => Found::Garbage {
                unparsed: self.forget() + bytes.len() as u64,
            },
            Scan::More | Scan::End(_) if kept + used > MAX_HEAD => Found::TooLong {
                unparsed: self.forget() + bytes.len() as u64,
            },
            Scan::More => {
                self.partial.extend_from_slice(bytes);
                Found::Partial
            }
            Scan::End(_) => {
                self.partial
                    .extend_from_slice(bytes.get(..used).unwrap_or_default());
                let head = head::parse_whole(self.scanner.kind(kind), &self.partial);
                self.partial.clear();
                if self.partial.capacity() > 4096 {
                    self.partial = Vec::new();
                }
                match head {
                    Some(head) => Found::Head {
                        head,
                        first: self.first,
                        used: blank + used,
                    },
                    None => Found::Garbage {
                        unparsed: (kept + bytes.len()) as u64,
                    },
                }
            }
        }
    }

    /// Gives up a head that has begun; the number of its bytes.
    pub(super) fn forget(&mut self) -> u64 {
        std::mem::take(&mut self.partial).len() as u64
    }

    /// The body that is being received.
    pub(super) fn body(&self) -> Option<Body> {
        match self.state {
            State::Body(body) => Some(body),
            _ => None,
        }
    }
}

/// Which kind of message starts here, if the bytes are enough to tell.
fn kind_of(known: Option<Kind>, bytes: &[u8]) -> Option<Kind> {
    if known.is_some() {
        return known;
    }
    bytes.get(..5).map(|start| {
        if start == b"HTTP/" {
            Kind::Response
        } else {
            Kind::Request
        }
    })
}
