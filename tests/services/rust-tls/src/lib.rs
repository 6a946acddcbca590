//! What both programs share: the server's answers, and a client that asks.
//!
//! PROGRAM server CERTIFICATE KEY
//! PROGRAM client PORT TAG REQUESTS CONNECTIONS (waits for a line on stdin)

use std::convert::Infallible;
use std::error::Error;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, BufReader};
use tokio::net::{TcpListener, TcpStream};

pub type Failure = Box<dyn Error + Send + Sync>;

const KINDS: [&str; 3] = ["small", "missing", "big"];

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let _ = body.collect().await;
    let path = head.uri.path();
    let size = if path.contains("/big/") { 50_000 } else { 100 };
    let mut response = Response::new(Full::new(Bytes::from(vec![b'x'; size])));
    if path.contains("/missing/") {
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    Ok(response)
}

/// Serves HTTP/1 and HTTP/2 on what `accept` makes of a connection; prints the port.
pub async fn serve<S, A, F>(accept: A) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: Fn(TcpStream) -> F + Clone + Send + 'static,
    F: Future<Output = Result<S, Failure>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    tokio::spawn(async {
        let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
        std::process::exit(0);
    });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let accept = accept.clone();
        tokio::spawn(async move {
            if let Ok(stream) = accept(stream).await {
                let builder = auto::Builder::new(TokioExecutor::new());
                let io = TokioIo::new(stream);
                let _ = builder.serve_connection(io, service_fn(answer)).await;
            }
        });
    }
}

async fn ask<C>(client: Client<C, Full<Bytes>>, url: &str, i: usize) -> Result<(), Failure>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let (method, body) = match i % 4 {
        0 => (Method::POST, Bytes::from(vec![b'y'; 3000])),
        _ => (Method::GET, Bytes::new()),
    };
    let request = Request::builder().method(method).uri(url);
    let response = client.request(request.body(Full::new(body))?).await?;
    let wanted = if i % 3 == 1 { 404 } else { 200 };
    if response.status().as_u16() != wanted {
        return Err(format!("{url}: {}", response.status()).into());
    }
    response.into_body().collect().await?;
    Ok(())
}

/// Asks from as many tasks as connections, each with a client of its own from `client`.
pub async fn ask_all<C>(words: &[String], client: impl Fn() -> C) -> Result<(), Failure>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let [port, tag, count, connections] = words else {
        return Err("client PORT TAG REQUESTS CONNECTIONS".into());
    };
    let (count, connections): (usize, usize) = (count.parse()?, connections.parse()?);
    println!("ready");
    BufReader::new(tokio::io::stdin())
        .read_line(&mut String::new())
        .await?;
    let mut tasks = Vec::new();
    for first in 0..connections {
        let client = Client::builder(TokioExecutor::new()).build(client());
        let base = format!("https://localhost:{port}/{tag}");
        tasks.push(tokio::spawn(async move {
            for i in (first..count).step_by(connections) {
                let kind = KINDS[i % KINDS.len()];
                ask(client.clone(), &format!("{base}/{kind}/{i}"), i).await?;
            }
            Ok::<(), Failure>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    println!("{count}");
    Ok(())
}
