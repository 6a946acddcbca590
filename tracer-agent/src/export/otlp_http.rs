//! OTLP over HTTP, protobuf or JSON: one message, one attempt, one verdict.

use std::io::Write;
use std::time::SystemTime;

use bytes::Bytes;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, Url};

use super::ExportError;
use super::otlp::USER_AGENT;
use super::otlp_grpc::chain;
use super::retry::{Verdict, http_is_retryable, retry_after};
use super::settings::{Compression, OtlpSettings, Protocol};

/// Of an answer only its beginning is of interest.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// A client of one URL.
#[derive(Debug)]
pub struct HttpTransport {
    client: Client,
    url: Url,
    headers: HeaderMap,
    compression: Compression,
    json: bool,
    rejected: &'static str,
}

impl HttpTransport {
    /// Does not connect yet.
    pub fn new(settings: &OtlpSettings) -> Result<Self, ExportError> {
        let json = settings.protocol == Protocol::HttpJson;
        let content_type = if json {
            "application/json"
        } else {
            "application/x-protobuf"
        };
        let mut headers = settings.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if settings.compression == Compression::Gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        // A followed redirect becomes a GET without the spans whose 200 would count as delivery. The
        // proxy variables of the service manager's environment are not meant for the agent.
        let client = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(ExportError::Http)?;
        Ok(Self {
            client,
            url: settings.endpoint.clone(),
            headers,
            compression: settings.compression,
            json,
            rejected: settings.signal.rejected,
        })
    }

    /// The message as it is sent: compressed once, however often it is tried.
    pub fn compressed(&self, message: Bytes) -> Bytes {
        match self.compression {
            Compression::None => message,
            Compression::Gzip => {
                let out = Vec::with_capacity(message.len() / 4 + 64);
                let mut encoder = GzEncoder::new(out, flate2::Compression::fast());
                // Writing to memory does not fail; if it did, an empty body would be refused and counted.
                let written = encoder.write_all(&message);
                written
                    .and_then(|()| encoder.finish())
                    .map(Bytes::from)
                    .unwrap_or_default()
            }
        }
    }

    /// One attempt.
    pub async fn send(&mut self, message: Bytes) -> Verdict {
        let request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .body(message);
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                return Verdict::Retry {
                    after: None,
                    why: chain(&error.without_url()),
                };
            }
        };
        let status = response.status();
        let after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok());
        let after = after.and_then(|value| retry_after(value, SystemTime::now()));
        let answer = beginning(&mut response).await;
        if status.is_success() {
            let (rejected, message) = if self.json {
                partial_json(&answer, self.rejected)
            } else {
                partial_protobuf(&answer)
            };
            Verdict::Accepted { rejected, message }
        } else if http_is_retryable(status.as_u16()) {
            Verdict::Retry {
                after,
                why: format!("HTTP status {status}"),
            }
        } else if status.is_redirection() {
            Verdict::Refused {
                why: format!("HTTP status {status}; redirects are not followed, use the final URL"),
            }
        } else {
            Verdict::Refused {
                why: format!("HTTP status {status}"),
            }
        }
    }
}

/// The first bytes of the answer's body. One that breaks off is taken as far as it came: the
/// status has said already what became of the spans.
async fn beginning(response: &mut Response) -> Vec<u8> {
    let mut answer = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = MAX_ANSWER_BYTES.saturating_sub(answer.len());
        answer.extend(chunk.iter().take(room));
        if chunk.len() > room {
            break;
        }
    }
    answer
}

fn partial_protobuf(answer: &[u8]) -> (u64, String) {
    let response = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
    let partial = response.partial_success.unwrap_or_default();
    (
        u64::try_from(partial.rejected_spans).unwrap_or_default(),
        partial.error_message,
    )
}

/// 64-bit integers are text in protobuf's JSON, but numbers must be taken too.
fn partial_json(answer: &[u8], rejected: &str) -> (u64, String) {
    let answer: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
    let partial = answer.get("partialSuccess");
    let rejected = partial.and_then(|partial| partial.get(rejected));
    let rejected = rejected.and_then(|n| n.as_u64().or_else(|| n.as_str()?.parse().ok()));
    let message = partial
        .and_then(|partial| partial.get("errorMessage"))
        .and_then(serde_json::Value::as_str);
    (
        rejected.unwrap_or_default(),
        message.unwrap_or_default().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_success_in_json() {
        #[track_caller]
        fn check(answer: &str, rejected: u64, message: &str) {
            assert_eq!(
                partial_json(answer.as_bytes(), "rejectedSpans"),
                (rejected, message.to_owned()),
                "{answer}"
            );
        }
        check("{}", 0, "");
        check("", 0, "");
        check("<html>", 0, "");
        check(r#"{"partialSuccess":{}}"#, 0, "");
        check(r#"{"partialSuccess":null}"#, 0, "");
        check(
            r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"no"}}"#,
            3,
            "no",
        );
        check(r#"{"partialSuccess":{"rejectedSpans":3}}"#, 3, "");
        check(r#"{"partialSuccess":{"rejectedSpans":"-3"}}"#, 0, "");
    }
}
