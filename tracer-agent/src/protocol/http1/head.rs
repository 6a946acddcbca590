//! Heads of messages: where they end, and the few things taken from them.
//!
//! In: bytes at a message start. Out: a [`RequestHead`] or [`ResponseHead`] and the head's length.
//! [`Scanner`] looks at every byte once and decides at a fixed byte whether these can be a head at
//! all, so that the way the bytes were split never changes the outcome; httparse reads whole heads.

use std::mem::MaybeUninit;

use httparse::{EMPTY_HEADER, Header, ParserConfig, Status};

use super::super::context::Collector;
use super::super::{Protocol, Request};

/// Longest head that is read.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Header fields that are read without a heap allocation.
const INLINE_FIELDS: usize = 128;
/// Longest method that is believed; registered ones have at most 17 letters.
const MAX_METHOD: usize = 32;
/// Which kind of message a direction carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Response,
}

/// What a head says about the length of its body (RFC 9112 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Declared {
    /// Neither `Content-Length` nor `Transfer-Encoding`.
    Nothing,
    /// A valid `Content-Length`.
    Length(u64),
    /// The last transfer coding is chunked.
    Chunked,
    /// Invalid or conflicting lengths, or a transfer coding that does not delimit itself.
    Unclear,
}

/// A request's head.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub request: Request,
    pub protocol: Protocol,
    pub declared: Declared,
    /// `Expect: 100-continue`: an interim response is likely.
    pub expects_continue: bool,
}

/// A response's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResponseHead {
    pub status: u16,
    pub declared: Declared,
    /// `Upgrade: h2c`.
    pub upgrades_to_h2c: bool,
}

/// A head of either kind.
#[derive(Debug)]
pub(super) enum Head {
    Request(RequestHead),
    Response(ResponseHead),
}

/// Reads a head that begins at the first byte; `None` if it is not whole or not valid.
pub(super) fn parse(kind: Kind, bytes: &[u8]) -> Option<(Head, usize)> {
    match kind {
        Kind::Request => parse_request(bytes).map(|(head, used)| (Head::Request(head), used)),
        Kind::Response => parse_response(bytes).map(|(head, used)| (Head::Response(head), used)),
    }
}

/// Like [`parse`] for exactly one whole head; also takes a target that is not UTF-8.
pub(super) fn parse_whole(kind: Kind, head: &[u8]) -> Option<Head> {
    if let Some((head, _)) = parse(kind, head) {
        return Some(head);
    }
    // httparse refuses targets that are not UTF-8; servers take them, so replace those bytes.
    let line_end = head.iter().position(|&byte| byte == b'\n')?;
    let (line, fields) = head.split_at(line_end);
    if kind == Kind::Response || std::str::from_utf8(line).is_ok() {
        return None;
    }
    let mut readable = String::from_utf8_lossy(line).into_owned().into_bytes();
    readable.extend_from_slice(fields);
    parse(kind, &readable).map(|(head, _)| head)
}

fn parse_request(bytes: &[u8]) -> Option<(RequestHead, usize)> {
    let mut config = ParserConfig::default();
    config.ignore_invalid_headers_in_requests(true);
    let mut inline = [const { MaybeUninit::uninit() }; INLINE_FIELDS];
    let mut message = httparse::Request::new(&mut []);
    match config.parse_request_with_uninit_headers(&mut message, bytes, &mut inline) {
        Ok(Status::Complete(used)) => request_head(&message).map(|head| (head, used)),
        Err(httparse::Error::TooManyHeaders) => {
            let mut fields = vec![EMPTY_HEADER; count_lines(bytes)];
            let mut message = httparse::Request::new(&mut fields);
            match config.parse_request(&mut message, bytes) {
                Ok(Status::Complete(used)) => request_head(&message).map(|head| (head, used)),
                _ => None,
            }
        }
        _ => None,
    }
}

fn parse_response(bytes: &[u8]) -> Option<(ResponseHead, usize)> {
    let mut config = ParserConfig::default();
    config
        .ignore_invalid_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    let mut inline = [const { MaybeUninit::uninit() }; INLINE_FIELDS];
    let mut message = httparse::Response::new(&mut []);
    match config.parse_response_with_uninit_headers(&mut message, bytes, &mut inline) {
        Ok(Status::Complete(used)) => response_head(&message).map(|head| (head, used)),
        Err(httparse::Error::TooManyHeaders) => {
            let mut fields = vec![EMPTY_HEADER; count_lines(bytes)];
            let mut message = httparse::Response::new(&mut fields);
            match config.parse_response(&mut message, bytes) {
                Ok(Status::Complete(used)) => response_head(&message).map(|head| (head, used)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Lines within the longest head that is read: no head has more fields.
fn count_lines(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .take(MAX_HEAD)
        .filter(|&&byte| byte == b'\n')
        .count()
}

fn request_head(message: &httparse::Request<'_, '_>) -> Option<RequestHead> {
    let (method, target) = (message.method?, message.path?);
    if method.len() > MAX_METHOD {
        return None;
    }
    let mut length = LengthFields::default();
    let mut host = None;
    let mut user_agent = None;
    let mut expects_continue = false;
    let mut context = Collector::default();
    for Header { name, value } in message.headers.iter() {
        match name.len() {
            4 if host.is_none() && name.eq_ignore_ascii_case("host") => host = Some(lossy(value)),
            6 if name.eq_ignore_ascii_case("expect") => {
                expects_continue = value.eq_ignore_ascii_case(b"100-continue");
            }
            10 if user_agent.is_none() && name.eq_ignore_ascii_case("user-agent") => {
                user_agent = Some(lossy(value));
            }
            _ => {
                if !length.take(name, value) {
                    context.take(name, value);
                }
            }
        }
    }
    let authority = authority_of(method, target).map(Box::from);
    let authority = if method == "CONNECT" {
        host.or(authority)
    } else {
        authority.or(host)
    };
    Some(RequestHead {
        request: Request {
            method: method.into(),
            target: target.into(),
            authority,
            user_agent,
            context: context.finish(),
            scheme: None,
            body_bytes: Some(0),
        },
        protocol: if message.version? == 0 {
            Protocol::Http10
        } else {
            Protocol::Http11
        },
        declared: length.declared(),
        expects_continue,
    })
}

fn response_head(message: &httparse::Response<'_, '_>) -> Option<ResponseHead> {
    let status = message.code.filter(|code| *code >= 100)?;
    let mut length = LengthFields::default();
    let mut upgrades_to_h2c = false;
    for Header { name, value } in message.headers.iter() {
        if name.eq_ignore_ascii_case("upgrade") {
            upgrades_to_h2c = value.trim_ascii().eq_ignore_ascii_case(b"h2c");
        } else {
            length.take(name, value);
        }
    }
    Some(ResponseHead {
        status,
        declared: length.declared(),
        upgrades_to_h2c,
    })
}

/// The authority inside an absolute-form (or, for CONNECT, authority-form) target, without userinfo.
fn authority_of<'a>(method: &str, target: &'a str) -> Option<&'a str> {
    if target.starts_with('/') {
        return None;
    }
    if method == "CONNECT" {
        return Some(target);
    }
    let (scheme, rest) = target.split_once("://")?;
    if scheme.is_empty()
        || !scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next()?;
    Some(
        authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host),
    )
}

fn lossy(value: &[u8]) -> Box<str> {
    String::from_utf8_lossy(value).into()
}

/// Collects the fields that say how long the body is.
#[derive(Default)]
struct LengthFields {
    length: Option<u64>,
    conflict: bool,
    coding: Option<Coding>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Coding {
    Chunked,
    /// Not chunked, or something applied after chunked.
    Other,
}

impl LengthFields {
    /// True if the field was one of them.
    fn take(&mut self, name: &str, value: &[u8]) -> bool {
        match name.len() {
            14 if name.eq_ignore_ascii_case("content-length") => self.content_length(value),
            17 if name.eq_ignore_ascii_case("transfer-encoding") => self.transfer_encoding(value),
            _ => return false,
        }
        true
    }

    /// A list of equal values is one value (RFC 9110 section 8.6); anything else is a conflict.
    fn content_length(&mut self, value: &[u8]) {
        for item in value.split(|&byte| byte == b',') {
            match decimal(item.trim_ascii()) {
                Some(length) if self.length.is_none_or(|known| known == length) => {
                    self.length = Some(length)
                }
                _ => self.conflict = true,
            }
        }
    }

    fn transfer_encoding(&mut self, value: &[u8]) {
        for item in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            // "identity" was a coding that does nothing (RFC 2616 section 3.6).
            if item.is_empty() || item.eq_ignore_ascii_case(b"identity") {
                continue;
            }
            let chunked = item.eq_ignore_ascii_case(b"chunked");
            let after_chunked = self.coding == Some(Coding::Chunked);
            self.coding = Some(if chunked && !after_chunked {
                Coding::Chunked
            } else {
                Coding::Other
            });
        }
    }

    fn declared(&self) -> Declared {
        match (self.coding, self.conflict, self.length) {
            (Some(Coding::Chunked), _, _) => Declared::Chunked,
            (Some(Coding::Other), _, _) | (None, true, _) => Declared::Unclear,
            (None, false, Some(length)) => Declared::Length(length),
            (None, false, None) => Declared::Nothing,
        }
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        let digit = char::from(digit).to_digit(10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Looks for the end of a head, byte by byte, over any number of pieces.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scanner {
    at: Place,
    response: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Nothing yet.
    #[default]
    Start,
    /// So many bytes of `HTTP/` seen: a response, or a method of these letters.
    Prefix(u8),
    Method(u8),
    /// In the target; whether it has a byte.
    Target(bool),
    /// So many bytes of the version seen.
    RequestVersion(u8),
    ResponseVersion(u8),
    /// Within a line after the version.
    Line,
    /// After a line feed.
    LineStart,
    /// After a line feed and a carriage return.
    LineStartCr,
}

/// What [`Scanner::feed`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// The head ends after so many bytes of the piece.
    End(usize),
    More,
    /// These bytes start no message.
    Bad,
}

const VERSION: &[u8; 7] = b"HTTP/1.";
/// `HTTP/`: no method contains a slash, so these five bytes tell a response from a request.
const PREFIX: usize = 5;

impl Scanner {
    /// Which kind of message the bytes so far start, once they tell.
    pub(super) fn kind(&self, known: Option<Kind>) -> Kind {
        // Only asked for whole heads: of unknown kind, those that began with `HTTP/` are responses.
        known.unwrap_or(if self.response {
            Kind::Response
        } else {
            Kind::Request
        })
    }

    /// Takes the next bytes. With `kind` unknown either kind of message may start here.
    pub(super) fn feed(&mut self, kind: Option<Kind>, bytes: &[u8]) -> Scan {
        for (index, &byte) in bytes.iter().enumerate() {
            let Some(next) = self.at.after(kind, byte) else {
                return Scan::Bad;
            };
            if byte == b'\n' && matches!(self.at, Place::LineStart | Place::LineStartCr) {
                return Scan::End(index + 1);
            }
            self.response |= matches!(next, Place::ResponseVersion(_));
            self.at = next;
        }
        Scan::More
    }
}

impl Place {
    fn after(self, kind: Option<Kind>, byte: u8) -> Option<Place> {
        Some(match self {
            Place::Start => match kind {
                Some(Kind::Request) => return Place::Method(0).after(kind, byte),
                Some(Kind::Response) => return Place::ResponseVersion(0).after(kind, byte),
                None => return Place::Prefix(0).after(kind, byte),
            },
            Place::Prefix(seen) => {
                if VERSION.get(usize::from(seen)) == Some(&byte) {
                    if usize::from(seen) + 1 == PREFIX {
                        Place::ResponseVersion(seen + 1)
                    } else {
                        Place::Prefix(seen + 1)
                    }
                } else {
                    return Place::Method(seen).after(kind, byte);
                }
            }
            Place::Method(0) if byte == b' ' => return None,
            Place::Method(_) if byte == b' ' => Place::Target(false),
            Place::Method(seen) if is_token(byte) && usize::from(seen) < MAX_METHOD => {
                Place::Method(seen + 1)
            }
            Place::Method(_) => return None,
            Place::Target(false) if byte == b' ' => return None,
            Place::Target(true) if byte == b' ' => Place::RequestVersion(0),
            Place::Target(_) if byte > b' ' && byte != 0x7f => Place::Target(true),
            Place::Target(_) => return None,
            Place::RequestVersion(seen) => match VERSION.get(usize::from(seen)) {
                Some(expected) if *expected == byte => Place::RequestVersion(seen + 1),
                None if seen == 7 && matches!(byte, b'0' | b'1') => Place::RequestVersion(8),
                None if seen == 8 && byte == b'\r' => Place::Line,
                None if seen == 8 && byte == b'\n' => Place::LineStart,
                _ => return None,
            },
            Place::ResponseVersion(seen) => match VERSION.get(usize::from(seen)) {
                Some(expected) if *expected == byte => Place::ResponseVersion(seen + 1),
                None if seen == 7 && matches!(byte, b'0' | b'1') => Place::ResponseVersion(8),
                None if seen == 8 && byte == b' ' => Place::Line,
                _ => return None,
            },
            Place::LineStart if byte == b'\r' => Place::LineStartCr,
            Place::Line | Place::LineStart | Place::LineStartCr => {
                if byte == b'\n' {
                    Place::LineStart
                } else {
                    Place::Line
                }
            }
        })
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
