//! All RET instructions through which a call of a function can return.
//!
//! In: the range of a function. Out: the addresses of its RETs, of those in its cold parts and in
//! the functions it jumps to in place of a return; or why that cannot be told. The list is complete
//! or it is not given.
//!
//! Code is decoded from the start of each part to its end. It counts as understood only if decoding
//! ends exactly at the end, nothing falls out of it, every jump lands on an instruction that was
//! decoded, and every computed jump is a switch whose table stays within known parts. What else runs
//! inside of a part (data between instructions, a thunk that pushes its target) breaks one of these.

mod arm64;
mod quick;
mod x86;

use std::collections::BTreeMap;
use std::ops::Range;

use thiserror::Error;

use super::BinaryError;
use super::elf::{Elf, Machine};
use super::relocations::{self, Word};
pub use quick::Quick;

/// Parts of one function, its tail calls' included; real ones have up to about ten.
const PARTS_MAX: usize = 32;
/// Bytes of one part.
const PART_MAX: u64 = 256 * 1024;
/// Bytes of all parts.
const TOTAL_MAX: u64 = 512 * 1024;
/// Entries of a switch's table.
const TABLE_MAX: u64 = 4096;

/// Why the returns of a function are not known.
#[derive(Debug, Error)]
pub enum NotUnderstood {
    /// The file could not be read.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// Not in an executable segment.
    #[error("its code is not in the file")]
    NoCode,
    /// Too long, or too many parts.
    #[error("too much code")]
    TooMuch,
    /// Bytes that are no instruction, or one that a function does not have.
    #[error("code at {0:#x} cannot be decoded")]
    Undecodable(u64),
    /// Decoding does not end at the end, or the end is not the end of anything.
    #[error("runs into what follows it at {0:#x}")]
    RunsOn(u64),
    /// A jump to an address of which no table says which function it is.
    #[error("jumps to unknown code at {0:#x}")]
    JumpsAway(u64),
    /// A jump between two instructions.
    #[error("jumps into the middle of an instruction at {0:#x}")]
    JumpsInside(u64),
    /// A computed jump that is no switch.
    #[error("jumps to a computed address at {0:#x}")]
    Computed(u64),
    /// Ends with a call into another library.
    #[error("continues in another library ({0})")]
    Foreign(String),
    /// No RET at all.
    #[error("never returns")]
    NoReturn,
}

/// Says which function or part of one holds an address.
pub trait Extents {
    /// The part that holds the address.
    fn covering(&self, address: u64) -> Result<Option<Range<u64>>, BinaryError>;
}

/// What one decoded part contains.
#[derive(Debug, Default)]
struct Part {
    /// Addresses of all instructions, ascending.
    starts: Vec<u64>,
    /// Addresses of RETs.
    returns: Vec<u64>,
    /// Targets of direct jumps, conditional ones too.
    jumps: Vec<u64>,
    /// Tables of switches.
    tables: Vec<Table>,
    /// Words of memory that hold the target of a jump (address of the word).
    slots: Vec<u64>,
    /// In place of the part's first instruction, by [`Convention`].
    entries: [Option<Quick>; 2],
    /// In place of RETs.
    exits: Vec<Quick>,
}

/// In which registers a function has its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// As compilers of C have it.
    C,
    /// As Go has it.
    Go,
}

/// Where a function can be probed: addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Points {
    /// All RETs through which a call can return, sorted.
    pub returns: Vec<u64>,
    /// What can be probed in place of the entry and of RETs, at less cost; not for all of them.
    pub quick: Vec<Quick>,
}

/// A table of jump targets in constant data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Table {
    /// Where the jump is.
    jump: u64,
    /// Where the table begins.
    address: u64,
    /// Whether entries are 4 bytes relative to the table, otherwise 8 bytes absolute.
    relative: bool,
    /// How many entries there are; unknown: the jump is then not understood.
    entries: u64,
}

/// Where the function in this range can be probed.
pub fn points(
    elf: &Elf<'_>,
    extents: &dyn Extents,
    function: Range<u64>,
    convention: Convention,
) -> Result<Points, NotUnderstood> {
    let start = function.start;
    let mut walk = Walk {
        elf,
        extents,
        parts: BTreeMap::new(),
        waiting: vec![function],
        total: 0,
    };
    while let Some(range) = walk.waiting.pop() {
        walk.decode(range)?;
    }
    walk.finish(start, convention)
}

struct Walk<'a> {
    elf: &'a Elf<'a>,
    extents: &'a dyn Extents,
    /// By start.
    parts: BTreeMap<u64, (u64, Part)>,
    waiting: Vec<Range<u64>>,
    total: u64,
}

impl Points {
    /// The same as offsets in the file.
    pub fn offsets(&self, elf: &Elf<'_>) -> Result<Points, NotUnderstood> {
        let offset = |address: u64| elf.offset(address).ok_or(NotUnderstood::NoCode);
        let returns = self.returns.iter().map(|at| offset(*at));
        let quick = self.quick.iter().map(|quick| {
            Ok(Quick {
                of: offset(quick.of)?,
                at: offset(quick.at)?,
                ..*quick
            })
        });
        Ok(Points {
            returns: returns.collect::<Result<_, NotUnderstood>>()?,
            quick: quick.collect::<Result<_, NotUnderstood>>()?,
        })
    }
}

impl Walk<'_> {
    fn decode(&mut self, range: Range<u64>) -> Result<(), NotUnderstood> {
        if self.parts.contains_key(&range.start) {
            return Ok(());
        }
        let size = range.end.saturating_sub(range.start);
        self.total = self.total.saturating_add(size);
        if self.parts.len() >= PARTS_MAX || size > PART_MAX || self.total > TOTAL_MAX {
            return Err(NotUnderstood::TooMuch);
        }
        let offset = self.elf.code_offset(&range).ok_or(NotUnderstood::NoCode)?;
        let code = self.elf.bytes.read(offset, size)?;
        let part = match self.elf.machine {
            Machine::X86_64 => x86::decode(&code, range.start)?,
            Machine::Aarch64 => arm64::decode(&code, range.start)?,
        };
        let (jumps, slots, tables) = (part.jumps.clone(), part.slots.clone(), part.tables.clone());
        self.parts.insert(range.start, (range.end, part));
        for target in jumps {
            self.follow(target)?;
        }
        for slot in slots {
            self.follow_slot(slot)?;
        }
        for table in tables {
            for target in self.targets(table)? {
                self.follow(target)?;
            }
        }
        Ok(())
    }

    fn known(&self, address: u64) -> bool {
        let before = self.parts.range(..=address).next_back();
        before.is_some_and(|(_, (end, _))| address < *end)
    }

    fn follow(&mut self, target: u64) -> Result<(), NotUnderstood> {
        if self.known(target) || self.waiting.iter().any(|range| range.contains(&target)) {
            return Ok(());
        }
        if let Some(slot) = self.stub(target)? {
            return self.follow_slot(slot);
        }
        let part = match self.extents.covering(target)? {
            Some(part) => part,
            None => self.veneer(target)?,
        };
        self.waiting.push(part);
        Ok(())
    }

    /// What linkers put between functions on aarch64 to work around errors of processors (843419,
    /// 835769): one instruction that was moved here, and a jump back to behind its place.
    fn veneer(&self, address: u64) -> Result<Range<u64>, NotUnderstood> {
        let range = address..address.saturating_add(8);
        let refused = NotUnderstood::JumpsAway(address);
        let Some(offset) = self.elf.code_offset(&range) else {
            return Err(refused);
        };
        if self.elf.machine != Machine::Aarch64 {
            return Err(refused);
        }
        let code = self.elf.bytes.read(offset, 8)?;
        match arm64::decode(&code, address)?.jumps[..] {
            [back] if self.known(back) => Ok(range),
            _ => Err(refused),
        }
    }

    fn follow_slot(&mut self, slot: u64) -> Result<(), NotUnderstood> {
        match relocations::word(self.elf, slot)? {
            Word::Value(0) => Err(NotUnderstood::JumpsAway(slot)),
            Word::Value(address) | Word::Own(address, _) => self.follow(address),
            Word::Foreign(name) => Err(NotUnderstood::Foreign(name)),
        }
    }

    /// The word that a stub of the procedure linkage table jumps through.
    fn stub(&self, address: u64) -> Result<Option<u64>, NotUnderstood> {
        let section = self.elf.section_at(address);
        if !section.is_some_and(|section| section.name.starts_with(".plt")) {
            return Ok(None);
        }
        let offset = self.elf.offset(address).ok_or(NotUnderstood::NoCode)?;
        let code: [u8; 16] = self.elf.bytes.array(offset)?;
        let slot = match self.elf.machine {
            Machine::X86_64 => x86::stub(&code, address),
            Machine::Aarch64 => arm64::stub(&code, address),
        };
        slot.map(Some).ok_or(NotUnderstood::JumpsAway(address))
    }

    /// Targets of a switch. One that leads out of what is known as code was no switch.
    fn targets(&self, table: Table) -> Result<Vec<u64>, NotUnderstood> {
        let refused = NotUnderstood::Computed(table.jump);
        if table.entries == 0 || table.entries > TABLE_MAX {
            return Err(refused);
        }
        let mut targets = Vec::new();
        if table.relative {
            let Some(offset) = self.elf.offset(table.address) else {
                return Err(refused);
            };
            let raw = self.elf.bytes.read(offset, table.entries * 4)?;
            for entry in raw.chunks_exact(4) {
                let distance = entry.try_into().map(i32::from_le_bytes).unwrap_or_default();
                targets.push(table.address.wrapping_add_signed(i64::from(distance)));
            }
        } else {
            for index in 0..table.entries {
                let at = table.address.saturating_add(index * 8);
                targets.push(relocations::value(self.elf, at)?);
            }
        }
        targets.sort_unstable();
        targets.dedup();
        // Cases are labels of the function itself, most of them in the part that has the switch.
        match targets.iter().any(|target| self.known(*target)) {
            true => Ok(targets),
            false => Err(refused),
        }
    }

    fn finish(self, start: u64, convention: Convention) -> Result<Points, NotUnderstood> {
        let (mut returns, mut quick) = (Vec::new(), Vec::new());
        if let Some((_, part)) = self.parts.get(&start) {
            let [c, go] = part.entries;
            quick.extend(match convention {
                Convention::C => c,
                Convention::Go => go,
            });
        }
        let is_start = |address: u64| {
            let before = self.parts.range(..=address).next_back();
            before.is_some_and(|(_, (_, part))| part.starts.binary_search(&address).is_ok())
        };
        let mut last_end = 0;
        for (start, (end, part)) in &self.parts {
            if *start < last_end {
                return Err(NotUnderstood::RunsOn(*start));
            }
            last_end = *end;
            for target in &part.jumps {
                if self.known(*target) && !is_start(*target) {
                    return Err(NotUnderstood::JumpsInside(*target));
                }
            }
            for table in &part.tables {
                for target in self.targets(*table)? {
                    if !is_start(target) {
                        return Err(NotUnderstood::JumpsInside(target));
                    }
                }
            }
            returns.extend_from_slice(&part.returns);
            quick.extend_from_slice(&part.exits);
        }
        if returns.is_empty() {
            return Err(NotUnderstood::NoReturn);
        }
        // Nothing may lead to one of the two without the other.
        for (_, part) in self.parts.values() {
            if quick.is_empty() {
                break;
            }
            let mut targets = part.jumps.clone();
            for table in &part.tables {
                targets.extend(self.targets(*table)?);
            }
            for slot in &part.slots {
                targets.extend(relocations::value(self.elf, *slot));
            }
            for target in targets {
                quick.retain(|quick| !quick.is_passed_by(target));
            }
        }
        Ok(Points { returns, quick })
    }
}

#[cfg(test)]
mod tests;
