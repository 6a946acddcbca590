//! Capture files, streaming: bytes of a pcap or pcapng in, packets with time and link type out.
//!
//! Memory is one buffer, whatever the size of the file; it grows only for a record that does not
//! fit, up to [`MAX_RECORD`]. Cannot see: packets the capturing program dropped.

use std::cell::RefCell;
use std::io::{self, Cursor, Read};
use std::rc::Rc;

use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{
    Block, InterfaceDescriptionBlock, LegacyPcapReader, Linktype, PcapBlockOwned, PcapError,
    PcapHeader, PcapNGReader,
};

use super::error::Error;

const BUFFER: usize = 1 << 20;
/// Largest record (packet or pcapng block) that is believed. libpcap's own limit for a packet is 256 KiB.
pub const MAX_RECORD: usize = 16 << 20;
/// Interfaces of one pcapng section that are remembered.
const MAX_INTERFACES: usize = 4096;
const NANOS: u64 = 1_000_000_000;

/// What a packet begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Ethernet II, VLAN tags allowed.
    Ethernet,
    /// Linux cooked capture v1 (`tcpdump -i any`).
    LinuxCooked,
    /// Linux cooked capture v2.
    LinuxCooked2,
    /// IPv4 or IPv6, told apart by the version field.
    RawIp,
    /// BSD loopback: four bytes of address family.
    Loopback,
    /// Anything else, by its number in the tcpdump.org registry.
    Unsupported(i32),
}

impl Link {
    /// From the number in the file. The upper bits of the field are no part of the type.
    pub fn from_number(number: i32) -> Link {
        match Linktype(number & 0xffff) {
            Linktype::ETHERNET => Link::Ethernet,
            Linktype::LINUX_SLL => Link::LinuxCooked,
            Linktype::LINUX_SLL2 => Link::LinuxCooked2,
            // 12 and 14 are what BSDs write for raw IP.
            Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 | Linktype(12 | 14) => Link::RawIp,
            Linktype::NULL | Linktype::LOOP => Link::Loopback,
            Linktype(other) => Link::Unsupported(other),
        }
    }
}

/// One packet as captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Nanoseconds since the epoch.
    pub time_ns: u64,
    /// What `data` begins with.
    pub link: Link,
    /// Captured bytes.
    pub data: &'a [u8],
    /// Length on the wire; never less than `data.len()`.
    pub wire_len: u32,
}

/// How the file ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// After a whole record.
    Clean,
    /// Inside the last record, which was left out.
    Truncated,
}

/// Hands every packet of a capture to `each`, in file order.
pub fn read<R: Read>(input: R, mut each: impl FnMut(Packet<'_>)) -> Result<Ending, Error> {
    let failure = Rc::new(RefCell::new(None));
    let mut input = Tracked {
        input,
        failure: Rc::clone(&failure),
    };
    let header = file_header(&mut input)?;
    let is_pcapng = header.starts_with(&SECTION_HEADER);
    let size = header.len();
    let input = Cursor::new(header).chain(input);
    // A whole file header is in hand, so what the readers can refuse here is its contents.
    if is_pcapng {
        let reader = PcapNGReader::new(BUFFER, input).map_err(|_| Error::Corrupt { offset: 0 })?;
        drive(reader, &failure, &mut each)
    } else {
        let reader = LegacyPcapReader::new(BUFFER, input)
            .map_err(|_| Error::HeaderTruncated { bytes: size })?;
        drive(reader, &failure, &mut each)
    }
}

/// Keeps the reason of a failed read (the parser drops it) and retries interrupted ones.
struct Tracked<R> {
    input: R,
    failure: Rc<RefCell<Option<io::Error>>>,
}

impl<R: Read> Read for Tracked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.input.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = error.kind();
                    *self.failure.borrow_mut() = Some(error);
                    return Err(kind.into());
                }
                read => return read,
            }
        }
    }
}

const SECTION_HEADER: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
const PCAP_HEADER_LEN: usize = 24;

/// Reads exactly the file header, so that a pipe's short first read is no error, and refuses what
/// is no capture.
fn file_header(input: &mut impl Read) -> Result<Vec<u8>, Error> {
    let mut header = Vec::with_capacity(PCAP_HEADER_LEN);
    fill(input, &mut header, 12)?;
    let magic = match header.first_chunk::<4>() {
        Some(magic) => *magic,
        None if header.is_empty() => return Err(Error::Empty),
        None => {
            return Err(Error::HeaderTruncated {
                bytes: header.len(),
            });
        }
    };
    let wanted = match magic {
        SECTION_HEADER => {
            // Block length, then the byte-order magic that says how to read it.
            let (Some(length), Some(order)) = (header.get(4..8), header.get(8..12)) else {
                return Err(Error::HeaderTruncated {
                    bytes: header.len(),
                });
            };
            let length = <[u8; 4]>::try_from(length).unwrap_or_default();
            match order {
                [0x4d, 0x3c, 0x2b, 0x1a] => u32::from_le_bytes(length) as usize,
                [0x1a, 0x2b, 0x3c, 0x4d] => u32::from_be_bytes(length) as usize,
                _ => return Err(Error::Corrupt { offset: 8 }),
            }
        }
        [0xd4, 0xc3, 0xb2, 0xa1]
        | [0xa1, 0xb2, 0xc3, 0xd4]
        | [0x4d, 0x3c, 0xb2, 0xa1]
        | [0xa1, 0xb2, 0x3c, 0x4d]
        | [0x34, 0xcd, 0xb2, 0xa1] => PCAP_HEADER_LEN,
        [0x1f, 0x8b, ..] => {
            return Err(Error::Compressed {
                format: "gzip",
                command: "zcat",
            });
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            return Err(Error::Compressed {
                format: "zstd",
                command: "zstdcat",
            });
        }
        [0xfd, b'7', b'z', b'X'] => {
            return Err(Error::Compressed {
                format: "xz",
                command: "xzcat",
            });
        }
        [a, b, c, d] => {
            return Err(Error::NotACapture {
                magic: format!("{a:02x} {b:02x} {c:02x} {d:02x}"),
            });
        }
    };
    if wanted > BUFFER / 2 {
        return Err(Error::Corrupt { offset: 4 });
    }
    fill(input, &mut header, wanted)?;
    if header.len() < wanted {
        return Err(Error::HeaderTruncated {
            bytes: header.len(),
        });
    }
    Ok(header)
}

fn fill(input: &mut impl Read, header: &mut Vec<u8>, wanted: usize) -> Result<(), Error> {
    let missing = wanted.saturating_sub(header.len()) as u64;
    let offset = header.len() as u64;
    match input.by_ref().take(missing).read_to_end(header) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::Read { offset, source }),
    }
}

enum Step {
    Consume(usize),
    Refill,
    Grow,
    End(Ending),
    Corrupt,
    ReadFailed,
}

fn drive(
    mut reader: impl PcapReaderIterator,
    failure: &RefCell<Option<io::Error>>,
    each: &mut impl FnMut(Packet<'_>),
) -> Result<Ending, Error> {
    let mut interfaces = Interfaces::default();
    let mut offset = 0u64;
    let mut capacity = BUFFER;
    loop {
        let step = match reader.next() {
            Ok((length, block)) => {
                if let Some(packet) = interfaces.packet(&block) {
                    each(packet);
                }
                Step::Consume(length)
            }
            Err(PcapError::Eof) => Step::End(Ending::Clean),
            Err(PcapError::UnexpectedEof) => Step::End(Ending::Truncated),
            Err(PcapError::Incomplete(_)) => Step::Refill,
            Err(PcapError::BufferTooSmall) => Step::Grow,
            Err(PcapError::ReadError) => Step::ReadFailed,
            Err(
                PcapError::HeaderNotRecognized
                | PcapError::NomError(..)
                | PcapError::OwnedNomError(..),
            ) => Step::Corrupt,
        };
        match step {
            // A record of no length would be read for ever.
            Step::Consume(0) | Step::Corrupt => return Err(Error::Corrupt { offset }),
            Step::Consume(length) => {
                reader.consume_noshift(length);
                offset = offset.saturating_add(length as u64);
            }
            Step::End(Ending::Truncated) if reader.data().is_empty() => return Ok(Ending::Clean),
            Step::End(ending) => return Ok(ending),
            Step::Refill | Step::Grow => {
                let before = reader.data().len();
                let failed = reader.refill().is_err();
                if failed {
                    return Err(read_error(offset, failure));
                }
                if reader.data().len() == before && !reader.reader_exhausted() {
                    // The buffer is full of one record.
                    if capacity >= MAX_RECORD {
                        return Err(Error::Corrupt { offset });
                    }
                    capacity *= 2;
                    reader.grow(capacity);
                } else if matches!(step, Step::Grow) && reader.reader_exhausted() {
                    return Ok(Ending::Truncated);
                }
            }
            Step::ReadFailed => return Err(read_error(offset, failure)),
        }
    }
}

fn read_error(offset: u64, failure: &RefCell<Option<io::Error>>) -> Error {
    let source = failure
        .borrow_mut()
        .take()
        .unwrap_or_else(|| io::ErrorKind::Other.into());
    Error::Read { offset, source }
}

#[derive(Clone, Copy)]
struct Interface {
    link: Link,
    snaplen: u32,
    /// Ticks per second.
    resolution: u64,
    offset_s: i64,
}

/// What the file said so far about where its packets come from.
#[derive(Default)]
struct Interfaces {
    known: Vec<Interface>,
    big_endian: bool,
    last_time_ns: u64,
}

impl Interfaces {
    fn packet<'a>(&mut self, block: &'a PcapBlockOwned<'_>) -> Option<Packet<'a>> {
        let (time_ns, link, data, wire_len) = match block {
            PcapBlockOwned::LegacyHeader(header) => {
                self.known = vec![legacy_interface(header)];
                return None;
            }
            PcapBlockOwned::Legacy(record) => {
                let interface = self.known.first()?;
                let fraction = u64::from(record.ts_usec) * (NANOS / interface.resolution);
                let time_ns = u64::from(record.ts_sec) * NANOS + fraction;
                (time_ns, interface.link, record.data, record.origlen)
            }
            PcapBlockOwned::NG(Block::SectionHeader(section)) => {
                self.known.clear();
                self.big_endian = section.big_endian();
                return None;
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(description)) => {
                if self.known.len() < MAX_INTERFACES {
                    self.known.push(self.interface(description));
                }
                return None;
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(record)) => {
                let interface = self
                    .known
                    .get(record.if_id as usize)
                    .copied()
                    .unwrap_or(UNDESCRIBED);
                let ticks = u64::from(record.ts_high) << 32 | u64::from(record.ts_low);
                (
                    interface.time_ns(ticks),
                    interface.link,
                    record.packet_data(),
                    record.origlen,
                )
            }
            PcapBlockOwned::NG(Block::SimplePacket(record)) => {
                // No time of its own and always of the first interface (pcapng, section 4.4).
                let interface = self.known.first().copied().unwrap_or(UNDESCRIBED);
                let data = record.packet_data();
                let data = match interface.snaplen as usize {
                    0 => data,
                    snaplen => data.get(..snaplen).unwrap_or(data),
                };
                (self.last_time_ns, interface.link, data, record.origlen)
            }
            PcapBlockOwned::NG(_) => return None,
        };
        self.last_time_ns = time_ns;
        let captured = u32::try_from(data.len()).unwrap_or(u32::MAX);
        Some(Packet {
            time_ns,
            link,
            data,
            wire_len: wire_len.max(captured),
        })
    }

    fn interface(&self, description: &InterfaceDescriptionBlock<'_>) -> Interface {
        // if_tsresol: a power of ten, or of two with the high bit set (pcapng, section 4.2).
        let exponent = u32::from(description.if_tsresol & 0x7f);
        let resolution = match description.if_tsresol & 0x80 {
            0 => 10u64.checked_pow(exponent),
            _ => 1u64.checked_shl(exponent),
        };
        // The parser reads the option as little endian whatever the section's byte order is.
        let offset_s = description.if_tsoffset;
        Interface {
            link: Link::from_number(description.linktype.0),
            snaplen: description.snaplen,
            resolution: resolution.unwrap_or(1_000_000),
            offset_s: if self.big_endian {
                offset_s.swap_bytes()
            } else {
                offset_s
            },
        }
    }
}

/// Stands for an interface that the file refers to without having described it.
const UNDESCRIBED: Interface = Interface {
    link: Link::Unsupported(-1),
    snaplen: 0,
    resolution: 1_000_000,
    offset_s: 0,
};

impl Interface {
    fn time_ns(&self, ticks: u64) -> u64 {
        let ns = match self.resolution {
            NANOS => ticks,
            1_000_000 => ticks.saturating_mul(1000),
            resolution => {
                let ns = u128::from(ticks) * u128::from(NANOS) / u128::from(resolution);
                u64::try_from(ns).unwrap_or(u64::MAX)
            }
        };
        match self.offset_s {
            0 => ns,
            offset => ns.saturating_add_signed(offset.saturating_mul(NANOS as i64)),
        }
    }
}

fn legacy_interface(header: &PcapHeader) -> Interface {
    Interface {
        link: Link::from_number(header.network.0),
        snaplen: header.snaplen,
        resolution: if header.is_nanosecond_precision() {
            NANOS
        } else {
            1_000_000
        },
        offset_s: 0,
    }
}
