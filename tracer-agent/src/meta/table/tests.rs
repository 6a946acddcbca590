//! The table over fake trees and over real processes.

use std::time::{Duration, Instant};

use super::*;
use crate::meta::AttributeValue;
use crate::meta::proc_fs::NS_PER_TICK;

mod in_pods;

const S: u64 = 1_000_000_000;

struct Fake {
    root: tempfile::TempDir,
}

impl Fake {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().expect("tempdir"),
        }
    }

    fn process(&self, pid: u32, parent: u32, start: u64, exe: &str, cmdline: &str, environ: &str) {
        self.remove(pid);
        let dir = self.root.path().join(pid.to_string());
        std::fs::create_dir_all(&dir).expect("mkdir");
        let stat =
            format!("{pid} (x y) S {parent} 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0 {start} 0 0\n");
        for (name, text) in [
            ("stat", &*stat),
            ("cmdline", cmdline),
            ("environ", environ),
            ("status", "Uid:\t0\t0\t0\t0\n"),
        ] {
            std::fs::write(dir.join(name), text).expect("write");
        }
        std::os::unix::fs::symlink(exe, dir.join("exe")).expect("link");
        std::os::unix::fs::symlink("/srv/shop", dir.join("cwd")).expect("link");
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        std::fs::write(path, text).expect("write");
    }

    fn remove(&self, pid: u32) {
        let dir = self.root.path().join(pid.to_string());
        if dir.exists() {
            std::fs::remove_dir_all(dir).expect("remove");
        }
    }

    fn table(&self, max_entries: usize) -> ProcessTable {
        let options = Options {
            max_entries,
            ..Options::default()
        };
        ProcessTable::new(ProcFs::new(self.root.path()), options)
    }
}

fn exec(tgid: u32, start: u64, args: &'static [u8], env: &'static [u8]) -> ExecInfo<'static> {
    ExecInfo {
        time_ns: 100 * S,
        tgid,
        parent: 1,
        uid: 0,
        start_ns: start * NS_PER_TICK + 3,
        comm: b"comm\0\0\0\0",
        args,
        env,
        cgroup: 0,
    }
}

fn text<'a>(process: &'a Process, key: &str) -> Option<&'a str> {
    process
        .attributes
        .iter()
        .find(|(name, _)| name == key)
        .and_then(|(_, value)| match value {
            AttributeValue::Str(text) => Some(&**text),
            _ => None,
        })
}

#[test]
fn first_sight_reads_and_then_remembers() {
    let fake = Fake::new();
    fake.process(
        7,
        1,
        50,
        "/usr/bin/node",
        "node\0server/index.js\0",
        "A=b\0OTEL_RESOURCE_ATTRIBUTES=team=web\0",
    );
    fake.file(
        "7/root/srv/shop/package.json",
        r#"{"version":"1","name":"shop-web"}"#,
    );
    fake.file("1/root/etc/passwd", "root:x:0:0::/:/bin/sh\n");
    let mut table = fake.table(10);
    let process = table.get(7);
    assert_eq!(&*process.service_name, "shop-web");
    for (key, value) in [
        ("process.executable.path", "/usr/bin/node"),
        ("process.command", "node"),
        ("process.owner", "root"),
        ("process.runtime.name", "nodejs"),
        ("telemetry.sdk.language", "nodejs"),
        ("team", "web"),
    ] {
        assert_eq!(text(&process, key), Some(value), "{key}");
    }
    fake.remove(7);
    assert!(Arc::ptr_eq(&process, &table.get(7)));
    assert_eq!(
        table.counts(),
        TableCounts {
            read: 1,
            ..TableCounts::default()
        }
    );
}

#[test]
fn a_process_that_is_gone_is_known_by_its_exec_record() {
    let fake = Fake::new();
    let mut table = fake.table(10);
    table.on_exec(&exec(
        7,
        50,
        b"/usr/bin/python3\0app.py\0",
        b"X=1\0OTEL_RESOURCE_ATTRIBUTES=service.version=3\0",
    ));
    table.on_exec(&exec(8, 50, b"/usr/bin/curl\0http://x\0", b""));
    table.on_exec(&exec(9, 50, b"", b""));
    let process = table.get(7);
    assert_eq!(&*process.service_name, "app");
    assert_eq!(text(&process, "service.version"), Some("3"));
    assert_eq!(text(&process, "telemetry.sdk.language"), Some("python"));
    assert!(text(&process, "service.instance.id").is_some());
    assert_eq!(&*table.get(8).service_name, "curl");
    assert_eq!(&*table.get(9).service_name, "unknown_service:comm");
}

#[test]
fn proc_completes_what_an_exec_record_cut() {
    let fake = Fake::new();
    let args = "java\0-cp\0long\0com.acme.OrderService\0";
    fake.process(
        7,
        1,
        50,
        "/usr/bin/java",
        args,
        "OTEL_SERVICE_NAME=orders\0",
    );
    let mut table = fake.table(10);
    table.on_exec(&exec(7, 50, b"java\0-cp\0lo", b"PATH=/usr/bi"));
    assert_eq!(&*table.get(7).service_name, "orders");
    // Memory that could not be read at exec.
    table.on_exec(&exec(7, 50, b"", b""));
    assert_eq!(&*table.get(7).service_name, "orders");
    // Another process has the pid by now: nothing of it may be taken.
    table.on_exec(&exec(7, 40, b"java\0-cp\0lo", b"PATH=/usr/bi"));
    assert_eq!(&*table.get(7).service_name, "unknown_service:java");
}

#[test]
fn ended_processes_stay_a_minute() {
    let fake = Fake::new();
    let mut table = fake.table(10);
    table.on_exec(&exec(7, 50, b"/bin/a\0", b""));
    let process = table.get(7);
    table.on_exit(7, 200 * S);
    table.on_exit(7, 230 * S);
    table.expire(259 * S);
    assert!(Arc::ptr_eq(&process, &table.get_at(7, 150 * S)));
    table.expire(260 * S);
    assert!(table.is_empty());
}

#[test]
fn a_pid_that_is_used_again_is_another_process() {
    let fake = Fake::new();
    let mut table = fake.table(10);
    table.on_exec(&exec(7, 50, b"/bin/a\0", b""));
    let first = table.get(7);
    table.on_exec(&exec(7, 60, b"/bin/b\0", b""));
    assert_eq!(&*table.get(7).service_name, "b");
    assert_ne!(
        text(&first, "service.instance.id"),
        text(&table.get(7), "service.instance.id")
    );
    // By fork, without an exec record.
    table.on_exit(7, 200 * S);
    fake.process(7, 1, 20_100, "/bin/c", "/bin/c\0", "");
    assert_eq!(&*table.get_at(7, 199 * S).service_name, "b");
    assert_eq!(&*table.get_at(7, 202 * S).service_name, "c");
    // The end of the first one does not end the second one's entry.
    table.expire(500 * S);
    assert_eq!(table.len(), 1);
    // A process that nothing is known of does not stand in the way of the next one.
    assert_eq!(&*table.get_at(8, 300 * S).service_name, "unknown_service");
    assert_eq!(&*table.get_at(8, 300 * S).service_name, "unknown_service");
    assert_eq!(table.counts().unknown, 1);
    fake.process(8, 1, 30_100, "/bin/d", "/bin/d\0", "");
    assert_eq!(&*table.get_at(8, 302 * S).service_name, "d");
}

#[test]
fn room_is_made_by_age_and_counted() {
    let fake = Fake::new();
    let mut table = fake.table(3);
    for pid in 1..=3 {
        table.on_exec(&exec(pid, 50, b"/bin/a\0", b""));
    }
    table.on_exit(2, 101 * S);
    table.on_exec(&exec(4, 50, b"/bin/a\0", b""));
    table.on_exec(&exec(5, 50, b"/bin/a\0", b""));
    let mut left: Vec<u32> = table.entries.keys().copied().collect();
    left.sort_unstable();
    assert_eq!(left, [3, 4, 5]);
    let counts = table.counts();
    assert_eq!(
        (counts.evicted_ended, counts.evicted_running, table.len()),
        (1, 1, 3)
    );
    // The queue of ended processes is bounded too, whatever comes and goes.
    for round in 0..1000u64 {
        table.on_exec(&exec(6, round, b"/bin/a\0", b""));
        table.on_exit(6, 102 * S);
    }
    assert!(
        table.len() <= 3 && table.ended.len() <= 2 * 3 + 1,
        "{}",
        table.ended.len()
    );
}

#[test]
fn a_titled_worker_is_named_by_its_parents_environment() {
    let fake = Fake::new();
    let exe = "/usr/bin/python3.11";
    fake.process(7, 1, 50, exe, "gunicorn: master [x]\0", "");
    fake.process(8, 7, 60, exe, "gunicorn: worker [x]\0", "r [x]\0\0");
    fake.process(9, 7, 60, "/bin/other", "other: worker [x]\0", "");
    let mut table = fake.table(10);
    table.on_exec(&exec(
        7,
        50,
        b"python\0/usr/bin/gunicorn\0x:app\0",
        b"OTEL_SERVICE_NAME=orders\0",
    ));
    assert_eq!(&*table.get(7).service_name, "orders");
    assert_eq!(&*table.get(8).service_name, "orders");
    assert_eq!(&*table.get(9).service_name, "other");
}

#[test]
fn real_processes() {
    let mut table = ProcessTable::new(
        ProcFs::default(),
        Options {
            command_args: true,
            ..Options::default()
        },
    );
    let own = table.get(std::process::id());
    assert_eq!(text(&own, "telemetry.sdk.language"), Some("rust"));
    let exe = std::env::current_exe().expect("own program");
    assert_eq!(text(&own, "process.executable.path"), exe.to_str());
    assert!(text(&own, "service.instance.id").is_some() && text(&own, "host.name").is_some());

    let directory = tempfile::tempdir().expect("tempdir");
    let script = directory.path().join("orders.py");
    std::fs::write(&script, "import time; time.sleep(60)").expect("write");
    for (program, args, expected, language) in [
        ("sleep", vec!["60"], "sleep", None),
        (
            "python3",
            vec![script.to_str().expect("utf-8")],
            "orders",
            Some("python"),
        ),
    ] {
        let child = std::process::Command::new(program)
            .args(&args)
            .env("OTEL_RESOURCE_ATTRIBUTES", "team=a%20b")
            .spawn();
        let Ok(mut child) = child else {
            println!("skipped {program}: not installed");
            continue;
        };
        // The child is a copy of this process until its exec, and version managers exec more than once.
        let deadline = Instant::now() + Duration::from_secs(10);
        // In the middle of an exec the program is already there and its environment is not.
        let exec_done = || {
            ProcessFacts::read(&ProcFs::default(), child.id()).is_some_and(|facts| {
                facts.exe_name().starts_with(program) && facts.environment.declares()
            })
        };
        while !exec_done() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let process = table.get(child.id());
        child.kill().expect("kill the child");
        child.wait().expect("wait for the child");
        assert_eq!(&*process.service_name, expected);
        assert_eq!(text(&process, "telemetry.sdk.language"), language);
        assert_eq!(text(&process, "team"), Some("a b"));
        assert!(Arc::ptr_eq(&process, &table.get(child.id())));
        let created = text(&process, "process.creation.time").expect("a time");
        assert!(
            created.starts_with("20") && created.ends_with('Z'),
            "{created}"
        );
    }
}

/// Prints the costs; `cargo test --release -p tracer-agent --lib meta::table -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn costs() {
    let mut table = ProcessTable::new(ProcFs::default(), Options::default());
    let pids: Vec<u32> = ProcFs::default().pids();
    let started = Instant::now();
    for pid in &pids {
        table.get_at(*pid, 1);
    }
    println!(
        "first sight: {:?} per process over {}",
        started.elapsed() / pids.len().max(1) as u32,
        pids.len()
    );
    let pid = std::process::id();
    table.get(pid);
    let rounds = 10_000_000;
    let started = Instant::now();
    for _ in 0..rounds {
        std::hint::black_box(table.get(std::hint::black_box(pid)));
    }
    println!(
        "get: {:.1} ns",
        started.elapsed().as_nanos() as f64 / f64::from(rounds)
    );
}
