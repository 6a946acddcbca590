//! Puts the eBPF programs into the kernel: load, attach, tier. The only room that names aya.

pub mod load;
pub mod reader;
mod runtime;
mod symbols;
pub mod tls;

pub use load::{
    Kernel, KernelCounts, LoadError, Maps, Options, Switches, check_rights, object_size,
};
pub use reader::Reader;
pub use tls::{Attached, TlsProbes};
