//! What the kernel side (`tracer-ebpf`) and user space (`tracer-agent`) agree on.
//!
//! - [`abi`]: the records that travel through the ring buffer and the values of the shared maps.
//! - [`limits`]: every bound that both sides rely on.
//! - [`infer`]: which protocol the first bytes of a connection speak.
//! - [`http2`]: frame headers of HTTP/2, for the same purpose.
//! - [`hpack`]: header blocks of HTTP/2, as far as trace context may be in them.
//! - [`tls`]: records of TLS, to tell which socket carries a session.
//! - [`context`]: trace context in a request's head, to be read and to be written.
//! - [`option`]: trace context in a TCP option.
//! - [`ids`]: ids that both sides find by themselves.
//! - [`frame`]: how far an HTTP/1 head or body reaches, so that body bytes need not leave the kernel.
//!
//! No `std`, no aya, no I/O: the same code runs in the kernel and in the tests of any machine.
#![no_std]

pub mod abi;
pub mod blocks;
pub mod context;
pub mod frame;
pub mod hpack;
pub mod http2;
pub mod ids;
pub mod infer;
pub mod limits;
pub mod option;
pub mod tls;
