//! bpf-linker: found in PATH or cargo's directory, or built against Debian's LLVM.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt;
use crate::sh;

/// The version that is installed where there is none.
const VERSION: &str = "0.13.0";
/// The LLVM it is built against then: that of the toolchains in `toolchain.rs`.
const LLVM: u32 = 22;

/// A bpf-linker that runs.
#[derive(Debug)]
pub struct Linker {
    /// The program.
    pub path: PathBuf,
    /// As it says itself, like `0.13.0`.
    pub version: String,
    /// Major version of the LLVM inside, if that can be told.
    pub llvm: Option<u32>,
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bpf-linker {}", self.version)?;
        if let Some(llvm) = self.llvm {
            write!(f, " (LLVM {llvm})")?;
        }
        write!(f, " at {}", self.path.display())
    }
}

impl Linker {
    /// Whether it reads what a compiler with this LLVM writes: LLVM reads the bitcode of its
    /// predecessors, not of its successors.
    pub fn reads(&self, compiler_llvm: u32) -> bool {
        self.llvm.is_none_or(|own| compiler_llvm <= own)
    }
}

/// The linker that is there, or one that is installed now.
pub fn find_or_install() -> Result<Linker> {
    if let Some(linker) = find() {
        return Ok(linker);
    }
    eprintln!("setup: no bpf-linker that runs was found; installing {VERSION}");
    if sh::which("cargo-binstall").is_some() {
        let mut command = sh::cargo();
        command.args(["binstall", "--no-confirm", &format!("bpf-linker@{VERSION}")]);
        match sh::run(&mut command) {
            Ok(()) => {
                if let Some(linker) = find() {
                    return Ok(linker);
                }
            }
            Err(error) => eprintln!("setup: {error:#}; building it instead"),
        }
    }
    let prefix = format!("/usr/lib/llvm-{LLVM}");
    let (llvm, polly) = (format!("llvm-{LLVM}-dev"), format!("libpolly-{LLVM}-dev"));
    apt::install(
        &[&llvm, &polly, "libzstd-dev", "zlib1g-dev", "g++"],
        &format!("bpf-linker has to be built against LLVM {LLVM}"),
    )?;
    let mut command = sh::cargo();
    command
        .env("LLVM_PREFIX", &prefix)
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{LLVM}"),
        ]);
    sh::run(&mut command).context("bpf-linker cannot be installed")?;
    find().context("bpf-linker was installed but does not run; put cargo's bin directory into PATH")
}

fn find() -> Option<Linker> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let in_home = home.map(|home| home.join("bin/bpf-linker"));
    sh::which("bpf-linker")
        .into_iter()
        .chain(in_home)
        .find_map(|path| {
            let text = sh::output(Command::new(&path).arg("--version")).ok()?;
            let version = text.split_whitespace().nth(1)?.to_owned();
            let llvm = llvm_of(&path);
            Some(Linker {
                path,
                version,
                llvm,
            })
        })
}

/// The LLVM a linker was built with: the library it loads, or for a static one the identification
/// string that LLVM's bitcode writer carries.
fn llvm_of(path: &Path) -> Option<u32> {
    let loaded = sh::output(Command::new("ldd").arg(path)).ok();
    loaded.and_then(|text| llvm_of_library(&text)).or_else(|| {
        // A script (a wrapper, say) tells nothing; the build will.
        llvm_of_static(&std::fs::read(path).ok()?)
    })
}

fn llvm_of_library(ldd: &str) -> Option<u32> {
    let name = ldd
        .lines()
        .find_map(|line| line.trim().strip_prefix("libLLVM"))?;
    leading_number(name.trim_start_matches(['-', '.', 's', 'o']).as_bytes())
}

fn llvm_of_static(bytes: &[u8]) -> Option<u32> {
    bytes.windows(8).find_map(|window| {
        let rest = window.strip_prefix(b"LLVM")?;
        let dot = rest.iter().position(|&byte| byte == b'.')?;
        let number = rest.get(..dot)?;
        number
            .iter()
            .all(u8::is_ascii_digit)
            .then(|| leading_number(number))?
    })
}

fn leading_number(text: &[u8]) -> Option<u32> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(text.get(..digits)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaded_library_names_its_version() {
        let check = |line: &str, llvm| assert_eq!(llvm_of_library(line), llvm, "{line}");
        check(
            "\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x0)",
            Some(22),
        );
        check("\tlibLLVM-19.so.1 => /lib/libLLVM-19.so.1 (0x0)", Some(19));
        check(
            "\tlibc.so.6 => /lib/libc.so.6 (0x0)\n\tlibLLVM-20.so => x",
            Some(20),
        );
        check("\tlibc.so.6 => /lib/libc.so.6 (0x0)", None);
        check("\tstatically linked", None);
    }

    #[test]
    fn a_static_linker_carries_its_version() {
        let check = |bytes: &[u8], llvm| assert_eq!(llvm_of_static(bytes), llvm);
        check(b"....LLVM22.1.4\0...", Some(22));
        check(b"LLVM version\0LLVM is\0LLVM9.0.1\0", Some(9));
        check(b"LLVM.1.0 and LLVMfoo.2", None);
        check(b"LLVM", None);
        check(b"", None);
    }

    #[test]
    fn bitcode_is_read_forwards_only() {
        let linker = |llvm| Linker {
            path: PathBuf::new(),
            version: String::new(),
            llvm,
        };
        assert!(linker(Some(22)).reads(21));
        assert!(linker(Some(22)).reads(22));
        assert!(!linker(Some(22)).reads(23));
        assert!(linker(None).reads(23), "unknown: the build will tell");
    }
}
