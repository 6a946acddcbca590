//! gRPC between libraries of several languages: what the calls are, who makes and answers them, and
//! whether the spans tell the same.

mod call;
mod check;
mod codec;
mod mix;
mod peer;

pub use call::{Asked, Call, Done, METHODS, SERVICE};
pub use check::{Found, Run, code_name};
pub use codec::BytesCodec;
pub use mix::{End, long, mixed, plain};
pub use peer::{Client, Peer};
