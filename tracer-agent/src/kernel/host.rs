//! Where facts about the host are read from, so that tests can show a host that does not exist.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Longest text that is read; `/proc/mounts` of a busy container host is far below.
const MAX_TEXT: u64 = 16 * 1024 * 1024;

/// Roots of the file systems that tell about the host.
#[derive(Clone, Debug)]
pub struct Host {
    /// procfs.
    pub proc: PathBuf,
    /// sysfs, with tracefs and securityfs below it.
    pub sys: PathBuf,
    /// Where distributions keep the kernel's configuration.
    pub boot: PathBuf,
}

impl Host {
    /// The host this process runs on.
    pub fn real() -> Self {
        Host {
            proc: "/proc".into(),
            sys: "/sys".into(),
            boot: "/boot".into(),
        }
    }

    /// Whether it is the one this process runs on.
    pub(super) fn is_real(&self) -> bool {
        self.sys == Path::new("/sys")
    }

    /// Text of a file below procfs.
    pub(super) fn proc_text(&self, path: &str) -> Option<String> {
        text(&self.proc.join(path))
    }

    /// Text of a file below sysfs.
    pub(super) fn sys_text(&self, path: &str) -> Option<String> {
        text(&self.sys.join(path))
    }

    /// An absolute path of the host, seen through the roots.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        [
            ("/proc/", &self.proc),
            ("/sys/", &self.sys),
            ("/boot/", &self.boot),
        ]
        .into_iter()
        .find_map(|(prefix, root)| Some(root.join(path.strip_prefix(prefix)?)))
        .unwrap_or_else(|| PathBuf::from(path))
    }

    /// Mount points of a file system type, in the order of mounting.
    pub(super) fn mounts(&self, kind: &str) -> Vec<String> {
        let mounts = self.proc_text("self/mounts").unwrap_or_default();
        let of_kind = mounts.lines().filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (_, point, found) = (fields.next()?, fields.next()?, fields.next()?);
            // The kernel writes blanks as \040; paths with other escapes are nobody's mount point.
            (found == kind).then(|| point.replace("\\040", " "))
        });
        of_kind.collect()
    }

    /// The kernel's build configuration, if it can be had.
    pub(super) fn kernel_config(&self, release: &str) -> Option<KernelConfig> {
        let packed = File::open(self.proc.join("config.gz"))
            .ok()
            .and_then(|file| {
                let mut text = String::new();
                flate2::read::GzDecoder::new(file)
                    .take(MAX_TEXT)
                    .read_to_string(&mut text)
                    .ok()?;
                Some(text)
            });
        packed
            .or_else(|| text(&self.boot.join(format!("config-{release}"))))
            .map(KernelConfig)
    }
}

/// Text of a file; `None` when it is not there, not readable or not text.
pub(super) fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(MAX_TEXT)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

/// The kernel's build configuration.
#[derive(Clone, Debug)]
pub struct KernelConfig(String);

impl KernelConfig {
    /// Whether `CONFIG_<option>` is built in or a module.
    pub fn has(&self, option: &str) -> bool {
        self.0.lines().any(|line| {
            let value = line
                .strip_prefix("CONFIG_")
                .and_then(|line| line.strip_prefix(option));
            matches!(value, Some("=y" | "=m"))
        })
    }
}
