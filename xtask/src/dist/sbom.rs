//! The bill of materials of a binary: CycloneDX 1.6, in JSON.
//!
//! In: the binary and the crates that are linked into it, the kernel side's included. Out: a document that depends on
//! nothing else, so that two builds of the same source give the same one.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::arch::Arch;
use super::archive;
use super::tree::{self, Facts, Name, Tree};
use crate::{ebpf, sh};

/// What is linked into the agent for one architecture.
#[derive(Debug)]
pub struct Materials {
    agent: Tree,
    kernel: Tree,
    /// What the toolchain adds: name, version, licence.
    runtime: Vec<(&'static str, String, &'static str)>,
}

/// Asks cargo and the toolchain.
pub fn materials(arch: Arch, kernel_cargo: Command) -> Result<Materials> {
    let agent = tree::ask(
        sh::cargo(),
        "tracer-agent",
        arch.target(),
        &sh::root().join("Cargo.lock"),
    )?;
    let manifest = ebpf::manifest();
    let directory = manifest.parent().context("the manifest has a directory")?;
    let mut cargo = kernel_cargo;
    cargo.current_dir(directory);
    let kernel = tree::ask(
        cargo,
        "tracer-ebpf",
        ebpf::TARGET,
        &directory.join("Cargo.lock"),
    )?;
    let mut runtime = vec![("rust-std", arch.rust_version()?, "MIT OR Apache-2.0")];
    if let Some(version) = arch.musl_version()? {
        runtime.push(("musl", version, "MIT"));
    }
    Ok(Materials {
        agent,
        kernel,
        runtime,
    })
}

/// The document; `time` is that of the build.
pub fn document(materials: &Materials, version: &str, binary: &[u8], time: u64) -> Result<String> {
    let Materials {
        agent,
        kernel,
        runtime,
    } = materials;
    let root = agent.root.as_ref().context("the agent has a name")?;
    let mut crates: BTreeMap<&Name, Facts> = BTreeMap::new();
    for (name, facts) in agent.crates.iter().chain(&kernel.crates) {
        let known = crates.entry(name).or_insert_with(|| facts.clone());
        known.needs.extend(facts.needs.iter().cloned());
    }
    if let Some(facts) = crates.get_mut(root) {
        // The kernel side's object is embedded.
        facts.needs.extend(kernel.root.clone());
    }
    let components = crates
        .iter()
        .filter(|(name, _)| **name != root)
        .map(|(name, facts)| component(name, facts))
        .chain(runtime.iter().map(|(name, version, licence)| {
            json!({
                "type": "library",
                "bom-ref": generic(name, version),
                "name": name,
                "version": version,
                "licenses": [{"expression": licence}],
                "purl": generic(name, version),
            })
        }));
    let components: Vec<Value> = components.collect();
    let dependencies = crates.iter().map(|(name, facts)| {
        let needs = facts.needs.iter().map(reference);
        let more = runtime.iter().filter(|_| *name == root);
        let more = more.map(|(name, version, _)| generic(name, version));
        json!({"ref": reference(name), "dependsOn": needs.chain(more).collect::<Vec<_>>()})
    });
    let dependencies: Vec<Value> = dependencies.collect();
    let mut main = component(
        root,
        crates.get(root).context("the agent is among its crates")?,
    );
    main["type"] = json!("application");
    main["hashes"] = json!([{"alg": "SHA-256", "content": archive::sha256(binary)}]);
    let mut document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": archive::timestamp(time),
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [{"type": "application", "name": "tracer-agent-xtask", "version": version}]},
            "component": main,
        },
        "components": components,
        "dependencies": dependencies,
    });
    document["serialNumber"] = json!(serial_number(&archive::sha256(
        document.to_string().as_bytes()
    )));
    let text = serde_json::to_string_pretty(&document).context("cannot write JSON")?;
    Ok(text + "\n")
}

/// Writes the document beside the binary; returns its text.
pub fn write(materials: &Materials, binary: &Path, to: &Path, time: u64) -> Result<String> {
    let bytes =
        std::fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let text = document(materials, super::VERSION, &bytes, time)?;
    std::fs::write(to, &text).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(text)
}

fn component(name: &Name, facts: &Facts) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(name),
        "name": name.name,
        "version": name.version,
    });
    if let Some(licence) = &facts.licence {
        component["licenses"] = json!([{"expression": licence}]);
    }
    if let Some(checksum) = &facts.checksum {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    // What is of this repository is in no registry.
    if !facts.own {
        component["purl"] = json!(reference(name));
    }
    component
}

fn reference(name: &Name) -> String {
    format!("pkg:cargo/{}@{}", name.name, escaped(&name.version))
}

fn generic(name: &str, version: &str) -> String {
    format!("pkg:generic/{name}@{}", escaped(version))
}

/// Versions may have build metadata behind a plus sign, which means a blank in a URL.
fn escaped(version: &str) -> String {
    version.replace('+', "%2B")
}

/// A UUID (version 8: the bits are the maker's) of what the document says.
fn serial_number(digest: &str) -> String {
    let part = |from: usize, to: usize| digest.get(from..to).unwrap_or_default();
    format!(
        "urn:uuid:{}-{}-8{}-8{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(root: &str, needs: &[&str]) -> Tree {
        let name = |text: &str| {
            let (name, version) = text.split_once('@').expect("a version");
            Name {
                name: name.to_owned(),
                version: version.to_owned(),
            }
        };
        let own = |own: bool, needs: &[&str]| Facts {
            licence: Some("MIT".to_owned()),
            own,
            needs: needs.iter().map(|need| name(need)).collect(),
            checksum: (!own).then(|| "ab".repeat(32)),
        };
        let mut crates: BTreeMap<Name, Facts> = needs
            .iter()
            .map(|need| (name(need), own(false, &[])))
            .collect();
        crates.insert(name(root), own(true, needs));
        Tree {
            root: Some(name(root)),
            crates,
        }
    }

    fn materials() -> Materials {
        Materials {
            agent: tree("agent@0.1.0", &["bytes@1.0.0", "wit@0.1.0+abi"]),
            kernel: tree("kernel@0.1.0", &["bytes@1.0.0", "core@2.0.0"]),
            runtime: vec![("musl", "1.2.5".to_owned(), "MIT")],
        }
    }

    #[test]
    fn everything_is_there_once_and_hangs_together() {
        let text = document(&materials(), "0.1.0", b"binary", 0).expect("a document");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        let references: Vec<&str> = document["components"]
            .as_array()
            .expect("components")
            .iter()
            .filter_map(|component| component["bom-ref"].as_str())
            .collect();
        assert_eq!(
            references,
            [
                "pkg:cargo/bytes@1.0.0",
                "pkg:cargo/core@2.0.0",
                "pkg:cargo/kernel@0.1.0",
                "pkg:cargo/wit@0.1.0%2Babi",
                "pkg:generic/musl@1.2.5"
            ]
        );
        let main = &document["metadata"]["component"];
        assert_eq!(main["bom-ref"], "pkg:cargo/agent@0.1.0");
        assert_eq!(main["hashes"][0]["content"], archive::sha256(b"binary"));
        assert!(main.get("purl").is_none());
        let all = document["dependencies"].as_array().expect("dependencies");
        let of_main = all.iter().find(|entry| entry["ref"] == main["bom-ref"]);
        assert_eq!(
            of_main.expect("the agent's")["dependsOn"],
            json!([
                "pkg:cargo/bytes@1.0.0",
                "pkg:cargo/kernel@0.1.0",
                "pkg:cargo/wit@0.1.0%2Babi",
                "pkg:generic/musl@1.2.5"
            ])
        );
    }

    #[test]
    fn the_same_materials_give_the_same_document() {
        let one = |binary: &[u8]| document(&materials(), "0.1.0", binary, 7).expect("a document");
        assert_eq!(one(b"a"), one(b"a"));
        assert_ne!(one(b"a"), one(b"b"));
    }

    #[test]
    fn serial_numbers() {
        assert_eq!(
            serial_number(&archive::sha256(b"")),
            "urn:uuid:e3b0c442-98fc-8c14-8afb-f4c8996fb924"
        );
    }
}
