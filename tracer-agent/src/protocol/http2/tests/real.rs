//! Byte streams of a real implementation (the `h2` crate), recorded on their way.
//!
//! Scenario: a client and a server talk over a pipe, many streams at once; the session sees what
//! the server's end sees. Guarantee: every request is found, with its fields, its sizes and status.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::super::super::{Direction, End, Outcome, Role};
use super::Step;
use super::{Bench, Step::End as Ends};

type Tape = Arc<Mutex<Vec<(Direction, Vec<u8>)>>>;

/// The server's end of a pipe, recorded.
struct Recorded {
    pipe: DuplexStream,
    tape: Tape,
}

impl AsyncRead for Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.pipe).poll_read(context, buffer);
        let read = buffer.filled()[before..].to_vec();
        self.tape.lock().unwrap().push((Direction::Read, read));
        result
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let result = Pin::new(&mut self.pipe).poll_write(context, bytes);
        if let Poll::Ready(Ok(length)) = result {
            let written = bytes[..length].to_vec();
            self.tape.lock().unwrap().push((Direction::Write, written));
        }
        result
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}

const REQUESTS: usize = 300;

fn body(index: usize) -> Vec<u8> {
    // Some larger than a frame and than the first window.
    vec![
        7;
        if index.is_multiple_of(50) {
            100_000
        } else {
            index
        }
    ]
}

fn status(index: usize) -> u16 {
    200 + (index % 300) as u16
}

async fn serve(pipe: Recorded) {
    let mut connection = h2::server::handshake(pipe).await.unwrap();
    while let Some(stream) = connection.accept().await {
        let Ok((request, mut respond)) = stream else {
            break;
        };
        tokio::spawn(async move {
            let path = request.uri().path();
            let index: usize = path.rsplit('/').next().unwrap().parse().unwrap();
            let mut received = request.into_body();
            while let Some(piece) = received.data().await {
                let length = piece.unwrap().len();
                let _ = received.flow_control().release_capacity(length);
            }
            let response = http::Response::builder()
                .status(status(index))
                .header("server", "real")
                .header("x-index", index.to_string())
                .body(())
                .unwrap();
            let mut sender = respond.send_response(response, false).unwrap();
            sender.send_data(body(index).into(), true).unwrap();
        });
    }
}

async fn ask(pipe: DuplexStream) {
    let (client, connection) = h2::client::handshake(pipe).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut calls = Vec::new();
    for index in 0..REQUESTS {
        let mut client = client.clone().ready().await.unwrap();
        let request = http::Request::builder()
            .method(if index.is_multiple_of(3) {
                "POST"
            } else {
                "GET"
            })
            .uri(format!("http://real.example:8080/items/{index}"))
            .header("user-agent", "real/1")
            .header("x-request-id", format!("id-{index}"))
            .body(())
            .unwrap();
        let sends = index.is_multiple_of(3);
        let (response, mut sender) = client.send_request(request, !sends).unwrap();
        if sends {
            sender.send_data(body(index).into(), true).unwrap();
        }
        calls.push(tokio::spawn(async move {
            let mut received = response.await.unwrap().into_body();
            while let Some(piece) = received.data().await {
                let length = piece.unwrap().len();
                let _ = received.flow_control().release_capacity(length);
            }
        }));
        if index % 20 == 19 {
            for call in calls.drain(..) {
                call.await.unwrap();
            }
        }
    }
    drop(client);
    driver.await.unwrap().unwrap();
}

#[test]
fn everything_is_found() {
    let tape = Tape::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(10_000);
        let recorded = Recorded {
            pipe: far,
            tape: tape.clone(),
        };
        let server = tokio::spawn(serve(recorded));
        ask(near).await;
        server.await.unwrap();
    });
    let tape = tape.lock().unwrap();
    let play = |from: usize| {
        let mut bench = Bench::new(None, from == 0);
        for (direction, bytes) in &tape[from..] {
            bench.step(&match direction {
                Direction::Read => Step::R(bytes.clone()),
                Direction::Write => Step::W(bytes.clone()),
            });
        }
        bench.step(&Ends(End::ReadEof));
        bench.step(&Ends(End::Closed(0)));
        bench
    };
    let bench = play(0);
    assert_eq!(bench.session.role, Some(Role::Server));
    assert_eq!(bench.out.exchanges.len(), REQUESTS);
    assert_eq!(bench.out.counts.unknown_fields, 0);
    assert_eq!(bench.out.counts.unparsed_bytes, 0);
    for exchange in &bench.out.exchanges {
        let index: usize = exchange.request.target["/items/".len()..].parse().unwrap();
        let sent = if index.is_multiple_of(3) {
            body(index).len()
        } else {
            0
        };
        assert_eq!(exchange.outcome, Outcome::Complete);
        assert_eq!(
            &*exchange.request.method,
            if index.is_multiple_of(3) {
                "POST"
            } else {
                "GET"
            }
        );
        assert_eq!(
            exchange.request.authority.as_deref(),
            Some("real.example:8080")
        );
        assert_eq!(exchange.request.user_agent.as_deref(), Some("real/1"));
        assert_eq!(*exchange.request.context.0[0].1, *format!("id-{index}"));
        assert_eq!(exchange.request.body_bytes, Some(sent as u64), "{index}");
        let response = exchange.response.as_ref().unwrap();
        assert_eq!(response.status, status(index));
        assert_eq!(response.body_bytes, Some(body(index).len() as u64));
    }
    // Joined at any call: what is known is right, and paths (new ones all) are known.
    for from in (1..tape.len()).step_by(7) {
        for exchange in play(from).out.exchanges {
            let index: usize = exchange.request.target["/items/".len()..].parse().unwrap();
            for (_, id) in &exchange.request.context.0 {
                assert_eq!(**id, *format!("id-{index}"));
            }
            let response = exchange.response.as_ref().unwrap();
            assert!(response.status == 0 || response.status == status(index));
        }
    }
}
