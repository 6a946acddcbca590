//! Changes to the definitions of maps in the eBPF object, before they are made.
//!
//! In: the object as it was built. Out: one that this kernel and these rights allow. All maps of an object are made
//! with it, also those that only programs use which are not loaded.

use std::borrow::Cow;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// What is to be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Plain tables in the place of tables of sockets, which take CAP_NET_ADMIN to make.
    pub plain_sockets: bool,
    /// Tables have all their entries from the beginning.
    pub allocate_at_once: bool,
}

/// Tables of sockets.
const SOCKET_TABLES: [&str; 2] = ["SOCKETS", "SELFTEST_SOCKETS"];
/// `BPF_MAP_TYPE_HASH`.
const HASH: u32 = 1;
/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// Words of a map's definition: type, sizes of key and value, number of entries, flags.
const WORDS: usize = 5;

/// The object with these changes; `None` if it is not of the kind that this knows.
pub(super) fn with(object: &[u8], changes: Changes) -> Option<Cow<'_, [u8]>> {
    if changes == Changes::default() {
        return Some(Cow::Borrowed(object));
    }
    let file = object::File::parse(object).ok()?;
    let maps = file.section_by_name("maps")?;
    let (start, size) = maps.file_range()?;
    let end = start.checked_add(size)?;
    let mut changed = object.to_vec();
    let mut tables = 0;
    for symbol in file.symbols() {
        let name = symbol.name().unwrap_or_default();
        if symbol.section_index() != Some(maps.index()) || name.is_empty() {
            continue;
        }
        let at = start.checked_add(symbol.address().checked_sub(maps.address())?)?;
        if at >= end {
            continue;
        }
        let at = usize::try_from(at).ok()?;
        let definition = changed.get_mut(at..at.checked_add(4 * WORDS)?)?;
        let (kind, rest) = definition.split_first_chunk_mut::<4>()?;
        let (_, flags) = rest.split_last_chunk_mut::<4>()?;
        if changes.plain_sockets && SOCKET_TABLES.contains(&name) {
            *kind = HASH.to_ne_bytes();
            tables += 1;
        }
        if changes.allocate_at_once && u32::from_ne_bytes(*kind) == HASH {
            *flags = (u32::from_ne_bytes(*flags) & !NO_PREALLOC).to_ne_bytes();
        }
    }
    let all_found = !changes.plain_sockets || tables == SOCKET_TABLES.len();
    all_found.then_some(Cow::Owned(changed))
}

/// Names that are exchanged for programs of functions (`tracer-ebpf/src/hook.rs`).
const CONSTANT: (&str, &str) = ("AT_TRACEPOINT", "AT_FUNCTION");
/// And the map of tail-called programs, for the one that is wanted.
const TABLE: &str = "PROGRAMS";
/// Size of an entry of a table of relocations: place, kind and symbol.
const RELOCATION: usize = 16;
/// Where its kind is in it.
const KIND: usize = 8;
/// Where the symbol's number is in it.
const SYMBOL: usize = 12;

/// The object with the code that it has for programs of functions: what refers to one name refers to the other.
pub(super) fn for_functions(object: &[u8], table: &str) -> Option<Vec<u8>> {
    use object::read::elf::{FileHeader as _, SectionHeader as _};

    let file = object::read::elf::ElfFile64::<object::LittleEndian>::parse(object).ok()?;
    let number = |name: &str| {
        let symbol = file.symbol_by_name(name)?;
        u32::try_from(symbol.index().0).ok()
    };
    let pairs = [
        (number(CONSTANT.0)?, number(CONSTANT.1)?),
        (number(TABLE)?, number(table)?),
    ];
    let endian = file.endian();
    let header = file.elf_header();
    let mut changed = object.to_vec();
    for section in header.section_headers(endian, object).ok()? {
        if section.sh_type(endian) != object::elf::SHT_REL {
            continue;
        }
        let (start, size) = section.file_range(endian)?;
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(usize::try_from(size).ok()?)?;
        for entry in changed.get_mut(start..end)?.chunks_exact_mut(RELOCATION) {
            if entry.get(KIND..SYMBOL)? != object::elf::R_BPF_64_64.0.to_le_bytes() {
                continue;
            }
            let place = entry.get_mut(SYMBOL..)?.first_chunk_mut::<4>()?;
            let symbol = u32::from_le_bytes(*place);
            if let Some((_, to)) = pairs.iter().find(|(from, _)| *from == symbol) {
                *place = to.to_le_bytes();
            }
        }
    }
    Some(changed)
}

#[cfg(test)]
mod tests {
    use super::super::load::OBJECT;
    use super::*;

    /// Bytes that differ, before and after.
    fn differences(changes: Changes) -> Vec<(u8, u8)> {
        let changed = with(OBJECT, changes).expect("maps");
        // What was changed stays as it is.
        assert_eq!(with(&changed, changes).expect("maps"), changed);
        assert_eq!(changed.len(), OBJECT.len());
        let pairs = OBJECT.iter().zip(changed.iter());
        pairs
            .filter(|(before, after)| before != after)
            .map(|(before, after)| (*before, *after))
            .collect()
    }

    /// Scenario: the object built in. Guarantees: what it refers to changes, and nothing else: no more bytes differ than
    /// numbers of symbols have, and none a second time.
    #[test]
    fn code_of_functions() {
        if OBJECT.is_empty() {
            println!("skipped: no kernel side");
            return;
        }
        let changed = for_functions(OBJECT, "FUNCTION_PROGRAMS").expect("symbols");
        assert_eq!(changed.len(), OBJECT.len());
        let pairs = OBJECT.iter().zip(&changed);
        let differ = pairs.filter(|(before, after)| before != after).count();
        assert!((32..4096).contains(&differ), "{differ} bytes");
        let again = for_functions(&changed, "FUNCTION_PROGRAMS").expect("symbols");
        assert_eq!(again, changed);
        assert!(for_functions(b"no object", "FUNCTION_PROGRAMS").is_none());
        assert!(for_functions(OBJECT, "NO_TABLE").is_none());
    }

    /// Scenario: the object built in. Guarantees: of some maps one bit is taken away, of two the type changes, and
    /// nothing else does.
    #[test]
    fn only_definitions_of_maps_change() {
        if OBJECT.is_empty() {
            println!("skipped: no kernel side");
            return;
        }
        let at_once = differences(Changes {
            allocate_at_once: true,
            ..Changes::default()
        });
        assert!((1..32).contains(&at_once.len()), "{at_once:?}");
        assert!(at_once.iter().all(|pair| *pair == (1, 0)), "{at_once:?}");
        let plain = differences(Changes {
            plain_sockets: true,
            ..Changes::default()
        });
        // `BPF_MAP_TYPE_SOCKHASH` to `BPF_MAP_TYPE_HASH`.
        assert_eq!(plain, [(18, 1); SOCKET_TABLES.len()]);
        assert!(differences(Changes::default()).is_empty());
    }
}
