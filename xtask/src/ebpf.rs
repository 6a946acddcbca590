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

/// A copy without DWARF, which only served to make the BTF; the object itself where no tool is.
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
    let mut command = Command::new(tool);
    command.arg("--strip-debug").args([built, &stripped]);
    sh::run(&mut command)?;
    Ok(stripped)
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
