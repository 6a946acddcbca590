//! Byte streams of a real implementation.
