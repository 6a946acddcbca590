//! A real OpenTelemetry Collector (tests/services/collector, built from its Go modules).
//!
//! In: OTLP over gRPC and HTTP, plain and with mutual TLS, and Zipkin, each on its own port. Out:
//! the spans as the Collector understood them, from the OTLP/JSON lines it writes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::agent::free_address;
use crate::process;
use crate::services::build;
use crate::span::{Span, from_json_lines};

/// From its start to open ports; a Go program of 40 MB on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(90);

/// A running Collector; ended when dropped.
#[derive(Debug)]
pub struct Collector {
    child: Child,
    /// OTLP over gRPC.
    pub grpc: SocketAddr,
    /// OTLP over HTTP.
    pub http: SocketAddr,
    /// OTLP over gRPC that wants a client certificate; its own is for `localhost`.
    pub mutual_grpc: SocketAddr,
    /// OTLP over HTTP that wants a client certificate.
    pub mutual_http: SocketAddr,
    /// Zipkin.
    pub zipkin: SocketAddr,
    files: TempDir,
}

impl Collector {
    /// Builds it if it is not built yet, and starts it. An error is a reason to skip.
    pub fn start() -> Result<Self, String> {
        let program = build::collector()?;
        let files = TempDir::new().map_err(|error| error.to_string())?;
        certificates(files.path())?;
        let [grpc, http, mutual_grpc, mutual_http, zipkin] = [(); 5].map(|()| free_address());
        let directory = files.path().display();
        let tls = format!(
            "{{cert_file: {directory}/server.pem, key_file: {directory}/server.key, client_ca_file: {directory}/ca.pem}}"
        );
        let config = format!(
            "receivers:\n\
             \x20 otlp/plain: {{protocols: {{grpc: {{endpoint: {grpc}}}, http: {{endpoint: {http}}}}}}}\n\
             \x20 otlp/mutual: {{protocols: {{grpc: {{endpoint: {mutual_grpc}, tls: {tls}}}, http: {{endpoint: {mutual_http}, tls: {tls}}}}}}}\n\
             \x20 zipkin: {{endpoint: {zipkin}}}\n\
             exporters:\n\
             \x20 lines: {{path: {directory}/spans.jsonl}}\n\
             service:\n\
             \x20 telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}\n\
             \x20 pipelines: {{traces: {{receivers: [otlp/plain, otlp/mutual, zipkin], exporters: [lines]}}}}\n"
        );
        let path = files.path().join("config.yaml");
        std::fs::write(&path, config).map_err(|error| error.to_string())?;
        let log = std::fs::File::create(files.path().join("log"));
        let child = Command::new(program)
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.map_err(|error| error.to_string())?)
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut collector = Self {
            child,
            grpc,
            http,
            mutual_grpc,
            mutual_http,
            zipkin,
            files,
        };
        let listens = process::poll_until(START_LIMIT, || {
            if !matches!(collector.child.try_wait(), Ok(None)) {
                return Some(false);
            }
            let all = [grpc, http, mutual_grpc, mutual_http, zipkin];
            all.iter()
                .all(|address| std::net::TcpStream::connect(address).is_ok())
                .then_some(true)
        });
        match listens {
            Some(true) => Ok(collector),
            Some(false) | None => {
                let log = std::fs::read_to_string(collector.file("log")).unwrap_or_default();
                panic!("the collector does not listen\n{log}")
            }
        }
    }

    /// One of `ca.pem`, `client.pem`, `client.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Everything it took so far.
    pub fn spans(&self) -> Vec<Span> {
        let text = std::fs::read_to_string(self.file("spans.jsonl")).unwrap_or_default();
        // The last line may be on its way.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        from_json_lines(whole).expect("OTLP/JSON lines of the collector")
    }

    /// What mentions `marker`, once there are `count` of it.
    pub fn wait_for(&self, marker: &str, count: usize, limit: Duration) -> Vec<Span> {
        let mut found = Vec::new();
        process::poll_until(limit, || {
            std::thread::sleep(Duration::from_millis(50));
            found = self.spans();
            found.retain(|span| span.mentions(marker));
            (found.len() >= count).then_some(())
        });
        found
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}

/// An authority, a server certificate for `localhost` and a client certificate, as PEM files.
fn certificates(directory: &Path) -> Result<(), String> {
    let make = || -> Result<(), rcgen::Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let write = |name: &str, text: String| {
            std::fs::write(directory.join(name), text).expect("write a certificate");
        };
        write("ca.pem", issuer.pem());
        for (file, name) in [("server", "localhost"), ("client", "client")] {
            let key = KeyPair::generate()?;
            let params = CertificateParams::new(vec![name.to_owned()])?;
            write(
                &format!("{file}.pem"),
                params.signed_by(&key, &issuer)?.pem(),
            );
            write(&format!("{file}.key"), key.serialize_pem());
        }
        Ok(())
    };
    make().map_err(|error| error.to_string())
}
