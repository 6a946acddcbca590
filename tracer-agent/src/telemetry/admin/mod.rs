//! The admin endpoint: `/healthz`, `/readyz`, `/metrics`, `/ledger`, `/ledger/services`,
//! `/ledger/open` over plain HTTP/1.
//!
//! In: [`Readiness`], the [`Ledger`], and a function that gives the metrics' text. Out: answers to
//! GET. It changes nothing in the agent, holds at most [`MAX_CONNECTIONS`] connections, and has no
//! authentication, which is why it listens on loopback unless told otherwise.

mod listener;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use listener::Bounded;
pub use listener::MAX_CONNECTIONS;

use super::exposition::Format;
use super::ledger::Ledger;
use super::open::OpenExchanges;

/// How long a connection may hold up the end of the agent.
const GRACE: Duration = Duration::from_millis(500);

/// Why the admin endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Somebody listens there.
    #[error(
        "cannot listen on {0}: address already in use; choose another with --admin or stop the other agent"
    )]
    AddressInUse(SocketAddr),
    /// The host has no such address.
    #[error("cannot listen on {0}: this host has no such address; choose another with --admin")]
    AddressNotHere(SocketAddr),
    /// The port is reserved.
    #[error("cannot listen on {0}: permission denied; choose a port from 1024 up with --admin")]
    PermissionDenied(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Whether the agent traces: not ready, with the reason, until somebody says [`Readiness::ready`].
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<Option<String>>>);

impl Readiness {
    /// Not ready because of `reason`.
    pub fn waiting_for(reason: impl Into<String>) -> Self {
        Readiness(Arc::new(watch::Sender::new(Some(reason.into()))))
    }

    /// All probes are attached.
    pub fn ready(&self) {
        self.0.send_replace(None);
    }

    /// Not, or no longer, ready because of `reason`.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.0.send_replace(Some(reason.into()));
    }

    /// Why it is not ready; `None` when it is.
    pub fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }
}

/// What the endpoint shows.
#[derive(Clone)]
pub struct Sources {
    /// For `/readyz`.
    pub readiness: Readiness,
    /// For `/ledger`.
    pub ledger: Arc<Ledger>,
    /// For `/ledger/open`.
    pub open: Arc<OpenExchanges>,
    /// For `/metrics`: the whole page in a format.
    pub metrics: Arc<dyn Fn(Format) -> String + Send + Sync>,
}

/// An admin endpoint that listens and does not answer yet.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

impl Admin {
    /// Takes the address.
    pub async fn bind(address: SocketAddr) -> Result<Admin, AdminError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => AdminError::AddressInUse(address),
            io::ErrorKind::AddrNotAvailable => AdminError::AddressNotHere(address),
            io::ErrorKind::PermissionDenied => AdminError::PermissionDenied(address),
            _ => AdminError::Listen { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Admin { listener, address })
    }

    /// Where it listens, with the port that the kernel chose for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` completes, then ends within half a second.
    pub async fn serve(
        self,
        sources: Sources,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) {
        let (stop, stopping) = watch::channel(false);
        let mut stopping_too = stopping.clone();
        let listener = Bounded::new(self.listener);
        let serving = axum::serve(listener, router(sources)).with_graceful_shutdown(async move {
            shutdown.await;
            stop.send_replace(true);
        });
        let patience = async move {
            // An error means that `serving` is gone, and with it the reason to wait.
            let _ = stopping_too.wait_for(|stop| *stop).await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            result = serving => if let Err(error) = result {
                tracing::warn!(%error, "the admin endpoint ended");
            },
            () = patience => {}
        }
        drop(stopping);
    }
}

fn router(sources: Sources) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/ledger", get(ledger))
        .route("/ledger/services", get(details))
        .route("/ledger/open", get(open))
        .fallback(async || {
            (
                StatusCode::NOT_FOUND,
                "not here; try /healthz, /readyz, /metrics or /ledger\n",
            )
        })
        .with_state(sources)
}

async fn readyz(State(sources): State<Sources>) -> Response {
    match sources.readiness.reason() {
        None => "ready\n".into_response(),
        Some(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {reason}\n"),
        )
            .into_response(),
    }
}

async fn metrics(State(sources): State<Sources>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT);
    let format = Format::negotiate(accept.and_then(|accept| accept.to_str().ok()));
    let page = (sources.metrics)(format);
    ([(header::CONTENT_TYPE, format.content_type())], page).into_response()
}

async fn ledger(State(sources): State<Sources>) -> Response {
    json(&sources.ledger.snapshot())
}

async fn details(State(sources): State<Sources>) -> Response {
    json(&sources.ledger.details())
}

async fn open(State(sources): State<Sources>) -> Response {
    match sources.open.ask().await {
        Some(open) => json(&open),
        None => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the capture thread is busy or not there yet; try again\n",
        )
            .into_response(),
    }
}

fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_string_pretty(value) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;

    struct Running {
        address: SocketAddr,
        sources: Sources,
        stop: oneshot::Sender<()>,
        served: tokio::task::JoinHandle<()>,
    }

    async fn start() -> Running {
        let admin = Admin::bind(([127, 0, 0, 1], 0).into())
            .await
            .expect("bound");
        let address = admin.address();
        let sources = Sources {
            readiness: Readiness::waiting_for("attaching probes"),
            ledger: Arc::new(Ledger::default()),
            open: Arc::default(),
            metrics: Arc::new(|_| "up 1\n".to_owned()),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(admin.serve(sources.clone(), async {
            let _ = stopped.await;
        }));
        Running {
            address,
            sources,
            stop,
            served,
        }
    }

    async fn fetch(address: SocketAddr, request_line: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let request = format!("{request_line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .expect("status");
        (status, answer)
    }

    #[tokio::test]
    async fn pages_answer() {
        let running = start().await;
        running.sources.ledger.spans.seen(5);
        running.sources.ledger.spans.dropped("queue_full", 2);
        let check = async |line: &str, status: u16, contains: &[&str]| {
            let (found, answer) = fetch(running.address, line).await;
            assert_eq!(found, status, "{line}: {answer}");
            for part in contains {
                assert!(
                    answer.contains(part),
                    "{line} should say {part:?}: {answer}"
                );
            }
        };
        check("GET /healthz", 200, &["\r\n\r\nok"]).await;
        check("GET /readyz", 503, &["not ready: attaching probes"]).await;
        running.sources.readiness.ready();
        check("GET /readyz", 200, &["ready"]).await;
        running.sources.readiness.not_ready("stopping");
        check("GET /readyz", 503, &["stopping"]).await;
        check(
            "GET /metrics",
            200,
            &["text/plain; version=0.0.4", "up 1\n"],
        )
        .await;
        check(
            "GET /ledger",
            200,
            &["application/json", "\"queue_full\": 2", "\"pending\": 3"],
        )
        .await;
        check("GET /other", 404, &["/healthz"]).await;
        check("POST /ledger", 405, &[]).await;
    }

    #[tokio::test]
    async fn a_taken_address_is_named_with_what_to_do() {
        let running = start().await;
        let error = Admin::bind(running.address)
            .await
            .expect_err("taken")
            .to_string();
        let expected = format!(
            "cannot listen on {}: address already in use; choose another with --admin or stop the other agent",
            running.address
        );
        assert_eq!(error, expected);
        // 192.0.2.0/24 is for documentation (RFC 5737): no host has it.
        let error = Admin::bind(([192, 0, 2, 1], 0).into())
            .await
            .expect_err("foreign");
        assert!(matches!(error, AdminError::AddressNotHere(_)), "{error}");
    }

    #[tokio::test]
    async fn an_unfinished_request_does_not_hold_up_the_end() {
        let Running {
            address,
            stop,
            served,
            ..
        } = start().await;
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\n")
            .await
            .expect("sent");
        let began = Instant::now();
        stop.send(()).expect("serving");
        served.await.expect("ended");
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test]
    async fn idle_connections_beyond_the_bound_wait_and_are_served_later() {
        let running = start().await;
        let address = running.address;
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.expect("connected"));
        }
        let waiting = tokio::spawn(fetch(address, "GET /healthz"));
        let early = tokio::time::timeout(Duration::from_millis(200), async {
            while !waiting.is_finished() {
                tokio::task::yield_now().await
            }
        })
        .await;
        assert!(early.is_err(), "served beyond the bound");
        drop(idle);
        let (status, _) = tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .expect("in time")
            .expect("joined");
        assert_eq!(status, 200);
    }
}
