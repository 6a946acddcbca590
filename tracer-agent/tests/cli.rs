//! The binary from outside: exit statuses, and one clear line on stderr. Needs no privileges.

use std::process::{Command, Output, Stdio};

fn agent(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tracer-agent"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("OTEL_") || name.starts_with("TRACER_") || name == "RUST_LOG" {
            command.env_remove(name.as_ref());
        }
    }
    command
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("started")
}

#[test]
fn bad_usage_and_configuration_exit_2_with_one_line() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("agent.yaml");
    std::fs::write(&path, "admin: off\ncapture:\n  ring_siz: 1\n").expect("written");
    let file = path.to_str().expect("UTF-8");
    let check = |args: &[&str], env: &[(&str, &str)], says: &[&str]| {
        let output = agent(args, env);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(
            stderr.starts_with("tracer-agent: error: "),
            "{args:?}: {stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        for part in says {
            assert!(
                stderr.contains(part),
                "{args:?} should say {part:?}: {stderr}"
            );
        }
    };
    check(&["frob"], &[], &["frob", "--help"]);
    check(&["run", "--admn", "off"], &[], &["'--admn'", "'--admin'"]);
    check(&["replay"], &[], &["<FILE>"]);
    check(&["run", "--propagate=maybe"], &[], &["propagate", "maybe"]);
    check(
        &["run", "--config", file],
        &[],
        &["agent.yaml line 3: unknown key `capture.ring_siz`"],
    );
    check(&["run"], &[("TRACER_CONFIG", file)], &["line 3"]);
    check(&["replay", "x.pcap", "--config", file], &[], &["line 3"]);
    check(&["config", "check", file], &[], &["line 3"]);
    check(
        &["config", "check", "/nonexistent"],
        &[],
        &["/nonexistent: No such file"],
    );
    check(&["config", "check", "/proc"], &[], &["/proc"]);
    check(
        &["config", "print"],
        &[("TRACER_RING_SIZE", "3")],
        &["TRACER_RING_SIZE"],
    );
    check(&["run", "--include-pid", "0"], &[], &["--include-pid: `0`"]);
    check(&["run", "--log-level", "a=b=c"], &[], &["--log-level"]);
}

#[test]
fn what_is_asked_for_comes_on_stdout_with_status_0() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("agent.yaml");
    std::fs::write(&path, "admin: off\n").expect("written");
    let file = path.to_str().expect("UTF-8");
    let check = |args: &[&str], says: &str| {
        let output = agent(args, &[]);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            stdout.contains(says) && output.stderr.is_empty(),
            "{args:?}: {stdout}"
        );
    };
    check(
        &["--version"],
        concat!("tracer-agent ", env!("CARGO_PKG_VERSION")),
    );
    check(&["--help"], "doctor");
    check(&["run", "--help"], "--include-exe");
    check(&["config", "check", file], "ok");
    check(
        &["config", "print", "--config", file, "--ring-size", "1MiB"],
        "ring_size: 1MiB  # --ring-size",
    );
}

#[test]
fn doctor_speaks_json_whatever_the_host() {
    let output = agent(&["doctor", "--json"], &[]);
    let checks: Vec<serde_json::Value> =
        serde_json::from_slice(&output.stdout).expect("a JSON array");
    assert!(
        checks.iter().any(|check| check["check"] == "kernel"),
        "{checks:?}"
    );
    assert!(
        matches!(output.status.code(), Some(0 | 1)),
        "{:?}",
        output.status
    );
}
