//! Every repeatable step of the project: `cargo xtask help` lists them.
//!
//! Commands are shown as they run. An error is one line: what failed and what to do.

mod agent;
mod bench;
mod check;
mod child;
mod demo;
mod dist;
mod ebpf;
mod http;
mod image;
mod kubernetes;
mod run;
mod setup;
mod sh;
mod sys;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about, disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find or install what the eBPF build needs; mount what tracing needs
    Setup {
        /// Also what the end-to-end tests and benches need
        #[arg(long)]
        tests: bool,
    },
    /// Build the kernel side and the agent: target/release/tracer-agent
    Build(agent::BuildArgs),
    /// Build, then trace this host
    Run(run::RunArgs),
    /// Formatting, clippy, build, verifier and every test
    Test(check::TestArgs),
    /// Formatting, clippy, build and verifier
    Check,
    /// Measure what tracing costs
    Bench(bench::BenchArgs),
    /// The static binary that users are given, with its bill of materials: target/dist
    Dist(dist::DistArgs),
    /// The container image, as an OCI layout: target/image
    Image(image::ImageArgs),
    /// The agent on other kernels, booted under QEMU
    Vm(vm::VmArgs),
    /// The agent and its manifests against a real kube-apiserver (built once: some minutes)
    Kubernetes,
    /// Accept OTLP over HTTP and only count spans, by process
    #[command(hide = true)]
    OtlpSink {
        /// Where to write the port it listens on
        #[arg(long)]
        port_file: PathBuf,
    },
    /// Play one scene of `bench causality`
    #[command(hide = true)]
    CausalityScene(bench::SceneArgs),
}

fn main() -> ExitCode {
    match perform(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup { tests } => {
            setup::for_build()?;
            setup::mount_all()?;
            if tests {
                setup::for_tests()?;
            }
        }
        Task::Build(args) => {
            let agent = agent::build(args)?;
            eprintln!("build: {}", agent.display());
        }
        Task::Run(args) => return run::run(&args),
        Task::Test(args) => check::test(args)?,
        Task::Check => check::check()?,
        Task::Bench(args) => bench::bench(&args)?,
        Task::CausalityScene(args) => bench::causality_scene(&args)?,
        Task::Dist(args) => dist::dist(&args)?,
        Task::Image(args) => image::image(&args)?,
        Task::Kubernetes => kubernetes::kubernetes()?,
        Task::Vm(args) => vm::vm(&args)?,
        Task::OtlpSink { port_file } => bench::sink(&port_file)?,
    }
    Ok(ExitCode::SUCCESS)
}
