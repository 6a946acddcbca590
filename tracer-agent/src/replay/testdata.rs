//! Captures made to measure: packets by hand for tests, and files of any size for benchmarks.
//!
//! Not for use by the agent. TCP checksums are 0, as in captures from offloading interfaces.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// FIN flag.
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// ACK flag.
pub const ACK: u8 = 0x10;

/// Link type of Ethernet captures.
pub const ETHERNET: u32 = 1;

/// One TCP segment to be.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver; of the same family.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags.
    pub flags: u8,
    /// Payload.
    pub payload: &'a [u8],
}

/// Appends the TCP header and payload.
fn put_tcp(out: &mut Vec<u8>, tcp: &Tcp<'_>) {
    out.extend(tcp.source.port().to_be_bytes());
    out.extend(tcp.destination.port().to_be_bytes());
    out.extend(tcp.seq.to_be_bytes());
    out.extend(tcp.ack.to_be_bytes());
    // Header of 32 bytes: two NOPs and a timestamp option, as Linux sends.
    out.extend([0x80, tcp.flags, 0xff, 0xff, 0, 0, 0, 0]);
    out.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    out.extend(tcp.payload);
}

const TCP_HEADER: usize = 32;

/// Appends an IP packet; `extensions` are IPv6 extension headers, the first of type `first`.
pub fn put_ip(out: &mut Vec<u8>, tcp: &Tcp<'_>, extensions: Option<(u8, &[u8])>) {
    let length = TCP_HEADER + tcp.payload.len();
    match (tcp.source.ip(), tcp.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = u16::try_from(20 + length).unwrap_or(0);
            let mut header = [
                0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ];
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            let sum: u32 = header
                .chunks_exact(2)
                .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
                .sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            out.extend(header);
        }
        (source, destination) => {
            let octets = |ip| match ip {
                IpAddr::V4(ip) => Ipv4Addr::to_ipv6_mapped(&ip).octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            let (next, extensions) = extensions.unwrap_or((6, &[]));
            let length = u16::try_from(extensions.len() + length).unwrap_or(0);
            out.extend([0x60, 0, 0, 0]);
            out.extend(length.to_be_bytes());
            out.extend([next, 64]);
            out.extend(octets(source));
            out.extend(octets(destination));
            out.extend(extensions);
        }
    }
    put_tcp(out, tcp);
}

/// Appends an Ethernet frame.
pub fn put_ethernet(out: &mut Vec<u8>, tcp: &Tcp<'_>) {
    out.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    out.extend(if tcp.source.is_ipv4() {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    });
    put_ip(out, tcp, None);
}

/// Header of a little-endian pcap file with nanosecond times.
pub fn pcap_header(link_type: u32) -> [u8; 24] {
    let mut header = [0; 24];
    header[..4].copy_from_slice(&0xa1b2_3c4d_u32.to_le_bytes());
    header[4..8].copy_from_slice(&[2, 0, 4, 0]);
    header[16..20].copy_from_slice(&262_144_u32.to_le_bytes());
    header[20..].copy_from_slice(&link_type.to_le_bytes());
    header
}

/// Appends a record of such a file; `wire_len` is at least the length of `packet`.
pub fn put_record(out: &mut Vec<u8>, time_ns: u64, packet: &[u8], wire_len: usize) {
    let words = [
        time_ns / 1_000_000_000,
        time_ns % 1_000_000_000,
        packet.len() as u64,
        wire_len as u64,
    ];
    for word in words {
        out.extend((word as u32).to_le_bytes());
    }
    out.extend(packet);
}

/// When the made captures begin: 2026-01-01 00:00:00 UTC.
pub const START_NS: u64 = 1_767_225_600_000_000_000;

/// Writes a capture of small keep-alive exchanges over Ethernet and IPv4: `connections` connections
/// to one server take turns, requests and responses are one segment each, and acknowledgements ride
/// on them as on a real loopback. All connections are opened and closed in the capture.
pub fn keep_alive(exchanges: u64, connections: u16, out: &mut impl Write) -> io::Result<()> {
    struct Client {
        address: SocketAddr,
        seq: u32,
        ack: u32,
    }
    let server = SocketAddr::from(([10, 0, 0, 1], 8080));
    let mut clients: Vec<Client> = (0..connections.max(1))
        .map(|number| Client {
            address: SocketAddr::from(([10, 0, 1, (number % 250) as u8], 30_000 + number % 30_000)),
            // Some connections wrap around.
            seq: u32::MAX - u32::from(number) * 20_000,
            ack: u32::from(number).wrapping_mul(0x9e37_79b9),
        })
        .collect();
    let mut time_ns = START_NS;
    let mut buffer = Vec::with_capacity(1 << 16);
    let mut frame = Vec::new();
    let mut emit = |buffer: &mut Vec<u8>, tcp: &Tcp<'_>| {
        frame.clear();
        put_ethernet(&mut frame, tcp);
        time_ns += 5_000;
        put_record(buffer, time_ns, &frame, frame.len());
    };
    buffer.extend(pcap_header(ETHERNET));
    for client in &mut clients {
        let Client { address, seq, ack } = client;
        let there = Tcp {
            source: *address,
            destination: server,
            seq: *seq,
            ack: 0,
            flags: SYN,
            payload: b"",
        };
        emit(&mut buffer, &there);
        *seq = seq.wrapping_add(1);
        let back = Tcp {
            source: server,
            destination: *address,
            seq: *ack,
            ack: *seq,
            flags: SYN | ACK,
            payload: b"",
        };
        emit(&mut buffer, &back);
        *ack = ack.wrapping_add(1);
        emit(
            &mut buffer,
            &Tcp {
                seq: *seq,
                ack: *ack,
                flags: ACK,
                ..there
            },
        );
    }
    let mut request = Vec::new();
    let count = clients.len() as u64;
    for number in 0..exchanges {
        let Some(Client { address, seq, ack }) = clients.get_mut((number % count) as usize) else {
            break;
        };
        request.clear();
        write!(
            request,
            "GET /items/{number} HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n"
        )?;
        let there = Tcp {
            source: *address,
            destination: server,
            seq: *seq,
            ack: *ack,
            flags: ACK,
            payload: &request,
        };
        emit(&mut buffer, &there);
        *seq = seq.wrapping_add(request.len() as u32);
        let back = Tcp {
            source: server,
            destination: *address,
            seq: *ack,
            ack: *seq,
            flags: ACK,
            payload: RESPONSE,
        };
        emit(&mut buffer, &back);
        *ack = ack.wrapping_add(RESPONSE.len() as u32);
        if buffer.len() > 60_000 {
            out.write_all(&buffer)?;
            buffer.clear();
        }
    }
    for Client { address, seq, ack } in &clients {
        let there = Tcp {
            source: *address,
            destination: server,
            seq: *seq,
            ack: *ack,
            flags: FIN | ACK,
            payload: b"",
        };
        emit(&mut buffer, &there);
        let (seq, ack) = (seq.wrapping_add(1), *ack);
        let back = Tcp {
            source: server,
            destination: *address,
            seq: ack,
            ack: seq,
            flags: FIN | ACK,
            payload: b"",
        };
        emit(&mut buffer, &back);
        emit(
            &mut buffer,
            &Tcp {
                seq,
                ack: ack.wrapping_add(1),
                flags: ACK,
                ..there
            },
        );
    }
    out.write_all(&buffer)?;
    out.flush()
}

/// What every request of [`keep_alive`] is answered.
pub const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok";
