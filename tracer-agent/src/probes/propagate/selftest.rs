//! Is this kernel's way of changing messages before they leave sound, and do TCP options arrive? Asked of pairs of own
//! sockets before any other one is touched.
//!
//! In: a way to have a socket's messages looked at by the self-test's program, which puts a line, or two, into
//! those that ask for it. Out: what is wrong, if something is. Takes some milliseconds; on a faulty
//! kernel [`PATIENCE`].

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tracer_common::context::HEADER_BYTES;

use crate::sys;

/// How long bytes may take from one of the agent's own sockets to the other.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is wrong with the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// What arrives is not what was sent.
    #[error("a message of {size} bytes does not arrive as it was sent")]
    Bytes {
        /// Its size.
        size: usize,
    },
    /// It does not arrive at all.
    #[error("a message of {size} bytes does not arrive")]
    Stall {
        /// Its size.
        size: usize,
    },
    /// Kernel commit 929e30f93125 (6.6.128, 6.12.75, 6.18.14, 6.19).
    #[error(
        "a socket whose messages are looked at says that it has no bytes to read while it has \
         (FIONREAD), for which some programs, nginx and Java's among them, wait"
    )]
    Readable,
    /// Seen on the same kernels.
    #[error("a program that waits for a socket whose messages are looked at is not woken")]
    Wake,
    /// What a segment is to carry does not come with it.
    #[error("a TCP option does not arrive")]
    Option,
}

impl Fault {
    /// What is sent arrives right: only programs that ask the socket may notice.
    pub fn leaves_bytes_right(&self) -> bool {
        matches!(self, Fault::Readable)
    }
}

/// Sizes of messages of which the first carries an option, with it in one segment and in many.
const OPTION_SIZES: [usize; 4] = [100, 1460, 20_000, 300_000];

/// Where lines go, two at a time: within a piece, and across pieces, of 32 KiB mostly.
const IN_PIECES: [(usize, usize); 3] = [(16, 500), (100, 33_000), (32_700, 32_800)];

/// The same for TCP options. `expect` is told the port to which connections get one; `arrived` says how many came.
pub fn options(
    mut expect: impl FnMut(u16) -> io::Result<()>,
    mut arrived: impl FnMut() -> u64,
) -> io::Result<Option<Fault>> {
    let result = try_options(&mut expect, &mut arrived);
    expect(0)?;
    match result {
        Ok(()) => Ok(None),
        Err(Failure::Fault(fault)) => Ok(Some(fault)),
        Err(Failure::Io(error)) => Err(error),
    }
}

fn try_options(
    expect: &mut impl FnMut(u16) -> io::Result<()>,
    arrived: &mut impl FnMut() -> u64,
) -> Result<(), Failure> {
    let listener = listen()?;
    expect(listener.local_addr()?.port())?;
    for size in OPTION_SIZES {
        let before = arrived();
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        client.set_nonblocking(true)?;
        for size in [size, 1000] {
            let message = message(size, 0, 0);
            pass(&mut client, &mut server, &message, &message, size)?;
        }
        if arrived() == before {
            return Err(Failure::Fault(Fault::Option));
        }
    }
    Ok(())
}

fn listen() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| TcpListener::bind((Ipv6Addr::LOCALHOST, 0)))
}

/// Runs all tests; the first fault counts.
pub fn run(enter: impl FnMut(&TcpStream) -> io::Result<()>) -> io::Result<Option<Fault>> {
    match try_run(enter) {
        Ok(()) => Ok(None),
        Err(Failure::Fault(fault)) => Ok(Some(fault)),
        Err(Failure::Io(error)) => Err(error),
    }
}

enum Failure {
    Fault(Fault),
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

fn try_run(mut enter: impl FnMut(&TcpStream) -> io::Result<()>) -> Result<(), Failure> {
    let listener = listen()?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(PATIENCE))?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_nonblocking(true)?;
    enter(&client)?;
    // Whole messages, and several at a time: the line goes into the first one.
    for size in [100, 1500, 4096, 9000, 33_000, 70_000, 300_000] {
        for at in [16, size / 2, size - 2] {
            let at = at.min(60_000);
            let message = message(size, at, 0);
            let expected = with_line(&message, at);
            pass(&mut client, &mut server, &message, &expected, size)?;
        }
    }
    // As fields are put into frames: several, the last one first, while what is behind them stays in its pieces.
    for (first, second) in IN_PIECES {
        for size in [second + 1000, 70_000] {
            let message = message(size, first, second);
            let expected = with_line(&with_line(&message, second), first);
            pass(&mut client, &mut server, &message, &expected, size)?;
        }
    }
    let plain = vec![b'p'; 5000];
    pass(&mut client, &mut server, &plain, &plain, plain.len())?;
    // The other way nothing is touched, but readiness has been known to get lost.
    for size in [1usize, 100, 20_000] {
        let answer = vec![b'a'; size];
        server.write_all(&answer)?;
        if !sys::wait_readable(std::os::fd::AsFd::as_fd(&client), PATIENCE) {
            return Err(Failure::Fault(Fault::Wake));
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            // All of it may be under way.
            let known = sys::readable_bytes(std::os::fd::AsFd::as_fd(&client))?;
            if known == size {
                break;
            }
            if Instant::now() > deadline || known == 0 {
                return Err(Failure::Fault(Fault::Readable));
            }
            std::thread::yield_now();
        }
        read_exactly(&mut client, size, size)?;
    }
    Ok(())
}

/// A message that asks for a line at an offset, and at a second one behind it if that is not 0.
fn message(size: usize, first: usize, second: usize) -> Vec<u8> {
    let mut message: Vec<u8> = (0..size).map(|i| b'A' + (i % 23) as u8).collect();
    let [first, second] = [first, second].map(|at| (at as u16).to_le_bytes());
    let head = b"SELFTEST".iter().chain(&first).chain(&second);
    for (place, byte) in message.iter_mut().zip(head) {
        *place = *byte;
    }
    message
}

fn with_line(message: &[u8], at: usize) -> Vec<u8> {
    let (before, behind) = message.split_at(at.min(message.len()));
    [before, &[b'#'; HEADER_BYTES], behind].concat()
}

/// Writes as much as the kernel takes at a time, as programs do that do not wait, while the other end
/// reads.
fn pass(
    client: &mut TcpStream,
    server: &mut TcpStream,
    message: &[u8],
    expected: &[u8],
    size: usize,
) -> Result<(), Failure> {
    let mut rest = message;
    let mut arrived: Vec<u8> = Vec::with_capacity(expected.len());
    let mut buffer = vec![0; 64 * 1024];
    // Waits count too, not the clock alone: on a busy host this thread itself may have to wait for long.
    let mut waits = 0;
    let mut last = Instant::now();
    server.set_nonblocking(true)?;
    while !rest.is_empty() || arrived.len() < expected.len() {
        let mut moved = false;
        match client.write(rest) {
            Ok(n) => {
                moved |= n > 0;
                rest = rest.get(n..).unwrap_or_default();
            }
            Err(error) if is_retry(&error) => {}
            Err(error) => return Err(error.into()),
        }
        match server.read(&mut buffer) {
            Ok(n) => {
                moved |= n > 0;
                arrived.extend(buffer.iter().take(n));
            }
            Err(error) if is_retry(&error) => {}
            Err(error) => return Err(error.into()),
        }
        if moved {
            waits = 0;
            last = Instant::now();
            continue;
        }
        if waits > PATIENCE.as_millis() && last.elapsed() > PATIENCE {
            return Err(Failure::Fault(Fault::Stall { size }));
        }
        waits += 1;
        sys::wait_readable(std::os::fd::AsFd::as_fd(server), Duration::from_millis(1));
    }
    if arrived == expected {
        Ok(())
    } else {
        Err(Failure::Fault(Fault::Bytes { size }))
    }
}

fn is_retry(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn read_exactly(stream: &mut TcpStream, length: usize, size: usize) -> Result<(), Failure> {
    stream.set_nonblocking(false)?;
    let mut buffer = vec![0; length];
    let read = stream.read_exact(&mut buffer);
    stream.set_nonblocking(true)?;
    read.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Failure::Fault(Fault::Stall { size })
        }
        _ => Failure::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: sockets that nobody looks at, and ones whose bytes are changed as they should not be.
    /// Guarantees: without the line every test of it fails, so a program that does nothing does not pass.
    #[test]
    fn a_kernel_that_puts_nothing_in_does_not_pass() {
        let found = run(|_| Ok(())).expect("sockets of our own");
        assert_eq!(found, Some(Fault::Stall { size: 100 }));
    }

    /// Scenario: connections that get no option, and some of those that should. Guarantees: that is told, and the
    /// kernel side expects no more of them.
    #[test]
    fn options_that_do_not_arrive() {
        let mut told = Vec::new();
        let found = options(
            |port| {
                told.push(port);
                Ok(())
            },
            || 0,
        );
        assert_eq!(found.expect("sockets of our own"), Some(Fault::Option));
        assert!(
            matches!(told.as_slice(), [port, 0] if *port > 0),
            "{told:?}"
        );
        let mut asked = 0;
        let found = options(
            |_| Ok(()),
            || {
                asked += 1;
                asked / 2
            },
        );
        assert_eq!(found.expect("sockets of our own"), None);
        assert_eq!(asked, 2 * OPTION_SIZES.len() as u64);
    }

    /// Scenario: the socket cannot be entered. Guarantees: that is no fault of the kernel.
    #[test]
    fn what_cannot_be_tested_is_no_fault() {
        let found = run(|_| Err(io::Error::other("full")));
        assert!(found.is_err());
    }
}
