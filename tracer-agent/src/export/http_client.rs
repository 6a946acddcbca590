//! One POST to one URL: what OTLP over HTTP and Zipkin have in common.

use std::io::Write;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use url::Url;

use super::ExportError;
use super::retry::{Verdict, http_is_retryable, retry_after};
use super::settings::{Compression, TlsSettings};
use super::tls::{self, Connector, Versions};
use crate::causes::chain;

/// Of an answer only its beginning is of interest.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Less than servers usually keep an idle connection, so that it is us who close it.
const IDLE: Duration = Duration::from_secs(45);

/// A client of one URL. Redirects are not followed: a followed one becomes a GET without the spans,
/// whose 200 would count as delivery. Proxy variables are not read: those of the service manager's
/// environment are not meant for the agent.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: Client<Connector, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
    compression: Compression,
}

/// What a server said.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
    /// The first bytes of the body.
    pub body: Vec<u8>,
}

impl HttpClient {
    /// Does not connect yet. `headers` are sent with every request.
    pub fn new(
        endpoint: &Url,
        tls: &TlsSettings,
        mut headers: HeaderMap,
        compression: Compression,
    ) -> Result<Self, ExportError> {
        let uri = endpoint
            .as_str()
            .parse()
            .map_err(|source| ExportError::Uri {
                endpoint: shown(endpoint),
                source,
            })?;
        if compression == Compression::Gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        headers
            .entry(USER_AGENT)
            .or_insert(HeaderValue::from_static(super::USER_AGENT));
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(tls::connector(endpoint, tls, Versions::All)?);
        Ok(Self {
            client,
            uri,
            headers,
            compression,
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

    /// One attempt; the error is a broken connection.
    pub async fn post(&self, body: Bytes) -> Result<Answer, String> {
        let mut request = Request::post(self.uri.clone())
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        *request.headers_mut() = self.headers.clone();
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| chain(&error))?;
        let after = response.headers().get(RETRY_AFTER);
        let after = after.and_then(|value| value.to_str().ok());
        Ok(Answer {
            status: response.status(),
            retry_after: after.and_then(|value| retry_after(value, SystemTime::now())),
            body: beginning(response.into_body()).await,
        })
    }
}

impl Answer {
    /// What a status other than a success comes to.
    pub fn failure(&self) -> Verdict {
        let status = self.status;
        let why = format!("HTTP status {status}");
        if http_is_retryable(status.as_u16()) {
            Verdict::Retry {
                after: self.retry_after,
                why,
            }
        } else if status == StatusCode::PAYLOAD_TOO_LARGE {
            Verdict::TooLarge { why }
        } else if status.is_redirection() {
            Verdict::Refused {
                why: format!("{why}; redirects are not followed, use the final URL"),
            }
        } else {
            Verdict::Refused { why }
        }
    }
}

/// One that breaks off is taken as far as it came: the status has said already what became of the
/// spans.
async fn beginning(mut body: impl BodyExt<Data = Bytes> + Unpin) -> Vec<u8> {
    let mut answer = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(chunk) = frame.into_data() else {
            continue;
        };
        let room = MAX_ANSWER_BYTES.saturating_sub(answer.len());
        answer.extend(chunk.iter().take(room));
        if chunk.len() > room {
            break;
        }
    }
    answer
}

/// For log lines: a query may hold a key.
pub(super) fn shown(endpoint: &Url) -> String {
    let mut shown = endpoint.clone();
    shown.set_query(None);
    // Only what cannot have any refuses to have none.
    let _ = shown.set_password(None);
    let _ = shown.set_username("");
    shown.into()
}
