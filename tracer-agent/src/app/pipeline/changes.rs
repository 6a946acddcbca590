//! What changes while it runs: settings, and what there is no memory or CPU for.

use rustc_hash::FxHashMap;
use tracer_common::abi::policy as flag;

use super::Pipeline;
use crate::app::beside;
use crate::app::reload::{self, Change};
use crate::discover::{Discovery, Mode, Policy, PolicyConfig, PolicyUpdate, Rule};
use crate::kernel::clock;
use crate::protocol::Connection;

/// After a change of policy, for records of what was before it to come out of the ring.
pub(super) const SETTLE_NS: u64 = 100_000_000;

/// Why something was given up.
pub(super) const MEMORY_LIMIT: &str = "memory_limit";
const CPU_LIMIT: &str = "cpu_limit";

/// A policy that changed: what its processes are looked at for, and since when.
pub(super) struct Settling {
    flags: FxHashMap<u32, u32>,
    default: u32,
    pub(super) since_ns: u64,
    reason: &'static str,
}

impl Settling {
    fn is_ignored(&self, tgid: u32) -> bool {
        let flags = self.flags.get(&tgid).copied();
        flags.unwrap_or(self.default) & flag::IGNORE != 0
    }
}

impl Pipeline {
    /// Follows other settings from now on.
    pub fn change(&mut self, change: Change) {
        let Change {
            policy,
            ports,
            sampling,
            routes,
        } = change;
        self.outlet.reload(sampling, routes);
        let discovery = &self.host.discovery;
        // What a command may be followed to is fixed with its start.
        if discovery.mode() == Mode::Host && *discovery.policy().config() != policy {
            match &mut self.paused {
                // In force when tracing goes on.
                Some(paused) => {
                    *paused = (policy, ports);
                    tracing::info!("settings reloaded; they are followed when tracing goes on");
                }
                None => self.change_policy(policy, &ports, "policy_changed"),
            }
        } else {
            tracing::info!("settings reloaded");
        }
    }

    /// The order matters: a process that is traced before and after is traced all the time.
    fn change_policy(&mut self, policy: PolicyConfig, ports: &[u16], reason: &'static str) {
        self.ports = ports.to_vec();
        let host = &mut self.host;
        let policy = Policy::new(policy, host.discovery.policy().agent());
        host.discovery = Discovery::new(policy, Mode::Host);
        host.has_port_rules = host.discovery.policy().has_rules();
        let switches = reload::switches(&host.discovery, ports);
        let mut flags = FxHashMap::default();
        // Twice: processes that began during the first round may have the old entry of their parent.
        for round in 0..2 {
            let updates = host.discovery.restart(&host.proc);
            let is_set = |update: &PolicyUpdate| matches!(update, PolicyUpdate::Set { .. });
            let (set, removed): (Vec<_>, Vec<_>) = updates.into_iter().partition(is_set);
            for update in set {
                if let PolicyUpdate::Set { tgid, flags: new } = update {
                    flags.insert(tgid, new);
                }
                host.apply_change(update);
            }
            if round == 0 {
                let switched = host.maps.ignore_ports(ports);
                if let Err(error) = switched.and_then(|()| host.maps.switch(switches)) {
                    tracing::warn!(%error, "cannot tell the kernel side of the new policy");
                }
            }
            removed
                .into_iter()
                .for_each(|update| host.apply_change(update));
        }
        self.settling = Some(Settling {
            flags,
            default: switches.policy_default,
            since_ns: clock::boot_ns(),
            reason,
        });
    }

    /// What happened before the policy changed has been told by now: what is still open at processes
    /// that are not traced any more has no end that we will see.
    pub(super) fn settle(&mut self, settling: &Settling) {
        let ignored = |tgid, _: &Connection| settling.is_ignored(tgid);
        let reason = settling.reason;
        let open = self.ingest.forget(ignored, reason, &mut self.host);
        self.ledger.exchanges.dropped(reason, open);
        let ingest = &self.ingest;
        let maps = &mut self.host.maps;
        maps.forget_connections(settling.since_ns, |id| ingest.knows(id));
        if reason != CPU_LIMIT {
            tracing::info!("settings reloaded");
        }
    }

    /// Traces nothing, or again what the policy says. What a command may be followed to is fixed with its
    /// start: then this does nothing.
    pub fn pause(&mut self, pause: bool) {
        if self.host.discovery.mode() != Mode::Host {
            return;
        }
        if !pause {
            if let Some((policy, ports)) = self.paused.take() {
                self.change_policy(policy, &ports, CPU_LIMIT);
            }
            return;
        }
        if self.paused.is_some() {
            return;
        }
        let policy = self.host.discovery.policy().config().clone();
        let ports = self.ports.clone();
        // What only includes a process that cannot be is decided by the kernel side's default alone.
        let nothing = PolicyConfig {
            include: vec![Rule {
                pid: Some(u32::MAX),
                ..Rule::default()
            }],
            exclude: Vec::new(),
        };
        self.change_policy(nothing, &ports, CPU_LIMIT);
        self.paused = Some((policy, ports));
    }

    /// The probes of TLS libraries are gone: what their sessions have open has no end that is seen.
    pub fn give_up_tls(&mut self) {
        let is_tls = |_, connection: &Connection| connection.tls;
        let open = self.ingest.forget(is_tls, CPU_LIMIT, &mut self.host);
        self.ledger.exchanges.dropped(CPU_LIMIT, open);
    }

    /// There is too little memory: gives up what is open, and takes nothing more until [`resume`](Self::resume).
    pub fn shed(&mut self) {
        self.shedding = true;
        let open = self
            .ingest
            .forget(|_, _| true, MEMORY_LIMIT, &mut self.host);
        let held = self.host.gate.give_up_held();
        self.ledger.exchanges.dropped(MEMORY_LIMIT, open + held);
        // What waits for a word of an SDK, or for a decision, gets it now.
        let left = self.host.sdks.hurry(&mut self.host.spans);
        if !left.is_empty() {
            beside::count(&left, &self.ledger);
            self.outlet.left(&left);
        }
        let spans = std::mem::take(&mut self.host.spans);
        self.outlet.take(spans, self.now_ns);
        self.outlet.finish();
        crate::sys::give_memory_back();
    }

    /// There is enough again. What was not looked at is joined in the middle when it speaks.
    pub fn resume(&mut self) {
        self.shedding = false;
        let ingest = &self.ingest;
        let now_ns = clock::boot_ns();
        self.host
            .maps
            .forget_connections(now_ns, |id| ingest.knows(id));
    }
}
