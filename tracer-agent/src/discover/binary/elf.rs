//! The frame of an ELF file: segments, sections, where an address lies in the file.
//!
//! In: bytes nobody vouches for. Out: tables of bounded size whose ranges lie within the file.
//! Only 64-bit little-endian x86-64 and aarch64, the machines that the agent runs on.

use std::ops::Range;

use object::elf::{
    EM_AARCH64, EM_X86_64, FileHeader64, PF_X, PT_DYNAMIC, PT_LOAD, ProgramHeader64, SHF_ALLOC,
    SHF_EXECINSTR, SHT_NOBITS, SectionFlags, SectionHeader64, SectionType,
};
use object::pod::{from_bytes, slice_from_bytes};
use object::{LittleEndian as LE, elf};

use super::BinaryError;
use super::bytes::{Bytes, until_nul};

/// Program headers of real files are below 20, sections below 100 (compilers' outputs, not linkers',
/// have more).
const SEGMENTS_MAX: u64 = 256;
const SECTIONS_MAX: u64 = 4096;
const NAMES_MAX: u64 = 256 * 1024;
const DYNAMIC_MAX: u64 = 64 * 1024;

/// Instruction sets that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    X86_64,
    Aarch64,
}

/// A loaded part of the file.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Address before any load bias.
    pub address: u64,
    /// Position in the file.
    pub offset: u64,
    /// Bytes in the file, without what a damaged header claims behind its end.
    pub size: u64,
    /// Whether it is mapped executable.
    pub executable: bool,
}

/// A section, where the file kept the table.
#[derive(Clone, Debug)]
pub struct Section {
    /// Name.
    pub name: String,
    /// `SHT_…`.
    pub kind: SectionType,
    /// Address before any load bias; 0 if it is not loaded.
    pub address: u64,
    /// Position and bytes in the file.
    pub range: (u64, u64),
    /// Another section's index, what for depends on the kind.
    pub link: u32,
    /// `SHF_…`.
    pub flags: SectionFlags,
}

/// A parsed file.
pub struct Elf<'a> {
    /// All of it.
    pub bytes: Bytes<'a>,
    /// What its code is for.
    pub machine: Machine,
    /// In the order of the file.
    pub segments: Vec<Segment>,
    /// Empty where they were removed.
    pub sections: Vec<Section>,
    /// Tags and values of the dynamic section.
    pub dynamic: Vec<(i64, u64)>,
}

impl<'a> Elf<'a> {
    /// Reads the headers.
    pub fn parse(bytes: Bytes<'a>) -> Result<Self, BinaryError> {
        let ident: [u8; 6] = bytes.array(0)?;
        match ident {
            [0x7f, b'E', b'L', b'F', 2, 1] => {}
            [0x7f, b'E', b'L', b'F', 1, _] => return Err(BinaryError::Unsupported("32-bit code")),
            [0x7f, b'E', b'L', b'F', ..] => {
                return Err(BinaryError::Unsupported("big-endian code"));
            }
            _ => return Err(BinaryError::NotElf),
        }
        let header = bytes.read(0, size_of::<FileHeader64<LE>>() as u64)?;
        let (header, _) =
            from_bytes::<FileHeader64<LE>>(&header).map_err(|()| BinaryError::Truncated)?;
        let machine = match header.e_machine.get(LE) {
            EM_X86_64 => Machine::X86_64,
            EM_AARCH64 => Machine::Aarch64,
            _ => return Err(BinaryError::Unsupported("code for another machine")),
        };
        let mut elf = Elf {
            bytes,
            machine,
            segments: Vec::new(),
            sections: Vec::new(),
            dynamic: Vec::new(),
        };
        elf.read_segments(header)?;
        elf.read_sections(header)?;
        Ok(elf)
    }

    fn read_segments(&mut self, header: &FileHeader64<LE>) -> Result<(), BinaryError> {
        let count = u64::from(header.e_phnum.get(LE));
        let unit = size_of::<ProgramHeader64<LE>>();
        if count > SEGMENTS_MAX || usize::from(header.e_phentsize.get(LE)) != unit {
            return Err(BinaryError::Malformed("program headers"));
        }
        let raw = self
            .bytes
            .read(header.e_phoff.get(LE), count * unit as u64)?;
        let (headers, _) = slice_from_bytes::<ProgramHeader64<LE>>(&raw, count as usize)
            .map_err(|()| BinaryError::Truncated)?;
        for header in headers {
            let (offset, size) = (header.p_offset.get(LE), header.p_filesz.get(LE));
            match header.p_type.get(LE) {
                PT_LOAD => self.segments.push(Segment {
                    address: header.p_vaddr.get(LE),
                    offset,
                    size: size.min(self.bytes.len().saturating_sub(offset)),
                    executable: header.p_flags.get(LE).contains(PF_X),
                }),
                PT_DYNAMIC => {
                    let raw = self.bytes.read(offset, size.min(DYNAMIC_MAX))?;
                    let words = raw.chunks_exact(16).filter_map(|pair| {
                        let (tag, value) = pair.split_at_checked(8)?;
                        Some((
                            i64::from_le_bytes(tag.try_into().ok()?),
                            u64::from_le_bytes(value.try_into().ok()?),
                        ))
                    });
                    self.dynamic = words.take_while(|(tag, _)| *tag != 0).collect();
                }
                _ => {}
            }
        }
        // An address is at one place of the file: everything that follows relies on it.
        let mut last_end = 0;
        let mut sorted: Vec<_> = self.segments.iter().filter(|it| it.size > 0).collect();
        sorted.sort_unstable_by_key(|segment| segment.address);
        for segment in sorted {
            let end = segment.address.checked_add(segment.size);
            match end.filter(|_| segment.address >= last_end) {
                Some(end) => last_end = end,
                None => return Err(BinaryError::Malformed("segments overlap")),
            }
        }
        Ok(())
    }

    /// A file without a section table, or with one that lies outside of the file (cut off to hide
    /// it), is a file without sections.
    fn read_sections(&mut self, header: &FileHeader64<LE>) -> Result<(), BinaryError> {
        let count = u64::from(header.e_shnum.get(LE));
        let unit = size_of::<SectionHeader64<LE>>();
        if count == 0 || count > SECTIONS_MAX || usize::from(header.e_shentsize.get(LE)) != unit {
            return Ok(());
        }
        let raw = match self.bytes.read(header.e_shoff.get(LE), count * unit as u64) {
            Ok(raw) => raw,
            Err(BinaryError::Truncated) => return Ok(()),
            Err(error) => return Err(error),
        };
        let (headers, _) = slice_from_bytes::<SectionHeader64<LE>>(&raw, count as usize)
            .map_err(|()| BinaryError::Truncated)?;
        let Some(names) = headers.get(usize::from(header.e_shstrndx.get(LE).0)) else {
            return Ok(());
        };
        let Ok(names) = self.bytes.read(
            names.sh_offset.get(LE),
            names.sh_size.get(LE).min(NAMES_MAX),
        ) else {
            return Ok(());
        };
        for header in headers {
            let name = names
                .get(header.sh_name.get(LE) as usize..)
                .and_then(until_nul);
            let kind = header.sh_type.get(LE);
            self.sections.push(Section {
                name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
                kind,
                address: header.sh_addr.get(LE),
                range: match kind {
                    SHT_NOBITS => (0, 0),
                    _ => (header.sh_offset.get(LE), header.sh_size.get(LE)),
                },
                link: header.sh_link.get(LE),
                flags: header.sh_flags.get(LE),
            });
        }
        Ok(())
    }

    /// The section of this name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The loaded section that holds this address.
    pub fn section_at(&self, address: u64) -> Option<&Section> {
        self.sections.iter().find(|section| {
            section.flags.contains(SHF_ALLOC)
                && address
                    .checked_sub(section.address)
                    .is_some_and(|at| at < section.range.1)
        })
    }

    /// Value of a tag of the dynamic section.
    pub fn dynamic(&self, tag: elf_tag::Tag) -> Option<u64> {
        let found = self.dynamic.iter().find(|(known, _)| *known == tag);
        found.map(|(_, value)| *value)
    }

    /// Position in the file of an address.
    pub fn offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let at = address.checked_sub(segment.address)?;
            (at < segment.size).then_some(segment.offset.checked_add(at)?)
        })
    }

    /// Address of a position in the file.
    pub fn address(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let at = offset.checked_sub(segment.offset)?;
            (at < segment.size).then_some(segment.address.checked_add(at)?)
        })
    }

    /// Position in the file of a range of code: all of it in one executable segment.
    pub fn code_offset(&self, range: &Range<u64>) -> Option<u64> {
        let size = range.end.checked_sub(range.start)?;
        self.segments
            .iter()
            .filter(|segment| segment.executable)
            .find_map(|segment| {
                let at = range.start.checked_sub(segment.address)?;
                let fits = at.checked_add(size)? <= segment.size && size > 0;
                fits.then_some(segment.offset.checked_add(at)?)
            })
    }

    /// Ranges of constant data, where texts are: sections, or segments where there are none.
    pub fn constants(&self) -> Vec<(u64, u64)> {
        let wanted = |section: &&Section| {
            section.kind == elf::SHT_PROGBITS
                && section.flags.contains(SHF_ALLOC)
                && !section.flags.contains(SHF_EXECINSTR)
                && (section.name.starts_with(".rodata") || section.name.starts_with(".data.rel.ro"))
        };
        let sections: Vec<_> = self
            .sections
            .iter()
            .filter(wanted)
            .map(|section| section.range)
            .collect();
        if !sections.is_empty() {
            return sections;
        }
        let segments = self.segments.iter();
        segments
            .map(|segment| (segment.offset, segment.size))
            .collect()
    }
}

/// Tags of the dynamic section.
pub mod elf_tag {
    /// As the file holds it.
    pub type Tag = i64;
    /// Address of the strings.
    pub const STRTAB: Tag = 5;
    /// Address of the symbols.
    pub const SYMTAB: Tag = 6;
    /// Address of the relocations with addends.
    pub const RELA: Tag = 7;
    /// Their bytes.
    pub const RELASZ: Tag = 8;
    /// Bytes of the strings.
    pub const STRSZ: Tag = 10;
    /// Address of the relocations of the PLT.
    pub const JMPREL: Tag = 23;
    /// Their bytes.
    pub const PLTRELSZ: Tag = 2;
}
