//! Which running processes have a TLS library, and whether its plaintext is seen.
//!
//! In: the processes that may be looked at. Out: a line for each library of each. Having a library
//! mapped does not mean that a process uses it; a library that is loaded later is not listed yet.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Status;
use crate::discover::binary::{Scanner, TlsLibrary};
use crate::meta::proc_fs::ProcFs;

/// Time for all processes together; each file is parsed once, so that real hosts need a second.
const TIME_MAX: Duration = Duration::from_secs(10);

/// One TLS library of one process. Begins with the fields of a [`Check`](super::Check).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlsProcess {
    /// Always `tls`.
    pub check: &'static str,
    /// Whether the plaintext is seen.
    pub status: Status,
    /// Process, library and file in words.
    pub detail: String,
    /// What is not seen, empty when it is.
    pub disables: String,
    /// Why not, empty when it is seen.
    pub fix: String,
    /// The process.
    pub pid: u32,
    /// Name of its main thread.
    pub process: String,
    /// The library, without its version; empty where that is not known.
    pub library: String,
    /// Its version, where one is known.
    pub version: Option<String>,
    /// The file that contains it, as the process calls it.
    pub file: String,
    /// Why it is not seen.
    pub reason: Option<String>,
}

/// Of all processes.
#[derive(Clone, Debug, Default)]
pub struct TlsProcesses {
    /// In the order of their ids.
    pub processes: Vec<TlsProcess>,
    /// Processes that may not be looked at.
    pub forbidden: usize,
    /// Processes for which there was no time.
    pub skipped: usize,
}

/// Looks at every process but this one.
pub fn look(proc: &ProcFs) -> TlsProcesses {
    let end = Instant::now() + TIME_MAX;
    let mut scanner = Scanner::new(proc.clone());
    let mut all = TlsProcesses::default();
    let mut pids = proc.pids();
    pids.retain(|pid| *pid != std::process::id());
    pids.sort_unstable();
    for pid in pids {
        if Instant::now() >= end {
            all.skipped += 1;
            continue;
        }
        let Some(found) = scanner.scan(pid) else {
            // Not if it is known to have ended; between both states nothing tells.
            all.forbidden += usize::from(proc.stat(pid).is_some_and(|stat| stat.state != 'Z'));
            continue;
        };
        // One that ended meanwhile was not looked at to the end.
        let Some(name) = proc.stat(pid).map(|stat| stat.comm) else {
            continue;
        };
        for target in &found.targets {
            let reason = target.unseen();
            let version = version(&target.library);
            let text = target.library.to_string();
            all.processes.push(process(Facts {
                pid,
                process: name.clone(),
                library: match &version {
                    Some(version) => text.trim_end_matches(version.as_str()).trim_end().into(),
                    None => text,
                },
                version,
                file: target.shown.display().to_string(),
                status: match reason {
                    None => Status::Ok,
                    Some(_) => Status::Missing,
                },
                reason,
            }));
        }
        // One is enough to say that something was not understood.
        if let Some(unseen) = found.unseen.first() {
            all.processes.push(process(Facts {
                pid,
                process: name.clone(),
                library: String::new(),
                version: None,
                file: unseen.shown.display().to_string(),
                status: Status::Unknown,
                reason: Some(unseen.reason.clone()),
            }));
        }
    }
    all
}

struct Facts {
    pid: u32,
    process: String,
    library: String,
    version: Option<String>,
    file: String,
    status: Status,
    reason: Option<String>,
}

fn process(facts: Facts) -> TlsProcess {
    let Facts {
        pid,
        process,
        library,
        version,
        file,
        status,
        reason,
    } = facts;
    let what = match (&version, library.is_empty()) {
        (Some(version), _) => format!("{library} {version}"),
        (None, false) => library.clone(),
        (None, true) => "not understood".to_owned(),
    };
    // Names and paths are the processes' own choice: nothing in them may move the cursor.
    let shown = |text: &str| text.escape_debug().to_string();
    TlsProcess {
        check: "tls",
        status,
        detail: format!("{pid} {}: {what} in {}", shown(&process), shown(&file)),
        disables: match status {
            Status::Ok => String::new(),
            Status::Missing => "spans of what it sends and receives through this library".into(),
            Status::Unknown => "spans of TLS connections, if this file makes any".into(),
        },
        fix: String::new(),
        pid,
        process,
        library,
        version,
        file,
        reason,
    }
}

fn version(library: &TlsLibrary) -> Option<String> {
    match library {
        TlsLibrary::OpenSsl { version }
        | TlsLibrary::LibreSsl { version }
        | TlsLibrary::GnuTls { version }
        | TlsLibrary::Rustls { version } => version.clone(),
        TlsLibrary::GoTls(go) => Some(go.go_version.clone()),
        TlsLibrary::BoringSsl | TlsLibrary::Jsse => None,
    }
}

impl TlsProcesses {
    /// For people; `paint` colours a text with a code.
    pub(super) fn to_text(&self, paint: &dyn Fn(&str, &str) -> String) -> String {
        let mut text = String::from("\nTLS of running processes\n");
        for process in &self.processes {
            let status = match process.status {
                Status::Ok => paint("32", "seen    "),
                Status::Missing => paint("33", "not seen"),
                Status::Unknown => paint("36", "unknown "),
            };
            let _ = writeln!(text, "  {status}  {}", process.detail);
            if let Some(reason) = &process.reason {
                let _ = writeln!(text, "            {} {reason}", paint("2", "because:"));
            }
        }
        if self.processes.is_empty() {
            text.push_str("  none with a TLS library\n");
        }
        for (count, why) in [
            (
                self.forbidden,
                "processes were not looked at: other users' (run as root), or just ended",
            ),
            (self.skipped, "processes were not looked at: out of time"),
        ] {
            if count > 0 {
                let _ = writeln!(text, "  {count} {why}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let facts = |status, library: &str, version: Option<&str>, reason: Option<&str>| Facts {
            pid: 7,
            process: "we\x1bb".into(),
            library: library.into(),
            version: version.map(str::to_owned),
            file: "/usr/lib/libssl.so.3".into(),
            status,
            reason: reason.map(str::to_owned),
        };
        let all = TlsProcesses {
            processes: vec![
                process(facts(Status::Ok, "OpenSSL", Some("3.0.19"), None)),
                process(facts(Status::Missing, "Java JSSE", None, Some("byte code"))),
                process(facts(
                    Status::Unknown,
                    "",
                    None,
                    Some("the file is cut off"),
                )),
            ],
            forbidden: 3,
            skipped: 0,
        };
        let plain = |_: &str, text: &str| text.to_owned();
        assert_eq!(
            all.to_text(&plain),
            "\nTLS of running processes\n\
             \x20 seen      7 we\\u{1b}b: OpenSSL 3.0.19 in /usr/lib/libssl.so.3\n\
             \x20 not seen  7 we\\u{1b}b: Java JSSE in /usr/lib/libssl.so.3\n\
             \x20           because: byte code\n\
             \x20 unknown   7 we\\u{1b}b: not understood in /usr/lib/libssl.so.3\n\
             \x20           because: the file is cut off\n\
             \x20 3 processes were not looked at: other users' (run as root), or just ended\n"
        );
    }
}
