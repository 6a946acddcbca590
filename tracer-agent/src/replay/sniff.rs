//! Do these first bytes of a direction begin a message of HTTP, and of which kind?
//!
//! The answer is that of the kernel side ([`tracer_common::infer`]), which has 16 bytes; here the
//! whole line is there, so text protocols that also begin with a word and a space are told apart.

use tracer_common::infer::{Guess, guess_bytes};

/// Longest method that is believed.
const MAX_METHOD: usize = 32;

/// Looks at the first bytes of a direction, or of a packet of a connection joined in the middle.
pub fn guess(bytes: &[u8]) -> Guess {
    // A server skips empty lines before a request (RFC 9112, section 2.2).
    let blank = bytes
        .iter()
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .count();
    let bytes = bytes.get(blank..).unwrap_or_default();
    match guess_bytes(bytes) {
        Guess::Request if !may_be_request_line(bytes) => Guess::Other,
        Guess::Partial if !may_be_method(bytes) => Guess::Other,
        guess => guess,
    }
}

/// The version ends the line, if the line's end is there.
fn may_be_request_line(bytes: &[u8]) -> bool {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return true;
    };
    let line = bytes.get(..end).unwrap_or_default().trim_ascii_end();
    let version = line.len().checked_sub(9).and_then(|at| line.get(at..));
    matches!(
        version,
        Some([b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', _])
    )
}

/// What is longer than any method has a space behind it.
fn may_be_method(bytes: &[u8]) -> bool {
    bytes
        .get(..=MAX_METHOD)
        .is_none_or(|start| start.contains(&b' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes() {
        let check = |bytes: &str, expected: Guess| {
            assert_eq!(guess(bytes.as_bytes()), expected, "{bytes:?}");
        };
        check("GET / HTTP/1.1\r\nHost: x\r\n\r\n", Guess::Request);
        check("\r\nPOST /a?b HTTP/1.0\r\n", Guess::Request);
        check("OPTIONS * HTTP/1.1\n", Guess::Request);
        check("GET http://a/b HTTP/1.1\r\n", Guess::Request);
        check("CONNECT example.org:443 HTTP/1.1\r\n", Guess::Request);
        check("CONNECT exam", Guess::Request);
        check("M-SEARCH /x", Guess::Request);
        check("GET /a-long-target-that-goes-on", Guess::Request);
        check("HTTP/1.1 200 OK\r\n", Guess::Response);
        check("HTTP/1.0 404", Guess::Response);
        check("HTTP", Guess::Partial);
        check("H", Guess::Partial);
        check("", Guess::Partial);
        check("\r\n", Guess::Partial);
        check("GE", Guess::Partial);
        check("GET ", Guess::Partial);
        check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Guess::Http2);
        check("\0\0\u{6}\u{4}\0\0\0\0\0", Guess::Http2Settings);
        check("HTTP/2 200\r\n", Guess::Other);
        check("EHLO mail.example.org\r\n", Guess::Other);
        check("220 smtp ready\r\n", Guess::Other);
        check("SSH-2.0-OpenSSH_9.2\r\n", Guess::Other);
        check("GET key\r\n", Guess::Other);
        check("get key\r\n", Guess::Other);
        check("*1\r\n$4\r\nPING\r\n", Guess::Other);
        check("\u{16}\u{3}\u{1}", Guess::Tls);
        check("GET /\r\n", Guess::Other);
        check(&"A".repeat(64), Guess::Other);
    }
}
