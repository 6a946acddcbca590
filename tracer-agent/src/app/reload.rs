//! SIGHUP: the configuration read again, and what of it can be followed at once.

use super::capture::Capture;
use crate::config::{Config, ConfigError};
use crate::discover::{Discovery, Mode, PolicyConfig};
use crate::probes::Switches;
use crate::trace::{routes, sampling};

/// Ports that the kernel side is told of; more are left to user space, which knows the rules too.
const MOST_PORTS: usize = 2048;

/// Settings that change while the agent runs.
#[derive(Debug)]
pub struct Change {
    /// Which processes are traced.
    pub policy: PolicyConfig,
    /// Ports that the kernel side need not look at.
    pub ports: Vec<u16>,
    /// Which spans are exported.
    pub sampling: sampling::Settings,
    /// What names paths give to spans.
    pub routes: routes::Settings,
}

/// Reads the configuration as at start.
pub type Load = Box<dyn Fn() -> Result<Config, ConfigError> + Send>;

/// Reads the configuration again when asked to.
pub struct Reloader {
    load: Load,
    current: Config,
    mode: Mode,
}

impl Reloader {
    /// `current` is what the agent was started with.
    pub fn new(load: Load, current: Config, mode: Mode) -> Self {
        Reloader {
            load,
            current,
            mode,
        }
    }

    /// Reads it and has `capture` follow it. What is wrong with it, or cannot be followed, is said.
    pub fn reload(&mut self, capture: &Capture) {
        let new = match (self.load)() {
            Ok(new) => new,
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::error!("not reloaded, the old settings stay: {error:#}");
                return;
            }
        };
        let mut fixed = self.current.fixed_differences(&new);
        if self.mode == Mode::Command && new.discovery != self.current.discovery {
            fixed.push("discovery");
        }
        if !fixed.is_empty() {
            let settings = fixed.join(", ");
            tracing::warn!(%settings, "cannot be changed while the agent runs; restart it");
        }
        capture.change(Change {
            policy: super::policy_config(&new),
            ports: excluded_ports(&new),
            sampling: new.sampling,
            routes: new.routes,
        });
    }
}

/// Ports that the kernel side need not look at: excluded whatever the process is.
pub fn excluded_ports(config: &Config) -> Vec<u16> {
    let ranges = config.discovery.exclude.ports.iter().cloned();
    ranges.flatten().take(MOST_PORTS).collect()
}

/// What the kernel side decides by itself.
pub fn switches(discovery: &Discovery, ports: &[u16]) -> Switches {
    Switches {
        policy_active: discovery.mode() == Mode::Command || discovery.policy().has_rules(),
        policy_default: discovery.default_flags(),
        new_undecided: discovery.mode() == Mode::Host && discovery.policy().has_rules(),
        ports_active: !ports.is_empty(),
    }
}
