//! OTLP over gRPC: one message, one attempt, one verdict.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::ExportError;
use super::otlp::USER_AGENT;
use super::retry::{Verdict, grpc_is_retryable, grpc_retry_info};
use super::settings::{Compression, OtlpSettings};

/// A connection to a gRPC endpoint, made when first needed and again when broken.
#[derive(Debug)]
pub struct GrpcTransport {
    endpoint: Endpoint,
    channel: Channel,
    method: PathAndQuery,
    metadata: MetadataMap,
    compression: Compression,
}

impl GrpcTransport {
    /// Does not connect yet. Needs a tokio runtime.
    pub fn new(settings: &OtlpSettings) -> Result<Self, ExportError> {
        let endpoint = Endpoint::from_shared(settings.endpoint.to_string())
            .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
            .map_err(ExportError::Grpc)?;
        Ok(Self {
            channel: endpoint.connect_lazy(),
            endpoint,
            method: PathAndQuery::from_static(settings.signal.grpc_method),
            metadata: MetadataMap::from_headers(settings.headers.clone()),
            compression: settings.compression,
        })
    }

    /// Forgets the connection.
    pub fn reconnect(&mut self) {
        self.channel = self.endpoint.connect_lazy();
    }

    /// One attempt. The server is told of `timeout`; enforcing it is up to the caller.
    pub async fn send(&mut self, message: Bytes, timeout: Duration) -> Verdict {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        if self.compression == Compression::Gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        client = client.accept_compressed(CompressionEncoding::Gzip);
        if let Err(error) = client.ready().await {
            return Verdict::Retry {
                after: None,
                why: chain(&error),
            };
        }
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request.set_timeout(timeout);
        match client.unary(request, self.method.clone(), RawCodec).await {
            Ok(response) => {
                let partial = response.into_inner().partial_success.unwrap_or_default();
                Verdict::Accepted {
                    rejected: u64::try_from(partial.rejected_spans).unwrap_or_default(),
                    message: partial.error_message,
                }
            }
            Err(status) => verdict(&status),
        }
    }
}

fn verdict(status: &Status) -> Verdict {
    let retry_info = grpc_retry_info(status.details());
    // A status that came over the wire has no source: one that has was made here, from an error
    // of the connection.
    let broken = std::error::Error::source(status);
    let why = match broken {
        Some(error) => chain(error),
        None => format!("{:?}: {}", status.code(), status.message()),
    };
    if broken.is_some() || grpc_is_retryable(status.code(), retry_info.is_some()) {
        Verdict::Retry {
            after: retry_info,
            why,
        }
    } else {
        Verdict::Refused { why }
    }
}

/// An error and its causes on one line: transport errors say nothing by themselves.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !line.ends_with(&cause_text) {
            line.push_str(": ");
            line.push_str(&cause_text);
        }
        source = cause.source();
    }
    line
}

/// Sends bytes that are already encoded.
#[derive(Clone, Copy, Debug)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(message.len());
        out.put(message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        // The answer came with an OK: what it says beside that is not worth a second sending.
        Ok(Some(
            ExportTraceServiceResponse::decode(message).unwrap_or_default(),
        ))
    }
}
