//! An OCI image layout (image-spec 1.1): blobs by their digests, and the index that leads to them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::dist::VERSION;
use crate::dist::arch::Arch;
use crate::dist::archive::{self, Entry};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// How the index names an image.
const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// What is the same for the images of all architectures.
#[derive(Clone, Debug)]
pub struct Common {
    /// Of everything in it, in seconds since 1970.
    pub time: u64,
    /// The commit, if it is known.
    pub revision: Option<String>,
}

/// A layout that is being made.
#[derive(Debug)]
pub struct Layout {
    root: PathBuf,
    common: Common,
    manifests: Vec<Value>,
}

impl Layout {
    /// An empty one; what was in the directory goes.
    pub fn new(root: &Path, common: Common) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(root).with_context(|| format!("cannot empty {}", root.display()))?;
        }
        let blobs = root.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
        Ok(Layout {
            root: root.to_owned(),
            common,
            manifests: Vec::new(),
        })
    }

    /// Adds the image of one architecture: one layer with these files.
    pub fn add(&mut self, arch: Arch, files: Vec<Entry>) -> Result<()> {
        let tar = archive::tar(files, self.common.time)?;
        let layer = self.blob(LAYER, &archive::gzip(&tar)?)?;
        let created = archive::timestamp(self.common.time);
        let config = json!({
            "created": created,
            "architecture": arch.container(),
            "os": "linux",
            "config": {
                // Root by number, with the capabilities that it is given: a runtime gives them to nobody else.
                "User": "0:0",
                "Env": ["PATH=/usr/bin"],
                "Entrypoint": ["/usr/bin/tracer-agent"],
                "Cmd": ["run"],
                "WorkingDir": "/",
                "StopSignal": "SIGTERM",
                "Labels": self.labels(),
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": [format!("sha256:{}", archive::sha256(&tar))],
            },
            "history": [{"created": created, "created_by": "cargo xtask image"}],
        });
        let config = self.blob(CONFIG, config.to_string().as_bytes())?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer],
            "annotations": self.labels(),
        });
        let mut manifest = self.blob(MANIFEST, manifest.to_string().as_bytes())?;
        manifest["platform"] = json!({"architecture": arch.container(), "os": "linux"});
        self.manifests.push(manifest);
        Ok(())
    }

    /// Writes what leads to the images; returns the digest that a registry would know them by.
    pub fn finish(mut self) -> Result<String> {
        let manifests = std::mem::take(&mut self.manifests);
        let mut top = match <[Value; 1]>::try_from(manifests) {
            Ok([manifest]) => manifest,
            // Several architectures are one image: an index of their own.
            Err(manifests) => {
                let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
                self.blob(INDEX, index.to_string().as_bytes())?
            }
        };
        top["annotations"] = json!({ REFERENCE: VERSION });
        let digest = top["digest"].as_str().unwrap_or_default().to_owned();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]});
        self.write("index.json", index.to_string().as_bytes())?;
        self.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(digest)
    }

    fn labels(&self) -> Value {
        let mut labels = json!({
            "org.opencontainers.image.title": "tracer-agent",
            "org.opencontainers.image.description": "Zero-instrumentation distributed tracing for Linux",
            "org.opencontainers.image.version": VERSION,
            "org.opencontainers.image.created": archive::timestamp(self.common.time),
            "org.opencontainers.image.licenses": "(MIT OR Apache-2.0) AND GPL-2.0-only",
        });
        if let Some(revision) = &self.common.revision {
            labels["org.opencontainers.image.revision"] = json!(revision);
        }
        labels
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> Result<Value> {
        let digest = archive::sha256(bytes);
        self.write(&format!("blobs/sha256/{digest}"), bytes)?;
        Ok(json!({
            "mediaType": kind,
            "digest": format!("sha256:{digest}"),
            "size": bytes.len(),
        }))
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(path);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The layout as one file, which is how images are carried about.
pub fn pack(root: &Path, time: u64) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    collect(root, "", &mut entries)?;
    archive::tar(entries, time)
}

fn collect(root: &Path, below: &str, entries: &mut Vec<Entry>) -> Result<()> {
    let directory = root.join(below);
    let cannot = || format!("cannot read {}", directory.display());
    for entry in fs::read_dir(&directory).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let name = entry.file_name();
        let name = name.to_str().context("names in a layout are text")?;
        let path = match below {
            "" => name.to_owned(),
            below => format!("{below}/{name}"),
        };
        if entry.file_type().with_context(cannot)?.is_dir() {
            entries.push(Entry::directory(&path, 0o755));
            collect(root, &path, entries)?;
        } else {
            let bytes = fs::read(entry.path()).with_context(cannot)?;
            entries.push(Entry::file(&path, 0o644, bytes));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(turned: bool) -> Vec<Entry> {
        let mut files = vec![
            Entry::directory("usr", 0o755),
            Entry::directory("usr/bin", 0o755),
            Entry::file("usr/bin/tracer-agent", 0o755, vec![7; 100_000]),
        ];
        if turned {
            files.reverse();
        }
        files
    }

    fn make(root: &Path, arches: &[Arch], turned: bool) -> String {
        let common = Common {
            time: 1_794_571_200,
            revision: Some("0123".to_owned()),
        };
        let mut layout = Layout::new(root, common).expect("a layout");
        for &arch in arches {
            layout.add(arch, files(turned)).expect("an image");
        }
        layout.finish().expect("an index")
    }

    fn json_of(root: &Path, path: &str) -> Value {
        serde_json::from_slice(&fs::read(root.join(path)).expect(path)).expect("JSON")
    }

    /// Follows a descriptor; its size and digest must be those of the blob.
    fn follow(root: &Path, descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().expect("a digest");
        let hex = digest.strip_prefix("sha256:").expect("sha256");
        let bytes = fs::read(root.join("blobs/sha256").join(hex)).expect("a blob");
        assert_eq!(archive::sha256(&bytes), hex);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    }

    fn follow_json(root: &Path, descriptor: &Value) -> Value {
        serde_json::from_slice(&follow(root, descriptor)).expect("JSON")
    }

    #[test]
    fn the_same_files_give_the_same_image() {
        let places: Vec<_> = (0..2)
            .map(|_| tempfile::tempdir().expect("a directory"))
            .collect();
        let [first, second] = [&places[0], &places[1]].map(|place| place.path().join("image"));
        let digest = make(&first, &[Arch::X86_64, Arch::Aarch64], false);
        assert_eq!(digest, make(&second, &[Arch::X86_64, Arch::Aarch64], true));
        let packed = |root: &Path| pack(root, 5).expect("an archive");
        assert_eq!(packed(&first), packed(&second));
        // Made again over an old one with other blobs.
        make(&first, &[Arch::X86_64], false);
        assert_eq!(digest, make(&first, &[Arch::X86_64, Arch::Aarch64], false));
        assert_eq!(packed(&first), packed(&second));
    }

    #[test]
    fn every_descriptor_leads_to_what_it_says() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("image");
        let digest = make(&root, &[Arch::X86_64, Arch::Aarch64], false);
        let layout = json_of(&root, "oci-layout");
        assert_eq!(layout["imageLayoutVersion"], "1.0.0");
        let top = &json_of(&root, "index.json")["manifests"][0];
        assert_eq!(top["digest"], json!(digest));
        assert_eq!(top["annotations"][REFERENCE], VERSION);
        let index = follow_json(&root, top);
        let mut arches = Vec::new();
        for descriptor in index["manifests"].as_array().expect("manifests") {
            arches.push(descriptor["platform"]["architecture"].clone());
            let manifest = follow_json(&root, descriptor);
            let config = follow_json(&root, &manifest["config"]);
            assert_eq!(
                config["architecture"],
                descriptor["platform"]["architecture"]
            );
            assert_eq!(config["created"], "2026-11-13T12:00:00Z");
            assert_eq!(config["config"]["User"], "0:0");
            let labels = &config["config"]["Labels"];
            assert_eq!(labels["org.opencontainers.image.revision"], "0123");
            let layer = follow(&root, &manifest["layers"][0]);
            let mut tar = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(layer.as_slice());
            std::io::Read::read_to_end(&mut decoder, &mut tar).expect("gzip");
            let diff = format!("sha256:{}", archive::sha256(&tar));
            assert_eq!(config["rootfs"]["diff_ids"], json!([diff]));
        }
        assert_eq!(arches, ["amd64", "arm64"]);
    }

    #[test]
    fn one_architecture_needs_no_second_index() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("image");
        make(&root, &[Arch::Aarch64], false);
        let top = &json_of(&root, "index.json")["manifests"][0];
        assert_eq!(top["mediaType"], MANIFEST);
        assert_eq!(follow_json(&root, top)["layers"][0]["mediaType"], LAYER);
    }
}
