//! `cargo xtask setup`: what the eBPF build and tracing itself need, found or installed.
//!
//! Two ways to a compiler for the eBPF target are tried in order, first among what is there, then
//! by installing: a nightly toolchain with rust-src, and Debian's rustc-web with its library
//! source. Both need bpf-linker, made for the same LLVM.

mod apt;
mod dist;
mod linker;
mod mounts;
mod peers;
mod sdk;
mod tests;
mod tls;
mod toolchain;
mod vm;

pub use dist::{c_compiler, rust_tool, standard_library, target_libraries};
pub use linker::Linker;
pub use mounts::mount_all;
pub use tests::{for_kubernetes, for_tests, venv_bin};
pub use toolchain::Toolchain;
pub use vm::for_vm;

use anyhow::Result;

/// What the eBPF build uses.
#[derive(Debug)]
pub struct Setup {
    /// The compiler.
    pub toolchain: Toolchain,
    /// The linker.
    pub linker: Linker,
}

/// Finds or installs everything the eBPF build needs and says what it took.
pub fn for_build() -> Result<Setup> {
    let linker = linker::find_or_install()?;
    let toolchain = toolchain::find_or_install(&linker)?;
    eprintln!("setup: eBPF compiler: {toolchain}");
    eprintln!("setup: eBPF linker: {linker}");
    Ok(Setup { toolchain, linker })
}
