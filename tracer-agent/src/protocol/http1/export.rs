//! Bodies of requests that export spans: kept, within a bound, for whoever wants to know what they name.
//!
//! In: pieces of the body. Out: an [`ExportBody`] when it ended. Other bodies are not kept.

use super::super::{Direction, ExportBody};
use super::Output;
use super::head::Kind;
use super::session::Session;

/// Bytes kept of one body; the kernel side ships no more either.
const MAX_BODY: usize = tracer_common::limits::UNFRAMED_BUDGET as usize;

/// A body that is being sent.
#[derive(Debug)]
pub(super) struct Export {
    tgid: u32,
    bytes: Vec<u8>,
    chunked: bool,
    whole: bool,
}

impl Export {
    pub(super) fn new(tgid: u32, chunked: bool) -> Self {
        Export {
            tgid,
            bytes: Vec::new(),
            chunked,
            whole: true,
        }
    }
}

impl Session {
    /// A piece of a body: its bytes, or `None` if they were left out or lost.
    pub(super) fn export_bytes(
        &mut self,
        direction: Direction,
        bytes: Option<&[u8]>,
        ended: bool,
        out: &mut Output,
    ) {
        if self.export.is_none() || self.kind(direction) != Some(Kind::Request) {
            return;
        }
        let Some(mut export) = self.export.take() else {
            return;
        };
        match bytes {
            Some(bytes) if export.whole && export.bytes.len() + bytes.len() <= MAX_BODY => {
                export.bytes.extend_from_slice(bytes);
            }
            // What is behind a gap says nothing.
            _ => export.whole = false,
        }
        if !ended {
            self.export = Some(export);
            return;
        }
        let Export {
            tgid,
            bytes,
            chunked,
            whole,
        } = *export;
        out.exports.push(ExportBody {
            tgid,
            bytes,
            chunked,
            whole,
        });
    }
}
