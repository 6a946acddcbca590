//! Programs built by the Go toolchain that is installed, and function tables made by hand for the
//! layouts of older ones.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::bytes::Bytes;
use super::super::{contents, go_functions};
use super::*;
use crate::discover::binary::TlsLibrary;

const SOURCE: &str = r#"
package main

import (
	"crypto/tls"
	"net"
	"os"
)

func main() {
	raw, err := net.Dial("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	connection := tls.Client(raw, &tls.Config{ServerName: "x"})
	connection.Write([]byte("x"))
	connection.Read(make([]byte, 1))
	connection.Close()
}
"#;

fn go() -> Option<PathBuf> {
    let places = ["/usr/local/go/bin/go", "/usr/lib/go/bin/go", "/usr/bin/go"];
    let found = places.iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        println!("skipped: no Go toolchain");
    }
    found
}

fn build(
    go: &Path,
    directory: &Path,
    source: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Vec<u8> {
    let out = directory.join("out");
    std::fs::write(directory.join("main.go"), source).expect("written");
    std::fs::write(directory.join("go.mod"), "module x\n\ngo 1.20\n").expect("written");
    let status = Command::new(go)
        .current_dir(directory)
        .args(["build", "-o"])
        .arg(&out)
        .args(arguments)
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "")
        .env("CGO_ENABLED", "0")
        .envs(environment.iter().copied())
        .status()
        .expect("go runs");
    assert!(status.success(), "{arguments:?}");
    std::fs::read(out).expect("built")
}

#[test]
fn programs_of_the_installed_toolchain() {
    let Some(go) = go() else { return };
    let directory = tempfile::tempdir().expect("tempdir");
    for (arguments, environment) in [
        (&[][..], &[][..]),
        (&["-ldflags=-s -w"], &[]),
        (&["-buildmode=pie", "-ldflags=-s -w"], &[]),
        (&["-ldflags=-s -w"], &[("GOARCH", "arm64")]),
    ] {
        let what = format!("{arguments:?} {environment:?}");
        let data = build(&go, directory.path(), SOURCE, arguments, environment);
        let len = data.len() as u64;
        let contents = contents(&data, len).expect("understood");
        let library = contents.libraries.first().expect("has crypto/tls");
        let TlsLibrary::GoTls(tls) = &library.library else {
            panic!("{what}: {:?}", library.library);
        };
        assert!(tls.go_version.starts_with("go1."), "{what}: {tls:?}");
        assert!(library.refused.is_empty(), "{what}: {:?}", library.refused);
        let count = |probe: TlsFunction| {
            let mut all = library.functions.iter();
            all.find(|it| it.probe == probe).map(|it| it.returns.len())
        };
        // Each has a return per outcome; one alone would be a sign of having missed some.
        for probe in [
            TlsFunction::GoTlsRead,
            TlsFunction::GoTlsWrite,
            TlsFunction::GoTlsClose,
        ] {
            assert!(
                count(probe).is_some_and(|count| count > 2),
                "{what}: {probe:?}"
            );
        }
        if LAYOUT_KNOWN.contains(&tls.release.1) {
            assert!(
                tls.layout.is_some() && tls.tcp_conn_itab.is_some(),
                "{what}: {tls:?}"
            );
        }
        let names = ["runtime.newproc1", "runtime.goexit1", "no.such"];
        let found = go_functions(&data, len, &names)
            .expect("understood")
            .expect("Go");
        assert_eq!(found.len(), 2, "{what}: {found:?}");
    }
}

const OFFSETS: &str = r#"
package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"reflect"
)

func field(of reflect.Type, name string) (reflect.Type, uintptr) {
	found, _ := of.FieldByName(name)
	return found.Type, found.Offset
}

func main() {
	_, inner := field(reflect.TypeOf(tls.Conn{}), "conn")
	pointer, fd := field(reflect.TypeOf(net.TCPConn{}), "fd")
	poll, pfd := field(pointer.Elem(), "pfd")
	_, sysfd := field(poll, "Sysfd")
	fmt.Println(inner, fd, pfd+sysfd)
}
"#;

#[test]
fn the_layout_is_what_reflection_says() {
    let Some(go) = go() else { return };
    let directory = tempfile::tempdir().expect("tempdir");
    build(&go, directory.path(), OFFSETS, &[], &[]);
    let output = Command::new(directory.path().join("out"))
        .output()
        .expect("runs");
    let expected = format!(
        "{} {} {}\n",
        LAYOUT.conn_itab, LAYOUT.tcp_conn_fd, LAYOUT.net_fd_sysfd
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    // An interface is two words: what it is, and the value or its address.
    assert_eq!(LAYOUT.conn_data, LAYOUT.conn_itab + 8);
}

/// A program with one section of each kind that is read: 64 bytes of text with two functions.
fn handmade(magic: u32, version: &str, relative_text: bool) -> Vec<u8> {
    const TEXT: u64 = 0x1000;
    let mut out = vec![0_u8; 0x4000];
    let put = |out: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
    };
    // Two functions of 32 bytes: padding of one-byte NOPs, RET at the end.
    put(&mut out, 0x1000, &[0x90; 64]);
    out[0x1000 + 31] = 0xc3;
    out[0x1000 + 63] = 0xc3;
    // Function table at 0x2000: header, names, entries, records.
    let short = magic != 0xffff_fffa;
    let mut table = magic.to_le_bytes().to_vec();
    table.extend_from_slice(&[0, 0, 1, 8]);
    let mut words = vec![2_u64, 0];
    if short {
        words.push(if relative_text { 0 } else { TEXT });
    }
    words.extend([0x80, 0xc0, 0xc0, 0xc0, 0x100]);
    for word in words {
        table.extend_from_slice(&word.to_le_bytes());
    }
    put(&mut out, 0x2000, &table);
    put(&mut out, 0x2080, b"\0main.first\0main.second\0");
    for (index, name) in [(0_usize, 1_u32), (1, 12)] {
        let (start, record) = (index as u64 * 32, 0x40 + index * 16);
        let (at, width) = match short {
            true => (0x2100 + index * 8, 4),
            false => (0x2100 + index * 16, 8),
        };
        let entry = if short { start } else { TEXT + start };
        put(&mut out, at, &entry.to_le_bytes()[..width]);
        put(&mut out, at + width, &record.to_le_bytes()[..width]);
        put(&mut out, 0x2100 + record + width, &name.to_le_bytes());
    }
    match short {
        true => put(&mut out, 0x2110, &64_u32.to_le_bytes()),
        false => put(&mut out, 0x2120, &(TEXT + 64).to_le_bytes()),
    }
    // Build info with the version inline, module data with the text's start.
    put(&mut out, 0x3000, b"\xff Go buildinf:\x08\x02");
    put(&mut out, 0x3020, &[version.len() as u8]);
    put(&mut out, 0x3021, version.as_bytes());
    put(&mut out, 0x3100, &0x2000_u64.to_le_bytes());
    put(&mut out, 0x3100 + 20 * 8, &TEXT.to_le_bytes());
    put(&mut out, 0x3100 + 22 * 8, &TEXT.to_le_bytes());
    // Section names, then headers.
    let names = b"\0.text\0.gopclntab\0.go.buildinfo\0.go.module\0.shstrtab\0";
    put(&mut out, 0x3300, names);
    let sections: [(u32, u32, u64, u64, u64); 6] = [
        (0, 0, 0, 0, 0),
        (1, 1, 6, 0x1000, 64),
        (7, 1, 2, 0x2000, 0x200),
        (18, 1, 3, 0x3000, 0x100),
        (32, 1, 3, 0x3100, 0x100),
        (43, 3, 0, 0x3300, names.len() as u64),
    ];
    for (index, (name, kind, flags, at, size)) in sections.into_iter().enumerate() {
        let header = 0x3400 + index * 64;
        put(&mut out, header, &name.to_le_bytes());
        put(&mut out, header + 4, &kind.to_le_bytes());
        for (field, value) in [(8, flags), (16, at), (24, at), (32, size)] {
            put(&mut out, header + field, &value.to_le_bytes());
        }
    }
    // One segment of everything, executable.
    put(&mut out, 0, b"\x7fELF\x02\x01\x01");
    for (at, value) in [
        (16, 2_u16),
        (18, 62),
        (54, 56),
        (56, 1),
        (58, 64),
        (60, 6),
        (62, 5),
    ] {
        put(&mut out, at, &value.to_le_bytes());
    }
    put(&mut out, 32, &64_u64.to_le_bytes());
    put(&mut out, 40, &0x3400_u64.to_le_bytes());
    put(&mut out, 64, &[1, 0, 0, 0, 5]);
    put(&mut out, 64 + 32, &0x4000_u64.to_le_bytes());
    out
}

#[test]
fn function_tables_of_all_layouts() {
    let check = |magic: u32, version: &str, relative_text: bool, expected: Result<(), &str>| {
        let data = handmade(magic, version, relative_text);
        let names = ["main.second", "main.first", "main.third"];
        let found = go_functions(&data, data.len() as u64, &names);
        match (found, expected) {
            (Ok(Some(found)), Ok(())) => {
                let entries: Vec<_> = found
                    .iter()
                    .map(|it| (it.name.as_str(), it.entry))
                    .collect();
                assert_eq!(entries, [("main.first", 0x1000), ("main.second", 0x1020)]);
                assert_eq!(found[1].returns, Ok(vec![0x1020 + 31]));
            }
            (Err(error), Err(expected)) => assert_eq!(error.to_string(), expected),
            (found, expected) => panic!("{version}: {found:?} in place of {expected:?}"),
        }
    };
    check(0xffff_fffa, "go1.17.1", false, Ok(()));
    check(0xffff_fff0, "go1.18", false, Ok(()));
    check(0xffff_fff1, "go1.20.3", false, Ok(()));
    check(0xffff_fff1, "go1.26.0", true, Ok(()));
    check(0xffff_fff1, "devel go1.27-0123456", true, Ok(()));
    check(
        0xffff_fffb,
        "go1.17",
        false,
        Err("malformed: Go function table"),
    );
    check(
        0xffff_fffa,
        "go1.16.5",
        false,
        Err("not supported: Go before register arguments"),
    );
    check(
        0xffff_fff1,
        "tip",
        false,
        Err("not supported: Go version is not a release"),
    );
}

#[test]
fn what_is_not_go_is_not_taken_for_it() {
    let data = std::fs::read("/proc/self/exe").expect("readable");
    let elf = Elf::parse(Bytes::new(&data, data.len() as u64)).expect("an ELF file");
    assert!(GoProgram::parse(&elf).expect("understood").is_none());
}

#[test]
fn wrong_bytes_in_function_tables() {
    use proptest::prelude::*;
    let whole = handmade(0xffff_fff1, "go1.26.0", true);
    // Header, segment, table, names, entries and records, build info, module data, sections.
    let (table, rest) = (0x2000..0x2160_usize, 0x3000..0x3580_usize);
    let place = prop_oneof![0..128_usize, table, rest];
    let value = prop_oneof![Just(0_u8), Just(0xff), Just(0x7f), any::<u8>()];
    let changes = proptest::collection::vec((place, value), 1..5_usize);
    proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })
    .run(&changes, |changes| {
        let mut data = whole.clone();
        for (at, value) in changes {
            data[at] = value;
        }
        super::super::fuzz(&data);
        Ok(())
    })
    .expect("no panic");
}
