//! The Helm chart and the plain manifests: rendered by helm, valid by the schemas that Kubernetes
//! publishes, with the rights that the documentation states and no others.
//!
//! What it cannot see: what a kubelet and a container runtime make of them.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tracer_tests::agent;
use tracer_tests::services::target_dir;
use tracer_tests::session::skipped;

/// The oldest version that the chart allows, one before fields of AppArmor, and the newest one known.
const VERSIONS: [&str; 3] = ["1.25", "1.29", "1.37"];

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("the workspace").to_owned()
}

/// helm and the validator, or why not.
struct Tools {
    helm: PathBuf,
    python: PathBuf,
}

impl Tools {
    fn find(test: &str) -> Option<Tools> {
        let target = target_dir();
        let tools = Tools {
            helm: target.join("services/helm"),
            python: target.join("venv/bin/python"),
        };
        let has_validator = || {
            let check = ["-c", "import kubernetes_validate"];
            let output = Command::new(&tools.python).args(check).output();
            output.is_ok_and(|output| output.status.success())
        };
        let reason = match (tools.helm.is_file(), has_validator()) {
            (false, _) => "there is no target/services/helm: run `cargo xtask setup --tests`",
            (_, false) => "there is no kubernetes-validate: run `cargo xtask setup --tests`",
            (true, true) => return Some(tools),
        };
        assert!(
            std::env::var_os("TRACER_TESTS_REQUIRED").is_none(),
            "{test}: {reason}"
        );
        skipped(test, reason);
        None
    }

    fn helm(&self, arguments: &[&str]) -> Output {
        let home = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(&self.helm);
        // Nothing of a user's own settings, and no cluster.
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, home.path());
        }
        let command = command.env_remove("KUBECONFIG").args(arguments);
        command.current_dir(root()).output().expect("run helm")
    }

    fn template(&self, version: &str, values: &[&str]) -> String {
        let mut arguments = vec!["template", "tracer-agent", "deploy/helm/tracer-agent"];
        arguments.extend(["--namespace", "tracer-agent", "--kube-version", version]);
        arguments.extend(values);
        let output = self.helm(&arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "helm {arguments:?}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// The documents, if they are valid.
    fn valid(&self, text: &str, versions: &[&str]) -> Vec<Value> {
        let script = root().join("tests/services/kubernetes/validate.py");
        let mut child = Command::new(&self.python)
            .arg(script)
            .args(versions)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run python");
        let mut input = child.stdin.take().expect("stdin");
        let text = text.to_owned();
        let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
        let output = child.wait_with_output().expect("python");
        writer.join().expect("writer").expect("write");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn objects(&self, version: &str, values: &[&str]) -> Vec<Value> {
        self.valid(&self.template(version, values), &[version])
    }
}

#[track_caller]
fn object<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind} in {objects:#?}"))
}

fn kinds(objects: &[Value]) -> BTreeSet<&str> {
    let kinds = objects.iter().filter_map(|object| object["kind"].as_str());
    kinds.collect()
}

fn container(objects: &[Value]) -> &Value {
    &object(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
}

fn variable<'a>(objects: &'a [Value], name: &str) -> Option<&'a Value> {
    let variables = container(objects)["env"].as_array().expect("env");
    variables.iter().find(|variable| variable["name"] == name)
}

const EVERYTHING: &[&str] = &[
    "--set",
    "kubernetes.peers=true,kubernetes.labels={team,app.kubernetes.io/*},kubernetes.annotations={x}",
    "--set",
    "otlp.headersSecret.name=backend,otlp.protocol=grpc,otlp.endpoint=https://collector.observability:4317",
    "--set",
    "clusterName=prod,spool.hostPath=/var/lib/tracer-agent,admin.family=IPv6,hostNetwork=true",
    "--set",
    "extraCapabilities={SYS_ADMIN,BPF},seLinuxOptions.type=spc_t,imagePullSecrets[0].name=pull",
    "--set-json",
    r#"config={"log_level": "debug", "sampling": {"sampler": "traceidratio", "ratio": 0.1}}"#,
    "--set",
    "extraArgs={--ring-size=8MiB},extraEnv[0].name=A,extraEnv[0].value=b,podLabels.team=x,podAnnotations.a=b",
    "--set",
    "extraVolumes[0].name=ca,extraVolumes[0].secret.secretName=ca,extraVolumeMounts[0].name=ca,extraVolumeMounts[0].mountPath=/ca",
    "--set",
    "serviceAccount.annotations.a=b,image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
];

#[test]
fn helm_lint_finds_nothing() {
    let Some(tools) = Tools::find("charts::helm_lint_finds_nothing") else {
        return;
    };
    for values in [&[][..], EVERYTHING] {
        let output =
            tools.helm(&[&["lint", "--strict", "deploy/helm/tracer-agent"], values].concat());
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
    }
}

#[test]
fn every_rendering_is_valid() {
    let Some(tools) = Tools::find("charts::every_rendering_is_valid") else {
        return;
    };
    for version in VERSIONS {
        let objects = tools.objects(version, &[]);
        let all = [
            "ClusterRole",
            "ClusterRoleBinding",
            "ConfigMap",
            "DaemonSet",
            "PriorityClass",
            "ServiceAccount",
        ];
        assert_eq!(kinds(&objects), BTreeSet::from(all));
        // The field came with 1.30, the annotation was for before.
        let security = &container(&objects)["securityContext"];
        let annotations =
            &object(&objects, "DaemonSet")["spec"]["template"]["metadata"]["annotations"];
        let annotation =
            &annotations["container.apparmor.security.beta.kubernetes.io/tracer-agent"];
        match version {
            "1.37" => assert_eq!(
                (&security["appArmorProfile"]["type"], annotation),
                (&json!("Unconfined"), &Value::Null)
            ),
            _ => assert_eq!(
                (&security["appArmorProfile"], annotation),
                (&Value::Null, &json!("unconfined"))
            ),
        }

        let objects = tools.objects(version, EVERYTHING);
        assert_eq!(
            container(&objects)["image"]
                .as_str()
                .map(|image| image.contains("@sha256:")),
            Some(true)
        );
        let value = |name: &str| variable(&objects, name).map(|variable| &variable["value"]);
        assert_eq!(value("TRACER_ADMIN"), Some(&json!("[$(POD_IP)]:9468")));
        assert_eq!(
            value("TRACER_KUBERNETES_LABELS"),
            Some(&json!("team,app.kubernetes.io/*"))
        );
        assert_eq!(value("TRACER_KUBERNETES_PEERS"), Some(&json!("true")));
        assert_eq!(
            value("OTEL_RESOURCE_ATTRIBUTES"),
            Some(&json!("k8s.cluster.name=prod"))
        );
        let headers = variable(&objects, "OTEL_EXPORTER_OTLP_HEADERS").expect("headers");
        assert_eq!(
            headers["valueFrom"]["secretKeyRef"],
            json!({"name": "backend", "key": "headers"})
        );
        // Asked for twice, there once.
        let added = container(&objects)["securityContext"]["capabilities"]["add"]
            .as_array()
            .cloned();
        let added = added.unwrap_or_default();
        assert_eq!(
            added
                .iter()
                .filter(|capability| **capability == "BPF")
                .count(),
            1
        );
        assert!(added.contains(&json!("SYS_ADMIN")));

        let nothing = [
            "--set",
            "kubernetes.metadata=false,serviceAccount.create=false,priorityClass.create=false",
        ];
        let objects = tools.objects(version, &nothing);
        assert_eq!(kinds(&objects), BTreeSet::from(["ConfigMap", "DaemonSet"]));
        let pod = &object(&objects, "DaemonSet")["spec"]["template"]["spec"];
        assert_eq!(pod["automountServiceAccountToken"], json!(false));
        assert_eq!(pod.get("priorityClassName"), None);
    }
}

/// Scenario: nothing set. Guarantee: the rights that the documentation states and no others.
#[test]
fn the_rights_are_the_stated_ones() {
    let Some(tools) = Tools::find("charts::the_rights_are_the_stated_ones") else {
        return;
    };
    let objects = tools.objects("1.37", &[]);
    let pod = &object(&objects, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["hostPID"], json!(true));
    assert_eq!((pod.get("hostNetwork"), pod.get("hostIPC")), (None, None));
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    let security = &container(&objects)["securityContext"];
    for (field, expected) in [
        ("privileged", json!(false)),
        ("allowPrivilegeEscalation", json!(false)),
        ("readOnlyRootFilesystem", json!(true)),
        ("seccompProfile", json!({"type": "RuntimeDefault"})),
    ] {
        assert_eq!(security[field], expected, "{field}");
    }
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    let page = std::fs::read_to_string(root().join("docs/kubernetes.md")).expect("the page");
    for capability in security["capabilities"]["add"].as_array().expect("a list") {
        let name = capability.as_str().expect("a name");
        assert!(
            page.contains(&format!("`{name}`")),
            "{name} is not in docs/kubernetes.md"
        );
    }
    // Every directory of the node is one that is stated, and none can be written.
    for volume in pod["volumes"].as_array().expect("volumes") {
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            assert_eq!(path, "/sys/kernel/tracing");
        }
    }
    for mount in container(&objects)["volumeMounts"]
        .as_array()
        .expect("mounts")
    {
        assert_eq!(mount["readOnly"], json!(true), "{mount}");
    }
    let expected = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]);
    assert_eq!(object(&objects, "ClusterRole")["rules"], expected);
    let with_peers = tools.objects("1.37", &["--set", "kubernetes.peers=true"]);
    for rule in object(&with_peers, "ClusterRole")["rules"]
        .as_array()
        .expect("rules")
    {
        assert_eq!(rule["verbs"], json!(["list", "watch"]));
    }
}

#[test]
fn other_settings_are_other_pods() {
    let Some(tools) = Tools::find("charts::other_settings_are_other_pods") else {
        return;
    };
    let sum = |values: &[&str]| {
        let objects = tools.objects("1.37", values);
        let template = &object(&objects, "DaemonSet")["spec"]["template"];
        template["metadata"]["annotations"]["checksum/config"].clone()
    };
    let changed = ["--set", "config.sampling.keep_errors=true"];
    assert!(sum(&[]).is_string());
    assert_eq!(sum(&[]), sum(&[]));
    assert_ne!(sum(&[]), sum(&changed));
}

#[test]
fn wrong_values_are_refused() {
    let Some(tools) = Tools::find("charts::wrong_values_are_refused") else {
        return;
    };
    for (value, named) in [
        ("image.repositry=x", "repositry"),
        ("capabilities={ALL}", "capabilities"),
        ("admin.port=80", "port"),
        ("otlp.protocol=thrift", "protocol"),
        ("otlp.endpoint=collector:4317", "endpoint"),
        ("config.sampling.ratio=2", "ratio"),
        ("config.log_levle=debug", "log_levle"),
        ("spool.hostPath=relative", "hostPath"),
    ] {
        let chart = [
            "template",
            "x",
            "deploy/helm/tracer-agent",
            "--kube-version",
            "1.37",
        ];
        let output = tools.helm(&[&chart[..], &["--set", value]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(named),
            "{value}: {said}"
        );
    }
}

/// Scenario: settings of the chart. Guarantee: the agent takes the file and the variables made of them.
#[test]
fn the_agent_takes_what_is_rendered() {
    let Some(tools) = Tools::find("charts::the_agent_takes_what_is_rendered") else {
        return;
    };
    let binary = agent::binary();
    if !binary.is_file() {
        skipped(
            "charts::the_agent_takes_what_is_rendered",
            "no agent: run `cargo xtask build`",
        );
        return;
    }
    for values in [&[][..], EVERYTHING] {
        let objects = tools.objects("1.37", values);
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("agent.yaml");
        let text = object(&objects, "ConfigMap")["data"]["agent.yaml"]
            .as_str()
            .expect("a file");
        std::fs::write(&file, text).expect("write");
        let mut command = Command::new(&binary);
        command.args(["config", "print", "--config"]).arg(&file);
        for variable in container(&objects)["env"].as_array().expect("env") {
            let (name, value) = (variable["name"].as_str(), variable["value"].as_str());
            if let (Some(name), Some(value)) = (name, value) {
                let value = value.replace(
                    "$(POD_IP)",
                    if values.is_empty() {
                        "10.0.0.1"
                    } else {
                        "fd00::1"
                    },
                );
                command.env(name, value.replace("$(HOST_IP)", "192.0.2.1"));
            }
        }
        let output = command.output().expect("run the agent");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}\n{text}");
        // Every variable of ours means something to it.
        let reference =
            std::fs::read_to_string(root().join("docs/configuration.md")).expect("read");
        for variable in container(&objects)["env"].as_array().expect("env") {
            let name = variable["name"].as_str().expect("a name");
            assert!(
                !name.starts_with("TRACER_") || reference.contains(name),
                "{name}"
            );
        }
    }
}

/// Scenario: deploy/kubernetes. Guarantee: it is what the chart renders by default.
#[test]
fn the_plain_manifests_are_up_to_date() {
    let Some(tools) = Tools::find("charts::the_plain_manifests_are_up_to_date") else {
        return;
    };
    let rendered = tools.template("1.37", &[]);
    // Helm's own traces are of no use here.
    let rendered: String = rendered
        .lines()
        .filter(|line| !line.contains("helm.sh/chart:"))
        .map(|line| line.replace("managed-by: Helm", "managed-by: kubectl") + "\n")
        .collect();
    let text = format!("{HEAD}{rendered}");
    let path = root().join("deploy/kubernetes/tracer-agent.yaml");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("write");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "deploy/kubernetes/tracer-agent.yaml is not what the chart renders: UPDATE_DOCS=1 cargo test -p tracer-tests --test charts"
    );
    let objects = tools.valid(&found, &["1.30", "1.34", "1.37"]);
    assert!(kinds(&objects).contains("Namespace"));
}

const HEAD: &str = "\
# The tracer-agent as a DaemonSet, without Helm: kubectl apply -f tracer-agent.yaml
# Rendered from deploy/helm/tracer-agent, for Kubernetes 1.30 and later. Before applying it, set the
# image and OTEL_EXPORTER_OTLP_ENDPOINT to yours. See docs/kubernetes.md.
---
apiVersion: v1
kind: Namespace
metadata:
  name: tracer-agent
  labels:
    # hostPID and capabilities are beyond the other levels.
    pod-security.kubernetes.io/enforce: privileged
";
