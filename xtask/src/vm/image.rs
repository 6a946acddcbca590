//! The initramfs that every kernel is booted with.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{AUTO, FAST, FAST_ON, Smoke, directory, identity};
use crate::dist::arch::{Arch, Profile};
use crate::sh;

/// Where the programs are in the image: laid out like cargo's target directory, which is how the
/// tests find their helpers.
const TARGET: &str = "t/target";

/// Makes the image; returns its path.
pub fn build(agent: &Path, smokes: &[Smoke]) -> Result<PathBuf> {
    let root = lay_out(agent, smokes, "")?;
    pack(&root, "initramfs.gz")
}

/// Makes one for another processor, of static programs; `name` tells it from others.
pub fn build_foreign(
    name: &str,
    arch: Arch,
    busybox: &Path,
    agent: &Path,
    smokes: &[Smoke],
) -> Result<PathBuf> {
    let root = lay_out_with(&format!("-{name}"), Some(arch), busybox, agent, smokes, "")?;
    pack(&root, &format!("initramfs-{name}.gz"))
}

/// Makes the directory that becomes the image; `prepare` is done there before the tests, by a shell.
pub fn lay_out(agent: &Path, smokes: &[Smoke], prepare: &str) -> Result<PathBuf> {
    let busybox = sh::which("busybox").context("no busybox: `cargo xtask setup` installs it")?;
    lay_out_with("", None, &busybox, agent, smokes, prepare)
}

fn lay_out_with(
    suffix: &str,
    foreign: Option<Arch>,
    busybox: &Path,
    agent: &Path,
    smokes: &[Smoke],
    prepare: &str,
) -> Result<PathBuf> {
    let root = directory().join(format!("root{suffix}"));
    empty(&root)?;
    for place in [
        "bin",
        "dev",
        "etc",
        "proc",
        "run",
        "sys",
        "tmp",
        "t/target/debug/deps",
        "t/target/release",
    ] {
        make(&root.join(place))?;
    }
    copy(busybox, &root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh")).context("cannot link /bin/sh")?;
    write(&root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
    write(
        &root.join("etc/hosts"),
        "127.0.0.1 localhost\n::1 localhost\n",
    )?;
    write(&root.join(TARGET).join("CACHEDIR.TAG"), "")?;
    let debug = root.join(TARGET).join("debug");
    let mut programs = vec![root.join(TARGET).join("release/tracer-agent")];
    copy(agent, &programs[0])?;
    if !smokes.is_empty() {
        programs.extend(test_programs(&debug, foreign, smokes)?);
    }
    if foreign.is_none() && smokes.iter().any(|smoke| smoke.program == "kernels") {
        programs.extend(tls_programs(&root)?);
    }
    if foreign.is_none() {
        copy_libraries(&root, &programs)?;
    }
    let init = root.join("init");
    write(&init, &script(&identity::of_workspace()?, smokes, prepare))?;
    sh::output(Command::new("chmod").arg("755").arg(&init))?;
    Ok(root)
}

/// What the test of TLS uses: a program in C, and OpenSSL with what makes a certificate.
fn tls_programs(root: &Path) -> Result<Vec<PathBuf>> {
    let services = root.join(TARGET).join("services");
    make(&services)?;
    let program = services.join("c-dlopen");
    let source = sh::root().join("tests/services/c/dlopen.c");
    let mut compile = Command::new("cc");
    compile.args(["-O2", "-pthread", "-o"]).arg(&program);
    sh::output(compile.arg(source))?;
    let openssl = sh::which("openssl").context("there is no openssl")?;
    let openssl_copy = root.join("bin/openssl");
    copy(&openssl, &openssl_copy)?;
    let mut programs = vec![program, openssl_copy];
    for library in libraries(&[openssl])? {
        let name = library.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with("libssl.so")) {
            // Where the test and the agent look for it, whatever way it is found here.
            let place = Path::new("/usr/lib/x86_64-linux-gnu")
                .join(library.file_name().unwrap_or_default());
            let place = root.join(place.strip_prefix("/").unwrap_or(&place));
            if let Some(parent) = place.parent() {
                make(parent)?;
            }
            copy(&library, &place)?;
            programs.push(place);
        }
    }
    make(&root.join("usr/lib/ssl"))?;
    copy(
        Path::new("/etc/ssl/openssl.cnf"),
        &root.join("usr/lib/ssl/openssl.cnf"),
    )?;
    Ok(programs)
}

struct Built {
    name: String,
    path: PathBuf,
    /// A test program, as opposed to a program of the tests crate.
    deps: bool,
}

/// Builds the tests crate, for another processor if one is named, and copies its programs and those of its tests that
/// are wanted, as cargo lays them out.
pub fn test_programs(
    debug: &Path,
    foreign: Option<Arch>,
    smokes: &[Smoke],
) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for built in built_programs(foreign, smokes)? {
        let place = match built.deps {
            true => debug.join("deps").join(&built.name),
            false => debug.join(&built.name),
        };
        copy(&built.path, &place)?;
        match foreign {
            Some(arch) => arch.check(&place)?,
            // Debug information is most of their size.
            None => sh::output(Command::new("strip").arg(&place)).map(drop)?,
        }
        programs.push(place);
    }
    Ok(programs)
}

fn built_programs(foreign: Option<Arch>, smokes: &[Smoke]) -> Result<Vec<Built>> {
    let mut command = match foreign {
        Some(arch) => arch.cargo("test", Profile::Test)?,
        None => {
            let mut command = sh::cargo();
            command.arg("test");
            command
        }
    };
    command.args([
        "--package",
        "tracer-tests",
        "--no-run",
        "--message-format=json",
    ]);
    if foreign.is_some() {
        // All of them take long, and are not there yet.
        let programs: BTreeSet<_> = smokes.iter().map(|smoke| smoke.program).collect();
        for program in programs {
            command.args(["--test", program]);
        }
    }
    eprintln!("vm: {}", sh::line(&command));
    let messages = sh::output(&mut command)?;
    let mut found = Vec::new();
    for message in messages.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(message) else {
            continue;
        };
        let (Some(name), Some(path)) = (
            message["target"]["name"].as_str(),
            message["executable"].as_str(),
        ) else {
            continue;
        };
        let kind = &message["target"]["kind"][0];
        let wanted = kind == "test" && smokes.iter().any(|smoke| smoke.program == name);
        let helper = kind == "bin" && message["profile"]["test"] == false;
        if wanted || helper {
            found.push(Built {
                name: name.to_owned(),
                path: path.into(),
                deps: wanted,
            });
        }
    }
    Ok(found)
}

/// Copies the shared libraries that the programs need to where they are on this machine.
pub fn copy_libraries(root: &Path, programs: &[PathBuf]) -> Result<()> {
    for library in libraries(programs)? {
        let place = root.join(library.strip_prefix("/").unwrap_or(&library));
        if let Some(parent) = place.parent() {
            make(parent)?;
        }
        copy(&library, &place)?;
    }
    Ok(())
}

/// Shared libraries that the programs need, the loader included.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for program in programs {
        // Fails for static programs, which need none.
        let Ok(listed) = sh::output(Command::new("ldd").arg(program)) else {
            continue;
        };
        let words = listed
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        found.extend(words.map(PathBuf::from));
    }
    Ok(found)
}

/// What a machine's script begins with: everything that the agent looks at; `$b` is busybox.
pub const MOUNTS: &str = "$b mount -t proc proc /proc\n\
    $b mount -t sysfs sys /sys\n\
    $b mount -t devtmpfs dev /dev\n\
    $b mount -t tracefs tracefs /sys/kernel/tracing\n\
    $b mount -t securityfs securityfs /sys/kernel/security\n\
    $b mount -t bpf bpf /sys/fs/bpf\n\
    $b mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
    $b mount -t tmpfs tmpfs /tmp\n";

fn script(build: &str, smokes: &[Smoke], prepare: &str) -> String {
    let mut text = String::from(
        "#!/bin/sh\n\
         b=/bin/busybox\n\
         export PATH=/bin TRACER_TESTS_REQUIRED=1 TRACER_TESTS_KERNEL_MAY_SKIP=1 TRACER_TESTS_ONE_IN=@one-in@ TRACER_TESTS_PATIENCE=6\n\
         $b mkdir -p /sys /proc /dev /tmp\n\
         @mounts@\
         $b ifconfig lo 127.0.0.1 up\n\
         echo \"vm-kernel $($b uname -r)\"\n\
         echo \"vm-build @build@\"\n\
         /t/target/release/tracer-agent verify\n\
         echo \"vm-verify $?\"\n",
    )
    .replace("@mounts@", MOUNTS)
    .replace("@build@", build)
    // Emulated, all of it takes half an hour for each kernel.
    .replace("@one-in@", &one_in());
    text.push_str(prepare);
    for smoke in smokes {
        let Smoke {
            name,
            program,
            filter,
            tier,
        } = smoke;
        // What is skipped says so, as tests do.
        let condition = match *tier {
            FAST | AUTO => format!(
                "if ! $b uname -r | $b grep -q '^{FAST_ON}\\.'; then\n\
                 echo 'skipped: the fast tier is tested on {FAST_ON} alone'; $b true\nel"
            ),
            _ => String::new(),
        };
        text.push_str(&format!(
            "{condition}if true; then\n\
             TRACER_TIER={tier} /t/target/debug/deps/{program} {filter}\nfi\n\
             echo \"vm-smoke {name} $?\"\n",
        ));
    }
    text.push_str("$b poweroff -f\n");
    text
}

/// One in how many of the tests' requests are sent: those of HTTP/1 and gRPC.
fn one_in() -> String {
    let wanted = std::env::var("TRACER_TESTS_ONE_IN").ok();
    let wanted = wanted.and_then(|text| text.parse::<u32>().ok());
    wanted.unwrap_or(5).to_string()
}

/// Packs a root file system for the kernel to unpack.
pub fn pack(root: &Path, name: &str) -> Result<PathBuf> {
    let image = directory().join(name);
    let pipeline = format!("find . | cpio --quiet -o -H newc | gzip -1 > ../{name}");
    sh::output(
        Command::new("sh")
            .args(["-ec", &pipeline])
            .current_dir(root),
    )?;
    Ok(image)
}

/// Makes a directory of it that holds nothing.
pub fn empty(root: &Path) -> Result<()> {
    if root.exists() {
        std::fs::remove_dir_all(root)
            .with_context(|| format!("cannot empty {}", root.display()))?;
    }
    make(root)
}

/// Makes a directory and those on the way.
pub fn make(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))
}

/// Copies a file with its permissions.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .map(|_| ())
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Writes a text.
pub fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
