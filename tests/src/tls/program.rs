//! The programs: their TLS libraries, what is seen of each, and how it is started.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::{CONNECTIONS, Certificate, Client, REQUESTS};
use crate::agent::free_address;
use crate::services::{Service, build, source};

/// A program at one end of TLS connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "their facts say what they are")]
pub enum Program {
    Requests,
    Aiohttp,
    PythonSsl,
    Gunicorn,
    Uvicorn,
    Node,
    Go,
    GoStripped,
    Nginx,
    Curl,
    H2load,
    Wget,
    Dlopen,
    OpenSsl1,
    BoringSsl,
    NativeTls,
    GrpcGo,
    GrpcJs,
    Grpcio,
    Rustls,
}

/// What there is to say of a program.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// For people.
    pub name: &'static str,
    /// Its TLS library, and how it uses it.
    pub library: &'static str,
    /// Whether it is seen as a client; `None` if it is none, or none in the tests.
    pub client: Option<bool>,
    /// Whether it is seen as a server.
    pub server: Option<bool>,
}

impl Program {
    /// All, in the order of the page.
    pub const ALL: [Self; 20] = [
        Self::Requests,
        Self::Aiohttp,
        Self::PythonSsl,
        Self::Gunicorn,
        Self::Uvicorn,
        Self::Node,
        Self::Go,
        Self::GoStripped,
        Self::Nginx,
        Self::Curl,
        Self::H2load,
        Self::Wget,
        Self::Dlopen,
        Self::OpenSsl1,
        Self::BoringSsl,
        Self::NativeTls,
        Self::GrpcGo,
        Self::GrpcJs,
        Self::Grpcio,
        Self::Rustls,
    ];

    /// What the tests expect of it.
    pub fn facts(self) -> Facts {
        let (name, library, client, server) = match self {
            Self::Requests => ("Python requests", "OpenSSL on sockets", Some(true), None),
            Self::Aiohttp => (
                "Python aiohttp",
                "OpenSSL on memory",
                Some(true),
                Some(true),
            ),
            Self::PythonSsl => (
                "Python http.server with ssl",
                "OpenSSL on sockets",
                None,
                Some(true),
            ),
            Self::Gunicorn => ("gunicorn, threads", "OpenSSL on sockets", None, Some(true)),
            Self::Uvicorn => ("uvicorn", "OpenSSL on memory", None, Some(true)),
            Self::Node => (
                "Node https",
                "OpenSSL inside of the executable, on memory",
                Some(true),
                Some(true),
            ),
            Self::Go => (
                "Go net/http, HTTP/1.1 and HTTP/2",
                "crypto/tls",
                Some(true),
                Some(true),
            ),
            Self::GoStripped => (
                "the same, stripped",
                "crypto/tls without symbols",
                Some(true),
                Some(true),
            ),
            Self::Nginx => (
                "nginx, HTTP/1.1 and HTTP/2",
                "OpenSSL on sockets",
                None,
                Some(true),
            ),
            Self::Curl => (
                "curl, HTTP/1.1 and HTTP/2",
                "OpenSSL on sockets",
                Some(true),
                None,
            ),
            Self::H2load => (
                "h2load, HTTP/1.1 and HTTP/2",
                "OpenSSL on memory",
                Some(true),
                None,
            ),
            Self::Wget => ("wget", "GnuTLS", Some(true), None),
            Self::Dlopen => (
                "C, libssl 3 loaded by dlopen",
                "OpenSSL on sockets",
                Some(true),
                Some(true),
            ),
            Self::OpenSsl1 => (
                "C, libssl 1.1.1 of a Python wheel",
                "OpenSSL on sockets",
                Some(true),
                Some(true),
            ),
            Self::BoringSsl => (
                "C, BoringSSL of Debian's android-libboringssl",
                "BoringSSL with symbols, on sockets",
                Some(true),
                Some(true),
            ),
            Self::NativeTls => (
                "Rust hyper with native-tls",
                "OpenSSL on callbacks",
                Some(true),
                Some(true),
            ),
            Self::GrpcGo => ("grpc-go", "crypto/tls", Some(true), Some(true)),
            Self::GrpcJs => (
                "grpc-js",
                "OpenSSL inside of Node, on memory",
                Some(true),
                Some(true),
            ),
            Self::Grpcio => (
                "grpcio (gRPC's Python wheel)",
                "BoringSSL without symbols",
                Some(false),
                Some(false),
            ),
            Self::Rustls => ("Rust hyper with rustls", "rustls", Some(false), Some(false)),
        };
        Facts {
            name,
            library,
            client,
            server,
        }
    }

    /// Starts its server, which prints its port.
    pub fn server(self, certificate: &Certificate) -> Result<Service, String> {
        if self == Self::Gunicorn {
            return gunicorn(certificate);
        }
        let mut command = match self {
            Self::PythonSsl => script(build::https_python()?, "server.py"),
            Self::Aiohttp => script(build::https_python()?, "aiohttp_server.py"),
            Self::Uvicorn => script(build::https_python()?, "uvicorn_server.py"),
            Self::Node => script("node".into(), "server.js"),
            _ => self.binary("server")?,
        };
        command.args(certificate.arguments());
        Service::unnamed("https", command)
    }

    /// Starts its client, which waits.
    pub fn client(self, server: SocketAddr, tag: &str) -> Result<Client, String> {
        let mut command = match self {
            Self::Requests => script(build::https_python()?, "client.py"),
            Self::Aiohttp => script(build::https_python()?, "aiohttp_client.py"),
            Self::Node => script("node".into(), "client.js"),
            _ => self.binary("client")?,
        };
        command.arg(server.port().to_string()).arg(tag);
        command.args([REQUESTS, CONNECTIONS].map(|n| n.to_string()));
        Client::start(command)
    }

    /// Programs that are both, by their first argument.
    fn binary(self, what: &str) -> Result<Command, String> {
        let program = match self {
            Self::Go => build::go_tls(""),
            Self::GoStripped => build::go_tls("-s -w"),
            Self::NativeTls => build::rust_tls("rust-native-tls"),
            Self::Rustls => build::rust_tls("rust-rustls"),
            other => Err(format!("{other:?} is no {what} here")),
        };
        let mut command = Command::new(program?);
        command.arg(what);
        Ok(command)
    }
}

fn script(program: PathBuf, file: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(source("tls").join(file));
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn gunicorn(certificate: &Certificate) -> Result<Service, String> {
    let address = free_address();
    let mut command = Command::new(build::https_python()?);
    command.args(["-m", "gunicorn", "--bind", &address.to_string()]);
    command.args(["--worker-class", "gthread", "--workers", "2"]);
    command.args(["--threads", "16", "--keep-alive", "75", "--timeout", "120"]);
    command.args(["--no-control-socket", "--chdir"]);
    command.arg(source("tls"));
    command.arg("--certfile").arg(certificate.certificate());
    command.arg("--keyfile").arg(certificate.key());
    command.arg("wsgi:application");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    Service::listening("gunicorn", command, address)
}
