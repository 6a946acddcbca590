//! The agent under test, through its contract only: flags, environment, admin endpoint, signals.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::ledger::{Ledger, Open};
use crate::receiver::Receiver;
use crate::{http, process, sys};

/// From start to `/readyz`. Half a second on an idle machine (`cargo xtask bench` measures it); attaching
/// waits for the kernel's grace periods, which are long while all CPUs are busy.
pub const READY_LIMIT: Duration = Duration::from_secs(120);
/// From SIGTERM to the end: 5 s by contract, and more for a busy machine.
pub const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Path of the agent's binary: `$TRACER_AGENT`, or the release build beside this test's own.
pub fn binary() -> PathBuf {
    match std::env::var_os("TRACER_AGENT") {
        Some(path) if !path.is_empty() => path.into(),
        _ => crate::services::target_dir().join("release/tracer-agent"),
    }
}

/// A port that was free a moment ago, for programs that cannot report the one the kernel chose.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    listener.local_addr().expect("address")
}

/// How to start an agent.
#[derive(Debug)]
pub struct Start {
    command: Command,
    admin: SocketAddr,
    files: TempDir,
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    /// Address of its admin endpoint.
    pub admin: SocketAddr,
    /// From start to `/readyz` saying 200.
    pub ready_after: Duration,
    files: TempDir,
}

/// What a stopped agent leaves.
#[derive(Debug)]
pub struct Stopped {
    /// How it ended.
    pub status: ExitStatus,
    /// From SIGTERM to its end.
    pub took: Duration,
    /// Its log.
    pub stderr: String,
    /// Its output.
    pub stdout: String,
}

impl Start {
    /// `tracer-agent run` with an environment free of what the caller's shell may have set.
    pub fn new() -> Self {
        let admin = free_address();
        let mut command = Command::new(binary());
        command
            .arg("run")
            .arg("--admin")
            .arg(admin.to_string())
            .stdin(Stdio::null())
            // Whoever else traces this host while a test runs goes on.
            .env("TRACER_TAKEOVER", "off");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("OTEL_") {
                command.env_remove(name);
            }
        }
        let patience = process::patience();
        if patience > 1 {
            // An answer that comes too late has spans sent again: twice is not what tests count.
            let timeout_ms = 10_000 * patience;
            command.env("OTEL_EXPORTER_OTLP_TIMEOUT", timeout_ms.to_string());
        }
        Self {
            command,
            admin,
            files: TempDir::new().expect("a directory for the agent's output"),
        }
    }

    /// Exports to `receiver` as http/protobuf.
    pub fn export_http(self, receiver: &Receiver) -> Self {
        self.env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://{}", receiver.http),
        )
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    }

    /// Exports to `receiver` over gRPC.
    pub fn export_grpc(self, receiver: &Receiver) -> Self {
        self.env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            format!("http://{}", receiver.grpc),
        )
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    }

    /// Traces nothing but the test's own process: what others do on this host is not its matter.
    pub fn only_this_process(self) -> Self {
        self.arg("--include-pid")
            .arg(std::process::id().to_string())
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// As this user, with these capabilities (`bpf`, `perfmon`, …) and no others.
    pub fn with_rights(mut self, user: u32, capabilities: &[&str]) -> Self {
        let mut command = crate::rights::command(user, capabilities);
        command
            .arg(crate::rights::reachable_agent())
            .args(self.command.get_args())
            .stdin(Stdio::null());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.command = command;
        self
    }

    /// Like [`ready`](Self::ready), and until what runs has its probes in its TLS libraries: on a busy machine
    /// the agent does not wait for that.
    pub fn ready_for_tls(self) -> Agent {
        let agent = self.ready();
        let looked = "what runs was looked at for TLS libraries";
        let said = process::poll_until(READY_LIMIT, || {
            agent.stderr().contains(looked).then_some(())
        });
        assert!(said.is_some(), "{}", agent.stderr());
        agent
    }

    /// Starts it and waits until it is ready.
    pub fn ready(self) -> Agent {
        let mut agent = self.spawn();
        let start = Instant::now();
        let ready = process::poll_until(READY_LIMIT, || {
            if let Some(status) = agent.child.try_wait().expect("wait for the agent") {
                panic!(
                    "the agent ended before it was ready: {status}\n{}",
                    agent.stderr()
                );
            }
            http::get(agent.admin, "/readyz")
                .ok()
                .filter(|response| response.status == 200)
        });
        assert!(
            ready.is_some(),
            "not ready within {READY_LIMIT:?}\n{}",
            agent.stderr()
        );
        agent.ready_after = start.elapsed();
        agent
    }

    /// Starts it and waits for nothing.
    pub fn spawn(mut self) -> Agent {
        let file = |name| {
            File::create(self.files.path().join(name)).expect("a file for the agent's output")
        };
        let child = self
            .command
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn();
        let child = child.unwrap_or_else(|error| panic!("{}: {error}", binary().display()));
        Agent {
            child,
            admin: self.admin,
            ready_after: Duration::ZERO,
            files: self.files,
        }
    }
}

impl Default for Start {
    fn default() -> Self {
        Self::new()
    }
}

impl Agent {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Body of an admin page that must answer 200.
    pub fn page(&self, path: &str) -> Vec<u8> {
        let response = http::get(self.admin, path)
            .unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.stderr()));
        assert_eq!(response.status, 200, "{path}");
        response.body
    }

    /// The ledger now.
    pub fn ledger(&self) -> Ledger {
        let body = self.page("/ledger");
        Ledger::parse(&body)
            .unwrap_or_else(|error| panic!("/ledger: {error}: {}", String::from_utf8_lossy(&body)))
    }

    /// The metrics page now.
    pub fn metrics(&self) -> String {
        String::from_utf8(self.page("/metrics")).expect("metrics are text")
    }

    /// The ledger once nothing is on its way any more.
    pub fn drained_ledger(&self, limit: Duration) -> Ledger {
        let mut last = Ledger::default();
        let mut asked = 0;
        let mut open = Vec::new();
        let drained = process::poll_until(limit, || {
            // Asking is traffic too, if only on loopback: ask seldom.
            std::thread::sleep(Duration::from_millis(100));
            last = self.ledger();
            if last.drained() {
                return Some(());
            }
            asked += 1;
            if asked % 20 != 0 {
                return None;
            }
            // Other programs of this host may have exchanges that last long.
            open = serde_json::from_slice(&self.page("/ledger/open")).expect("open exchanges");
            let ours = process::tree(std::process::id());
            let is_foreign = |one: &&Open| one.pid != 0 && !ours.contains(&one.pid);
            let foreign = open.iter().filter(is_foreign).count() as u64;
            last.drained_but_for(foreign).then_some(())
        });
        assert!(
            drained.is_some(),
            "not drained within {limit:?}: {last:#?}, open: {open:#?}"
        );
        last
    }

    /// Its log so far.
    pub fn stderr(&self) -> String {
        self.output("stderr")
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        self.output("stdout")
    }

    fn output(&self, name: &str) -> String {
        let bytes = std::fs::read(self.files.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for its own end, as after a failed start.
    pub fn wait(mut self, limit: Duration) -> Stopped {
        let start = Instant::now();
        let status = process::wait(&mut self.child, limit);
        let status =
            status.unwrap_or_else(|| panic!("still running after {limit:?}\n{}", self.stderr()));
        Stopped {
            status,
            took: start.elapsed(),
            stderr: self.stderr(),
            stdout: self.stdout(),
        }
    }

    /// SIGTERM; it must drain and end with status 0 in time.
    pub fn stop(self) -> Stopped {
        assert!(
            sys::signal(self.pid(), libc::SIGTERM),
            "the agent is gone\n{}",
            self.stderr()
        );
        let stopped = self.wait(STOP_LIMIT);
        assert!(
            stopped.status.success(),
            "{}\n{}",
            stopped.status,
            stopped.stderr
        );
        stopped
    }
}

impl Agent {
    /// SIGTERM to an agent of `run -- CMD`: it must end in time and leave none of its children.
    pub fn stop_with_command(self) -> Stopped {
        let children = process::tree(self.pid());
        assert!(
            sys::signal(self.pid(), libc::SIGTERM),
            "the agent is gone\n{}",
            self.stderr()
        );
        let stopped = self.wait(STOP_LIMIT);
        for child in children {
            let gone = process::poll_until(STOP_LIMIT, || (!process::runs(child)).then_some(()));
            assert!(gone.is_some(), "its child {child} was left");
        }
        stopped
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            process::end(&mut self.child);
        }
    }
}
