//! OTLP over HTTP, protobuf or JSON: one message, one attempt, one verdict.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use prost::Message;

use super::ExportError;
use super::http_client::HttpClient;
use super::retry::{ExportAnswer, Verdict};
use super::settings::{OtlpSettings, Protocol};

/// A client of one URL, for any signal.
#[derive(Debug)]
pub struct HttpTransport {
    client: HttpClient,
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
        let OtlpSettings {
            endpoint,
            tls,
            compression,
            ..
        } = settings;
        Ok(Self {
            client: HttpClient::new(endpoint, tls, headers, *compression)?,
            json,
            rejected: settings.signal.rejected,
        })
    }

    /// The message as it is sent: compressed once, however often it is tried.
    pub fn compressed(&self, message: Bytes) -> Bytes {
        self.client.compressed(message)
    }

    /// One attempt.
    pub async fn send(&mut self, message: Bytes) -> Verdict {
        let answer = match self.client.post(message).await {
            Ok(answer) => answer,
            Err(why) => return Verdict::Retry { after: None, why },
        };
        if !answer.status.is_success() {
            return answer.failure();
        }
        if self.json {
            let (rejected, message) = partial_json(&answer.body, self.rejected);
            Verdict::Accepted { rejected, message }
        } else {
            ExportAnswer::decode(answer.body.as_slice())
                .unwrap_or_default()
                .verdict()
        }
    }
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
