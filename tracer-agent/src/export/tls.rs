//! Connections of the exporters: plain TCP for `http` endpoints, TLS for `https` ones.
//!
//! In: [`TlsSettings`]. Out: a connector that both HTTP clients (ours and tonic's) take. Files are
//! read once, here; what is wrong with one is an error that names its variable. Cryptography is
//! ring's: it builds for static musl targets with a C compiler alone.
//!
//! What it cannot see: whether the server accepts the client's certificate; that is said by the
//! server when a request is made.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use url::Url;

use super::settings::{TlsFile, TlsSettings};

/// Makes the connections of one endpoint.
pub type Connector = HttpsConnector<HttpConnector>;

/// A TCP handshake that takes longer is tried again, even if the whole attempt may take longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which versions of HTTP the client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// HTTP/2 only, as gRPC needs it.
    Http2,
    /// HTTP/1.1, and HTTP/2 if the server offers it by ALPN.
    All,
}

/// TLS that cannot be set up. One line: the variable, the file, what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read.
    #[error("{}: cannot read {}", file.variable, file.path.display())]
    Read {
        /// Which.
        file: TlsFile,
        /// Why.
        source: io::Error,
    },
    /// A file without what is looked for.
    #[error("{}: {} holds no {what} in PEM form", file.variable, file.path.display())]
    Empty {
        /// Which.
        file: TlsFile,
        /// What it should hold.
        what: &'static str,
    },
    /// A file that is not what it should be.
    #[error("{}: {} holds no usable {what}: {why}", file.variable, file.path.display())]
    Bad {
        /// Which.
        file: TlsFile,
        /// What it should hold.
        what: &'static str,
        /// The parser's word.
        why: String,
    },
    /// A key that does not belong to the certificate, or of a kind that cannot be used.
    #[error("{}: {} does not fit the certificate", file.variable, file.path.display())]
    Identity {
        /// The key's file.
        file: TlsFile,
        /// Why.
        source: rustls::Error,
    },
    /// No authority to trust.
    #[error(
        "this host has no certificate authorities to verify an https endpoint with; install ca-certificates or set OTEL_EXPORTER_OTLP_CERTIFICATE"
    )]
    NoAuthorities,
    /// The library's own complaint.
    #[error("cannot set up tls")]
    Setup(#[from] rustls::Error),
}

/// A connector for `endpoint`. Files and system authorities are read for `https` only.
pub fn connector(
    endpoint: &Url,
    settings: &TlsSettings,
    versions: Versions,
) -> Result<Connector, TlsError> {
    let config = if endpoint.scheme() == "https" {
        client_config(settings)?
    } else {
        // Never used: the connector wants one in any case.
        builder()?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth()
    };
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http();
    Ok(match versions {
        Versions::Http2 => builder.enable_http2().wrap_connector(tcp),
        Versions::All => builder.enable_all_versions().wrap_connector(tcp),
    })
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TlsError> {
    // Named here: the process-wide default depends on what else is linked.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}

fn client_config(settings: &TlsSettings) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    match &settings.authority {
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| TlsError::Bad {
                    file: file.clone(),
                    what: "certificate",
                    why: error.to_string(),
                })?;
            }
        }
        None => {
            // Single unreadable ones are usual in system stores.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoAuthorities);
            }
        }
    }
    let builder = builder()?.with_root_certificates(roots);
    match (&settings.certificate, &settings.key) {
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|source| TlsError::Identity {
                file: key.clone(),
                source,
            }),
        (_, _) => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(file: &TlsFile) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    const WHAT: &str = "certificate";
    let text = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| bad(file, WHAT, &error))?;
    if found.is_empty() {
        return Err(TlsError::Empty {
            file: file.clone(),
            what: WHAT,
        });
    }
    Ok(found)
}

fn private_key(file: &TlsFile) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(file)?).map_err(|error| bad(file, "private key", &error))
}

fn bad(file: &TlsFile, what: &'static str, error: &pem::Error) -> TlsError {
    match error {
        pem::Error::NoItemsFound => TlsError::Empty {
            file: file.clone(),
            what,
        },
        // The parser's words may repeat a line of the file, which may be a key.
        _ => TlsError::Bad {
            file: file.clone(),
            what,
            why: "not PEM".to_owned(),
        },
    }
}

fn read(file: &TlsFile) -> Result<Vec<u8>, TlsError> {
    std::fs::read(&file.path).map_err(|source| TlsError::Read {
        file: file.clone(),
        source,
    })
}
