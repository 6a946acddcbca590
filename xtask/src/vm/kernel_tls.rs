//! `cargo xtask vm kernel-tls`: a machine whose kernel encrypts for OpenSSL, which many hosts' kernels are not
//! built to do. What is looked at there is the test `tls_kernel` of the tests crate.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::boot::{self, Outcome};
use super::image::{copy, copy_libraries, lay_out, make, pack};
use super::{LIMIT, Smoke, kernels};
use crate::agent::{self, BuildArgs};
use crate::{setup, sh};

/// What runs in the machine.
const TEST: Smoke = Smoke {
    name: "kernel TLS",
    program: "tls_kernel",
    filter: "in_a_machine --ignored --nocapture",
    tier: "auto",
};

/// TLS and its ciphers, each behind what it needs.
const MODULES: [&str; 7] = [
    "crypto/crypto_null",
    "crypto/gf128mul",
    "crypto/ghash-generic",
    "crypto/ctr",
    "crypto/seqiv",
    "crypto/gcm",
    "net/tls/tls",
];
/// Where the test looks for what it starts.
const SERVICES: &str = "t/target/services";

/// Boots the kernel of that name.
pub fn run(name: &str) -> Result<()> {
    let kernel = kernels::ALL.iter().find(|kernel| kernel.name == name);
    let kernel = kernel.with_context(|| format!("no kernel {name}"))?;
    setup::for_vm()?;
    let agent = agent::build(BuildArgs::default())?;
    let vmlinuz = kernels::fetch(kernel)?;
    let image = build(&agent, &vmlinuz)?;
    let console = format!("kernel-tls-{name}");
    let run = boot::boot(&console, kernel, &vmlinuz, &image, &[TEST], LIMIT)?;
    eprintln!(
        "vm: {} with kernel TLS: {:?}; {:.0} s",
        run.release,
        run.outcome(TEST.name),
        run.took.as_secs_f64()
    );
    if run.outcome(TEST.name) != Outcome::Passed {
        bail!("the console is target/vm/console-{console}.txt");
    }
    Ok(())
}

fn build(agent: &Path, vmlinuz: &Path) -> Result<PathBuf> {
    let mut prepare = String::new();
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        // Some are part of some kernels; the test says what works.
        prepare.push_str(&format!(
            "[ -e /modules/{name}.ko ] && $b insmod /modules/{name}.ko\n"
        ));
    }
    let root = lay_out(agent, &[TEST], &prepare)?;
    make(&root.join("modules"))?;
    let all = modules(vmlinuz)?;
    for module in MODULES {
        let from = all.join("kernel").join(format!("{module}.ko"));
        if from.is_file() {
            let name = module.rsplit('/').next().unwrap_or(module);
            copy(&from, &root.join(format!("modules/{name}.ko")))?;
        }
    }
    let services = root.join(SERVICES);
    make(&services)?;
    let program = services.join("c-dlopen");
    let source = sh::root().join("tests/services/c/dlopen.c");
    let mut compile = Command::new("cc");
    compile.args(["-O2", "-pthread", "-o"]).arg(&program);
    sh::run(compile.arg(source))?;
    // A program that is linked with the library tells where that is.
    let openssl =
        sh::which("openssl").context("there is no openssl: `cargo xtask setup --tests`")?;
    let mut certificate = Command::new(&openssl);
    certificate
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days"])
        .args(["3650", "-subj", "/CN=localhost", "-keyout"])
        .arg(services.join("key.pem"))
        .arg("-out")
        .arg(services.join("certificate.pem"))
        .stderr(Stdio::null());
    sh::run(&mut certificate)?;
    copy_libraries(&root, &[program, openssl])?;
    pack(&root, "initramfs-kernel-tls.gz")
}

/// The directory with the modules of a kernel that was fetched.
fn modules(vmlinuz: &Path) -> Result<PathBuf> {
    let name = vmlinuz.file_name().unwrap_or_default().to_string_lossy();
    let release = name
        .strip_prefix("vmlinuz-")
        .context("no release in the name")?;
    let package = vmlinuz.ancestors().nth(2).context("it is in boot")?;
    let places = ["lib/modules", "usr/lib/modules"].map(|place| package.join(place).join(release));
    let found = places.into_iter().find(|place| place.is_dir());
    found.with_context(|| format!("no modules of {release}"))
}
