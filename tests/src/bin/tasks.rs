//! A service on tokio for the tests of causes: `/r/ID?how=HOW` has it call `/b/ID/N` at `NEXT`.
//!
//! `HOW` says who makes the calls: the handler and tasks that it makes (`row`), a task that goes on
//! after the answer, one task for all requests behind a channel, through a pool of connections or over a
//! connection that it writes to itself, between calls of its own (`odd`, by turns). With
//! `ONE_THREAD` set all run in one thread, beside a future that is no task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Query, State};
use axum::http::{Request, StatusCode};
use axum::routing::get;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

const BETWEEN: Duration = Duration::from_millis(10);

#[derive(Deserialize)]
struct How {
    how: String,
}

type Job = (String, oneshot::Sender<()>);

struct Service {
    client: Client<HttpConnector, Body>,
    next: String,
    actor: mpsc::UnboundedSender<Job>,
    writer: mpsc::UnboundedSender<Job>,
}

async fn call(client: &Client<HttpConnector, Body>, next: &str, path: &str) -> Result<()> {
    let request = Request::get(format!("http://{next}{path}")).body(Body::empty())?;
    let answer = client.request(request).await?;
    to_bytes(Body::new(answer.into_body()), 1 << 16).await?;
    Ok(())
}

/// Work in the background, which belongs to no request.
async fn background(client: Client<HttpConnector, Body>, next: String, who: &str) {
    for n in 0.. {
        let path = format!("/b/background-{who}-{}-{n}/0", std::process::id());
        let _ = call(&client, &next, &path).await;
        tokio::time::sleep(BETWEEN).await;
    }
}

async fn serve(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    Query(how): Query<How>,
) -> StatusCode {
    match serve_so(&service, &name, &how.how).await {
        Ok(()) => StatusCode::OK,
        Err(error) => {
            eprintln!("tasks: {name}: {error:#}");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

async fn serve_so(service: &Arc<Service>, name: &str, how: &str) -> Result<()> {
    static TURN: AtomicU32 = AtomicU32::new(0);
    let first = format!("/b/{name}/0");
    let turn = TURN.fetch_add(1, Ordering::Relaxed) % 3;
    match (how, turn) {
        ("row", _) => {
            call(&service.client, &service.next, &first).await?;
            let mut tasks = JoinSet::new();
            for n in 1..3 {
                let (service, path) = (Arc::clone(service), format!("/b/{name}/{n}"));
                tasks.spawn(async move { call(&service.client, &service.next, &path).await });
            }
            for outcome in tasks.join_all().await {
                outcome?;
            }
        }
        (_, 0) => {
            let service = Arc::clone(service);
            tokio::spawn(async move {
                tokio::time::sleep(BETWEEN).await;
                call(&service.client, &service.next, &first).await
            });
        }
        (_, 1) => ask(&service.actor, first).await?,
        _ => ask(&service.writer, first).await?,
    }
    Ok(())
}

async fn ask(to: &mpsc::UnboundedSender<Job>, path: String) -> Result<()> {
    let (done, answer) = oneshot::channel();
    to.send((path, done)).ok().context("the task is gone")?;
    answer.await.context("the task gave up")
}

/// One task for all requests.
async fn actor(
    client: Client<HttpConnector, Body>,
    next: String,
    mut jobs: mpsc::UnboundedReceiver<Job>,
) {
    while let Some((path, done)) = jobs.recv().await {
        if call(&client, &next, &path).await.is_ok() {
            let _ = done.send(());
        }
    }
}

/// One task for all requests, which writes to its connection itself, and now and then for nobody.
async fn writer(next: String, mut jobs: mpsc::UnboundedReceiver<Job>) -> Result<()> {
    let mut stream = TcpStream::connect(&next).await?;
    for n in 0.. {
        let Some((path, done)) = jobs.recv().await else {
            break;
        };
        if n % 3 == 0 {
            let path = format!("/b/background-writer-{}-{n}/0", std::process::id());
            exchange(&mut stream, &path).await?;
        }
        exchange(&mut stream, &path).await?;
        let _ = done.send(());
    }
    Ok(())
}

async fn exchange(stream: &mut TcpStream, path: &str) -> Result<()> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: next\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        let read = stream.read_buf(&mut answer).await?;
        anyhow::ensure!(read > 0, "the connection ended");
    }
    Ok(())
}

async fn run(beside: bool) -> Result<()> {
    let variable = |name: &str| std::env::var(name).with_context(|| format!("no {name}"));
    let next = variable("NEXT")?;
    let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    tokio::spawn(background(client.clone(), next.clone(), "task"));
    let (to_actor, jobs) = mpsc::unbounded_channel();
    tokio::spawn(actor(client.clone(), next.clone(), jobs));
    let (to_writer, jobs) = mpsc::unbounded_channel();
    tokio::spawn(writer(next.clone(), jobs));
    let service = Arc::new(Service {
        client: client.clone(),
        next: next.clone(),
        actor: to_actor,
        writer: to_writer,
    });
    let app = Router::new()
        .route("/r/{name}", get(serve))
        .with_state(service);
    let listener = TcpListener::bind(format!("127.0.0.1:{}", variable("PORT")?)).await?;
    if beside {
        let other = background(client, next, "future");
        tokio::select! {
            served = async { axum::serve(listener, app).await } => served?,
            () = other => {}
        }
    } else {
        axum::serve(listener, app).await?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let one_thread = std::env::var_os("ONE_THREAD").is_some();
    let mut builder = if one_thread {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    builder.enable_all().build()?.block_on(run(one_thread))
}
