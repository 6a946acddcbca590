//! The certificate of the tests' servers.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::process;

/// A certificate for localhost with its key, made by the test, and removed with this.
#[derive(Debug)]
pub struct Certificate {
    files: TempDir,
}

impl Certificate {
    /// Makes one; the reason if this machine cannot.
    pub fn new() -> Result<Self, String> {
        let files = TempDir::new().map_err(|error| error.to_string())?;
        let made = Self { files };
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
        process::run(
            Command::new("openssl")
                .args([
                    "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                ])
                .args(["-subj", "/CN=localhost", "-addext", names, "-keyout"])
                .arg(made.key())
                .arg("-out")
                .arg(made.certificate()),
        )?;
        Ok(made)
    }

    /// The certificate, PEM.
    pub fn certificate(&self) -> PathBuf {
        self.files.path().join("certificate.pem")
    }

    /// Its key, PKCS#8 as PEM.
    pub fn key(&self) -> PathBuf {
        self.files.path().join("key.pem")
    }

    /// Both as words of a command.
    pub fn arguments(&self) -> [String; 2] {
        [self.certificate(), self.key()].map(|path| path.display().to_string())
    }
}
