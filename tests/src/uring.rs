//! Sockets through io_uring, one request at a time.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};

/// A ring of a thread.
#[expect(missing_debug_implementations, reason = "the ring has none")]
pub struct Ring(IoUring);

/// How bytes are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `recv` and `send`.
    Socket,
    /// `read` and `write`.
    File,
}

impl Ring {
    /// Makes one; an error where the kernel has none or does not allow it.
    pub fn new() -> io::Result<Self> {
        Ok(Ring(IoUring::new(8)?))
    }

    /// Reads what is there, at most as much as fits; 0 at the end.
    pub fn read(&mut self, stream: &TcpStream, buffer: &mut [u8], way: Way) -> io::Result<usize> {
        let fd = types::Fd(stream.as_raw_fd());
        let length = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let entry = match way {
            Way::Socket => opcode::Recv::new(fd, buffer.as_mut_ptr(), length).build(),
            Way::File => opcode::Read::new(fd, buffer.as_mut_ptr(), length).build(),
        };
        self.run(&entry)
    }

    /// Writes all of it.
    pub fn write(&mut self, stream: &TcpStream, mut bytes: &[u8], way: Way) -> io::Result<()> {
        let fd = types::Fd(stream.as_raw_fd());
        while !bytes.is_empty() {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let entry = match way {
                Way::Socket => opcode::Send::new(fd, bytes.as_ptr(), length).build(),
                Way::File => opcode::Write::new(fd, bytes.as_ptr(), length).build(),
            };
            let written = self.run(&entry)?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    #[allow(unsafe_code, reason = "the kernel is given an address")]
    fn run(&mut self, entry: &Entry) -> io::Result<usize> {
        // SAFETY: what the request points to is borrowed by the caller, and the request is over when this
        // returns: it waits until it is completed.
        unsafe { self.0.submission().push(entry) }.map_err(io::Error::other)?;
        loop {
            match self.0.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
            if let Some(done) = self.0.completion().next() {
                return usize::try_from(done.result())
                    .map_err(|_| io::Error::from_raw_os_error(-done.result()));
            }
        }
    }
}
