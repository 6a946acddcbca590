//! Two network namespaces with a cable between them, which stand for two hosts.

use std::process::Command;

use crate::process;

/// Gone when dropped.
#[derive(Debug)]
pub struct TwoHosts {
    names: [String; 2],
}

impl TwoHosts {
    /// Their addresses.
    pub const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

    /// Makes them; the reason if this machine cannot.
    pub fn make() -> Result<Self, String> {
        let pid = std::process::id();
        let hosts = TwoHosts {
            names: [format!("tracer-a-{pid}"), format!("tracer-b-{pid}")],
        };
        let [a, b] = &hosts.names;
        let ip = |line: &str| process::run(Command::new("ip").args(line.split(' ')));
        ip(&format!("netns add {a}"))?;
        ip(&format!("netns add {b}"))?;
        ip(&format!(
            "link add eth0 netns {a} type veth peer name eth0 netns {b}"
        ))?;
        for (name, address) in hosts.names.iter().zip(Self::ADDRESSES) {
            ip(&format!("-n {name} addr add {address}/24 dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
        }
        Ok(hosts)
    }

    /// A command on one of them: what it runs are its first arguments.
    pub fn command(&self, host: usize) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.names[host]));
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        for name in &self.names {
            // One that could not be made cannot be deleted.
            let _ = process::run(Command::new("ip").args(["netns", "del", name]));
        }
    }
}
