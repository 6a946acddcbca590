//! Requests that carry telemetry away: how it is known that a process has an SDK that reports.

use crate::protocol::{Exchange, Request};

/// What an export request carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
}

impl Signal {
    /// By the request's method and target: OTLP over HTTP and gRPC (at any path prefix, as the endpoint
    /// of one signal is used as it is), and Zipkin's v2 API, which SDKs export to as well.
    pub fn of(method: &str, target: &str) -> Option<Signal> {
        if method != "POST" {
            return None;
        }
        let path = target.split(['?', '#']).next().unwrap_or_default();
        let path = path.trim_end_matches('/');
        const SERVICE: &str = "/opentelemetry.proto.collector.";
        if let Some(method) = path.strip_prefix(SERVICE) {
            return match method {
                "trace.v1.TraceService/Export" => Some(Signal::Traces),
                "metrics.v1.MetricsService/Export" => Some(Signal::Metrics),
                _ => None,
            };
        }
        if path.ends_with("/v1/traces") || path.ends_with("/api/v2/spans") {
            Some(Signal::Traces)
        } else if path.ends_with("/v1/metrics") {
            Some(Signal::Metrics)
        } else {
            None
        }
    }

    /// What a request carries.
    pub fn of_request(request: &Request) -> Option<Signal> {
        Signal::of(&request.method, &request.target)
    }
}

/// Whether the receiver took what was sent: what is refused is reported nowhere.
pub fn was_taken(exchange: &Exchange) -> bool {
    let status = exchange
        .response
        .as_ref()
        .map_or(0, |response| response.status);
    match &exchange.grpc {
        Some(grpc) => grpc.status == Some(0),
        None => (200..300).contains(&status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        use Signal::{Metrics, Traces};
        for (method, target, expected) in [
            ("POST", "/v1/traces", Some(Traces)),
            ("POST", "/v1/traces/?key=1", Some(Traces)),
            ("POST", "/otlp/v1/traces", Some(Traces)),
            ("POST", "http://collector:4318/v1/traces", Some(Traces)),
            ("POST", "/api/v2/spans", Some(Traces)),
            ("POST", "/v1/metrics", Some(Metrics)),
            (
                "POST",
                "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
                Some(Traces),
            ),
            (
                "POST",
                "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
                Some(Metrics),
            ),
            (
                "POST",
                "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
                None,
            ),
            ("POST", "/v1/logs", None),
            ("GET", "/v1/traces", None),
            ("POST", "/v1/tracesx", None),
            ("POST", "/v1?x=/v1/traces", None),
            ("POST", "", None),
        ] {
            assert_eq!(Signal::of(method, target), expected, "{method} {target}");
        }
    }
}
