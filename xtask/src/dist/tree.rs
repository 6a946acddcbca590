//! Which crates are in a binary, and which needs which: what `cargo tree` says.
//!
//! `cargo metadata` would be easier to read, but resolves features for the workspace as a whole, with what only
//! its tests need. `cargo tree` resolves them as the build of that one package does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// Names a crate and its version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Of the package.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// What is known of a crate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// SPDX expression, if it says one.
    pub licence: Option<String>,
    /// It is of this repository.
    pub own: bool,
    /// What is linked because of it.
    pub needs: BTreeSet<Name>,
    /// SHA-256 of the package, from the lock file.
    pub checksum: Option<String>,
}

/// Crates by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// The crate that everything else is there for.
    pub root: Option<Name>,
    /// All of them, the root included.
    pub crates: BTreeMap<Name, Facts>,
}

/// Asks cargo what is linked into `package` for `target`; `lock` is the workspace's lock file.
pub fn ask(mut cargo: Command, package: &str, target: &str, lock: &Path) -> Result<Tree> {
    cargo.args(["tree", "--locked", "--package", package, "--target", target]);
    // Procedural macros and build scripts run at build time and are not in the binary.
    cargo.args(["--edges", "normal,no-proc-macro", "--prefix", "depth"]);
    cargo.args(["--format", "|{p}|{l}"]);
    let mut tree = parse(&sh::output(&mut cargo)?)?;
    let lock =
        std::fs::read_to_string(lock).with_context(|| format!("cannot read {}", lock.display()))?;
    for (name, checksum) in checksums(&lock) {
        if let Some(facts) = tree.crates.get_mut(&name) {
            facts.checksum = Some(checksum);
        }
    }
    Ok(tree)
}

/// Lines of a depth, a crate with its version and source, and a licence. `(*)` ends those whose needs were told.
fn parse(text: &str) -> Result<Tree> {
    let mut tree = Tree::default();
    let mut path: Vec<Name> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let mut fields = line.splitn(3, '|');
        let (Some(depth), Some(package), Some(licence)) =
            (fields.next(), fields.next(), fields.next())
        else {
            bail!("cargo tree printed an odd line: {line}");
        };
        let depth: usize = depth
            .parse()
            .with_context(|| format!("cargo tree printed an odd depth: {line}"))?;
        let mut words = package.split(' ');
        let (Some(name), Some(version)) = (
            words.next(),
            words.next().and_then(|word| word.strip_prefix('v')),
        ) else {
            bail!("cargo tree printed an odd package: {line}");
        };
        let name = Name {
            name: name.to_owned(),
            version: version.to_owned(),
        };
        path.truncate(depth);
        match path.last() {
            Some(parent) => {
                let parent = tree.crates.entry(parent.clone()).or_default();
                parent.needs.insert(name.clone());
            }
            None => tree.root = Some(name.clone()),
        }
        let licence = licence.trim_end_matches("(*)").trim();
        let facts = tree.crates.entry(name.clone()).or_default();
        facts.own |= words.any(|word| word.starts_with("(/"));
        if !licence.is_empty() {
            // Older packages write it like a path.
            facts.licence = Some(licence.replace('/', " OR ").replace("  ", " "));
        }
        path.push(name);
    }
    Ok(tree)
}

/// Names and checksums of a lock file.
fn checksums(lock: &str) -> Vec<(Name, String)> {
    let of = |block: &str, key: &str| {
        block.lines().find_map(|line| {
            let value = line.strip_prefix(key)?.strip_prefix(" = \"")?;
            Some(value.strip_suffix('"')?.to_owned())
        })
    };
    let blocks = lock.split("[[package]]").skip(1);
    let found = blocks.filter_map(|block| {
        let name = Name {
            name: of(block, "name")?,
            version: of(block, "version")?,
        };
        Some((name, of(block, "checksum")?))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str, version: &str) -> Name {
        Name {
            name: name.to_owned(),
            version: version.to_owned(),
        }
    }

    #[test]
    fn a_tree() {
        let text = "0|agent v0.1.0 (/src/agent)|MIT OR Apache-2.0\n\
                    1|axum v0.8.9|MIT\n2|bytes v1.12.1|MIT\n2|http v1.5.0|MIT/Apache-2.0\n3|bytes v1.12.1|MIT\n\
                    1|bytes v1.12.1|MIT (*)\n1|common v0.1.0 (/src/common)|\n2|http v1.5.0|MIT/Apache-2.0 (*)\n";
        let tree = parse(text).expect("a tree");
        assert_eq!(tree.root, Some(name("agent", "0.1.0")));
        let needs = |of: Name| -> Vec<String> {
            let facts = tree.crates.get(&of).expect("the crate");
            facts.needs.iter().map(|need| need.name.clone()).collect()
        };
        assert_eq!(tree.crates.len(), 5);
        assert_eq!(needs(name("agent", "0.1.0")), ["axum", "bytes", "common"]);
        assert_eq!(needs(name("axum", "0.8.9")), ["bytes", "http"]);
        assert_eq!(needs(name("http", "1.5.0")), ["bytes"]);
        assert_eq!(needs(name("common", "0.1.0")), ["http"]);
        let facts = |of: Name| tree.crates.get(&of).expect("the crate").clone();
        assert!(facts(name("agent", "0.1.0")).own && facts(name("common", "0.1.0")).own);
        assert!(!facts(name("http", "1.5.0")).own);
        let licence = facts(name("http", "1.5.0")).licence;
        assert_eq!(licence.as_deref(), Some("MIT OR Apache-2.0"));
        assert_eq!(facts(name("common", "0.1.0")).licence, None);
    }

    #[test]
    fn odd_lines_are_errors() {
        for text in ["x", "0|a", "x|a v1|MIT", "0|a|MIT", "0|a 1|MIT"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn checksums_of_a_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry\"\nchecksum = \"ab\"\n\
                    dependencies = [\n \"b\",\n]\n\n[[package]]\nname = \"b\"\nversion = \"0.1.0\"\n";
        assert_eq!(checksums(lock), [(name("a", "1.0.0"), "ab".to_owned())]);
    }
}
