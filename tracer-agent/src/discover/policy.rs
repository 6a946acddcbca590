//! Rules of the user, and what they say about a process and a connection.
//!
//! A rule names any of the conditions below and matches when all it names hold. If there are include
//! rules only what matches one is traced; exclude rules win; the agent is always left out. Ports
//! belong to connections: a process under a rule with ports is traced with a [`PortFilter`].

use serde::Deserialize;

use super::pattern::{Cmdline, Glob};
use crate::meta::ProcessFacts;
use crate::protocol::Role;

/// The `policy` part of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// If there are any, only what matches one of them is traced.
    #[serde(default)]
    pub include: Vec<Rule>,
    /// What matches one of them is not traced.
    #[serde(default)]
    pub exclude: Vec<Rule>,
}

/// Conditions that must all hold. At least one has to be named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawRule")]
pub struct Rule {
    /// Glob on the program's path, or on its base name when it has no `/`.
    pub exe: Option<Glob>,
    /// Glob on, or part of, the arguments joined by spaces (the first KiB of them).
    pub cmdline: Option<Cmdline>,
    /// Local ports of servers, remote ports of clients; none means any.
    pub ports: Vec<PortRange>,
    /// Process id as the agent sees it.
    pub pid: Option<u32>,
    /// Only processes in containers.
    pub containers_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    exe: Option<Glob>,
    cmdline: Option<Cmdline>,
    #[serde(default)]
    ports: Vec<PortRange>,
    pid: Option<u32>,
    #[serde(default)]
    containers_only: bool,
}

/// Why a rule or a range is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A rule that would match everything.
    #[error("a rule needs at least one of exe, cmdline, ports, pid, containers_only")]
    Empty,
    /// Neither a port nor a range.
    #[error("`{0}` is neither a port (80) nor a range of ports (8000-8099)")]
    Port(String),
}

impl TryFrom<RawRule> for Rule {
    type Error = RuleError;

    fn try_from(raw: RawRule) -> Result<Self, RuleError> {
        let RawRule {
            exe,
            cmdline,
            ports,
            pid,
            containers_only,
        } = raw;
        let rule = Rule {
            exe,
            cmdline,
            ports,
            pid,
            containers_only,
        };
        if rule == Rule::default() {
            Err(RuleError::Empty)
        } else {
            Ok(rule)
        }
    }
}

/// Ports from the first to the last, both included. In text: `80` or `8000-8099`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawPorts")]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a port (80) or a range of ports (\"8000-8099\")"
)]
enum RawPorts {
    One(u16),
    Text(String),
}

impl TryFrom<RawPorts> for PortRange {
    type Error = RuleError;

    fn try_from(raw: RawPorts) -> Result<Self, RuleError> {
        match raw {
            RawPorts::One(port) => Ok(Self {
                first: port,
                last: port,
            }),
            RawPorts::Text(text) => text.parse(),
        }
    }
}

impl std::str::FromStr for PortRange {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(RuleError::Port(text.to_owned())),
        }
    }
}

/// Whether something is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is.
    Trace,
    /// It is not.
    Ignore(Reason),
}

/// Why something is not traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It is the agent.
    Agent,
    /// An exclude rule matches.
    Excluded,
    /// There are include rules and none matches.
    NotIncluded,
}

impl Reason {
    /// Name for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Agent => "agent",
            Reason::Excluded => "excluded",
            Reason::NotIncluded => "not_included",
        }
    }
}

impl Rule {
    /// Everything but the ports, which belong to a connection.
    fn matches_process(&self, facts: &ProcessFacts) -> bool {
        let Rule {
            exe,
            cmdline,
            ports: _,
            pid,
            containers_only,
        } = self;
        exe.as_ref()
            .is_none_or(|glob| glob.matches_path(facts.exe.as_deref().unwrap_or(facts.exe_name())))
            && cmdline
                .as_ref()
                .is_none_or(|pattern| pattern.matches(&facts.args))
            && pid.is_none_or(|pid| pid == facts.pid)
            && (!containers_only || facts.container_id.is_some())
    }
}

/// The rules together with the agent's own process id.
#[derive(Clone, Debug)]
pub struct Policy {
    config: PolicyConfig,
    agent: u32,
}

impl Policy {
    /// `agent` is the agent's own process id, as the kernel side sees it.
    pub fn new(config: PolicyConfig, agent: u32) -> Self {
        Self { config, agent }
    }

    /// The rules.
    pub fn config(&self) -> &PolicyConfig {
        &self.config
    }

    /// The agent's own process id.
    pub fn agent(&self) -> u32 {
        self.agent
    }

    /// Whether there are rules at all.
    pub fn has_rules(&self) -> bool {
        let PolicyConfig { include, exclude } = &self.config;
        !include.is_empty() || !exclude.is_empty()
    }

    /// Whether only named processes are traced.
    pub fn has_includes(&self) -> bool {
        !self.config.include.is_empty()
    }

    /// Whether calls of the process are looked at. Its connections may still be filtered by
    /// [`Policy::ports`].
    pub fn decide(&self, facts: &ProcessFacts) -> Decision {
        if self.has_includes()
            && !self
                .config
                .include
                .iter()
                .any(|rule| rule.matches_process(facts))
        {
            return if facts.pid == self.agent {
                Decision::Ignore(Reason::Agent)
            } else {
                Decision::Ignore(Reason::NotIncluded)
            };
        }
        self.decide_excluded(facts)
    }

    /// By the exclude rules alone.
    pub fn decide_excluded(&self, facts: &ProcessFacts) -> Decision {
        if facts.pid == self.agent {
            return Decision::Ignore(Reason::Agent);
        }
        let excluded = |rule: &Rule| rule.ports.is_empty() && rule.matches_process(facts);
        if self.config.exclude.iter().any(excluded) {
            Decision::Ignore(Reason::Excluded)
        } else {
            Decision::Trace
        }
    }

    /// Which connections of the process are traced; `None` when all are.
    pub fn ports(&self, facts: &ProcessFacts) -> Option<PortFilter> {
        let PolicyConfig { include, exclude } = &self.config;
        let matching = |rules: &[Rule]| -> Vec<Rule> {
            rules
                .iter()
                .filter(|rule| rule.matches_process(facts))
                .cloned()
                .collect()
        };
        let included = matching(include);
        let all = included.iter().any(|rule| rule.ports.is_empty());
        let filter = PortFilter {
            include: if all {
                Vec::new()
            } else {
                included.into_iter().flat_map(|rule| rule.ports).collect()
            },
            exclude: matching(exclude)
                .into_iter()
                .flat_map(|rule| rule.ports)
                .collect(),
        };
        (filter != PortFilter::default()).then_some(filter)
    }

    /// Process and connection in one; [`Policy::ports`] is cheaper where a process has many.
    pub fn decide_ports(
        &self,
        facts: &ProcessFacts,
        local: u16,
        remote: u16,
        role: Option<Role>,
    ) -> Decision {
        match (self.decide(facts), self.ports(facts)) {
            (Decision::Trace, Some(filter)) => filter.decide(local, remote, role),
            (decision, _) => decision,
        }
    }
}

/// Ports of one process that are traced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortFilter {
    include: Vec<PortRange>,
    exclude: Vec<PortRange>,
}

impl PortFilter {
    /// Whether a connection is traced: a server is known by its local port, a client by the remote
    /// one; while the role is not known either will do.
    pub fn decide(&self, local: u16, remote: u16, role: Option<Role>) -> Decision {
        let has = |ranges: &[PortRange]| {
            ranges.iter().any(|range| {
                let holds = |port: u16| (range.first..=range.last).contains(&port);
                match role {
                    Some(Role::Server) => holds(local),
                    Some(Role::Client) => holds(remote),
                    None => holds(local) || holds(remote),
                }
            })
        };
        if has(&self.exclude) {
            Decision::Ignore(Reason::Excluded)
        } else if !self.include.is_empty() && !has(&self.include) {
            Decision::Ignore(Reason::NotIncluded)
        } else {
            Decision::Trace
        }
    }
}

#[cfg(test)]
mod tests;
