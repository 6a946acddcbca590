//! Facts of a process to what its attributes are made of, with what `/proc` still has.

use super::ProcessTable;
use crate::meta::attributes::{self, Subject};
use crate::meta::command::{self, Command};
use crate::meta::facts::{Environment, ProcessFacts, arguments};
use crate::meta::kubernetes::ContainerFacts;
use crate::meta::language::{self, Language};
use crate::meta::{Process, host};

/// Largest `package.json` that is read.
const PACKAGE_MAX: u64 = 64 * 1024;

/// Everything about a process but its pod, which may become known later.
#[derive(Debug)]
pub(super) struct Described {
    facts: ProcessFacts,
    args: Vec<String>,
    ruled_name: Option<Box<str>>,
    command_name: Option<String>,
    owner: Option<Box<str>>,
    language: Option<Language>,
}

impl Described {
    pub(super) fn facts(&self) -> &ProcessFacts {
        &self.facts
    }
}

impl ProcessTable {
    /// Makes the attributes, with what `/proc` still has where the process is still there.
    pub(super) fn describe(&self, facts: &ProcessFacts) -> Described {
        let proc = &self.proc;
        let pid = facts.pid;
        let alive = facts.is_alive(proc);
        let mut facts = facts.clone();
        let mut args: Vec<String> = facts.args.iter().map(|arg| arg.to_string()).collect();
        if alive {
            if facts.args_cut
                && let Some(bytes) = proc.arguments(pid)
            {
                let whole = arguments(&bytes);
                // A title that was set since the exec says less than the cut arguments.
                if whole.len() > 1 || args.is_empty() {
                    args = whole;
                }
            }
            if facts.environment.cut
                && !facts.environment.declares()
                && let Some(bytes) = proc.environment(pid)
            {
                facts.environment = Environment::parse(&bytes);
            }
            facts.exe = facts.exe.or_else(|| proc.exe(pid).map(Into::into));
        }
        let cwd = if alive { proc.cwd(pid) } else { None };
        let language = if alive {
            language::detect(proc, pid, facts.exe_name())
        } else {
            language::by_name(facts.exe_name())
        };
        let package_name = |directory: &std::path::Path| -> Option<String> {
            let bytes = proc.read_in_root(pid, &directory.join("package.json"), PACKAGE_MAX)?;
            let json: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
            json.get("name")?
                .as_str()
                .map(str::trim)
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
        };
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let flask_app = facts.environment.flask_app.as_deref();
        let command_name = command::service_name(&Command {
            exe: facts.exe.as_deref(),
            args: &words,
            cwd: cwd.as_deref(),
            env: &|name| flask_app.filter(|_| name == "FLASK_APP"),
            package_name: if alive { &package_name } else { &|_| None },
        });
        let in_container = match (&facts.container_id, facts.uid) {
            (Some(_), Some(uid)) if alive => host::user_in_container(proc, pid, uid),
            _ => None,
        };
        let owner = match facts.container_id {
            Some(_) => in_container,
            None => facts
                .uid
                .and_then(|uid| self.host.user(uid))
                .map(Into::into),
        };
        let ruled = self
            .options
            .service_rules
            .iter()
            .find(|rule| rule.matches(&facts));
        let ruled_name = ruled.map(|rule| rule.name.clone());
        Described {
            facts,
            args,
            ruled_name,
            command_name,
            owner,
            language,
        }
    }

    /// The process, with its pod as far as that is known.
    pub(super) fn process(&self, described: &Described, place: Option<&ContainerFacts>) -> Process {
        let Described {
            facts,
            args,
            ruled_name,
            command_name,
            owner,
            language,
        } = described;
        let subject = Subject {
            facts,
            args,
            ruled_name: ruled_name.as_deref(),
            command_name: command_name.as_deref(),
            owner: owner.as_deref(),
            language: *language,
            place,
        };
        attributes::process(
            &subject,
            &self.host,
            &self.options.resource_attributes,
            self.options.command_args,
        )
    }
}
