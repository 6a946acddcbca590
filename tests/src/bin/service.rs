//! The Rust service of the live tests: axum on hyper. Prints its port, ends with its stdin.

use std::io::Read;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, RawQuery};
use axum::http::{Response, StatusCode};

async fn answer(RawQuery(query): RawQuery, _body: Bytes) -> Response<Body> {
    let query = query.unwrap_or_default();
    let number = |name: &str| {
        let value = query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value
            .and_then(|value| value.parse::<u64>().ok())
            .unwrap_or_default()
    };
    let delay = number("delay_ms");
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let status = u16::try_from(number("status")).unwrap_or_default();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let length = if matches!(status.as_u16(), 204 | 304) {
        0
    } else {
        number("bytes")
    };
    let body = vec![b'x'; usize::try_from(length).unwrap_or_default()];
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    let routes = Router::new()
        .fallback(answer)
        .layer(DefaultBodyLimit::max(1 << 20));
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    axum::serve(listener, routes).await?;
    Ok(())
}
