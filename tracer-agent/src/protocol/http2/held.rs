//! Pieces that wait until the frame borders of a direction are found.
//!
//! In: pieces of both directions, in order. Out: the same. While one direction looks for a border
//! the other waits behind it, so that a response is not seen before its request. The bytes are in
//! the directions' windows; here is only their order.

use std::collections::VecDeque;

use super::super::{At, Direction, Input};

/// Bytes that may wait.
const MAX_BYTES: u64 = 128 * 1024;
/// Pieces that may wait.
const MAX_PIECES: usize = 512;

/// A piece; its bytes are next in the window of its direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub direction: Direction,
    pub at: At,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Bytes(usize),
    Skipped(u64),
    Lost(u64),
}

/// The pieces that wait.
#[derive(Debug, Default)]
pub(super) struct Held {
    pieces: VecDeque<Piece>,
    bytes: u64,
}

impl What {
    pub(super) fn of(input: Input<'_>) -> What {
        match input {
            Input::Bytes(bytes) => What::Bytes(bytes.len()),
            Input::Skipped(length) => What::Skipped(length),
            Input::Lost(length) => What::Lost(length),
        }
    }

    fn bytes(self) -> u64 {
        match self {
            What::Bytes(length) => length as u64,
            What::Skipped(_) | What::Lost(_) => 0,
        }
    }
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn is_over_budget(&self) -> bool {
        self.bytes > MAX_BYTES || self.pieces.len() > MAX_PIECES
    }

    pub(super) fn front(&self) -> Option<&Piece> {
        self.pieces.front()
    }

    pub(super) fn push(&mut self, piece: Piece) {
        self.bytes += piece.what.bytes();
        self.pieces.push_back(piece);
    }

    /// What is left of a piece that was taken before.
    pub(super) fn push_front(&mut self, piece: Piece) {
        self.bytes += piece.what.bytes();
        self.pieces.push_front(piece);
    }

    pub(super) fn pop(&mut self) -> Option<Piece> {
        let piece = self.pieces.pop_front()?;
        self.bytes = self.bytes.saturating_sub(piece.what.bytes());
        Some(piece)
    }

    /// Takes so many bytes of a direction out, and what was left out before and right behind them.
    /// Returns the length of what was left out.
    pub(super) fn discard(&mut self, direction: Direction, bytes: usize) -> u64 {
        let mut left = bytes;
        let mut skipped = 0;
        let mut done = false;
        self.pieces.retain_mut(|piece| {
            if done || piece.direction != direction {
                return true;
            }
            match &mut piece.what {
                What::Bytes(length) => {
                    let take = left.min(*length);
                    left -= take;
                    *length -= take;
                    done = *length > 0;
                    done
                }
                What::Skipped(length) => {
                    skipped += *length;
                    false
                }
                What::Lost(_) => {
                    done = true;
                    true
                }
            }
        });
        self.bytes = self.bytes.saturating_sub((bytes - left) as u64);
        skipped
    }
}
