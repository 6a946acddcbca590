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
