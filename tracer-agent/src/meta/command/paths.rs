//! Names out of paths, without touching the file system.

use std::path::{Component, Path, PathBuf};

use super::Command;

/// Directories that say where in a project a file lies, not which project it is.
const INNER: [&str; 15] = [
    "bin",
    "build",
    "code",
    "current",
    "dist",
    "html",
    "lib",
    "out",
    "public",
    "public_html",
    "scripts",
    "server",
    "src",
    "target",
    "web",
];
/// Directories of the system: no project is called like them.
const SYSTEM: [&str; 14] = [
    "bin", "etc", "home", "lib", "local", "mnt", "opt", "root", "run", "sbin", "srv", "tmp", "usr",
    "var",
];

/// Last part of a path or command.
pub(super) fn base(path: &str) -> &str {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(path)
}

/// Base name without the extension of a script.
pub(super) fn stem(path: &str) -> &str {
    const SCRIPTS: [&str; 21] = [
        ".py", ".pyc", ".pyz", ".pex", ".js", ".mjs", ".cjs", ".ts", ".mts", ".cts", ".tsx",
        ".jsx", ".rb", ".ru", ".php", ".pl", ".psgi", ".lua", ".sh", ".R", ".tcl",
    ];
    let base = base(path);
    SCRIPTS
        .iter()
        .find_map(|extension| base.strip_suffix(extension))
        .filter(|stem| !stem.is_empty())
        .unwrap_or(base)
}

/// `path` as the process sees it, absolute and without `.` and `..`; `None` if it is relative to a
/// directory that is not known.
pub(super) fn absolute(command: &Command<'_>, path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let full = if path.is_absolute() {
        path.to_owned()
    } else {
        command.cwd?.join(path)
    };
    let mut clean = PathBuf::new();
    for component in full.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    Some(clean)
}

/// Name of the project a directory belongs to: its own, or the one above directories like `src`.
pub(super) fn project(directory: &Path) -> Option<String> {
    let mut names: Vec<&str> = directory
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    // What lies below /home/NAME, not NAME itself, is a project.
    if names.first() == Some(&"home") && names.len() <= 2 {
        return None;
    }
    let nearest = names.last().copied();
    while let Some(name) = names.pop() {
        // Deployment tools keep `releases/<time>` and a link `current` to it.
        if names.last() == Some(&"releases") && name.bytes().all(|byte| byte.is_ascii_digit()) {
            names.pop();
        } else if SYSTEM.contains(&name) && names.len() < 2 {
            break;
        } else if !INNER.contains(&name) {
            return Some(name.to_owned());
        }
    }
    nearest
        .filter(|name| !SYSTEM.contains(name))
        .map(str::to_owned)
}

/// Name of the project of the working directory.
pub(super) fn cwd_project(command: &Command<'_>) -> Option<String> {
    project(command.cwd?)
}

/// Name of the project that the file `path` lies in.
pub(super) fn file_project(command: &Command<'_>, path: &str) -> Option<String> {
    project(absolute(command, path)?.parent()?)
}

/// Options and positional arguments of a command line whose options are only partly known.
///
/// An option without `=` takes the next word as its value, unless it is listed as a flag, begins
/// with `--no-`, or the next word is itself an option.
pub(super) struct Words<'a, 'f> {
    words: &'a [&'a str],
    flags: &'f [&'f str],
}

/// One step through a command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word<'a> {
    /// An option and its value (empty for flags).
    Option(&'a str, &'a str),
    /// Anything else.
    Positional(&'a str),
}

impl<'a, 'f> Words<'a, 'f> {
    pub(super) fn new(words: &'a [&'a str], flags: &'f [&'f str]) -> Self {
        Self { words, flags }
    }
}

impl<'a> Iterator for Words<'a, '_> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        let (word, rest) = self.words.split_first()?;
        self.words = rest;
        if !word.starts_with('-') || *word == "-" {
            return Some(Word::Positional(word));
        }
        if let Some((option, value)) = word.split_once('=') {
            return Some(Word::Option(option, value));
        }
        if self.flags.contains(word) || word.starts_with("--no-") || *word == "--" {
            return Some(Word::Option(word, ""));
        }
        match rest.split_first() {
            Some((value, rest)) if !value.starts_with('-') => {
                self.words = rest;
                Some(Word::Option(word, value))
            }
            _ => Some(Word::Option(word, "")),
        }
    }
}
