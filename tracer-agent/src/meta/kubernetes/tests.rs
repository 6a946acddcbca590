//! The watches against a scripted API server: every request waits for what the test says to it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// A request that waits for its answer.
struct Asked {
    head: String,
    socket: Box<dyn Socket>,
}

impl Asked {
    fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    #[track_caller]
    fn has(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.path().contains(part), "no {part} in {}", self.path());
        }
        self
    }

    async fn answer(mut self, status: u16, body: &Value) {
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let _ = self.socket.write_all((head + &body).as_bytes()).await;
        let _ = self.socket.shutdown().await;
    }

    /// A watch that stands.
    async fn stream(mut self) -> Events {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        self.socket
            .write_all(head.as_bytes())
            .await
            .expect("a client");
        Events(self.socket)
    }
}

struct Events(Box<dyn Socket>);

impl Events {
    async fn text(&mut self, text: &str) {
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        self.0.write_all(chunk.as_bytes()).await.expect("a client");
        self.0.flush().await.expect("a client");
    }

    async fn send(&mut self, kind: &str, object: &Value) {
        let event = json!({"type": kind, "object": object});
        self.text(&format!("{event}\n")).await;
    }

    async fn end(mut self) {
        let _ = self.0.write_all(b"0\r\n\r\n").await;
        let _ = self.0.shutdown().await;
    }
}

struct Script {
    url: String,
    asked: mpsc::UnboundedReceiver<Asked>,
    directory: tempfile::TempDir,
}

impl Script {
    async fn start(tls: Option<TlsAcceptor>) -> Script {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let (sender, asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let mut socket: Box<dyn Socket> = match &tls {
                    None => Box::new(socket),
                    Some(tls) => match tls.accept(socket).await {
                        Ok(socket) => Box::new(socket),
                        Err(_) => continue,
                    },
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match socket.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let _ = sender.send(Asked { head, socket });
            }
        });
        Script {
            url: format!("{scheme}://{address}"),
            asked,
            directory: tempfile::tempdir().expect("tempdir"),
        }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("write");
        path
    }

    fn kubeconfig(&self) -> Access {
        self.file("token", "first\n");
        Access::Kubeconfig(self.file(
            "config",
            &format!(
                "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
                 clusters: [{{name: k, cluster: {{server: '{}'}}}}]\n\
                 users: [{{name: u, user: {{tokenFile: token}}}}]\n",
                self.url
            ),
        ))
    }

    fn watching(&self, peers: bool) -> Kubernetes {
        let settings = Settings {
            peers,
            ..Settings::default()
        };
        let backoff = Backoff {
            first: Duration::from_millis(5),
            most: Duration::from_millis(50),
        };
        Kubernetes::watching(self.kubeconfig(), "node-1", &settings, backoff)
    }

    async fn next(&mut self) -> Asked {
        let asked = tokio::time::timeout(PATIENCE, self.asked.recv()).await;
        asked.expect("a request").expect("a server")
    }
}

fn pod(name: &str, version: u32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "prod", "uid": format!("uid-{name}"), "resourceVersion": version.to_string()},
        "spec": {"nodeName": "node-1", "containers": [{"name": "app"}]},
        "status": {"containerStatuses": [{"name": "app", "containerID": format!("containerd://{name}")}]},
    })
}

fn list(version: u32, items: &[Value]) -> Value {
    json!({"kind": "PodList", "metadata": {"resourceVersion": version.to_string()}, "items": items})
}

/// Waits until exactly these pods are known.
async fn knows(store: &Store, names: &[&str]) {
    let wanted = || {
        let counts = store.counts();
        counts.pods == names.len() as u64
            && names
                .iter()
                .all(|name| store.container(Some(name), None).is_some())
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !wanted() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not {names:?}: {:?}",
            store.counts()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_list_and_what_changes() {
    let mut api = Script::start(None).await;
    let kubernetes = api.watching(false);
    let store = kubernetes.store();
    let asked = api.next().await;
    let asked = asked.has(&[
        "/api/v1/pods?",
        "fieldSelector=spec.nodeName%3Dnode%2D1",
        "resourceVersion=0",
    ]);
    asked
        .answer(200, &list(5, &[pod("a", 3), pod("b", 4)]))
        .await;
    knows(store, &["a", "b"]).await;

    let watch = api.next().await.has(&[
        "watch=1",
        "allowWatchBookmarks=true",
        "resourceVersion=5&",
        "node%2D1",
    ]);
    let mut events = watch.stream().await;
    events.send("ADDED", &pod("c", 6)).await;
    knows(store, &["a", "b", "c"]).await;
    events.send("DELETED", &pod("a", 7)).await;
    events.send("MODIFIED", &pod("b", 8)).await;
    // What nobody can read is passed over.
    events
        .text("{\"type\":\"ADDED\",\"object\":{\"metadata\":[]}}\n")
        .await;
    events
        .send(
            "BOOKMARK",
            &json!({"kind": "Pod", "metadata": {"resourceVersion": "20"}}),
        )
        .await;
    knows(store, &["b", "c"]).await;
    assert_eq!(store.counts().watching, 1);
    events.end().await;

    // It goes on from the bookmark, without a list.
    let mut events = api
        .next()
        .await
        .has(&["watch=1", "resourceVersion=20&"])
        .stream()
        .await;
    events.send("ADDED", &pod("d", 21)).await;
    knows(store, &["b", "c", "d"]).await;
    let counts = store.counts();
    assert_eq!((counts.lists, counts.malformed), (1, 1));
}

#[tokio::test]
async fn a_connection_that_breaks_off() {
    let mut api = Script::start(None).await;
    let kubernetes = api.watching(false);
    let store = kubernetes.store();
    api.next().await.answer(200, &list(5, &[pod("a", 3)])).await;
    let mut events = api.next().await.stream().await;
    // In the middle of an event, which must not be taken.
    let event = json!({"type": "ADDED", "object": pod("b", 6)}).to_string();
    let (half, rest) = event.split_at(event.len() / 2);
    events.text(half).await;
    drop(events);
    let mut events = api
        .next()
        .await
        .has(&["watch=1", "resourceVersion=5&"])
        .stream()
        .await;
    assert_eq!(store.counts().pods, 1);
    // The same in two pieces of one answer.
    events.text(half).await;
    events.text(rest).await;
    knows(store, &["a", "b"]).await;
    assert!(store.counts().failures >= 1);
}

#[tokio::test]
async fn gone_means_a_new_list() {
    let mut api = Script::start(None).await;
    let kubernetes = api.watching(false);
    let store = kubernetes.store();
    api.next()
        .await
        .answer(200, &list(5, &[pod("a", 3), pod("b", 4)]))
        .await;
    let mut events = api.next().await.stream().await;
    let status = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"});
    events.send("ERROR", &status).await;
    // Not from the server's memory, which said Gone.
    let asked = api.next().await.has(&["limit="]);
    assert!(
        !asked.path().contains("resourceVersion"),
        "{}",
        asked.path()
    );
    knows(store, &["a", "b"]).await;
    asked
        .answer(200, &list(30, &[pod("b", 4), pod("c", 29)]))
        .await;
    knows(store, &["b", "c"]).await;
    // The same as an answer to the request.
    api.next()
        .await
        .has(&["resourceVersion=30&"])
        .answer(410, &status)
        .await;
    api.next()
        .await
        .answer(200, &list(40, &[pod("c", 29)]))
        .await;
    knows(store, &["c"]).await;
    assert_eq!(store.counts().lists, 3);
}

#[tokio::test]
async fn a_server_that_is_down_refuses_or_lies() {
    let mut api = Script::start(None).await;
    let kubernetes = api.watching(false);
    let store = kubernetes.store();
    // Broken off, forbidden, not JSON, cut short.
    drop(api.next().await);
    let status = json!({"kind": "Status", "code": 403, "message": "pods is forbidden"});
    api.next().await.answer(403, &status).await;
    api.next().await.answer(200, &json!("x")).await;
    let mut cut = api.next().await.stream().await;
    cut.text("{\"metadata\":{\"resourceVersion\":\"5\"},\"items\":[")
        .await;
    cut.text(&pod("early", 1).to_string()).await;
    cut.end().await;
    api.next().await.answer(200, &list(5, &[pod("a", 3)])).await;
    knows(store, &["a"]).await;
    // Down while it is watched: what is known stays known.
    drop(api.next().await);
    api.next().await.answer(503, &json!({})).await;
    let mut events = api.next().await.has(&["resourceVersion=5&"]).stream().await;
    events.send("ADDED", &pod("b", 6)).await;
    knows(store, &["a", "b"]).await;
    assert!(store.counts().failures >= 6, "{:?}", store.counts());
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let mut api = Script::start(None).await;
    let kubernetes = api.watching(false);
    let mut first = list(5, &[pod("a", 3)]);
    first["metadata"]["continue"] = json!("next page/=");
    api.next().await.answer(200, &first).await;
    let second = api.next().await.has(&["continue=next%20page%2F%3D"]);
    assert_eq!(kubernetes.store().counts().lists, 0);
    second.answer(200, &list(5, &[pod("b", 4)])).await;
    knows(kubernetes.store(), &["a", "b"]).await;
}

#[tokio::test]
async fn a_token_that_rotates() {
    let mut api = Script::start(None).await;
    let kubernetes = api.watching(false);
    let asked = api.next().await;
    assert!(
        asked.head.contains("authorization: Bearer first\r\n"),
        "{}",
        asked.head
    );
    api.file("token", "second");
    asked.answer(200, &list(5, &[pod("a", 3)])).await;
    let asked = api.next().await;
    assert!(
        asked.head.contains("authorization: Bearer second\r\n"),
        "{}",
        asked.head
    );
    knows(kubernetes.store(), &["a"]).await;
}

#[tokio::test]
async fn a_service_account_and_its_authority() {
    let certified =
        rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a certificate");
    let mut api = Script::start(Some(TlsAcceptor::from(Arc::new(config)))).await;
    api.file("token", "secret");
    api.file("ca.crt", &certified.cert.pem());
    let access = Access::InCluster {
        server: api.url.clone(),
        account: api.directory.path().to_owned(),
    };
    let kubernetes =
        Kubernetes::watching(access, "node-1", &Settings::default(), Backoff::default());
    let asked = api.next().await;
    assert!(
        asked.head.contains("authorization: Bearer secret\r\n"),
        "{}",
        asked.head
    );
    asked.answer(200, &list(5, &[pod("a", 3)])).await;
    knows(kubernetes.store(), &["a"]).await;
}

#[tokio::test]
async fn peers_are_asked_for_only_if_wanted() {
    let mut api = Script::start(None).await;
    let kubernetes = api.watching(true);
    let mut standing = Vec::new();
    while standing.len() < 3 {
        let asked = api.next().await;
        let path = asked.path().to_owned();
        if path.contains("watch=1") {
            standing.push(asked.stream().await);
            continue;
        }
        let items = if path.starts_with("/api/v1/services?") {
            json!({"metadata": {"name": "shop", "namespace": "prod", "uid": "s"},
                   "spec": {"clusterIPs": ["10.96.0.7"], "ports": [{"port": 80}]}})
        } else if path.starts_with("/apis/discovery.k8s.io/v1/endpointslices?") {
            json!({"metadata": {"name": "shop-x", "namespace": "prod", "uid": "e",
                                "labels": {"kubernetes.io/service-name": "shop"}},
                   "endpoints": [{"addresses": ["10.1.0.9"], "targetRef": {"kind": "Pod", "name": "shop-1"}}],
                   "ports": [{"port": 8080}]})
        } else {
            assert!(path.starts_with("/api/v1/pods?"), "{path}");
            pod("a", 3)
        };
        asked.answer(200, &list(5, &[items])).await;
    }
    let store = kubernetes.store();
    knows(store, &["a"]).await;
    assert_eq!(store.counts().lists, 3);
    let server = |address: &str| store.server(address.parse().expect("an address"));
    let service = server("10.96.0.7:80").expect("the service");
    assert_eq!(
        (service.service.as_deref(), service.pod.as_deref()),
        (Some("shop"), None)
    );
    let endpoint = server("10.1.0.9:8080").expect("the endpoint");
    assert_eq!(
        (endpoint.service.as_deref(), endpoint.pod.as_deref()),
        (Some("shop"), Some("shop-1"))
    );
}

#[tokio::test]
async fn nothing_is_asked_where_it_cannot_be() {
    let none = |_: &str| None;
    let config = |name: &str| (name == "KUBECONFIG").then(|| "/nonexistent".to_owned());
    let settings = |mode, node: Option<&str>| Settings {
        mode,
        node_name: node.map(str::to_owned),
        ..Settings::default()
    };
    assert!(Kubernetes::start(&settings(Mode::Auto, Some("n")), &none).is_none());
    assert!(Kubernetes::start(&settings(Mode::On, Some("n")), &none).is_none());
    assert!(Kubernetes::start(&settings(Mode::Auto, Some("n")), &config).is_none());
    assert!(Kubernetes::start(&settings(Mode::Off, Some("n")), &config).is_none());
    assert!(Kubernetes::start(&settings(Mode::On, None), &config).is_none());
    // A file that is not there may come.
    assert!(Kubernetes::start(&settings(Mode::On, Some("n")), &config).is_some());
}
