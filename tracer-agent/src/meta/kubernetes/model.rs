//! The few fields of the API's objects that are read. Everything else in them is passed over.
//!
//! All of them may be absent: bookmarks are objects with metadata alone, and what the API server
//! does not say is left out, never guessed. Source: the OpenAPI specification of Kubernetes, core/v1
//! and discovery.k8s.io/v1.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Go writes empty lists as `null`.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Labels or annotations.
pub type Texts = BTreeMap<Box<str>, Box<str>>;

/// What every object has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Unique in its namespace.
    pub name: Box<str>,
    /// Absent for objects of the whole cluster.
    pub namespace: Box<str>,
    /// Unique for ever.
    pub uid: Box<str>,
    /// The state of the cluster in which the object got its contents.
    pub resource_version: Box<str>,
    /// RFC 3339.
    pub creation_timestamp: Option<Box<str>>,
    /// Chosen by users.
    #[serde(deserialize_with = "null_is_empty")]
    pub labels: Texts,
    /// Chosen by users and by parts of Kubernetes.
    #[serde(deserialize_with = "null_is_empty")]
    pub annotations: Texts,
    /// Who made it.
    #[serde(deserialize_with = "null_is_empty")]
    pub owner_references: Vec<OwnerReference>,
}

/// One owner of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct OwnerReference {
    /// `ReplicaSet`, `Job`, ...
    pub kind: Box<str>,
    /// Its name, in the same namespace.
    pub name: Box<str>,
    /// The one that manages the object; at most one says so.
    pub controller: bool,
}

/// A kind of object that is watched.
pub trait Object: for<'de> Deserialize<'de> + Send {
    /// What every object has.
    fn metadata(&self) -> &Metadata;
}

/// core/v1 Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Names, labels, owners.
    pub metadata: Metadata,
    /// What was asked for.
    pub spec: PodSpec,
    /// What came of it.
    pub status: PodStatus,
}

/// What a pod should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Where it runs.
    pub node_name: Box<str>,
    /// It has the node's addresses.
    pub host_network: bool,
    /// Its containers.
    #[serde(deserialize_with = "null_is_empty")]
    pub containers: Vec<Named>,
    /// Those that run before, and sidecars.
    #[serde(deserialize_with = "null_is_empty")]
    pub init_containers: Vec<Named>,
    /// Those added for debugging.
    #[serde(deserialize_with = "null_is_empty")]
    pub ephemeral_containers: Vec<Named>,
}

/// Anything with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Named {
    /// Its name.
    pub name: Box<str>,
}

/// What a pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Its addresses.
    #[serde(rename = "podIPs")]
    #[serde(deserialize_with = "null_is_empty")]
    pub pod_ips: Vec<PodIp>,
    /// Of the containers.
    #[serde(deserialize_with = "null_is_empty")]
    pub container_statuses: Vec<ContainerStatus>,
    /// Of those that run before.
    #[serde(deserialize_with = "null_is_empty")]
    pub init_container_statuses: Vec<ContainerStatus>,
    /// Of those added for debugging.
    #[serde(deserialize_with = "null_is_empty")]
    pub ephemeral_container_statuses: Vec<ContainerStatus>,
}

/// One address of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// IPv4 or IPv6.
    pub ip: Box<str>,
}

/// What became of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Its name in the pod.
    pub name: Box<str>,
    /// `containerd://ID`, `cri-o://ID`, `docker://ID`.
    #[serde(rename = "containerID")]
    pub container_id: Option<Box<str>>,
    /// What it was before it was started again.
    pub last_state: State,
}

/// State of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct State {
    /// It ended.
    pub terminated: Option<Terminated>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Terminated {
    /// Which.
    #[serde(rename = "containerID")]
    pub container_id: Option<Box<str>>,
}

/// core/v1 Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Names.
    pub metadata: Metadata,
    /// What was asked for.
    pub spec: ServiceSpec,
    /// What came of it.
    pub status: ServiceStatus,
}

/// Addresses of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// Inside of the cluster; `None` as text for headless ones.
    #[serde(rename = "clusterIPs")]
    #[serde(deserialize_with = "null_is_empty")]
    pub cluster_ips: Vec<Box<str>>,
    /// Addresses of others that lead to it.
    #[serde(rename = "externalIPs")]
    #[serde(deserialize_with = "null_is_empty")]
    pub external_ips: Vec<Box<str>>,
    /// Its ports.
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<Port>,
}

/// A port of a service or of endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Port {
    /// Its number; endpoints may leave it out.
    pub port: Option<u16>,
    /// `TCP` when absent.
    pub protocol: Option<Box<str>>,
}

impl Port {
    /// The number, of TCP ports.
    pub fn tcp(&self) -> Option<u16> {
        self.port
            .filter(|_| self.protocol.as_deref().is_none_or(|name| name == "TCP"))
    }
}

/// Load balancers of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// Its load balancer.
    pub load_balancer: LoadBalancer,
}

/// A load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LoadBalancer {
    /// Where it listens.
    #[serde(deserialize_with = "null_is_empty")]
    pub ingress: Vec<Ingress>,
}

/// One address of a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Ingress {
    /// Absent if it has a name only.
    pub ip: Option<Box<str>>,
}

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Names; the label `kubernetes.io/service-name` is the service's.
    pub metadata: Metadata,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: Box<str>,
    /// Where the service is served.
    #[serde(deserialize_with = "null_is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// On which ports.
    #[serde(deserialize_with = "null_is_empty")]
    pub ports: Vec<Port>,
}

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// All of them are the same endpoint.
    #[serde(deserialize_with = "null_is_empty")]
    pub addresses: Vec<Box<str>>,
    /// What it is.
    pub target_ref: Option<TargetRef>,
}

/// What an endpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    /// `Pod`, mostly.
    pub kind: Box<str>,
    /// Its name, in the slice's namespace.
    pub name: Box<str>,
}

/// meta/v1 Status: an error of the API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// As of HTTP.
    pub code: u16,
    /// For people.
    pub message: Box<str>,
}

/// What is left of a list without its items.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct List {
    /// Of the list.
    pub metadata: ListMetadata,
}

/// What a list says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMetadata {
    /// From where to watch.
    pub resource_version: Box<str>,
    /// There is more.
    #[serde(rename = "continue")]
    pub more: Box<str>,
}

/// The kind of a watch event, before its object is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct EventKind {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK`, `ERROR`.
    #[serde(rename = "type")]
    pub kind: Box<str>,
}

/// A watch event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Event<T> {
    /// What it is about.
    pub object: T,
}

impl Object for Pod {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl Object for Service {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl Object for EndpointSlice {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}
