//! A minimal blocking HTTP/1.1 client that knows exactly when it wrote and read what.
//!
//! In: the bytes of a request. Out: the response and the instants around the first write and the
//! last read. No redirects, no retries, no pool: the ground truth must not be clever.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

/// Longest wait for any single read or write.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Bytes read and not yet used.
    buffer: Vec<u8>,
    last_read: Instant,
    exchanges: u64,
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Final status code.
    pub status: u16,
    /// Body without framing.
    pub body: Vec<u8>,
    /// The connection may carry another request.
    pub keep_alive: bool,
}

/// A response and its times.
#[derive(Clone, Debug)]
pub struct Timed {
    /// The response.
    pub response: Response,
    /// From before the first write to after the last read.
    pub duration: Duration,
    /// Wall clock before the first write.
    pub started: SystemTime,
}

/// Head of a response as far as framing needs it.
#[derive(Debug, Default)]
struct Head {
    status: u16,
    length: Option<usize>,
    chunked: bool,
    close: bool,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Connection {
    /// Opens a connection.
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            last_read: Instant::now(),
            exchanges: 0,
        })
    }

    /// Port of this end.
    pub fn local_port(&self) -> io::Result<u16> {
        Ok(self.stream.local_addr()?.port())
    }

    /// Requests answered on it so far.
    pub fn exchanges(&self) -> u64 {
        self.exchanges
    }

    /// Writes the `pieces` of one request, one call each, and reads its response. `bodiless`: the
    /// request was HEAD.
    pub fn exchange(&mut self, pieces: &[&[u8]], bodiless: bool) -> io::Result<Timed> {
        let started = SystemTime::now();
        let start = Instant::now();
        for piece in pieces {
            self.stream.write_all(piece)?;
        }
        let response = self.response(bodiless)?;
        self.exchanges += 1;
        Ok(Timed {
            response,
            duration: self.last_read.duration_since(start),
            started,
        })
    }

    fn response(&mut self, bodiless: bool) -> io::Result<Response> {
        let head = loop {
            let head = self.head()?;
            if head.status >= 200 || head.status == 101 {
                break head;
            }
        };
        let mut keep_alive = !head.close;
        let body = if bodiless || matches!(head.status, 101 | 204 | 304) {
            Vec::new()
        } else if head.chunked {
            self.chunks()?
        } else if let Some(length) = head.length {
            self.take(length)?
        } else {
            keep_alive = false;
            while self.fill()? {}
            std::mem::take(&mut self.buffer)
        };
        Ok(Response {
            status: head.status,
            body,
            keep_alive,
        })
    }

    fn head(&mut self) -> io::Result<Head> {
        let status_line = self.line()?;
        let mut words = status_line.split(' ');
        let version = words.next().unwrap_or_default();
        let status = words.next().and_then(|code| code.parse().ok());
        let mut head = Head {
            status: status.ok_or_else(|| bad("no status line"))?,
            close: version == "HTTP/1.0",
            ..Head::default()
        };
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(head);
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| bad("a header without a colon"))?;
            let value = value.trim().to_ascii_lowercase();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    head.length = Some(value.parse().map_err(|_| bad("content-length"))?)
                }
                "transfer-encoding" => head.chunked = value.ends_with("chunked"),
                "connection" => {
                    head.close = value == "close" || (head.close && value != "keep-alive")
                }
                _ => {}
            }
        }
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| bad("chunk size"))?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.take(size)?);
            self.line()?;
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let mut line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                line.truncate(end);
                return String::from_utf8(line).map_err(|_| bad("a line that is not UTF-8"));
            }
            self.more()?;
        }
    }

    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.more()?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    fn more(&mut self) -> io::Result<()> {
        if self.fill()? {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// One read; false at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        let mut piece = [0; 64 * 1024];
        let count = loop {
            match self.stream.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.last_read = Instant::now();
        self.buffer.extend_from_slice(&piece[..count]);
        Ok(count > 0)
    }
}

/// One GET on a connection of its own.
pub fn get(address: SocketAddr, target: &str) -> io::Result<Response> {
    let request = format!("GET {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    Ok(Connection::open(address)?
        .exchange(&[request.as_bytes()], false)?
        .response)
}

/// One POST on a connection of its own.
pub fn post(
    address: SocketAddr,
    target: &str,
    content_type: &str,
    body: &[u8],
) -> io::Result<Response> {
    let head = format!(
        "POST {target} HTTP/1.1\r\nhost: {address}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Ok(Connection::open(address)?
        .exchange(&[head.as_bytes(), body], false)?
        .response)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `wire` as the answer to one GET, in pieces of `step` bytes.
    fn check(wire: &'static str, step: usize, expected: Result<(u16, &str, bool), io::ErrorKind>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let server = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().expect("accept");
            peer.set_nodelay(true).expect("nodelay");
            let mut request = [0; 1024];
            let _ = peer.read(&mut request).expect("request");
            for piece in wire.as_bytes().chunks(step) {
                // A client that has seen enough may close before the last piece.
                if peer.write_all(piece).is_err() {
                    break;
                }
            }
        });
        let got = get(address, "/");
        server.join().expect("server");
        let got = got.map_err(|error| error.kind());
        let got = got.map(|r| {
            (
                r.status,
                String::from_utf8(r.body).expect("text"),
                r.keep_alive,
            )
        });
        assert_eq!(
            got,
            expected.map(|(status, body, keep)| (status, body.to_owned(), keep)),
            "{wire:?}"
        );
    }

    #[test]
    fn framings() {
        for step in [1, 7, 4096] {
            check(
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
                step,
                Ok((200, "hi", true)),
            );
            check(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
                step,
                Ok((204, "", true)),
            );
            check(
                "HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n1\r\n!\r\n0\r\nt: 1\r\n\r\n",
                step,
                Ok((404, "hi!", true)),
            );
            check(
                "HTTP/1.0 500 No\r\n\r\nto the end",
                step,
                Ok((500, "to the end", false)),
            );
            check(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx",
                step,
                Ok((200, "x", false)),
            );
            check(
                "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort",
                step,
                Err(io::ErrorKind::UnexpectedEof),
            );
            check("no http\r\n\r\n", step, Err(io::ErrorKind::InvalidData));
        }
    }
}
