//! The rules as entries of the kernel side's policy map, kept up as processes come and go.

use tracer_common::abi::policy as flag;

use super::policy::{Decision, Policy};
use crate::meta::{ProcFs, ProcessFacts};

/// What is traced when no rule says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The whole host.
    Host,
    /// One command and its children (`run -- CMD`). The command stands for the include rules,
    /// which decide about ports only; exclude rules apply.
    Command,
}

/// A change of the policy map. Removing what is not there is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyUpdate {
    /// Give `tgid` these flags.
    Set {
        /// The process.
        tgid: u32,
        /// Of [`tracer_common::abi::policy`].
        flags: u32,
    },
    /// Leave `tgid` to the default.
    Remove {
        /// The process.
        tgid: u32,
    },
}

/// Applies the policy to processes. Keeps no state of its own: entries that the kernel side made
/// by inheritance are not known here, so an update never relies on what was there.
#[derive(Clone, Debug)]
pub struct Discovery {
    policy: Policy,
    mode: Mode,
}

impl Discovery {
    /// The rules in a mode.
    pub fn new(policy: Policy, mode: Mode) -> Self {
        Self { policy, mode }
    }

    /// What is traced when no rule says otherwise.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The rules.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Flags of processes without an entry.
    pub fn default_flags(&self) -> u32 {
        if self.mode == Mode::Command || self.policy.has_includes() {
            flag::IGNORE
        } else {
            0
        }
    }

    /// Entries to begin with: the agent, and the processes that run now. Processes that start while
    /// this runs come by their exec records; so attach first, then call this.
    pub fn start(&self, proc: &ProcFs) -> Vec<PolicyUpdate> {
        // Not inherited: the command that the agent starts is a child of it.
        let mut updates = vec![PolicyUpdate::Set {
            tgid: self.policy.agent(),
            flags: flag::IGNORE,
        }];
        if self.mode == Mode::Host && self.policy.has_rules() {
            for pid in proc.pids() {
                if pid != self.policy.agent()
                    && let Some(facts) =
                        ProcessFacts::read(proc, pid).filter(|facts| !facts.is_bare())
                {
                    updates.extend(self.entry(&facts));
                }
            }
        }
        updates
    }

    /// Entries of the processes that run, after the rules changed ([`Mode::Host`] only): those that
    /// need none lose the one that they may have had. What is traced before and after is traced all
    /// the time if what is set goes first, then the default flags, then what is removed.
    pub fn restart(&self, proc: &ProcFs) -> Vec<PolicyUpdate> {
        let mut updates = vec![PolicyUpdate::Set {
            tgid: self.policy.agent(),
            flags: flag::IGNORE,
        }];
        for tgid in proc.pids() {
            if tgid == self.policy.agent() {
                continue;
            }
            let facts = ProcessFacts::read(proc, tgid).filter(|facts| !facts.is_bare());
            let entry = facts.and_then(|facts| self.entry(&facts));
            updates.push(entry.unwrap_or(PolicyUpdate::Remove { tgid }));
        }
        updates
    }

    /// The entry of the command that the agent starts in [`Mode::Command`], to be written before it
    /// runs: the command and everything it starts.
    pub fn command(&self, tgid: u32) -> PolicyUpdate {
        PolicyUpdate::Set {
            tgid,
            flags: flag::TRACE | flag::INHERIT,
        }
    }

    /// A process started another program.
    pub fn on_exec(&self, facts: &ProcessFacts) -> Option<PolicyUpdate> {
        if facts.pid == self.policy.agent() {
            return Some(PolicyUpdate::Set {
                tgid: facts.pid,
                flags: flag::IGNORE,
            });
        }
        match self.mode {
            // Whether it belongs to the command is known to the kernel side, which copied the entry
            // at fork: only an exclusion changes it.
            Mode::Command => match self.policy.decide_excluded(facts) {
                Decision::Trace => None,
                Decision::Ignore(_) => Some(ignore(facts.pid)),
            },
            Mode::Host if !self.policy.has_rules() => None,
            // What it inherited from its parent may be wrong for the new program.
            Mode::Host => Some(
                self.entry(facts)
                    .unwrap_or(PolicyUpdate::Remove { tgid: facts.pid }),
            ),
        }
    }

    /// A process ended.
    pub fn on_exit(&self, tgid: u32) -> Option<PolicyUpdate> {
        let entries = self.mode == Mode::Command || self.policy.has_rules();
        entries.then_some(PolicyUpdate::Remove { tgid })
    }

    /// The entry that a process needs beside the default. Inherited, because forked workers are
    /// the same program.
    fn entry(&self, facts: &ProcessFacts) -> Option<PolicyUpdate> {
        let traced_by_default = self.default_flags() & flag::IGNORE == 0;
        match self.policy.decide(facts) {
            Decision::Trace if traced_by_default => None,
            Decision::Trace => Some(PolicyUpdate::Set {
                tgid: facts.pid,
                flags: flag::TRACE | flag::INHERIT,
            }),
            Decision::Ignore(_) if traced_by_default => Some(ignore(facts.pid)),
            Decision::Ignore(_) => None,
        }
    }
}

fn ignore(tgid: u32) -> PolicyUpdate {
    PolicyUpdate::Set {
        tgid,
        flags: flag::IGNORE | flag::INHERIT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::PolicyConfig;

    const AGENT: u32 = 99;
    const AGENT_ENTRY: PolicyUpdate = PolicyUpdate::Set {
        tgid: AGENT,
        flags: flag::IGNORE,
    };

    fn discovery(yaml: &str, mode: Mode) -> Discovery {
        let config: PolicyConfig = serde_saphyr::from_str(yaml).expect("valid rules");
        Discovery::new(Policy::new(config, AGENT), mode)
    }

    fn facts(pid: u32, exe: &str) -> ProcessFacts {
        ProcessFacts {
            pid,
            exe: Some(exe.into()),
            args: vec![exe.into()],
            ..ProcessFacts::default()
        }
    }

    fn trace(tgid: u32) -> PolicyUpdate {
        PolicyUpdate::Set {
            tgid,
            flags: flag::TRACE | flag::INHERIT,
        }
    }

    #[test]
    fn a_host_of_three_processes() {
        let root = tempfile::tempdir().expect("tempdir");
        for (pid, exe) in [
            (2, ""),
            (7, "/usr/bin/java"),
            (8, "/usr/bin/node"),
            (AGENT, "/bin/agent"),
        ] {
            let dir = root.path().join(pid.to_string());
            std::fs::create_dir_all(&dir).expect("mkdir");
            let stat = format!("{pid} (x) S 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 50 0 0\n");
            std::fs::write(dir.join("stat"), stat).expect("write");
            if !exe.is_empty() {
                std::os::unix::fs::symlink(exe, dir.join("exe")).expect("link");
            }
        }
        std::fs::create_dir(root.path().join("sys")).expect("mkdir");
        let proc = ProcFs::new(root.path());
        for (yaml, mode, expected, default) in [
            ("{}", Mode::Host, vec![AGENT_ENTRY], 0),
            ("{}", Mode::Command, vec![AGENT_ENTRY], flag::IGNORE),
            (
                "exclude: [{exe: java}]",
                Mode::Host,
                vec![AGENT_ENTRY, ignore(7)],
                0,
            ),
            (
                "include: [{exe: java}]",
                Mode::Host,
                vec![AGENT_ENTRY, trace(7)],
                flag::IGNORE,
            ),
            (
                "include: [{exe: '*'}]\nexclude: [{exe: java}]",
                Mode::Host,
                vec![AGENT_ENTRY, trace(8)],
                flag::IGNORE,
            ),
            (
                "exclude: [{exe: java}]",
                Mode::Command,
                vec![AGENT_ENTRY],
                flag::IGNORE,
            ),
        ] {
            let discovery = discovery(yaml, mode);
            assert_eq!(discovery.start(&proc), expected, "{yaml} {mode:?}");
            assert_eq!(discovery.default_flags(), default, "{yaml} {mode:?}");
            if mode == Mode::Host {
                // Every process has an entry or loses the one that it may have had.
                let again = discovery.restart(&proc);
                assert_eq!(again.len(), 4, "{yaml}");
                let is_set = |update: &PolicyUpdate| matches!(update, PolicyUpdate::Set { .. });
                let set: Vec<_> = again.into_iter().filter(is_set).collect();
                assert_eq!(set, expected, "{yaml}");
            }
        }
    }

    #[test]
    fn execs_and_exits() {
        let remove = |tgid| PolicyUpdate::Remove { tgid };
        for (yaml, mode, exe, on_exec, on_exit) in [
            ("{}", Mode::Host, "/bin/java", None, None),
            (
                "exclude: [{exe: java}]",
                Mode::Host,
                "/bin/java",
                Some(ignore(7)),
                Some(remove(7)),
            ),
            (
                "exclude: [{exe: java}]",
                Mode::Host,
                "/bin/node",
                Some(remove(7)),
                Some(remove(7)),
            ),
            (
                "include: [{exe: java}]",
                Mode::Host,
                "/bin/java",
                Some(trace(7)),
                Some(remove(7)),
            ),
            (
                "include: [{exe: java}]",
                Mode::Host,
                "/bin/node",
                Some(remove(7)),
                Some(remove(7)),
            ),
            ("{}", Mode::Command, "/bin/node", None, Some(remove(7))),
            (
                "include: [{exe: java}]",
                Mode::Command,
                "/bin/node",
                None,
                Some(remove(7)),
            ),
            (
                "exclude: [{exe: node}]",
                Mode::Command,
                "/bin/node",
                Some(ignore(7)),
                Some(remove(7)),
            ),
        ] {
            let discovery = discovery(yaml, mode);
            assert_eq!(
                discovery.on_exec(&facts(7, exe)),
                on_exec,
                "{yaml} {mode:?} {exe}"
            );
            assert_eq!(discovery.on_exit(7), on_exit, "{yaml} {mode:?}");
            assert_eq!(discovery.on_exec(&facts(AGENT, exe)), Some(AGENT_ENTRY));
        }
        assert_eq!(discovery("{}", Mode::Command).command(5), trace(5));
    }

    #[test]
    fn this_host() {
        let updates = discovery("include: [{exe: '*'}]", Mode::Host).start(&ProcFs::default());
        assert!(updates.contains(&trace(std::process::id())));
    }
}
