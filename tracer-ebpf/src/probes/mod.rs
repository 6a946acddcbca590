//! One file per hook family.

pub mod close;
pub mod deliver;
pub mod frames;
pub mod futex;
pub mod io;
pub mod mapped;
pub mod process;
pub mod raw;
pub mod runtime;
pub mod tcp;
pub mod tls;
pub mod uring;
pub mod wait;
pub mod window;
