//! Go's function table (`runtime/symtab.go`, `debug/gosym`): names and ranges of all functions.
//!
//! | magic | since | differs |
//! | --- | --- | --- |
//! | `0xfffffffa` | 1.16 | entries are addresses |
//! | `0xfffffff0` | 1.18 | entries are distances from the text's start, which the header holds |
//! | `0xfffffff1` | 1.20 | the same; since 1.26 the header holds no text start, the module data does |

use std::ops::{ControlFlow, Range};

use rustc_hash::FxHashMap;

use super::super::BinaryError;
use super::super::elf::{Elf, Machine};
use super::super::relocations;
use super::module;

const MAGIC_1_16: u32 = 0xffff_fffa;
const MAGIC_1_18: u32 = 0xffff_fff0;
const MAGIC_1_20: u32 = 0xffff_fff1;
const MAGICS: [u32; 3] = [MAGIC_1_20, MAGIC_1_18, MAGIC_1_16];
/// The largest Go programs have some hundred thousand functions.
const FUNCTIONS_MAX: u64 = 8 * 1024 * 1024;
/// Piece of the table that is held while walking through it.
const WINDOW: u64 = 256 * 1024;

/// Where the parts of the table lie.
#[derive(Clone, Debug)]
pub struct FunctionTable {
    /// Address of the table's header.
    pub address: u64,
    /// Address that entries are relative to; 0 where they are addresses.
    text: u64,
    /// Whether entries are 4 bytes, otherwise 8.
    short: bool,
    /// Functions in the table.
    count: u64,
    /// File range of the names.
    names: (u64, u64),
    /// File offset of the entries; what they point to is relative to it too.
    entries: u64,
    /// File offset behind the table.
    end: u64,
}

impl FunctionTable {
    /// Finds and checks the table.
    pub fn parse(elf: &Elf<'_>) -> Result<Self, BinaryError> {
        let malformed = BinaryError::Malformed("Go function table");
        let (address, (at, size)) =
            place(elf)?.ok_or(BinaryError::Malformed("no Go function table"))?;
        let header: [u8; 8] = elf.bytes.array(at)?;
        let [m0, m1, m2, m3, 0, 0, quantum, 8] = header else {
            return Err(malformed);
        };
        let magic = u32::from_le_bytes([m0, m1, m2, m3]);
        let expected = match elf.machine {
            Machine::X86_64 => 1,
            Machine::Aarch64 => 4,
        };
        if !MAGICS.contains(&magic) || quantum != expected {
            return Err(malformed);
        }
        let short = magic != MAGIC_1_16;
        let word = |index: u64| elf.bytes.u64(at + 8 + index * 8);
        // With a text start the offsets are one word further.
        let shift = u64::from(short);
        let (count, names, after, entries) = (
            word(0)?,
            word(2 + shift)?,
            word(3 + shift)?,
            word(6 + shift)?,
        );
        let width = if short { 4 } else { 8 };
        let fits = count <= FUNCTIONS_MAX
            && names <= after
            && after <= size
            && entries <= size
            && count * 2 * width <= size - entries;
        if !fits {
            return Err(malformed);
        }
        let mut table = FunctionTable {
            address,
            text: 0,
            short,
            count,
            names: (at + names, after - names),
            entries: at + entries,
            end: at + size,
        };
        if short {
            table.text = text(elf, address)?;
        }
        Ok(table)
    }

    /// Ranges of functions by their full names, those that exist.
    pub fn find(
        &self,
        elf: &Elf<'_>,
        names: &[&str],
    ) -> Result<Vec<(String, Range<u64>)>, BinaryError> {
        let mut wanted: FxHashMap<u32, &str> = FxHashMap::default();
        for name in names {
            let mut needle = vec![0];
            needle.extend_from_slice(name.as_bytes());
            needle.push(0);
            elf.bytes.search(self.names, &needle, |at, _| {
                if let Ok(at) = u32::try_from(at + 1) {
                    wanted.insert(at, name);
                }
                ControlFlow::Break(())
            })?;
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let width = if self.short { 4 } else { 8 };
        let mut window = Window::default();
        let mut found = Vec::new();
        let mut failed = None;
        let entries = (self.entries, self.count * 2 * width);
        elf.bytes
            .records(entries, 2 * width as usize, |index, record| {
                let (_, offset) = self.entry(record);
                // A function's record begins with its entry, then the name.
                let at = self
                    .entries
                    .checked_add(offset)
                    .and_then(|at| at.checked_add(width));
                match at.map(|at| window.u32(elf, at, self.end)) {
                    Some(Ok(name)) => {
                        if let Some(name) = wanted.get(&name) {
                            found.push(((*name).to_owned(), index));
                        }
                        match found.len() < wanted.len() * 2 {
                            true => ControlFlow::Continue(()),
                            false => ControlFlow::Break(()),
                        }
                    }
                    Some(Err(error)) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                    None => {
                        failed = Some(BinaryError::Malformed("Go function table"));
                        ControlFlow::Break(())
                    }
                }
            })?;
        if let Some(error) = failed {
            return Err(error);
        }
        found
            .into_iter()
            .map(|(name, index)| Ok((name, self.range(elf, index)?)))
            .collect()
    }

    /// The function that holds an address.
    pub fn covering(&self, elf: &Elf<'_>, address: u64) -> Result<Option<Range<u64>>, BinaryError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.start(elf, middle)? <= address {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        let Some(index) = low.checked_sub(1) else {
            return Ok(None);
        };
        let range = self.range(elf, index)?;
        Ok(range.contains(&address).then_some(range))
    }

    /// Begin of function `index`, or the end of the last one.
    fn start(&self, elf: &Elf<'_>, index: u64) -> Result<u64, BinaryError> {
        let width = if self.short { 4 } else { 8 };
        let raw = elf.bytes.read(self.entries + index * 2 * width, width)?;
        Ok(self.entry(&raw).0)
    }

    fn range(&self, elf: &Elf<'_>, index: u64) -> Result<Range<u64>, BinaryError> {
        Ok(self.start(elf, index)?..self.start(elf, index + 1)?)
    }

    /// Address and offset of the record, from an entry (the second is 0 where it is cut off).
    fn entry(&self, record: &[u8]) -> (u64, u64) {
        let width = if self.short { 4 } else { 8 };
        let mut halves = record.chunks_exact(width).map(|half| {
            let mut word = [0; 8];
            word.iter_mut().zip(half).for_each(|(to, from)| *to = *from);
            u64::from_le_bytes(word)
        });
        let start = halves.next().unwrap_or_default();
        (
            self.text.wrapping_add(start),
            halves.next().unwrap_or_default(),
        )
    }
}

/// Address and file range of the table.
type Place = (u64, (u64, u64));

fn place(elf: &Elf<'_>) -> Result<Option<Place>, BinaryError> {
    for name in [".gopclntab", ".data.rel.ro.gopclntab"] {
        if let Some(section) = elf.section(name) {
            return Ok(Some((section.address, section.range)));
        }
    }
    // External linkers may have merged it into another section, or the section table is gone.
    let quantum = match elf.machine {
        Machine::X86_64 => 1,
        Machine::Aarch64 => 4,
    };
    for magic in MAGICS {
        let mut needle = magic.to_le_bytes().to_vec();
        needle.extend_from_slice(&[0, 0, quantum, 8]);
        for segment in elf.segments.iter().filter(|segment| !segment.executable) {
            let mut found = None;
            elf.bytes
                .search((segment.offset, segment.size), &needle, |at, tail| {
                    // The names begin right behind the header.
                    let words = if magic == MAGIC_1_16 {
                        (24, 64)
                    } else {
                        (32, 72)
                    };
                    let name = tail.get(words.0..words.0 + 8);
                    let name = name
                        .and_then(|word| word.try_into().ok())
                        .map(u64::from_le_bytes);
                    match name.is_some_and(|name| (words.1..words.1 + 64).contains(&name)) {
                        true => {
                            found = Some(at);
                            ControlFlow::Break(())
                        }
                        false => ControlFlow::Continue(()),
                    }
                })?;
            if let Some(at) = found {
                let range = (segment.offset + at, segment.size - at);
                return Ok(Some((segment.address + at, range)));
            }
        }
    }
    Ok(None)
}

/// The address that entries are relative to: in the header (a relocated word in position-independent
/// programs), or in the module data.
fn text(elf: &Elf<'_>, table: u64) -> Result<u64, BinaryError> {
    let executable = |address: &u64| {
        elf.code_offset(&(*address..address.saturating_add(1)))
            .is_some()
    };
    let header = relocations::value(elf, table.saturating_add(24))?;
    if header != 0 && executable(&header) {
        return Ok(header);
    }
    let module = module::find(elf, table)?.ok_or(BinaryError::Malformed("no Go module data"))?;
    let text = module::text(elf, module)?;
    match executable(&text) {
        true => Ok(text),
        false => Err(BinaryError::Malformed("Go module data")),
    }
}

/// Records lie in the order of their entries: a window that moves along reads each byte once.
#[derive(Default)]
struct Window {
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn u32(&mut self, elf: &Elf<'_>, at: u64, end: u64) -> Result<u32, BinaryError> {
        let held = |window: &Window| -> Option<u32> {
            let from = usize::try_from(at.checked_sub(window.at)?).ok()?;
            let word = window.bytes.get(from..)?.get(..4)?;
            word.try_into().ok().map(u32::from_le_bytes)
        };
        if let Some(word) = held(self) {
            return Ok(word);
        }
        let left = end.checked_sub(at).filter(|left| *left >= 4);
        let left = left.ok_or(BinaryError::Malformed("Go function table"))?;
        self.bytes = elf.bytes.read(at, left.min(WINDOW))?;
        self.at = at;
        held(self).ok_or(BinaryError::Truncated)
    }
}
