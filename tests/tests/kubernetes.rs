//! Spans carry what the Kubernetes API says of their pods: with the API there from the start, told late,
//! and away. Pods are cgroups of this host, named as containerd, CRI-O and Docker name theirs.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tracer_tests::agent::{Agent, Start};
use tracer_tests::finish::finish;
use tracer_tests::kubernetes::cgroup::hierarchy;
use tracer_tests::kubernetes::{Cgroup, Cluster, Scripted, contained};
use tracer_tests::process;
use tracer_tests::receiver::Receiver;
use tracer_tests::scrape;
use tracer_tests::services::{self, Service};
use tracer_tests::session::Session;
use tracer_tests::span::{Kind, Span};

const LIMIT: Duration = Duration::from_secs(60);

/// Ids that no other run has.
struct Ids {
    run: String,
}

impl Ids {
    fn new(session: &Session) -> Self {
        let hex: String = session
            .run
            .bytes()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ids {
            run: format!("{hex:0>26}").chars().rev().take(26).collect(),
        }
    }

    fn container(&self, number: u8) -> String {
        format!("{:0<62}{number:02x}", self.run)
    }

    fn pod(&self, number: u8) -> String {
        let text = format!("{:0<30}{number:02x}", self.run);
        let part = |from, to| text.get(from..to).unwrap_or_default();
        let parts = [
            part(0, 8),
            part(8, 12),
            part(12, 16),
            part(16, 20),
            part(20, 32),
        ];
        parts.join("-")
    }
}

/// A pod of node-1 with one running container `app` and one that is not there yet.
fn pod(ids: &Ids, number: u8, name: &str, runtime: &str, owner: Value, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "tracer", "uid": ids.pod(number), "labels": labels,
            "annotations": {"example.com/contact": "shop team", "resource.opentelemetry.io/deployment.environment.name": "test"},
            "ownerReferences": [owner],
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "app"}, {"name": "proxy"}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [{
                "name": "app", "containerID": format!("{runtime}://{}", ids.container(number)),
                "ready": true, "restartCount": 0, "image": "none", "imageID": "",
            }],
        },
    })
}

fn owner(kind: &str, name: &str) -> Value {
    let api = if kind == "Job" { "batch/v1" } else { "apps/v1" };
    json!({"apiVersion": api, "kind": kind, "name": name, "uid": "11111111-2222-3333-4444-555555555555", "controller": true})
}

/// cgroup v2, systemd driver, containerd.
fn containerd(ids: &Ids, number: u8) -> Cgroup {
    let uid = ids.pod(number).replace('-', "_");
    let path = format!(
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{uid}.slice/cri-containerd-{}.scope",
        ids.container(number)
    );
    Cgroup::make(&hierarchy("cgroup2").expect("cgroup v2"), &path)
}

/// cgroup v1 where there is one, else v2; cgroupfs driver, CRI-O.
fn crio(ids: &Ids, number: u8) -> Cgroup {
    let place = hierarchy("pids").or_else(|| hierarchy("cgroup2"));
    let path = format!(
        "kubepods/besteffort/pod{}/crio-{}",
        ids.pod(number),
        ids.container(number)
    );
    Cgroup::make(&place.expect("a hierarchy"), &path)
}

fn service(cgroup: &Cgroup) -> Service {
    let program = services::own_binary("tracer-service");
    let command = contained(cgroup, program.to_str().expect("path"), &[]);
    Service::unnamed("in-a-pod", command).expect("the service")
}

/// A client in a pod; it stays after its requests until this is dropped.
struct Client(Child);

impl Client {
    fn start(cgroup: &Cgroup, address: SocketAddr, run: &str, requests: usize) -> Client {
        let program = services::own_binary("tracer-driver");
        let (address, requests) = (address.to_string(), requests.to_string());
        let arguments = [
            "--address",
            &address,
            "--run",
            run,
            "--requests",
            &requests,
            "--mix",
            "simple",
        ];
        let mut command = contained(cgroup, program.to_str().expect("path"), &arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the client");
        let output = child.stdout.take().expect("stdout");
        process::first_line(output, LIMIT).expect("a report");
        Client(child)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        process::end(&mut self.0);
    }
}

fn agent(receiver: &Receiver, cluster: &Cluster, kubeconfig: &Path, wait_ms: u32) -> Start {
    Start::new()
        .export_http(receiver)
        .env("TRACER_EXCLUDE_PORT", cluster.port())
        .env("TRACER_KUBERNETES", "on")
        .env("KUBECONFIG", kubeconfig)
        .env("TRACER_NODE_NAME", "node-1")
        .env("TRACER_KUBERNETES_WAIT_MS", wait_ms.to_string())
        .env("TRACER_KUBERNETES_LABELS", "team")
        .env("TRACER_KUBERNETES_ANNOTATIONS", "example.com/*")
}

fn metric(agent: &Agent, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = scrape::parse(&agent.metrics()).expect("metrics");
    scrape::sum(&samples, &format!("tracer_agent_kubernetes_{name}"), labels)
}

#[track_caller]
fn wait_for_metric(agent: &Agent, name: &str, labels: &[(&str, &str)], at_least: f64) {
    let reached = || (metric(agent, name, labels) >= at_least).then_some(());
    let found = process::poll_until(LIMIT, reached);
    assert!(
        found.is_some(),
        "{name} {labels:?} is not {at_least}: {}",
        agent.stderr()
    );
}

#[track_caller]
fn check(span: &Span, expected: &[(&str, Option<&str>)]) {
    for (key, expected) in expected {
        let found = span.resource.get(*key);
        let found = match found {
            Some(tracer_tests::span::Attribute::Text(text)) => Some(text.as_str()),
            None => None,
            other => panic!("{key}: {other:?}"),
        };
        assert_eq!(found, *expected, "{key} of {span:#?}");
    }
}

fn of(spans: &[Span], kind: Kind, marker: &str) -> Vec<Span> {
    let own = spans
        .iter()
        .filter(|span| span.kind == kind && span.mentions(marker));
    own.cloned().collect()
}

/// Scenario: pods known before their first request; a Deployment's and a CronJob's.
/// Guarantee: every span names its pod, its workload and its service, and the service it called.
#[test]
fn spans_name_their_pods() {
    let Some(session) = Session::begin("kubernetes::spans_name_their_pods") else {
        return;
    };
    let ids = Ids::new(&session);
    let cluster = Cluster::start();
    // The minute of the CronJob's time is now.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let minute = now.expect("a clock").as_secs() / 60;
    let (web, job) = (
        format!("web-{}", session.run),
        format!("report-{minute}-{}", session.run),
    );
    let mut shop = pod(
        &ids,
        1,
        &web,
        "containerd",
        owner("ReplicaSet", "shop-web-7d4b9c6f5"),
        json!({"pod-template-hash": "7d4b9c6f5", "team": "shop", "app.kubernetes.io/version": "1.4.2"}),
    );
    let mut report = pod(
        &ids,
        2,
        &job,
        "cri-o",
        owner("Job", &format!("report-{minute}")),
        json!({}),
    );
    for pod in [&mut shop, &mut report] {
        pod["metadata"]["creationTimestamp"] = json!(rfc3339(minute * 60));
    }
    cluster.put(&shop);
    cluster.put(&report);
    let (cgroup_1, cgroup_2) = (containerd(&ids, 1), crio(&ids, 2));
    // One that is there before the agent, one that comes later.
    let service = service(&cgroup_1);
    let has_service = cluster.put_service("shop-front", service.address);
    let (_files, kubeconfig) = cluster.kubeconfig();
    let receiver = Receiver::start();
    let agent = agent(&receiver, &cluster, &kubeconfig, 3000)
        .env("TRACER_KUBERNETES_PEERS", "true")
        .ready();
    wait_for_metric(&agent, "watches", &[("state", "standing")], 3.0);
    wait_for_metric(&agent, "objects", &[("what", "containers")], 2.0);
    wait_for_metric(&agent, "objects", &[("what", "addresses")], 1.0);
    let client = Client::start(&cgroup_2, service.address, &session.run, 20);
    let (spans, _) = finish(agent, &receiver, &session.run, 40);
    drop(client);
    let servers = of(&spans, Kind::Server, &session.run);
    let clients = of(&spans, Kind::Client, &session.run);
    assert_eq!((servers.len(), clients.len()), (20, 20));
    for span in &servers {
        check(
            span,
            &[
                ("service.name", Some("shop-web")),
                ("service.namespace", Some("tracer")),
                ("service.version", Some("1.4.2")),
                ("container.id", Some(&ids.container(1))),
                ("k8s.namespace.name", Some("tracer")),
                ("k8s.pod.name", Some(&web)),
                ("k8s.node.name", Some("node-1")),
                ("k8s.container.name", Some("app")),
                ("k8s.replicaset.name", Some("shop-web-7d4b9c6f5")),
                ("k8s.deployment.name", Some("shop-web")),
                ("k8s.pod.label.team", Some("shop")),
                ("k8s.pod.label.pod-template-hash", None),
                ("k8s.pod.annotation.example.com/contact", Some("shop team")),
                ("deployment.environment.name", Some("test")),
            ],
        );
        assert!(span.resource.contains_key("k8s.pod.uid"));
    }
    for span in &clients {
        check(
            span,
            &[
                ("service.name", Some("report")),
                ("container.id", Some(&ids.container(2))),
                ("k8s.pod.name", Some(&job)),
                ("k8s.container.name", Some("app")),
                ("k8s.job.name", Some(&format!("report-{minute}"))),
                ("k8s.cronjob.name", Some("report")),
                ("k8s.deployment.name", None),
            ],
        );
        for (key, name) in [
            ("tracer.peer.k8s.service.name", "shop-front"),
            ("tracer.peer.k8s.namespace.name", "tracer"),
        ] {
            assert_eq!(span.text(key), has_service.then_some(name), "{span:#?}");
        }
    }
}

/// Scenario: requests of a container that the API tells later, as that of a pod that was just made.
/// Guarantee: their spans wait for it, and have its names.
#[test]
fn spans_wait_for_a_pod_that_was_just_made() {
    let Some(session) = Session::begin("kubernetes::spans_wait_for_a_pod_that_was_just_made")
    else {
        return;
    };
    let ids = Ids::new(&session);
    let cluster = Cluster::start();
    let (_files, kubeconfig) = cluster.kubeconfig();
    let cgroup = containerd(&ids, 3);
    let service = service(&cgroup);
    let receiver = Receiver::start();
    let agent = agent(&receiver, &cluster, &kubeconfig, 30_000).ready();
    wait_for_metric(&agent, "watches", &[("state", "standing")], 1.0);
    let client = Client::start(&cgroup, service.address, &session.run, 5);
    wait_for_metric(&agent, "waiting_spans", &[], 1.0);
    let name = format!("late-{}", session.run);
    cluster.put(&pod(
        &ids,
        3,
        &name,
        "docker",
        owner("StatefulSet", "late"),
        json!({}),
    ));
    let (spans, _) = finish(agent, &receiver, &session.run, 10);
    drop(client);
    assert_eq!(of(&spans, Kind::Client, &session.run).len(), 5);
    for span in
        of(&spans, Kind::Server, &session.run)
            .iter()
            .chain(&of(&spans, Kind::Client, &session.run))
    {
        check(
            span,
            &[
                ("service.name", Some("late")),
                ("k8s.pod.name", Some(&name)),
                ("k8s.statefulset.name", Some("late")),
            ],
        );
    }
}

/// Scenario: the API is down from the start, and comes back.
/// Guarantee: no span is lost or held for ever; names come with the API.
#[test]
fn spans_go_on_without_the_api() {
    let Some(session) = Session::begin("kubernetes::spans_go_on_without_the_api") else {
        return;
    };
    let ids = Ids::new(&session);
    let api = Scripted::start();
    api.set_down(true);
    let cluster = Cluster::Scripted(api);
    let (_files, kubeconfig) = cluster.kubeconfig();
    let cgroup = containerd(&ids, 4);
    let service = service(&cgroup);
    let receiver = Receiver::start();
    let agent = agent(&receiver, &cluster, &kubeconfig, 500).ready();
    let (before, after) = (
        format!("{}-before", session.run),
        format!("{}-after", session.run),
    );
    let first = Client::start(&cgroup, service.address, &before, 5);
    assert!(
        receiver.wait_count(&before, 10, LIMIT),
        "{}",
        agent.stderr()
    );
    assert!(metric(&agent, "lookups_total", &[("outcome", "given_up")]) >= 1.0);
    let Cluster::Scripted(api) = &cluster else {
        return;
    };
    api.set_down(false);
    let name = format!("back-{}", session.run);
    cluster.put(&pod(
        &ids,
        4,
        &name,
        "containerd",
        owner("DaemonSet", "back"),
        json!({}),
    ));
    wait_for_metric(&agent, "objects", &[("what", "containers")], 1.0);
    let second = Client::start(&cgroup, service.address, &after, 5);
    let (spans, _) = finish(agent, &receiver, &session.run, 20);
    drop((first, second));
    for span in spans.iter().filter(|span| span.mentions(&before)) {
        check(
            span,
            &[
                ("container.id", Some(&ids.container(4))),
                ("k8s.pod.name", None),
            ],
        );
    }
    let named: Vec<_> = spans.iter().filter(|span| span.mentions(&after)).collect();
    assert_eq!(named.len(), 10);
    for span in named {
        check(
            span,
            &[
                ("service.name", Some("back")),
                ("k8s.pod.name", Some(&name)),
            ],
        );
    }
}

fn rfc3339(unix_seconds: u64) -> String {
    let output = std::process::Command::new("date")
        .args([
            "-u",
            "-d",
            &format!("@{unix_seconds}"),
            "+%Y-%m-%dT%H:%M:%SZ",
        ])
        .output()
        .expect("run date");
    let _ = std::io::stderr().write_all(&output.stderr);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
