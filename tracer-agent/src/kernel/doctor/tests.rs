//! Hosts that do not exist, and what the doctor says about them.

use std::io::Write as _;
use std::path::Path;

use super::checks::{PROCESS_EVENTS, SOCKET_EVENTS, SYSTEM_CALLS};
use super::*;
use crate::kernel::features::KernelVersion;

const ROOT: &str = "000001ffffffffff";
const MODERN: &str =
    "Name:\ttracer-agent\nPid:\t100\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n";

/// A host on disk. Starts as a current distribution, run as root; tests take things away.
struct Fake {
    directory: tempfile::TempDir,
}

impl Fake {
    fn modern() -> Self {
        let fake = Fake {
            directory: tempfile::tempdir().expect("temporary directory"),
        };
        fake.put("proc/sys/kernel/osrelease", "6.12.5-amd64\n");
        fake.put("proc/self/status", MODERN);
        fake.put(
            "proc/self/limits",
            "Limit  Soft Limit  Hard Limit  Units\nMax locked memory  8388608  8388608  bytes\n",
        );
        fake.put(
            "proc/self/mounts",
            "tracefs /sys/kernel/tracing tracefs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
        );
        fake.put("proc/filesystems", "nodev\tsysfs\nnodev\ttracefs\n\text4\n");
        fake.put("proc/cmdline", "quiet\n");
        fake.put("proc/sys/net/core/bpf_jit_enable", "1\n");
        fake.put("sys/kernel/btf/vmlinux", "btf");
        fake.put(
            "sys/kernel/security/lockdown",
            "[none] integrity confidentiality\n",
        );
        fake.put("sys/bus/event_source/devices/kprobe/type", "6\n");
        fake.put("sys/bus/event_source/devices/uprobe/type", "7\n");
        fake.put(
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "tsc\n",
        );
        for call in SYSTEM_CALLS {
            fake.put(
                &format!("sys/kernel/tracing/events/syscalls/sys_enter_{call}/id"),
                "1",
            );
            fake.put(
                &format!("sys/kernel/tracing/events/syscalls/sys_exit_{call}/id"),
                "1",
            );
        }
        for event in PROCESS_EVENTS.iter().chain(&SOCKET_EVENTS) {
            fake.put(&format!("sys/kernel/tracing/events/{event}/id"), "1");
        }
        fake.link("proc/self/ns/user", "user:[4026531837]");
        fake.link("proc/self/ns/pid", "pid:[4026531836]");
        fake
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        let path = self.directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("directories");
        path
    }

    fn put(&self, path: &str, text: &str) -> &Self {
        std::fs::write(self.path(path), text).expect("written");
        self
    }

    fn link(&self, path: &str, target: &str) -> &Self {
        let path = self.path(path);
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(target, path).expect("linked");
        self
    }

    fn take(&self, path: &str) -> &Self {
        let path = self.directory.path().join(path);
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).expect("removed"),
            false => std::fs::remove_file(path).expect("removed"),
        }
        self
    }

    fn config(&self, text: &str) -> &Self {
        let file = std::fs::File::create(self.path("proc/config.gz")).expect("created");
        let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        packed.write_all(text.as_bytes()).expect("packed");
        packed.finish().expect("packed");
        self
    }

    fn capabilities(&self, effective: &str, uid: u32) -> &Self {
        let status = format!("Pid:\t100\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nCapEff:\t{effective}\n");
        self.put("proc/self/status", &status)
    }

    fn examine(&self) -> Report {
        let [proc, sys, boot] =
            ["proc", "sys", "boot"].map(|root| self.directory.path().join(root));
        examine(&Host { proc, sys, boot }, Some(100_000), None)
    }

    /// Expects these checks to have these outcomes, every other one to be ok, and a verdict.
    fn check(&self, can_trace: bool, expected: &[(&str, Status, &str)]) {
        let report = self.examine();
        let text = report.to_text(false);
        assert_eq!(report.can_trace(), can_trace, "{text}");
        for check in &report.checks {
            let wanted = expected.iter().find(|(name, ..)| *name == check.check);
            let (status, detail) =
                wanted.map_or((Status::Ok, ""), |(_, status, detail)| (*status, *detail));
            assert_eq!(check.status, status, "{}\n{text}", check.check);
            assert!(
                check.detail.contains(detail),
                "{} should say {detail:?}\n{text}",
                check.check
            );
            let explained = !check.disables.is_empty() && !check.fix.is_empty();
            assert_eq!(explained, status != Status::Ok, "{}\n{text}", check.check);
        }
        for (name, ..) in expected {
            assert!(
                report.checks.iter().any(|check| check.check == *name),
                "no check is named {name:?}"
            );
        }
    }
}

use Status::{Missing, Ok, Unknown};

#[test]
fn a_current_distribution_as_root() {
    let all_is_well = [
        ("kernel", Ok, "6.12.5-amd64 on "),
        ("tracefs", Ok, "/sys/kernel/tracing"),
        ("system call events", Ok, "all 32"),
        ("cgroup v2", Ok, "mounted at /sys/fs/cgroup"),
        ("lockdown", Ok, "none"),
    ];
    Fake::modern().check(true, &all_is_well);
}

/// Scenario: a kernel that lets programs of single system calls be preempted. Guarantees: nothing is missing, and
/// it is said how calls are seen.
#[test]
fn calls_come_by_number() {
    let fake = Fake::modern();
    let types = crate::kernel::calls::tests::kernel_with("trace_call_bpf_faultable");
    std::fs::write(fake.path("sys/kernel/btf/vmlinux"), types).expect("written");
    fake.check(
        true,
        &[("system call events", Ok, "one hook for all calls")],
    );
}

/// Scenario: a process with a ring, on kernels that tell of requests and that do not.
/// Guarantees: it is named; it is a fault only where what it does is not seen.
#[test]
fn a_process_with_a_ring() {
    let fake = Fake::modern();
    let name = ("io_uring", Ok, "no process");
    fake.check(true, &[name]);
    fake.put("proc/77/comm", "ringed\n").put("proc/77/fd/0", "");
    std::os::unix::fs::symlink(
        "anon_inode:[io_uring]",
        fake.directory.path().join("proc/77/fd/5"),
    )
    .expect("linked");
    fake.check(true, &[("io_uring", Missing, "ringed (77)")]);
    fake.put(
        "sys/kernel/tracing/events/io_uring/io_uring_complete/format",
        "\tfield:void * req;\toffset:16;\tsize:8;\tsigned:0;\n\tfield:int res;\toffset:32;\tsize:4;\tsigned:1;\n",
    );
    fake.check(true, &[("io_uring", Ok, "ringed (77)")]);
}

/// Scenario: kernels that are preempted and not, and say so in their ways; less of a view of the host.
/// Guarantees: functions are used only where it is certain that no program of one is left out, and that who is in a call is seen.
#[test]
fn the_tier() {
    let fake = Fake::modern();
    let tier = |expected: &str| fake.check(true, &[("tier", Ok, expected)]);
    tier("base: system calls are seen at tracepoints; not at functions, because whether");
    let version = |words: &str| {
        fake.put(
            "proc/version",
            &format!("Linux version 6.12.5-amd64 (gcc) #1 SMP {words} Debian\n"),
        )
    };
    version("");
    tier("fast: system calls");
    fake.put("proc/sys/kernel/osrelease", "6.11.5-amd64\n");
    tier("not proven on this kernel");
    fake.put("proc/sys/kernel/osrelease", "6.12.5-amd64\n");
    for preempted in ["PREEMPT", "PREEMPT_RT", "PREEMPT_LAZY"] {
        version(preempted);
        tier("is preempted, and");
    }
    version("PREEMPT_DYNAMIC");
    tier("whether this kernel is preempted cannot be seen");
    for (option, expected) in [
        ("PREEMPT_VOLUNTARY", "fast: system calls"),
        ("PREEMPT_NONE", "fast: system calls"),
        ("PREEMPT", "is preempted"),
        ("PREEMPT_LAZY", "is preempted"),
    ] {
        fake.config(&format!("CONFIG_{option}=y\nCONFIG_BPF_JIT=y\n"));
        tier(expected);
    }
    // The command line has more to say, and the kernel itself most.
    fake.put("proc/cmdline", "quiet preempt=voluntary\n");
    tier("fast: system calls");
    for (modes, expected) in [
        ("none voluntary (full)\n", "is preempted"),
        ("none voluntary full (lazy)\n", "is preempted"),
        ("(none) voluntary full\n", "fast: system calls"),
        ("none (voluntary) full\n", "fast: system calls"),
        ("none voluntary full\n", "cannot be seen"),
    ] {
        fake.put("sys/kernel/debug/sched/preempt", modes);
        tier(expected);
    }
    fake.put("sys/kernel/debug/sched/preempt", "(none)\n");
    fake.link("proc/self/ns/pid", "pid:[4026532000]");
    let report = fake.examine().to_text(false);
    assert!(report.contains("not the host's pid namespace"), "{report}");
}

#[test]
fn an_old_kernel() {
    let fake = Fake::modern();
    fake.put("proc/sys/kernel/osrelease", "4.19.0-27-amd64\n")
        .take("sys/kernel/btf");
    fake.put(
        "proc/self/limits",
        "Max locked memory  65536  65536  bytes\n",
    );
    let locked = ("locked memory", Ok, "raises the limit itself");
    fake.check(
        false,
        &[
            ("kernel", Missing, "older than 5.10"),
            ("BTF", Missing, "no /sys"),
            ("TCP options", Missing, "4.19"),
            locked,
        ],
    );
    // Without the right to raise it.
    fake.capabilities("000001fffeffffff", 0);
    fake.check(
        false,
        &[
            ("kernel", Missing, ""),
            ("BTF", Missing, ""),
            ("TCP options", Missing, ""),
            ("locked memory", Missing, "64 KiB"),
        ],
    );
}

#[test]
fn a_machine_without_kprobes_under_lockdown_with_nothing_mounted() {
    let fake = Fake::modern();
    fake.put(
        "proc/self/mounts",
        "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
    );
    fake.take("sys/kernel/tracing")
        .take("sys/kernel/security")
        .take("sys/bus/event_source/devices/kprobe");
    fake.config("CONFIG_FTRACE_SYSCALLS=y\nCONFIG_TRACEPOINTS=y\n# CONFIG_KPROBES is not set\nCONFIG_HAVE_KPROBES=y\nCONFIG_SECURITY_LOCKDOWN_LSM=y\nCONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y\n");
    let expected = [
        ("tracefs", Ok, "the agent mounts it"),
        ("system call events", Ok, "CONFIG_FTRACE_SYSCALLS=y"),
        ("kprobes", Missing, "not in this kernel"),
        ("lockdown", Ok, "integrity"),
        ("cgroup v2", Ok, "/sys/fs/cgroup/unified, beside v1"),
    ];
    fake.check(true, &expected);
    // The command line can only make it stricter.
    fake.put(
        "proc/cmdline",
        "quiet lockdown=confidentiality lockdown=none lockdown=confidentiality\n",
    );
    fake.check(
        false,
        &[
            ("kprobes", Missing, ""),
            ("lockdown", Missing, "confidentiality"),
        ],
    );
}

#[test]
fn a_host_that_tells_nothing() {
    let fake = Fake {
        directory: tempfile::tempdir().expect("temporary directory"),
    };
    fake.check(
        false,
        &[
            ("kernel", Unknown, ""),
            ("load eBPF programs", Unknown, ""),
            ("look into processes", Unknown, ""),
            ("read other users' files", Unknown, ""),
            ("open replaced files", Unknown, ""),
            ("attach to sockets", Unknown, ""),
            ("probe programs", Missing, "no uprobes"),
            ("BTF", Missing, ""),
            ("tracefs", Missing, ""),
            ("system call events", Unknown, ""),
            ("process events", Unknown, ""),
            ("socket events", Unknown, ""),
            ("lockdown", Unknown, ""),
            ("kprobes", Unknown, ""),
            ("eBPF compiler", Unknown, ""),
            ("cgroup v2", Missing, ""),
            ("TCP options", Unknown, ""),
            ("fast clock", Unknown, ""),
            ("pid namespace", Unknown, ""),
        ],
    );
}

#[test]
fn an_ordinary_user() {
    let fake = Fake::modern();
    fake.capabilities("0000000000000000", 1000);
    let without_rights = [
        ("load eBPF programs", Missing, "not root"),
        ("look into processes", Missing, "CAP_SYS_PTRACE"),
        ("read other users' files", Missing, "CAP_DAC_READ_SEARCH"),
        ("open replaced files", Missing, "CAP_CHECKPOINT_RESTORE"),
        ("attach to sockets", Missing, "CAP_NET_ADMIN"),
        ("probe programs", Missing, "does not allow"),
    ];
    fake.check(false, &without_rights);
    let with_tracefs_unmounted = [
        &without_rights[..],
        &[("tracefs", Missing, "no right to mount")],
    ]
    .concat();
    fake.put(
        "proc/self/mounts",
        "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
    );
    fake.config("CONFIG_FTRACE_SYSCALLS=y\nCONFIG_TRACEPOINTS=y\n");
    fake.check(false, &with_tracefs_unmounted);
}

#[test]
fn exactly_the_capabilities_that_are_needed() {
    let fake = Fake::modern();
    // BPF 39, PERFMON 38, SYS_PTRACE 19, DAC_READ_SEARCH 2.
    fake.capabilities("000000c000080004", 1000);
    fake.check(
        true,
        &[
            ("load eBPF programs", Ok, "not root"),
            ("open replaced files", Missing, "no CAP_CHECKPOINT_RESTORE"),
            ("attach to sockets", Missing, "no CAP_NET_ADMIN"),
        ],
    );
    // And CHECKPOINT_RESTORE 40.
    fake.capabilities("000001c000080004", 1000);
    fake.check(true, &[("attach to sockets", Missing, "no CAP_NET_ADMIN")]);
}

#[test]
fn a_container_with_namespaces_of_its_own() {
    let fake = Fake::modern();
    fake.link("proc/self/ns/pid", "pid:[4026532200]");
    fake.check(true, &[("pid namespace", Missing, "one of its own")]);
    fake.link("proc/self/ns/user", "user:[4026532201]");
    fake.capabilities(ROOT, 0);
    fake.check(
        false,
        &[
            ("pid namespace", Missing, ""),
            ("load eBPF programs", Missing, "user namespace"),
            ("look into processes", Missing, ""),
            ("read other users' files", Missing, ""),
            ("open replaced files", Missing, ""),
            ("attach to sockets", Missing, ""),
            ("probe programs", Missing, ""),
        ],
    );
}

#[test]
fn parts_that_are_missing_or_slow() {
    let fake = Fake::modern();
    fake.take("sys/kernel/tracing/events/syscalls/sys_exit_splice")
        .take("sys/kernel/tracing/events/sock");
    fake.put(
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
        "hpet\n",
    );
    fake.put("proc/sys/net/core/bpf_jit_enable", "0\n");
    fake.put(
        "proc/self/mounts",
        "debugfs /sys/kernel/debug debugfs rw 0 0\n",
    );
    std::fs::rename(
        fake.path("sys/kernel/tracing"),
        fake.path("sys/kernel/debug/tracing"),
    )
    .expect("moved");
    let expected = [
        ("tracefs", Ok, "/sys/kernel/debug/tracing"),
        ("system call events", Missing, "without sys_exit_splice"),
        ("socket events", Missing, "without inet_sock_set_state"),
        ("fast clock", Missing, "hpet"),
        ("eBPF compiler", Missing, "off"),
        ("cgroup v2", Missing, ""),
    ];
    fake.check(true, &expected);
}

#[test]
fn another_agent_is_named_and_its_doctor_is_not() {
    let fake = Fake::modern();
    fake.put("proc/100/comm", "tracer-agent\n")
        .put("proc/100/cmdline", "tracer-agent\0run\0");
    fake.put("proc/200/comm", "tracer-agent\n")
        .put("proc/200/cmdline", "/usr/bin/tracer-agent\0doctor\0");
    fake.put("proc/300/comm", "nginx\n")
        .put("proc/300/cmdline", "nginx\0run\0");
    fake.put("proc/350/comm", "tracer-agent\n").put(
        "proc/350/cmdline",
        "tracer-agent\0run\0--admin\0off\0--\0make\0",
    );
    fake.check(true, &[]);
    fake.put("proc/400/comm", "tracer-agent\n").put(
        "proc/400/cmdline",
        "/usr/bin/tracer-agent\0run\0--admin\0off\0",
    );
    fake.check(true, &[("only agent", Missing, "pid 400")]);
}

#[test]
fn an_agent_built_without_its_object() {
    let fake = Fake::modern();
    let [proc, sys, boot] = ["proc", "sys", "boot"].map(|root| fake.directory.path().join(root));
    let report = examine(&Host { proc, sys, boot }, None, None);
    assert!(!report.can_trace());
    assert!(
        report.to_text(false).contains("Needed first: eBPF object."),
        "{}",
        report.to_text(false)
    );
}

#[test]
fn json_has_the_promised_fields() {
    let json: serde_json::Value =
        serde_json::from_str(&Fake::modern().examine().to_json()).expect("JSON");
    let checks = json.as_array().expect("array");
    assert!(!checks.is_empty());
    for check in checks {
        let mut fields: Vec<&str> = check
            .as_object()
            .expect("object")
            .keys()
            .map(String::as_str)
            .collect();
        fields.sort_unstable();
        assert_eq!(fields, ["check", "detail", "disables", "fix", "status"]);
    }
}

#[test]
fn colours_only_when_asked_for() {
    let report = Fake::modern().examine();
    assert!(!report.to_text(false).contains('\x1b'));
    assert!(report.to_text(true).contains("\x1b[32mok"));
}

#[test]
fn kernel_versions_are_read_from_releases() {
    let check = |release: &str, expected: Option<KernelVersion>| {
        assert_eq!(KernelVersion::parse(release), expected, "{release:?}");
    };
    check("6.1.0-18-cloud-amd64", Some(KernelVersion(6, 1)));
    check(
        "5.15.167.4-microsoft-standard-WSL2",
        Some(KernelVersion(5, 15)),
    );
    check("7.0-rc1\n", Some(KernelVersion(7, 0)));
    check("6", None);
    check("", None);
    check("linux", None);
    check("99999999999.1", None);
}
