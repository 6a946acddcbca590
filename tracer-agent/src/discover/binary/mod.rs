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
mod python;
mod relocations;
mod symbols;
mod text;
mod types;
mod unwind;

use thiserror::Error;

pub use bytes::ReadAt;
pub use go::GoFunction;
pub use libraries::{Contents, Library};
pub use process::{Found, NOT_OPENED, Scanner, Unseen};
pub use python::{PythonEvent, PythonPoint};
pub use types::{
    Deferred, FileId, Function, GoLayout, GoTls, Quick, Refused, Target, TlsFunction, TlsLibrary,
};

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

/// What one file of known length has to do with TLS.
pub fn contents(file: &dyn ReadAt, len: u64) -> Result<Contents, BinaryError> {
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

/// Where tasks of asyncio can be seen in a Python interpreter; `None` if the file is none.
pub fn python_interpreter(
    file: &dyn ReadAt,
    len: u64,
) -> Result<Option<Vec<PythonPoint>>, BinaryError> {
    python::interpreter(&elf::Elf::parse(bytes::Bytes::new(file, len))?)
}

/// Where the variables of Python's interpreter lie in a process that has its code, from this offset on, at this address.
pub fn python_runtime(
    file: &dyn ReadAt,
    len: u64,
    offset: u64,
    start: u64,
) -> Result<Option<std::ops::Range<u64>>, BinaryError> {
    python::runtime(
        &elf::Elf::parse(bytes::Bytes::new(file, len))?,
        offset,
        start,
    )
}

/// Where futures get their results, in the file that `_asyncio` is in.
pub fn python_futures(file: &dyn ReadAt, len: u64) -> Result<Vec<PythonPoint>, BinaryError> {
    python::futures(&elf::Elf::parse(bytes::Bytes::new(file, len))?)
}

/// Where `SimpleQueue` hands things over, in the file that `_queue` is in.
pub fn python_queues(file: &dyn ReadAt, len: u64) -> Result<Vec<PythonPoint>, BinaryError> {
    python::queues(&elf::Elf::parse(bytes::Bytes::new(file, len))?)
}

/// File offsets of all RETs of the compiled function that begins at this file offset.
pub fn returns(file: &dyn ReadAt, len: u64, function: u64) -> Result<Vec<u64>, BinaryError> {
    let elf = elf::Elf::parse(bytes::Bytes::new(file, len))?;
    let address = elf
        .address(function)
        .ok_or(BinaryError::Malformed("function"))?;
    python::returns(&elf, &libraries::CExtents::new(&elf), address)
}

/// Whatever the bytes are, an answer and no panic, and no offset outside of them.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let len = data.len() as u64;
    let inside = |entry: u64, returns: &[u64]| {
        assert!(returns.iter().chain([&entry]).all(|at| *at < len));
    };
    if let Ok(contents) = contents(&data, len) {
        let libraries = contents.libraries.iter();
        for function in libraries.flat_map(|library| library.functions.iter()) {
            inside(function.entry, &function.returns);
            assert!(function.quick.iter().all(|quick| quick.at < len));
        }
    }
    let points = python_interpreter(&data, len).ok().flatten();
    let others = [python_futures(&data, len), python_queues(&data, len)];
    for points in points.into_iter().chain(others.into_iter().flatten()) {
        assert!(points.iter().all(|point| point.at < len));
    }
    if let Ok(Some(functions)) = go_functions(&data, len, &["runtime.newproc1", "runtime.main"]) {
        for function in functions {
            inside(
                function.entry,
                function.returns.as_deref().unwrap_or_default(),
            );
        }
    }
}

#[cfg(test)]
mod tests;
