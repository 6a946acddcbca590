//! Do these first bytes of a direction begin an HTTP/1 message, and which kind?
//!
//! Stricter than a parser: text protocols (SMTP, IRC, Redis) also begin with a word and a space.

/// What the bytes look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A request line.
    Request,
    /// A status line.
    Response,
    /// Too few bytes to tell.
    Unclear,
    /// Neither.
    Other,
}

/// Longest method that is believed.
const MAX_METHOD: usize = 32;
const STATUS_LINE: &[u8] = b"HTTP/1.";
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Looks at the first bytes of a direction, or of a packet of a connection joined in the middle.
pub fn start_of(bytes: &[u8]) -> Start {
    // A server skips empty lines before a request (RFC 9112, section 2.2).
    let blank = bytes
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count();
    let bytes = bytes.get(blank..).unwrap_or_default();
    if bytes.is_empty() || b"HTTP/".starts_with(bytes) {
        // "H" alone may become HEAD as well.
        return if bytes.len() > 1 {
            Start::Response
        } else {
            Start::Unclear
        };
    }
    if bytes.starts_with(STATUS_LINE) || STATUS_LINE.starts_with(bytes) {
        return Start::Response;
    }
    if bytes.starts_with(HTTP2_PREFACE) {
        return Start::Other;
    }
    request_start(bytes)
}

fn request_start(bytes: &[u8]) -> Start {
    let is_method = |byte: &u8| {
        byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    let method_len = bytes
        .iter()
        .take(MAX_METHOD + 1)
        .take_while(|byte| is_method(byte))
        .count();
    if method_len == 0 || method_len > MAX_METHOD || !bytes[0].is_ascii_uppercase() {
        return Start::Other;
    }
    let (method, rest) = bytes.split_at(method_len);
    let target = match rest.split_first() {
        None => return Start::Unclear,
        Some((b' ', target)) => target,
        Some(_) => return Start::Other,
    };
    if let Some(end) = target.iter().position(|byte| *byte == b'\n') {
        let line = target.get(..end).unwrap_or_default().trim_ascii_end();
        let version = line.len().checked_sub(9).and_then(|at| line.get(at..));
        return match version {
            Some([b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', _]) => Start::Request,
            _ => Start::Other,
        };
    }
    // The line goes on behind what is here: origin, asterisk or absolute form, or CONNECT's host.
    match target.first() {
        None => Start::Unclear,
        Some(b'/' | b'*' | b'h' | b'H') => Start::Request,
        Some(_) if method == b"CONNECT" => Start::Request,
        Some(_) => Start::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes() {
        let check = |bytes: &str, expected: Start| {
            assert_eq!(start_of(bytes.as_bytes()), expected, "{bytes:?}");
        };
        check("GET / HTTP/1.1\r\nHost: x\r\n\r\n", Start::Request);
        check("\r\nPOST /a?b HTTP/1.0\r\n", Start::Request);
        check("OPTIONS * HTTP/1.1\n", Start::Request);
        check("GET http://a/b HTTP/1.1\r\n", Start::Request);
        check("CONNECT example.org:443 HTTP/1.1\r\n", Start::Request);
        check("CONNECT exam", Start::Request);
        check("M-SEARCH /x", Start::Request);
        check("GET /a-long-target-that-goes-on", Start::Request);
        check("HTTP/1.1 200 OK\r\n", Start::Response);
        check("HTTP/1.0 404", Start::Response);
        check("HTTP", Start::Response);
        check("H", Start::Unclear);
        check("", Start::Unclear);
        check("\r\n", Start::Unclear);
        check("GE", Start::Unclear);
        check("GET ", Start::Unclear);
        check("HTTP/2 200\r\n", Start::Other);
        check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Start::Other);
        check("EHLO mail.example.org\r\n", Start::Other);
        check("220 smtp ready\r\n", Start::Other);
        check("SSH-2.0-OpenSSH_9.2\r\n", Start::Other);
        check("GET key\r\n", Start::Other);
        check("get key\r\n", Start::Other);
        check("*1\r\n$4\r\nPING\r\n", Start::Other);
        check("\u{16}\u{3}\u{1}", Start::Other);
        check("GET /\r\n", Start::Other);
        check(&"A".repeat(64), Start::Other);
    }
}
