//! The null receiver: accepts OTLP over HTTP with protobuf bodies and counts spans by process.
//!
//! It shares the cores with what is measured, so it walks the few protobuf levels down to the spans
//! and skips their insides. It cannot see what is in a span. Counting is all it keeps.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail};

/// Longest body that is taken; a batch of spans is far below.
const LONGEST_BODY: u64 = 64 << 20;
/// Longest request head.
const LONGEST_HEAD: u64 = 64 << 10;

/// Spans by the pid of the process they are of; 0 is a resource that names none.
pub type Counts = BTreeMap<u64, u64>;

/// Serves until it is ended; writes its port to `port_file` once it listens.
pub fn serve(port_file: &Path) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port can be had")?;
    let port = listener.local_addr().context("no port can be had")?.port();
    std::fs::write(port_file, port.to_string())
        .with_context(|| format!("cannot write {}", port_file.display()))?;
    static COUNTS: Mutex<Counts> = Mutex::new(Counts::new());
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            if let Err(error) = connection(stream, &COUNTS) {
                eprintln!("otlp sink: {error:#}");
            }
        });
    }
    Ok(())
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connection(stream: TcpStream, counts: &Mutex<Counts>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::with_capacity(256 << 10, stream);
    let mut body = Vec::new();
    while let Some(head) = Head::read(&mut reader)? {
        head.read_body(&mut reader, &mut body)?;
        let (status, text) = answer(&head, &body, counts);
        write!(
            writer,
            "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n{text}",
            if head.path == "/counts" {
                "application/json"
            } else {
                "application/x-protobuf"
            },
            text.len(),
        )?;
        if head.last {
            break;
        }
    }
    Ok(())
}

fn answer(head: &Head, body: &[u8], counts: &Mutex<Counts>) -> (&'static str, String) {
    match head.path.as_str() {
        "/counts" => (
            "200 OK",
            serde_json::to_string(&*lock(counts)).unwrap_or_else(|_| "{}".into()),
        ),
        "/v1/traces" if head.encoded => ("415 Unsupported Media Type", String::new()),
        "/v1/traces" => match spans(body) {
            Ok(found) => {
                let mut counts = lock(counts);
                for (pid, spans) in found {
                    *counts.entry(pid).or_default() += spans;
                }
                // An empty ExportTraceServiceResponse: all accepted.
                ("200 OK", String::new())
            }
            Err(_) => ("400 Bad Request", String::new()),
        },
        "/v1/metrics" | "/v1/logs" => ("200 OK", String::new()),
        _ => ("404 Not Found", String::new()),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    path: String,
    /// None: the body is chunked.
    length: Option<u64>,
    encoded: bool,
    last: bool,
}

impl Head {
    /// The next request's head; None at the end of the connection.
    fn read(reader: &mut impl BufRead) -> Result<Option<Self>> {
        let mut reader = reader.take(LONGEST_HEAD);
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let path = line
            .split(' ')
            .nth(1)
            .context("a request line names no path")?
            .to_owned();
        let mut head = Self {
            path,
            length: Some(0),
            encoded: false,
            last: false,
        };
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                bail!("the connection ended inside a request head");
            }
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.length = Some(value.parse().context("Content-Length")?),
                "transfer-encoding" => head.length = None,
                "content-encoding" => head.encoded = value != "identity",
                "connection" => head.last = value.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        Ok(Some(head))
    }

    fn read_body(&self, reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
        body.clear();
        let Some(length) = self.length else {
            return read_chunks(reader, body);
        };
        read_exactly(reader, length, body)
    }
}

fn read_exactly(reader: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> Result<()> {
    if length > LONGEST_BODY {
        bail!("a body of {length} bytes is too long");
    }
    let before = body.len();
    reader.take(length).read_to_end(body)?;
    if (body.len() - before) as u64 != length {
        bail!("the connection ended inside a body");
    }
    Ok(())
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        reader.take(LONGEST_HEAD).read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).context("a chunk has an odd size")?;
        if size == 0 {
            // Trailers, if any, end with an empty line.
            while !line.trim().is_empty() {
                line.clear();
                reader.take(LONGEST_HEAD).read_line(&mut line)?;
            }
            return Ok(());
        }
        if body.len() as u64 + size > LONGEST_BODY {
            bail!("a chunked body is too long");
        }
        read_exactly(reader, size, body)?;
        line.clear();
        reader.take(LONGEST_HEAD).read_line(&mut line)?;
    }
}

/// Spans by process in an ExportTraceServiceRequest. Field numbers: opentelemetry/proto/trace/v1,
/// resource/v1 and common/v1.
fn spans(body: &[u8]) -> Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    for resource_spans in messages(body, 1) {
        let (mut pid, mut spans) = (0, 0);
        for field in Fields(resource_spans?) {
            match field? {
                (1, Value::Bytes(resource)) => pid = pid_of(resource)?,
                (2, Value::Bytes(scope)) => {
                    for span in messages(scope, 2) {
                        span?;
                        spans += 1;
                    }
                }
                _ => {}
            }
        }
        found.push((pid, spans));
    }
    Ok(found)
}

/// The attribute process.pid of a Resource, or 0.
fn pid_of(resource: &[u8]) -> Result<u64> {
    for attribute in messages(resource, 1) {
        let (mut is_pid, mut number) = (false, 0);
        for field in Fields(attribute?) {
            match field? {
                (1, Value::Bytes(key)) => is_pid = key == b"process.pid",
                (2, Value::Bytes(any)) => {
                    for field in Fields(any) {
                        if let (3, Value::Number(value)) = field? {
                            number = value;
                        }
                    }
                }
                _ => {}
            }
        }
        if is_pid {
            return Ok(number);
        }
    }
    Ok(0)
}

/// The occurrences of one length-delimited field of a message.
fn messages(message: &[u8], number: u64) -> impl Iterator<Item = Result<&[u8]>> {
    Fields(message).filter_map(move |field| match field {
        Ok((found, Value::Bytes(bytes))) if found == number => Some(Ok(bytes)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    })
}

/// The fields of a protobuf message; ends after the first malformed one.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.context("a malformed protobuf field"))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.bytes(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.bytes(usize::try_from(length).ok()?)?)
            }
            5 => self.bytes(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some((key >> 3, value))
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2];
        let mut length = bytes.len();
        while length > 0x7f {
            field.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        field.push(length as u8);
        field.extend_from_slice(bytes);
        field
    }

    fn resource_spans(pid: Option<u8>, spans: usize) -> Vec<u8> {
        let name = [field(1, b"service.name"), field(2, &field(1, b"shop"))].concat();
        let mut resource = field(1, &name);
        if let Some(pid) = pid {
            let number = [3 << 3, pid];
            let attribute = [field(1, b"process.pid"), field(2, &number)].concat();
            resource.extend(field(1, &attribute));
        }
        let span = [field(1, &[7; 16]), vec![7 << 3 | 1, 1, 2, 3, 4, 5, 6, 7, 8]].concat();
        let scope = field(1, &field(1, b"tracer-agent"));
        let scope_spans = [scope, field(2, &span).repeat(spans)].concat();
        field(1, &[field(1, &resource), field(2, &scope_spans)].concat())
    }

    #[test]
    fn spans_are_counted_by_process() {
        let check = |body: &[u8], found: &[(u64, u64)]| {
            assert_eq!(spans(body).expect("well-formed"), found);
        };
        check(b"", &[]);
        check(&resource_spans(Some(42), 3), &[(42, 3)]);
        check(&resource_spans(None, 1), &[(0, 1)]);
        let two = [resource_spans(Some(1), 100), resource_spans(Some(2), 0)].concat();
        check(&two, &[(1, 100), (2, 0)]);
    }

    #[test]
    fn a_cut_body_is_refused_and_never_panics() {
        let body = resource_spans(Some(42), 3);
        for end in 1..body.len() {
            assert!(spans(&body[..end]).is_err(), "cut at {end}");
        }
        assert!(spans(&[0xff; 32]).is_err());
        assert!(spans(&[7]).is_err(), "an unknown wire type");
    }

    #[test]
    fn requests_are_read_off_a_connection() {
        let check = |text: &str, path: &str, body: &[u8]| {
            let mut reader = text.as_bytes();
            let head = Head::read(&mut reader).expect("reads").expect("a request");
            let mut found = Vec::new();
            head.read_body(&mut reader, &mut found).expect("a body");
            assert_eq!(
                (head.path.as_str(), found.as_slice()),
                (path, body),
                "{text:?}"
            );
            assert!(reader.is_empty(), "{text:?}");
        };
        check("GET /counts HTTP/1.1\r\nHost: x\r\n\r\n", "/counts", b"");
        check(
            "POST /v1/traces HTTP/1.1\r\ncontent-length: 2\r\n\r\nab",
            "/v1/traces",
            b"ab",
        );
        check(
            "POST /v1/traces HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n",
            "/v1/traces",
            b"abc",
        );
        assert_eq!(Head::read(&mut &b""[..]).expect("an end"), None);
        assert!(Head::read(&mut &b"POST /x HTTP/1.1\r\nA: b\r\n"[..]).is_err());
    }
}
