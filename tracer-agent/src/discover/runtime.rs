//! How a program runs what it serves: which of the kernel side's rules about causes hold for it.
//!
//! In: a process. Out: one of `abi::kind_of_process`. Only what is known for certain counts: a
//! program that may run anything on any thread gets none, or the rule that asks most.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use rustc_hash::FxHashMap;
use tracer_common::abi::kind_of_process as kind;

use crate::meta::{Language, ProcFs, language};

/// Programs remembered; all are forgotten when there are more.
const MAX_PROGRAMS: usize = 4096;

/// What is done about causes in one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// The rules of `abi::kind_of_process`.
    Kind(u32),
    /// Node: callbacks run to their ends, but timers run in the same turn; those have to be seen.
    Node,
    /// Python: a thread for each request, or asyncio, which shows when it serves.
    Python,
    /// Rust: blocking calls, or tokio, which shows when it serves.
    Rust,
    /// Go: goroutines, whose beginnings and wake-ups have to be seen.
    Go,
}

/// Remembers programs by their file, since a host starts few programs often.
#[derive(Debug, Default)]
pub struct Runtimes {
    programs: FxHashMap<(u64, u64), Runtime>,
}

impl Runtimes {
    /// The process's; `None` if it is gone.
    pub fn of(&mut self, proc: &ProcFs, pid: u32) -> Option<Runtime> {
        let exe = proc.exe(pid)?;
        let name = exe.trim_end_matches(" (deleted)").rsplit('/').next()?;
        if let Some(runtime) = by_name(name) {
            return Some(runtime);
        }
        let file = proc.exe_path(pid);
        let file = fs::metadata(file).ok()?;
        let id = (file.dev(), file.ino());
        if let Some(runtime) = self.programs.get(&id) {
            return Some(*runtime);
        }
        let runtime = by_language(language::detect(proc, pid, name));
        if self.programs.len() >= MAX_PROGRAMS {
            self.programs.clear();
        }
        self.programs.insert(id, runtime);
        Some(runtime)
    }
}

fn by_name(name: &str) -> Option<Runtime> {
    match name {
        "nginx" => Some(Runtime::Kind(kind::CALLBACKS | kind::OWN_STREAMS)),
        "apache2" | "httpd" => Some(Runtime::Kind(kind::THREADS)),
        "node" | "nodejs" => Some(Runtime::Node),
        _ => language::by_name(name).map(|language| by_language(Some(language))),
    }
}

fn by_language(language: Option<Language>) -> Runtime {
    match language {
        // One thread at a time runs a request's code, or an event loop does, which the kernel side
        // finds out. Java's virtual threads as well.
        Some(Language::Python) => Runtime::Python,
        Some(Language::Ruby | Language::Php) => Runtime::Kind(kind::THREADS),
        Some(Language::Java) => Runtime::Kind(kind::THREADS | kind::WOKEN),
        Some(Language::Rust) => Runtime::Rust,
        Some(Language::Go) => Runtime::Go,
        // Work goes from thread to thread of a pool at any point: bun and deno, which have no
        // probes, among them.
        Some(Language::Dotnet | Language::Erlang | Language::Nodejs) => Runtime::Kind(kind::NONE),
        // It may be an asynchronous runtime, which never waits in a read.
        Some(Language::Cpp) | None => Runtime::Kind(kind::BLOCKING | kind::WOKEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            (
                "nginx",
                Some(Runtime::Kind(kind::CALLBACKS | kind::OWN_STREAMS)),
            ),
            ("node", Some(Runtime::Node)),
            ("bun", Some(Runtime::Kind(kind::NONE))),
            ("python3.11", Some(Runtime::Python)),
            ("java", Some(Runtime::Kind(kind::THREADS | kind::WOKEN))),
            ("dotnet", Some(Runtime::Kind(kind::NONE))),
            ("my-service", None),
        ] {
            assert_eq!(by_name(name), expected, "{name}");
        }
        assert_eq!(
            by_language(None),
            Runtime::Kind(kind::BLOCKING | kind::WOKEN)
        );
    }
}
