//! A real kube-apiserver, started by `cargo xtask kubernetes`, asked with curl.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

/// How to reach it. The token of the tests may do everything; the agent's is a service account's.
#[derive(Debug)]
pub struct Real {
    /// `https://HOST:PORT`.
    pub url: String,
    /// File with the authority that signed its certificate.
    pub authority: PathBuf,
    /// The agent's token.
    pub token: String,
    admin: String,
}

impl Real {
    /// `TRACER_KUBE_APISERVER` is a directory with the files `url`, `ca.crt`, `agent-token` and
    /// `admin-token`.
    pub fn from_environment() -> Option<Self> {
        let directory = PathBuf::from(std::env::var_os("TRACER_KUBE_APISERVER")?);
        let read = |name: &str| {
            let text = std::fs::read_to_string(directory.join(name));
            text.unwrap_or_else(|error| panic!("{name}: {error}"))
                .trim()
                .to_owned()
        };
        Some(Real {
            url: read("url"),
            authority: directory.join("ca.crt"),
            token: read("agent-token"),
            admin: read("admin-token"),
        })
    }

    /// Makes an object; one that is there already stays.
    pub fn create(&self, path: &str, object: &Value) {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("uid");
        }
        self.ask("POST", path, "application/json", &object);
    }

    /// Makes a pod, or changes it; its status is written as a kubelet does. Its uid is the server's.
    pub fn put_pod(&self, pod: &Value) {
        let pods = "/api/v1/namespaces/tracer/pods";
        let name = pod["metadata"]["name"].as_str().expect("a name");
        let mut made = pod.clone();
        for container in made["spec"]["containers"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            container["image"] = json!("none");
        }
        self.create(pods, &made);
        let status = json!({"status": pod["status"]});
        let path = format!("{pods}/{name}/status");
        let answer = self.ask("PATCH", &path, "application/merge-patch+json", &status);
        assert_eq!(answer["kind"], "Pod", "{answer}");
    }

    fn ask(&self, method: &str, path: &str, kind: &str, body: &Value) -> Value {
        let output = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--max-time",
                "60",
                "--request",
                method,
            ])
            .arg("--cacert")
            .arg(&self.authority)
            .args(["--header", &format!("Authorization: Bearer {}", self.admin)])
            .args(["--header", &format!("Content-Type: {kind}")])
            .args(["--data", &body.to_string()])
            .arg(format!("{}{path}", self.url))
            .output()
            .expect("run curl");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{method} {path}: {error}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}
