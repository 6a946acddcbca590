use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSymbol, SymbolKind};

use super::super::bytes::Bytes;
use super::super::libraries::CExtents;
use super::*;

/// RETs of the whole file as a disassembler sees them that begins anew at every symbol: objdump, or
/// LLVM's for other machines.
fn objdump(path: &Path) -> Option<BTreeSet<u64>> {
    ["objdump", "llvm-objdump"].into_iter().find_map(|program| {
        let output = Command::new(program)
            .args(["-d", "--no-show-raw-insn"])
            .arg(path)
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let returns: BTreeSet<u64> = text
            .lines()
            .filter_map(|line| {
                let (address, instruction) = line.split_once(':')?;
                let mut words = instruction.split_whitespace();
                let is = |word| matches!(word, "ret" | "retq" | "retaa" | "retab");
                words.any(is).then_some(())?;
                u64::from_str_radix(address.trim(), 16).ok()
            })
            .collect();
        (output.status.success() && !returns.is_empty()).then_some(returns)
    })
}

/// Ranges of all functions with a symbol.
fn functions(data: &[u8]) -> BTreeSet<(u64, u64)> {
    let file = ElfFile64::<LittleEndian>::parse(data).expect("an ELF file");
    file.dynamic_symbols()
        .chain(file.symbols())
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter(|symbol| symbol.size() > 0)
        .map(|symbol| (symbol.address(), symbol.address() + symbol.size()))
        .collect()
}

/// Each part that decodes has exactly the RETs that objdump prints; tells how many functions there
/// are, and of how many all returns are known.
fn compare(path: &Path) -> Option<(usize, usize)> {
    let data = std::fs::read(path).ok()?;
    let Some(expected) = objdump(path) else {
        println!("skipped {}: no objdump for it", path.display());
        return None;
    };
    let elf = Elf::parse(Bytes::new(&data, data.len() as u64)).expect("an ELF file");
    let extents = CExtents::new(&elf);
    let (mut known, mut all) = (0, 0);
    for (start, end) in functions(&data) {
        let Some(offset) = elf.code_offset(&(start..end)) else {
            continue;
        };
        all += 1;
        let code = &data[offset as usize..][..(end - start) as usize];
        let part = match elf.machine {
            Machine::X86_64 => x86::decode(code, start),
            Machine::Aarch64 => arm64::decode(code, start),
        };
        if let Ok(part) = part {
            let printed: Vec<u64> = expected.range(start..end).copied().collect();
            assert_eq!(part.returns, printed, "{} at {start:#x}", path.display());
        }
        match returns(&elf, &extents, start..end) {
            Ok(returns) => {
                known += 1;
                assert!(returns.is_sorted());
                for at in returns {
                    assert!(expected.contains(&at), "{} at {at:#x}", path.display());
                }
            }
            Err(error) => {
                if std::env::var_os("SHOW_REFUSED").is_some() {
                    println!("{} {start:#x}..{end:#x}: {error}", path.display());
                }
            }
        }
    }
    Some((known, all))
}

#[test]
fn real_libraries_as_objdump_sees_them() {
    let libraries = [
        "libssl.so.3",
        "libssl.so.1.1",
        "libgnutls.so.30",
        "libnghttp2.so.14",
        "libz.so.1",
        "libcurl.so.4",
    ];
    for directory in ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"] {
        for library in libraries {
            let path = PathBuf::from(directory).join(library);
            if File::open(&path).is_err() {
                println!("skipped {}: not installed", path.display());
                continue;
            }
            let Some((known, all)) = compare(&path) else {
                continue;
            };
            println!("{}: {known} of {all} functions understood", path.display());
            assert!(
                known * 10 >= all * 7,
                "{}: {known} of {all}",
                path.display()
            );
        }
    }
    for extra in std::env::var("COMPARE_WITH_OBJDUMP")
        .iter()
        .flat_map(|all| all.split(' '))
    {
        println!("{extra}: {:?}", compare(Path::new(extra)));
    }
}
