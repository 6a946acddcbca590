//! Where functions are in a program's file, found in one go over its symbol tables.
//!
//! In: an ELF file that a process runs, which nobody vouches for, and names. Out: file offsets of
//! those that are functions in it. What is missing or malformed is left out; what is read is bounded.

use std::fs::File;
use std::path::Path;

use object::Endianness;
use object::elf::{FileHeader64, SHT_DYNSYM, SHT_SYMTAB, STT_FUNC, SectionType};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _};
use object::read::{ReadCache, ReadRef};
use rustc_hash::FxHashMap;

/// Longest section that is read: the names of a large C++ program take tens of megabytes.
const SECTION_MAX: u64 = 128 << 20;

/// File offsets of the functions of these names; the first one of each.
pub fn offsets<'n>(path: &Path, names: &[&'n str]) -> FxHashMap<&'n str, u64> {
    let mut found = FxHashMap::default();
    let Some(file) = File::open(path).ok().filter(is_regular) else {
        return found;
    };
    let data = ReadCache::new(&file);
    for table in [SHT_DYNSYM, SHT_SYMTAB] {
        if found.len() < names.len() {
            let _ = search(&data, table, &mut |name, offset| {
                if let Some(known) = names.iter().find(|known| known.as_bytes() == name) {
                    found.entry(*known).or_insert(offset);
                }
            });
        }
    }
    found
}

fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|file| file.is_file())
}

/// Has `visit` see the names and file offsets of all functions, of the dynamic symbols first; many are
/// seen twice.
pub fn functions(file: &File, mut visit: impl FnMut(&[u8], u64)) {
    if is_regular(file) {
        let data = ReadCache::new(file);
        for table in [SHT_DYNSYM, SHT_SYMTAB] {
            let _ = search(&data, table, &mut visit);
        }
    }
}

fn search(
    data: &ReadCache<&File>,
    table: SectionType,
    visit: &mut impl FnMut(&[u8], u64),
) -> object::read::Result<()> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let programs = header.program_headers(endian, data)?;
    let sections = header.sections(endian, data)?;
    for section in sections
        .iter()
        .filter(|section| section.sh_type(endian) == table)
    {
        let names_of = sections.section(section.link(endian))?;
        if section.sh_size(endian) > SECTION_MAX || names_of.sh_size(endian) > SECTION_MAX {
            continue;
        }
        let symbols = section.data_as_array::<object::elf::Sym64<Endianness>, _>(endian, data)?;
        let (at, size) = names_of.file_range(endian).unwrap_or_default();
        let text = data.read_bytes_at(at, size).unwrap_or_default();
        for symbol in symbols {
            if symbol.st_type() != STT_FUNC || symbol.st_value(endian) == 0 {
                continue;
            }
            let Some(name) = text.get(symbol.st_name(endian) as usize..) else {
                continue;
            };
            let Some(name) = memchr::memchr(0, name).and_then(|end| name.get(..end)) else {
                continue;
            };
            let address = symbol.st_value(endian);
            let offset = programs.iter().find_map(|program| {
                let start = program.p_vaddr(endian);
                let within = address.checked_sub(start)?;
                (program.p_type(endian) == object::elf::PT_LOAD
                    && within < program.p_filesz(endian))
                .then(|| program.p_offset(endian).checked_add(within))?
            });
            if let Some(offset) = offset {
                visit(name, offset);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: this test program, and files that are no ELF. Guarantees: functions are found
    /// where they are, others are not, and nothing panics.
    #[test]
    fn functions_of_this_program() {
        let path = std::env::current_exe().expect("its path");
        let found = offsets(&path, &["main", "no_such_function"]);
        assert!(found.get("main").is_some_and(|offset| *offset > 0));
        assert!(!found.contains_key("no_such_function"));
        assert!(offsets(Path::new("/etc/hostname"), &["main"]).is_empty());
        assert!(offsets(Path::new("/"), &["main"]).is_empty());
    }
}
