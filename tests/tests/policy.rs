//! Policy: of two services exactly the one that the rules allow has SERVER spans, whether the rules
//! come by flags or by the configuration file, and whether the services or the agent start first.
//!
//! The service that must not be traced is asked first, the allowed one after it: once the spans of
//! the latter arrived and the agent has flushed and ended, nothing of the former can still come.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tracer_tests::agent::Start;
use tracer_tests::driver::{Mix, Plan, Report};
use tracer_tests::finish::finish;
use tracer_tests::receiver::Receiver;
use tracer_tests::services::{self, Language, Service};
use tracer_tests::session::{Session, skipped, unique};
use tracer_tests::span::Kind;

const REQUESTS: usize = 20;

/// The two services.
struct Two {
    allowed: Service,
    denied: Service,
}

/// Where rules are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Flags,
    File,
}

/// Who starts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Services,
    Agent,
}

/// One rule: its flag, its place in the file, its value.
struct Rule {
    flag: &'static str,
    /// `include` or `exclude`, and the key below it.
    key: (&'static str, &'static str),
    value: String,
}

impl Rule {
    fn new(
        flag: &'static str,
        key: (&'static str, &'static str),
        value: impl ToString,
    ) -> Vec<Self> {
        vec![Self {
            flag,
            key,
            value: value.to_string(),
        }]
    }

    fn apply(&self, by: By, start: Start, directory: &Path) -> Start {
        let Self {
            flag,
            key: (list, key),
            value,
        } = self;
        match by {
            By::Flags => start.arg(flag).arg(value),
            By::File => {
                let file = directory.join("config.yaml");
                let text = format!("discovery:\n  {list}:\n    {key}: [\"{value}\"]\n");
                std::fs::write(&file, text).expect("write the configuration");
                start.arg("--config").arg(file)
            }
        }
    }
}

fn ask(service: &Service, run: &str) -> Report {
    let mut plan = Plan::load(service.address, run, REQUESTS, 2);
    plan.mix = Mix::Everything;
    let report = plan.run();
    assert_eq!(report.failures(), Vec::<String>::new());
    report
}

/// True when every span of the service that was asked by this run has arrived in time. The driver's own may
/// come as well.
fn served(receiver: &Receiver, run: &str, limit: std::time::Duration) -> bool {
    let marker = format!("/r/{run}-");
    receiver.wait_for(limit, |spans| {
        let own =
            |span: &&tracer_tests::span::Span| span.kind == Kind::Server && span.mentions(&marker);
        spans.iter().filter(own).count() >= REQUESTS
    })
}

/// Asks the denied service, then the allowed one; then looks at everything that came.
fn asked(agent: tracer_tests::agent::Agent, receiver: &Receiver, two: &Two, what: &str) {
    let (denied, allowed) = (unique(), unique());
    ask(&two.denied, &denied);
    let pids = two.allowed.pids();
    ask(&two.allowed, &allowed);
    let server = |run: &str| {
        let spans = receiver.spans_of(&format!("/r/{run}-"));
        spans
            .into_iter()
            .filter(|span| span.kind == Kind::Server)
            .collect::<Vec<_>>()
    };
    let arrived = served(receiver, &allowed, std::time::Duration::from_secs(120));
    let (_, stopped) = finish(agent, receiver, &format!("/r/{allowed}-"), REQUESTS);
    let (of_allowed, of_denied) = (server(&allowed), server(&denied));
    assert!(
        arrived && of_allowed.len() == REQUESTS,
        "{what}: {} of {REQUESTS} spans of the allowed service\n{}",
        of_allowed.len(),
        stopped.stderr
    );
    for span in &of_allowed {
        let pid = span.pid().and_then(|pid| u32::try_from(pid).ok());
        assert!(pid.is_some_and(|pid| pids.contains(&pid)), "{span:?}");
    }
    assert!(
        of_denied.is_empty(),
        "{what}: {} spans of the denied service, first {:?}",
        of_denied.len(),
        of_denied.first()
    );
}

fn two() -> Result<Two, String> {
    Ok(Two {
        denied: Language::PythonThreaded.start()?,
        allowed: Language::Rust.start()?,
    })
}

fn check(test: &str, by: By, first: First, rules: impl Fn(Option<&Two>) -> Vec<Rule>) {
    let Some(_session) = Session::begin(test) else {
        return;
    };
    let directory = TempDir::new().expect("directory");
    let receiver = Receiver::start();
    let start = |two: Option<&Two>| {
        let start = Start::new().export_http(&receiver);
        rules(two)
            .iter()
            .fold(start, |start, rule| rule.apply(by, start, directory.path()))
            .ready()
    };
    let (agent, two) = match first {
        First::Services => {
            let two = two().expect("both services");
            (start(Some(&two)), two)
        }
        First::Agent => (start(None), two().expect("both services")),
    };
    asked(agent, &receiver, &two, test);
}

macro_rules! rules {
    ($($name:ident($flag:literal, $list:literal, $key:literal) = $value:expr;)*) => { $(
        mod $name {
            use super::*;

            fn rules(_: Option<&Two>) -> Vec<Rule> {
                Rule::new($flag, ($list, $key), $value)
            }

            #[test]
            fn flags_services_first() {
                let test = concat!("policy::", stringify!($name), "::flags_services_first");
                check(test, By::Flags, First::Services, rules);
            }

            #[test]
            fn flags_agent_first() {
                let test = concat!("policy::", stringify!($name), "::flags_agent_first");
                check(test, By::Flags, First::Agent, rules);
            }

            #[test]
            fn file_agent_first() {
                let test = concat!("policy::", stringify!($name), "::file_agent_first");
                check(test, By::File, First::Agent, rules);
            }
        }
    )* };
}

rules! {
    include_exe("--include-exe", "include", "exe") = "tracer-service";
    include_exe_path("--include-exe", "include", "exe") = "**/tracer-service";
    exclude_exe("--exclude-exe", "exclude", "exe") = "python*";
    include_cmdline("--include-cmdline", "include", "cmdline") = "tracer-service";
    exclude_cmdline("--exclude-cmdline", "exclude", "cmdline") = "threaded.py";
}

/// Rules that name what only a running service has.
macro_rules! numbers {
    ($($name:ident($flag:literal, $list:literal, $key:literal) = |$two:ident| $value:expr;)*) => { $(
        mod $name {
            use super::*;

            fn rules(two: Option<&Two>) -> Vec<Rule> {
                let $two = two.expect("the services run");
                Rule::new($flag, ($list, $key), $value)
            }

            #[test]
            fn flags() {
                let test = concat!("policy::", stringify!($name), "::flags");
                check(test, By::Flags, First::Services, rules);
            }

            #[test]
            fn file() {
                let test = concat!("policy::", stringify!($name), "::file");
                check(test, By::File, First::Services, rules);
            }
        }
    )* };
}

numbers! {
    include_port("--include-port", "include", "ports") = |two| two.allowed.address.port();
    exclude_port("--exclude-port", "exclude", "ports") = |two| two.denied.address.port();
    include_pid("--include-pid", "include", "pids") = |two| two.allowed.pids()[0];
    exclude_pid("--exclude-pid", "exclude", "pids") = |two| two.denied.pids()[0];
}

/// A server that forks a process for each connection, which executes nothing.
fn forking() -> Service {
    let mut command = Command::new(services::python());
    command
        .arg(services::source("oddities").join("server.py"))
        .arg("serve=fork")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Service::unnamed("forking", command).expect("the forking server")
}

/// Its children are what its rule says, whichever started first. Each serves one connection.
fn check_forks(test: &str, first: First, flag: &str, forks_are_allowed: bool) {
    let Some(_session) = Session::begin(test) else {
        return;
    };
    let receiver = Receiver::start();
    let start = || {
        Start::new()
            .export_http(&receiver)
            .arg(flag)
            .arg("serve=fork")
            .ready()
    };
    let services = || {
        let (forking, other) = (forking(), Language::Rust.start().expect("the service"));
        let (allowed, denied) = if forks_are_allowed {
            (forking, other)
        } else {
            (other, forking)
        };
        Two { allowed, denied }
    };
    let (agent, two) = match first {
        First::Agent => (start(), services()),
        First::Services => {
            let two = services();
            (start(), two)
        }
    };
    let (denied, allowed) = (unique(), unique());
    let simple = |service: &Service, run: &str| {
        let mut plan = Plan::load(service.address, run, REQUESTS, 2);
        plan.mix = Mix::Simple;
        let report = plan.run();
        assert_eq!(report.failures(), Vec::<String>::new());
    };
    simple(&two.denied, &denied);
    simple(&two.allowed, &allowed);
    let marker = format!("/r/{allowed}-");
    receiver.wait_for(std::time::Duration::from_secs(120), |spans| {
        let own =
            |span: &&tracer_tests::span::Span| span.kind == Kind::Server && span.mentions(&marker);
        spans.iter().filter(own).count() >= REQUESTS
    });
    let parent = two.allowed.pids()[0];
    let _ = finish(agent, &receiver, &marker, REQUESTS);
    let server = |run: &str| {
        let spans = receiver.spans_of(&format!("/r/{run}-"));
        spans
            .into_iter()
            .filter(|span| span.kind == Kind::Server)
            .collect::<Vec<_>>()
    };
    let of_allowed = server(&allowed);
    assert_eq!(of_allowed.len(), REQUESTS, "{test}: spans of the allowed");
    if forks_are_allowed {
        assert!(
            of_allowed
                .iter()
                .all(|span| span.pid().is_some_and(|pid| pid != i64::from(parent))),
            "served by children"
        );
    }
    let of_denied = server(&denied);
    assert!(of_denied.is_empty(), "{test}: {:?}", of_denied.first());
}

#[test]
fn forks_of_an_excluded_process_are_excluded() {
    let test = "policy::forks_of_an_excluded_process_are_excluded";
    check_forks(test, First::Services, "--exclude-cmdline", false);
}

#[test]
fn forks_of_an_excluded_process_are_excluded_agent_first() {
    let test = "policy::forks_of_an_excluded_process_are_excluded_agent_first";
    check_forks(test, First::Agent, "--exclude-cmdline", false);
}

#[test]
fn forks_of_an_included_process_are_included() {
    let test = "policy::forks_of_an_included_process_are_included";
    check_forks(test, First::Services, "--include-cmdline", true);
}

#[test]
fn forks_of_an_included_process_are_included_agent_first() {
    let test = "policy::forks_of_an_included_process_are_included_agent_first";
    check_forks(test, First::Agent, "--include-cmdline", true);
}

/// A cgroup named as a container runtime names it; removed when dropped.
struct Container(PathBuf);

impl Container {
    fn make() -> Result<Self, String> {
        let id = format!("{:064x}", std::process::id());
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("cgroup.procs").is_file())
            .ok_or("no cgroup v2 hierarchy")?;
        let path = root.join(format!("docker-{id}.scope"));
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    /// The service, started inside.
    fn service(&self) -> Result<Service, String> {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("echo $$ > \"$0\" && exec \"$1\"")
            .arg(self.0.join("cgroup.procs"))
            .arg(services::own_binary("tracer-service"));
        Service::unnamed("tracer-service", command)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A process that just ended may linger in it for a moment.
        let _ = tracer_tests::process::poll_until(std::time::Duration::from_secs(2), || {
            std::fs::remove_dir(&self.0).ok()
        });
    }
}

fn check_containers(test: &str, by: By, first: First) {
    let Some(_session) = Session::begin(test) else {
        return;
    };
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if own.contains("docker-") || own.contains("/docker/") || own.contains("kubepods") {
        return skipped(test, "this test runs in a container itself");
    }
    let container = match Container::make() {
        Ok(container) => container,
        Err(reason) => return skipped(test, &reason),
    };
    let directory = TempDir::new().expect("directory");
    let receiver = Receiver::start();
    let start = || {
        let start = Start::new().export_http(&receiver);
        match by {
            By::Flags => start.arg("--containers-only"),
            By::File => {
                let file = directory.path().join("config.yaml");
                std::fs::write(&file, "discovery:\n  containers_only: true\n").expect("write");
                start.arg("--config").arg(file)
            }
        }
        .ready()
    };
    let services = || Two {
        denied: Language::PythonThreaded.start().expect("python"),
        allowed: container.service().expect("the service in a container"),
    };
    let (agent, two) = match first {
        First::Agent => (start(), services()),
        First::Services => {
            let two = services();
            (start(), two)
        }
    };
    asked(agent, &receiver, &two, test);
}

#[test]
fn containers_only_flags_services_first() {
    let test = "policy::containers_only_flags_services_first";
    check_containers(test, By::Flags, First::Services);
}

#[test]
fn containers_only_flags_agent_first() {
    let test = "policy::containers_only_flags_agent_first";
    check_containers(test, By::Flags, First::Agent);
}

#[test]
fn containers_only_file_agent_first() {
    let test = "policy::containers_only_file_agent_first";
    check_containers(test, By::File, First::Agent);
}
