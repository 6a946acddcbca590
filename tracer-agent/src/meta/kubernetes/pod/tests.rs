//! Pods of the API and what is made of them.

use super::*;

fn pod(json: serde_json::Value) -> Pod {
    serde_json::from_value(json).expect("a pod")
}

fn owned(kind: &str, name: &str, labels: serde_json::Value) -> Pod {
    pod(serde_json::json!({
        "metadata": {
            "name": "shop-abc", "namespace": "prod", "uid": "u-1", "labels": labels,
            "creationTimestamp": "2026-11-21T05:40:43Z",
            "ownerReferences": [
                {"kind": "Other", "name": "other"},
                {"kind": kind, "name": name, "controller": true},
            ],
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "app"}]},
    }))
}

/// The workload's attributes and the service's name.
#[track_caller]
fn check(pod: &Pod, workload: &[(&str, &str)], service: &str) {
    let facts = PodFacts::new(pod, &Wanted::default());
    let found = facts.attributes.iter().skip(4);
    let found: Vec<_> = found.map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(found, workload);
    assert_eq!(&*facts.service_name, service);
}

#[test]
fn workloads() {
    let none = serde_json::json!({});
    let hash = serde_json::json!({"pod-template-hash": "7d4b9c6f5"});
    // 2026-11-21T05:40Z is minute 29920660.
    for (kind, name, labels, workload, service) in [
        (
            "ReplicaSet",
            "shop-web-7d4b9c6f5",
            &hash,
            &[
                ("k8s.replicaset.name", "shop-web-7d4b9c6f5"),
                ("k8s.deployment.name", "shop-web"),
            ][..],
            "shop-web",
        ),
        // A ReplicaSet without a Deployment, whose name looks like one with.
        (
            "ReplicaSet",
            "shop-web-7d4b9c6f5",
            &none,
            &[("k8s.replicaset.name", "shop-web-7d4b9c6f5")],
            "shop-web-7d4b9c6f5",
        ),
        (
            "ReplicaSet",
            "7d4b9c6f5",
            &hash,
            &[("k8s.replicaset.name", "7d4b9c6f5")],
            "7d4b9c6f5",
        ),
        (
            "Job",
            "report-29920660",
            &none,
            &[
                ("k8s.job.name", "report-29920660"),
                ("k8s.cronjob.name", "report"),
            ],
            "report",
        ),
        // Made three hours late, and made before its time.
        (
            "Job",
            "report-29920480",
            &none,
            &[
                ("k8s.job.name", "report-29920480"),
                ("k8s.cronjob.name", "report"),
            ],
            "report",
        ),
        (
            "Job",
            "report-29920760",
            &none,
            &[("k8s.job.name", "report-29920760")],
            "report-29920760",
        ),
        // A date.
        (
            "Job",
            "import-20261121",
            &none,
            &[("k8s.job.name", "import-20261121")],
            "import-20261121",
        ),
        ("Job", "once", &none, &[("k8s.job.name", "once")], "once"),
        (
            "StatefulSet",
            "db",
            &none,
            &[("k8s.statefulset.name", "db")],
            "db",
        ),
        (
            "DaemonSet",
            "proxy",
            &none,
            &[("k8s.daemonset.name", "proxy")],
            "proxy",
        ),
        ("Node", "node-1", &none, &[], "shop-abc"),
        ("Rollout", "x", &none, &[], "shop-abc"),
    ] {
        check(&owned(kind, name, labels.clone()), workload, service);
    }
    check(
        &pod(
            serde_json::json!({"metadata": {"name": "alone", "namespace": "n", "uid": "u"}, "spec": {"nodeName": "n"}}),
        ),
        &[],
        "alone",
    );
}

#[test]
fn the_order_of_service_names() {
    let labels = serde_json::json!({
        "app.kubernetes.io/instance": "shop-eu", "app.kubernetes.io/name": "shop",
        "app.kubernetes.io/version": "1.2",
    });
    let mut pod = owned("StatefulSet", "db", labels);
    let name = |pod: &Pod| PodFacts::new(pod, &Wanted::default()).service_name;
    let annotation = "resource.opentelemetry.io/service.name";
    pod.metadata
        .annotations
        .insert(annotation.into(), "own".into());
    assert_eq!(&*name(&pod), "own");
    pod.metadata.annotations.clear();
    assert_eq!(&*name(&pod), "shop-eu");
    pod.metadata.labels.remove("app.kubernetes.io/instance");
    assert_eq!(&*name(&pod), "shop");
    let facts = PodFacts::new(&pod, &Wanted::default());
    assert_eq!(facts.service_version.as_deref(), Some("1.2"));
    pod.metadata.labels.clear();
    assert_eq!(&*name(&pod), "db");
    pod.metadata.owner_references.clear();
    assert_eq!(&*name(&pod), "shop-abc");
}

#[test]
fn chosen_labels_and_declared_attributes() {
    let mut pod = owned(
        "StatefulSet",
        "db",
        serde_json::json!({"team": "a", "tier": "b", "secret": "c"}),
    );
    for (key, value) in [
        (
            "resource.opentelemetry.io/deployment.environment.name",
            "prod",
        ),
        ("resource.opentelemetry.io/", "nothing"),
        ("example.com/owner", "me"),
    ] {
        pod.metadata.annotations.insert(key.into(), value.into());
    }
    let wanted = Wanted {
        labels: vec!["t*".into()],
        annotations: vec!["example.com/owner".into()],
    };
    let facts = PodFacts::new(&pod, &wanted);
    let chosen = facts.attributes.iter().skip(5);
    let chosen: Vec<_> = chosen.map(|(key, value)| (&**key, &**value)).collect();
    assert_eq!(
        chosen,
        [
            ("k8s.pod.label.team", "a"),
            ("k8s.pod.label.tier", "b"),
            ("k8s.pod.annotation.example.com/owner", "me"),
        ]
    );
    assert_eq!(
        facts.declared,
        [("deployment.environment.name".into(), "prod".into())]
    );
}

#[test]
fn container_ids_of_every_runtime() {
    let pod = pod(serde_json::json!({
        "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
        "status": {
            "containerStatuses": [
                {"name": "a", "containerID": "containerd://1", "lastState": {"terminated": {"containerID": "containerd://0"}}},
                {"name": "b", "containerID": "cri-o://2"},
                {"name": "c", "lastState": {}},
            ],
            "initContainerStatuses": [{"name": "init", "containerID": "docker://3"}],
            "ephemeralContainerStatuses": [{"name": "debug", "containerID": "4"}, {"name": "x", "containerID": "x://"}],
        },
    }));
    let found: Vec<_> = containers(&pod).collect();
    assert_eq!(found, [("1", "a"), ("0", "a"), ("2", "b"), ("3", "init")]);
    assert_eq!(only_container(&pod), None);
}

#[test]
fn times() {
    for (text, minutes) in [
        ("1970-01-01T00:00:00Z", Some(0)),
        ("2000-02-29T12:34:56Z", Some(15_863_794)),
        ("2026-11-21T05:40:43Z", Some(29_920_660)),
        ("2026-13-21T05:40:43Z", None),
        ("2026-11-21T05:40:43+01:00", None),
        ("1969-12-31T00:00:00Z", None),
        ("nonsense", None),
        ("", None),
    ] {
        assert_eq!(unix_minutes(text), minutes, "{text}");
    }
}
