//! `cargo xtask vm test`: the agent on other kernels, Debian's, booted under QEMU's emulation.
//!
//! Each machine is an initramfs: busybox, the agent, and test programs of this workspace with the
//! libraries they need. It asks the verifier about every eBPF program, runs the end-to-end tests that
//! need nothing but this workspace's own programs, and powers off. Emulation is slow, and the tests
//! are the same ones that run natively: their counts are exact here too.

mod boot;
mod hooks;
mod identity;
mod image;
mod kernel_tls;
mod kernels;
mod report;
mod systemd;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::agent::{self, BuildArgs};
use crate::dist::arch::{Arch, Profile};
use crate::{ebpf, setup, sh};
use boot::{Outcome, Run};
use kernels::Kernel;

/// Which kernels, and what becomes of the results.
#[derive(Clone, Debug, clap::Args)]
pub struct VmArgs {
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum VmCommand {
    /// Verifier and end-to-end tests on each kernel
    Test {
        /// Only these, as in `5.10` (repeatable)
        #[arg(long = "kernel", value_name = "VERSION")]
        kernels: Vec<String>,
        /// Only the verifier
        #[arg(long)]
        verify: bool,
        /// Behind the verifier only these, as in `HTTP/1`, or `HTTP/1, fast` of the fast tier (repeatable)
        #[arg(long = "only", value_name = "TEST", conflicts_with = "verify")]
        only: Vec<String>,
        /// Write docs/kernels.md from the results (all kernels have to be run)
        #[arg(long, conflicts_with_all = ["kernels", "verify", "only"])]
        docs: bool,
    },
    /// The table of what each kernel's machine did last, where they were run one by one
    Table {
        /// Write it to docs/kernels.md
        #[arg(long)]
        docs: bool,
    },
    /// What system call tracepoints and fentry/fexit programs cost and miss, in instructions
    Hooks {
        /// Only these, as in `5.10` (repeatable)
        #[arg(long = "kernel", value_name = "VERSION")]
        kernels: Vec<String>,
        /// Write docs/kernels.md from the results (all kernels have to be run)
        #[arg(long)]
        docs: bool,
    },
    /// OpenSSL with TLS in the kernel
    KernelTls {
        /// The kernel
        #[arg(long, value_name = "VERSION", default_value = "6.1")]
        kernel: String,
    },
    /// The agent under its systemd unit
    Systemd {
        /// The kernel
        #[arg(long, value_name = "VERSION", default_value = "6.1")]
        kernel: String,
    },
}

/// One end-to-end test program, and which of its tests need nothing that is not in the image.
#[derive(Clone, Copy, Debug)]
pub struct Smoke {
    /// Column of the report.
    pub name: &'static str,
    /// Integration test of the tests crate.
    pub program: &'static str,
    /// Its tests.
    pub filter: &'static str,
    /// The agent's `capture.tier`. Kernels that have not got the fast one skip its tests.
    pub tier: &'static str,
}

/// The tier that not every kernel has.
pub const FAST: &str = "fast";
/// The tier that the agent chooses: tests of it are for the kernel where that is the fast one.
pub const AUTO: &str = "auto";
/// The kernel where it was seen to be exact, and is chosen by itself: there it has to be.
pub const FAST_ON: &str = "6.12";

/// What runs in each machine.
const SMOKES: &[Smoke] = &[
    Smoke {
        name: "HTTP/1",
        program: "live_http1",
        filter: "rust::",
        tier: "base",
    },
    Smoke {
        name: "HTTP/1, fast",
        program: "live_http1",
        filter: "rust::",
        tier: FAST,
    },
    Smoke {
        name: "others at functions",
        program: "functions",
        filter: "",
        // Chosen by itself, where others have it.
        tier: AUTO,
    },
    Smoke {
        name: "gRPC",
        program: "kernels",
        filter: "grpc --ignored",
        tier: "base",
    },
    Smoke {
        name: "gRPC, fast",
        program: "kernels",
        filter: "grpc --ignored",
        tier: FAST,
    },
    Smoke {
        name: "TLS",
        program: "kernels",
        filter: "tls --ignored",
        tier: "base",
    },
    Smoke {
        name: "TLS, fast",
        program: "kernels",
        filter: "tls --ignored",
        tier: FAST,
    },
    Smoke {
        name: "propagation",
        program: "propagate",
        filter: "only_the_header_is_added",
        tier: "base",
    },
    Smoke {
        name: "propagation, fast",
        program: "propagate",
        filter: "only_the_header_is_added",
        tier: FAST,
    },
    Smoke {
        name: "io_uring",
        program: "uring",
        filter: "sockets_of_io_uring",
        tier: "base",
    },
    Smoke {
        name: "io_uring, fast",
        program: "uring",
        filter: "sockets_of_io_uring",
        tier: FAST,
    },
];

/// Those of them that run in machines with another processor.
const FOREIGN: [&str; 2] = ["HTTP/1", "gRPC"];

/// Machines that run at a time: each takes one core, and does not notice the others.
const AT_ONCE: usize = 2;

/// From power-on to power-off. Emulated, on cores that others use too.
const LIMIT: Duration = Duration::from_secs(3600);

/// Where everything that is fetched and made here lies.
fn directory() -> PathBuf {
    sh::target().join("vm")
}

/// `cargo xtask vm`.
pub fn vm(args: &VmArgs) -> Result<()> {
    match &args.command {
        VmCommand::Test {
            kernels,
            verify,
            only,
            docs,
        } => test(kernels, &smokes(*verify, only)?, *docs),
        VmCommand::Table { docs } => table(*docs),
        VmCommand::Hooks { kernels, docs } => hooks::run(kernels, *docs),
        VmCommand::KernelTls { kernel } => kernel_tls::run(kernel),
        VmCommand::Systemd { kernel } => systemd::run(kernel),
    }
}

/// The tests to run: none for the verifier alone, those named, or all.
fn smokes(verify: bool, only: &[String]) -> Result<Vec<Smoke>> {
    let is_there = |name: &&String| SMOKES.iter().any(|smoke| smoke.name == **name);
    if let Some(unknown) = only.iter().find(|name| !is_there(name)) {
        let names: Vec<_> = SMOKES.iter().map(|smoke| smoke.name).collect();
        bail!("no test {unknown}; there are {}", names.join(", "));
    }
    if only.is_empty() {
        return Ok(if verify { Vec::new() } else { by_default() });
    }
    let is_wanted = |smoke: &&Smoke| only.iter().any(|name| name == smoke.name);
    Ok(SMOKES.iter().filter(is_wanted).copied().collect())
}

/// What runs where nothing is named: both tiers. Where context is written agents choose the base tier by themselves.
fn by_default() -> Vec<Smoke> {
    let is_asked_for = |smoke: &Smoke| smoke.tier == FAST && smoke.program == "propagate";
    let smokes = SMOKES.iter().filter(|smoke| !is_asked_for(smoke));
    smokes.copied().collect()
}

fn test(wanted: &[String], smokes: &[Smoke], docs: bool) -> Result<()> {
    let chosen = kernels::chosen(wanted)?;
    setup::for_vm()?;
    let host = Arch::host()?;
    let image = match chosen.iter().any(|kernel| kernel.arch == host) {
        true => Some(image::build(&agent::build(BuildArgs::default())?, smokes)?),
        false => None,
    };
    let machine = |kernel: &Kernel, vmlinuz: &Path| {
        let run = match &image {
            Some(image) if kernel.arch == host => {
                boot::boot(kernel.name, kernel, vmlinuz, image, smokes, LIMIT)?
            }
            _ => foreign(kernel, vmlinuz, smokes)?,
        };
        report::line(&run);
        anyhow::Ok(run)
    };
    let mut runs: Vec<Run> = Vec::new();
    for some in chosen.chunks(AT_ONCE) {
        let images = some.iter().map(|kernel| kernels::fetch(kernel));
        let images: Vec<PathBuf> = images.collect::<Result<_>>()?;
        let ended: Vec<Result<Run>> = std::thread::scope(|scope| {
            let pairs = some.iter().zip(&images);
            let machines: Vec<_> = pairs
                .map(|(kernel, vmlinuz)| scope.spawn(|| machine(kernel, vmlinuz)))
                .collect();
            let ends = machines.into_iter().map(|machine| machine.join());
            ends.map(|end| end.unwrap_or_else(|_| bail!("the thread of a machine panicked")))
                .collect()
        });
        for run in ended {
            runs.push(run?);
        }
    }
    let table = report::table(&runs, smokes);
    println!("{table}");
    if docs {
        report::write_docs("vm test", &table)?;
    }
    let bad = runs.iter().filter(|run| run.failed(smokes)).count();
    if bad > 0 {
        bail!(
            "{bad} of {} kernels: something failed; the consoles are in target/vm",
            runs.len()
        );
    }
    Ok(())
}

fn table(docs: bool) -> Result<()> {
    let mut runs = Vec::new();
    for kernel in kernels::ALL {
        match boot::last(kernel)? {
            Some(run) => runs.push(run),
            None => bail!("{} was not run, or did not end", kernel.name),
        }
    }
    report::same_build(&runs)?;
    let table = report::table(&runs, &by_default());
    println!("{table}");
    match docs {
        true => report::write_docs("vm test", &table),
        false => Ok(()),
    }
}

/// A machine with another processor, of static programs.
fn foreign(kernel: &Kernel, vmlinuz: &Path, smokes: &[Smoke]) -> Result<Run> {
    let is_for_it = |smoke: &&Smoke| kernel.smokes().any(|own| own.name == smoke.name);
    let smokes: Vec<Smoke> = smokes.iter().filter(is_for_it).copied().collect();
    let smokes = smokes.as_slice();
    ebpf::build(&setup::for_build()?, false)?;
    let agent = kernel.arch.build(Profile::Test)?;
    let busybox = kernels::busybox(kernel)?;
    let image = image::build_foreign(kernel.name, kernel.arch, &busybox, &agent, smokes)?;
    boot::boot(kernel.name, kernel, vmlinuz, &image, smokes, LIMIT)
}

impl Kernel {
    /// What runs in its machine. Those with another processor have no C programs and no libraries.
    fn smokes(&self) -> impl Iterator<Item = &'static Smoke> {
        let is_host = Arch::host().is_ok_and(|host| host == self.arch);
        SMOKES
            .iter()
            .filter(move |smoke| is_host || FOREIGN.contains(&smoke.name))
    }
}

impl Run {
    /// Anything that should have passed and did not, unless it is known and documented.
    fn failed(&self, smokes: &[Smoke]) -> bool {
        let wanted = |smoke: &&Smoke| self.wanted.contains(&smoke.name);
        let tests = smokes.iter().filter(wanted);
        let tests = tests.map(|smoke| self.outcome(smoke.name));
        let known = self.known.is_some();
        !self.verified()
            || (!known
                && tests
                    .into_iter()
                    .any(|outcome| !matches!(outcome, Outcome::Passed | Outcome::Skipped)))
    }
}
