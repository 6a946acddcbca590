//! Bounds shared by the kernel side and user space.

/// Bytes of one call that one event can carry. A longer head is sent as several events.
pub const WINDOW: usize = 4096;
/// Bytes of a message whose framing is unknown that are captured before it is only counted.
pub const UNFRAMED_BUDGET: u32 = 64 * 1024;
/// Longest header block that is captured, over any number of calls.
pub const HEAD_BUDGET: u32 = 64 * 1024;
/// I/O vectors of one call that are looked at; bytes behind the last one are counted, not captured.
pub const MAX_IOVECS: usize = 32;
/// Messages of one `sendmmsg`/`recvmmsg` call that are looked at.
pub const MAX_MMSG: usize = 16;
/// Turns (direction changes) of a connection joined in the middle that may pass without a message
/// start before it is taken for something we do not parse.
pub const JOIN_PATIENCE: u8 = 16;
/// Bytes of the argument vector carried by an exec event.
pub const ARGS_MAX: usize = 1024;
/// Bytes of the environment carried by an exec event.
pub const ENV_MAX: usize = 4096;
/// Bytes of a unix socket path, as in `struct sockaddr_un`.
pub const UNIX_PATH_MAX: usize = 108;
