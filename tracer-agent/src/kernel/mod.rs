//! Facts about the running kernel.

pub mod btf;
pub mod clock;
pub mod offsets;
