//! One captured packet to one TCP segment: link layer, IPv4 or IPv6, TCP header. No allocation.
//!
//! Checksums are not looked at: with offloading the sender's are wrong in almost every capture.
//! Cannot see: fragments (their bytes count as lost), tunnels, encrypted payloads.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use etherparse::{IpNumber, LaxIpSlice};

use super::capture::{Link, Packet};

/// Address and port; IPv4 is held as its v4-mapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    ip: u128,
    port: u16,
}

impl Address {
    /// From the standard type.
    pub fn new(address: SocketAddr) -> Address {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Address {
            ip: ip.to_bits(),
            port: address.port(),
        }
    }

    /// As the standard type, v4-mapped addresses unmapped.
    pub fn socket_addr(self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from_bits(self.ip).to_canonical(), self.port)
    }

    /// Port.
    pub fn port(self) -> u16 {
        self.port
    }
}

/// A TCP segment as it was on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpPacket<'a> {
    /// Who sent it.
    pub source: Address,
    /// To whom.
    pub destination: Address,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number, if the ACK flag is set.
    pub ack: Option<u32>,
    /// SYN flag.
    pub syn: bool,
    /// FIN flag.
    pub fin: bool,
    /// RST flag.
    pub rst: bool,
    /// Captured bytes of the payload.
    pub payload: &'a [u8],
    /// Bytes of payload on the wire; never less than `payload.len()`.
    pub wire_len: u32,
}

/// Why there is no TCP segment in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Reason {
    /// Neither IPv4 nor IPv6 (ARP, LLDP, ...).
    NotIp,
    /// IP that carries something else than TCP.
    NotTcp,
    /// A fragment of an IP packet.
    Fragment,
    /// The snap length cut it within the headers.
    HeadersCut,
    /// Header fields contradict each other.
    Malformed,
    /// From an interface of a link type that is not supported.
    LinkType,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Reason; 6] = [
        Reason::NotIp,
        Reason::NotTcp,
        Reason::Fragment,
        Reason::HeadersCut,
        Reason::Malformed,
        Reason::LinkType,
    ];

    /// Stable name for people and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Reason::NotIp => "not_ip",
            Reason::NotTcp => "not_tcp",
            Reason::Fragment => "ip_fragment",
            Reason::HeadersCut => "headers_cut",
            Reason::Malformed => "malformed",
            Reason::LinkType => "link_type",
        }
    }
}

/// Finds the TCP segment of a packet.
pub fn decode<'a>(packet: &Packet<'a>) -> Result<TcpPacket<'a>, Reason> {
    let ip = match packet.link {
        Link::Ethernet => {
            let (header, rest) = split::<14>(packet.data)?;
            ether_payload([header[12], header[13]], rest)?
        }
        Link::LinuxCooked => {
            let (header, rest) = split::<16>(packet.data)?;
            ether_payload([header[14], header[15]], rest)?
        }
        Link::LinuxCooked2 => {
            let (header, rest) = split::<20>(packet.data)?;
            ether_payload([header[0], header[1]], rest)?
        }
        Link::Loopback => {
            let (family, rest) = split::<4>(packet.data)?;
            // AF_INET and every AF_INET6 there is, in the byte order of whoever captured.
            match u32::from_le_bytes(*family).min(u32::from_be_bytes(*family)) {
                2 | 10 | 24 | 28 | 30 => rest,
                _ => return Err(Reason::NotIp),
            }
        }
        Link::RawIp => packet.data,
        Link::Unsupported(_) => return Err(Reason::LinkType),
    };
    let link_len = packet.data.len() - ip.len();
    decode_ip(ip, (packet.wire_len as usize).saturating_sub(link_len))
}

fn split<const N: usize>(data: &[u8]) -> Result<(&[u8; N], &[u8]), Reason> {
    data.split_first_chunk::<N>().ok_or(Reason::HeadersCut)
}

/// Steps over VLAN tags to an IP header.
fn ether_payload(mut ether_type: [u8; 2], mut data: &[u8]) -> Result<&[u8], Reason> {
    const MAX_TAGS: usize = 4;
    for _ in 0..=MAX_TAGS {
        match u16::from_be_bytes(ether_type) {
            0x0800 | 0x86dd => return Ok(data),
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => {
                let (tag, rest) = split::<4>(data)?;
                ether_type = [tag[2], tag[3]];
                data = rest;
            }
            _ => return Err(Reason::NotIp),
        }
    }
    Err(Reason::Malformed)
}

/// `wire_len` is the length of `data` before the snap length cut it (with trailing padding).
fn decode_ip(data: &[u8], wire_len: usize) -> Result<TcpPacket<'_>, Reason> {
    let header_len = match data.first().map(|first| first >> 4) {
        Some(4) => 20,
        Some(6) => 40,
        Some(_) => return Err(Reason::NotIp),
        None => return Err(Reason::HeadersCut),
    };
    if data.len() < header_len {
        return Err(Reason::HeadersCut);
    }
    let (ip, stopped) = LaxIpSlice::from_slice(data).map_err(|_| Reason::Malformed)?;
    // What the header says the packet's length is; 0 stands for "too long for the field" (BIG TCP,
    // or segmentation offloading before the length was filled in).
    let (source, destination, declared, fixed_len) = match &ip {
        LaxIpSlice::Ipv4(ip) => {
            let header = ip.header();
            let addresses = (
                header.source_addr().to_ipv6_mapped(),
                header.destination_addr().to_ipv6_mapped(),
            );
            (
                addresses.0,
                addresses.1,
                usize::from(header.total_len()),
                header.slice().len(),
            )
        }
        LaxIpSlice::Ipv6(ip) => {
            let header = ip.header();
            let declared = match header.payload_length() {
                0 => 0,
                length => usize::from(length) + 40,
            };
            (
                header.source_addr(),
                header.destination_addr(),
                declared,
                40,
            )
        }
    };
    let payload = ip.payload();
    if payload.fragmented {
        return Err(Reason::Fragment);
    }
    if payload.ip_number != IpNumber::TCP {
        return Err(if stopped.is_some() {
            Reason::HeadersCut
        } else {
            Reason::NotTcp
        });
    }
    let wire_len = if declared == 0 { wire_len } else { declared };
    let captured_len = data.len().min(wire_len);
    let headers_len = captured_len
        .checked_sub(payload.payload.len())
        .filter(|length| *length >= fixed_len)
        .ok_or(Reason::Malformed)?;
    let tcp_len = wire_len.checked_sub(headers_len).ok_or(Reason::Malformed)?;
    decode_tcp(payload.payload, tcp_len, source, destination)
}

/// The fixed part is read by hand: a snap length often cuts the options, which are not needed.
fn decode_tcp(
    data: &[u8],
    wire_len: usize,
    source: Ipv6Addr,
    destination: Ipv6Addr,
) -> Result<TcpPacket<'_>, Reason> {
    let (header, _) = split::<20>(data)?;
    let [
        s0,
        s1,
        d0,
        d1,
        q0,
        q1,
        q2,
        q3,
        a0,
        a1,
        a2,
        a3,
        offset,
        flags,
        ..,
    ] = *header;
    let header_len = usize::from(offset >> 4) * 4;
    let payload_len = wire_len
        .checked_sub(header_len)
        .filter(|_| header_len >= 20)
        .ok_or(Reason::Malformed)?;
    let payload = data.get(header_len..).unwrap_or_default();
    let payload = payload.get(..payload_len).unwrap_or(payload);
    let [fin, syn, rst, ack] = [0x01, 0x02, 0x04, 0x10].map(|bit| flags & bit != 0);
    Ok(TcpPacket {
        source: Address {
            ip: source.to_bits(),
            port: u16::from_be_bytes([s0, s1]),
        },
        destination: Address {
            ip: destination.to_bits(),
            port: u16::from_be_bytes([d0, d1]),
        },
        seq: u32::from_be_bytes([q0, q1, q2, q3]),
        ack: ack.then(|| u32::from_be_bytes([a0, a1, a2, a3])),
        syn,
        fin,
        rst,
        payload,
        wire_len: u32::try_from(payload_len).map_err(|_| Reason::Malformed)?,
    })
}
