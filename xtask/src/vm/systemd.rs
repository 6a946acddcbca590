//! `cargo xtask vm systemd`: a machine whose init is systemd, with the agent under its unit.
//!
//! The machine is made of this one's systemd (Debian's package) and the static binary of `cargo xtask image --test`.
//! What is looked at there is the test `in_a_machine` of the tests crate.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::boot::{self, Outcome};
use super::image::{copy, copy_libraries, empty, make, pack, test_programs, write};
use super::{LIMIT, Smoke, directory, kernels};
use crate::dist::arch::{Arch, Profile};
use crate::{dist, ebpf, setup, sh};

/// What runs in the machine.
const TEST: Smoke = Smoke {
    name: "systemd",
    program: "systemd",
    filter: "in_a_machine --ignored --nocapture",
    tier: "auto",
};

/// Parts of the package that a machine without users does without: what waits for people, networks or other services.
const MASKED: [&str; 14] = [
    "getty.target",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-firstboot.service",
    "systemd-pcrphase.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-ask-password-wall.path",
    "systemd-ask-password-console.path",
    "systemd-random-seed.service",
    "remote-fs.target",
];

/// Starts the test when everything is up, and ends the machine.
const SMOKE: &str = "[Unit]\n\
    After=multi-user.target\n\
    [Service]\n\
    Type=oneshot\n\
    Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TRACER_TESTS_REQUIRED=1\n\
    StandardOutput=file:/dev/console\n\
    StandardError=file:/dev/console\n\
    ExecStart=/smoke\n";

/// Boots the kernel of that name.
pub fn run(name: &str) -> Result<()> {
    let kernel = kernels::ALL.iter().find(|kernel| kernel.name == name);
    let kernel = kernel.with_context(|| format!("no kernel {name}"))?;
    setup::for_vm()?;
    ensure!(
        Path::new("/lib/systemd/systemd").is_file(),
        "the machine is made of this one's systemd: install the package systemd"
    );
    let setup = setup::for_build()?;
    ebpf::build(&setup, false)?;
    let agent = Arch::host()?.build(Profile::Test)?;
    let image = build(&agent)?;
    let vmlinuz = kernels::fetch(kernel)?;
    let console = format!("systemd-{name}");
    let run = boot::boot(&console, kernel, &vmlinuz, &image, &[TEST], LIMIT)?;
    eprintln!(
        "vm: {} under systemd: {:?}; {:.0} s",
        run.release,
        run.outcome(TEST.name),
        run.took.as_secs_f64()
    );
    if run.outcome(TEST.name) != Outcome::Passed {
        bail!("the console is target/vm/console-{console}.txt");
    }
    Ok(())
}

fn build(agent: &Path) -> Result<PathBuf> {
    let root = directory().join("root-systemd");
    empty(&root)?;
    for place in [
        "dev",
        "etc/tracer-agent",
        "home",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "var/lib",
        "var/tmp",
        "usr/bin",
        "usr/lib",
        "usr/local/bin",
        "usr/sbin",
    ] {
        make(&root.join(place))?;
    }
    for (link, to) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib"),
        ("init", "usr/lib/systemd/systemd"),
    ] {
        symlink(to, root.join(link)).with_context(|| format!("cannot link {link}"))?;
    }
    let mut programs = package(&root)?;
    programs.extend(tools(&root)?);
    let debug = root.join("t/target/debug");
    make(&debug.join("deps"))?;
    write(&root.join("t/target/CACHEDIR.TAG"), "")?;
    // The test looks for an agent here before it takes the right to run one.
    make(&root.join("t/target/release"))?;
    symlink(
        "/usr/local/bin/tracer-agent",
        root.join("t/target/release/tracer-agent"),
    )
    .context("cannot link the agent")?;
    programs.extend(test_programs(&debug, None, &[TEST])?);
    copy_libraries(&root, &programs)?;
    copy(agent, &root.join("usr/local/bin/tracer-agent"))?;
    configure(&root)?;
    pack(&root, "initramfs-systemd.gz")
}

/// The files of Debian's package.
fn package(root: &Path) -> Result<Vec<PathBuf>> {
    let mut programs = Vec::new();
    for line in sh::output(Command::new("dpkg").args(["-L", "systemd"]))?.lines() {
        let from = Path::new(line);
        let wanted = [
            "/usr/share/doc",
            "/usr/share/man",
            "/usr/share/locale",
            "/usr/share/lintian",
        ];
        if wanted.iter().any(|place| from.starts_with(place)) {
            continue;
        }
        // Merged directories: everything is below usr.
        let inside = line.trim_start_matches('/');
        let inside = match inside.split('/').next() {
            Some("bin" | "sbin" | "lib") => format!("usr/{inside}"),
            _ => inside.to_owned(),
        };
        let to = root.join(inside);
        let meta = std::fs::symlink_metadata(from);
        let Ok(meta) = meta else { continue };
        if meta.is_dir() {
            make(&to)?;
            continue;
        }
        if let Some(parent) = to.parent() {
            make(parent)?;
        }
        if meta.is_symlink() {
            let target = std::fs::read_link(from).context("cannot read a link")?;
            if to.symlink_metadata().is_err() {
                symlink(target, &to).with_context(|| format!("cannot link {}", to.display()))?;
            }
        } else {
            copy(from, &to)?;
            programs.push(to);
        }
    }
    Ok(programs)
}

/// What units and the test call.
fn tools(root: &Path) -> Result<Vec<PathBuf>> {
    let busybox = sh::which("busybox").context("no busybox: `cargo xtask setup` installs it")?;
    copy(&busybox, &root.join("usr/bin/busybox"))?;
    for name in ["sh", "kill", "cat", "sleep"] {
        symlink("busybox", root.join("usr/bin").join(name)).context("cannot link a tool")?;
    }
    let mount = sh::which("mount").context("there is no mount")?;
    let place = root.join("usr/bin/mount");
    copy(&mount, &place)?;
    Ok(vec![place])
}

fn configure(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    make(&units)?;
    let source = sh::root().join("deploy/systemd");
    for (file, to) in [
        ("tracer-agent.service", "etc/systemd/system"),
        ("tracer-agent.env", "etc/tracer-agent"),
    ] {
        copy(&source.join(file), &root.join(to).join(file))?;
    }
    let mut settings =
        String::from_utf8_lossy(&dist::read(&source.join("tracer-agent.yaml"))?).into_owned();
    settings.push_str("export:\n  otlp_file: /var/lib/tracer-agent/spans.jsonl\n");
    write(&root.join("etc/tracer-agent/tracer-agent.yaml"), &settings)?;
    for unit in MASKED {
        let place = units.join(unit);
        if place.symlink_metadata().is_err() {
            symlink("/dev/null", place).context("cannot mask a unit")?;
        }
    }
    write(&units.join("smoke.service"), SMOKE)?;
    let wants = units.join("multi-user.target.wants");
    make(&wants)?;
    // Not `tracer-agent.service`: the test starts it itself, and is told how that went.
    symlink("../smoke.service", wants.join("smoke.service")).context("cannot enable the test")?;
    let default = units.join("default.target");
    symlink("/usr/lib/systemd/system/multi-user.target", default)
        .context("cannot set the target")?;
    let smoke = format!(
        "#!/bin/sh\necho \"vm-kernel $(/bin/busybox uname -r)\"\n/t/target/debug/deps/{} {}\necho \"vm-smoke {} $?\"\n\
         /bin/busybox poweroff -f\n",
        TEST.program, TEST.filter, TEST.name
    );
    write(&root.join("smoke"), &smoke)?;
    sh::output(Command::new("chmod").arg("755").arg(root.join("smoke")))?;
    write(&root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    write(&root.join("etc/group"), "root:x:0:\ntty:x:5:\n")?;
    write(
        &root.join("etc/nsswitch.conf"),
        "passwd: files systemd\ngroup: files systemd\n",
    )?;
    write(
        &root.join("etc/hosts"),
        "127.0.0.1 localhost\n::1 localhost\n",
    )?;
    write(&root.join("etc/os-release"), "ID=tracer-vm\n")?;
    write(
        &root.join("etc/machine-id"),
        "0123456789abcdef0123456789abcdef\n",
    )
}
