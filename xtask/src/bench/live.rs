//! The live row: nginx under wrk, in alternating runs without and with the agent.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::agent::{Agent, Sink};
use super::nginx::Nginx;
use super::report::{Target, median, mib, micros_per, row};
use super::{procfs, wrk};

/// How long the last spans may take to arrive after the load.
const ARRIVAL: Duration = Duration::from_secs(15);
/// Before the measured runs, so that caches and the CPU's clock have settled.
const WARM_UP: Duration = Duration::from_secs(1);

/// The load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Pairs of runs.
    pub pairs: u32,
    /// Length of each.
    pub time: Duration,
    /// Keep-alive connections.
    pub connections: u32,
}

/// One run's numbers of nginx and wrk.
#[derive(Debug)]
struct Plain {
    load: wrk::Run,
    nginx_micros: f64,
}

/// One run's numbers with the agent.
#[derive(Debug)]
struct Traced {
    plain: Plain,
    start: Duration,
    stop: Duration,
    agent_micros: f64,
    rss_idle: u64,
    rss_peak: u64,
    maps: (u64, usize),
    served: u64,
    server_spans: u64,
    client_spans: u64,
    other_spans: u64,
    surplus: u64,
    ledger: serde_json::Value,
}

/// Measures and prints.
pub fn measure(binary: &Path, directory: &Path, load: &Load) -> Result<()> {
    let nginx = Nginx::start(directory, None)?;
    let sink = Sink::start(directory)?;
    wrk::run(&nginx.url(), load.connections, WARM_UP)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for pair in 1..=load.pairs {
        eprintln!(
            "bench: live, pair {pair} of {}: without the agent",
            load.pairs
        );
        without.push(plain(&nginx, load)?);
        eprintln!("bench: live, pair {pair} of {}: with the agent", load.pairs);
        with.push(traced(binary, directory, &nginx, &sink, load)?);
    }
    print(load, &without, &with);
    Ok(())
}

fn plain(nginx: &Nginx, load: &Load) -> Result<Plain> {
    let before = procfs::cpu(nginx.worker)?;
    let run = wrk::run(&nginx.url(), load.connections, load.time)?;
    let used = procfs::cpu(nginx.worker)?.saturating_sub(before);
    if let Some(errors) = &run.errors {
        eprintln!("bench: wrk: {errors}");
    }
    Ok(Plain {
        nginx_micros: micros_per(used, run.requests),
        load: run,
    })
}

fn traced(
    binary: &Path,
    directory: &Path,
    nginx: &Nginx,
    sink: &Sink,
    load: &Load,
) -> Result<Traced> {
    let (served_before, spans_before) = (nginx.requests()?, sink.counts()?);
    let agent = Agent::start(binary, directory, sink)?;
    let rss_idle = procfs::memory(agent.pid(), "VmRSS")?;
    let cpu_before = procfs::cpu(agent.pid())?;
    let plain = plain(nginx, load)?;

    // Every answer that wrk read has two spans; those of the calls that were cut off at the end
    // may come on top, so only a lower bound can be waited for.
    let (server, client) = (u64::from(nginx.worker), u64::from(plain.load.pid));
    let spans = |pid: u64| -> Result<u64> {
        let count = |counts: &super::sink::Counts| counts.get(&pid).copied().unwrap_or_default();
        Ok(count(&sink.counts()?) - count(&spans_before))
    };
    let deadline = Instant::now() + ARRIVAL;
    while (spans(server)? < plain.load.requests || spans(client)? < plain.load.requests)
        && Instant::now() < deadline
    {
        thread::sleep(Duration::from_millis(50));
    }
    let used = procfs::cpu(agent.pid())?.saturating_sub(cpu_before);
    let rss_peak = procfs::memory(agent.pid(), "VmHWM")?;
    let maps = procfs::maps(agent.pid())?;
    let ledger = agent.ledger()?;
    let start = agent.start;
    let stop = agent.stop()?;

    let after = sink.counts()?;
    let total = |counts: &super::sink::Counts| counts.values().sum::<u64>();
    let (server_spans, client_spans) = (spans(server)?, spans(client)?);
    // Without the request that asks.
    let served = nginx.requests()?.saturating_sub(served_before + 1);
    // A call that wrk gave up at its end has a client span, but is not among the answers it read.
    let most_clients = plain.load.requests + u64::from(load.connections);
    let surplus = server_spans.saturating_sub(served) + client_spans.saturating_sub(most_clients);
    Ok(Traced {
        agent_micros: micros_per(used, plain.load.requests),
        plain,
        start,
        stop,
        rss_idle,
        rss_peak,
        maps,
        served,
        surplus,
        server_spans,
        client_spans,
        other_spans: total(&after) - total(&spans_before) - server_spans - client_spans,
        ledger,
    })
}

/// How many of the spans that must be there arrived, in percent, of the side that lacks more.
fn complete(run: &Traced) -> f64 {
    let percent = |spans: u64, calls: u64| match calls {
        0 => 0.0,
        _ => spans.min(calls) as f64 / calls as f64 * 100.0,
    };
    percent(run.server_spans, run.served).min(percent(run.client_spans, run.plain.load.requests))
}

fn print(load: &Load, without: &[Plain], with: &[Traced]) {
    use Target::{AtLeast, AtMost, None as Shown};

    let of_plain = |value: fn(&Plain) -> f64| median(without.iter().map(value));
    let of_traced = |value: fn(&Traced) -> f64| median(with.iter().map(value));
    // Of all runs, for what must hold always.
    let most = |value: fn(&Traced) -> f64| with.iter().map(value).fold(0.0, f64::max);
    let least = |value: fn(&Traced) -> f64| with.iter().map(value).fold(f64::INFINITY, f64::min);

    let rate = (
        of_plain(|run| run.load.rate),
        of_traced(|run| run.plain.load.rate),
    );
    let p99 = (
        of_plain(|run| run.load.p99.as_secs_f64() * 1e6),
        of_traced(|run| run.plain.load.p99.as_secs_f64() * 1e6),
    );
    let nginx = (
        of_plain(|run| run.nginx_micros),
        of_traced(|run| run.plain.nginx_micros),
    );
    let agent = of_traced(|run| run.agent_micros);
    let spans = least(complete);
    let surplus = most(|run| run.surplus as f64);
    let idle = most(|run| mib(run.rss_idle));
    let peak = most(|run| mib(run.rss_peak));
    let maps = most(|run| mib(run.maps.0));
    let start = most(|run| run.start.as_secs_f64());
    let stop = most(|run| run.stop.as_secs_f64());

    println!(
        "live: one nginx worker, wrk with 2 threads and {} keep-alive connections, \
         medians of {} pairs of {} s",
        load.connections,
        load.pairs,
        load.time.as_secs(),
    );
    let lines: [(&str, f64, &str, Target); 16] = [
        ("requests/s without the agent", rate.0, "1/s", Shown),
        ("requests/s with the agent", rate.1, "1/s", Shown),
        ("throughput with / without", rate.1 / rate.0, "", Shown),
        ("p99 without the agent", p99.0, "µs", Shown),
        ("p99 with the agent", p99.1, "µs", Shown),
        ("p99 with / without", p99.1 / p99.0, "", Shown),
        ("CPU of nginx per request without", nginx.0, "µs", Shown),
        (
            "CPU added inside nginx per request",
            nginx.1 - nginx.0,
            "µs",
            AtMost(3.0),
        ),
        ("CPU of the agent per exchange", agent, "µs", AtMost(8.0)),
        ("spans of requests, worst run", spans, "%", AtLeast(100.0)),
        ("spans too many, worst run", surplus, "", AtMost(0.0)),
        ("RSS idle", idle, "MiB", AtMost(60.0)),
        ("RSS peak", peak, "MiB", AtMost(150.0)),
        ("kernel map memory", maps, "MiB", AtMost(32.0)),
        ("start to ready, worst run", start, "s", AtMost(2.0)),
        ("SIGTERM to end, worst run", stop, "s", AtMost(5.0)),
    ];
    for (name, value, unit, target) in lines {
        println!("{}", row(name, value, unit, target));
    }
    if most(|run| run.maps.1 as f64) == 0.0 {
        println!("  (the agent holds no BPF map: it traces nothing)");
    }
    for (run, number) in with.iter().zip(1..) {
        println!(
            "  run {number}: {} served, {} server spans; {} answers read, {} client spans; \
             {} other spans",
            run.served,
            run.server_spans,
            run.plain.load.requests,
            run.client_spans,
            run.other_spans,
        );
        println!("    ledger {}", run.ledger);
    }
}
