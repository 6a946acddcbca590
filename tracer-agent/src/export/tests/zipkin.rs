//! Zipkin v2 JSON: the mapping, and a collector that takes it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;
use crate::export::{ExportPipeline, ExportSettings, ResourceDefaults, proto, zipkin};
use crate::telemetry::ledger::Ledger;

fn mapped(spans: &[Span]) -> serde_json::Value {
    let request = proto::request(spans, &ResourceDefaults::new(&[]));
    serde_json::from_slice(&zipkin::json(&request).expect("json")).expect("JSON")
}

#[test]
fn the_mapping_is_that_of_opentelemetry() {
    let client = mapped(&[span(5, &process(42))]);
    assert_eq!(
        client[0],
        serde_json::json!({
            "traceId": "07070707070707070000000000000005",
            "id": "0000000000000006",
            "parentId": "0909090909090909",
            "name": "GET",
            "kind": "CLIENT",
            "timestamp": 1_700_000_000_000_000u64,
            "duration": 1000,
            "localEndpoint": {"serviceName": "shop"},
            "remoteEndpoint": {"serviceName": "shop.example", "ipv4": "127.0.0.1", "port": 40000},
            "tags": {
                "error": "",
                "error.type": "503",
                "host.name": "",
                "http.request.method": "GET",
                "http.response.status_code": "503",
                "network.peer.address": "127.0.0.1",
                "network.peer.port": "40000",
                "network.protocol.version": "1.1",
                "otel.scope.name": "tracer-agent",
                "otel.scope.version": env!("CARGO_PKG_VERSION"),
                "otel.status_code": "ERROR",
                "process.command_args": "[\"shop\",\"\",\"--port=80\"]",
                "process.pid": "42",
                "server.address": "shop.example",
                "server.port": "8080",
                "telemetry.distro.name": "tracer-agent",
                "telemetry.distro.version": env!("CARGO_PKG_VERSION"),
                "url.full": "http://shop.example:8080/items/5?q=1",
                "user_agent.original": "curl/8.5.0",
            },
        })
    );
    let mut short = span(6, &process(42));
    short.end_unix_ns = short.start_unix_ns + 10;
    short.connection = Arc::new(Connection {
        remote: Endpoint::Ip("[2001:db8::1]:9".parse().expect("address")),
        ..(*short.connection).clone()
    });
    let server = mapped(&[short]);
    let server = &server[0];
    // Zero would mean that nobody knows; a server's peer is not a service; a root has no parent.
    assert_eq!(server["duration"], 1);
    assert_eq!(server["kind"], "SERVER");
    assert_eq!(server.get("remoteEndpoint"), None);
    assert_eq!(server.get("parentId"), None);
    assert_eq!(server["tags"].get("error"), None);
    assert_eq!(server["tags"].get("otel.status_code"), None);
    assert_eq!(server["tags"]["w3c.tracestate"], "ot=th:0,vendor=x");
}

#[tokio::test]
async fn a_collector_takes_lists_after_it_was_busy() {
    type Seen = Arc<Mutex<Vec<(HeaderMap, serde_json::Value)>>>;
    let seen = Seen::default();
    let handler = {
        let seen = Arc::clone(&seen);
        move |headers: HeaderMap, body: Bytes| async move {
            let list = serde_json::from_slice(&body).expect("JSON");
            let mut seen = seen.lock().expect("lock");
            seen.push((headers, list));
            if seen.len() == 1 {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::ACCEPTED
            }
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let endpoint = format!(
        "http://{}/api/v2/spans",
        listener.local_addr().expect("address")
    );
    let app = axum::Router::new().route("/api/v2/spans", axum::routing::post(handler));
    tokio::spawn(async move { axum::serve(listener, app).await.expect("server") });
    let lookup = |name: &str| match name {
        "OTEL_TRACES_EXPORTER" => Some("zipkin".to_owned()),
        "OTEL_EXPORTER_ZIPKIN_ENDPOINT" => Some(endpoint.clone()),
        _ => None,
    };
    let settings = ExportSettings::from_variables(&lookup, None).expect("settings");
    let exporters = crate::export::exporters(&settings, || unreachable!("no console"));
    let ledger = Arc::new(Ledger::default());
    let exporters = exporters.expect("exporters");
    let pipeline = ExportPipeline::start(settings.queue, exporters, Arc::clone(&ledger));
    pipeline.sink().submit(spans(10));
    pipeline
        .drain(Instant::now() + Duration::from_secs(20))
        .await;
    let counted = ledger.spans.snapshot();
    assert_eq!((counted.exported, counted.pending), (10, 0));
    let seen = seen.lock().expect("lock");
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].1, seen[1].1);
    assert_eq!(seen[1].1.as_array().map(Vec::len), Some(10));
    assert_eq!(seen[1].0["content-type"], "application/json");
    let agent = seen[1].0["user-agent"].to_str().expect("text");
    assert!(agent.starts_with("tracer-agent/"), "{agent}");
}
