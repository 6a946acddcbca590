//! What `cargo xtask dist` needs: Rust's library for the target, and a C compiler for ring's C parts.
//!
//! The compiler is Zig's, which compiles for every architecture, from its package on PyPI. It is installed below
//! `target/`, as is everything that only this project uses.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::apt;
use crate::sh;

/// The package's version.
const ZIG: &str = "0.17.1";

/// A C compiler and its archiver, as scripts that cc's conventions fit.
#[derive(Clone, Debug)]
pub struct CCompiler {
    /// The compiler.
    pub cc: PathBuf,
    /// The archiver.
    pub ar: PathBuf,
}

/// Where the toolchain has its libraries for a target.
pub fn target_libraries(target: &str) -> Result<PathBuf> {
    let mut command = rust_tool("rustc");
    command.args(["--print", "target-libdir", "--target", target]);
    Ok(PathBuf::from(sh::output(&mut command)?.trim()))
}

/// Has rustup add the standard library for a target, unless it is there.
pub fn standard_library(target: &str) -> Result<()> {
    let there = || -> Result<bool> {
        let directory = target_libraries(target)?;
        let mut entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        Ok(entries.any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-")))
    };
    if there()? {
        return Ok(());
    }
    if sh::which("rustup").is_none() {
        bail!("Rust's library for {target} is missing, and there is no rustup to add it");
    }
    sh::run(rust_tool("rustup").args(["target", "add", target]))?;
    if !there()? {
        bail!("rustup added no library for {target}");
    }
    Ok(())
}

/// The compiler for an architecture, installed unless it is there.
pub fn c_compiler(arch: &str) -> Result<CCompiler> {
    let directory = sh::target().join("zig").join(ZIG);
    let zig = directory.join("ziglang/zig");
    if !sh::is_executable(&zig) {
        install(&directory)?;
    }
    let zig = zig
        .to_str()
        .with_context(|| format!("{} is no text", zig.display()))?
        .replace('\'', r"'\''");
    // cc names the target as LLVM does, which Zig does not understand; it is named here.
    let cc = format!(
        "#!/bin/sh\nfor argument; do\n    shift\n    case \"$argument\" in\n        --target=*) ;;\n        \
         *) set -- \"$@\" \"$argument\" ;;\n    esac\ndone\nexec '{zig}' cc -target {arch}-linux-musl \"$@\"\n"
    );
    let ar = format!("#!/bin/sh\nexec '{zig}' ar \"$@\"\n");
    Ok(CCompiler {
        cc: script(&directory.join(format!("cc-{arch}")), &cc)?,
        ar: script(&directory.join("ar"), &ar)?,
    })
}

fn install(directory: &std::path::Path) -> Result<()> {
    let python = sh::which("python3").context("Zig's package needs python3")?;
    let has_pip = || sh::output(Command::new(&python).args(["-m", "pip", "--version"])).is_ok();
    if !has_pip() {
        apt::install(&["python3-pip"], "Zig's package is installed by pip")?;
    }
    eprintln!("setup: a C compiler for every target: Zig {ZIG} (100 MB)");
    let mut command = Command::new(&python);
    command
        .args(["-m", "pip", "install", "--quiet", "--no-deps"])
        .args([
            "--disable-pip-version-check",
            "--root-user-action=ignore",
            "--upgrade",
            "--target",
        ])
        .arg(directory)
        .arg(format!("ziglang=={ZIG}"));
    sh::run(&mut command)
}

fn script(path: &std::path::Path, text: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let write = || -> std::io::Result<()> {
        // The same script is left alone: it may be running for another build.
        if std::fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        std::fs::write(path, text)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.to_owned())
}

/// A tool of the toolchain that runs this program.
pub fn rust_tool(tool: &str) -> Command {
    let mut command = sh::clean(Command::new(tool));
    if let Some(toolchain) = std::env::var_os("RUSTUP_TOOLCHAIN") {
        command.env("RUSTUP_TOOLCHAIN", toolchain);
    }
    command.current_dir(sh::root());
    command
}
