//! The store as the watches fill it.

use super::*;

fn pod(uid: &str, name: &str, containers: &[(&str, &str)]) -> Pod {
    let spec: Vec<_> = containers
        .iter()
        .map(|(name, _)| serde_json::json!({"name": name}))
        .collect();
    let status: Vec<_> = containers
        .iter()
        .filter(|(_, id)| !id.is_empty())
        .map(|(name, id)| serde_json::json!({"name": name, "containerID": format!("containerd://{id}")}))
        .collect();
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "namespace": "prod", "uid": uid},
        "spec": {"nodeName": "node-1", "containers": spec},
        "status": {"containerStatuses": status, "podIPs": [{"ip": "10.1.0.7"}]},
    }))
    .expect("a pod")
}

fn names(found: Option<Arc<ContainerFacts>>) -> Option<(String, Option<String>)> {
    let found = found?;
    Some((
        found.pod.name.to_string(),
        found.name.as_deref().map(str::to_owned),
    ))
}

fn some(pod: &str, container: Option<&str>) -> Option<(String, Option<String>)> {
    Some((pod.to_owned(), container.map(str::to_owned)))
}

#[test]
fn a_pod_from_its_creation_to_its_end() {
    let store = Arc::new(Store::default());
    let mut sink = PodSink::new(Arc::clone(&store), Wanted::default(), true);
    assert_eq!(names(store.container(Some("c1"), Some("u1"))), None);
    // Scheduled: its containers have no ids yet, and there are two of them.
    sink.put(pod("u1", "shop", &[("app", ""), ("proxy", "")]));
    let generation = store.generation();
    assert_eq!(
        names(store.container(Some("c1"), Some("u1"))),
        some("shop", None)
    );
    assert_eq!(names(store.container(Some("c1"), None)), None);
    // One of them started.
    sink.put(pod("u1", "shop", &[("app", "c1"), ("proxy", "")]));
    assert!(store.generation() > generation);
    assert_eq!(
        names(store.container(Some("c1"), None)),
        some("shop", Some("app"))
    );
    assert_eq!(
        names(store.container(Some("c2"), Some("u1"))),
        some("shop", None)
    );
    // The same again is no change.
    let generation = store.generation();
    sink.put(pod("u1", "shop", &[("app", "c1"), ("proxy", "")]));
    assert_eq!(store.generation(), generation);
    assert!(store.client("10.1.0.7".parse().expect("ip")).is_some());
    sink.remove(pod("u1", "shop", &[]));
    assert_eq!(names(store.container(Some("c1"), Some("u1"))), None);
    assert!(store.client("10.1.0.7".parse().expect("ip")).is_none());
    assert_eq!(store.counts().containers, 0);
}

#[test]
fn the_only_container_needs_no_id() {
    let store = Arc::new(Store::default());
    let mut sink = PodSink::new(Arc::clone(&store), Wanted::default(), false);
    sink.put(pod("u1", "shop", &[("app", "")]));
    assert_eq!(
        names(store.container(Some("c1"), Some("u1"))),
        some("shop", Some("app"))
    );
    assert!(store.client("10.1.0.7".parse().expect("ip")).is_none());
}

#[test]
fn a_static_pod_is_found_by_the_id_of_its_file() {
    let store = Arc::new(Store::default());
    let mut sink = PodSink::new(Arc::clone(&store), Wanted::default(), false);
    let mut mirror = pod("u1", "kube-proxy-node-1", &[("a", ""), ("b", "")]);
    let annotations = &mut mirror.metadata.annotations;
    annotations.insert(STATIC_ID.into(), "0123456789abcdef0123456789abcdef".into());
    sink.put(mirror);
    let found = store.container(Some("c9"), Some("0123456789abcdef0123456789abcdef"));
    assert_eq!(names(found), some("kube-proxy-node-1", None));
}

#[test]
fn a_list_says_what_is_gone() {
    let store = Arc::new(Store::default());
    let mut sink = PodSink::new(Arc::clone(&store), Wanted::default(), false);
    sink.put(pod("u1", "old", &[("a", "c1")]));
    sink.put(pod("u2", "stays", &[("a", "c2")]));
    sink.list_begins();
    sink.listed(pod("u2", "stays", &[("a", "c2")]));
    sink.listed(pod("u3", "new", &[("a", "c3")]));
    assert!(
        store.container(Some("c1"), None).is_some(),
        "until the list is whole"
    );
    sink.list_ends();
    assert!(store.container(Some("c1"), None).is_none());
    assert!(store.container(Some("c2"), None).is_some());
    assert!(store.container(Some("c3"), None).is_some());
}

#[test]
fn the_number_of_pods_is_bounded() {
    let store = Arc::new(Store::default());
    let mut sink = PodSink::new(Arc::clone(&store), Wanted::default(), false);
    for n in 0..MAX_PODS + 3 {
        sink.put(pod(&format!("u{n}"), "x", &[]));
    }
    let counts = store.counts();
    assert_eq!((counts.pods, counts.left_out), (MAX_PODS as u64, 3));
}
