//! OTLP over gRPC: one message, one attempt, one verdict.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::ExportError;
use super::USER_AGENT;
use super::retry::{
    ExportAnswer, Verdict, grpc_is_retryable, grpc_retry_info, grpc_says_too_large,
};
use super::settings::{Compression, OtlpSettings};
use super::tls::{self, Connector, Versions};
use crate::causes::chain;

/// A connection to a gRPC endpoint, made when first needed and again when broken.
#[derive(Debug)]
pub struct GrpcTransport {
    endpoint: Endpoint,
    connector: Connector,
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
        let connector = tls::connector(&settings.endpoint, &settings.tls, Versions::Http2)?;
        Ok(Self {
            channel: endpoint.connect_with_connector_lazy(connector.clone()),
            endpoint,
            connector,
            method: PathAndQuery::from_static(settings.signal.grpc_method),
            metadata: MetadataMap::from_headers(settings.headers.clone()),
            compression: settings.compression,
        })
    }

    /// Forgets the connection.
    pub fn reconnect(&mut self) {
        self.channel = self
            .endpoint
            .connect_with_connector_lazy(self.connector.clone());
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
            Ok(response) => response.into_inner().verdict(),
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
    if grpc_says_too_large(status.code(), status.message()) {
        Verdict::TooLarge { why }
    } else if broken.is_some() || grpc_is_retryable(status.code(), retry_info.is_some()) {
        Verdict::Retry {
            after: retry_info,
            why,
        }
    } else {
        Verdict::Refused { why }
    }
}

/// Sends bytes that are already encoded.
#[derive(Clone, Copy, Debug)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = ExportAnswer;
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
    type Item = ExportAnswer;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        // The answer came with an OK: what it says beside that is not worth a second sending.
        Ok(Some(ExportAnswer::decode(message).unwrap_or_default()))
    }
}
