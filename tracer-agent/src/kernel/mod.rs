//! Facts about this host: what the kernel offers, where its structs keep things, its clocks.

pub mod btf;
pub mod calls;
pub mod clock;
pub mod doctor;
pub mod features;
pub mod host;
pub mod offsets;
pub mod prepare;
pub mod programs;
pub mod tier;
pub mod uring;
