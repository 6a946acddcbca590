//! Which two exchanges are the two ends of one.
//!
//! TCP: the addresses, and the sequence number of the request's first byte (or, for HTTP/2, of the
//! connection's first byte, and the stream). Addresses alone would not do: network namespaces may use
//! the same ones. Unix sockets: the kernel's two sockets, and the position in the byte stream.

use std::net::SocketAddr;

use crate::protocol::{Connection, Endpoint, Opened, Role, Wire};

/// The same at both ends, and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WireKey {
    /// TCP.
    Tcp {
        client: SocketAddr,
        server: SocketAddr,
        /// Of the request's first byte (HTTP/1) or of the connection's (HTTP/2).
        sequence: u32,
        /// HTTP/2.
        stream: Option<u64>,
    },
    /// Unix sockets.
    Unix {
        client: u64,
        server: u64,
        /// Position (HTTP/1) or stream (HTTP/2).
        key: u64,
        is_stream: bool,
    },
}

impl WireKey {
    /// `None` where too little is known for certainty. `shift`: bytes on the wire before the request
    /// that its process does not count.
    pub fn new(opened: &Opened, connection: &Connection, shift: u32) -> Option<Self> {
        let is_server = opened.role == Role::Server;
        match connection.wire? {
            Wire::Tcp { read, write } => {
                let (Endpoint::Ip(local), Endpoint::Ip(remote)) =
                    (&connection.local, &connection.remote)
                else {
                    return None;
                };
                let (client, server, base) = if is_server {
                    (*remote, *local, read)
                } else {
                    (*local, *remote, write)
                };
                let (sequence, stream) = match opened.position {
                    // Sequence numbers are counted modulo 2^32.
                    Some(position) => {
                        (base.wrapping_add(position as u32).wrapping_add(shift), None)
                    }
                    None if connection.from_start => (base, Some(opened.key)),
                    None => return None,
                };
                Some(WireKey::Tcp {
                    client,
                    server,
                    sequence,
                    stream,
                })
            }
            Wire::Unix { own, peer } => {
                let (client, server) = if is_server { (peer, own) } else { (own, peer) };
                Some(WireKey::Unix {
                    client,
                    server,
                    key: opened.position.unwrap_or(opened.key),
                    is_stream: opened.position.is_none(),
                })
            }
        }
    }
}

/// True when the other end is on this host for certain or likely, so that waiting for it pays.
pub fn is_near(connection: &Connection) -> bool {
    match (&connection.local, &connection.remote) {
        (Endpoint::Ip(local), Endpoint::Ip(remote)) => {
            remote.ip().is_loopback() || local.ip() == remote.ip()
        }
        (Endpoint::Unix(_), _) | (_, Endpoint::Unix(_)) => true,
        (Endpoint::Unknown, _) | (_, Endpoint::Unknown) => false,
    }
}
