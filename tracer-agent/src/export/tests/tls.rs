//! TLS to a collector: own authority, client certificates, and what is said about bad files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::collector::Collector;
use super::*;
use crate::export::{ExportPipeline, ExportSettings};
use crate::telemetry::ledger::Ledger;

/// An authority, and a directory with `ca.pem`, `client.pem` and `client.key` of its making.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("authority");
        let authority = Self {
            issuer,
            directory: tempfile::tempdir().expect("directory"),
        };
        let (certificate, key) = authority.sign("client");
        authority.write("ca.pem", &authority.issuer.pem());
        authority.write("client.pem", &certificate.pem());
        authority.write("client.key", &key.serialize_pem());
        authority.write(
            "other.key",
            &KeyPair::generate().expect("key").serialize_pem(),
        );
        authority.write("empty.pem", "");
        authority.write("text.pem", "not a certificate\n");
        authority.write(
            "torn.pem",
            "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
        );
        authority
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("key");
        let names = vec![name.to_owned()];
        let params = CertificateParams::new(names).expect("params");
        (params.signed_by(&key, &self.issuer).expect("signed"), key)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("write");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A server for `localhost`; with `mutual` it wants a client certificate of this authority.
    fn acceptor(&self, protocol: &str, mutual: bool) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = if mutual {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).expect("root");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().expect("verifier"))
        } else {
            builder.with_no_client_auth()
        };
        let (certificate, key) = self.sign("localhost");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
        let mut config = builder
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("server");
        let alpn: &[u8] = if protocol == "grpc" {
            b"h2"
        } else {
            b"http/1.1"
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Ends TLS in front of a plain collector; the port.
async fn terminate(acceptor: TlsAcceptor, collector: &Collector) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    let behind = collector.address;
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut outer) = acceptor.accept(connection).await {
                    let mut inner = TcpStream::connect(behind).await.expect("connect");
                    let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
                }
            });
        }
    });
    port
}

fn settings(variables: &[(&str, String)]) -> ExportSettings {
    let lookup = |name: &str| {
        let set = variables.iter().find(|(known, _)| *known == name);
        set.map(|(_, value)| value.clone())
    };
    ExportSettings::from_variables(&lookup, None).expect("settings")
}

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const PROTOCOL: &str = "OTEL_EXPORTER_OTLP_PROTOCOL";
const CA: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE";
const KEY: &str = "OTEL_EXPORTER_OTLP_CLIENT_KEY";

/// Ten spans over `protocol`; how many arrived.
async fn exported(
    authority: &Authority,
    protocol: &str,
    mutual: bool,
    files: &[(&'static str, &str)],
) -> usize {
    let collector = if protocol == "grpc" {
        Collector::grpc(&[]).await
    } else {
        Collector::http(&[]).await
    };
    let port = terminate(authority.acceptor(protocol, mutual), &collector).await;
    let mut variables = vec![
        (ENDPOINT, format!("https://localhost:{port}")),
        (PROTOCOL, protocol.to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY", "1".to_owned()),
        ("OTEL_BSP_EXPORT_TIMEOUT", "1000".to_owned()),
    ];
    let path = |name: &str| authority.path(name).display().to_string();
    variables.extend(files.iter().map(|(name, file)| (*name, path(file))));
    let settings = settings(&variables);
    let exporters =
        crate::export::exporters(&settings, || unreachable!("no console")).expect("exporters");
    let ledger = Arc::new(Ledger::default());
    let pipeline = ExportPipeline::start(settings.queue, exporters, Arc::clone(&ledger));
    pipeline.sink().submit(spans(10));
    pipeline
        .drain(Instant::now() + Duration::from_secs(20))
        .await;
    let counted = ledger.spans.snapshot();
    assert_eq!(counted.pending, 0);
    let received: usize = collector.received().iter().map(|one| one.spans()).sum();
    assert_eq!(counted.exported, received as u64, "{protocol}");
    received
}

#[tokio::test]
async fn own_authority_and_client_certificate_over_every_protocol() {
    let authority = Authority::new();
    let stranger = Authority::new();
    for protocol in ["grpc", "http/protobuf", "http/json"] {
        let trusted = (CA, "ca.pem");
        let identity = [trusted, (CERTIFICATE, "client.pem"), (KEY, "client.key")];
        assert_eq!(
            exported(&authority, protocol, false, &[trusted]).await,
            10,
            "{protocol}: own authority"
        );
        assert_eq!(
            exported(&authority, protocol, true, &identity).await,
            10,
            "{protocol}: mutual"
        );
        assert_eq!(
            exported(&authority, protocol, true, &[trusted]).await,
            0,
            "{protocol}: mutual, without a client certificate"
        );
        let unknown = stranger.path("ca.pem");
        std::fs::copy(unknown, authority.path("stranger.pem")).expect("copy");
        assert_eq!(
            exported(&authority, protocol, false, &[(CA, "stranger.pem")]).await,
            0,
            "{protocol}: another authority"
        );
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_one_line() {
    let authority = Authority::new();
    #[track_caller]
    fn check(authority: &Authority, files: &[(&'static str, &str)], expected: &str) {
        let path = |name: &str| authority.path(name).display().to_string();
        for protocol in ["grpc", "http/protobuf"] {
            let mut variables = vec![
                (ENDPOINT, "https://localhost:1".to_owned()),
                (PROTOCOL, protocol.to_owned()),
            ];
            variables.extend(files.iter().map(|(name, file)| (*name, path(file))));
            let result =
                crate::export::exporters(&settings(&variables), || unreachable!("no console"));
            let error = anyhow::Error::from(result.err().expect("must be refused"));
            let directory = authority.directory.path();
            let error = format!("{error:#}").replace(&display(directory), "DIR");
            assert_eq!(error, expected);
        }
    }
    fn display(path: &Path) -> String {
        path.display().to_string()
    }
    check(
        &authority,
        &[(CA, "nowhere.pem")],
        "OTEL_EXPORTER_OTLP_CERTIFICATE: cannot read DIR/nowhere.pem: No such file or directory (os error 2)",
    );
    for file in ["empty.pem", "text.pem"] {
        check(
            &authority,
            &[(CA, file)],
            &format!("OTEL_EXPORTER_OTLP_CERTIFICATE: DIR/{file} holds no certificate in PEM form"),
        );
    }
    check(
        &authority,
        &[(CA, "torn.pem")],
        "OTEL_EXPORTER_OTLP_CERTIFICATE: DIR/torn.pem holds no usable certificate: not PEM",
    );
    check(
        &authority,
        &[(CA, "ca.pem"), (CERTIFICATE, "client.pem"), (KEY, "ca.pem")],
        "OTEL_EXPORTER_OTLP_CLIENT_KEY: DIR/ca.pem holds no private key in PEM form",
    );
    check(
        &authority,
        &[
            (CA, "ca.pem"),
            (CERTIFICATE, "client.pem"),
            (KEY, "other.key"),
        ],
        "OTEL_EXPORTER_OTLP_CLIENT_KEY: DIR/other.key does not fit the certificate: keys may not be consistent: KeyMismatch",
    );
}

#[tokio::test]
async fn files_of_a_plain_endpoint_are_not_read() {
    let variables = [
        (ENDPOINT, "http://localhost:1".to_owned()),
        (CA, "/nowhere".to_owned()),
    ];
    let exporters = crate::export::exporters(&settings(&variables), || unreachable!("no console"));
    assert_eq!(exporters.expect("exporters").len(), 1);
}
