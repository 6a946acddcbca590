//! `cargo xtask dist`: what is given to users: one static binary per architecture, what it is made of, and an archive
//! with all that an installation by hand needs.

pub mod arch;
pub mod archive;
mod sbom;
mod tree;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::setup::Setup;
use crate::{ebpf, setup, sh};
use arch::{Arch, Profile};
use archive::Entry;

/// Of every package of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Which binaries.
#[derive(Clone, Debug, clap::Args)]
pub struct DistArgs {
    /// Only this architecture (repeatable; default: this machine's)
    #[arg(long = "arch", value_name = "ARCH")]
    arches: Vec<Arch>,
}

/// A binary with what belongs to it.
#[derive(Debug)]
pub struct Built {
    /// Its architecture.
    pub arch: Arch,
    /// The binary.
    pub binary: PathBuf,
    /// Its bill of materials.
    pub sbom: String,
}

/// `cargo xtask dist`.
pub fn dist(args: &DistArgs) -> Result<()> {
    let time = archive::epoch()?;
    let mut sums = String::new();
    for built in build(&args.arches, Profile::Dist, time)? {
        let name = format!("tracer-agent-{VERSION}-linux-{}", built.arch.name());
        let archive = format!("{name}.tar.gz");
        let packed = archive::gzip(&archive::tar(entries(&name, &built)?, time)?)?;
        write(&directory().join(&archive), &packed)?;
        let _ = writeln!(sums, "{}  {archive}", archive::sha256(&packed));
        let binary = read(&built.binary)?;
        let path = format!("{}/tracer-agent", built.arch.name());
        let _ = writeln!(sums, "{}  {path}", archive::sha256(&binary));
        eprintln!(
            "dist: target/dist/{path}: {:.1} MiB; target/dist/{archive}: {:.1} MiB",
            mebibytes(&binary),
            mebibytes(&packed)
        );
    }
    write(&directory().join("SHA256SUMS"), sums.as_bytes())
}

/// Builds each, this machine's if none is named, and writes its bill of materials beside it.
pub fn build(arches: &[Arch], profile: Profile, time: u64) -> Result<Vec<Built>> {
    let arches = wanted(arches)?;
    let setup = setup::for_build()?;
    ebpf::build(&setup, false)?;
    arches
        .into_iter()
        .map(|arch| {
            let mut binary = arch.build(profile)?;
            if profile == Profile::Dist {
                binary = place(arch, &binary)?;
            }
            finish(&setup, arch, binary, time)
        })
        .collect()
}

/// Without repetition, in a stable order.
fn wanted(arches: &[Arch]) -> Result<Vec<Arch>> {
    let mut arches = match arches {
        [] => vec![Arch::host()?],
        some => some.to_vec(),
    };
    arches.sort();
    arches.dedup();
    Ok(arches)
}

fn finish(setup: &Setup, arch: Arch, binary: PathBuf, time: u64) -> Result<Built> {
    let materials = sbom::materials(arch, setup.toolchain.cargo())?;
    let to = binary.with_extension("cdx.json");
    let sbom = sbom::write(&materials, &binary, &to, time)?;
    Ok(Built { arch, binary, sbom })
}

/// Puts the binary where users of this command find it.
fn place(arch: Arch, built: &Path) -> Result<PathBuf> {
    let directory = directory().join(arch.name());
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let binary = directory.join("tracer-agent");
    // A new file: the old one may be running.
    let new = directory.join("tracer-agent.new");
    fs::copy(built, &new)
        .and_then(|_| fs::rename(&new, &binary))
        .with_context(|| format!("cannot write {}", binary.display()))?;
    Ok(binary)
}

/// What the archive holds, below a directory of its own name.
fn entries(name: &str, built: &Built) -> Result<Vec<Entry>> {
    let at = |path: &str| format!("{name}/{path}");
    let mut entries = vec![
        Entry::directory(name, 0o755),
        Entry::directory(&at("systemd"), 0o755),
        Entry::directory(&at("licenses"), 0o755),
        Entry::file(&at("tracer-agent"), 0o755, read(&built.binary)?),
        Entry::file(&at("tracer-agent.cdx.json"), 0o644, built.sbom.as_str()),
    ];
    for file in [
        "tracer-agent.service",
        "tracer-agent.env",
        "tracer-agent.yaml",
    ] {
        let bytes = read(&sh::root().join("deploy/systemd").join(file))?;
        entries.push(Entry::file(&at(&format!("systemd/{file}")), 0o644, bytes));
    }
    for (file, bytes) in licences()? {
        entries.push(Entry::file(&at(&format!("licenses/{file}")), 0o644, bytes));
    }
    Ok(entries)
}

/// The licences of the binary: of user space, and of the kernel side that it carries.
pub fn licences() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let places = [
        ("LICENSE-MIT", "LICENSE-MIT"),
        ("LICENSE-APACHE", "LICENSE-APACHE"),
        ("LICENSE-GPL2", "tracer-ebpf/LICENSE-GPL2"),
    ];
    let read = |(name, path): (&'static str, &str)| Ok((name, read(&sh::root().join(path))?));
    places.into_iter().map(read).collect()
}

fn directory() -> PathBuf {
    sh::target().join("dist")
}

/// The bytes of a file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Writes a file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// For people.
pub fn mebibytes(bytes: &[u8]) -> f64 {
    bytes.len() as f64 / f64::from(1 << 20)
}
