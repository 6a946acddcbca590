//! A bounded listener: a fixed number of connections, and none that stays silent for long.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Connections served at a time; more wait in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a connection may stay silent, so that forgotten ones do not use up the slots.
const IDLE: Duration = Duration::from_secs(60);
/// Pause after a failed accept (out of file descriptors), so that it is not repeated in a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A listener that accepts only while fewer than [`MAX_CONNECTIONS`] are open.
pub(super) struct Bounded {
    listener: TcpListener,
    slots: Arc<Semaphore>,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Self {
        Bounded {
            listener,
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }
}

impl Listener for Bounded {
    type Io = Slotted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Slotted, SocketAddr) {
        // The semaphore is never closed; without a slot the connection would merely be uncounted.
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    return (Slotted::new(stream, IDLE, slot), peer);
                }
                Err(error) => {
                    tracing::debug!(%error, "the admin endpoint cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection and the slot it gives back when it ends.
pub(super) struct Slotted {
    stream: TcpStream,
    idle: Duration,
    silence: Pin<Box<Sleep>>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Slotted {
    fn new(stream: TcpStream, idle: Duration, slot: Option<OwnedSemaphorePermit>) -> Self {
        Slotted {
            stream,
            idle,
            silence: Box::pin(tokio::time::sleep(idle)),
            _slot: slot,
        }
    }
}

impl AsyncRead for Slotted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                let deadline = Instant::now() + self.idle;
                self.silence.as_mut().reset(deadline);
                Poll::Ready(result)
            }
            Poll::Pending => match self.silence.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl AsyncWrite for Slotted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_silent_connection_ends() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bound");
        let address = listener.local_addr().expect("address");
        let mut peer = TcpStream::connect(address).await.expect("connected");
        let (stream, _) = listener.accept().await.expect("accepted");
        let mut slotted = Slotted::new(stream, Duration::from_millis(20), None);
        peer.write_all(b"x").await.expect("sent");
        assert_eq!(slotted.read_u8().await.expect("read"), b'x');
        let error = slotted.read_u8().await.expect_err("silent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
