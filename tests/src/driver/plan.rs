//! Which requests a run sends: decided by the request's number alone, so that a run can be repeated.

use std::net::SocketAddr;

/// `User-Agent` of the driver.
pub const USER_AGENT: &str = "tracer-driver/1";
/// `service.name` of the driver.
pub const SERVICE_NAME: &str = "tracer-driver";

const METHODS: [&str; 10] = [
    "GET", "POST", "GET", "PUT", "GET", "DELETE", "POST", "HEAD", "OPTIONS", "PATCH",
];
const STATUSES: [u16; 16] = [
    200, 200, 200, 200, 200, 200, 200, 201, 204, 301, 304, 400, 404, 429, 500, 503,
];
/// The sizes for which the nginx service has files.
pub(crate) const SIZES: [usize; 8] = [0, 1, 17, 500, 500, 4_000, 16_000, 65_536];
const LARGE: usize = 200_000;
const REQUEST_SIZES: [usize; 5] = [0, 3, 800, 9_000, 70_000];

/// Families of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mix {
    /// Methods, statuses, body sizes, chunked bodies, fresh and kept connections, slow ones.
    Everything,
    /// `GET`, 200, small body, kept connection.
    Simple,
    /// The same, each on a connection of its own.
    Fresh,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: &'static str,
    /// `/r/<run>-<number>`.
    pub path: String,
    /// What the service is to answer.
    pub query: String,
    /// Request body.
    pub body: Vec<u8>,
    /// The body goes in chunks.
    pub chunked: bool,
    /// Head and body go in separate writes.
    pub split: bool,
    /// Sent on a new connection.
    pub fresh: bool,
    /// Asks the service to close afterwards.
    pub close: bool,
}

impl Mix {
    /// Request `number` of a run.
    pub fn request(self, run: &str, number: usize) -> Request {
        let path = format!("/r/{run}-{number}");
        if self != Self::Everything {
            return Request {
                fresh: self == Self::Fresh,
                ..Request::simple("GET", &path, "status=200&bytes=17&delay_ms=0")
            };
        }
        // A generator seeded by the number: mixed, and the same in every run.
        let mut random = fastrand::Rng::with_seed(number as u64);
        let method = random.choice(METHODS).unwrap_or("GET");
        let status = random.choice(STATUSES).unwrap_or(200);
        let bytes = if random.u8(..100) < 2 {
            LARGE
        } else {
            random.choice(SIZES).unwrap_or(0)
        };
        let delay = if random.u8(..100) < 1 {
            random.u8(30..=80)
        } else {
            0
        };
        let has_body = matches!(method, "POST" | "PUT" | "PATCH");
        let size = if has_body {
            random.choice(REQUEST_SIZES).unwrap_or(0)
        } else {
            0
        };
        Request {
            method,
            path,
            query: format!("status={status}&bytes={bytes}&delay_ms={delay}"),
            body: vec![b'b'; size],
            chunked: has_body && random.u8(..4) == 0,
            split: random.bool(),
            fresh: random.u8(..5) == 0,
            close: random.u8(..20) == 0,
        }
    }
}

impl Request {
    /// A request without body on a kept connection.
    pub fn simple(method: &'static str, path: &str, query: &str) -> Self {
        Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            body: Vec::new(),
            chunked: false,
            split: false,
            fresh: false,
            close: false,
        }
    }

    /// The bytes to send, one element per write.
    pub fn wire(&self, address: SocketAddr, headers: &[String], close: bool) -> Vec<Vec<u8>> {
        let mut head = format!(
            "{} {}?{} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: {USER_AGENT}\r\n",
            self.method, self.path, self.query
        );
        for header in headers {
            head.push_str(header);
            head.push_str("\r\n");
        }
        if close {
            head.push_str("Connection: close\r\n");
        }
        let body = if self.chunked {
            head.push_str("Transfer-Encoding: chunked\r\n\r\n");
            let mut body = Vec::new();
            for chunk in self.body.chunks(5_000) {
                body.extend_from_slice(format!("{:x};part=1\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            body
        } else {
            if !self.body.is_empty() || matches!(self.method, "POST" | "PUT" | "PATCH") {
                head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
            }
            head.push_str("\r\n");
            self.body.clone()
        };
        let mut head = head.into_bytes();
        if self.split && !body.is_empty() {
            return vec![head, body];
        }
        head.extend(body);
        vec![head]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_run_is_mixed_and_repeatable() {
        let run: Vec<Request> = (0..5_000)
            .map(|number| Mix::Everything.request("x", number))
            .collect();
        assert_eq!(run[4_999], Mix::Everything.request("x", 4_999));
        let methods: BTreeSet<_> = run.iter().map(|request| request.method).collect();
        assert_eq!(methods.len(), METHODS.iter().collect::<BTreeSet<_>>().len());
        let count =
            |what: &dyn Fn(&Request) -> bool| run.iter().filter(|request| what(request)).count();
        for (what, found) in [
            ("chunked", count(&|request| request.chunked)),
            ("split", count(&|request| request.split)),
            ("fresh", count(&|request| request.fresh)),
            ("close", count(&|request| request.close)),
            (
                "large",
                count(&|request| request.query.contains("bytes=200000")),
            ),
            (
                "slow",
                count(&|request| !request.query.ends_with("delay_ms=0")),
            ),
        ] {
            assert!((20..4_000).contains(&found), "{what}: {found}");
        }
    }

    #[test]
    fn chunks_carry_the_whole_body() {
        let mut request = Request::simple("POST", "/r/x", "a=b");
        (request.body, request.chunked, request.split) = (vec![b'b'; 5_003], true, true);
        let address = "127.0.0.1:80".parse().expect("address");
        let wire = request.wire(address, &["x: y".to_owned()], false);
        assert!(wire[0].starts_with(b"POST /r/x?a=b HTTP/1.1\r\nHost: 127.0.0.1:80\r\n"));
        assert!(
            wire[1].starts_with(b"1388;part=1\r\nbb")
                && wire[1].ends_with(b"3;part=1\r\nbbb\r\n0\r\n\r\n")
        );
    }
}
