//! Functions by name, and which function holds an address, from the symbol tables.
//!
//! The dynamic table is asked before the full one. Tables are scanned in pieces and never held
//! whole: those of large programs have tens of megabytes.

use std::ops::{ControlFlow, Range};

use object::LittleEndian as LE;
use object::elf::{SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB, STT_FUNC, STT_OBJECT, SectionType, Sym64};
use object::pod::from_bytes;
use rustc_hash::FxHashMap;

use super::BinaryError;
use super::bytes::until_nul;
use super::elf::{Elf, elf_tag};

const SYMBOL: usize = size_of::<Sym64<LE>>();
/// Names of interest in one table; more is no library but an attack.
const HITS_MAX: usize = 8192;

/// A named place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name.
    pub name: String,
    /// Address before any load bias.
    pub address: u64,
    /// Bytes; 0 where the table does not say.
    pub size: u64,
    /// A function, otherwise data.
    pub function: bool,
}

/// Where a symbol table and its strings lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    symbols: (u64, u64),
    strings: (u64, u64),
}

/// The dynamic table.
pub fn dynamic_table(elf: &Elf<'_>) -> Option<Table> {
    table(elf, SHT_DYNSYM).or_else(|| without_sections(elf))
}

/// The full table, which `strip` removes.
pub fn full_table(elf: &Elf<'_>) -> Option<Table> {
    table(elf, SHT_SYMTAB)
}

fn table(elf: &Elf<'_>, kind: SectionType) -> Option<Table> {
    let section = elf.sections.iter().find(|section| section.kind == kind)?;
    let strings = elf.sections.get(section.link as usize)?;
    Some(Table {
        symbols: section.range,
        strings: strings.range,
    })
}

/// Without a section table nothing says how many symbols there are; linkers put the strings right
/// behind them, and what is not a symbol has no name of interest.
fn without_sections(elf: &Elf<'_>) -> Option<Table> {
    let symbols = elf.offset(elf.dynamic(elf_tag::SYMTAB)?)?;
    let strings = elf.offset(elf.dynamic(elf_tag::STRTAB)?)?;
    Some(Table {
        symbols: (symbols, strings.checked_sub(symbols)?),
        strings: (strings, elf.dynamic(elf_tag::STRSZ)?),
    })
}

/// Defined symbols whose name begins with one of the prefixes and is wanted.
pub fn find(
    elf: &Elf<'_>,
    table: Table,
    prefixes: &[&str],
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<Symbol>, BinaryError> {
    let mut names: FxHashMap<u32, String> = FxHashMap::default();
    for prefix in prefixes {
        elf.bytes
            .search(table.strings, prefix.as_bytes(), |at, tail| {
                let name = until_nul(tail).and_then(|name| std::str::from_utf8(name).ok());
                if let (Some(name), Ok(at)) = (name.filter(|name| wanted(name)), u32::try_from(at))
                {
                    names.insert(at, name.to_owned());
                }
                match names.len() < HITS_MAX {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })?;
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    elf.bytes.records(table.symbols, SYMBOL, |_, record| {
        if let Ok((symbol, _)) = from_bytes::<Sym64<LE>>(record)
            && let Some(name) = names.get(&symbol.st_name.get(LE))
            && symbol.st_shndx.get(LE) != SHN_UNDEF
            && matches!(symbol.st_type(), STT_FUNC | STT_OBJECT)
        {
            found.push(Symbol {
                name: name.clone(),
                address: symbol.st_value.get(LE),
                size: symbol.st_size.get(LE),
                function: symbol.st_type() == STT_FUNC,
            });
        }
        match found.len() < HITS_MAX {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    })?;
    Ok(found)
}

/// The function that holds an address, by its size in the table.
pub fn covering(
    elf: &Elf<'_>,
    table: Table,
    address: u64,
) -> Result<Option<Range<u64>>, BinaryError> {
    let mut found = None;
    elf.bytes.records(table.symbols, SYMBOL, |_, record| {
        if let Ok((symbol, _)) = from_bytes::<Sym64<LE>>(record)
            && symbol.st_type() == STT_FUNC
            && symbol.st_shndx.get(LE) != SHN_UNDEF
            && let start = symbol.st_value.get(LE)
            && let Some(end) = start.checked_add(symbol.st_size.get(LE))
            && (start..end).contains(&address)
        {
            found = Some(start..end);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Address and name of the dynamic symbol with this index; no address if another file defines it.
pub fn by_index(elf: &Elf<'_>, index: u32) -> Result<(Option<u64>, String), BinaryError> {
    let table = dynamic_table(elf).ok_or(BinaryError::Malformed("dynamic symbols"))?;
    let at = u64::from(index) * SYMBOL as u64;
    if at >= table.symbols.1 {
        return Err(BinaryError::Malformed("symbol index"));
    }
    let raw = elf
        .bytes
        .read(table.symbols.0.saturating_add(at), SYMBOL as u64)?;
    let (symbol, _) = from_bytes::<Sym64<LE>>(&raw).map_err(|()| BinaryError::Truncated)?;
    let name_at = u64::from(symbol.st_name.get(LE));
    let left = table.strings.1.saturating_sub(name_at).min(256);
    let raw = elf
        .bytes
        .read(table.strings.0.saturating_add(name_at), left)?;
    let name = String::from_utf8_lossy(until_nul(&raw).unwrap_or_default()).into_owned();
    let defined = symbol.st_shndx.get(LE) != SHN_UNDEF;
    Ok((defined.then_some(symbol.st_value.get(LE)), name))
}
