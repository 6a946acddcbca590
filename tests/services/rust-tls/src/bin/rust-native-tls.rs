//! HTTPS on native-tls, which is OpenSSL on Linux.

use native_tls::{Identity, TlsConnector};
use rust_tls::{Failure, ask_all, serve};
use tokio_native_tls::TlsAcceptor;

async fn server(certificate: &str, key: &str) -> Result<(), Failure> {
    let (certificate, key) = (std::fs::read(certificate)?, std::fs::read(key)?);
    let identity = Identity::from_pkcs8(&certificate, &key)?;
    let acceptor = TlsAcceptor::from(native_tls::TlsAcceptor::new(identity)?);
    serve(move |stream| {
        let acceptor = acceptor.clone();
        async move { Ok(acceptor.accept(stream).await?) }
    })
    .await
}

async fn client(words: &[String]) -> Result<(), Failure> {
    let connector = TlsConnector::builder()
        .danger_accept_invalid_certs(true)
        .build()?;
    ask_all(words, || {
        let mut http = hyper_util::client::legacy::connect::HttpConnector::new();
        http.enforce_http(false);
        hyper_tls::HttpsConnector::from((http, connector.clone().into()))
    })
    .await
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words[..] {
        [what, certificate, key] if what == "server" => server(certificate, key).await,
        [what, rest @ ..] if what == "client" => client(rest).await,
        _ => Err("server CERTIFICATE KEY, or client".into()),
    }
}
