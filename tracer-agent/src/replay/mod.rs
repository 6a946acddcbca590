//! The pipeline fed from a capture file instead of the kernel: packets in, exchanges out. No
//! privileges, no sockets, and memory that does not grow with the file.
//!
//! ```text
//! capture -> packet -> driver, table -> tcp -> flow -> a Handler (exchanges) -> the caller's sink
//! records    headers   which            order  which end
//!                      connection              serves
//! ```
//!
//! A capture is taken from the wire and knows no processes. Each exchange is therefore told once,
//! as the *server's end* saw it: requests are [`Direction::Read`](crate::protocol::Direction),
//! responses are written, the role is [`Role::Server`](crate::protocol::Role), the process stands
//! for the server's address and port, and `tgid` and `tid` are 0. Times are capture times in
//! nanoseconds since the epoch, not `CLOCK_BOOTTIME`.
//!
//! Which end serves is told by the first HTTP/1 message or HTTP/2 preface: who receives a request or
//! sends a response. A connection whose first bytes are no HTTP is ignored, at the cost of one look-up
//! per packet. One that began before the capture is joined at its next message, or run of HTTP/2
//! frames, that begins with a packet; of HTTP/2 the first header block that says so tells who serves.
//!
//! Cannot see: IP fragments and tunnels (counted), TLS contents (ignored connections), unix sockets.
//! Where address translation shows one connection under two pairs of addresses it is told twice.

pub mod capture;
mod driver;
mod error;
mod exchanges;
mod flow;
#[doc(hidden)]
pub mod fuzz;
pub mod packet;
pub mod sniff;
mod stats;
mod table;
pub mod tcp;
#[doc(hidden)]
pub mod testdata;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use capture::Ending;
pub use driver::{Handler, Limits, Owner, Replay, Speaks};
pub use error::Error;
pub use exchanges::Exchanges;
pub use stats::{ConnectionCounts, Stats};

/// Replays a capture file, or standard input if the path is `-`. What was read before an error was
/// replayed; call [`Replay::finish`] in either case.
pub fn file<H: Handler>(path: &Path, replay: &mut Replay<H>) -> Result<(), Error> {
    if path.as_os_str() == "-" {
        return stream(std::io::stdin().lock(), replay);
    }
    let file = File::open(path).map_err(|source| Error::Open {
        path: path.to_owned(),
        source,
    })?;
    stream(file, replay)
}

/// Replays a capture from any source of bytes; reads are large, it needs no buffering.
pub fn stream<R: Read, H: Handler>(input: R, replay: &mut Replay<H>) -> Result<(), Error> {
    let mut unsupported = None;
    let mut any_supported = false;
    let ending = capture::read(input, |packet| {
        match packet.link {
            capture::Link::Unsupported(number) => unsupported = Some(number),
            _ => any_supported = true,
        }
        replay.packet(&packet);
    })?;
    replay.file_ended(ending);
    match unsupported {
        Some(number) if !any_supported => Err(Error::LinkType(number)),
        _ => Ok(()),
    }
}
