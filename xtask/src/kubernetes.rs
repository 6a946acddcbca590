//! `cargo xtask kubernetes`: a real kube-apiserver takes our manifests and tells our agent of pods.
//!
//! Starts etcd and kube-apiserver with authorization by RBAC, applies what the chart renders, gives the
//! chart's service account a token, and runs `tests/tests/kubernetes.rs` with it. There are no nodes: what
//! a kubelet would make of the DaemonSet is not tested here.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::child::Guard;
use crate::{http, setup, sh};

const NAMESPACE: &str = "tracer";
/// On a busy machine.
const START: Duration = Duration::from_secs(180);
const ADMIN: &str = "token-of-the-test-itself";

/// Runs all of it.
pub fn kubernetes() -> Result<()> {
    let [apiserver, etcd, helm] = setup::for_kubernetes()?;
    let files = tempfile::tempdir().context("cannot make a directory")?;
    let at = |name: &str| files.path().join(name);
    sh::output(
        Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ])
            .args(["-subj", "/CN=accounts", "-keyout"])
            .arg(at("accounts.key"))
            .arg("-out")
            .arg(at("accounts.crt")),
    )?;
    fs::write(
        at("tokens.csv"),
        format!("{ADMIN},admin,1,\"system:masters\"\n"),
    )?;

    let [client, peer, secure] = [http::free_port()?, http::free_port()?, http::free_port()?];
    let local = |port: u16| format!("http://127.0.0.1:{port}");
    let log = |name: &str| fs::File::create(at(name)).context("cannot make a log");
    let mut etcd = Guard::start(
        Command::new(etcd)
            .arg("--data-dir")
            .arg(at("etcd"))
            .args(["--listen-client-urls", &local(client)])
            .args(["--advertise-client-urls", &local(client)])
            .args(["--listen-peer-urls", &local(peer), "--unsafe-no-fsync"])
            .stdout(log("etcd.out")?)
            .stderr(log("etcd.log")?),
    )?;
    let mut api_process = Guard::start(
        Command::new(apiserver)
            .args(["--etcd-servers", &local(client)])
            .args([
                "--bind-address",
                "127.0.0.1",
                "--secure-port",
                &secure.to_string(),
            ])
            .arg("--cert-dir")
            .arg(at("certificates"))
            .args(["--service-cluster-ip-range", "10.96.0.0/16"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .arg("--service-account-signing-key-file")
            .arg(at("accounts.key"))
            .arg("--service-account-key-file")
            .arg(at("accounts.crt"))
            .args(["--authorization-mode", "RBAC", "--token-auth-file"])
            .arg(at("tokens.csv"))
            // Pods of the tests name their own node and no account; there is no controller to make one.
            .args(["--disable-admission-plugins", "ServiceAccount"])
            .stdout(log("api.out")?)
            .stderr(log("api.log")?),
    )?;
    let api = Api {
        url: format!("https://127.0.0.1:{secure}"),
        authority: at("certificates").join("apiserver.crt"),
    };
    let deadline = Instant::now() + START;
    while !api.is_ready() {
        if Instant::now() > deadline || api_process.ended().is_some() || etcd.ended().is_some() {
            let log = fs::read_to_string(at("api.log")).unwrap_or_default();
            bail!(
                "kube-apiserver does not start: {}",
                log.lines().last().unwrap_or_default()
            );
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    eprintln!("kubernetes: {}", api.version()?);

    apply_all(&api, &helm)?;
    let token = api.token()?;
    for (name, text) in [
        ("url", api.url.as_str()),
        ("agent-token", &token),
        ("admin-token", ADMIN),
    ] {
        fs::write(at(name), text)?;
    }
    fs::copy(&api.authority, at("ca.crt")).context("cannot copy the certificate")?;
    let tested = sh::run(
        sh::cargo()
            .args(["test", "-p", "tracer-tests", "--test", "kubernetes"])
            .env("TRACER_TESTS_REQUIRED", "1")
            .env("TRACER_KUBE_APISERVER", files.path()),
    );
    api_process.stop()?;
    etcd.stop()?;
    tested
}

/// Applies every object of the chart, with all its features, and of the plain manifests.
fn apply_all(api: &Api, helm: &Path) -> Result<()> {
    api.apply(&serde_json::json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
    }))?;
    let chart = sh::root().join("deploy/helm/tracer-agent");
    let set = "kubernetes.peers=true,spool.hostPath=/var/lib/tracer-agent,otlp.headersSecret.name=backend";
    let rendered = sh::output(
        Command::new(helm)
            .args(["template", "tracer-agent"])
            .arg(chart)
            .args([
                "--namespace",
                NAMESPACE,
                "--kube-version",
                "1.34",
                "--set",
                set,
            ]),
    )?;
    let plain = fs::read_to_string(sh::root().join("deploy/kubernetes/tracer-agent.yaml"))?;
    for (what, text) in [("the chart", rendered), ("the plain manifests", plain)] {
        let objects = objects(&text)?;
        for object in &objects {
            api.apply(object)?;
        }
        eprintln!(
            "kubernetes: applied the {} objects of {what}",
            objects.len()
        );
    }
    Ok(())
}

/// The documents of a YAML text.
fn objects(text: &str) -> Result<Vec<Value>> {
    let script = "import json,sys,yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), text)?;
    let python = setup::venv_bin().join("python");
    ensure!(
        python.exists(),
        "there is no {}: run `cargo xtask setup --tests`",
        python.display()
    );
    let json = sh::output(Command::new(python).args(["-c", script]).arg(file.path()))?;
    serde_json::from_str(&json).context("python printed no JSON")
}

struct Api {
    url: String,
    authority: std::path::PathBuf,
}

impl Api {
    fn ask(&self, method: &str, path: &str, kind: &str, body: Option<&Value>) -> Result<Value> {
        let mut command = Command::new("curl");
        command
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
            .args(["--header", &format!("Authorization: Bearer {ADMIN}")])
            .args(["--header", &format!("Content-Type: {kind}")]);
        if let Some(body) = body {
            command.args(["--data", &body.to_string()]);
        }
        let text = sh::output(command.arg(format!("{}{path}", self.url)))?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn is_ready(&self) -> bool {
        let answer = self.ask("GET", "/readyz", "application/json", None);
        answer.is_ok_and(|answer| answer == Value::String("ok".into()))
    }

    fn version(&self) -> Result<String> {
        let answer = self.ask("GET", "/version", "application/json", None)?;
        Ok(format!("kube-apiserver {}", answer["gitVersion"]))
    }

    /// Server-side apply, which refuses unknown and repeated fields.
    fn apply(&self, object: &Value) -> Result<()> {
        let text = |path: &str| {
            object
                .pointer(path)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        let version = text("/apiVersion");
        let root = match version {
            "v1" => "/api/v1".to_owned(),
            _ => format!("/apis/{version}"),
        };
        let plural = match kind {
            "PriorityClass" => "priorityclasses".to_owned(),
            _ => format!("{}s", kind.to_lowercase()),
        };
        let namespaced = matches!(kind, "ServiceAccount" | "ConfigMap" | "DaemonSet");
        let place = match namespaced {
            true => format!("{root}/namespaces/{}/{plural}", text("/metadata/namespace")),
            false => format!("{root}/{plural}"),
        };
        let path = format!("{place}/{name}?fieldManager=xtask&fieldValidation=Strict&force=true");
        let answer = self.ask("PATCH", &path, "application/apply-patch+yaml", Some(object))?;
        ensure!(
            answer["kind"] == kind,
            "{kind} {name} was refused: {}",
            answer["message"]
        );
        Ok(())
    }

    fn token(&self) -> Result<String> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/tracer-agent/token");
        let request = serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let answer = self.ask("POST", &path, "application/json", Some(&request))?;
        let token = answer.pointer("/status/token").and_then(Value::as_str);
        token
            .map(str::to_owned)
            .with_context(|| format!("no token: {answer}"))
    }
}
