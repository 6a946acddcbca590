//! The user's rules for service names.

use crate::discover::pattern::{Cmdline, Glob};

use super::facts::ProcessFacts;

/// Gives `name` to the processes that meet all of its conditions. Ports are no condition here: a
/// process has many, and its name must not depend on which one it opened first.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceRule {
    /// Glob on the program's path, or on its base name when it has no `/`.
    #[serde(default)]
    pub exe: Option<Glob>,
    /// Glob on, or part of, the arguments joined by spaces.
    #[serde(default)]
    pub cmdline: Option<Cmdline>,
    /// `service.name`.
    pub name: Box<str>,
}

impl ServiceRule {
    /// Whether the rule is for this process. A rule without conditions is for none.
    pub fn matches(&self, facts: &ProcessFacts) -> bool {
        let ServiceRule {
            exe,
            cmdline,
            name: _,
        } = self;
        (exe.is_some() || cmdline.is_some())
            && exe.as_ref().is_none_or(|glob| {
                glob.matches_path(facts.exe.as_deref().unwrap_or(facts.exe_name()))
            })
            && cmdline
                .as_ref()
                .is_none_or(|pattern| pattern.matches(&facts.args))
    }
}
