//! The two ways to a Rust compiler that can build `core` for the eBPF target.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::apt;
use super::linker::Linker;
use crate::sh;

/// Chooses a way: `nightly` or `debian`.
pub const FORCE: &str = "XTASK_EBPF_TOOLCHAIN";
/// The nightly that is installed where none will do; its LLVM is the one of `linker.rs`.
const PINNED_NIGHTLY: &str = "nightly-2026-05-20";
/// The oldest compiler that aya-ebpf and this project's kernel side build with.
const OLDEST: (u32, u32) = (1, 95);

/// A compiler that builds `core` for bpfel-unknown-none.
#[derive(Debug)]
pub enum Toolchain {
    /// A rustup toolchain with the rust-src component.
    Nightly {
        /// Its name for rustup.
        name: String,
        /// What `rustc -vV` says.
        compiler: Compiler,
    },
    /// Debian's packages rustc-web, cargo-web and rust-web-src, with RUSTC_BOOTSTRAP=1.
    Debian {
        /// Cargo.
        cargo: PathBuf,
        /// The compiler.
        rustc: PathBuf,
        /// What `rustc -vV` says.
        compiler: Compiler,
    },
}

/// What a compiler says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiler {
    /// Like `1.97.0-nightly`.
    pub release: String,
    /// Major version of its LLVM.
    pub llvm: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Nightly,
    Debian,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nightly { name, compiler } => {
                write!(
                    f,
                    "way A, rustup toolchain {name} with rust-src ({compiler})"
                )
            }
            Self::Debian {
                rustc, compiler, ..
            } => write!(
                f,
                "way B, Debian's {} with rust-web-src and RUSTC_BOOTSTRAP=1 ({compiler})",
                rustc.display()
            ),
        }
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {}, LLVM {}", self.release, self.llvm)
    }
}

impl Toolchain {
    /// Cargo of this toolchain with nothing of ours in its environment.
    pub fn cargo(&self) -> Command {
        match self {
            Self::Nightly { name, .. } => {
                let mut command = sh::clean(Command::new("rustup"));
                command.args(["run", name, "cargo"]);
                command
            }
            Self::Debian { cargo, rustc, .. } => {
                let mut command = sh::clean(Command::new(cargo));
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        }
    }
}

/// The toolchain that is there, or one that is installed now.
pub fn find_or_install(linker: &Linker) -> Result<Toolchain> {
    let ways = ways(std::env::var(FORCE).ok().as_deref())?;
    let mut reasons = Vec::new();
    for way in &ways {
        match way.find(linker) {
            Ok(toolchain) => return Ok(toolchain),
            Err(reason) => reasons.push(format!("way {}: {reason:#}", way.letter())),
        }
    }
    for reason in &reasons {
        eprintln!("setup: eBPF compiler, {reason}");
    }
    let mut failures = Vec::new();
    for way in &ways {
        match way.install(linker).and_then(|()| way.find(linker)) {
            Ok(toolchain) => return Ok(toolchain),
            Err(failure) => failures.push(format!("way {}: {failure:#}", way.letter())),
        }
    }
    bail!(
        "no compiler for the eBPF target can be had: {}",
        failures.join("; ")
    )
}

fn ways(forced: Option<&str>) -> Result<Vec<Way>> {
    match forced {
        None | Some("") => Ok(vec![Way::Nightly, Way::Debian]),
        Some("nightly") => Ok(vec![Way::Nightly]),
        Some("debian") => Ok(vec![Way::Debian]),
        Some(other) => bail!("{FORCE}={other}: it can be `nightly` or `debian`"),
    }
}

impl Way {
    fn letter(self) -> char {
        match self {
            Self::Nightly => 'A',
            Self::Debian => 'B',
        }
    }

    fn find(self, linker: &Linker) -> Result<Toolchain> {
        match self {
            Self::Nightly => find_nightly(linker),
            Self::Debian => find_debian(linker),
        }
    }

    fn install(self, linker: &Linker) -> Result<()> {
        match self {
            Self::Nightly => install_nightly(linker),
            Self::Debian => apt::install(
                &["rustc-web", "cargo-web", "rust-web-src"],
                "the eBPF side needs a Rust compiler with its library source",
            ),
        }
    }
}

fn find_nightly(linker: &Linker) -> Result<Toolchain> {
    if sh::which("rustup").is_none() {
        bail!("there is no rustup");
    }
    let list = sh::output(rustup().args(["toolchain", "list"]))?;
    let mut reason = anyhow::anyhow!("rustup has no nightly toolchain");
    for name in nightlies(&list) {
        match check_nightly(&name, linker) {
            Ok(compiler) => return Ok(Toolchain::Nightly { name, compiler }),
            Err(error) => reason = error,
        }
    }
    Err(reason)
}

fn check_nightly(name: &str, linker: &Linker) -> Result<Compiler> {
    let rustc = || {
        let mut command = rustup();
        command.args(["run", name, "rustc"]);
        command
    };
    let compiler = checked(&sh::output(rustc().arg("-vV"))?, linker).context(name.to_owned())?;
    let sysroot = sh::output(rustc().args(["--print", "sysroot"]))?;
    if !has_source(Path::new(sysroot.trim())) {
        bail!("{name} has no rust-src component");
    }
    Ok(compiler)
}

/// Completes the nightly that is there, or installs the pinned one beside it.
fn install_nightly(linker: &Linker) -> Result<()> {
    if sh::which("rustup").is_none() {
        bail!("there is no rustup to install a nightly toolchain with");
    }
    let list = sh::output(rustup().args(["toolchain", "list"]))?;
    let names = nightlies(&list);
    let usable = names.iter().find(|name| {
        sh::output(rustup().args(["run", name, "rustc", "-vV"]))
            .and_then(|text| parse_compiler(&text))
            .is_ok_and(|compiler| linker.reads(compiler.llvm))
    });
    match usable {
        Some(name) => sh::run(rustup().args(["component", "add", "rust-src", "--toolchain", name])),
        None => sh::run(
            rustup()
                .args([
                    "toolchain",
                    "install",
                    PINNED_NIGHTLY,
                    "--profile",
                    "minimal",
                ])
                .args(["--component", "rust-src", "--no-self-update"]),
        ),
    }
}

fn find_debian(linker: &Linker) -> Result<Toolchain> {
    // By path: whatever comes first in PATH may be rustup's.
    let (rustc, cargo) = (
        PathBuf::from("/usr/bin/rustc"),
        PathBuf::from("/usr/bin/cargo"),
    );
    if !sh::is_executable(&rustc) || !sh::is_executable(&cargo) {
        bail!("the packages rustc-web and cargo-web are not installed");
    }
    let run = || sh::clean(Command::new(&rustc));
    let compiler =
        checked(&sh::output(run().arg("-vV"))?, linker).context("the packaged compiler")?;
    let sysroot = sh::output(run().args(["--print", "sysroot"]))?;
    if !has_source(Path::new(sysroot.trim())) {
        bail!("the package rust-web-src is not installed");
    }
    Ok(Toolchain::Debian {
        cargo,
        rustc,
        compiler,
    })
}

fn rustup() -> Command {
    sh::clean(Command::new("rustup"))
}

/// Where cargo's build-std looks for the source of `core`.
fn has_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .is_file()
}

/// The nightly toolchains of a `rustup toolchain list`: plain `nightly` first, then the newest.
fn nightlies(list: &str) -> Vec<String> {
    let mut names: Vec<String> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .map(str::to_owned)
        .collect();
    let dated = |name: &str| name.starts_with("nightly-2");
    names.sort_by(|a, b| dated(a).cmp(&dated(b)).then_with(|| b.cmp(a)));
    names
}

fn checked(version: &str, linker: &Linker) -> Result<Compiler> {
    let compiler = parse_compiler(version)?;
    let mut numbers = compiler
        .release
        .split('.')
        .map(|part| part.parse::<u32>().ok());
    let release = (numbers.next().flatten(), numbers.next().flatten());
    if release < (Some(OLDEST.0), Some(OLDEST.1)) {
        bail!("{compiler} is older than {}.{}", OLDEST.0, OLDEST.1);
    }
    if !linker.reads(compiler.llvm) {
        bail!("{compiler} is newer than what {linker} can read");
    }
    Ok(compiler)
}

fn parse_compiler(version: &str) -> Result<Compiler> {
    let field = |name: &str| {
        version
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .with_context(|| format!("`rustc -vV` does not tell its {name}"))
    };
    let llvm = field("LLVM version")?;
    let major = llvm.split('.').next().and_then(|major| major.parse().ok());
    Ok(Compiler {
        release: field("release")?.to_owned(),
        llvm: major.with_context(|| format!("`rustc -vV` tells an odd LLVM version: {llvm}"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIGHTLY: &str = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\n\
        release: 1.97.0-nightly\nLLVM version: 22.1.4\n";

    fn linker(llvm: u32) -> Linker {
        Linker {
            path: "bpf-linker".into(),
            version: "0.13.0".into(),
            llvm: Some(llvm),
        }
    }

    #[test]
    fn nightlies_are_tried_in_a_stable_order() {
        let list = "stable-x (active, default)\nnightly-2026-01-01-x\nnightly-2026-05-20-x\n\
            nightly-x\n1.95.0-x\n";
        assert_eq!(
            nightlies(list),
            ["nightly-x", "nightly-2026-05-20-x", "nightly-2026-01-01-x"]
        );
        assert!(nightlies("no installed toolchains\n").is_empty());
    }

    #[test]
    fn a_compiler_must_be_new_enough_and_readable() {
        let check = |text: &str, llvm, end: &str| {
            let found = match checked(text, &linker(llvm)) {
                Ok(compiler) => compiler.to_string(),
                Err(error) => format!("{error:#}"),
            };
            assert!(found.ends_with(end), "{found}");
        };
        check(NIGHTLY, 22, "rustc 1.97.0-nightly, LLVM 22");
        check(NIGHTLY, 23, "rustc 1.97.0-nightly, LLVM 22");
        check(NIGHTLY, 21, "can read");
        check(
            "release: 1.63.0\nLLVM version: 14.0.6\n",
            22,
            "is older than 1.95",
        );
        check("release: 1.97.0\n", 22, "does not tell its LLVM version");
        check(
            "release: 1.97.0\nLLVM version: x\n",
            22,
            "odd LLVM version: x",
        );
    }

    #[test]
    fn a_way_can_be_forced() {
        assert_eq!(ways(None).expect("both").len(), 2);
        assert!(ways(Some("nightly")).expect("one") == [Way::Nightly]);
        assert!(ways(Some("debian")).expect("one") == [Way::Debian]);
        assert!(ways(Some("gcc")).is_err());
    }
}
