//! The image in a real container: unpacked by umoci, run by runc.
//!
//! Not a container like any other: the agent sees the host's processes (no pid namespace of its own), as it does with
//! `hostPID`, and may do what is asked for and nothing else. Its mounts, its network and its host name are its own, its
//! root file system cannot be written to.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ledger::Ledger;
use crate::{process, services, sys};

/// Where the image keeps what the agent writes.
const SPOOL: &str = "/var/spool/tracer-agent";
/// Where probes are looked up; a container's own /sys has it not.
const TRACEFS: &str = "/sys/kernel/tracing";

/// The image that `cargo xtask test` makes for tests.
pub fn image() -> PathBuf {
    services::target_dir().join("image-test")
}

/// A container with the agent in it; ended when dropped.
#[derive(Debug)]
pub struct Container {
    runc: Child,
    id: String,
    admin: SocketAddr,
    /// Of the agent, among the host's.
    pub pid: u32,
    directory: TempDir,
}

/// What is missing for one.
pub fn missing() -> Option<String> {
    let image = image();
    if !image.join("index.json").is_file() {
        return Some(format!(
            "no image at {}: run `cargo xtask image --test`",
            image.display()
        ));
    }
    ["umoci", "runc", "nsenter", "curl"]
        .into_iter()
        .find_map(|tool| {
            let there = Command::new(tool).arg("--version").output().is_ok();
            (!there).then(|| format!("no {tool}: run `cargo xtask setup --tests`"))
        })
}

impl Container {
    /// Unpacks the image and starts it, with these capabilities, variables and further arguments.
    pub fn start(id: &str, capabilities: &[&str], env: &[(&str, &str)], args: &[&str]) -> Self {
        let directory = TempDir::new().expect("a directory");
        let bundle = directory.path().join("bundle");
        let name = format!("{}:{}", image().display(), env!("CARGO_PKG_VERSION"));
        process::run(
            Command::new("umoci")
                .args(["unpack", "--image", &name])
                .arg(&bundle),
        )
        .expect("unpack the image");
        std::fs::create_dir(directory.path().join("spool")).expect("a directory");
        // Loopback is the container's own, so every port is free.
        let admin = SocketAddr::from(([127, 0, 0, 1], 9468));
        let path = bundle.join("config.json");
        let config = std::fs::read(&path).expect("umoci writes a configuration");
        let mut config: Value = serde_json::from_slice(&config).expect("JSON");
        let spool = directory.path().join("spool");
        configure(&mut config, &spool, capabilities, env, args);
        std::fs::write(&path, config.to_string()).expect("write the configuration");
        let file = |name: &str| File::create(directory.path().join(name)).expect("a file");
        let pid_file = directory.path().join("pid");
        let runc = Command::new("runc")
            .arg("--root")
            .arg(directory.path().join("state"))
            .args(["run", "--bundle"])
            .arg(&bundle)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(id)
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .expect("runc");
        let mut container = Self {
            runc,
            id: id.to_owned(),
            admin,
            pid: 0,
            directory,
        };
        container.pid = container.wait("it started", || {
            std::fs::read_to_string(&pid_file).ok()?.trim().parse().ok()
        });
        container.wait("it was ready", || container.page("/readyz"));
        container
    }

    /// Tries until there is something; fails when the container ends, or it takes too long.
    fn wait<T>(&self, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
        const LIMIT: Duration = Duration::from_secs(60);
        let found = process::poll_until(LIMIT, || {
            std::thread::sleep(Duration::from_millis(50));
            // Its id was not collected yet, so nobody else has it.
            match process::runs(self.runc.id()) {
                true => done().map(Ok),
                false => Some(Err(())),
            }
        });
        match found {
            Some(Ok(value)) => value,
            Some(Err(())) => panic!("the container ended before {what}\n{}", self.stderr()),
            None => panic!("{what}: not within {LIMIT:?}\n{}", self.stderr()),
        }
    }

    /// A page of the admin endpoint, which listens in the container's network.
    pub fn page(&self, path: &str) -> Option<String> {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.pid))
            .args([
                "curl",
                "--silent",
                "--fail",
                "--max-time",
                "10",
                "--noproxy",
                "*",
            ])
            .arg(format!("http://{}{path}", self.admin))
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    }

    /// The ledger once nothing is on its way any more.
    pub fn drained_ledger(&self) -> Ledger {
        self.wait("the ledger was drained", || {
            let page = self.page("/ledger")?;
            let ledger = Ledger::parse(page.as_bytes()).expect("a ledger");
            ledger.drained().then_some(ledger)
        })
    }

    /// A file that the agent wrote.
    pub fn spool(&self, name: &str) -> PathBuf {
        self.directory.path().join("spool").join(name)
    }

    /// Its log so far.
    pub fn stderr(&self) -> String {
        let text = std::fs::read(self.directory.path().join("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// SIGTERM to the agent; how the container ended.
    pub fn stop(mut self) -> (ExitStatus, String) {
        const LIMIT: Duration = Duration::from_secs(30);
        assert!(sys::signal(self.pid, libc::SIGTERM), "the agent is gone");
        let status = process::wait(&mut self.runc, LIMIT);
        let status = status.unwrap_or_else(|| panic!("still running\n{}", self.stderr()));
        (status, self.stderr())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if matches!(self.runc.try_wait(), Ok(None)) && self.pid > 1 {
            sys::signal(self.pid, libc::SIGKILL);
        }
        process::end(&mut self.runc);
        // Ends nothing but what is left of this container, by its id.
        let _ = Command::new("runc")
            .arg("--root")
            .arg(self.directory.path().join("state"))
            .args(["delete", "--force", &self.id])
            .output();
    }
}

/// What a manifest would say.
fn configure(
    config: &mut Value,
    spool: &Path,
    capabilities: &[&str],
    env: &[(&str, &str)],
    args: &[&str],
) {
    let process = &mut config["process"];
    process["terminal"] = json!(false);
    process["noNewPrivileges"] = json!(true);
    process["capabilities"] = json!({
        "bounding": capabilities,
        "effective": capabilities,
        "permitted": capabilities,
    });
    let words = process["args"].as_array_mut().expect("arguments");
    words.extend(args.iter().map(|arg| json!(arg)));
    let variables = process["env"].as_array_mut().expect("variables");
    variables.extend(
        env.iter()
            .map(|(name, value)| json!(format!("{name}={value}"))),
    );
    config["root"]["readonly"] = json!(true);
    let mounts = config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["type"] != "cgroup");
    let bind = |from: &Path, to: &str, mode: &str| {
        json!({
            "destination": to,
            "type": "bind",
            "source": from,
            "options": ["rbind", "nosuid", "nodev", "noexec", mode],
        })
    };
    mounts.push(bind(Path::new(TRACEFS), TRACEFS, "ro"));
    mounts.push(bind(spool, SPOOL, "rw"));
    config["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "network"}, {"type": "uts"}, {"type": "ipc"},
    ]);
    if let Some(linux) = config["linux"].as_object_mut() {
        for setting in ["resources", "uidMappings", "gidMappings"] {
            linux.remove(setting);
        }
    }
}
