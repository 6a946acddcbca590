//! What the dynamic linker writes where: words of the GOT and pointers of relocatable data.

use std::ops::ControlFlow;

use object::LittleEndian as LE;
use object::elf::{
    R_AARCH64_GLOB_DAT, R_AARCH64_JUMP_SLOT, R_AARCH64_RELATIVE, R_X86_64_GLOB_DAT,
    R_X86_64_JUMP_SLOT, R_X86_64_RELATIVE, Rela64, RelocationType, SHT_RELA,
};
use object::pod::from_bytes;

use super::BinaryError;
use super::elf::{Elf, Machine, elf_tag};
use super::symbols;

const RELA: usize = size_of::<Rela64<LE>>();

/// What a word of data will hold at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// An address in this file (before any load bias), or a plain number.
    Value(u64),
    /// The address of a symbol that this file defines, which another may take precedence over.
    Own(u64, String),
    /// The address of a symbol of another file.
    Foreign(String),
}

/// The word at an address.
pub fn word(elf: &Elf<'_>, address: u64) -> Result<Word, BinaryError> {
    let Some((kind, symbol, addend)) = find(elf, address)? else {
        // No relocation with an addend: the file's own content holds (RELR keeps addends there).
        let at = elf
            .offset(address)
            .ok_or(BinaryError::Malformed("address"))?;
        return elf.bytes.u64(at).map(Word::Value);
    };
    let (relative, slots) = match elf.machine {
        Machine::X86_64 => (R_X86_64_RELATIVE, [R_X86_64_JUMP_SLOT, R_X86_64_GLOB_DAT]),
        Machine::Aarch64 => (
            R_AARCH64_RELATIVE,
            [R_AARCH64_JUMP_SLOT, R_AARCH64_GLOB_DAT],
        ),
    };
    if kind == relative {
        return Ok(Word::Value(addend as u64));
    }
    if !slots.contains(&kind) {
        return Err(BinaryError::Malformed("relocation"));
    }
    Ok(match symbols::by_index(elf, symbol)? {
        (Some(address), name) => Word::Own(address, name),
        (None, name) => Word::Foreign(name),
    })
}

/// The word at an address, if it is a number or an address in this file.
pub fn value(elf: &Elf<'_>, address: u64) -> Result<u64, BinaryError> {
    match word(elf, address)? {
        Word::Value(value) | Word::Own(value, _) => Ok(value),
        Word::Foreign(_) => Err(BinaryError::Malformed("pointer into another file")),
    }
}

/// Addresses of words that will hold one of these addresses of this file, up to `most`.
pub fn pointing_to(elf: &Elf<'_>, addresses: &[u64], most: usize) -> Result<Vec<u64>, BinaryError> {
    let relative = match elf.machine {
        Machine::X86_64 => R_X86_64_RELATIVE,
        Machine::Aarch64 => R_AARCH64_RELATIVE,
    };
    let mut found = Vec::new();
    for table in tables(elf) {
        elf.bytes.records(table, RELA, |_, record| {
            if let Ok((rela, _)) = from_bytes::<Rela64<LE>>(record)
                && RelocationType(rela.r_info.get(LE) as u32) == relative
                && addresses.contains(&(rela.r_addend.get(LE) as u64))
            {
                found.push(rela.r_offset.get(LE));
            }
            match found.len() < most {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
    }
    Ok(found)
}

/// Where relocations with addends are in the file.
fn tables(elf: &Elf<'_>) -> Vec<(u64, u64)> {
    let tables: Vec<(u64, u64)> = elf
        .sections
        .iter()
        .filter(|section| section.kind == SHT_RELA && section.address != 0)
        .map(|section| section.range)
        .collect();
    if !tables.is_empty() {
        return tables;
    }
    let dynamic = [
        (elf_tag::JMPREL, elf_tag::PLTRELSZ),
        (elf_tag::RELA, elf_tag::RELASZ),
    ];
    dynamic
        .into_iter()
        .filter_map(|(at, size)| Some((elf.offset(elf.dynamic(at)?)?, elf.dynamic(size)?)))
        .collect()
}

fn find(elf: &Elf<'_>, address: u64) -> Result<Option<(RelocationType, u32, i64)>, BinaryError> {
    let mut found = None;
    for table in tables(elf) {
        elf.bytes.records(table, RELA, |_, record| {
            match from_bytes::<Rela64<LE>>(record) {
                Ok((rela, _)) if rela.r_offset.get(LE) == address => {
                    let info = rela.r_info.get(LE);
                    found = Some((
                        RelocationType(info as u32),
                        (info >> 32) as u32,
                        rela.r_addend.get(LE),
                    ));
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            }
        })?;
        if found.is_some() {
            break;
        }
    }
    Ok(found)
}
