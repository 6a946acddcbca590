//! The traced command of one run: backend, service and driver, in that order.

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::fronts::{FRONTS, Front};
use super::truth;
use crate::child::Guard;
use crate::http;

const START: Duration = Duration::from_secs(30);
/// Requests before those that count: what has to be learnt is learnt, in every worker.
const WARM_UP: u32 = 128;

/// See `play`.
#[derive(Debug, clap::Args)]
pub struct SceneArgs {
    /// Name of the row
    front: String,
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    program: PathBuf,
    #[arg(long)]
    concurrency: u32,
    #[arg(long)]
    requests: u32,
}

/// Plays one scene.
pub fn play(args: &SceneArgs) -> Result<()> {
    let front = FRONTS
        .iter()
        .find(|front| front.name == args.front)
        .context("there is no such row")?;
    let back = backend(&args.directory)?;
    let port = http::free_port()?;
    let mut command = front.command(&args.program, &args.directory, port, back)?;
    let mut guard = Guard::start(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
    let deadline = Instant::now() + START;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if guard.ended().is_some() || Instant::now() >= deadline {
            bail!("the service does not listen");
        }
        thread::sleep(Duration::from_millis(20));
    }
    wait_until_followed(front, port, &args.directory);
    drive(front, port, args)?;
    thread::sleep(Duration::from_millis(300));
    guard.stop()?;
    Ok(())
}

/// The agent looks a new program's functions up, which takes as long as the machine is busy: what is
/// measured begins when a call has a parent, or when none can be expected any more.
fn wait_until_followed(front: &Front, port: u16, directory: &std::path::Path) {
    let longest = if front.target > 0.0 { START } else { START / 6 };
    let deadline = Instant::now() + longest;
    for n in 0.. {
        let name = format!("warm-first-{n}");
        let _ = call(front, port, &name, false, &mut None);
        let spans = std::fs::read_to_string(directory.join("spans.jsonl")).unwrap_or_default();
        if truth::has_parent(&spans, "/b/warm") || Instant::now() >= deadline {
            break;
        }
        thread::sleep(Duration::from_millis(250));
    }
}

/// A thread for each connection, TCP and unix; answers after up to 2 ms.
fn backend(directory: &std::path::Path) -> Result<u16> {
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the backend")?;
    let port = tcp.local_addr()?.port();
    let path = directory.join("backend.sock");
    let _ = std::fs::remove_file(&path);
    let unix = UnixListener::bind(&path).context("no unix socket for the backend")?;
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            thread::spawn(move || answer(&stream, &stream));
        }
    });
    thread::spawn(move || {
        for stream in unix.incoming().flatten() {
            thread::spawn(move || answer(&stream, &stream));
        }
    });
    Ok(port)
}

fn answer(read: impl std::io::Read, mut write: impl Write) -> Option<()> {
    static TURN: AtomicU32 = AtomicU32::new(0);
    let mut reader = BufReader::new(read);
    loop {
        let mut close = false;
        let mut line = String::new();
        let mut length = 0;
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
            let lower = line.to_ascii_lowercase();
            close |= lower.starts_with("connection: close");
            if let Some(text) = lower.strip_prefix("content-length:") {
                length = text.trim().parse().ok()?;
            }
        }
        reader
            .by_ref()
            .take(length)
            .read_to_end(&mut Vec::new())
            .ok()?;
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_micros(u64::from(
            turn.wrapping_mul(7919) % 2000,
        )));
        write
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .ok()?;
        if close {
            return Some(());
        }
    }
}

/// Sends the requests over connections that are kept (every second one) or not.
fn drive(front: &Front, port: u16, args: &SceneArgs) -> Result<()> {
    let each = args.requests.div_ceil(args.concurrency);
    let warm_up = WARM_UP.div_ceil(args.concurrency);
    let failures = AtomicU32::new(0);
    thread::scope(|scope| {
        for client in 0..args.concurrency {
            let failures = &failures;
            scope.spawn(move || {
                let mut kept = None;
                for n in 0..warm_up + each {
                    let kind = if n < warm_up { "warm" } else { "x" };
                    let name = format!("{kind}-{client}-{n}");
                    if call(front, port, &name, client % 2 == 0, &mut kept).is_none() {
                        kept = None;
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failed = failures.into_inner();
    if failed > args.requests / 100 {
        bail!("{failed} requests failed");
    }
    Ok(())
}

fn call(
    front: &Front,
    port: u16,
    name: &str,
    keep: bool,
    kept: &mut Option<BufReader<TcpStream>>,
) -> Option<()> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
            stream.set_nodelay(true).ok()?;
            stream
                .set_read_timeout(Some(Duration::from_secs(30)))
                .ok()?;
            BufReader::new(stream)
        }
    };
    let (row, fan) = front.calls;
    let connection = if keep { "keep-alive" } else { "close" };
    let request = format!(
        "GET /r/{name}?row={row}&fan={fan} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\
         Connection: {connection}\r\n\r\n"
    );
    stream.get_mut().write_all(request.as_bytes()).ok()?;
    let (mut length, mut chunked, mut close) = (0u64, false, false);
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let ok = line.split(' ').nth(1) == Some("200");
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let lower = line.to_ascii_lowercase();
        close |= lower.starts_with("connection: close");
        chunked |= lower.starts_with("transfer-encoding: chunked");
        if let Some(text) = lower.strip_prefix("content-length:") {
            length = text.trim().parse().ok()?;
        }
    }
    if chunked {
        // A short answer: one chunk, and the last one.
        while line != "0\r\n" {
            line.clear();
            stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
        }
        stream.read_line(&mut line).ok()?;
    } else {
        stream
            .by_ref()
            .take(length)
            .read_to_end(&mut Vec::new())
            .ok()?;
    }
    if keep && !close {
        *kept = Some(stream);
    }
    ok.then_some(())
}
