//! `cargo xtask image`: the container image, made without a container engine.
//!
//! In: static binaries. Out: `target/image`, an OCI image layout, and the same as one file, `target/image.tar`;
//! beside them the bill of materials of each binary. The same source gives the same digest: nothing of the time and
//! the place of the build gets in.

mod layout;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;

use crate::dist::arch::{Arch, Profile};
use crate::dist::archive::{self, Entry};
use crate::dist::{self, VERSION};
use crate::sh;
use layout::{Common, Layout};

/// Which binaries, and where the image goes.
#[derive(Clone, Debug, clap::Args)]
pub struct ImageArgs {
    /// Only this architecture (repeatable; default: this machine's)
    #[arg(long = "arch", value_name = "ARCH")]
    arches: Vec<Arch>,
    /// Build faster what runs slower, as target/image-test: what the end-to-end tests use
    #[arg(long, conflicts_with = "arches")]
    test: bool,
}

/// Where distributions of Linux keep the authorities, and where the agent looks for them.
const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";

/// `cargo xtask image`.
pub fn image(args: &ImageArgs) -> Result<()> {
    make(&args.arches, args.test)
}

/// The image of the end-to-end tests.
pub fn for_tests() -> Result<()> {
    make(&[], true)
}

fn make(arches: &[Arch], test: bool) -> Result<()> {
    let (name, profile) = match test {
        true => ("image-test", Profile::Test),
        false => ("image", Profile::Dist),
    };
    let output = sh::target().join(name);
    let time = archive::epoch()?;
    let common = Common {
        time,
        revision: archive::revision(),
    };
    let mut layout = Layout::new(&output, common)?;
    for built in dist::build(arches, profile, time)? {
        let bill = format!("{name}-{}.cdx.json", built.arch.name());
        dist::write(&output.with_file_name(bill), built.sbom.as_bytes())?;
        layout.add(built.arch, files(dist::read(&built.binary)?, &built.sbom)?)?;
    }
    let digest = layout.finish()?;
    let packed = layout::pack(&output, time)?;
    dist::write(&output.with_extension("tar"), &packed)?;
    eprintln!(
        "image: target/{name}, and as one file target/{name}.tar: version {VERSION}, {:.1} MiB, {digest}",
        dist::mebibytes(&packed)
    );
    Ok(())
}

/// The image's root file system. Mount points are there, because it is meant to be mounted read-only.
fn files(agent: Vec<u8>, sbom: &str) -> Result<Vec<Entry>> {
    const DOC: &str = "usr/share/doc/tracer-agent";
    let mut files = vec![
        Entry::file("usr/bin/tracer-agent", 0o755, agent),
        Entry::file(AUTHORITIES, 0o644, authorities()?),
        Entry::file(&format!("{DOC}/tracer-agent.cdx.json"), 0o644, sbom),
        Entry::directory("tmp", 0o1777),
        Entry::directory("var/spool/tracer-agent", 0o700),
    ];
    for mount_point in ["dev", "proc", "run", "sys", "etc/tracer-agent"] {
        files.push(Entry::directory(mount_point, 0o755));
    }
    for (name, bytes) in dist::licences()? {
        files.push(Entry::file(&format!("{DOC}/{name}"), 0o644, bytes));
    }
    // The directories on the way.
    let mut parents = std::collections::BTreeSet::new();
    for file in &files {
        let mut path = file.path.as_str();
        while let Some((parent, _)) = path.rsplit_once('/') {
            parents.insert(parent.to_owned());
            path = parent;
        }
    }
    for parent in parents {
        if !files.iter().any(|file| file.path == parent) {
            files.push(Entry::directory(&parent, 0o755));
        }
    }
    Ok(files)
}

/// Mozilla's certificate authorities, in PEM form.
fn authorities() -> Result<String> {
    let mut text = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        let base64 = base64::engine::general_purpose::STANDARD.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in base64.as_bytes().chunks(64) {
            text.push_str(std::str::from_utf8(line).context("base64 is text")?);
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    ensure!(!text.is_empty(), "there is no certificate authority");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_file_system_is_whole() {
        let files = files(vec![1], "{}").expect("files");
        let find = |path: &str| files.iter().find(|file| file.path == path).expect(path);
        assert_eq!(find("usr/bin/tracer-agent").mode, 0o755);
        assert_eq!(find("tmp").mode, 0o1777);
        assert_eq!(find("var/spool/tracer-agent").mode, 0o700);
        for directory in ["usr", "usr/bin", "etc/ssl/certs", "var", "proc", "sys"] {
            assert_eq!(find(directory).bytes, None, "{directory}");
        }
        archive::tar(files, 0).expect("each path once");
    }

    #[test]
    fn authorities_are_pem() {
        let text = authorities().expect("authorities");
        let count = text.matches("-----BEGIN CERTIFICATE-----\n").count();
        assert!(count > 50, "{count}");
        assert_eq!(text.matches("-----END CERTIFICATE-----\n").count(), count);
        assert!(text.lines().all(|line| line.len() <= 64));
    }
}
