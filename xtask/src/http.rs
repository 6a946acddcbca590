//! As much HTTP/1.1 as a GET of a small local page needs.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How long a local server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const LONGEST: u64 = 4 << 20;

/// A port nobody listens on at this moment, chosen by the kernel; for programs that cannot choose
/// one themselves and say so.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port can be had")?;
    Ok(listener.local_addr().context("no port can be had")?.port())
}

/// Status and body of `http://127.0.0.1:{port}{path}`.
pub fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let text = exchange(port, path).with_context(|| format!("GET 127.0.0.1:{port}{path}"))?;
    parse(&text).with_context(|| format!("GET 127.0.0.1:{port}{path}: odd answer"))
}

fn exchange(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn parse(text: &str) -> Option<(u16, String)> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_taken_apart() {
        let check = |text: &str, found: Option<(u16, &str)>| {
            assert_eq!(
                parse(text),
                found.map(|(status, body)| (status, body.to_owned()))
            );
        };
        check(
            "HTTP/1.1 200 OK\r\nA: b\r\n\r\n{}\r\n\r\n",
            Some((200, "{}\r\n\r\n")),
        );
        check("HTTP/1.0 503 Not yet\r\n\r\n", Some((503, "")));
        check("HTTP/1.0 200 OK\r\n", None);
        check("", None);
    }
}
