//! `make_pcap EXCHANGES FILE`: a capture of small keep-alive exchanges over 100 connections.

use std::fs::File;

use anyhow::{Context, bail};
use tracer_agent::replay::testdata;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [exchanges, file] = arguments.as_slice() else {
        bail!("usage: make_pcap EXCHANGES FILE")
    };
    let exchanges = exchanges.parse().context("EXCHANGES is a number")?;
    let mut out = File::create(file).with_context(|| format!("cannot create {file}"))?;
    testdata::keep_alive(exchanges, 100, &mut out).with_context(|| format!("cannot write {file}"))
}
