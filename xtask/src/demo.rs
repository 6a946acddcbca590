//! `cargo xtask run --demo`: a little shop of real services that call each other.
//!
//! customers (Python) → gateway (nginx) → front (Python) → orders (Node) → stock (Go), payment
//! (Java). What the machine has no runtime for is left out and said so; only python3 is needed.
//! None of them has any tracing code, so that what the agent shows is all its own.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::child::Guard;
use crate::{http, sh};

/// How long a service may take until it listens; Java compiles its source first.
const START: Duration = Duration::from_secs(30);

/// The running services; all are ended when this is dropped.
#[derive(Debug)]
pub struct Demo {
    directory: PathBuf,
    python: PathBuf,
    /// Where customers go.
    entrance: String,
    services: Vec<Service>,
}

#[derive(Debug)]
struct Service {
    name: &'static str,
    guard: Guard,
    reported: bool,
}

impl Demo {
    /// Starts every service there is a runtime for, the last one first.
    pub fn start() -> Result<Self> {
        let python = sh::which("python3").context("the demo needs python3: install it")?;
        let directory = sh::target().join("demo");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let mut demo = Self {
            directory,
            python,
            entrance: String::new(),
            services: Vec::new(),
        };

        let payment = demo.payment();
        let stock = demo.stock().or_else(|| payment.clone());
        let orders = demo.orders(stock.as_deref(), payment.as_deref());
        let mut front = Command::new(&demo.python);
        front.arg(source("front.py"));
        if let Some(next) = orders.or(stock) {
            front.env("NEXT", next);
        }
        let front = demo.add("front", "Python", &mut front)?;
        demo.entrance = demo.gateway(&front).unwrap_or(front);
        Ok(demo)
    }

    /// Starts the customers.
    pub fn start_traffic(&mut self) -> Result<()> {
        let mut command = Command::new(&self.python);
        command
            .arg(source("customers.py"))
            .env("NEXT", &self.entrance);
        self.spawn("customers", command.stdout(Stdio::null()))?;
        eprintln!(
            "demo: customers call {} about twice a second",
            self.entrance
        );
        Ok(())
    }

    /// Says once of each service that it ended by itself.
    pub fn report_ended(&mut self) {
        for service in &mut self.services {
            if !service.reported
                && let Some(status) = service.guard.ended()
            {
                service.reported = true;
                let log = self.directory.join(format!("{}.log", service.name));
                eprintln!(
                    "demo: {} ended ({status}); see {}",
                    service.name,
                    log.display()
                );
            }
        }
    }

    fn payment(&mut self) -> Option<String> {
        let Some(java) = sh::which("java") else {
            eprintln!("demo: there is no java: payment is left out");
            return None;
        };
        let mut command = Command::new(java);
        command
            .args(["-XX:TieredStopAtLevel=1", "-Xmx64m"])
            .arg(source("Payment.java"));
        optional(self.add("payment", "Java", &mut command))
    }

    fn stock(&mut self) -> Option<String> {
        let Some(go) = sh::which("go") else {
            eprintln!("demo: there is no go: stock is left out");
            return None;
        };
        let binary = self.directory.join("stock");
        let mut build = Command::new(go);
        build
            .arg("build")
            .arg("-o")
            .arg(&binary)
            .arg(source("stock.go"));
        // A toolchain must not be fetched for one file without modules.
        build.env("GOTOOLCHAIN", "local").env("GO111MODULE", "off");
        if let Err(error) = sh::run(&mut build) {
            eprintln!("demo: stock is left out: {error:#}");
            return None;
        }
        optional(self.add("stock", "Go", &mut Command::new(binary)))
    }

    fn orders(&mut self, stock: Option<&str>, payment: Option<&str>) -> Option<String> {
        let Some(node) = sh::which("node") else {
            eprintln!("demo: there is no node: orders is left out");
            return None;
        };
        let mut command = Command::new(node);
        command.arg(source("orders.js"));
        command.env("STOCK", stock.unwrap_or_default());
        command.env("PAYMENT", payment.unwrap_or_default());
        optional(self.add("orders", "Node", &mut command))
    }

    fn gateway(&mut self, front: &str) -> Option<String> {
        let Some(nginx) = sh::which("nginx") else {
            eprintln!("demo: there is no nginx: the gateway is left out");
            return None;
        };
        optional(self.add_gateway(&nginx, front))
    }

    fn add_gateway(&mut self, nginx: &Path, front: &str) -> Result<String> {
        let port = http::free_port()?;
        let next = front
            .strip_prefix("http://")
            .context("the front has an address")?;
        let text = fs::read_to_string(source("gateway.conf"))
            .context("cannot read the gateway's configuration")?
            .replace("@DIR@", &self.directory.display().to_string())
            .replace("@PORT@", &port.to_string())
            .replace("@NEXT@", next);
        let config = self.directory.join("gateway.conf");
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = Command::new(nginx);
        command
            .arg("-p")
            .arg(&self.directory)
            .arg("-c")
            .arg(&config);
        self.spawn("gateway", command.stdout(Stdio::null()))?;
        let deadline = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            self.still_there("gateway", deadline)?;
        }
        let address = format!("http://127.0.0.1:{port}");
        eprintln!("demo: gateway (nginx) at {address}");
        Ok(address)
    }

    /// Starts a service that prints the port it listens on; returns its address.
    fn add(&mut self, name: &'static str, language: &str, command: &mut Command) -> Result<String> {
        let guard = self.spawn(name, command.stdout(Stdio::piped()))?;
        let stdout = guard
            .child()
            .stdout
            .take()
            .context("a pipe was asked for")?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            // Nobody listens any more if the time was over.
            let _ = sender.send(lines.next().and_then(Result::ok));
            // Keeps the pipe empty for as long as the service lives.
            lines.map_while(Result::ok).for_each(drop);
        });
        let line = receiver
            .recv_timeout(START)
            .ok()
            .flatten()
            .unwrap_or_default();
        let Ok(port) = line.trim().parse::<u16>() else {
            // The service goes with its guard.
            self.services.retain(|service| service.name != name);
            let log = self.directory.join(format!("{name}.log"));
            bail!("{name} does not tell its port; see {}", log.display());
        };
        let address = format!("http://127.0.0.1:{port}");
        eprintln!("demo: {name} ({language}) at {address}");
        Ok(address)
    }

    fn spawn(&mut self, name: &'static str, command: &mut Command) -> Result<&mut Guard> {
        let log = self.directory.join(format!("{name}.log"));
        let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let guard = Guard::start(command.stdin(Stdio::null()).stderr(log))
            .with_context(|| format!("the demo's {name}"))?;
        self.services.push(Service {
            name,
            guard,
            reported: false,
        });
        let service = self.services.last_mut().context("it was just added")?;
        Ok(&mut service.guard)
    }

    fn still_there(&mut self, name: &str, deadline: Instant) -> Result<()> {
        let index = self
            .services
            .iter()
            .position(|service| service.name == name);
        let ended = match index.and_then(|index| self.services.get_mut(index)) {
            Some(service) => service.guard.ended().is_some(),
            None => true,
        };
        if ended || Instant::now() >= deadline {
            self.services.retain(|service| service.name != name);
            let log = self.directory.join(format!("{name}.log"));
            bail!("{name} does not listen; see {}", log.display());
        }
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }
}

/// A service that is not needed: without it the demo is smaller.
fn optional(service: Result<String>) -> Option<String> {
    service
        .map_err(|error| eprintln!("demo: left out: {error:#}"))
        .ok()
}

fn source(name: &str) -> PathBuf {
    sh::root().join("xtask/demo").join(name)
}
