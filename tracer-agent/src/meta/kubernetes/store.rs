//! The pods of this node, and who has which address: written by the watches, read by the thread that
//! makes spans.
//!
//! Lookups take a lock that writers hold for one object at a time. What was known stays known while the
//! API is away: a pod is only taken out when the API says that it is gone.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::{FxHashMap, FxHashSet};

use super::model::{EndpointSlice, Pod, Service};
use super::peers::{Peer, Peers};
use super::pod::{self, ContainerFacts, PodFacts, Wanted};
use super::watch::Sink;

/// Pods of one node; Kubernetes itself recommends no more than 110.
const MAX_PODS: usize = 4096;
/// What a static pod's processes have for a pod id in their cgroup; its object in the API has another.
const STATIC_ID: &str = "kubernetes.io/config.hash";

/// See the module's text.
#[derive(Debug, Default)]
pub struct Store {
    generation: AtomicU64,
    pods: Mutex<Pods>,
    peers: Mutex<Peers>,
    counts: Counters,
}

/// What the watches counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Watches that stand at the moment.
    pub(super) watching: AtomicU64,
    /// Watches that are wanted.
    pub(super) wanted: AtomicU64,
    /// Lists taken from the API.
    pub(super) lists: AtomicU64,
    /// Changes that the API told.
    pub(super) events: AtomicU64,
    /// Times the API refused, broke off or could not be reached.
    pub(super) failures: AtomicU64,
    /// Objects that could not be read.
    pub(super) malformed: AtomicU64,
    /// Objects left out because there are too many.
    pub(super) left_out: AtomicU64,
}

/// The store at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Watches that stand.
    pub watching: u64,
    /// Watches that are wanted.
    pub wanted: u64,
    /// Pods known.
    pub pods: u64,
    /// Containers known by their ids.
    pub containers: u64,
    /// Addresses of peers known.
    pub addresses: u64,
    /// Lists taken from the API.
    pub lists: u64,
    /// Changes told.
    pub events: u64,
    /// Failures of the API.
    pub failures: u64,
    /// Objects that could not be read.
    pub malformed: u64,
    /// Objects left out for want of room.
    pub left_out: u64,
}

#[derive(Debug, Default)]
struct Pods {
    by_uid: FxHashMap<Box<str>, PodEntry>,
    /// Containers by id.
    containers: FxHashMap<Box<str>, Arc<ContainerFacts>>,
    /// Static pods: the id in their cgroups to that in the API.
    static_ids: FxHashMap<Box<str>, Box<str>>,
}

#[derive(Debug)]
struct PodEntry {
    /// For containers whose id is not known yet.
    unnamed: Arc<ContainerFacts>,
    ids: Vec<(Box<str>, Box<str>)>,
    static_id: Option<Box<str>>,
    addresses: Vec<IpAddr>,
}

impl Store {
    /// Changes whenever an answer of [`Store::container`] may have.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What is known of a container by its id, else of its pod by the pod's id.
    pub fn container(
        &self,
        id: Option<&str>,
        pod_uid: Option<&str>,
    ) -> Option<Arc<ContainerFacts>> {
        let pods = lock(&self.pods);
        if let Some(found) = id.and_then(|id| pods.containers.get(id)) {
            return Some(Arc::clone(found));
        }
        let uid = pod_uid?;
        let uid = pods.static_ids.get(uid).map_or(uid, |uid| uid);
        let entry = pods.by_uid.get(uid)?;
        Some(Arc::clone(&entry.unnamed))
    }

    /// Who listens at an address; `None` also when that is not certain.
    pub fn server(&self, address: SocketAddr) -> Option<Arc<Peer>> {
        lock(&self.peers).server(address)
    }

    /// Which pod of this node has an address for itself.
    pub fn client(&self, ip: IpAddr) -> Option<Arc<Peer>> {
        lock(&self.peers).client(ip)
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counts
    }

    /// The store now.
    pub fn counts(&self) -> StoreCounts {
        let Counters {
            watching,
            wanted,
            lists,
            events,
            failures,
            malformed,
            left_out,
        } = &self.counts;
        let (pods, containers) = {
            let pods = lock(&self.pods);
            (pods.by_uid.len(), pods.containers.len())
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreCounts {
            watching: read(watching),
            wanted: read(wanted),
            pods: pods as u64,
            containers: containers as u64,
            addresses: lock(&self.peers).addresses() as u64,
            lists: read(lists),
            events: read(events),
            failures: read(failures),
            malformed: read(malformed),
            left_out: read(left_out),
        }
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn put_pod(&self, pod: &Pod, wanted: &Wanted, with_addresses: bool) {
        let uid = &pod.metadata.uid;
        if uid.is_empty() {
            self.counts.malformed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let addresses: Vec<IpAddr> = match pod.spec.host_network || !with_addresses {
            true => Vec::new(),
            false => pod
                .status
                .pod_ips
                .iter()
                .filter_map(|ip| ip.ip.parse().ok())
                .collect(),
        };
        let ids: Vec<(Box<str>, Box<str>)> = pod::containers(pod)
            .map(|(id, name)| (id.into(), name.into()))
            .collect();
        let static_id = pod.metadata.annotations.get(STATIC_ID).cloned();
        let mut facts = Arc::new(PodFacts::new(pod, wanted));
        let only = pod::only_container(pod);
        let mut pods = lock(&self.pods);
        if let Some(known) = pods.by_uid.get(uid) {
            if *known.unnamed.pod == *facts {
                facts = Arc::clone(&known.unnamed.pod);
            }
            // Kubelets tell every few seconds that all is as it was.
            let same = Arc::ptr_eq(&facts, &known.unnamed.pod)
                && known.ids == ids
                && known.static_id == static_id
                && known.addresses == addresses
                && known.unnamed.name.as_deref() == only;
            if same {
                return;
            }
        } else if pods.by_uid.len() >= MAX_PODS {
            self.counts.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let peer = Arc::new(Peer::pod(&facts.namespace, &facts.name));
        pods.remove(uid);
        let container = |name: Option<&str>| {
            Arc::new(ContainerFacts {
                pod: Arc::clone(&facts),
                name: name.map(Into::into),
            })
        };
        for (id, name) in &ids {
            pods.containers.insert(id.clone(), container(Some(name)));
        }
        if let Some(id) = &static_id {
            pods.static_ids.insert(id.clone(), uid.clone());
        }
        let entry = PodEntry {
            unnamed: container(only),
            ids,
            static_id,
            addresses: addresses.clone(),
        };
        pods.by_uid.insert(uid.clone(), entry);
        drop(pods);
        if with_addresses {
            lock(&self.peers).put_pod(uid, &addresses, &peer);
        }
        self.changed();
    }

    fn remove_pod(&self, uid: &str) {
        if lock(&self.pods).remove(uid) {
            lock(&self.peers).remove_pod(uid);
            self.changed();
        }
    }

    fn pod_ids(&self) -> Vec<Box<str>> {
        lock(&self.pods).by_uid.keys().cloned().collect()
    }
}

impl Pods {
    fn remove(&mut self, uid: &str) -> bool {
        let Some(entry) = self.by_uid.remove(uid) else {
            return false;
        };
        for (id, _) in &entry.ids {
            self.containers.remove(id);
        }
        if let Some(id) = &entry.static_id {
            self.static_ids.remove(id);
        }
        true
    }
}

/// Puts pods into the store.
#[derive(Debug)]
pub struct PodSink {
    store: Arc<Store>,
    wanted: Wanted,
    with_addresses: bool,
    listed: FxHashSet<Box<str>>,
}

impl PodSink {
    /// Keeps the pods' own addresses too if somebody asks for peers.
    pub fn new(store: Arc<Store>, wanted: Wanted, with_addresses: bool) -> Self {
        PodSink {
            store,
            wanted,
            with_addresses,
            listed: FxHashSet::default(),
        }
    }
}

impl Sink<Pod> for PodSink {
    fn list_begins(&mut self) {
        self.listed.clear();
    }

    fn listed(&mut self, pod: Pod) {
        self.listed.insert(pod.metadata.uid.clone());
        self.put(pod);
    }

    fn list_ends(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        for uid in self.store.pod_ids() {
            if !listed.contains(&uid) {
                self.store.remove_pod(&uid);
            }
        }
    }

    fn put(&mut self, pod: Pod) {
        self.store.put_pod(&pod, &self.wanted, self.with_addresses);
    }

    fn remove(&mut self, pod: Pod) {
        self.store.remove_pod(&pod.metadata.uid);
    }
}

/// Puts services into the store.
#[derive(Debug)]
pub struct ServiceSink(pub Arc<Store>, FxHashSet<Box<str>>);

/// Puts endpoints into the store.
#[derive(Debug)]
pub struct EndpointSink(pub Arc<Store>, FxHashSet<Box<str>>);

impl ServiceSink {
    /// Of a store.
    pub fn new(store: Arc<Store>) -> Self {
        ServiceSink(store, FxHashSet::default())
    }
}

impl EndpointSink {
    /// Of a store.
    pub fn new(store: Arc<Store>) -> Self {
        EndpointSink(store, FxHashSet::default())
    }
}

impl Sink<Service> for ServiceSink {
    fn list_begins(&mut self) {
        self.1.clear();
    }

    fn listed(&mut self, service: Service) {
        self.1.insert(service.metadata.uid.clone());
        self.put(service);
    }

    fn list_ends(&mut self) {
        let listed = std::mem::take(&mut self.1);
        lock(&self.0.peers).keep_services(&listed);
    }

    fn put(&mut self, service: Service) {
        let left_out = lock(&self.0.peers).put_service(&service);
        self.0
            .counts
            .left_out
            .fetch_add(left_out, Ordering::Relaxed);
    }

    fn remove(&mut self, service: Service) {
        lock(&self.0.peers).remove(&service.metadata.uid);
    }
}

impl Sink<EndpointSlice> for EndpointSink {
    fn list_begins(&mut self) {
        self.1.clear();
    }

    fn listed(&mut self, slice: EndpointSlice) {
        self.1.insert(slice.metadata.uid.clone());
        self.put(slice);
    }

    fn list_ends(&mut self) {
        let listed = std::mem::take(&mut self.1);
        lock(&self.0.peers).keep_endpoints(&listed);
    }

    fn put(&mut self, slice: EndpointSlice) {
        let left_out = lock(&self.0.peers).put_endpoints(&slice);
        self.0
            .counts
            .left_out
            .fetch_add(left_out, Ordering::Relaxed);
    }

    fn remove(&mut self, slice: EndpointSlice) {
        lock(&self.0.peers).remove(&slice.metadata.uid);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
