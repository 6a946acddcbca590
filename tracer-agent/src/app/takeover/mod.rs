//! Two agents on one host: the newer takes over, so that a rolling update tells everything once.
//!
//! In: a name that both have. Out: commands for the [`Gate`] of the capture thread. Who reports listens on an
//! abstract unix socket of that name. A newer agent connects when its probes are attached and asks; the
//! older one frees the name, says from which moment on the newer reports, and then what it had near
//! that moment. It stays and watches the connection: when the newer one is gone, it reports again.
//!
//! Only root and the agent's own user are listened to. It cannot reach agents in other network
//! namespaces, or with another name; those are told of in the log.

pub mod gate;

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net as std_net;
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::kernel::clock;
use gate::{Borders, Gate};

/// For one answer; the older agent's capture thread may be busy.
const ANSWER: Duration = Duration::from_secs(5);
/// For the borders: the older agent tells them a second after the boundary.
const BORDERS: Duration = Duration::from_secs(10);
/// Longest message: borders of all connections that are told.
const MOST_BYTES: u64 = 32 << 20;
/// Older agents that stand by.
const MOST_WATCHERS: usize = 16;
/// When the newer agent ends, its times for an exchange are not these: better nothing than twice.
const APART_NS: u64 = 50_000_000;

/// What the capture thread does with its gate.
#[derive(Debug)]
pub enum Command {
    /// Set the boundary for a newer agent, say it, and tell the borders when all was seen.
    HandOver {
        /// For the boundary.
        boundary: oneshot::Sender<u64>,
        /// For the borders.
        borders: oneshot::Sender<Borders>,
    },
    /// The older agent's boundary.
    Taken(u64),
    /// The older agent's borders.
    Borders(Borders),
    /// Report what begins from here on.
    AloneFrom(u64),
    /// The agent ends and an older one reports again: from when on?
    Leave(oneshot::Sender<u64>),
}

/// The capture thread's end.
#[derive(Debug)]
pub struct Commands {
    receiver: mpsc::Receiver<Command>,
    borders: Option<oneshot::Sender<Borders>>,
}

impl Commands {
    /// Does what was asked for. `seen_ns`: everything before it was seen.
    pub fn follow(&mut self, gate: &mut Gate, seen_ns: u64) {
        while let Ok(command) = self.receiver.try_recv() {
            match command {
                Command::HandOver { boundary, borders } => {
                    let at = clock::boot_ns().saturating_add(gate::AHEAD_NS);
                    gate.hand_over_at(at);
                    self.borders = Some(borders);
                    // Who asked may be gone; then the connection says so.
                    let _ = boundary.send(at);
                }
                Command::Taken(boundary_ns) => gate.taken_from(boundary_ns),
                Command::Borders(borders) => gate.borders(borders),
                Command::AloneFrom(start_ns) => gate.alone_from(start_ns),
                Command::Leave(answer) => {
                    let at = clock::boot_ns();
                    gate.hand_over_at(at);
                    let _ = answer.send(at);
                }
            }
        }
        if self.borders.is_some()
            && let Some(borders) = gate.take_borders(seen_ns)
            && let Some(asked) = self.borders.take()
        {
            let _ = asked.send(borders);
        }
    }
}

/// Both ends of the way to the capture thread.
pub fn channel() -> (mpsc::Sender<Command>, Commands) {
    let (sender, receiver) = mpsc::channel();
    let commands = Commands {
        receiver,
        borders: None,
    };
    (sender, commands)
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// To the one that reports: I do, from now on.
    TakeOver,
    /// To the one that reports: tell me when you end.
    Watch,
    /// From the older one.
    Boundary(u64),
    /// From the older one.
    Borders(Borders),
    /// From the one that reports, at its end.
    Until(u64),
}

/// A connection to another agent.
#[derive(Debug)]
struct Peer(BufReader<UnixStream>);

impl Peer {
    /// Only who could do worse anyway is listened to.
    fn trusted(stream: UnixStream) -> io::Result<Self> {
        let uid = stream.peer_cred()?.uid();
        match uid == 0 || uid == rustix::process::geteuid().as_raw() {
            true => Ok(Peer(BufReader::new(stream))),
            false => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("it belongs to user {uid}"),
            )),
        }
    }

    async fn connect(name: &str) -> io::Result<Self> {
        let stream = std_net::UnixStream::connect_addr(&address(name)?)?;
        stream.set_nonblocking(true)?;
        Peer::trusted(UnixStream::from_std(stream)?)
    }

    async fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line).await
    }

    /// `None` when the other end is gone.
    async fn receive(&mut self) -> io::Result<Option<Message>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.0).take(MOST_BYTES);
        match limited.read_until(b'\n', &mut line).await? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_slice(&line)?)),
        }
    }
}

fn address(name: &str) -> io::Result<std_net::SocketAddr> {
    std_net::SocketAddr::from_abstract_name(format!("tracer-agent/{name}"))
}

fn bind(name: &str) -> io::Result<UnixListener> {
    let listener = std_net::UnixListener::bind_addr(&address(name)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// What an agent finds when it starts.
#[derive(Debug)]
pub enum Place {
    /// Nobody of this name reports.
    Free(UnixListener),
    /// Somebody does.
    Taken,
    /// It takes no part.
    Off,
}

impl Place {
    /// Looks, and takes the name if nobody has it.
    pub fn find(name: Option<&str>) -> Self {
        let Some(name) = name else {
            return Place::Off;
        };
        match bind(name) {
            Ok(listener) => Place::Free(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Place::Taken,
            Err(error) => {
                tracing::warn!(%error, "other agents cannot be coordinated with: what two of them see is reported twice");
                Place::Off
            }
        }
    }

    /// Whether somebody has to be asked before anything is reported.
    pub fn asks(&self) -> bool {
        matches!(self, Place::Taken)
    }
}

/// Takes part from now on: the probes are attached. The task ends when `stop` is told or dropped.
pub async fn join(
    place: Place,
    name: String,
    gate: mpsc::Sender<Command>,
    stop: oneshot::Receiver<()>,
) -> Option<tokio::task::JoinHandle<()>> {
    let mut member = Member {
        name,
        gate,
        older: Vec::new(),
    };
    let position = match place {
        Place::Off => return None,
        Place::Free(listener) => Position::Reports(listener),
        Place::Taken => match member.take_over().await {
            Ok(listener) => Position::Reports(listener),
            Err(error) => {
                tracing::warn!(%error, "another agent runs and cannot be taken over from: what both see is reported twice");
                member.tell(Command::AloneFrom(0));
                return None;
            }
        },
    };
    Some(tokio::spawn(member.serve(position, stop)))
}

#[derive(Debug)]
enum Position {
    /// This agent reports.
    Reports(UnixListener),
    /// That one does.
    StandsBy(Peer),
}

struct Member {
    name: String,
    gate: mpsc::Sender<Command>,
    /// Agents that stand by and learn from the connection when this one ends.
    older: Vec<Peer>,
}

impl Member {
    fn tell(&self, command: Command) {
        // A capture thread that ended is told of elsewhere.
        let _ = self.gate.send(command);
    }

    /// Asks the agent that reports for its place.
    async fn take_over(&mut self) -> io::Result<UnixListener> {
        let mut peer = match Peer::connect(&self.name).await {
            Ok(peer) => peer,
            // Gone since.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.tell(Command::AloneFrom(0));
                return self.rebind().await;
            }
            Err(error) => return Err(error),
        };
        peer.send(&Message::TakeOver).await?;
        let boundary_ns = match timeout(ANSWER, peer.receive()).await?? {
            Some(Message::Boundary(boundary_ns)) => boundary_ns,
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
            // It ended just now, or crashed.
            None => {
                self.tell(Command::AloneFrom(0));
                return self.rebind().await;
            }
        };
        self.tell(Command::Taken(boundary_ns));
        let listener = self.rebind().await?;
        match timeout(BORDERS, peer.receive()).await {
            Ok(Ok(Some(Message::Borders(borders)))) => self.tell(Command::Borders(borders)),
            _ => {
                tracing::warn!(
                    "the older agent does not say what it reported last: at the moment of the change exchanges may be missing or told twice"
                );
                self.tell(Command::AloneFrom(boundary_ns));
            }
        }
        tracing::info!(boundary_ns, "took over from another agent");
        self.older.push(peer);
        Ok(listener)
    }

    /// The name is freed before the boundary is told, but by another process.
    async fn rebind(&self) -> io::Result<UnixListener> {
        let mut tries = 0;
        loop {
            match bind(&self.name) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < 50 => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                result => return result,
            }
        }
    }

    async fn serve(mut self, mut position: Position, mut stop: oneshot::Receiver<()>) {
        loop {
            let next = match position {
                Position::Reports(listener) => tokio::select! {
                    biased;
                    _ = &mut stop => return self.leave().await,
                    next = self.report(listener) => next,
                },
                Position::StandsBy(peer) => tokio::select! {
                    biased;
                    _ = &mut stop => return,
                    next = self.stand_by(peer) => next,
                },
            };
            match next {
                Ok(next) => position = next,
                Err(error) => {
                    tracing::warn!(%error, "other agents cannot be coordinated with any more");
                    return;
                }
            }
        }
    }

    /// Until a newer agent takes over.
    async fn report(&mut self, listener: UnixListener) -> io::Result<Position> {
        loop {
            let (stream, _) = listener.accept().await?;
            let mut peer = match Peer::trusted(stream) {
                Ok(peer) => peer,
                Err(error) => {
                    tracing::debug!(%error, "somebody who has no say asked to take over");
                    continue;
                }
            };
            match timeout(ANSWER, peer.receive()).await {
                Ok(Ok(Some(Message::TakeOver))) => {}
                Ok(Ok(Some(Message::Watch))) => {
                    if self.older.len() < MOST_WATCHERS {
                        self.older.push(peer);
                    }
                    continue;
                }
                _ => continue,
            }
            drop(listener);
            let (tell_boundary, boundary) = oneshot::channel();
            let (tell_borders, borders) = oneshot::channel();
            self.tell(Command::HandOver {
                boundary: tell_boundary,
                borders: tell_borders,
            });
            let gone = |_| io::Error::other("the capture thread ended");
            peer.send(&Message::Boundary(boundary.await.map_err(gone)?))
                .await?;
            tracing::info!("another agent takes over; this one stands by");
            peer.send(&Message::Borders(borders.await.map_err(gone)?))
                .await?;
            return Ok(Position::StandsBy(peer));
        }
    }

    /// Until the agent that reports is gone.
    async fn stand_by(&mut self, mut peer: Peer) -> io::Result<Position> {
        let from_ns = match peer.receive().await {
            Ok(Some(Message::Until(until_ns))) => until_ns.saturating_add(APART_NS),
            _ => clock::boot_ns(),
        };
        // Another newer one may have taken over from it in between.
        for _ in 0..50 {
            match bind(&self.name) {
                Ok(listener) => {
                    self.tell(Command::AloneFrom(from_ns));
                    tracing::info!("the other agent is gone; this one reports again");
                    return Ok(Position::Reports(listener));
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
            if let Ok(mut peer) = Peer::connect(&self.name).await
                && peer.send(&Message::Watch).await.is_ok()
            {
                return Ok(Position::StandsBy(peer));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// The agent ends: who stands by goes on from here.
    async fn leave(&mut self) {
        if self.older.is_empty() {
            return;
        }
        let (tell, until) = oneshot::channel();
        self.tell(Command::Leave(tell));
        if let Ok(Ok(until_ns)) = timeout(Duration::from_secs(1), until).await {
            for peer in &mut self.older {
                let _ = peer.send(&Message::Until(until_ns)).await;
            }
        }
    }
}
