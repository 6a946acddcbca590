//! Puts the eBPF programs into the kernel: load, attach, tier. The only room that names aya.

mod attach;
mod cost;
pub mod error;
mod follower;
mod functions;
mod futex;
pub mod kernel;
pub mod load;
pub mod maps;
mod object;
mod parallel;
pub mod propagate;
mod raw;
pub mod reader;
mod runtime;
mod shared;
mod symbols;
mod tasks;
pub mod tls;
mod tokio;
pub mod turn;

pub use cost::{RunTime, measure};
pub use error::LoadError;
pub use follower::{Follower, immediate};
pub use functions::refused as functions_refused;
pub use kernel::Kernel;
pub use load::{Options, check_rights, object_size};
pub use maps::{KernelCounts, Maps, Switches};
pub use propagate::{
    Options as TcpOptions, PropagateError, PropagateOptions, Propagation, SampledFrom,
};
pub use reader::Reader;
pub use tls::{Attached, TlsProbes};
