//! Kernels from Debian's archive, whatever suite this machine itself runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::directory;
use crate::dist::arch::Arch;
use crate::sh;

/// A kernel that is tested.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// As users say it.
    pub name: &'static str,
    /// The suite it comes from.
    pub suite: &'static str,
    /// What it runs on. Others than this machine's are for the verifier alone.
    pub arch: Arch,
    /// How many processors it has. Kernels before 6.5 do not start a second one where instructions are counted
    /// (QEMU 7.2; the emulator runs all processors in turns then).
    pub processors: u32,
    /// What is known not to work on it, for the report.
    pub known: Option<&'static str>,
}

/// All of them, oldest first.
pub const ALL: &[Kernel] = &[
    Kernel {
        name: "5.10",
        suite: "bullseye",
        arch: Arch::X86_64,
        processors: 1,
        known: None,
    },
    Kernel {
        name: "6.1",
        suite: "bookworm",
        arch: Arch::X86_64,
        processors: 1,
        known: None,
    },
    Kernel {
        name: "6.12",
        suite: "trixie",
        arch: Arch::X86_64,
        processors: 2,
        known: None,
    },
    Kernel {
        name: "newest",
        suite: "sid",
        arch: Arch::X86_64,
        // What a second one does is seen on 6.12.
        processors: 1,
        known: None,
    },
    Kernel {
        name: "arm64",
        suite: "trixie",
        arch: Arch::Aarch64,
        processors: 1,
        known: None,
    },
];

/// Those of these names; all if none is named.
pub fn chosen(wanted: &[String]) -> Result<Vec<&'static Kernel>> {
    if let Some(unknown) = wanted
        .iter()
        .find(|name| !ALL.iter().any(|kernel| kernel.name == **name))
    {
        let names: Vec<_> = ALL.iter().map(|kernel| kernel.name).collect();
        bail!("no kernel {unknown}; there are {}", names.join(", "));
    }
    let is_chosen =
        |kernel: &&Kernel| wanted.is_empty() || wanted.iter().any(|name| *name == kernel.name);
    Ok(ALL.iter().filter(is_chosen).collect())
}

/// The metapackage that depends on a suite's current kernel.
fn metapackage(arch: Arch) -> String {
    format!("linux-image-cloud-{}", arch.container())
}

impl Kernel {
    /// Where what was fetched for it lies, below a directory.
    fn place(&self) -> String {
        match self.arch {
            Arch::X86_64 => self.suite.to_owned(),
            other => format!("{}-{}", self.suite, other.container()),
        }
    }
}

/// The kernel's image, fetched if it is not there.
pub fn fetch(kernel: &Kernel) -> Result<PathBuf> {
    let place = directory().join("kernels").join(kernel.place());
    if let Some(image) = find_image(&place) {
        return Ok(image);
    }
    let apt = Apt::new(kernel)?;
    apt.run(&["update"])?;
    let mut package = apt.dependency(&metapackage(kernel.arch), "linux-image-")?;
    // Since 7.x the image is in a package of its own.
    if let Ok(binary) = apt.dependency(&package, "linux-binary-") {
        package = binary;
    }
    apt.unpack(&package, &place)?;
    find_image(&place).with_context(|| format!("package {package} has no kernel image"))
}

/// A busybox for the kernel's processor.
pub fn busybox(kernel: &Kernel) -> Result<PathBuf> {
    let place = directory().join("busybox").join(kernel.place());
    let found = || {
        ["bin/busybox", "usr/bin/busybox"]
            .map(|path| place.join(path))
            .into_iter()
            .find(|path| path.is_file())
    };
    if let Some(program) = found() {
        return Ok(program);
    }
    let apt = Apt::new(kernel)?;
    apt.run(&["update"])?;
    apt.unpack("busybox-static", &place)?;
    found().context("the package busybox-static has no busybox")
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

fn find_image(place: &Path) -> Option<PathBuf> {
    let is_image = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("vmlinuz"))
    };
    let boot = entries(&place.join("boot")).find(is_image);
    boot.or_else(|| {
        ["lib/modules", "usr/lib/modules"]
            .iter()
            .flat_map(|modules| entries(&place.join(modules)).collect::<Vec<_>>())
            .flat_map(|version| entries(&version).collect::<Vec<_>>())
            .find(is_image)
    })
}

/// apt with lists of its own, so that the machine's are left alone.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(kernel: &Kernel) -> Result<Self> {
        let root = directory().join("apt").join(kernel.place());
        for place in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(root.join(place))
                .with_context(|| format!("cannot make {}", root.display()))?;
        }
        let Source { uri, key } = source()?;
        let signed = key.map_or(String::new(), |key| format!("[signed-by={key}] "));
        let list = root.join("sources.list");
        std::fs::write(&list, format!("deb {signed}{uri} {} main\n", kernel.suite))
            .with_context(|| format!("cannot write {}", list.display()))?;
        let set = |name: &str, path: &Path| format!("{name}={}", path.display());
        Ok(Apt {
            options: vec![
                set("Dir::Etc::SourceList", &list),
                "Dir::Etc::SourceParts=/dev/null".into(),
                set("Dir::State::Lists", &root.join("lists")),
                set("Dir::Cache", &root.join("cache")),
                "APT::Sandbox::User=root".into(),
                "Acquire::Languages=none".into(),
                format!("APT::Architecture={}", kernel.arch.container()),
                format!("APT::Architectures={}", kernel.arch.container()),
            ],
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// Not echoed: the lines would be all options, and name the mirror.
    fn run(&self, arguments: &[&str]) -> Result<()> {
        eprintln!("vm: apt-get {}", arguments.join(" "));
        sh::output(self.command("apt-get").arg("-q").args(arguments)).map(|_| ())
    }

    /// Downloads a package and unpacks it there.
    fn unpack(&self, package: &str, place: &Path) -> Result<()> {
        std::fs::create_dir_all(place)
            .with_context(|| format!("cannot make {}", place.display()))?;
        self.download(package, place)?;
        let Some(deb) = entries(place).find(|path| path.extension().is_some_and(|e| e == "deb"))
        else {
            bail!("apt-get downloaded no package {package}");
        };
        sh::run(Command::new("dpkg").arg("-x").arg(&deb).arg(place))?;
        let _ = std::fs::remove_file(&deb);
        Ok(())
    }

    fn download(&self, package: &str, place: &Path) -> Result<()> {
        eprintln!("vm: apt-get download {package}");
        let mut command = self.command("apt-get");
        command.args(["-q", "download", package]).current_dir(place);
        sh::output(&mut command).map(|_| ())
    }

    /// The package that `package` depends on whose name begins so.
    fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let shown = sh::output(self.command("apt-cache").args(["show", package]))?;
        dependency_in(&shown, prefix)
            .with_context(|| format!("package {package} depends on no {prefix}*"))
    }
}

fn dependency_in(shown: &str, prefix: &str) -> Option<String> {
    let depends = shown
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?;
    let names = depends
        .split([',', '|'])
        .filter_map(|item| item.split_whitespace().next());
    let mut fitting = names.filter(|name| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    fitting.next().map(str::to_owned)
}

/// Where this machine gets Debian's packages from.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    key: Option<String>,
}

fn source() -> Result<Source> {
    let parts = entries(Path::new("/etc/apt/sources.list.d"));
    let files = std::iter::once(PathBuf::from("/etc/apt/sources.list")).chain(parts);
    let found = files
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .find_map(|text| source_in(&text));
    found.context("no Debian source among those of apt: the kernels come from its archive")
}

/// The first source of Debian's main archive in a file of either format.
fn source_in(text: &str) -> Option<Source> {
    let is_debian = |uri: &str| uri.trim_end_matches('/').ends_with("/debian");
    let mut uri = None;
    let mut key = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("deb ") {
            let words = rest
                .split_whitespace()
                .filter(|word| !word.contains(['[', ']']));
            if let Some(found) = words.clone().next().filter(|uri| is_debian(uri)) {
                return Some(Source {
                    uri: found.to_owned(),
                    key: None,
                });
            }
        }
        if line.is_empty() && uri.is_some() {
            break;
        }
        if let Some(uris) = line.strip_prefix("URIs:") {
            uri = uris.split_whitespace().find(|uri| is_debian(uri));
        }
        if let Some(path) = line.strip_prefix("Signed-By:").map(str::trim) {
            key = path.starts_with('/').then_some(path);
        }
    }
    uri.map(|uri| Source {
        uri: uri.to_owned(),
        key: key.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        let found = |uri: &str, key: Option<&str>| {
            Some(Source {
                uri: uri.to_owned(),
                key: key.map(str::to_owned),
            })
        };
        for (text, expected) in [
            ("", None),
            ("# deb http://x/debian a main\n", None),
            (
                "deb http://x/debian a main\n",
                found("http://x/debian", None),
            ),
            (
                "deb [arch=amd64 signed-by=/k] http://x/debian/ a main\n",
                found("http://x/debian/", None),
            ),
            ("deb http://x/debian-security a main\n", None),
            (
                "Types: deb\nURIs: http://x/debian\nSuites: a\nSigned-By: /k\n\nTypes: deb\nURIs: http://y/debian\nSigned-By: /l\n",
                found("http://x/debian", Some("/k")),
            ),
            ("Types: deb\nURIs: http://x/other\n", None),
        ] {
            assert_eq!(source_in(text), expected, "{text:?}");
        }
    }

    #[test]
    fn dependencies() {
        let shown = "Package: p\nDepends: linux-base (>= 4), linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1) | x\n";
        assert_eq!(
            dependency_in(shown, "linux-image-").as_deref(),
            Some("linux-image-6.1.0-50-cloud-amd64")
        );
        assert_eq!(dependency_in(shown, "linux-base"), None);
        assert_eq!(dependency_in("Package: p\n", "linux-image-"), None);
    }
}
