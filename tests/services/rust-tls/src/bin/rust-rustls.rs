//! HTTPS on rustls.

use std::sync::Arc;

use hyper_rustls::HttpsConnectorBuilder;
use rust_tls::{Failure, ask_all, serve};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio_rustls::TlsAcceptor;

/// Takes every certificate: the test's own is nobody's.
#[derive(Debug)]
struct Any(CryptoProvider);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

async fn server(certificate: &str, key: &str) -> Result<(), Failure> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    serve(move |stream| {
        let acceptor = acceptor.clone();
        async move { Ok(acceptor.accept(stream).await?) }
    })
    .await
}

async fn client(words: &[String]) -> Result<(), Failure> {
    let config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any(ring::default_provider())))
        .with_no_client_auth();
    ask_all(words, || {
        HttpsConnectorBuilder::new()
            .with_tls_config(config.clone())
            .https_only()
            .enable_all_versions()
            .build()
    })
    .await
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let _ = ring::default_provider().install_default();
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words[..] {
        [what, certificate, key] if what == "server" => server(certificate, key).await,
        [what, rest @ ..] if what == "client" => client(rest).await,
        _ => Err("server CERTIFICATE KEY, or client".into()),
    }
}
