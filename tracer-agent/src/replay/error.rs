//! What can be wrong with a capture file, in one line that says what to do.

use std::path::PathBuf;

/// Why a capture could not be read (to its end). Packets before the failure were processed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened.
    #[error("cannot open it; check the path and its permissions")]
    Open {
        /// As given.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Reading failed on the way.
    #[error(
        "cannot read the capture after {offset} bytes; check that it is a regular file on a healthy disk"
    )]
    Read {
        /// Bytes of the capture used so far.
        offset: u64,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file has no bytes.
    #[error("the capture is empty; record one with `tcpdump -w FILE tcp`")]
    Empty,
    /// The file ends inside its own header.
    #[error("the capture ends inside its file header ({bytes} bytes); record it again")]
    HeaderTruncated {
        /// Bytes there were.
        bytes: usize,
    },
    /// The file is compressed.
    #[error(
        "the capture is compressed with {format}; decompress it first, e.g. `{command} FILE | tracer-agent replay -`"
    )]
    Compressed {
        /// Name of the compression.
        format: &'static str,
        /// Command that decompresses to standard output.
        command: &'static str,
    },
    /// The first bytes are those of no capture format.
    #[error(
        "not a pcap or pcapng file (it begins with {magic}); record one with `tcpdump -w FILE tcp`"
    )]
    NotACapture {
        /// First four bytes in hex.
        magic: String,
    },
    /// No packet could be looked at because of the link type.
    #[error(
        "link type {0} is not supported; capture on an Ethernet, loopback, `any` or raw IP interface"
    )]
    LinkType(i32),
    /// A record makes no sense; what follows cannot be found.
    #[error(
        "the capture is damaged at byte {offset}; everything before it was replayed, repair the rest with `editcap`"
    )]
    Corrupt {
        /// Where the damaged record begins.
        offset: u64,
    },
}
