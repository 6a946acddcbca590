//! Puts the eBPF object, if it was built, where the agent can embed it.
//!
//! In: `target/bpf/tracer.bpf.o` of the workspace, left there by `cargo xtask build`. Out:
//! `$OUT_DIR/tracer.bpf.o`, a copy of it, or an empty file when there is none, so that plain
//! `cargo build`, `cargo test` and `cargo clippy` work without the eBPF toolchain.

use std::path::Path;
use std::{env, fs, io};

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let manifest = env::var_os("CARGO_MANIFEST_DIR").context("cargo sets CARGO_MANIFEST_DIR")?;
    let out = env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?;

    // The directory is watched, not the file: cargo takes a watched file that does not exist for
    // changed at every build, whereas a directory also tells when the object appears or goes.
    let directory = Path::new(&manifest).join("../target/bpf");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    println!("cargo::rerun-if-changed={}", directory.display());

    let object = directory.join("tracer.bpf.o");
    let bytes = match fs::read(&object) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", object.display()));
        }
    };
    let copy = Path::new(&out).join("tracer.bpf.o");
    fs::write(&copy, bytes).with_context(|| format!("cannot write {}", copy.display()))
}
