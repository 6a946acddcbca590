//! Architectures: how a static binary is built for each.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{setup, sh};

/// A processor architecture that binaries are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Arch {
    /// x86-64
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit ARM
    #[value(name = "aarch64")]
    Aarch64,
}

/// How well it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// For users.
    Dist,
    /// For tests of what is around it: soon done, and slower.
    Test,
}

impl Profile {
    /// Cargo's name for it.
    fn name(self) -> &'static str {
        match self {
            Profile::Dist => "dist",
            Profile::Test => "dist-test",
        }
    }
}

impl Arch {
    /// Where this program runs.
    pub fn host() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Arch::X86_64),
            "aarch64" => Ok(Arch::Aarch64),
            other => bail!("binaries are made for x86_64 and aarch64, and this is {other}"),
        }
    }

    /// As uname says it.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// As container images say it.
    pub fn container(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }

    /// The compiler's name for it.
    pub fn target(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64-unknown-linux-musl",
            Arch::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The machine's number in ELF headers.
    fn machine(self) -> u16 {
        match self {
            Arch::X86_64 => 62,
            Arch::Aarch64 => 183,
        }
    }

    /// Cargo with a subcommand, as it makes static programs of this architecture.
    pub fn cargo(self, subcommand: &str, profile: Profile) -> Result<Command> {
        let target = self.target();
        setup::standard_library(target)?;
        let compiler = setup::c_compiler(self.name())?;
        let variable = target.replace('-', "_");
        let linker = format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase());
        let mut command = sh::cargo();
        command
            .args([subcommand, "--locked", "--profile", profile.name()])
            .args(["--target", target])
            .arg("--target-dir")
            .arg(sh::target())
            .env(format!("CC_{variable}"), &compiler.cc)
            .env(format!("AR_{variable}"), &compiler.ar)
            // The compiler's own: it links for every architecture, with the start files of the target's library.
            .env(linker, "rust-lld")
            .env("CARGO_ENCODED_RUSTFLAGS", remapped());
        Ok(command)
    }

    /// Builds the agent, whose kernel side lies where its build script looks for it.
    pub fn build(self, profile: Profile) -> Result<PathBuf> {
        let mut command = self.cargo("build", profile)?;
        sh::run(command.args(["--package", "tracer-agent", "--bin", "tracer-agent"]))?;
        let binary = sh::target()
            .join(self.target())
            .join(profile.name())
            .join("tracer-agent");
        self.check(&binary)?;
        Ok(binary)
    }

    /// An error unless it is a program of this architecture that needs no loader and no library.
    pub fn check(self, binary: &Path) -> Result<()> {
        let bytes =
            std::fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
        let header = Elf::parse(&bytes)
            .with_context(|| format!("{} is no 64-bit ELF program", binary.display()))?;
        ensure!(
            header.machine == self.machine(),
            "{} is not a program for {}",
            binary.display(),
            self.name()
        );
        ensure!(
            !header.interpreted,
            "{} needs shared libraries; `cargo xtask dist` makes one that does not",
            binary.display()
        );
        Ok(())
    }

    /// The compiler's version: that of the standard library too.
    pub fn rust_version(self) -> Result<String> {
        let text = sh::output(setup::rust_tool("rustc").arg("-vV"))?;
        let release = text.lines().find_map(|line| line.strip_prefix("release: "));
        Ok(release
            .context("`rustc -vV` does not tell its release")?
            .to_owned())
    }

    /// The version of the C library that the toolchain brings for this target, where it tells.
    pub fn musl_version(self) -> Result<Option<String>> {
        let directory = setup::target_libraries(self.target())?;
        let archive = directory.join("self-contained/libc.a");
        let bytes = std::fs::read(&archive)
            .with_context(|| format!("cannot read {}", archive.display()))?;
        Ok(musl_version(&bytes))
    }
}

/// Flags by which the places of this machine do not get into the binary.
fn remapped() -> String {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut flags = vec![format!("--remap-path-prefix={}=/src", sh::root().display())];
    if let Some(home) = home {
        flags.push(format!("--remap-path-prefix={}=/cargo", home.display()));
    }
    // Cargo's own separator: paths may have blanks.
    flags.join("\x1f")
}

/// The string in the member `version.lo` of musl's archive.
fn musl_version(archive: &[u8]) -> Option<String> {
    const HEADER: usize = 60;
    let name = b"version.lo/";
    let start = archive
        .windows(name.len())
        .position(|window| window == name)?;
    let header = archive.get(start..start + HEADER)?;
    let size: usize = std::str::from_utf8(header.get(48..58)?)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let member = archive.get(start + HEADER..)?.get(..size)?;
    let mut strings = member.split(|&byte| byte == 0);
    strings.find_map(|string| {
        let text = std::str::from_utf8(string).ok()?;
        let parts: Vec<&str> = text.split('.').collect();
        let numbers = parts
            .iter()
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
        (parts.len() == 3 && numbers).then(|| text.to_owned())
    })
}

/// What is looked at of an ELF file.
#[derive(Debug, PartialEq, Eq)]
struct Elf {
    machine: u16,
    /// It names a loader, so it is linked against shared libraries.
    interpreted: bool,
}

impl Elf {
    /// `None` unless it is a 64-bit, little-endian program.
    fn parse(bytes: &[u8]) -> Option<Self> {
        const INTERPRETER: u32 = 3;
        if bytes.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let kind = half(16)?;
        // A program at a fixed address, or one at any.
        if kind != 2 && kind != 3 {
            return None;
        }
        let table = u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?);
        let table = usize::try_from(table).ok()?;
        let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
        let mut interpreted = false;
        for index in 0..count {
            let at = table.checked_add(index.checked_mul(size)?)?;
            let kind = bytes.get(at..at.checked_add(4)?)?;
            interpreted |= u32::from_le_bytes(kind.try_into().ok()?) == INTERPRETER;
        }
        Some(Elf {
            machine: half(18)?,
            interpreted,
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The least that passes for a program: a header and one segment of this type.
    pub fn elf(machine: u16, segment: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16] = 3;
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes.extend_from_slice(&segment.to_le_bytes());
        bytes.resize(64 + 56, 0);
        bytes
    }

    #[test]
    fn static_programs_and_others() {
        let check = |bytes: &[u8], want: Option<(u16, bool)>| {
            let found = Elf::parse(bytes).map(|elf| (elf.machine, elf.interpreted));
            assert_eq!(found, want);
        };
        check(&elf(62, 1), Some((62, false)));
        check(&elf(183, 3), Some((183, true)));
        check(b"", None);
        check(b"#!/bin/sh\n", None);
        let whole = elf(62, 1);
        for length in 0..68 {
            check(&whole[..length], None);
        }
        let mut far = whole.clone();
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        check(&far, None);
        let mut object = whole;
        object[16] = 1;
        check(&object, None);
    }

    #[test]
    fn the_version_of_musl() {
        let mut archive = b"!<arch>\n".to_vec();
        let member = b"\x7fELF\0not.a.version\x001.2.5\0GNU C99 9.4.0\0";
        let mut header = b"version.lo/     0           0     0     644     ".to_vec();
        header.extend_from_slice(format!("{:<10}`\n", member.len()).as_bytes());
        assert_eq!(header.len(), 60);
        archive.extend_from_slice(&header);
        archive.extend_from_slice(member);
        assert_eq!(musl_version(&archive).as_deref(), Some("1.2.5"));
        for length in 0..archive.len() - member.len() {
            assert_eq!(musl_version(&archive[..length]), None);
        }
    }
}
