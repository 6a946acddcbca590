//! Header fields of interest.
//!
//! In: the fields of one header block, some of them not known. Out: what they say about a request,
//! a response or its trailers. Lists are read up to a bound; what is behind it counts as not known.

use super::super::Request;
use super::super::context::Collector;
use super::super::hpack::Field;
use super::grpc;

/// Fields of a list that are read.
const MAX_FIELDS: u32 = 256;
/// Bytes of a list that are read.
const MAX_BYTES: usize = 64 * 1024;
/// Longest method that is believed.
const MAX_METHOD: usize = 32;

/// What the content type says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Content {
    /// No content type was seen.
    #[default]
    Unseen,
    /// gRPC over HTTP/2 (not gRPC-Web, which is HTTP of its own kind).
    Grpc,
    Other,
}

/// What a header block says.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub method: Option<Box<str>>,
    path: Option<Box<str>>,
    scheme: Option<Box<str>>,
    authority: Option<Box<str>>,
    host: Option<Box<str>>,
    user_agent: Option<Box<str>>,
    context: Collector,
    pub status: Option<u16>,
    pub content: Content,
    pub grpc_status: Option<u32>,
    pub grpc_timeout_ns: Option<u64>,
    /// A field that only requests have in front.
    pub is_request: bool,
    /// Fields with a name or value that is not known.
    pub unknown: u64,
    fields: u32,
    bytes: usize,
}

impl Fields {
    pub(super) fn take(&mut self, field: &Field<'_>) {
        let (Some(name), Some(value)) = (field.name, field.value) else {
            self.unknown += 1;
            return;
        };
        self.fields += 1;
        self.bytes = self.bytes.saturating_add(name.len() + value.len());
        if self.fields > MAX_FIELDS || self.bytes > MAX_BYTES {
            self.unknown += 1;
            return;
        }
        match name {
            b":method" => {
                self.is_request = true;
                if value.len() <= MAX_METHOD {
                    keep(&mut self.method, value);
                }
            }
            b":path" => {
                self.is_request = true;
                keep(&mut self.path, value);
            }
            b":scheme" => {
                self.is_request = true;
                keep(&mut self.scheme, value);
            }
            b":authority" => {
                self.is_request = true;
                keep(&mut self.authority, value);
            }
            b":status" => self.status = self.status.or(status(value)),
            b"host" => keep(&mut self.host, value),
            b"user-agent" => keep(&mut self.user_agent, value),
            b"content-type" => self.content = content(value),
            b"grpc-status" => self.grpc_status = grpc::status(value),
            b"grpc-timeout" => self.grpc_timeout_ns = grpc::timeout_ns(value),
            _ => {
                if let Ok(name) = std::str::from_utf8(name) {
                    self.context.take(name, value);
                }
            }
        }
    }

    /// The request, as far as it is known.
    pub(super) fn into_request(self) -> Request {
        let method = self.method.unwrap_or_default();
        let authority = self.authority.or(self.host);
        let target = match self.path {
            Some(path) => path,
            // CONNECT has no path (RFC 9113, section 8.5).
            None if &*method == "CONNECT" => authority.clone().unwrap_or_default(),
            None => Box::default(),
        };
        Request {
            method,
            target,
            scheme: self.scheme,
            authority,
            user_agent: self.user_agent,
            context: self.context.finish(),
            body_bytes: None,
        }
    }
}

/// The first of a name counts.
fn keep(field: &mut Option<Box<str>>, value: &[u8]) {
    if field.is_none() && !value.is_empty() {
        *field = Some(String::from_utf8_lossy(value).into());
    }
}

/// Three digits.
fn status(value: &[u8]) -> Option<u16> {
    match value {
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
            Some(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0'))
        }
        _ => None,
    }
}

fn content(value: &[u8]) -> Content {
    match value.split_at_checked(b"application/grpc".len()) {
        Some((b"application/grpc", [] | [b'+' | b';', ..])) => Content::Grpc,
        _ => Content::Other,
    }
}

/// Bytes that a request keeps.
pub(super) fn cost(request: &Request) -> usize {
    let Request {
        method,
        target,
        scheme,
        authority,
        user_agent,
        context,
        body_bytes: _,
    } = request;
    let optional = [scheme, authority, user_agent];
    method.len()
        + target.len()
        + optional
            .iter()
            .filter_map(|text| text.as_deref())
            .map(str::len)
            .sum::<usize>()
        + context
            .0
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>()
}
