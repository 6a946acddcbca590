//! Building the eBPF object and leaving it where the agent's build script looks for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::{Setup, Toolchain};
use crate::sh;

/// The kernel side's target.
pub const TARGET: &str = "bpfel-unknown-none";

/// Where the object goes.
pub fn object() -> PathBuf {
    sh::target().join("bpf/tracer.bpf.o")
}

/// Builds the object; `log` compiles its debug output in.
pub fn build(setup: &Setup, log: bool) -> Result<()> {
    let mut command = cargo(setup, "build");
    if log {
        command.args(["--features", "log"]);
    }
    sh::run(&mut command)?;

    let built = target().join(TARGET).join("release/tracer");
    let stripped = strip(&built)?;
    let bytes =
        fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    check_object(&bytes)
        .with_context(|| format!("{} is not what it should be", built.display()))?;
    let object = object();
    // An object that did not change must not make the agent be built again.
    if fs::read(&object).is_ok_and(|old| old == bytes) {
        eprintln!(
            "ebpf: {} is up to date ({} KiB)",
            shown(&object),
            bytes.len() / 1024
        );
        return Ok(());
    }
    let directory = object.parent().context("the object lies in a directory")?;
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(&object, &bytes))
        .with_context(|| format!("cannot write {}", object.display()))?;
    eprintln!(
        "ebpf: wrote {} ({} KiB)",
        shown(&object),
        bytes.len() / 1024
    );
    Ok(())
}

/// A copy without DWARF, which only served to make the BTF, and without what says which line of source code an
/// instruction is of: half of the object, which the kernel would keep for every program. The object
/// itself where no tool is.
fn strip(built: &Path) -> Result<PathBuf> {
    let beside_linker = |version: u32| format!("/usr/lib/llvm-{version}/bin/llvm-objcopy");
    let tools = (19..=23).rev().map(beside_linker);
    let tool = tools
        .chain(["llvm-objcopy".to_owned()])
        .find(|tool| sh::output(Command::new(tool).arg("--version")).is_ok());
    let Some(tool) = tool else {
        eprintln!("ebpf: no llvm-objcopy: the object keeps its DWARF, which only makes it larger");
        return Ok(built.to_owned());
    };
    let stripped = built.with_extension("stripped");
    let mut command = Command::new(&tool);
    let extension = built.with_extension("btf-ext");
    command
        .arg("--strip-debug")
        .arg(format!("--dump-section=.BTF.ext={}", extension.display()))
        .args([built, &stripped]);
    sh::run(&mut command)?;
    let bytes =
        fs::read(&extension).with_context(|| format!("cannot read {}", extension.display()))?;
    let Some(shorter) = without_lines(&bytes) else {
        bail!("{} has no such .BTF.ext as this knows", built.display());
    };
    fs::write(&extension, shorter)
        .with_context(|| format!("cannot write {}", extension.display()))?;
    let mut command = Command::new(&tool);
    command
        .arg(format!("--update-section=.BTF.ext={}", extension.display()))
        // The values in place are what they should be; nobody who loads programs reads relocations of it.
        .arg("--remove-section=.rel.BTF.ext")
        .arg(&stripped);
    sh::run(&mut command)?;
    Ok(stripped)
}

/// A `.BTF.ext` section (the kernel's Documentation/bpf/btf.rst) without lines.
fn without_lines(section: &[u8]) -> Option<Vec<u8>> {
    /// Offset and length of function infos, line infos and relocations, as in the header.
    const TABLES: usize = 8;
    let word = |at: usize| {
        let bytes = section.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let table = |index: usize| {
        let (at, len) = (word(TABLES + 8 * index)?, word(TABLES + 8 * index + 4)?);
        let at = usize::try_from(word(4)?.checked_add(at)?).ok()?;
        section.get(at..at.checked_add(usize::try_from(len).ok()?)?)
    };
    let (functions, relocations) = (table(0)?, table(2)?);
    let (functions_len, relocations_len) = (
        u32::try_from(functions.len()).ok()?,
        u32::try_from(relocations.len()).ok()?,
    );
    let mut shorter = section.get(..usize::try_from(word(4)?).ok()?)?.to_vec();
    let header = [
        0,
        functions_len,
        functions_len,
        0,
        functions_len,
        relocations_len,
    ];
    for (index, word) in header.into_iter().enumerate() {
        shorter
            .get_mut(TABLES + 4 * index..TABLES + 4 * index + 4)?
            .copy_from_slice(&word.to_le_bytes());
    }
    shorter.extend_from_slice(functions);
    shorter.extend_from_slice(relocations);
    Some(shorter)
}

/// Clippy over the kernel side, with denied warnings, where the toolchain has it.
pub fn clippy(setup: &Setup) -> Result<()> {
    if let Err(error) = sh::output(setup.toolchain.cargo().args(["clippy", "--version"])) {
        let way = match setup.toolchain {
            Toolchain::Nightly { .. } => "`rustup component add clippy` gives it to the nightly",
            Toolchain::Debian { .. } => "Debian's compiler comes without",
        };
        eprintln!("check: clippy of the eBPF side is skipped: {way} ({error:#})");
        return Ok(());
    }
    let mut command = cargo(setup, "clippy");
    command.args(["--", "-D", "warnings"]);
    sh::run(&mut command)
}

/// The kernel side's manifest.
pub fn manifest() -> PathBuf {
    directory().join("Cargo.toml")
}

fn directory() -> PathBuf {
    sh::root().join("tracer-ebpf")
}

/// Its own directory: its artefacts are of other compilers than the workspace's.
fn target() -> PathBuf {
    sh::target().join("ebpf")
}

fn cargo(setup: &Setup, verb: &str) -> Command {
    let mut command = setup.toolchain.cargo();
    command
        // Cargo reads target, build-std and linker flags from the .cargo/config.toml there.
        .current_dir(directory())
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &setup.linker.path)
        .args([verb, "--release", "--target-dir"])
        .arg(target());
    command
}

/// An ELF file for eBPF, little endian, that carries BTF: what `bpfel-unknown-none` and `--btf`
/// make. Catches a linker that ended well but wrote something else.
fn check_object(bytes: &[u8]) -> Result<()> {
    const EM_BPF: [u8; 2] = 247u16.to_le_bytes();
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") || bytes.get(18..20) != Some(&EM_BPF) {
        bail!("it is not an eBPF object");
    }
    // Not necessarily a string of its own: linkers share it with the end of `.rel.BTF`.
    if !bytes.windows(5).any(|window| window == b".BTF\0") {
        bail!("it has no BTF section");
    }
    Ok(())
}

fn shown(path: &Path) -> std::path::Display<'_> {
    path.strip_prefix(sh::root()).unwrap_or(path).display()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a section with two words about functions, three about lines and one relocation. Guarantees: the
    /// lines go, the rest stays and is where the header says; what is cut short is refused.
    #[test]
    fn lines_go_and_the_rest_stays() {
        let words = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        let magic = 0x0001_eb9f;
        let section = words(&[magic, 32, 0, 8, 8, 12, 20, 4, 1, 2, 3, 4, 5, 6]);
        let expected = words(&[magic, 32, 0, 8, 8, 0, 8, 4, 1, 2, 6]);
        assert_eq!(without_lines(&section), Some(expected));
        for len in 0..section.len() {
            let short = section.get(..len).unwrap_or_default();
            assert_eq!(without_lines(short), None, "{len}");
        }
    }

    #[test]
    fn only_an_ebpf_object_with_btf_passes() {
        let mut object = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\xf7\0".to_vec();
        let check = |bytes: &[u8], end: &str| match check_object(bytes) {
            Ok(()) => assert_eq!(end, "", "passed"),
            Err(error) => assert_eq!(error.to_string(), end),
        };
        check(b"", "it is not an eBPF object");
        check(&object, "it has no BTF section");
        object.extend_from_slice(b"\0.rel.BTF\0");
        check(&object, "");
        object[18] = 62;
        check(&object, "it is not an eBPF object");
    }
}
