//! tonic as gRPC peer, without generated code: see `services/grpc/README.md`.

use std::io::{BufRead, Read};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use axum::body::Bytes;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use tracer_tests::grpc::{Asked, BytesCodec, Call, METHODS, SERVICE};

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// All methods; it is told which.
#[derive(Clone, Copy)]
struct Handler(&'static str);

async fn first(requests: &mut Streaming<Bytes>) -> Result<Asked, Status> {
    let message = requests.message().await?;
    message
        .and_then(|message| Asked::of(&message))
        .ok_or_else(|| Status::internal("nothing was asked"))
}

async fn finish(asked: &Asked) -> Result<(), Status> {
    if asked.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(asked.delay_ms)).await;
    }
    match asked.code {
        0 => Ok(()),
        code => Err(Status::new(Code::from(code), "asked")),
    }
}

/// Answers as long as somebody listens.
fn streaming(name: &'static str, mut requests: Streaming<Bytes>) -> Answers {
    let (send, receive) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let answers = async {
            let asked = first(&mut requests).await?;
            let body = asked.body();
            let count = if name == "ServerStream" {
                asked.count
            } else {
                1
            };
            for _ in 0..count {
                if send.send(Ok(body.clone())).await.is_err() {
                    return Ok(());
                }
            }
            while let Some(_more) = requests.message().await? {
                if name == "Bidi" && send.send(Ok(body.clone())).await.is_err() {
                    return Ok(());
                }
            }
            finish(&asked).await
        };
        if let Err(status) = tokio::select! {
            result = answers => result,
            () = send.closed() => Ok(()),
        } {
            let _ = send.send(Err(status)).await;
        }
    });
    Box::pin(ReceiverStream::new(receive))
}

impl tonic::server::UnaryService<Bytes> for Handler {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move {
            let asked = Asked::of(request.get_ref())
                .ok_or_else(|| Status::internal("nothing was asked"))?;
            finish(&asked).await?;
            Ok(Response::new(asked.body()))
        })
    }
}

impl tonic::server::ClientStreamingService<Bytes> for Handler {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let mut requests = request.into_inner();
        Box::pin(async move {
            let asked = first(&mut requests).await?;
            while requests.message().await?.is_some() {}
            finish(&asked).await?;
            Ok(Response::new(asked.body()))
        })
    }
}

impl tonic::server::StreamingService<Bytes> for Handler {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = BoxFuture<Response<Answers>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let answers = streaming(self.0, request.into_inner());
        Box::pin(async move { Ok(Response::new(answers)) })
    }
}

/// The service as tonic's router takes it.
#[derive(Clone)]
struct Peers;

impl tonic::server::NamedService for Peers {
    const NAME: &'static str = SERVICE;
}

impl<B> Service<http::Request<B>> for Peers
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(
        &mut self,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default();
        let known = METHODS.into_iter().find(|method| *method == name);
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(BytesCodec);
            Ok(match known {
                Some("Unary") => grpc.unary(Handler("Unary"), request).await,
                Some("ClientStream") => {
                    let handler = Handler("ClientStream");
                    grpc.client_streaming(handler, request).await
                }
                Some(name) => grpc.streaming(Handler(name), request).await,
                None => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

async fn serve() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = tonic::transport::Server::builder().add_service(Peers);
    Ok(server.serve_with_incoming(incoming).await?)
}

fn requests(call: &Call) -> impl Stream<Item = Bytes> + Send + 'static {
    let (message, left, gap) = (call.request(), call.messages, call.gap_ms);
    let (send, receive) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for number in 0..left {
            if number > 0 && gap > 0 {
                tokio::time::sleep(Duration::from_millis(gap)).await;
            }
            if send.send(message.clone()).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receive)
}

async fn drain(answers: Response<Streaming<Bytes>>) -> Result<(), Status> {
    let mut answers = answers.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

fn with_context<T>(message: T, call: &Call) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    if let Some(traceparent) = &call.traceparent {
        let value = traceparent.parse();
        let value = value.map_err(|_| Status::internal("no metadata value"))?;
        request.metadata_mut().insert("traceparent", value);
    }
    if call.timeout_ms > 0 {
        request.set_timeout(Duration::from_millis(call.timeout_ms));
    }
    Ok(request)
}

async fn exchange(channel: Channel, call: &Call) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::try_from(format!("/{SERVICE}/{}", call.method));
    let path = path.map_err(|error| Status::internal(error.to_string()))?;
    match call.method.as_str() {
        "ClientStream" => {
            let request = with_context(requests(call), call)?;
            let answer = grpc.client_streaming(request, path, BytesCodec).await;
            answer.map(|_: Response<Bytes>| ())
        }
        "ServerStream" => {
            let request = with_context(call.request(), call)?;
            drain(grpc.server_streaming(request, path, BytesCodec).await?).await
        }
        "Bidi" => {
            let request = with_context(requests(call), call)?;
            drain(grpc.streaming(request, path, BytesCodec).await?).await
        }
        _ => {
            let request = with_context(call.request(), call)?;
            let answer = grpc.unary(request, path, BytesCodec).await;
            answer.map(|_: Response<Bytes>| ())
        }
    }
}

async fn perform(channel: Channel, call: &Call) -> String {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH);
    let start = Instant::now();
    let calling = exchange(channel, call);
    // Dropping it is how a call is cancelled. The library minds a deadline up to the head of the
    // response; beyond that its users do.
    let (limit, late) = match (call.cancel_ms, call.timeout_ms) {
        (0, 0) => (u64::MAX, Code::Ok),
        (0, timeout_ms) => (timeout_ms, Code::DeadlineExceeded),
        (cancel_ms, _) => (cancel_ms, Code::Cancelled),
    };
    let result = tokio::time::timeout(Duration::from_millis(limit), calling).await;
    let result = result.unwrap_or_else(|_| Err(Status::new(late, "dropped")));
    let code = result.err().map_or(0, |status| status.code() as i32);
    format!(
        "done {} {code} {} {}",
        call.index,
        wall.unwrap_or_default().as_nanos(),
        start.elapsed().as_nanos()
    )
}

async fn run(channel: &Channel, calls: Vec<Call>, concurrency: usize) -> anyhow::Result<()> {
    let left = Arc::new(Mutex::new(calls.into_iter()));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..concurrency {
        let (left, channel) = (Arc::clone(&left), channel.clone());
        workers.spawn(async move {
            let mut lines = Vec::new();
            let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
            while let Some(call) = next() {
                lines.push(perform(channel.clone(), &call).await);
            }
            lines
        });
    }
    let lines = workers.join_all().await.concat();
    println!("{}\nran", lines.join("\n"));
    Ok(())
}

async fn client(address: &str) -> anyhow::Result<()> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    // With the first call, as the other libraries do: an agent may come in between.
    let channel = endpoint.tcp_nodelay(true).connect_lazy();
    let (send, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let _ = send.send(line);
        }
    });
    let mut calls = Vec::new();
    while let Some(line) = lines.recv().await {
        if let Some(concurrency) = line.strip_prefix("run ") {
            run(&channel, std::mem::take(&mut calls), concurrency.parse()?).await?;
        } else {
            calls.push(Call::of(&line).with_context(|| format!("not a call: {line}"))?);
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("server"), None) => serve().await,
        (Some("client"), Some(address)) => client(&address).await,
        _ => anyhow::bail!("server, or client ADDRESS"),
    }
}
