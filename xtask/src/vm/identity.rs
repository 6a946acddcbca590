//! Which build a machine ran: a digest of what agent and tests are made of. It is the same for all processors, and
//! tells results that belong together.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::dist::archive::sha256;
use crate::sh;

/// What counts, below the workspace's root.
const SOURCES: [&str; 6] = [
    "Cargo.lock",
    "Cargo.toml",
    "tracer-agent",
    "tracer-common",
    "tracer-ebpf",
    "tests",
];
/// Of those, what does not.
const OTHERS: [&str; 3] = ["target", "node_modules", "__pycache__"];

/// The digest of the workspace as it is now.
pub fn of_workspace() -> Result<String> {
    let root = sh::root();
    let mut files = Vec::new();
    for source in SOURCES {
        find(&root.join(source), &mut files)?;
    }
    of(root, files)
}

fn of(root: &Path, mut files: Vec<PathBuf>) -> Result<String> {
    files.sort_unstable();
    let mut all = String::new();
    for file in files {
        let bytes =
            std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file);
        all.push_str(&format!("{} {}\n", sha256(&bytes), name.display()));
    }
    let mut digest = sha256(all.as_bytes());
    digest.truncate(16);
    Ok(digest)
}

fn find(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let kind = std::fs::symlink_metadata(path)
        .with_context(|| format!("cannot look at {}", path.display()))?
        .file_type();
    if kind.is_file() {
        files.push(path.to_owned());
    }
    if !kind.is_dir() {
        return Ok(());
    }
    let entries =
        std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
        let name = entry.file_name();
        if !OTHERS.iter().any(|other| name == *other) {
            find(&entry.path(), files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: two files. Guarantees: names and contents count, their order does not.
    #[test]
    fn what_counts() {
        let root = std::env::temp_dir().join(format!("vm-identity-{}", std::process::id()));
        std::fs::create_dir_all(root.join("a/target")).expect("a directory");
        let (first, second) = (root.join("a/x"), root.join("a/y"));
        std::fs::write(&first, "1").expect("a file");
        std::fs::write(&second, "2").expect("a file");
        std::fs::write(root.join("a/target/z"), "3").expect("a file");
        let digest = || {
            let mut files = Vec::new();
            find(&root.join("a"), &mut files).expect("files");
            assert_eq!(files.len(), 2);
            files.reverse();
            of(&root, files).expect("a digest")
        };
        let before = digest();
        assert_eq!(before.len(), 16);
        assert_eq!(digest(), before);
        std::fs::write(&second, "4").expect("a file");
        assert_ne!(digest(), before);
        std::fs::remove_dir_all(&root).expect("cleaned up");
    }
}
