//! Go's module data (`runtime.moduledata`): where text begins, and the interface tables.
//!
//! Its first word is the address of the function table, which tells it where symbols are gone. Fields
//! are counted in words as `runtime/symtab.go` of each release declares them; what is read through
//! them is checked against names, so that a layout that changed gives nothing, not something wrong.

use std::ops::ControlFlow;

use object::elf::{SHF_ALLOC, SHF_WRITE, SHT_PROGBITS, SHT_RELA};

use super::super::BinaryError;
use super::super::elf::Elf;
use super::super::relocations;

const MINPC: u64 = 20;
const TEXT: u64 = 22;
/// Interface tables looked at; large programs have some ten thousand.
const ITABS_MAX: u64 = 256 * 1024;

/// Address of the module data that belongs to the function table at this address.
pub fn find(elf: &Elf<'_>, table: u64) -> Result<Option<u64>, BinaryError> {
    if let Some(section) = elf.section(".go.module") {
        let is_it = relocations::value(elf, section.address)? == table;
        return Ok(is_it.then_some(section.address));
    }
    for address in candidates(elf, table)? {
        // The text's start is the first function's, or just before it.
        let minpc = relocations::value(elf, address.saturating_add(MINPC * 8));
        let start = text(elf, address);
        if let (Ok(minpc), Ok(start)) = (minpc, start)
            && start != 0
            && start <= minpc
            && elf.code_offset(&(minpc..minpc.saturating_add(1))).is_some()
        {
            return Ok(Some(address));
        }
    }
    Ok(None)
}

/// Start of the text.
pub fn text(elf: &Elf<'_>, module: u64) -> Result<u64, BinaryError> {
    relocations::value(elf, module.saturating_add(TEXT * 8))
}

/// Places that hold, or will hold, the address of the table.
fn candidates(elf: &Elf<'_>, table: u64) -> Result<Vec<u64>, BinaryError> {
    let mut found = Vec::new();
    let data = SHF_ALLOC | SHF_WRITE;
    let sections = elf.sections.iter().filter(|section| {
        section.kind == SHT_PROGBITS && section.flags.contains(data) && section.address % 8 == 0
    });
    let ranges: Vec<_> = match elf.sections.is_empty() {
        true => elf
            .segments
            .iter()
            .filter(|segment| !segment.executable)
            .map(|segment| (segment.address, (segment.offset, segment.size)))
            .collect(),
        false => sections
            .map(|section| (section.address, section.range))
            .collect(),
    };
    for (address, range) in ranges {
        elf.bytes.records(range, 8, |index, word| {
            if word == table.to_le_bytes() {
                found.push(address + index * 8);
            }
            more(&found)
        })?;
    }
    for section in elf
        .sections
        .iter()
        .filter(|section| section.kind == SHT_RELA)
    {
        elf.bytes.records(section.range, 24, |_, rela| {
            if rela.get(16..) == Some(&table.to_le_bytes())
                && let Some(Ok(place)) = rela.get(..8).map(TryInto::try_into)
            {
                found.push(u64::from_le_bytes(place));
            }
            more(&found)
        })?;
    }
    Ok(found)
}

fn more(found: &[u64]) -> ControlFlow<()> {
    match found.len() < 64 {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    }
}

/// Address of the interface table of a concrete type and an interface.
pub fn itab(
    elf: &Elf<'_>,
    module: u64,
    release: (u16, u16),
    concrete: &str,
    interface: &str,
) -> Result<Option<u64>, BinaryError> {
    let (types, itabs) = match release {
        (1, 17) => (35, 43),
        (1, 18..=19) => (35, 45),
        (1, 20..=25) => (37, 47),
        (1, 26) => (37, 48),
        _ => return Ok(None),
    };
    let field = |index: u64| relocations::value(elf, module.saturating_add(index * 8));
    let (types, end) = (field(types)?, field(types + 1)?);
    let (list, count) = (field(itabs)?, field(itabs + 1)?);
    if count > ITABS_MAX || types >= end {
        return Ok(None);
    }
    let words = Words::read(elf, list, count)?;
    for itab in words.values {
        let pair = Words::read(elf, itab, 2)?;
        let [kind, of] = pair.values[..] else {
            continue;
        };
        if name(elf, of, (types, end))?.as_deref() == Some(concrete)
            && name(elf, kind, (types, end))?.as_deref() == Some(interface)
        {
            return Ok(Some(itab));
        }
    }
    Ok(None)
}

/// Pointers in a row. In position-independent programs they are relocated, and looking each up in a
/// table of relocations would take the square of their number: these are left out, which costs the
/// check of the connection's type and nothing else.
struct Words {
    values: Vec<u64>,
}

impl Words {
    fn read(elf: &Elf<'_>, address: u64, count: u64) -> Result<Words, BinaryError> {
        let malformed = BinaryError::Malformed("Go module data");
        let at = elf.offset(address).ok_or(malformed)?;
        let raw = elf.bytes.read(at, count * 8)?;
        let values = raw.chunks_exact(8).filter_map(|word| {
            let word = word.try_into().ok().map(u64::from_le_bytes)?;
            (word != 0).then_some(word)
        });
        Ok(Words {
            values: values.collect(),
        })
    }
}

/// Name of a type: flags at 20, an offset at 40 that leads to a flag byte, a length and the text. The
/// text may have a star in front that is not of this type (flag 2).
fn name(elf: &Elf<'_>, of: u64, (types, end): (u64, u64)) -> Result<Option<String>, BinaryError> {
    if !(types..end).contains(&of) {
        return Ok(None);
    }
    let Some(at) = elf.offset(of) else {
        return Ok(None);
    };
    let head: [u8; 48] = elf.bytes.array(at)?;
    let (Some(flags), Some(offset)) = (head.get(20), head.get(40..44)) else {
        return Ok(None);
    };
    let offset = offset
        .try_into()
        .map(u32::from_le_bytes)
        .unwrap_or_default();
    let text = types.saturating_add(u64::from(offset));
    if !(types..end).contains(&text) {
        return Ok(None);
    }
    let Some(at) = elf.offset(text) else {
        return Ok(None);
    };
    let [_, length] = elf.bytes.array(at)?;
    // Names of interest are short: one byte of length.
    if length >= 0x80 {
        return Ok(None);
    }
    let text = elf.bytes.read(at + 2, u64::from(length))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(Some(match flags & 2 {
        2 => text.strip_prefix('*').unwrap_or(&text).to_owned(),
        _ => text,
    }))
}
