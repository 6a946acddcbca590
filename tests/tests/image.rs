//! The container image that users get: unpacked and run by real tools, it traces the host around it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tracer_tests::check::{Server, Sides, assert_run};
use tracer_tests::container::{self, Container};
use tracer_tests::driver::{Driver, Plan};
use tracer_tests::process;
use tracer_tests::services::{self, Language};
use tracer_tests::session::{Session, skipped};
use tracer_tests::span::{Span, from_json_lines};

const REQUESTS: usize = 500;
/// What docs/install.md says that the container needs, with the bits of the kernel.
const CAPABILITIES: [(&str, u32); 6] = [
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
    ("CAP_CHECKPOINT_RESTORE", 40),
];
const ARRIVAL: Duration = Duration::from_secs(60);

/// Why the test cannot run here; a failure where it has to.
fn unavailable(test: &str) -> bool {
    let Some(reason) = container::missing() else {
        return false;
    };
    let required = std::env::var_os("TRACER_TESTS_REQUIRED").is_some();
    assert!(!required, "{test}: {reason}");
    skipped(test, &reason);
    true
}

fn link(pid: &str, namespace: &str) -> PathBuf {
    let path = format!("/proc/{pid}/ns/{namespace}");
    std::fs::read_link(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn traces_the_host_from_a_container() {
    let test = "image::traces_the_host_from_a_container";
    let Some(session) = Session::begin(test) else {
        return;
    };
    if unavailable(test) {
        return;
    }
    let service = Language::Rust.start().expect("the service");
    let capabilities: Vec<&str> = CAPABILITIES.iter().map(|(name, _)| *name).collect();
    // An https endpoint makes the agent read the authorities of the image, or fail to start. Nobody listens there.
    let env = [(
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "https://127.0.0.1:9/v1/metrics",
    )];
    let args = ["--otlp-file", "/var/spool/tracer-agent/spans.jsonl"];
    let container = Container::start(&session.run, &capabilities, &env, &args);
    let pid = container.pid.to_string();
    for (namespace, own) in [("mnt", true), ("net", true), ("pid", false)] {
        let differs = link(&pid, namespace) != link("self", namespace);
        assert_eq!(differs, own, "{namespace}");
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
            .unwrap_or_else(|| panic!("{name} in {status}"))
    };
    let allowed: u64 = CAPABILITIES.iter().map(|(_, bit)| 1 << bit).sum();
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let found = u64::from_str_radix(field(set), 16).expect("a bit set");
        assert_eq!(found & !allowed, 0, "{set} {found:x}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");

    let report = Plan::load(service.address, &session.run, REQUESTS, 16).run();
    assert_eq!(report.failures(), Vec::<String>::new());
    let own = || -> Vec<Span> {
        let text = std::fs::read_to_string(container.spool("spans.jsonl")).unwrap_or_default();
        // The last line may be on its way.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let spans = from_json_lines(whole).expect("OTLP/JSON lines");
        let marker = format!("/r/{}-", report.run);
        spans
            .into_iter()
            .filter(|span| span.mentions(&marker))
            .collect()
    };
    let arrived = process::poll_until(ARRIVAL, || {
        std::thread::sleep(Duration::from_millis(100));
        (own().len() >= 2 * REQUESTS).then_some(())
    });
    let ledger = container.drained_ledger();
    let mut wrong = ledger.wrong_sums();
    wrong.extend(ledger.losses(&[]));
    let log = container.stderr();
    if arrived.is_some() {
        assert!(wrong.is_empty(), "{wrong:#?}\n{ledger:#?}\n{log}");
    }
    let server = Server {
        name: &service.name,
        pids: service.pids(),
    };
    assert_run(
        &own(),
        &report,
        &Sides {
            server: Some(server),
            client: true,
        },
    );
    let (status, log) = container.stop();
    assert!(status.success(), "{status}\n{log}");
}

/// The bill of materials follows the published schema, and is that of the binary beside it.
#[test]
fn the_bill_of_materials_is_valid() {
    const VALIDATE: &str = "
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(str(error) if error else 0)
";
    let test = "image::the_bill_of_materials_is_valid";
    if unavailable(test) {
        return;
    }
    let arch = std::env::consts::ARCH;
    let path = container::image().with_file_name(format!("image-test-{arch}.cdx.json"));
    let python = services::target_dir().join("venv/bin/python");
    let mut command = Command::new(&python);
    command.args(["-c", VALIDATE]).arg(&path);
    process::run(&mut command).expect("a valid bill of materials");
    let text = std::fs::read(&path).expect("the bill");
    let bill: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let components = bill["components"].as_array().expect("components");
    let named = |name: &str| components.iter().any(|component| component["name"] == name);
    for name in [
        "aya",
        "aya-ebpf",
        "rustls",
        "tokio",
        "tracer-ebpf",
        "musl",
        "rust-std",
    ] {
        assert!(named(name), "{name}");
    }
    // What only tests and builds need is not in the binary.
    for name in ["proptest", "insta", "serde_derive", "cc"] {
        assert!(!named(name), "{name}");
    }
}
