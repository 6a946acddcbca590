//! `tracer-agent doctor`: what this host allows, what each missing thing disables, how to get it.
//!
//! In: a [`Host`] and whether an eBPF object is built in. Out: a [`Report`] for people or machines.
//! It changes nothing on the host, so it cannot tell what only loading a program would.

mod checks;
mod rights;
mod tls;

use std::fmt::Write as _;

use serde::Serialize;

use super::features::Features;
use super::host::Host;
use crate::meta::proc_fs::ProcFs;

pub use tls::{TlsProcess, TlsProcesses};

/// Outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Not there.
    Missing,
    /// Could not be found out.
    Unknown,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub check: &'static str,
    /// Outcome.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What does not work because of it; empty when all is well.
    pub disables: String,
    /// How to get it; empty when all is well.
    pub fix: String,
    /// Nothing can be traced when this is missing.
    #[serde(skip)]
    pub essential: bool,
}

impl Check {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        let (disables, fix) = (String::new(), String::new());
        Check {
            check,
            status: Status::Ok,
            detail: detail.into(),
            disables,
            fix,
            essential: false,
        }
    }

    fn missing(check: &'static str, detail: impl Into<String>, disables: &str, fix: &str) -> Self {
        let (disables, fix) = (disables.to_owned(), fix.to_owned());
        Check {
            check,
            status: Status::Missing,
            detail: detail.into(),
            disables,
            fix,
            essential: false,
        }
    }

    fn unknown(check: &'static str, detail: &str, disables: &str, fix: &str) -> Self {
        Check {
            status: Status::Unknown,
            ..Check::missing(check, detail, disables, fix)
        }
    }

    fn essential(self) -> Self {
        Check {
            essential: true,
            ..self
        }
    }
}

/// All checks of a host.
#[derive(Clone, Debug)]
pub struct Report {
    /// In the order they are shown.
    pub checks: Vec<Check>,
    /// TLS libraries of running processes; `None` if they were not looked at.
    pub tls: Option<TlsProcesses>,
}

/// Looks at the host; `ebpf_object_size` is that of the object built into the binary, `functions_refused` says why the kernel
/// takes no programs of functions, if it was asked and does not.
pub fn examine(
    host: &Host,
    ebpf_object_size: Option<usize>,
    functions_refused: Option<String>,
) -> Report {
    Report {
        checks: checks::all(
            host,
            &Features::of(host),
            ebpf_object_size,
            functions_refused,
        ),
        tls: None,
    }
}

impl Report {
    /// Whether anything can be traced.
    pub fn can_trace(&self) -> bool {
        self.obstacles().is_empty()
    }

    fn obstacles(&self) -> Vec<&'static str> {
        let missing = self
            .checks
            .iter()
            .filter(|check| check.essential && check.status == Status::Missing);
        missing.map(|check| check.check).collect()
    }

    /// Looks at the running processes too.
    pub fn look_at_processes(&mut self, proc: &ProcFs) {
        self.tls = Some(tls::look(proc));
    }

    /// An array of `{check, status, detail, disables, fix}`; those of running processes, whose check
    /// is `tls`, have more fields.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Line<'a> {
            Check(&'a Check),
            Tls(&'a TlsProcess),
        }
        let processes = self.tls.iter().flat_map(|tls| &tls.processes);
        let lines: Vec<Line<'_>> = self
            .checks
            .iter()
            .map(Line::Check)
            .chain(processes.map(Line::Tls))
            .collect();
        // Serialising strings and unit variants cannot fail; an empty array would still be honest JSON.
        let mut json = serde_json::to_string_pretty(&lines).unwrap_or_else(|_| "[]".to_owned());
        json.push('\n');
        json
    }

    /// For people; `colours` only for terminals.
    pub fn to_text(&self, colours: bool) -> String {
        let paint = |code: &str, text: &str| match colours {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        };
        let width = self
            .checks
            .iter()
            .map(|check| check.check.len())
            .max()
            .unwrap_or_default();
        let indent = " ".repeat(width + 13);
        let mut text = String::new();
        for Check {
            check,
            status,
            detail,
            disables,
            fix,
            essential,
        } in &self.checks
        {
            let status = match (status, essential) {
                (Status::Ok, _) => paint("32", "ok     "),
                (Status::Missing, true) => paint("1;31", "missing"),
                (Status::Missing, false) => paint("33", "missing"),
                (Status::Unknown, _) => paint("36", "unknown"),
            };
            let _ = writeln!(text, "  {status}  {check:width$}  {detail}");
            for (label, line) in [("disables", disables), ("to get it", fix)] {
                if !line.is_empty() {
                    let _ = writeln!(text, "{indent}{} {line}", paint("2", &format!("{label}:")));
                }
            }
        }
        if let Some(tls) = &self.tls {
            text.push_str(&tls.to_text(&paint));
        }
        let named = |status: Status| {
            let names: Vec<&str> = self
                .checks
                .iter()
                .filter(|check| check.status == status)
                .map(|check| check.check)
                .collect();
            names.join(", ")
        };
        let obstacles = self.obstacles();
        text.push('\n');
        let _ = match (
            obstacles.is_empty(),
            named(Status::Missing),
            named(Status::Unknown),
        ) {
            (false, ..) => writeln!(
                text,
                "{} Needed first: {}.",
                paint("1;31", "Nothing can be traced here."),
                obstacles.join(", ")
            ),
            (true, missing, unknown) => {
                let mut line = paint("1;32", "This host can be traced.");
                for (names, what) in [(missing, "Missing"), (unknown, "Not known")] {
                    if !names.is_empty() {
                        let _ = write!(line, " {what}: {names}.");
                    }
                }
                writeln!(text, "{line}")
            }
        };
        text
    }
}

#[cfg(test)]
mod tests;
