//! A server and a client of it.

use super::{Certificate, Client, Joined, Program, Sent, seen_into_processes};
use crate::agent::Agent;
use crate::services::Service;

/// Two programs.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Asks.
    pub client: Program,
    /// Answers.
    pub server: Program,
}

/// A pair that runs, and whose client waits.
#[derive(Debug)]
pub struct Ready {
    pair: Pair,
    service: Service,
    client: Client,
    tag: String,
}

impl Pair {
    /// Its name, part of its paths.
    pub fn name(self) -> String {
        format!("{:?}-{:?}", self.client, self.server)
    }

    /// How many of their ends have to be joined, where both are seen from their first byte on.
    pub fn joined(self) -> Joined {
        let ends = [self.client.facts().client, self.server.facts().server];
        if ends.contains(&Some(false)) {
            Joined::Any
        } else {
            Joined::Most
        }
    }

    /// Starts both; the reason if this machine cannot.
    pub fn start(self, run: &str, certificate: &Certificate) -> Result<Ready, String> {
        let service = self.server.server(certificate)?;
        let tag = format!("{run}-{}", self.name());
        let client = self.client.client(service.address, &tag)?;
        Ok(Ready {
            pair: self,
            service,
            client,
            tag,
        })
    }
}

impl Ready {
    /// Waits until the agent sees into their libraries, and lets the client go.
    pub fn run(self, agent: &Agent) -> Sent {
        let Self {
            pair,
            service,
            client,
            tag,
        } = self;
        let is_seen = |seen: Option<bool>| seen == Some(true);
        let client_pids = is_seen(pair.client.facts().client).then(|| vec![client.pid()]);
        let server_pids = is_seen(pair.server.facts().server).then(|| service.pids());
        let seen: Vec<u32> = [&client_pids, &server_pids]
            .into_iter()
            .flatten()
            .flatten()
            .copied()
            .collect();
        seen_into_processes(agent, &seen);
        client.finish();
        Sent {
            tag,
            server: service.address,
            client_pids,
            server_pids,
            version: None,
        }
    }
}
