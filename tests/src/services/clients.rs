//! Clients of other languages: they send a fixed mix and report as the driver does.

use std::process::Command;

use super::{build, python, source};

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// Go net/http.
    Go,
    /// Node's http.
    Node,
    /// Python's http.client in threads.
    Python,
}

impl Client {
    /// The command that sends `requests` to `address`; the reason if this machine cannot.
    pub fn command(
        self,
        address: std::net::SocketAddr,
        run: &str,
        requests: usize,
    ) -> Result<Command, String> {
        let mut command = match self {
            Self::Go => Command::new(build::go("go-client")?),
            Self::Node => {
                let mut command = Command::new("node");
                command.arg(source("clients/client.js"));
                command
            }
            Self::Python => {
                let mut command = Command::new(python());
                command.arg(source("clients/client.py"));
                command
            }
        };
        command
            .arg(address.to_string())
            .arg(run)
            .arg(requests.to_string());
        Ok(command)
    }
}
