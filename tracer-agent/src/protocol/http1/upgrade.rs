//! The upgrade to HTTP/2 (`Upgrade: h2c`, RFC 7540 section 3.2): the request that asked for it is
//! answered on stream 1.
//!
//! In: the response 101 that agrees. Out: [`Upgraded`], once the request was received to its end:
//! its exchange, still without its real response, and what came behind it, for an HTTP/2 session.

use super::super::{At, Direction, Exchange, Input};
use super::session::{Phase, Session};
use super::{Output, reason};

/// Bytes of the response's direction that wait for the end of the request.
const MAX_BYTES: usize = 64 * 1024;
/// Pieces that wait.
const MAX_PIECES: usize = 64;

/// A connection that speaks HTTP/2 from here on.
#[derive(Debug)]
pub struct Upgraded {
    /// The request that asked; its response is the 101.
    pub exchange: Exchange,
    /// What came behind the request and behind the 101, in order.
    pub rest: Vec<(Direction, Piece, At)>,
}

/// One piece of a direction that was kept.
#[derive(Debug)]
pub enum Piece {
    /// The bytes.
    Bytes(Vec<u8>),
    /// So many were left out on purpose.
    Skipped(u64),
    /// So many were lost.
    Lost(u64),
}

impl Piece {
    /// As it came.
    pub fn input(&self) -> Input<'_> {
        match self {
            Piece::Bytes(bytes) => Input::Bytes(bytes),
            Piece::Skipped(length) => Input::Skipped(*length),
            Piece::Lost(length) => Input::Lost(*length),
        }
    }
}

/// An upgrade that was agreed to.
#[derive(Debug, Default)]
pub(super) struct Upgrade {
    /// `None` while the request is still being received.
    pub exchange: Option<Exchange>,
    rest: Vec<(Direction, Piece, At)>,
    bytes: usize,
}

impl Session {
    /// The upgrade to HTTP/2, if one has happened: nothing more may be given to this session then
    /// but the end of the connection.
    pub fn take_upgraded(&mut self) -> Option<Upgraded> {
        let upgrade = self.upgrade.as_mut()?;
        let exchange = upgrade.exchange.take()?;
        let rest = std::mem::take(&mut upgrade.rest);
        self.upgrade = None;
        Some(Upgraded { exchange, rest })
    }

    /// Takes what comes behind an upgrade, to whatever it was.
    pub(super) fn behind_upgrade(
        &mut self,
        direction: Direction,
        input: Input<'_>,
        at: &At,
        out: &mut Output,
    ) {
        let (length, piece) = match input {
            Input::Bytes(bytes) => (bytes.len() as u64, Piece::Bytes(bytes.to_vec())),
            Input::Skipped(length) => (length, Piece::Skipped(length)),
            Input::Lost(length) => (0, Piece::Lost(length)),
        };
        let Some(upgrade) = &mut self.upgrade else {
            out.unparsed(length);
            return;
        };
        if let Piece::Bytes(bytes) = &piece {
            upgrade.bytes = upgrade.bytes.saturating_add(bytes.len());
        }
        upgrade.rest.push((direction, piece, *at));
        let waiting = upgrade.exchange.is_none();
        if waiting && (upgrade.bytes > MAX_BYTES || upgrade.rest.len() > MAX_PIECES) {
            self.give_up_upgrade(out);
        }
    }

    /// Whether this direction still carries the request that is upgraded.
    pub(super) fn is_upgrading(&self, direction: Direction) -> bool {
        self.phase == Phase::Upgrading && self.is_within_request(direction)
    }

    /// More has to wait for the request's end than is kept.
    fn give_up_upgrade(&mut self, out: &mut Output) {
        let Some(upgrade) = self.upgrade.take() else {
            return;
        };
        for (_, piece, _) in upgrade.rest {
            match piece {
                Piece::Bytes(bytes) => out.unparsed(bytes.len() as u64),
                Piece::Skipped(length) => out.unparsed(length),
                Piece::Lost(_) => {}
            }
        }
        self.phase = Phase::Upgraded;
        self.abandon_all(reason::UPGRADED, out);
    }
}
