//! One record of the ring, checked and typed.

use tracer_common::abi::{
    CarriedEvent, CausedEvent, ConnectionEvent, DataEvent, EndEvent, ExecEvent, ExitEvent,
    ForkEvent, InjectedEvent, MappedEvent, kind,
};
use zerocopy::FromBytes;

/// A record, borrowed from the ring.
#[derive(Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A connection becomes known.
    Connection(&'a ConnectionEvent),
    /// Bytes moved, and the captured ones.
    Data(&'a DataEvent, &'a [u8]),
    /// Something ended.
    End(&'a EndEvent),
    /// A new program, with its arguments and environment behind it.
    Exec(&'a ExecEvent, &'a [u8]),
    /// A process made another one.
    Fork(&'a ForkEvent),
    /// A process ended.
    Exit(&'a ExitEvent),
    /// A request gets its context from the kernel side.
    Injected(&'a InjectedEvent),
    /// What a stream is begun for that is about to be told.
    Caused(&'a CausedEvent),
    /// The context of a request that is about to be read.
    Carried(&'a CarriedEvent),
    /// A process mapped an executable file.
    Mapped(&'a MappedEvent),
}

impl<'a> Record<'a> {
    /// When it happened: behind the header in every kind of record.
    pub fn time_ns(bytes: &[u8]) -> Option<u64> {
        let bytes = bytes.get(8..16)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// `None` for bytes that are no record of this ABI.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        Some(match *bytes.first()? {
            kind::CONNECTION => Record::Connection(ConnectionEvent::ref_from_prefix(bytes).ok()?.0),
            kind::DATA => {
                let (event, rest) = DataEvent::ref_from_prefix(bytes).ok()?;
                let captured = rest.get(..event.header.value as usize)?;
                if event.header.value > event.length {
                    return None;
                }
                Record::Data(event, captured)
            }
            kind::END => Record::End(EndEvent::ref_from_prefix(bytes).ok()?.0),
            kind::EXEC => {
                let (event, rest) = ExecEvent::ref_from_prefix(bytes).ok()?;
                Record::Exec(event, rest)
            }
            kind::FORK => Record::Fork(ForkEvent::ref_from_prefix(bytes).ok()?.0),
            kind::EXIT => Record::Exit(ExitEvent::ref_from_prefix(bytes).ok()?.0),
            kind::INJECTED => Record::Injected(InjectedEvent::ref_from_prefix(bytes).ok()?.0),
            kind::CAUSED => Record::Caused(CausedEvent::ref_from_prefix(bytes).ok()?.0),
            kind::CARRIED => Record::Carried(CarriedEvent::ref_from_prefix(bytes).ok()?.0),
            kind::MAPPED => Record::Mapped(MappedEvent::ref_from_prefix(bytes).ok()?.0),
            _ => return None,
        })
    }
}
