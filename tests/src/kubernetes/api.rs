//! An API server that keeps objects in memory: lists with versions, watches that go on from any of
//! them, bookmarks, and outages on demand.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{Response, StatusCode};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// See the module's text.
#[derive(Debug)]
pub struct Scripted {
    /// Where it listens.
    pub address: SocketAddr,
    state: Shared,
    _runtime: tokio::runtime::Runtime,
}

type Shared = Arc<Mutex<Objects>>;

#[derive(Debug, Default)]
struct Objects {
    /// Refuses everybody.
    down: bool,
    version: u64,
    kinds: HashMap<String, Kind>,
    /// Requests so far.
    asked: Vec<String>,
}

#[derive(Debug, Default)]
struct Kind {
    objects: BTreeMap<String, Value>,
    events: Vec<(u64, &'static str, Value)>,
    watchers: Vec<(Option<String>, mpsc::UnboundedSender<String>)>,
}

impl Scripted {
    /// Without any objects.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let state = Shared::default();
        let routes = Router::new()
            .route("/api/v1/{kind}", get(answer))
            .route("/apis/discovery.k8s.io/v1/{kind}", get(answer))
            .with_state(Arc::clone(&state));
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Scripted {
            address,
            state,
            _runtime: runtime,
        }
    }

    /// An object came or changed.
    pub fn put(&self, kind: &str, object: &Value) {
        self.change(kind, object, "MODIFIED");
    }

    /// An object went.
    pub fn delete(&self, kind: &str, object: &Value) {
        self.change(kind, object, "DELETED");
    }

    /// Refuses everybody and breaks off what stands, or comes back.
    pub fn set_down(&self, down: bool) {
        let mut state = lock(&self.state);
        state.down = down;
        if down {
            for kind in state.kinds.values_mut() {
                kind.watchers.clear();
            }
        }
    }

    /// Paths and queries that were asked for.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.state).asked.clone()
    }

    fn change(&self, kind: &str, object: &Value, event: &'static str) {
        let mut state = lock(&self.state);
        state.version += 1;
        let version = state.version;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let uid = object["metadata"]["uid"]
            .as_str()
            .expect("a uid")
            .to_owned();
        let kind = state.kinds.entry(kind.to_owned()).or_default();
        let event = match kind.objects.remove(&uid) {
            None if event == "MODIFIED" => "ADDED",
            _ => event,
        };
        if event != "DELETED" {
            kind.objects.insert(uid, object.clone());
        }
        kind.watchers.retain(|(node, watcher)| {
            !is_on(&object, node.as_deref()) || watcher.send(line(event, &object)).is_ok()
        });
        kind.events.push((version, event, object));
    }
}

fn line(event: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": event, "object": object}))
}

fn is_on(object: &Value, node: Option<&str>) -> bool {
    node.is_none_or(|node| object["spec"]["nodeName"] == node)
}

async fn answer(
    State(state): State<Shared>,
    Path(kind): Path<String>,
    RawQuery(query): RawQuery,
) -> Response<Body> {
    let query = fields(query.as_deref().unwrap_or_default());
    let mut state = lock(&state);
    state.asked.push(format!("{kind} {query:?}"));
    if state.down {
        return json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({"code": 503}));
    }
    let version = state.version;
    let node = query.get("fieldSelector").map(|selector| {
        let node = selector.strip_prefix("spec.nodeName=");
        node.expect("a selector of this node's pods").to_owned()
    });
    let kind = state.kinds.entry(kind).or_default();
    if !query.contains_key("watch") {
        let all = kind.objects.values();
        let items: Vec<&Value> = all
            .filter(|object| is_on(object, node.as_deref()))
            .collect();
        let list = json!({"metadata": {"resourceVersion": version.to_string()}, "items": items});
        return json_response(StatusCode::OK, &list);
    }
    let from: u64 = query
        .get("resourceVersion")
        .and_then(|version| version.parse().ok())
        .expect("a version to watch from");
    let (sender, receiver) = mpsc::unbounded_channel();
    for (at, event, object) in &kind.events {
        if *at > from && is_on(object, node.as_deref()) {
            let _ = sender.send(line(event, object));
        }
    }
    let bookmark = json!({"metadata": {"resourceVersion": version.to_string()}});
    let _ = sender.send(line("BOOKMARK", &bookmark));
    kind.watchers.push((node, sender));
    let lines = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
    let lines = tokio_stream::StreamExt::map(lines, Ok::<_, std::convert::Infallible>);
    Response::new(Body::from_stream(lines))
}

/// The fields of a query, decoded.
fn fields(query: &str) -> HashMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| {
            let mut parts = value.split('%');
            let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
            for part in parts {
                let (hex, rest) = part.split_at(2);
                bytes.push(u8::from_str_radix(hex, 16).expect("percent-encoding"));
                bytes.extend(rest.bytes());
            }
            (key.to_owned(), String::from_utf8(bytes).expect("text"))
        })
        .collect()
}

fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response
}

fn lock(state: &Shared) -> std::sync::MutexGuard<'_, Objects> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
