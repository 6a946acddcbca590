//! The keeper with the real kernel side: a library is probed when a process uses it, once whatever the
//! number of processes, and left some time after the last one has ended.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::probes::{Kernel, Options, check_rights};

/// A process that has loaded this file; ended when dropped.
struct User(Child);

impl User {
    fn start(library: &Path) -> Option<Self> {
        let script = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); \
                      print('ready', flush=True); sys.stdin.read()";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take()?)
            .read_line(&mut line)
            .ok()?;
        (line.trim() == "ready").then_some(User(child))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn keeper(probes: TlsProbes, proc: ProcFs) -> Keeper {
    Keeper {
        probes,
        scanner: Scanner::new(proc.clone()),
        proc,
        whole_host: true,
        told: FxHashSet::default(),
        shared: Arc::new(Shared::default()),
        pausing: false,
        files: FxHashMap::default(),
        users: FxHashMap::default(),
        due: FxHashMap::default(),
    }
}

/// Scenario: two processes use a copy of libssl that nobody else does; both end. Guarantees: it is
/// probed once, keeps its probes while one is left and for a minute after, and has none then.
#[test]
fn probes_leave_after_the_last_user() {
    let options = Options {
        ring_bytes: 1 << 20,
        max_connections: 1024,
        agent_tgid: std::process::id(),
        bpf_stats: false,
        propagate: None,
        tls: true,
        tier: crate::kernel::tier::Choice::Auto,
    };
    if check_rights().is_err() {
        return println!("skipped: no kernel side, or no rights to load it");
    }
    let directory = tempfile::tempdir().expect("directory");
    let copy = directory.path().join("libssl.so.3");
    let found = DIRECTORIES
        .iter()
        .map(|place| Path::new(place).join("libssl.so.3"));
    let copied = found.into_iter().find(|path| path.is_file());
    let copied = copied.and_then(|path| std::fs::copy(path, &copy).ok());
    let users = copied.and_then(|_| User::start(&copy).zip(User::start(&copy)));
    let Some((one, other)) = users else {
        return println!("skipped: no libssl, or no python3");
    };
    let mut kernel = Kernel::start(&options).expect("kernel side");
    let pids = [one.0.id(), other.0.id()];
    // A host where nobody else is.
    let processes = directory.path().join("proc");
    std::fs::create_dir(&processes).expect("a directory");
    for pid in pids {
        let of_it = format!("/proc/{pid}");
        std::os::unix::fs::symlink(of_it, processes.join(pid.to_string())).expect("a link");
    }
    let mut keeper = keeper(kernel.tls().expect("maps"), ProcFs::new(processes));
    let inode = copy.metadata().expect("the copy").ino();
    // Users and probes of this file.
    let of_copy = |keeper: &Keeper| {
        let mut files = keeper.files.iter();
        let file = files.find(|((id, _), _)| id.inode == inode);
        file.map(|(_, file)| {
            (
                file.users.len(),
                file.attached.as_ref().map_or(0, Attached::len),
            )
        })
    };
    keeper.look_at(pids[0]);
    let Some((1, probes @ 1..)) = of_copy(&keeper) else {
        panic!("{:?}", keeper.files.keys());
    };
    keeper.look_at(pids[1]);
    assert_eq!(of_copy(&keeper), Some((2, probes)), "attached once");

    let long_after = || Instant::now() + 2 * UNUSED;
    drop(one);
    keeper.take(News::Ended(pids[0]));
    keeper.clean_up(long_after());
    assert_eq!(of_copy(&keeper), Some((1, probes)));

    drop(other);
    keeper.take(News::Ended(pids[1]));
    keeper.clean_up(Instant::now());
    assert_eq!(of_copy(&keeper), Some((0, probes)), "it may be used again");
    keeper.clean_up(long_after());
    assert_eq!(of_copy(&keeper), None);
}
