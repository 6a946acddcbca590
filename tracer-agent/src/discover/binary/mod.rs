//! Which TLS libraries a process uses: in which file, which functions at which offsets, with which
//! RET instructions.
//!
//! In: a process id, and the bytes of the files it has mapped executable. Out: a [`Target`] for each
//! library in each file. Libraries are told by their symbols (Go by its function table), not by the
//! names of files. It cannot see code that is written at run time (JIT) and functions whose names
//! were removed, Go's excepted.
//!
//! Files are chosen by the traced programs: every read is ranged and bounded, every number in them is
//! doubted, and one that is not understood is an error with a reason.

mod bytes;
mod code;
mod elf;
mod go;
mod libraries;
mod process;
mod relocations;
mod symbols;
mod text;
mod types;
mod unwind;

use thiserror::Error;

pub use bytes::ReadAt;
pub use go::GoFunction;
pub use libraries::Library;
pub use process::{Found, Scanner, Unseen};
pub use types::{FileId, Function, GoLayout, GoTls, Refused, Target, TlsFunction, TlsLibrary};

/// Why a file could not be understood.
#[derive(Debug, Error)]
pub enum BinaryError {
    /// Not an ELF file.
    #[error("not an ELF file")]
    NotElf,
    /// A valid file of a kind that is not handled.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// Something points behind the end of the file.
    #[error("the file is cut off")]
    Truncated,
    /// More to read than any real file needs.
    #[error("too large")]
    TooLarge,
    /// Parts contradict each other.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The file could not be read.
    #[error("cannot be read: {0}")]
    Read(#[source] std::io::Error),
}

/// The TLS libraries in one file of known length.
pub fn libraries_of(file: &dyn ReadAt, len: u64) -> Result<Vec<Library>, BinaryError> {
    libraries::find(&elf::Elf::parse(bytes::Bytes::new(file, len))?)
}

/// Functions of a Go program by their full names (`runtime.newproc1`), those that exist; `None` if
/// the file is no Go program.
pub fn go_functions(
    file: &dyn ReadAt,
    len: u64,
    names: &[&str],
) -> Result<Option<Vec<GoFunction>>, BinaryError> {
    let elf = elf::Elf::parse(bytes::Bytes::new(file, len))?;
    match go::GoProgram::parse(&elf)? {
        Some(program) => program.functions(names).map(Some),
        None => Ok(None),
    }
}

/// Fuzzing: whatever the bytes are, an answer and no panic.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let len = data.len() as u64;
    let _ = libraries_of(&data, len);
    let _ = go_functions(&data, len, &["runtime.newproc1", "runtime.goexit0"]);
}
