//! A cluster of one node for the tests: an API server, and pods that are cgroups of this host.

pub mod api;
pub mod cgroup;
pub mod real;

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

pub use api::Scripted;
pub use cgroup::Cgroup;
pub use real::Real;

/// The API of the cluster.
#[derive(Debug)]
pub enum Cluster {
    /// Ours: does what the test says.
    Scripted(Scripted),
    /// A real kube-apiserver.
    Real(Real),
}

impl Cluster {
    /// The real one if the environment names one (`TRACER_KUBE_APISERVER`), else a scripted one.
    pub fn start() -> Self {
        match Real::from_environment() {
            Some(real) => Cluster::Real(real),
            None => Cluster::Scripted(Scripted::start()),
        }
    }

    /// A pod came or changed.
    pub fn put(&self, pod: &Value) {
        match self {
            Cluster::Scripted(api) => api.put("pods", pod),
            Cluster::Real(api) => api.put_pod(pod),
        }
    }

    /// A service at an address of this host. False if this API knows no such addresses: a real one
    /// refuses loopback.
    pub fn put_service(&self, name: &str, address: std::net::SocketAddr) -> bool {
        let Cluster::Scripted(api) = self else {
            return false;
        };
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "tracer", "uid": format!("service-{name}")},
            "spec": {"externalIPs": [address.ip().to_string()], "ports": [{"port": address.port(), "protocol": "TCP"}]},
        });
        api.put("services", &service);
        true
    }

    /// Where it listens. Watches are exchanges that never end: tests that wait for all exchanges to end
    /// leave that port out.
    pub fn port(&self) -> String {
        match self {
            Cluster::Scripted(api) => api.address.port().to_string(),
            Cluster::Real(api) => api.url.rsplit(':').next().unwrap_or_default().to_owned(),
        }
    }

    /// What a client needs to reach it: a directory with the file `config`.
    pub fn kubeconfig(&self) -> (TempDir, PathBuf) {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("config");
        let text = match self {
            Cluster::Scripted(api) => config(&format!("http://{}", api.address), "", "scripted"),
            Cluster::Real(api) => config(
                &api.url,
                &format!("certificate-authority: {}, ", api.authority.display()),
                &api.token,
            ),
        };
        std::fs::write(&path, text).expect("write");
        (directory, path)
    }
}

fn config(server: &str, more: &str, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         contexts: [{{name: test, context: {{cluster: test, user: agent}}}}]\n\
         clusters: [{{name: test, cluster: {{{more}server: '{server}'}}}}]\n\
         users: [{{name: agent, user: {{token: '{token}'}}}}]\n"
    )
}

/// A command whose process is in `cgroup` before it becomes the program: as a container's is.
pub fn contained(cgroup: &Cgroup, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"echo $$ > "$0" || exit 1; exec "$@""#])
        .arg(cgroup.procs())
        .arg(program)
        .args(arguments);
    for variable in ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"] {
        command.env_remove(variable);
    }
    command
}
