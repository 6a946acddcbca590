//! `cargo xtask bench`: what tracing costs and how fast the pipeline is.
//!
//! - `live`: one nginx worker under wrk, in alternating runs without and with the agent.
//! - `h2load`: the same server over HTTP/2, many streams on few connections.
//! - `tls`: HTTPS servers with probes in their TLS libraries, likewise.
//! - `grpc`: unary calls to a server on grpc-go, likewise.
//! - `causality`: parents of what services call (only when asked for).
//! - `replay`: the pipeline over a large capture file, exporter off, on one core.

mod agent;
mod causality;
mod h2load;
mod live;
mod multiplexed;
mod nginx;
mod offline;
mod procfs;
mod report;
mod sink;
mod tls;
mod wrk;

pub use causality::{SceneArgs, play as causality_scene};
pub use sink::serve as sink;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::agent::{self as binary, BuildArgs};
use crate::{setup, sh, sys};

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// Only this row
    #[arg(value_enum)]
    pub row: Option<Row>,
    /// Pairs of runs without and with the agent; medians are printed
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub pairs: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Connections of wrk
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub connections: u32,
    /// Exchanges in the replayed capture
    #[arg(long, default_value_t = 600_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub exchanges: u64,
    /// Requests of each run of the causality row
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: u32,
    /// Only services of the causality row whose name contains this
    #[arg(long)]
    pub only: Option<String>,
    /// Measure this agent, with what is installed, instead of setting up and building
    #[arg(long)]
    pub agent: Option<PathBuf>,
    /// Concurrencies of the causality row
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    pub concurrency: Vec<u32>,
}

/// A row of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Row {
    /// nginx under wrk, without and with the agent
    Live,
    /// nginx under h2load, without and with the agent
    H2load,
    /// A gRPC server under h2load, without and with the agent
    Grpc,
    /// nginx with TLS and a Go HTTPS server, without and with the agent
    Tls,
    /// `tracer-agent replay` of a large capture
    Replay,
    /// Parents of what services call while they serve a request
    Causality,
}

/// Measures and prints.
pub fn bench(args: &BenchArgs) -> Result<()> {
    let wanted = |row| args.row.is_none_or(|only| only == row);
    let causality = args.row == Some(Row::Causality);
    let is_live = args.row != Some(Row::Replay);
    if is_live && args.agent.is_none() {
        setup::for_tests()?;
    }
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => binary::build(BuildArgs::default())?,
    };
    let directory = sh::target().join("bench");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    if is_live && !sys::is_root() {
        anyhow::ensure!(
            args.row.is_none(),
            "this row needs root's rights: run it under sudo"
        );
        eprintln!("bench: the rows with an agent are skipped: they need root's rights");
    } else if is_live {
        setup::mount_all()?;
        let load = live::Load {
            pairs: args.pairs,
            time: Duration::from_secs(args.seconds),
            connections: args.connections,
        };
        if wanted(Row::Live) {
            live::measure(&agent, &directory, &load)?;
        }
        if wanted(Row::H2load) {
            multiplexed::http2(&agent, &directory, args.pairs)?;
        }
        if wanted(Row::Grpc) {
            multiplexed::grpc(&agent, &directory, args.pairs)?;
        }
        if wanted(Row::Tls) {
            tls::measure(&agent, &directory, &load)?;
        }
    }
    if causality {
        setup::mount_all()?;
        let only = args.only.as_deref();
        causality::measure(&agent, &directory, args.requests, only, &args.concurrency)?;
    }
    if wanted(Row::Replay) {
        offline::measure(&agent, &directory, args.exchanges)?;
    }
    Ok(())
}
