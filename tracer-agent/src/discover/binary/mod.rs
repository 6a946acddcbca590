//! Which TLS libraries a process uses: in which file, which functions at which offsets, with which
//! RET instructions.
//!
//! In: a process id, and the bytes of the files it has mapped executable. Out: a [`Target`] for each
//! library in each file. Libraries are told by their symbols (Go by its function table), not by the
//! names of files. It cannot see code that is written at run time (JIT) and functions whose names
//! were removed, Go's excepted.

mod types;

pub use types::{FileId, Function, GoLayout, GoTls, Refused, Target, TlsFunction, TlsLibrary};
