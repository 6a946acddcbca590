//! Every attribute name against the registry of the semantic conventions.

use std::collections::BTreeSet;

use super::*;
use crate::export::{ResourceDefaults, proto};
use crate::protocol::Grpc;

/// Generated, see its head.
const REGISTRY: &str = include_str!("semconv-1.44.0.txt");

/// Names that the release does not have: the project's conventions are ahead of it there.
const AHEAD: [&str; 1] = [
    // `rpc.response.status_code` in 1.44.0; renamed on the main branch since (#3921).
    "rpc.status_code",
];

fn is_registered(name: &str) -> bool {
    let mut registered = REGISTRY.lines().filter(|line| !line.starts_with('#'));
    AHEAD.contains(&name)
        || registered.any(|line| match line.strip_suffix(".*") {
            Some(template) => name
                .strip_prefix(template)
                .is_some_and(|key| key.len() > 1 && key.starts_with('.')),
            None => line == name,
        })
}

#[test]
fn the_registry_knows_what_it_should() {
    for (name, expected) in [
        ("http.request.method", true),
        ("http.request.header.x-request-id", true),
        ("http.request.header.", false),
        ("http.request.header", false),
        ("http.method", false),
        ("rpc.system", false),
        ("rpc.service", false),
        ("process.pid", true),
        ("# Attribute", false),
    ] {
        assert_eq!(is_registered(name), expected, "{name}");
    }
}

/// One span of every shape that has attributes of its own.
fn shapes() -> Vec<Span> {
    let process = process(1);
    let mut shapes = Vec::new();
    for number in [0, 1] {
        let plain = span(number, &process);
        let mut other = plain.clone();
        other.exchange.request.method = "BREW".into();
        other.exchange.request.context = ContextHeaders(vec![
            ("x-request-id".into(), "1".into()),
            ("x-trace-id".into(), "2".into()),
        ]);
        let mut failed = plain.clone();
        failed.exchange.response = None;
        failed.exchange.outcome = Outcome::Broken(104);
        let mut unix = plain.clone();
        unix.connection = Arc::new(Connection {
            local: Endpoint::Unix(Some("/run/s".into())),
            remote: Endpoint::Unix(Some("/run/c".into())),
            ..(*plain.connection).clone()
        });
        shapes.extend([plain.clone(), other, failed, unix]);
        for (status, target) in [
            (Some(0), "/pkg.Service/Method"),
            (Some(12), "/x/y"),
            (None, ""),
        ] {
            let mut rpc = plain.clone();
            rpc.exchange.protocol = Protocol::Http2;
            rpc.exchange.request.target = target.into();
            rpc.exchange.grpc = Some(Grpc {
                status,
                timeout_ns: Some(1),
                request_messages: Some(1),
                response_messages: Some(1),
            });
            shapes.push(rpc);
        }
    }
    shapes
}

#[test]
fn every_name_of_a_span_is_registered() {
    let request = proto::request(&shapes(), &ResourceDefaults::new(&[]));
    let mut names = BTreeSet::new();
    for resource_spans in request.resource_spans {
        assert_eq!(
            resource_spans.schema_url,
            "https://opentelemetry.io/schemas/1.44.0"
        );
        let resource = resource_spans.resource.expect("resource").attributes;
        names.extend(resource.into_iter().map(|attribute| attribute.key));
        for scope in resource_spans.scope_spans {
            let attributes = scope.spans.into_iter().flat_map(|span| span.attributes);
            names.extend(attributes.map(|attribute| attribute.key));
        }
    }
    assert!(names.len() > 25, "{names:?}");
    let unknown: Vec<_> = names.iter().filter(|name| !is_registered(name)).collect();
    assert!(unknown.is_empty(), "not in the registry: {unknown:?}");
}
