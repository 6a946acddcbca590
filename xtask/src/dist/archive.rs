//! Archives that depend on their content alone: sorted entries, one time, no owner, no names of this machine.

use std::io::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};

use crate::sh;

/// Names the time of everything that is made, in seconds since 1970.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// A file or directory of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Without a slash in front.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// What a file holds; a directory holds nothing of its own.
    pub bytes: Option<Vec<u8>>,
}

impl Entry {
    /// A file.
    pub fn file(path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Entry {
            path: path.to_owned(),
            mode,
            bytes: Some(bytes.into()),
        }
    }

    /// A directory.
    pub fn directory(path: &str, mode: u32) -> Self {
        Entry {
            path: path.to_owned(),
            mode,
            bytes: None,
        }
    }
}

/// A tar file (ustar) of the entries, whatever their order. Every path may be there once.
pub fn tar(mut entries: Vec<Entry>, time: u64) -> Result<Vec<u8>> {
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let twice = entries
        .windows(2)
        .find(|pair| matches!(pair, [a, b] if a.path == b.path));
    ensure!(twice.is_none(), "an entry is there twice: {twice:?}");
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(entry.mode);
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        let (kind, path) = match &entry.bytes {
            Some(_) => (tar::EntryType::Regular, entry.path.clone()),
            None => (tar::EntryType::Directory, format!("{}/", entry.path)),
        };
        header.set_entry_type(kind);
        let bytes = entry.bytes.unwrap_or_default();
        header.set_size(bytes.len() as u64);
        archive
            .append_data(&mut header, &path, bytes.as_slice())
            .with_context(|| format!("cannot pack {path}"))?;
    }
    archive.into_inner().context("cannot end the archive")
}

/// The bytes compressed; the same bytes give the same result.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    // 255 is "unknown operating system"; with no name and no time nothing of this machine is left.
    let mut encoder = GzBuilder::new()
        .mtime(0)
        .operating_system(255)
        .write(Vec::new(), Compression::best());
    encoder.write_all(bytes).context("cannot compress")?;
    encoder.finish().context("cannot compress")
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The time of what is made: SOURCE_DATE_EPOCH, else that of the commit, else 1970.
pub fn epoch() -> Result<u64> {
    match std::env::var(EPOCH) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .with_context(|| format!("{EPOCH}={text}: it is a number of seconds since 1970")),
        _ => Ok(git(&["log", "-1", "--format=%ct"])
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)),
    }
}

/// The commit that is built; `None` outside of a repository.
pub fn revision() -> Option<String> {
    git(&["rev-parse", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = sh::output(Command::new("git").args(args).current_dir(sh::root()));
    let text = output.ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Like `2026-11-21T12:00:00Z` (RFC 3339).
pub fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that a leap day is the last of its year.
    let days = days + 719_468;
    let era = days / 146_097;
    let day = days % 146_097;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = match month {
        0..10 => (month + 3, 0),
        _ => (month - 9, 1),
    };
    format!(
        "{:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        year + era * 400 + next,
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_794_571_200, "2026-11-13T12:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }

    #[test]
    fn order_and_repetition_make_no_difference() {
        let entries = vec![
            Entry::directory("etc", 0o755),
            Entry::file("etc/b", 0o644, "two"),
            Entry::file("a", 0o755, "one"),
        ];
        let mut turned = entries.clone();
        turned.reverse();
        let first = gzip(&tar(entries, 7).expect("tar")).expect("gzip");
        let second = gzip(&tar(turned, 7).expect("tar")).expect("gzip");
        assert_eq!(first, second);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(first.as_slice()));
        let mut found = Vec::new();
        for entry in archive.entries().expect("entries") {
            let entry = entry.expect("an entry");
            let header = entry.header();
            assert_eq!(header.mtime().expect("a time"), 7);
            assert_eq!(header.uid().expect("an owner"), 0);
            found.push((
                entry.path().expect("a path").display().to_string(),
                header.mode().expect("a mode"),
            ));
        }
        assert_eq!(
            found,
            [
                ("a".to_owned(), 0o755),
                ("etc/".to_owned(), 0o755),
                ("etc/b".to_owned(), 0o644)
            ]
        );
    }

    #[test]
    fn nothing_is_there_twice() {
        let entry = Entry::file("a", 0o644, "");
        assert!(tar(vec![entry.clone(), entry], 0).is_err());
    }

    #[test]
    fn digests() {
        assert_eq!(
            sha256(b""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
