//! Facts about this host: what the kernel offers and what this process may do.

pub mod doctor;
pub mod features;
pub mod host;
