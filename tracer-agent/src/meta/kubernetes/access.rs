//! How the API server is reached: from inside of a cluster by the service account, else by a kubeconfig.
//!
//! In: environment variables and files. Out: a client for one connection's life. Files are read anew for
//! every client, and the token for every request: both are replaced while the agent runs.
//! It cannot use kubeconfigs that get their credentials from another program.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::kubeconfig;
use crate::causes::chain;
use crate::export::USER_AGENT as AGENT;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, HeaderValue, USER_AGENT};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Where Kubernetes puts a pod's credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Longer than any token, certificate or kubeconfig.
const FILE_MAX: u64 = 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that vanished is found out within a minute.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Why the API server cannot be asked. Never holds a credential.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file that cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file or a value that is not what it should be.
    #[error("{what}: {why}")]
    Bad {
        /// Where it is.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up tls")]
    Tls(#[from] rustls::Error),
}

pub(super) fn bad(what: impl Into<String>, why: impl Into<String>) -> AccessError {
    AccessError::Bad {
        what: what.into(),
        why: why.into(),
    }
}

/// Where the credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// A pod's service account.
    InCluster {
        /// `https://HOST:PORT`.
        server: String,
        /// Directory with `token` and `ca.crt`.
        account: PathBuf,
    },
    /// A file as kubectl's.
    Kubeconfig(PathBuf),
}

impl Access {
    /// What the environment offers; a kubeconfig only if the user asked for the API, since a shell that
    /// talks to some cluster does not make this host a part of it.
    pub fn find(env: &dyn Fn(&str) -> Option<String>, asked: bool) -> Option<Access> {
        Self::find_at(env, asked, Path::new(SERVICE_ACCOUNT))
    }

    fn find_at(
        env: &dyn Fn(&str) -> Option<String>,
        asked: bool,
        account: &Path,
    ) -> Option<Access> {
        let set = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        if asked && let Some(files) = set("KUBECONFIG") {
            let first = std::env::split_paths(&files).next()?;
            return Some(Access::Kubeconfig(first));
        }
        let host = set("KUBERNETES_SERVICE_HOST")?;
        if !account.join("token").exists() {
            return None;
        }
        let port = set("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
        let server = match host.contains(':') {
            true => format!("https://[{host}]:{port}"),
            false => format!("https://{host}:{port}"),
        };
        Some(Access::InCluster {
            server,
            account: account.to_owned(),
        })
    }

    /// A client with what the files say now.
    pub fn open(&self) -> Result<Api, AccessError> {
        match self {
            Access::InCluster { server, account } => {
                let authority = read(&account.join("ca.crt"))?;
                let token = Token::File(account.join("token"));
                Api::new(server, Some(&authority), None, Some(token))
            }
            Access::Kubeconfig(path) => kubeconfig::open(path),
        }
    }
}

/// A bearer token.
#[derive(Clone, Debug)]
pub(super) enum Token {
    /// In a file that is replaced before the token ends.
    File(PathBuf),
    /// As it is.
    Text(HeaderValue),
}

impl Token {
    fn header(&self) -> Result<HeaderValue, AccessError> {
        match self {
            Token::Text(value) => Ok(value.clone()),
            Token::File(path) => {
                let bytes = read(path)?;
                let text = String::from_utf8_lossy(&bytes);
                bearer(text.trim()).ok_or_else(|| bad(path.display().to_string(), "not a token"))
            }
        }
    }
}

pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The API server, ready to be asked.
#[derive(Debug)]
pub struct Api {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    server: String,
    token: Option<Token>,
}

impl Api {
    pub(super) fn new(
        server: &str,
        authority: Option<&[u8]>,
        identity: Option<(Vec<u8>, Vec<u8>)>,
        token: Option<Token>,
    ) -> Result<Self, AccessError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(3));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls(authority, identity)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Api {
            client: Client::builder(TokioExecutor::new()).build(connector),
            server: server.trim_end_matches('/').to_owned(),
            token,
        })
    }

    /// Asks for a path with its query. The error is one line: transport errors say nothing by themselves.
    pub async fn get(
        &self,
        path: &str,
    ) -> Result<Response<impl BodyExt<Data = Bytes, Error: std::error::Error> + Unpin + Send>, String>
    {
        let mut request = Request::get(format!("{}{path}", self.server))
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, AGENT)
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        if let Some(token) = &self.token {
            let value = token.header().map_err(|error| chain(&error))?;
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let answered = self.client.request(request).await;
        answered.map_err(|error| chain(&error))
    }
}

fn tls(
    authority: Option<&[u8]>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
) -> Result<ClientConfig, AccessError> {
    let mut roots = RootCertStore::empty();
    match authority {
        Some(pem) => {
            for certificate in certificates("the authority's certificate", pem)? {
                roots.add(certificate)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("the client's certificate", &certificate)?;
            // The parser's words may repeat a line of the key.
            let key = PrivateKeyDer::from_pem_slice(&key)
                .map_err(|_| bad("the client's key", "not a private key in PEM form"))?;
            builder.with_client_auth_cert(chain, key)?
        }
    })
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(bad(what, "no certificate in PEM form")),
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, AccessError> {
    use std::io::Read as _;
    let failed = |source| AccessError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_MAX)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_environment_offers() {
        let account = tempfile::tempdir().expect("tempdir");
        let absent = account.path().join("absent");
        std::fs::write(account.path().join("token"), "t").expect("write");
        let in_cluster = |server: &str| {
            Some(Access::InCluster {
                server: server.to_owned(),
                account: account.path().to_owned(),
            })
        };
        let kubeconfig = Some(Access::Kubeconfig("/a/config".into()));
        let host = ("KUBERNETES_SERVICE_HOST", "10.96.0.1");
        let port = ("KUBERNETES_SERVICE_PORT", "6443");
        let file = ("KUBECONFIG", "/a/config:/b/config");
        for (variables, asked, has_account, expected) in [
            (&[][..], true, true, None),
            (
                &[host, port],
                false,
                true,
                in_cluster("https://10.96.0.1:6443"),
            ),
            (&[host], false, true, in_cluster("https://10.96.0.1:443")),
            (&[host, port], true, false, None),
            (
                &[("KUBERNETES_SERVICE_HOST", "fd00::1")],
                false,
                true,
                in_cluster("https://[fd00::1]:443"),
            ),
            // A shell's kubeconfig counts only if the user wants it.
            (&[file], false, true, None),
            (&[file], true, false, kubeconfig.clone()),
            (&[file, host, port], true, true, kubeconfig),
            (
                &[file, host, port],
                false,
                true,
                in_cluster("https://10.96.0.1:6443"),
            ),
            (
                &[("KUBECONFIG", " "), ("KUBERNETES_SERVICE_HOST", "")],
                true,
                true,
                None,
            ),
        ] {
            let env = |name: &str| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let place = if has_account { account.path() } else { &absent };
            assert_eq!(
                Access::find_at(&env, asked, place),
                expected,
                "{variables:?}"
            );
        }
    }

    #[test]
    fn kubeconfigs() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("config");
        let head = "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u, namespace: x}}]\n";
        for (text, expected) in [
            (
                format!(
                    "{head}clusters: [{{name: k, cluster: {{server: 'http://127.0.0.1:1/'}}}}]\nusers: [{{name: u, user: {{token: abc}}}}]\n"
                ),
                None,
            ),
            (
                format!(
                    "{head}clusters: [{{name: k, cluster: {{server: 'http://127.0.0.1:1'}}}}]\n"
                ),
                Some("there is no user `u`"),
            ),
            (
                format!("{head}clusters: []\n"),
                Some("there is no cluster `k`"),
            ),
            ("contexts: []\n".to_owned(), Some("there is no context ``")),
            (
                format!(
                    "{head}clusters: [{{name: k, cluster: {{server: x, certificate-authority-data: '!'}}}}]\nusers: [{{name: u}}]\n"
                ),
                Some("data that is not base64"),
            ),
            ("[]".to_owned(), Some("not a kubeconfig")),
            (
                format!(
                    "{head}clusters: [{{name: k, cluster: {{server: x}}}}]\nusers: [{{name: u, user: {{token: \"a\\nb\"}}}}]\n"
                ),
                Some("a token that is none"),
            ),
        ] {
            std::fs::write(&path, &text).expect("write");
            let opened = Access::Kubeconfig(path.clone()).open();
            match (opened, expected) {
                (Ok(api), None) => assert_eq!(api.server, "http://127.0.0.1:1"),
                (Err(error), Some(expected)) => {
                    assert_eq!(error.to_string(), format!("{}: {expected}", path.display()));
                }
                (opened, expected) => panic!("{text}: {opened:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let token = Token::Text(bearer("very-secret").expect("a value"));
        assert!(!format!("{token:?}").contains("very-secret"));
    }
}
