//! One nginx worker that answers everything with two bytes.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::procfs;
use super::tls::Certificate;
use crate::child::Guard;
use crate::{http, sh};

const START: Duration = Duration::from_secs(10);

/// The running server; ended when this is dropped.
#[derive(Debug)]
pub struct Nginx {
    /// Where it listens.
    pub port: u16,
    /// Where it listens for HTTP/2.
    pub http2: u16,
    /// Where it listens with TLS, given a certificate.
    pub https: Option<u16>,
    /// The one worker's process.
    pub worker: u32,
    _master: Guard,
}

impl Nginx {
    /// Starts it with a configuration of its own in `directory`.
    pub fn start(directory: &Path, certificate: Option<&Certificate>) -> Result<Self> {
        let nginx =
            sh::which("nginx").context("there is no nginx: run `cargo xtask setup --tests`")?;
        let (port, http2) = (http::free_port()?, http::free_port()?);
        let https = certificate.map(|_| http::free_port()).transpose()?;
        let tls = https.zip(certificate);
        let config = directory.join("nginx.conf");
        fs::write(&config, configuration(directory, port, http2, tls))
            .with_context(|| format!("cannot write {}", config.display()))?;
        let log = File::create(directory.join("nginx.log")).context("cannot write nginx.log")?;
        let mut command = Command::new(nginx);
        command.arg("-p").arg(directory).arg("-c").arg(&config);
        let mut master = Guard::start(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log),
        )?;
        let deadline = Instant::now() + START;
        loop {
            if let (Ok((200, _)), Some(worker)) =
                (http::get(port, "/status"), procfs::child_of(master.pid()))
            {
                return Ok(Self {
                    port,
                    http2,
                    https,
                    worker,
                    _master: master,
                });
            }
            if master.ended().is_some() || Instant::now() >= deadline {
                bail!(
                    "nginx does not answer; see {}",
                    directory.join("nginx.log").display()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it answers.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Requests it ever served, the one that asks included.
    pub fn requests(&self) -> Result<u64> {
        let (_, text) = http::get(self.port, "/status")?;
        parse_status(&text).with_context(|| format!("nginx's status is odd: {text}"))
    }
}

fn parse_status(text: &str) -> Option<u64> {
    // "server accepts handled requests\n 1 1 1 \n"
    let line = text
        .lines()
        .skip_while(|line| !line.starts_with("server accepts"))
        .nth(1)?;
    line.split_whitespace().nth(2)?.parse().ok()
}

fn configuration(
    directory: &Path,
    port: u16,
    http2: u16,
    tls: Option<(u16, &Certificate)>,
) -> String {
    let at = directory.display();
    let tls = tls.map_or(String::new(), |(port, Certificate { certificate, key })| {
        format!(
            "listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {};",
            certificate.display(),
            key.display()
        )
    });
    // Root's worker may enter a directory below a private one; others may not.
    let user = if crate::sys::is_root() {
        "user root;"
    } else {
        ""
    };
    format!(
        "daemon off;
{user}
worker_processes 1;
pid {at}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {at}/body;
    proxy_temp_path {at}/proxy;
    fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi;
    scgi_temp_path {at}/scgi;
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{http2} http2;
        {tls}
        location = /status {{ stub_status; }}
        location / {{ return 200 \"ok\"; }}
    }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_page_is_read() {
        let text =
            "Active connections: 1 \nserver accepts handled requests\n 11 12 13 \nReading: 0";
        assert_eq!(parse_status(text), Some(13));
        assert_eq!(parse_status("server accepts handled requests"), None);
        assert_eq!(parse_status(""), None);
    }
}
