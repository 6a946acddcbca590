//! Which files say whom to trust and who we are.

use std::path::PathBuf;

use super::{Problem, SettingsError};

/// PEM files. Without an authority the system's are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// The only authorities to trust.
    pub authority: Option<TlsFile>,
    /// The client's certificate chain.
    pub certificate: Option<TlsFile>,
    /// The client's private key; there exactly if the certificate is.
    pub key: Option<TlsFile>,
}

/// A file and the variable that named it, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFile {
    /// As the user wrote it.
    pub variable: String,
    /// Where it is.
    pub path: PathBuf,
}

impl TlsFile {
    pub(super) fn wrong(&self, problem: Problem) -> SettingsError {
        SettingsError {
            variable: self.variable.clone(),
            problem,
        }
    }
}
