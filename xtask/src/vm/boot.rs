//! One machine: boots it, reads its console, ends it at the deadline.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::kernels::Kernel;
use super::{Smoke, directory};
use crate::dist::arch::Arch;
use crate::{sh, sys};

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// It ran and failed.
    Failed,
    /// The kernel has not got what it is about, as the test said.
    Skipped,
    /// The machine did not get so far.
    Missing,
}

/// What a machine did.
#[derive(Debug)]
pub struct Run {
    /// The kernel as asked for.
    pub kernel: &'static str,
    /// What is known not to work.
    pub known: Option<&'static str>,
    /// `uname -r`; empty when it did not boot.
    pub release: String,
    /// What was run (see [`super::identity`]); empty when it did not come so far.
    pub build: String,
    /// Programs that the verifier accepted, and instructions it looked at for the largest.
    pub programs: usize,
    /// Instructions that the verifier processed for the worst program; 0 where the kernel does not tell.
    pub most_instructions: u64,
    /// From power-on to power-off.
    pub took: Duration,
    /// Names of the tests that are for it.
    pub wanted: Vec<&'static str>,
    verify: Option<bool>,
    smokes: Vec<(String, Outcome)>,
}

impl Run {
    /// True when the verifier took every program.
    pub fn verified(&self) -> bool {
        self.verify == Some(true)
    }

    /// How one of the tests ended.
    pub fn outcome(&self, smoke: &str) -> Outcome {
        let found = self.smokes.iter().find(|(name, _)| name == smoke);
        found.map_or(Outcome::Missing, |(_, outcome)| *outcome)
    }
}

/// Boots the kernel with the image and waits for its end. `name` is that of the console's file.
pub fn boot(
    name: &str,
    kernel: &Kernel,
    vmlinuz: &Path,
    image: &Path,
    smokes: &[Smoke],
    limit: Duration,
) -> Result<Run> {
    eprintln!("vm: booting {} (its tests: {})", kernel.name, smokes.len());
    let console = console(name);
    let text = console_of(kernel, vmlinuz, image, kernel.processors, &console, limit)?;
    Ok(parse(kernel, &text))
}

/// What the kernel's machine did last; `None` if it was not booted.
pub fn last(kernel: &Kernel) -> Result<Option<Run>> {
    let console = console(kernel.name);
    if !console.exists() {
        return Ok(None);
    }
    let text = read(&console)?;
    // Without it, it is running, or was given up.
    let is_whole = text.contains(TOOK);
    Ok(is_whole.then(|| parse(kernel, &text)))
}

fn console(name: &str) -> PathBuf {
    directory().join(format!("console-{name}.txt"))
}

/// Set to anything: machines have this one's time. Several times faster, on a host that does nothing else.
const HOST_TIME: &str = "XTASK_VM_HOST_TIME";

/// Written behind what the machine wrote: seconds from power-on to power-off.
const TOOK: &str = "vm-took ";
/// Instead of that, of a machine that did not end by itself.
const GIVEN_UP: &str = "vm-given-up ";

fn read(console: &Path) -> Result<String> {
    let bytes =
        std::fs::read(console).with_context(|| format!("cannot read {}", console.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Boots a machine of one processor; returns what was written to the console.
pub fn boot_one(kernel: &Kernel, vmlinuz: &Path, image: &Path, limit: Duration) -> Result<String> {
    eprintln!("vm: booting {} on one processor", kernel.name);
    let console = console(&format!("one-{}", kernel.name));
    console_of(kernel, vmlinuz, image, 1, &console, limit)
}

fn console_of(
    kernel: &Kernel,
    vmlinuz: &Path,
    image: &Path,
    processors: u32,
    console: &Path,
    limit: Duration,
) -> Result<String> {
    let mut file =
        File::create(console).with_context(|| format!("cannot write {}", console.display()))?;
    let (emulator, machine, console_device): (_, &[&str], _) = match kernel.arch {
        // Without cx16, whose emulation spoils the flags in QEMU 7.2 and so the kernel's allocator.
        Arch::X86_64 => ("qemu-system-x86_64", &["-cpu", "max,-cx16"], "ttyS0"),
        // Signed pointers are slow to emulate.
        Arch::Aarch64 => (
            "qemu-system-aarch64",
            &["-machine", "virt", "-cpu", "cortex-a72"],
            "ttyAMA0",
        ),
    };
    let mut command = Command::new(emulator);
    if std::env::var_os(HOST_TIME).is_none_or(|value| value.is_empty()) {
        // Its time is counted in the instructions it executes, a nanosecond each, and goes on at once where it
        // sleeps: that this machine does something else meanwhile cannot be seen inside. With its own time, a
        // processor that has to wait for a real one makes tests late, and a late test fails.
        command.args(["-icount", "shift=0,sleep=off"]);
    } else {
        // Processors in turns, as it has them where it counts. Side by side, one runs into a breakpoint that the kernel had put into
        // its own code for a moment and taken away again: a panic where the agent attaches to a tracepoint or a function.
        command.args(["-accel", "tcg,thread=single"]);
    }
    command
        .args(["-smp", &processors.to_string(), "-m", "2048"])
        .args(machine)
        .args(["-nographic", "-no-reboot"])
        .arg("-kernel")
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(image)
        // A processor that is stuck for a minute ends the machine, with what it did on the console.
        .arg("-append")
        // A kernel that is slow to see its timer takes it for broken, and ends, unless told otherwise.
        .arg(format!(
            "console={console_device} panic=-1 quiet softlockup_panic=1 watchdog_thresh=30 no_timer_check"
        ));
    let start = Instant::now();
    let mut said = TOOK;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("cannot share a file")?)
        .stderr(Stdio::null());
    // With this thread, which waits for it: killed, we would leave an emulator that takes a core for an hour.
    let mut child = sys::die_with_us(&mut command)
        .spawn()
        .with_context(|| format!("cannot start `{}`", sh::line(&command)))?;
    while child.try_wait().context("cannot wait for qemu")?.is_none() {
        if start.elapsed() > limit {
            child.kill().context("cannot end qemu")?;
            child.wait().context("cannot wait for qemu")?;
            eprintln!("vm: {} did not end within {limit:?}", kernel.name);
            said = GIVEN_UP;
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    writeln!(file, "\n{said}{}", start.elapsed().as_secs())
        .with_context(|| format!("cannot write {}", console.display()))?;
    read(console)
}

fn parse(kernel: &Kernel, console: &str) -> Run {
    let mut run = Run {
        kernel: kernel.name,
        known: kernel.known,
        release: String::new(),
        build: String::new(),
        programs: 0,
        most_instructions: 0,
        took: Duration::ZERO,
        wanted: kernel.smokes().map(|smoke| smoke.name).collect(),
        verify: None,
        smokes: Vec::new(),
    };
    let mut skipped = false;
    for line in console.lines() {
        // The firmware leaves control sequences before the first line.
        if let Some((_, release)) = line.split_once("vm-kernel ") {
            run.release = release.trim().to_owned();
        } else if let Some(build) = line.strip_prefix("vm-build ") {
            run.build = build.trim().to_owned();
        } else if let Some(seconds) = line.strip_prefix(TOOK) {
            run.took = Duration::from_secs(seconds.trim().parse().unwrap_or(0));
        } else if let Some(code) = line.strip_prefix("vm-verify ") {
            run.verify = Some(code.trim() == "0");
        } else if let Some((name, code)) = line
            .strip_prefix("vm-smoke ")
            .and_then(|rest| rest.trim().rsplit_once(' '))
        {
            let outcome = match (code, std::mem::take(&mut skipped)) {
                ("0", false) => Outcome::Passed,
                ("0", true) => Outcome::Skipped,
                _ => Outcome::Failed,
            };
            run.smokes.push((name.to_owned(), outcome));
        } else if line.starts_with("skipped: ") || line.contains(" ... skipped: ") {
            // Said by what starts the tests, or by a test behind its name.
            skipped = true;
        } else if let Some(instructions) = instructions(line) {
            run.programs += 1;
            run.most_instructions = run.most_instructions.max(instructions);
        }
    }
    run
}

/// The number in a line of `tracer-agent verify`.
fn instructions(line: &str) -> Option<u64> {
    // Names of programs at functions are several words.
    let (before, _) = line.split_once(" instructions ")?;
    let (_, number) = before.rsplit_once(' ')?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles() {
        let kernel = Kernel {
            name: "6.1",
            suite: "bookworm",
            arch: Arch::X86_64,
            processors: 1,
            known: None,
        };
        let console = "\x1b[2Jvm-kernel 6.1.0-50\r\nvm-build 0123abcd\r\nhead    227100 instructions    1.0 ms\r\nwindow (functions)  300 instructions  1 ms\r\nvm-verify 0\r\ntest a ... ok\r\nvm-smoke HTTP/1 0\r\nvm-smoke gRPC 101\r\ntest b ... skipped: b: c\r\nok\r\nvm-smoke io_uring 0\r\n\nvm-took 61\n";
        let run = parse(&kernel, console);
        assert_eq!(run.took, Duration::from_secs(61));
        assert_eq!(run.release, "6.1.0-50");
        assert_eq!(run.build, "0123abcd");
        assert!(run.verified());
        assert_eq!((run.programs, run.most_instructions), (2, 227_100));
        assert_eq!(run.outcome("HTTP/1"), Outcome::Passed);
        assert_eq!(run.outcome("gRPC"), Outcome::Failed);
        assert_eq!(run.outcome("io_uring"), Outcome::Skipped);
        assert_eq!(run.outcome("TLS"), Outcome::Missing);
        let dead = parse(&kernel, "Kernel panic");
        assert!(!dead.verified());
        assert_eq!(dead.release, "");
    }
}
