//! What the Kubernetes API says about the processes of this node.
//!
//! In: the API server's list and watch of this node's pods (field selector `spec.nodeName`), and, where
//! the user switches that on, of all services and endpoints. Out: a [`Store`] that answers from memory:
//! a container id or a pod id to names, an address to a peer. It cannot see containers that the
//! kubelet does not run, and it never asks the API on behalf of a span: a server that is down or slow
//! costs nothing but names.
//!
//! Written on the HTTP client that exports use already, not on the `kube` crate: that is 64 more crates
//! for two kinds of requests, among them generated types of the whole API and two query languages.

pub mod access;
mod kubeconfig;
pub mod model;
pub mod peers;
pub mod pod;
mod splitter;
pub mod store;
mod watch;

use std::sync::Arc;
use std::time::Duration;

pub use access::Access;
pub use peers::Peer;
pub use pod::{ContainerFacts, PodFacts, Wanted};
pub use store::{Store, StoreCounts};
pub use watch::Sink;

use tokio::task::JoinSet;
use watch::{Backoff, Watch, encoded};

/// When the API is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// In a pod with a service account.
    #[default]
    Auto,
    /// As `Auto`, or with the kubeconfig of `KUBECONFIG`; without either it is an error in the log.
    On,
    /// Never.
    Off,
}

/// What is asked of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether at all.
    pub mode: Mode,
    /// This node's name.
    pub node_name: Option<String>,
    /// Labels and annotations that become attributes.
    pub wanted: Wanted,
    /// Whether addresses of peers are resolved.
    pub peers: bool,
    /// How long spans of a container wait for its pod at most.
    pub wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            mode: Mode::Auto,
            node_name: None,
            wanted: Wanted::default(),
            peers: false,
            wait: Duration::from_secs(3),
        }
    }
}

/// The running watches; they end when this is dropped.
#[derive(Debug)]
pub struct Kubernetes {
    store: Arc<Store>,
    _tasks: JoinSet<()>,
}

impl Kubernetes {
    /// Starts the watches, if there is an API to ask: `None` costs nothing. Says in the log why not,
    /// where that may surprise.
    pub fn start(settings: &Settings, env: &dyn Fn(&str) -> Option<String>) -> Option<Kubernetes> {
        let asked = match settings.mode {
            Mode::Off => return None,
            Mode::Auto => false,
            Mode::On => true,
        };
        let Some(access) = Access::find(env, asked) else {
            if asked {
                tracing::warn!(
                    "kubernetes.metadata is on, but there is neither a service account nor a KUBECONFIG: no names of pods"
                );
            }
            return None;
        };
        let Some(node) = settings.node_name.as_deref() else {
            tracing::warn!(
                "the name of this node is not known, so its pods cannot be asked for; set TRACER_NODE_NAME from spec.nodeName (downward API)"
            );
            return None;
        };
        Some(Self::watching(access, node, settings, Backoff::default()))
    }

    fn watching(access: Access, node: &str, settings: &Settings, backoff: Backoff) -> Kubernetes {
        let store = Arc::new(Store::default());
        let mut tasks = JoinSet::new();
        let pods = store::PodSink::new(Arc::clone(&store), settings.wanted.clone(), settings.peers);
        let pods = Watch {
            access: access.clone(),
            path: "/api/v1/pods",
            selector: format!("&fieldSelector=spec.nodeName%3D{}", encoded(node)),
            sink: pods,
            store: Arc::clone(&store),
            backoff,
            failing: false,
        };
        tasks.spawn(pods.run::<model::Pod>());
        if settings.peers {
            let services = Watch {
                access: access.clone(),
                path: "/api/v1/services",
                selector: String::new(),
                sink: store::ServiceSink::new(Arc::clone(&store)),
                store: Arc::clone(&store),
                backoff,
                failing: false,
            };
            tasks.spawn(services.run::<model::Service>());
            let endpoints = Watch {
                access,
                path: "/apis/discovery.k8s.io/v1/endpointslices",
                selector: String::new(),
                sink: store::EndpointSink::new(Arc::clone(&store)),
                store: Arc::clone(&store),
                backoff,
                failing: false,
            };
            tasks.spawn(endpoints.run::<model::EndpointSlice>());
        }
        tracing::info!(%node, peers = settings.peers, "asking the Kubernetes api for the pods of this node");
        Kubernetes {
            store,
            _tasks: tasks,
        }
    }

    /// Where the answers are.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

#[cfg(test)]
mod tests;
