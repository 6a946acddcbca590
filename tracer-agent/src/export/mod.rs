//! (room to be filled)

pub mod console;
