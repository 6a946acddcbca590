//! Which service or pod has which address.
//!
//! In: services and endpoints of the whole cluster, pods of this node. Out: the name of a peer, where
//! only one thing can be meant. An address that two services share names neither of them. It cannot
//! see pods of other nodes as clients: their addresses may be those of their nodes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::model::{EndpointSlice, Service};

/// Addresses that are kept; about 150 bytes each.
const MAX_CLAIMS: usize = 65_536;
/// Which service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What is at the other end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Of both.
    pub namespace: Box<str>,
    /// The service, if it is one.
    pub service: Option<Box<str>>,
    /// The pod, if it is known which.
    pub pod: Option<Box<str>>,
}

impl Peer {
    /// A pod.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Peer {
            namespace: namespace.into(),
            service: None,
            pod: Some(name.into()),
        }
    }
}

/// Who claims an address.
#[derive(Debug)]
struct Claim {
    owner: Arc<str>,
    peer: Arc<Peer>,
}

/// What an object claimed, for when it goes.
#[derive(Debug)]
struct Claimed {
    is_service: bool,
    addresses: Vec<SocketAddr>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Peers {
    servers: FxHashMap<SocketAddr, Vec<Claim>>,
    claimed: FxHashMap<Arc<str>, Claimed>,
    pods: FxHashMap<IpAddr, Vec<Claim>>,
    pod_addresses: FxHashMap<Box<str>, Vec<IpAddr>>,
    claims: usize,
}

impl Peers {
    /// Addresses known.
    pub fn addresses(&self) -> usize {
        self.servers.len() + self.pods.len()
    }

    /// Who listens there.
    pub fn server(&self, address: SocketAddr) -> Option<Arc<Peer>> {
        agreed(self.servers.get(&address)?)
    }

    /// Whose address it is.
    pub fn client(&self, ip: IpAddr) -> Option<Arc<Peer>> {
        agreed(self.pods.get(&ip)?)
    }

    /// A service came or changed. Returns how many addresses found no room.
    pub fn put_service(&mut self, service: &Service) -> u64 {
        let metadata = &service.metadata;
        let peer = Arc::new(Peer {
            namespace: metadata.namespace.clone(),
            service: Some(metadata.name.clone()),
            pod: None,
        });
        let ingress = &service.status.load_balancer.ingress;
        let ips = service
            .spec
            .cluster_ips
            .iter()
            .chain(&service.spec.external_ips);
        let ips = ips.chain(ingress.iter().filter_map(|ingress| ingress.ip.as_ref()));
        // Headless services have the word None for an address.
        let ips: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
        let ports: Vec<u16> = service
            .spec
            .ports
            .iter()
            .filter_map(|port| port.tcp())
            .collect();
        let addresses = ips.into_iter().map(|ip| (ip, Arc::clone(&peer)));
        self.claim(&metadata.uid, true, addresses, &ports)
    }

    /// Endpoints came or changed. Returns how many addresses found no room.
    pub fn put_endpoints(&mut self, slice: &EndpointSlice) -> u64 {
        let metadata = &slice.metadata;
        let service = metadata.labels.get(SERVICE_NAME);
        let ports: Vec<u16> = slice.ports.iter().filter_map(|port| port.tcp()).collect();
        let addresses = slice.endpoints.iter().flat_map(|endpoint| {
            let target = endpoint.target_ref.as_ref();
            let pod = target.filter(|target| &*target.kind == "Pod");
            let peer = Arc::new(Peer {
                namespace: metadata.namespace.clone(),
                service: service.cloned(),
                pod: pod.map(|pod| pod.name.clone()),
            });
            let ips = endpoint.addresses.iter().filter_map(|ip| ip.parse().ok());
            ips.map(move |ip: IpAddr| (ip, Arc::clone(&peer)))
        });
        self.claim(&metadata.uid, false, addresses, &ports)
    }

    /// A service or endpoints went.
    pub fn remove(&mut self, uid: &str) {
        let Some(Claimed { addresses, .. }) = self.claimed.remove(uid) else {
            return;
        };
        for address in addresses {
            if let Some(claims) = self.servers.get_mut(&address) {
                let before = claims.len();
                claims.retain(|claim| &*claim.owner != uid);
                self.claims -= before - claims.len();
                if claims.is_empty() {
                    self.servers.remove(&address);
                }
            }
        }
    }

    /// These are all the services there are.
    pub fn keep_services(&mut self, uids: &FxHashSet<Box<str>>) {
        self.keep(uids, true);
    }

    /// These are all the slices there are.
    pub fn keep_endpoints(&mut self, uids: &FxHashSet<Box<str>>) {
        self.keep(uids, false);
    }

    /// A pod of this node, with the addresses that are its own.
    pub fn put_pod(&mut self, uid: &str, addresses: &[IpAddr], peer: &Arc<Peer>) {
        self.remove_pod(uid);
        let owner: Arc<str> = uid.into();
        for ip in addresses {
            self.pods.entry(*ip).or_default().push(Claim {
                owner: Arc::clone(&owner),
                peer: Arc::clone(peer),
            });
        }
        self.pod_addresses.insert(uid.into(), addresses.to_vec());
    }

    /// A pod of this node went.
    pub fn remove_pod(&mut self, uid: &str) {
        for ip in self.pod_addresses.remove(uid).unwrap_or_default() {
            if let Some(claims) = self.pods.get_mut(&ip) {
                claims.retain(|claim| &*claim.owner != uid);
                if claims.is_empty() {
                    self.pods.remove(&ip);
                }
            }
        }
    }

    fn keep(&mut self, uids: &FxHashSet<Box<str>>, services: bool) {
        let gone: Vec<Arc<str>> = self
            .claimed
            .iter()
            .filter(|(uid, claimed)| claimed.is_service == services && !uids.contains(&***uid))
            .map(|(uid, _)| Arc::clone(uid))
            .collect();
        gone.iter().for_each(|uid| self.remove(uid));
    }

    fn claim(
        &mut self,
        uid: &str,
        is_service: bool,
        addresses: impl Iterator<Item = (IpAddr, Arc<Peer>)>,
        ports: &[u16],
    ) -> u64 {
        self.remove(uid);
        let owner: Arc<str> = uid.into();
        let mut claimed = Vec::new();
        let mut left_out = 0;
        for (ip, peer) in addresses {
            for port in ports {
                if self.claims >= MAX_CLAIMS {
                    left_out += 1;
                    continue;
                }
                let address = SocketAddr::new(ip, *port);
                self.servers.entry(address).or_default().push(Claim {
                    owner: Arc::clone(&owner),
                    peer: Arc::clone(&peer),
                });
                self.claims += 1;
                claimed.push(address);
            }
        }
        if !claimed.is_empty() {
            let addresses = claimed;
            self.claimed.insert(
                owner,
                Claimed {
                    is_service,
                    addresses,
                },
            );
        }
        left_out
    }
}

/// What all who claim an address agree on.
fn agreed(claims: &[Claim]) -> Option<Arc<Peer>> {
    let (first, others) = claims.split_first()?;
    if others.iter().all(|claim| claim.peer == first.peer) {
        return Some(Arc::clone(&first.peer));
    }
    let all =
        |same: fn(&Peer, &Peer) -> bool| others.iter().all(|claim| same(&claim.peer, &first.peer));
    let service = first.peer.service.clone();
    let pod = first.peer.pod.clone();
    let common = Peer {
        namespace: first.peer.namespace.clone(),
        service: service.filter(|_| all(|a, b| a.service == b.service)),
        pod: pod.filter(|_| all(|a, b| a.pod == b.pod)),
    };
    let same_namespace = all(|a, b| a.namespace == b.namespace);
    (same_namespace && (common.service.is_some() || common.pod.is_some())).then(|| Arc::new(common))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(uid: &str, name: &str, ip: &str, port: u16) -> Service {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "namespace": "prod", "uid": uid},
            "spec": {"clusterIPs": [ip], "ports": [{"port": port}, {"port": 53, "protocol": "UDP"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "x"}]}},
        }))
        .expect("a service")
    }

    fn slice(uid: &str, service: &str, pods: &[(&str, &str)]) -> EndpointSlice {
        let endpoints: Vec<_> = pods
            .iter()
            .map(|(pod, ip)| serde_json::json!({"addresses": [ip], "targetRef": {"kind": "Pod", "name": pod}}))
            .collect();
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": uid, "namespace": "prod", "uid": uid, "labels": {SERVICE_NAME: service}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        }))
        .expect("a slice")
    }

    #[track_caller]
    fn check(peers: &Peers, address: &str, expected: Option<(Option<&str>, Option<&str>)>) {
        let found = peers.server(address.parse().expect("an address"));
        let found = found.as_ref();
        let found = found.map(|peer| (peer.service.as_deref(), peer.pod.as_deref()));
        assert_eq!(found, expected, "{address}");
    }

    #[test]
    fn services_and_endpoints() {
        let mut peers = Peers::default();
        assert_eq!(
            peers.put_service(&service("s1", "shop", "10.96.0.1", 80)),
            0
        );
        peers.put_service(&service("s2", "headless", "None", 80));
        peers.put_endpoints(&slice(
            "e1",
            "shop",
            &[("shop-1", "10.1.0.5"), ("shop-2", "10.1.0.6")],
        ));
        check(&peers, "10.96.0.1:80", Some((Some("shop"), None)));
        check(
            &peers,
            "10.1.0.6:8080",
            Some((Some("shop"), Some("shop-2"))),
        );
        for unknown in [
            "10.96.0.1:53",
            "10.96.0.1:81",
            "10.1.0.6:80",
            "10.1.0.7:8080",
        ] {
            check(&peers, unknown, None);
        }
        // Both have the load balancer's address: neither is meant for certain.
        check(&peers, "192.0.2.1:80", None);
        // A second service over the same pods: the pod is certain, the service is not.
        peers.put_endpoints(&slice("e2", "shop-canary", &[("shop-2", "10.1.0.6")]));
        check(&peers, "10.1.0.6:8080", Some((None, Some("shop-2"))));
        check(
            &peers,
            "10.1.0.5:8080",
            Some((Some("shop"), Some("shop-1"))),
        );
        peers.remove("e2");
        check(
            &peers,
            "10.1.0.6:8080",
            Some((Some("shop"), Some("shop-2"))),
        );
        // Moved.
        peers.put_endpoints(&slice("e1", "shop", &[("shop-3", "10.1.0.9")]));
        check(&peers, "10.1.0.6:8080", None);
        check(
            &peers,
            "10.1.0.9:8080",
            Some((Some("shop"), Some("shop-3"))),
        );
        // A list without them.
        peers.keep_services(&FxHashSet::default());
        check(&peers, "10.96.0.1:80", None);
        check(
            &peers,
            "10.1.0.9:8080",
            Some((Some("shop"), Some("shop-3"))),
        );
        peers.keep_endpoints(&FxHashSet::default());
        assert_eq!((peers.addresses(), peers.claims), (0, 0));
    }

    #[test]
    fn lists_may_be_null() {
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "x", "uid": "u", "labels": null},
            "endpoints": null, "ports": null,
        }))
        .expect("a slice");
        assert_eq!(Peers::default().put_endpoints(&slice), 0);
    }

    #[test]
    fn an_address_of_two_pods_is_nobodys() {
        let mut peers = Peers::default();
        let ip: IpAddr = "10.1.0.5".parse().expect("ip");
        let pod = |name: &str| Arc::new(Peer::pod("prod", name));
        peers.put_pod("u1", &[ip], &pod("a"));
        assert_eq!(
            peers
                .client(ip)
                .and_then(|peer| peer.pod.clone())
                .as_deref(),
            Some("a")
        );
        peers.put_pod("u2", &[ip], &pod("b"));
        assert_eq!(peers.client(ip), None);
        peers.remove_pod("u1");
        assert_eq!(
            peers
                .client(ip)
                .and_then(|peer| peer.pod.clone())
                .as_deref(),
            Some("b")
        );
    }

    #[test]
    fn the_number_of_addresses_is_bounded() {
        let mut peers = Peers::default();
        let pods: Vec<_> = (0..70_000u32)
            .map(|n| (format!("p{n}"), std::net::Ipv4Addr::from(n).to_string()))
            .collect();
        let pods: Vec<_> = pods.iter().map(|(pod, ip)| (&**pod, &**ip)).collect();
        assert_eq!(
            peers.put_endpoints(&slice("e", "s", &pods)),
            70_000 - MAX_CLAIMS as u64
        );
        assert_eq!(peers.addresses(), MAX_CLAIMS);
    }
}
