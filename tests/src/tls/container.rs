//! What a container is to the agent: a root directory and a mount namespace of its own, with its own
//! files of a TLS library.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Certificate, Client};
use crate::services::build;

/// Where each container has its libraries, whatever they are called outside.
const LIBRARIES: &str = "lib/tls";
const LIBSSL: &str = "/lib/tls/libssl.so";

/// A root directory with the program `services/c/dlopen.c`, a libssl and all that both need.
#[derive(Debug)]
pub struct Container {
    root: TempDir,
}

impl Container {
    /// Copies what is needed; the reason if this machine has not got it.
    pub fn new(libssl: &Path, certificate: &Certificate) -> Result<Self, String> {
        let root = TempDir::new().map_err(|error| error.to_string())?;
        let made = Self { root };
        let program = build::dlopen()?;
        made.put(&program, "program")?;
        made.put(libssl, LIBSSL)?;
        for (of, beside) in [(&*program, None), (libssl, libssl.parent())] {
            for (name, path) in needed(of, beside)? {
                if name.contains('/') {
                    made.put(&path, &name)?; // The loader, named by its place.
                } else {
                    made.put(&path, &format!("{LIBRARIES}/{name}"))?;
                }
            }
        }
        made.put(&certificate.certificate(), "certificate.pem")?;
        made.put(&certificate.key(), "key.pem")?;
        Ok(made)
    }

    fn put(&self, from: &Path, to: &str) -> Result<(), String> {
        let to = self.root.path().join(to.trim_start_matches('/'));
        let directory = to.parent().ok_or("no directory")?;
        std::fs::create_dir_all(directory)
            .and_then(|()| std::fs::copy(from, &to))
            .map(|_| ())
            .map_err(|error| format!("{} to {}: {error}", from.display(), to.display()))
    }

    fn start(&self, words: &[String]) -> Result<Client, String> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "chroot"]).arg(self.root.path());
        command.args(["/program", LIBSSL]).args(words);
        command.env("LD_LIBRARY_PATH", format!("/{LIBRARIES}"));
        Client::start(command)
    }

    /// A server that waits before it loads the library. Then it says its version and its port.
    pub fn server(&self) -> Result<Client, String> {
        self.start(&["server", "/certificate.pem", "/key.pem"].map(str::to_owned))
    }

    /// Its libssl.
    pub fn libssl(&self) -> PathBuf {
        self.root.path().join(LIBSSL.trim_start_matches('/'))
    }

    /// Another file takes the place of libssl: who has it loaded keeps the one that is gone.
    pub fn replace_libssl(&self) -> Result<(), String> {
        let place = self.libssl();
        let new = place.with_extension("new");
        std::fs::copy(&place, &new)
            .and_then(|_| std::fs::rename(&new, &place))
            .map_err(|error| format!("{}: {error}", place.display()))
    }

    /// A client that waits before it loads the library; then it says its version and waits again.
    pub fn client(&self, port: &str, tag: &str) -> Result<Client, String> {
        let numbers = [super::REQUESTS, super::CONNECTIONS].map(|n| n.to_string());
        let words = ["client".into(), port.into(), tag.into()];
        self.start(&[&words[..], &numbers].concat())
    }
}

/// The libssl that programs of this machine are linked with.
pub fn host_libssl() -> Result<PathBuf, String> {
    let libraries = needed(&build::strict()?, None)?;
    let mut found = libraries.into_iter();
    let found = found.find(|(name, _)| name.starts_with("libssl"));
    found.map(|(_, path)| path).ok_or("no libssl".to_owned())
}

/// A libssl of another version than the machine's.
pub fn other_libssl() -> Result<PathBuf, String> {
    let directory = build::wheel_libraries()?;
    let files = std::fs::read_dir(directory).map_err(|error| error.to_string())?;
    let mut paths = files.flatten().map(|file| file.path());
    let found = paths.find(|path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("libssl")
    });
    found.ok_or("the wheel has no libssl".to_owned())
}

/// Libraries of OpenSSL's family: BoringSSL, and those that `TRACER_TESTS_LIBSSL` names, separated by
/// colons. Each has its libcrypto beside it.
pub fn relatives() -> Vec<Result<PathBuf, String>> {
    let named = std::env::var_os("TRACER_TESTS_LIBSSL").unwrap_or_default();
    let named = std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty());
    let mut all = vec![build::boringssl()];
    all.extend(named.map(Ok));
    all
}

/// What the loader loads for a file: names, and where they are. `beside` is looked in first.
fn needed(file: &Path, beside: Option<&Path>) -> Result<Vec<(String, PathBuf)>, String> {
    let mut command = Command::new("ldd");
    if let Some(directory) = beside {
        command.env("LD_LIBRARY_PATH", directory);
    }
    let output = command.arg(file).output();
    let output = output.map_err(|error| format!("ldd: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter_map(|line| {
        let (line, _address) = line.trim().split_once(" (0x")?;
        let (name, path) = line.split_once(" => ").unwrap_or((line, line));
        let path = Path::new(path.trim());
        path.is_absolute()
            .then(|| (name.trim().to_owned(), path.to_owned()))
    });
    Ok(lines.collect())
}
