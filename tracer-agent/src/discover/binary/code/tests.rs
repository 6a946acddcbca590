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
        match points(&elf, &extents, start..end, Convention::C) {
            Ok(Points { returns, quick }) => {
                known += 1;
                for Quick { of, at, .. } in quick {
                    assert!(of == start || returns.contains(&of), "{of:#x}");
                    assert!(at != of && !returns.contains(&at), "{at:#x}");
                }
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

#[test]
fn what_is_refused_and_what_is_not() {
    let check = |what: &str, code: &[u8], expected: Result<&[u64], &str>| {
        let part = x86::decode(code, 0x100);
        let got = part
            .map(|part| part.returns)
            .map_err(|error| error.to_string());
        assert_eq!(
            got.as_deref(),
            expected.map_err(str::to_owned).as_ref().map(|it| *it),
            "{what}"
        );
    };
    check("ret", b"\xf3\x0f\x1e\xfa\xc3", Ok(&[0x104]));
    check(
        "two, with padding",
        b"\x74\x01\xc3\xc3\x66\x90",
        Ok(&[0x102, 0x103]),
    );
    check("rep ret begins at its prefix", b"\xf3\xc3", Ok(&[0x100]));
    check("ret n", b"\xc2\x08\x00", Ok(&[0x100]));
    check("a call that does not return", b"\xe8\0\0\0\0\x90", Ok(&[]));
    check(
        "falls out",
        b"\xc3\x48\x89\xc8",
        Err("runs into what follows it at 0x104"),
    );
    check(
        "falls out through padding",
        b"\x48\x89\xc8\x90",
        Err("runs into what follows it at 0x104"),
    );
    check(
        "cut in an instruction",
        b"\xc3\x48\x89",
        Err("code at 0x101 cannot be decoded"),
    );
    check(
        "not an instruction",
        b"\x06\xc3",
        Err("code at 0x100 cannot be decoded"),
    );
    check(
        "a thunk that jumps by returning",
        b"\x48\x89\x04\x24\xc3",
        Err("code at 0x104 cannot be decoded"),
    );
    check(
        "through a register",
        b"\xff\xe0",
        Err("jumps to a computed address at 0x100"),
    );
    check(
        "through a table of functions",
        b"\xff\x60\x18",
        Err("jumps to a computed address at 0x100"),
    );
    check(
        "far return",
        b"\xcb",
        Err("code at 0x100 cannot be decoded"),
    );
}

#[test]
fn words_of_aarch64() {
    let check = |what: &str, words: &[u32], expected: Result<(&[u64], &[u64]), &str>| {
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        match (arm64::decode(&code, 0x1000), expected) {
            (Ok(part), Ok((returns, jumps))) => {
                assert_eq!(
                    (&part.returns[..], &part.jumps[..]),
                    (returns, jumps),
                    "{what}"
                );
            }
            (Err(error), Err(expected)) => assert_eq!(error.to_string(), expected, "{what}"),
            (got, _) => panic!("{what}: {got:?}"),
        }
    };
    check("ret", &[0xd65f03c0], Ok((&[0x1000], &[])));
    check(
        "retaa, retab",
        &[0xd65f0bff, 0xd65f0fff],
        Ok((&[0x1000, 0x1004], &[])),
    );
    check(
        "b backwards",
        &[0xd503201f, 0x17ffffff],
        Ok((&[], &[0x1000])),
    );
    check(
        "b.eq, cbz, tbnz",
        &[0x54000060, 0xb4000040, 0x37000020, 0xd65f03c0],
        Ok((&[0x100c], &[0x100c, 0x100c, 0x100c])),
    );
    check("bl last", &[0x94000010], Ok((&[], &[])));
    check(
        "nop last",
        &[0x91000400, 0xd503201f],
        Err("runs into what follows it at 0x1008"),
    );
    check(
        "br of a loaded pointer",
        &[0xf9400001, 0xd61f0020],
        Err("jumps to a computed address at 0x1004"),
    );
    check(
        "a switch over bytes",
        &[0x38604820, 0x10000001, 0x8b208820, 0xd61f0000],
        Ok((&[], &[])),
    );
}

#[test]
fn cheap_places_beside_entries_and_returns() {
    let check = |what: &str, code: &[u8], c: Option<(u64, u16)>, go: Option<(u64, u16)>, exit| {
        let part = x86::decode(code, 0x100).expect("decodes");
        let place = |quick: Quick| (quick.at, quick.depth);
        let [of_c, of_go] = part.entries.map(|entry| entry.map(place));
        let exits: Vec<_> = part.exits.into_iter().map(place).collect();
        assert_eq!((of_c, of_go, exits.first()), (c, go, exit), "{what}");
    };
    check(
        "an entry that is cheap itself",
        b"\x53\x5b\xc3",
        None,
        None,
        None,
    );
    check(
        "behind endbr64",
        b"\xf3\x0f\x1e\xfa\x41\x54\x41\x5c\xc3",
        Some((0x104, 0)),
        Some((0x104, 0)),
        None,
    );
    check(
        // sub rsp, 24; xor eax, eax; test edx, edx; js; mov eax, 1; cmp rcx, rdx; jne; add rsp, 24; ret; call
        "a stack protector's",
        b"\x48\x83\xec\x18\x31\xc0\x85\xd2\x78\x0a\xb8\x01\0\0\0\x48\x39\xd1\x75\x05\x48\x83\xc4\x18\xc3\xe8\0\0\0\0",
        Some((0x108, 24)),
        None,
        Some(&(0x112, 24)),
    );
    check(
        // lea r12, [rsp-72]; cmp r12, [r14+16]; jbe; ret
        "Go's check of the stack",
        b"\x4c\x8d\x64\x24\xb8\x4d\x3b\x66\x10\x76\x00\xc3",
        Some((0x109, 0)),
        Some((0x109, 0)),
        None,
    );
    check(
        // mov rdi, rsi; push rbx; pop rbx; jne; pop rax; ret
        "an argument is overwritten, and the result",
        b"\x48\x89\xf7\x53\x5b\x75\x00\x58\xc3",
        None,
        None,
        None,
    );
    check(
        // mov rbp, rsp; jne; leave; ret
        "a stack pointer from elsewhere",
        b"\x48\x89\xe5\x75\x00\xc9\xc3",
        Some((0x103, 0)),
        Some((0x103, 0)),
        None,
    );
    check(
        "another condition",
        b"\x90\x74\x00\xc3",
        Some((0x101, 0)),
        Some((0x101, 0)),
        None,
    );
    check(
        // sub rsp, 8; call; add rsp, 8; ret
        "a wrapper",
        b"\x48\x83\xec\x08\xe8\0\0\0\0\x48\x83\xc4\x08\xc3",
        Some((0x104, 8)),
        Some((0x104, 8)),
        None,
    );
    check(
        "a call in between",
        b"\x75\x00\xe8\0\0\0\0\xc3",
        None,
        None,
        None,
    );
}

#[test]
fn a_jump_between_a_return_and_its_cheap_place_rules_it_out() {
    let quick = Quick {
        of: 0x20,
        at: 0x10,
        depth: 0,
        is_call: false,
    };
    let check = |target, passed| assert_eq!(quick.is_passed_by(target), passed, "{target:#x}");
    check(0x0f, false);
    check(0x10, false);
    check(0x11, true);
    check(0x20, true);
    check(0x21, false);
    let entry = Quick {
        of: 0x10,
        at: 0x20,
        depth: 0,
        is_call: false,
    };
    assert!(!entry.is_passed_by(0x10) && entry.is_passed_by(0x20));
}
