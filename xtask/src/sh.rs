//! Running other programs: echoed, with errors of one line.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

/// The workspace's root directory.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        manifest.parent().unwrap_or(manifest).to_path_buf()
    })
}

/// The workspace's target directory. CARGO_TARGET_DIR does not move it: where the binary and the
/// eBPF object lie is part of the project's contract.
pub fn target() -> PathBuf {
    root().join("target")
}

/// The text of a command as one would type it.
pub fn line(command: &Command) -> String {
    let quote = |word: &OsStr| {
        let word = word.to_string_lossy();
        let plain =
            |c: char| c.is_ascii_alphanumeric() || "/._-=:,+@%^~".contains(c) || !c.is_ascii();
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let mut words: Vec<String> = Vec::new();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!("{}={}", key.to_string_lossy(), quote(value)));
        }
    }
    words.push(quote(command.get_program()));
    words.extend(command.get_args().map(quote));
    words.join(" ")
}

/// Shows the command that is about to run.
pub fn echo(command: &Command) {
    match command.get_current_dir() {
        Some(directory) if directory != root() => {
            let directory = directory.strip_prefix(root()).unwrap_or(directory);
            eprintln!("$ (cd {}) {}", directory.display(), line(command));
        }
        _ => eprintln!("$ {}", line(command)),
    }
}

/// Runs a command with the terminal's output; an error if it cannot start or fails.
pub fn run(command: &mut Command) -> Result<()> {
    echo(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status}); its output is above", line(command));
    }
    Ok(())
}

/// Runs a command silently and returns its standard output; an error if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default();
        bail!("`{}` failed ({}): {last}", line(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Builds the Go program in `folder` of this project.
pub fn go_build(go: &Path, folder: &str, program: &Path) -> Result<()> {
    run(Command::new(go)
        .args(["build", "-o"])
        .arg(program)
        .arg(".")
        .current_dir(root().join(folder)))
}

/// Where `name` is in PATH, or in the directories of system tools that users' PATHs leave out.
pub fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| is_executable(file))
}

/// Whether it is a file somebody may execute.
pub fn is_executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Cargo at the workspace's root, with the toolchain that runs this program.
pub fn cargo() -> Command {
    let mut command = clean(Command::new(
        std::env::var_os("CARGO").unwrap_or("cargo".into()),
    ));
    if let Some(toolchain) = std::env::var_os("RUSTUP_TOOLCHAIN") {
        command.env("RUSTUP_TOOLCHAIN", toolchain);
    }
    command.current_dir(root());
    command
}

/// Takes out of the command's environment what cargo and rustup put into ours, and flags that
/// would replace those the eBPF build needs (RUSTFLAGS beats every `rustflags` of a config file).
pub fn clean(mut command: Command) -> Command {
    for (key, _) in std::env::vars_os() {
        if key.to_str().is_some_and(is_leaked) {
            command.env_remove(key);
        }
    }
    if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
        let kept: Vec<PathBuf> = std::env::split_paths(&path)
            .filter(|entry| !entry.starts_with(root()) && !entry.components().any(is_toolchain))
            .collect();
        match std::env::join_paths(&kept) {
            Ok(path) if !path.is_empty() => command.env("LD_LIBRARY_PATH", path),
            _ => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
    command
}

fn is_toolchain(component: std::path::Component<'_>) -> bool {
    component.as_os_str() == "toolchains"
}

/// User settings of cargo (home, network, registries, terminal) stay; the rest describes the build
/// of this program or would change the build of another.
fn is_leaked(key: &str) -> bool {
    const KEPT: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "CARGO_INCREMENTAL",
    ];
    match key {
        "RUSTFLAGS"
        | "RUSTC"
        | "RUSTDOC"
        | "RUSTDOCFLAGS"
        | "RUSTUP_TOOLCHAIN"
        | "RUST_RECURSION_COUNT"
        | "RUSTC_BOOTSTRAP" => true,
        _ => key.starts_with("CARGO") && !KEPT.iter().any(|kept| key.starts_with(kept)),
    }
}

/// The environment without the variables that start with one of these prefixes, for a program
/// whose behaviour must not depend on the user's settings.
pub fn env_without(prefixes: &[&str]) -> HashMap<OsString, OsString> {
    std::env::vars_os()
        .filter(|(key, _)| {
            !prefixes
                .iter()
                .any(|p| key.to_string_lossy().starts_with(p))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_variables_that_describe_this_program_are_taken_out() {
        let check = |key: &str, leaked: bool| assert_eq!(is_leaked(key), leaked, "{key}");
        check("CARGO", true);
        check("CARGO_MANIFEST_DIR", true);
        check("CARGO_PKG_NAME", true);
        check("CARGO_TARGET_DIR", true);
        check("CARGO_ENCODED_RUSTFLAGS", true);
        check("CARGO_BUILD_TARGET", true);
        check("RUSTFLAGS", true);
        check("RUSTUP_TOOLCHAIN", true);
        check("CARGO_HOME", false);
        check("CARGO_NET_OFFLINE", false);
        check("CARGO_REGISTRIES_X_TOKEN", false);
        check("RUSTUP_HOME", false);
        check("PATH", false);
    }

    #[test]
    fn a_line_can_be_pasted_into_a_shell() {
        let check = |command: &mut Command, text: &str| assert_eq!(line(command), text);
        check(Command::new("cargo").arg("build"), "cargo build");
        check(Command::new("echo").args(["a b", ""]), "echo 'a b' ''");
        check(
            Command::new("x").arg("it's").env("A", "1 2"),
            r"A='1 2' x 'it'\''s'",
        );
    }

    #[test]
    fn errors_name_the_command_and_its_last_line() {
        let error = output(Command::new("sh").args(["-c", "echo one >&2; echo two >&2; exit 3"]))
            .expect_err("exit 3 is a failure");
        let text = format!("{error:#}");
        assert!(
            text.contains("exit status: 3") && text.ends_with(": two"),
            "{text}"
        );
        let missing = run(&mut Command::new("/nonexistent/tool")).expect_err("cannot start");
        assert!(format!("{missing:#}").starts_with("cannot start `/nonexistent/tool`"));
    }
}
