//! The traced client: sends a known mix of requests and reports what it sent and measured.
//!
//! In: a [`Plan`]. Out: a [`Report`] with one [`Record`] per request. One thread per connection and
//! blocking calls, so that a request's duration is that of its system calls and little else.

mod plan;
mod spawn;

use std::io;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub(crate) use plan::SIZES;
pub use plan::{Mix, Request, SERVICE_NAME, USER_AGENT};
pub use spawn::Driver;

use crate::http::{Connection, Timed};
use crate::sys;

/// What to send.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// Where to send it.
    #[arg(long)]
    pub address: SocketAddr,
    /// Unique text that every path carries.
    #[arg(long)]
    pub run: String,
    /// Requests in all.
    #[arg(long, default_value_t = 1)]
    pub requests: usize,
    /// Connections at a time.
    #[arg(long, default_value_t = 1)]
    pub concurrency: usize,
    /// Which requests.
    #[arg(long, value_enum, default_value_t = Mix::Everything)]
    pub mix: Mix,
    /// Additional header of every request, as `name: value`.
    #[arg(long)]
    pub header: Vec<String>,
    /// Open the connections, say `ready` and wait for a line on stdin before sending.
    #[arg(long)]
    pub preopen: bool,
    /// With `preopen`: send one request more over each connection before saying `ready`.
    #[arg(long)]
    pub warm: bool,
}

/// One request as it went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Method as sent.
    pub method: String,
    /// `/r/<run>-<number>`.
    pub path: String,
    /// Query as sent, without `?`.
    pub query: String,
    /// Status received; what was expected is in the query.
    pub status: u16,
    /// Before the first write to after the last read; 0 if the client does not measure.
    pub duration_ns: u64,
    /// Wall clock before the first write, since the epoch.
    pub started_ns: u64,
    /// Port of the driver's end.
    pub local_port: u16,
    /// Not the first request of its connection.
    pub reused: bool,
    /// The connection was open before the go-ahead.
    pub preopened: bool,
    /// The scheduler took the CPU away in between: `duration_ns` may be too long.
    pub preempted: bool,
    /// Bytes of the response's body.
    pub response_bytes: usize,
    /// What went wrong instead.
    pub error: Option<String>,
}

/// Everything that was sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The driver's process.
    pub pid: u32,
    /// Where it sent to.
    pub address: SocketAddr,
    /// Its run's marker.
    pub run: String,
    /// All requests, ordered by path number.
    pub records: Vec<Record>,
}

impl Report {
    /// Requests that got no answer or another status than asked for.
    pub fn failures(&self) -> Vec<String> {
        let failed = self.records.iter().filter(|record| {
            record.error.is_some() || !record.query.contains(&format!("status={}&", record.status))
        });
        failed.map(|record| format!("{record:?}")).collect()
    }
}

/// Runs the plan. `go_ahead` is called once when all connections are open.
pub fn run(plan: &Plan, go_ahead: impl FnOnce()) -> Report {
    let next = AtomicUsize::new(0);
    let opened = Barrier::new(plan.concurrency + 1);
    let start = Barrier::new(plan.concurrency + 1);
    let mut numbered = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.concurrency)
            .map(|lane| {
                let (next, opened, start) = (&next, &opened, &start);
                scope.spawn(move || {
                    let connection = plan
                        .preopen
                        .then(|| preopen(plan, lane))
                        .and_then(Result::ok);
                    opened.wait();
                    start.wait();
                    lane_loop(plan, next, connection)
                })
            })
            .collect();
        opened.wait();
        go_ahead();
        start.wait();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a driver thread"))
            .collect::<Vec<_>>()
    });
    numbered.sort_by_key(|(number, _)| *number);
    let records = numbered.into_iter().map(|(_, record)| record).collect();
    Report {
        pid: std::process::id(),
        address: plan.address,
        run: plan.run.clone(),
        records,
    }
}

fn preopen(plan: &Plan, lane: usize) -> io::Result<Connection> {
    let mut connection = Connection::open(plan.address)?;
    if plan.warm {
        // Not part of the run: its path must not carry the marker.
        let request = Request::simple(
            "GET",
            &format!("/r/warm-{lane}"),
            "status=200&bytes=1&delay_ms=0",
        );
        let wire = request.wire(plan.address, &[], false);
        let pieces: Vec<&[u8]> = wire.iter().map(Vec::as_slice).collect();
        connection.exchange(&pieces, false)?;
    }
    Ok(connection)
}

/// One connection at a time, until all requests are taken.
fn lane_loop(
    plan: &Plan,
    next: &AtomicUsize,
    mut connection: Option<Connection>,
) -> Vec<(usize, Record)> {
    let mut records = Vec::new();
    let mut preopened = connection.is_some();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= plan.requests {
            return records;
        }
        let request = plan.mix.request(&plan.run, number);
        // A preopened connection serves its first request whatever the mix says.
        if request.fresh && !preopened {
            connection = None;
        }
        let (record, keep) = one(plan, &request, connection.take(), preopened);
        records.push((number, record));
        connection = keep;
        preopened &= connection.is_some();
        preopened &= !request.fresh;
    }
}

fn one(
    plan: &Plan,
    request: &Request,
    connection: Option<Connection>,
    preopened: bool,
) -> (Record, Option<Connection>) {
    let mut record = Record {
        method: request.method.to_owned(),
        path: request.path.clone(),
        query: request.query.clone(),
        status: 0,
        duration_ns: 0,
        started_ns: 0,
        local_port: 0,
        reused: connection
            .as_ref()
            .is_some_and(|connection| connection.exchanges() > 0),
        preopened,
        preempted: false,
        response_bytes: 0,
        error: None,
    };
    match attempt(plan, request, connection, &mut record) {
        Ok(keep) => (record, keep),
        Err(error) => {
            record.error = Some(error.to_string());
            (record, None)
        }
    }
}

fn attempt(
    plan: &Plan,
    request: &Request,
    connection: Option<Connection>,
    record: &mut Record,
) -> io::Result<Option<Connection>> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => Connection::open(plan.address)?,
    };
    record.local_port = connection.local_port()?;
    let wire = request.wire(plan.address, &plan.header, request.close);
    let pieces: Vec<&[u8]> = wire.iter().map(Vec::as_slice).collect();
    let switches = sys::involuntary_switches();
    let Timed {
        response,
        duration,
        started,
    } = connection.exchange(&pieces, request.method == "HEAD")?;
    record.preempted = sys::involuntary_switches() != switches;
    record.status = response.status;
    record.duration_ns = nanoseconds(duration);
    record.started_ns = nanoseconds(started.duration_since(UNIX_EPOCH).unwrap_or_default());
    record.response_bytes = response.body.len();
    Ok((response.keep_alive && !request.close).then_some(connection))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
