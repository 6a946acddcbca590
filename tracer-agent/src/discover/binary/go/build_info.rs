//! The Go version that the linker writes into every program (`debug/buildinfo` reads the same).

use std::ops::ControlFlow;

use super::super::BinaryError;
use super::super::elf::Elf;
use super::super::relocations;

const MAGIC: &[u8] = b"\xff Go buildinf:";
const HEADER: u64 = 32;
/// Longest version text that is read; experiments make it longer than `go1.26.8`.
const VERSION_MAX: u64 = 128;
/// Without sections the blob lies near the begin of a data segment.
const SEARCH_MAX: u64 = 64 * 1024;

/// The version; `None` if the file was not made by Go's linker.
pub fn version(elf: &Elf<'_>) -> Result<Option<String>, BinaryError> {
    let Some(at) = place(elf)? else {
        return Ok(None);
    };
    let header: [u8; HEADER as usize] = elf.bytes.array(at)?;
    let [.., _, _, _, _, _, _, _, _] = header;
    let flags = header.get(15).copied().unwrap_or_default();
    let text = match flags & 2 {
        // Since 1.18: the texts follow the header, each after its length.
        2 => {
            let left = elf.bytes.array::<1>(at + HEADER)?;
            let length = u64::from(left[0]);
            if length >= VERSION_MAX {
                return Err(BinaryError::Malformed("Go build info"));
            }
            elf.bytes.read(at + HEADER + 1, length)?
        }
        // Before: the address of a string, that is of an address and a length.
        _ => {
            let malformed = || BinaryError::Malformed("Go build info");
            let section = address(elf, at).ok_or_else(malformed)?;
            let string = relocations::value(elf, section + 16)?;
            let data = relocations::value(elf, string)?;
            let length = elf.offset(string.wrapping_add(8)).ok_or_else(malformed)?;
            let length = elf.bytes.u64(length)?;
            if length >= VERSION_MAX {
                return Err(malformed());
            }
            elf.bytes
                .read(elf.offset(data).ok_or_else(malformed)?, length)?
        }
    };
    let text = String::from_utf8(text).map_err(|_| BinaryError::Malformed("Go build info"))?;
    // Shown to people, and made by whoever made the program.
    match text.is_empty() || text.chars().any(char::is_control) {
        true => Err(BinaryError::Malformed("Go build info")),
        false => Ok(Some(text)),
    }
}

fn place(elf: &Elf<'_>) -> Result<Option<u64>, BinaryError> {
    let ranges: Vec<(u64, u64)> = match elf.section(".go.buildinfo") {
        Some(section) => vec![section.range],
        None if elf.sections.is_empty() => elf
            .segments
            .iter()
            .filter(|segment| !segment.executable)
            .map(|segment| (segment.offset, segment.size.min(SEARCH_MAX)))
            .collect(),
        None => Vec::new(),
    };
    let mut found = None;
    for (at, size) in ranges {
        elf.bytes.search((at, size), MAGIC, |position, _| {
            found = Some(at + position);
            ControlFlow::Break(())
        })?;
        if found.is_some() {
            break;
        }
    }
    Ok(found)
}

fn address(elf: &Elf<'_>, offset: u64) -> Option<u64> {
    elf.segments.iter().find_map(|segment| {
        let at = offset.checked_sub(segment.offset)?;
        (at < segment.size).then_some(segment.address.checked_add(at)?)
    })
}

/// Major and minor of `go1.26.8`, `go1.27rc1`, `go1.22.1 X:loopvar`, `devel go1.27-abcdef …`.
pub fn release(version: &str) -> Option<(u16, u16)> {
    let text = version.strip_prefix("devel ").unwrap_or(version);
    let (major, rest) = text.strip_prefix("go")?.split_once('.')?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let minor = rest.get(..end.unwrap_or(rest.len()))?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn releases() {
        for (version, expected) in [
            ("go1.26.8", Some((1, 26))),
            ("go1.17", Some((1, 17))),
            ("go1.27rc1", Some((1, 27))),
            ("go1.22.1 X:loopvar", Some((1, 22))),
            ("devel go1.27-3b2c1f0 Tue Jan 6", Some((1, 27))),
            ("devel +3b2c1f0", None),
            ("go2", None),
            ("go1.", None),
            ("go1.99999999", None),
            ("", None),
        ] {
            assert_eq!(release(version), expected, "{version}");
        }
    }
}
