//! The driver as a process of its own, so that it has a pid and a service name to be traced by.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::{Plan, Report, SERVICE_NAME};
use crate::{process, services};

/// A running driver; ended when dropped.
#[derive(Debug)]
pub struct Driver {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Plan {
    /// `requests` of everything at `concurrency`.
    pub fn load(
        address: std::net::SocketAddr,
        run: &str,
        requests: usize,
        concurrency: usize,
    ) -> Self {
        Self {
            address,
            run: run.to_owned(),
            requests,
            concurrency,
            mix: super::Mix::Everything,
            header: Vec::new(),
            preopen: false,
            warm: false,
        }
    }

    /// The command line of a driver that carries this plan out.
    pub fn command(&self) -> Command {
        let Self {
            address,
            run,
            requests,
            concurrency,
            mix,
            header,
            preopen,
            warm,
        } = self;
        let mut command = Command::new(services::own_binary("tracer-driver"));
        command
            .arg("--address")
            .arg(address.to_string())
            .arg("--run")
            .arg(run);
        command
            .arg("--requests")
            .arg(requests.to_string())
            .arg("--concurrency")
            .arg(concurrency.to_string());
        command.arg("--mix").arg(match mix {
            super::Mix::Everything => "everything",
            super::Mix::Simple => "simple",
            super::Mix::Fresh => "fresh",
        });
        for header in header {
            command.arg("--header").arg(header);
        }
        if *preopen {
            command.arg("--preopen");
        }
        if *warm {
            command.arg("--warm");
        }
        command
    }

    /// Carries the plan out in a process of its own.
    pub fn run(&self) -> Report {
        let mut driver = Driver::start(self);
        driver.report()
    }
}

impl Driver {
    /// Starts it. With `preopen` it comes back when the connections are open.
    pub fn start(plan: &Plan) -> Self {
        let mut driver = Self::of(plan.command());
        if plan.preopen {
            assert_eq!(
                driver.line(),
                "ready",
                "the driver did not get its connections open"
            );
        }
        driver
    }

    /// Starts any client that reports as the driver does.
    pub fn of(mut command: Command) -> Self {
        let mut child = command
            .env("OTEL_SERVICE_NAME", SERVICE_NAME)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the driver");
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, output }
    }

    /// Lets a driver that waits with open connections send.
    pub fn go(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        stdin.write_all(b"go\n").expect("the driver listens");
    }

    /// Waits for the end of the run. The driver lives on until it is dropped, as a client whose
    /// connections are still open would.
    pub fn report(&mut self) -> Report {
        let line = self.line();
        serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("report of the driver: {error}: {line}"))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .expect("output of the driver");
        line.trim_end().to_owned()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if process::wait(&mut self.child, Duration::from_secs(1)).is_none() {
            process::end(&mut self.child);
        }
    }
}
