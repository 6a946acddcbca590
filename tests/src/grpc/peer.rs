//! The libraries: how each is started as server and as client, and how a client is led.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use super::call::{Call, Done};
use crate::process;
use crate::services::{Service, build, own_binary, source, target_dir};
use crate::tls::Certificate;

/// A gRPC library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// grpcio with threads.
    PythonSync,
    /// grpcio with asyncio.
    PythonAsync,
    /// grpc-js.
    Node,
    /// tonic.
    Rust,
    /// grpc-go.
    Go,
    /// grpc-java on netty.
    Java,
}

impl Peer {
    /// `service.name` of its server.
    pub fn name(self) -> &'static str {
        match self {
            Self::PythonSync => "grpc-python-sync",
            Self::PythonAsync => "grpc-python-async",
            Self::Node => "grpc-node",
            Self::Rust => "grpc-rust",
            Self::Go => "grpc-go",
            Self::Java => "grpc-java",
        }
    }

    /// The program; the reason if this machine has not what it needs.
    fn command(self) -> Result<Command, String> {
        let program = |program: PathBuf, argument: &str| {
            let mut command = Command::new(program);
            command.arg(source(argument));
            command
        };
        Ok(match self {
            Self::PythonSync | Self::PythonAsync => {
                let python = target_dir().join("venv/bin/python");
                let works = Command::new(&python).args(["-c", "import grpc"]).output();
                if !works.is_ok_and(|output| output.status.success()) {
                    return Err(needs("grpcio"));
                }
                let file = match self {
                    Self::PythonSync => "grpc/python/sync.py",
                    _ => "grpc/python/aio.py",
                };
                let mut command = program(python, file);
                command.env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
            Self::Node => {
                let modules = target_dir().join("npm/node_modules");
                if !modules.join("@grpc/grpc-js").is_dir() {
                    return Err(needs("@grpc/grpc-js"));
                }
                let mut command = program("node".into(), "grpc/node/peers.js");
                command.env("PEERS_MODULES", modules);
                command
            }
            Self::Rust => Command::new(own_binary("tracer-peers")),
            Self::Go => Command::new(build::go_of("go-grpc", "grpc/go")?),
            Self::Java => {
                let jars = target_dir().join("maven/grpc");
                if !jars.is_dir() {
                    return Err(needs("grpc-java"));
                }
                let classes = build::java_peers(&jars)?;
                let mut command = Command::new("java");
                command.args(["-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp"]);
                command.arg(format!("{}:{}/*", classes.display(), jars.display()));
                command.arg("Peers");
                command
            }
        })
    }

    /// Starts its server.
    pub fn server(self) -> Result<Service, String> {
        self.server_with(None)
    }

    /// Starts its client.
    pub fn client(self, address: SocketAddr) -> Result<Client, String> {
        self.client_with(address, None)
    }

    /// Starts its server, with TLS if there is a certificate.
    pub fn server_with(self, certificate: Option<&Certificate>) -> Result<Service, String> {
        let mut command = self.command()?;
        command.arg("server").envs(self.tls(certificate)?);
        Service::printing(self.name(), command)
    }

    /// Starts its client, with TLS if there is a certificate.
    pub fn client_with(
        self,
        address: SocketAddr,
        certificate: Option<&Certificate>,
    ) -> Result<Client, String> {
        let mut command = self.command()?;
        command.envs(self.tls(certificate)?);
        let name = format!("{}-client", self.name());
        command.arg("client").arg(address.to_string());
        command.env("OTEL_SERVICE_NAME", &name);
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{name}: {error}"))?;
        Client::of(child, name)
    }

    /// What makes it speak TLS.
    fn tls(self, certificate: Option<&Certificate>) -> Result<Vec<(&str, PathBuf)>, String> {
        let Some(certificate) = certificate else {
            return Ok(Vec::new());
        };
        if !matches!(self, Self::Go | Self::Node | Self::PythonSync) {
            return Err(format!("{} speaks no TLS", self.name()));
        }
        Ok(vec![
            ("PEERS_CERTIFICATE", certificate.certificate()),
            ("PEERS_KEY", certificate.key()),
        ])
    }
}

fn needs(what: &str) -> String {
    format!("there is no {what}: run `cargo xtask setup --tests`")
}

/// A client; its channel is open until this is dropped.
#[derive(Debug)]
pub struct Client {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Its `service.name`.
    pub name: String,
}

impl Client {
    fn of(mut child: Child, name: String) -> Result<Self, String> {
        let output = child.stdout.take().ok_or("stdout is piped")?;
        let output = BufReader::new(output);
        Ok(Self {
            child,
            output,
            name,
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Makes the calls; what it says of each, in their order.
    pub fn run(&mut self, calls: &[Call], concurrency: usize) -> Vec<Done> {
        let mut text: String = calls.iter().map(|call| call.line() + "\n").collect();
        text.push_str(&format!("run {concurrency}\n"));
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        stdin.write_all(text.as_bytes()).expect("the client reads");
        let mut done = Vec::with_capacity(calls.len());
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).expect("a client's line");
            assert!(read > 0, "{} ended", self.name);
            if line.trim_end() == "ran" {
                break;
            }
            let of = Done::of(line.trim_end());
            done.push(of.unwrap_or_else(|| panic!("{} printed {line:?}", self.name)));
        }
        done.sort_by_key(|done| done.index);
        let same = done.iter().map(|done| done.index);
        assert!(
            same.eq(calls.iter().map(|call| call.index)),
            "{} made other calls",
            self.name
        );
        done
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        process::end(&mut self.child);
    }
}
