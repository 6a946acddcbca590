//! kubectl's configuration file, as far as it leads to a server.
//!
//! Credentials that another program would have to make are not used: there is no such program beside an
//! agent.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use super::access::{AccessError, Api, Token, bad, bearer, read};

/// Of kubectl's file only what leads to a server.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Kubeconfig {
    #[serde(rename = "current-context")]
    current_context: String,
    contexts: Vec<Entry>,
    clusters: Vec<Entry>,
    users: Vec<Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    name: String,
    context: Context,
    cluster: Cluster,
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
}

/// The API that the current context means.
pub(super) fn open(path: &Path) -> Result<Api, AccessError> {
    let shown = path.display().to_string();
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    // The snippet of a complaint could show a secret.
    let options = serde_saphyr::options! { with_snippet: false };
    let config: Kubeconfig = serde_saphyr::from_str_with_options(&text, options)
        .map_err(|_| bad(&shown, "not a kubeconfig"))?;
    let Kubeconfig {
        current_context,
        contexts,
        clusters,
        users,
    } = config;
    let named = |entries: Vec<Entry>, kind: &str, name: &str| {
        let found = entries.into_iter().find(|entry| entry.name == name);
        found.ok_or_else(|| bad(&shown, format!("there is no {kind} `{name}`")))
    };
    let context = named(contexts, "context", &current_context)?.context;
    let cluster = named(clusters, "cluster", &context.cluster)?.cluster;
    let user = match context.user.is_empty() {
        true => User::default(),
        false => named(users, "user", &context.user)?.user,
    };
    if cluster.server.is_empty() {
        return Err(bad(&shown, "the cluster has no server"));
    }
    // Paths in the file are relative to it.
    let directory = path.parent().unwrap_or(Path::new("."));
    let pem = |data: Option<String>, file: Option<PathBuf>| match (data, file) {
        (Some(data), _) => base64::engine::general_purpose::STANDARD
            .decode(data.trim())
            .map(Some)
            .map_err(|_| bad(&shown, "data that is not base64")),
        (None, Some(file)) => read(&directory.join(file)).map(Some),
        (None, None) => Ok(None),
    };
    let authority = pem(
        cluster.certificate_authority_data,
        cluster.certificate_authority,
    )?;
    let certificate = pem(user.client_certificate_data, user.client_certificate)?;
    let key = pem(user.client_key_data, user.client_key)?;
    let token = match (user.token_file, user.token) {
        (Some(file), _) => Some(Token::File(directory.join(file))),
        (None, Some(token)) => {
            let value = bearer(&token).ok_or_else(|| bad(&shown, "a token that is none"))?;
            Some(Token::Text(value))
        }
        (None, None) => None,
    };
    Api::new(
        &cluster.server,
        authority.as_deref(),
        certificate.zip(key),
        token,
    )
}
