//! axum and reqwest on tokio's threads; calls at the same time are tasks.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::routing::get;
use reqwest::Client;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

#[derive(Deserialize)]
struct Calls {
    row: u32,
    fan: u32,
}

#[derive(Clone)]
struct Next {
    client: Client,
    at: String,
}

impl Next {
    async fn call(self, path: String) {
        let url = format!("http://{}{path}", self.at);
        if let Ok(response) = self.client.get(url).send().await {
            let _ = response.bytes().await;
        }
    }
}

async fn serve(
    State(next): State<Next>,
    Path(name): Path<String>,
    Query(calls): Query<Calls>,
) -> &'static str {
    for n in 0..calls.row {
        next.clone().call(format!("/b/{name}/{n}")).await;
    }
    let mut tasks = JoinSet::new();
    for n in calls.row..calls.row + calls.fan {
        tasks.spawn(next.clone().call(format!("/b/{name}/{n}")));
    }
    tasks.join_all().await;
    "ok"
}

#[tokio::main]
async fn main() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let idle = if variable("FRESH") == "1" { 0 } else { 200 };
    let client = Client::builder().pool_max_idle_per_host(idle);
    let next = Next {
        client: client.build().expect("a client"),
        at: variable("NEXT"),
    };
    let background = next.clone();
    tokio::spawn(async move {
        for n in 0.. {
            let path = format!("/b/background-{}-{n}/0", std::process::id());
            background.clone().call(path).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let app = Router::new().route("/r/{name}", get(serve)).with_state(next);
    let listener = TcpListener::bind(format!("127.0.0.1:{}", variable("PORT")))
        .await
        .expect("the port");
    axum::serve(listener, app).await.expect("a server");
}
