//! `cargo xtask bench`: what tracing costs and how fast the pipeline is.
//!
//! - `live`: one nginx worker under wrk, in alternating runs without and with the agent.
//! - `h2load`: the same server over HTTP/2, many streams on few connections.
//! - `grpc`: unary calls to a server on grpc-go, likewise.
//! - `replay`: the pipeline over a large capture file, exporter off, on one core.

mod agent;
mod h2load;
mod live;
mod multiplexed;
mod nginx;
mod offline;
mod procfs;
mod report;
mod sink;
mod wrk;

pub use sink::serve as sink;

use std::fs;
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
    /// `tracer-agent replay` of a large capture
    Replay,
}

/// Measures and prints.
pub fn bench(args: &BenchArgs) -> Result<()> {
    let wanted = |row| args.row.is_none_or(|only| only == row);
    let is_live = args.row != Some(Row::Replay);
    if is_live {
        setup::for_tests()?;
    }
    let agent = binary::build(BuildArgs::default())?;
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
        if wanted(Row::Live) {
            let load = live::Load {
                pairs: args.pairs,
                time: Duration::from_secs(args.seconds),
                connections: args.connections,
            };
            live::measure(&agent, &directory, &load)?;
        }
        if wanted(Row::H2load) {
            multiplexed::http2(&agent, &directory, args.pairs)?;
        }
        if wanted(Row::Grpc) {
            multiplexed::grpc(&agent, &directory, args.pairs)?;
        }
    }
    if wanted(Row::Replay) {
        offline::measure(&agent, &directory, args.exchanges)?;
    }
    Ok(())
}
