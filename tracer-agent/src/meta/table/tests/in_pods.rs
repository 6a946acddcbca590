//! Processes in containers, with a Kubernetes that tells of them sooner or later.

use super::*;
use crate::meta::kubernetes::model::Pod;
use crate::meta::kubernetes::store::PodSink;
use crate::meta::kubernetes::{Sink as _, Store, Wanted};

const ID: &str = "8c1d0f4c7a1b2e3d4f5061728394a5b6c7d8e9f00112233445566778899aabbc";
const UID: &str = "2b1a7d1c-5e35-4c35-8b9c-0d7f7f4a5a11";

struct Node {
    fake: Fake,
    store: Arc<Store>,
    sink: PodSink,
    table: ProcessTable,
}

impl Node {
    fn new() -> Self {
        let fake = Fake::new();
        let store = Arc::new(Store::default());
        let options = Options {
            pods: Some(Arc::clone(&store)),
            pod_wait_ns: S,
            ..Options::default()
        };
        Node {
            sink: PodSink::new(Arc::clone(&store), Wanted::default(), false),
            table: ProcessTable::new(ProcFs::new(fake.root.path()), options),
            store,
            fake,
        }
    }

    fn process(&self, pid: u32, cgroup: &str, environ: &str) {
        self.fake.process(
            pid,
            1,
            100 + u64::from(pid),
            "/usr/bin/app",
            "app\0",
            environ,
        );
        self.fake.file(&format!("{pid}/cgroup"), cgroup);
    }

    fn put(&mut self, status: &str) {
        let pod: Pod = serde_json::from_str(&format!(
            r#"{{"metadata": {{"name": "shop-1", "namespace": "prod", "uid": "{UID}",
                 "ownerReferences": [{{"kind": "StatefulSet", "name": "shop", "controller": true}}]}},
                "spec": {{"nodeName": "n", "containers": [{{"name": "app"}}, {{"name": "proxy"}}]}},
                "status": {{"containerStatuses": [{status}]}}}}"#
        ))
        .expect("a pod");
        self.sink.put(pod);
    }
}

fn text<'a>(process: &'a Process, key: &str) -> Option<&'a str> {
    let found = process.attributes.iter().find(|(name, _)| name == key);
    match found {
        Some((_, AttributeValue::Str(text))) => Some(text),
        _ => None,
    }
}

fn in_pod() -> String {
    format!("0::/kubepods/pod{UID}/{ID}\n")
}

/// Scenario: requests while the pod, then its container, becomes known.
/// Guarantee: spans wait, and then name both; the process stays the same instance.
#[test]
fn a_pod_that_is_told_late() {
    let mut node = Node::new();
    node.process(7, &in_pod(), "");
    let first = node.table.get_at(7, S);
    assert_eq!(&*first.service_name, "app");
    assert_eq!(text(&first, "container.id"), Some(ID));
    assert_eq!(node.table.settle(&first, S), Settled::Waits);
    // Scheduled: which of the two containers it is, is not known yet.
    node.put("");
    let second = node.table.get_at(7, S + 1);
    assert_eq!(&*second.service_name, "shop");
    assert_eq!(text(&second, "k8s.container.name"), None);
    assert_eq!(node.table.settle(&second, S + 1), Settled::Waits);
    assert_eq!(node.table.settle(&first, S + 1), Settled::Waits);
    // Started.
    node.put(&format!(
        r#"{{"name": "app", "containerID": "containerd://{ID}"}}"#
    ));
    let Settled::Renewed(third) = node.table.settle(&first, S + 2) else {
        panic!("not renewed");
    };
    assert_eq!(
        node.table.settle(&second, S + 2),
        Settled::Renewed(Arc::clone(&third))
    );
    assert_eq!(node.table.settle(&third, S + 2), Settled::Same);
    assert_eq!(text(&third, "k8s.container.name"), Some("app"));
    assert_eq!(text(&third, "k8s.statefulset.name"), Some("shop"));
    assert_eq!(text(&third, "service.namespace"), Some("prod"));
    assert_eq!(
        text(&third, "service.instance.id"),
        text(&first, "service.instance.id")
    );
    assert!(Arc::ptr_eq(&third, &node.table.get_at(7, S + 3)));
    assert_eq!(
        node.table.pod_counts(),
        PodCounts {
            known: 0,
            awaited: 1,
            given_up: 0
        }
    );
}

/// Scenario: nobody ever tells of the container. Guarantee: its first spans wait for the given time,
/// later ones and those of its other processes do not; what is told later is taken.
#[test]
fn a_pod_that_nobody_knows() {
    let mut node = Node::new();
    node.process(7, &in_pod(), "");
    node.process(8, &in_pod(), "");
    let process = node.table.get_at(7, S);
    assert_eq!(node.table.settle(&process, S), Settled::Waits);
    assert_eq!(node.table.settle(&process, 2 * S - 1), Settled::Waits);
    assert_eq!(node.table.settle(&process, 2 * S), Settled::Same);
    let other = node.table.get_at(8, 2 * S);
    assert_eq!(node.table.settle(&other, 2 * S), Settled::Same);
    assert_eq!(node.table.pod_counts().given_up, 1);
    node.put(&format!(
        r#"{{"name": "app", "containerID": "containerd://{ID}"}}"#
    ));
    assert_eq!(&*node.table.get_at(8, 3 * S).service_name, "shop");
    // A shutdown waits for nothing.
    node.process(
        9,
        &format!("0::/kubepods/pod{UID}/{}\n", ID.replace('8', "9")),
        "",
    );
    let last = node.table.get_at(9, 3 * S);
    assert_eq!(node.table.settle(&last, u64::MAX), Settled::Same);
}

/// Scenario: processes that Kubernetes cannot know. Guarantee: nobody waits for them.
#[test]
fn what_is_in_no_pod_does_not_wait() {
    let mut node = Node::new();
    node.process(7, "0::/system.slice/nginx.service\n", "");
    node.process(8, &format!("0::/system.slice/docker-{ID}.scope\n"), "");
    for pid in [7, 8] {
        let process = node.table.get_at(pid, S);
        assert_eq!(node.table.settle(&process, S), Settled::Same, "{pid}");
    }
    let unknown = node.table.get_at(99, S);
    assert_eq!(node.table.settle(&unknown, S), Settled::Same);
}

/// Scenario: a pod that is known, and goes. Guarantee: its processes keep its names; what they declare
/// themselves wins.
#[test]
fn what_was_known_stays() {
    let mut node = Node::new();
    node.put(&format!(
        r#"{{"name": "app", "containerID": "cri-o://{ID}"}}"#
    ));
    node.process(
        7,
        &in_pod(),
        "OTEL_SERVICE_NAME=own\0OTEL_RESOURCE_ATTRIBUTES=service.namespace=mine,k8s.pod.name=x\0",
    );
    let process = node.table.get_at(7, S);
    assert_eq!(&*process.service_name, "own");
    assert_eq!(text(&process, "service.namespace"), Some("mine"));
    assert_eq!(text(&process, "k8s.pod.name"), Some("x"));
    assert_eq!(text(&process, "k8s.namespace.name"), Some("prod"));
    assert_eq!(node.table.settle(&process, S), Settled::Same);
    assert_eq!(node.table.pod_counts().known, 1);
    let generation = node.store.generation();
    node.sink.list_begins();
    node.sink.list_ends();
    assert!(node.store.generation() > generation);
    assert!(Arc::ptr_eq(&process, &node.table.get_at(7, S)));
}
