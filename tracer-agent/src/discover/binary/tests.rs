//! Real files and processes, and what is left of files when bytes of them are wrong.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::meta::proc_fs::ProcFs;

const SSL: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/libssl.so.3",
    "/usr/lib/aarch64-linux-gnu/libssl.so.3",
];

fn system_ssl() -> Option<PathBuf> {
    let found = SSL.iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        println!("skipped: no system libssl.so.3");
    }
    found
}

/// Ended when dropped, by its id.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Python process that has loaded the library at this path, and says so.
fn python_with(library: &Path) -> Option<Running> {
    let script =
        "import ctypes,sys; ctypes.CDLL(sys.argv[1]); print('ready', flush=True); sys.stdin.read()";
    let child = Command::new("python3")
        .args(["-c", script])
        .arg(library)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => Running(child),
        Err(error) => {
            println!("skipped: python3: {error}");
            return None;
        }
    };
    let mut line = String::new();
    let out = child.0.stdout.take().expect("piped");
    BufReader::new(out).read_line(&mut line).expect("readable");
    assert_eq!(line, "ready\n");
    Some(child)
}

fn names(library: &Library) -> Vec<TlsFunction> {
    library.functions.iter().map(|it| it.probe).collect()
}

#[test]
fn the_system_library() {
    use TlsFunction::*;
    let Some(path) = system_ssl() else { return };
    let data = std::fs::read(&path).expect("readable");
    let contents = contents(&data, data.len() as u64).expect("understood");
    let [library] = &contents.libraries[..] else {
        panic!("one library: {contents:?}");
    };
    assert!(matches!(library.library, TlsLibrary::OpenSsl { .. }));
    assert!(library.refused.is_empty(), "{:?}", library.refused);
    let names = names(library);
    for probe in [
        SslRead,
        SslReadEx,
        SslPeek,
        SslPeekEx,
        SslWrite,
        SslWriteEx,
        SslSendfile,
        SslShutdown,
        SslFree,
        SslSetFd,
        SslSetBio,
        SslDoHandshake,
        SslConnect,
        SslAccept,
    ] {
        assert!(names.contains(&probe), "{probe:?}");
    }
    for function in library
        .functions
        .iter()
        .filter(|it| it.probe.needs_returns())
    {
        assert!(!function.returns.is_empty(), "{function:?}");
    }
}

#[test]
fn a_copy_under_another_name_that_was_deleted_while_mapped() {
    let Some(path) = system_ssl() else { return };
    let directory = tempfile::tempdir().expect("tempdir");
    let copy = directory.path().join("notes.dat");
    std::fs::copy(&path, &copy).expect("copied");
    let Some(child) = python_with(&copy) else {
        return;
    };
    let pid = child.0.id();
    let mut scanner = Scanner::new(ProcFs::default());
    let check = |scanner: &mut Scanner, what: &str| {
        let found = scanner.scan(pid).expect("running");
        let target = found.targets.iter().find(|target| target.shown == copy);
        let Some(target) = target else {
            panic!("{what}: not among {found:?}");
        };
        assert_eq!(target.unseen(), None, "{what}");
        // libcrypto beside it, or the only one, knows the version.
        let TlsLibrary::OpenSsl { version } = &target.library else {
            panic!("{what}: {:?}", target.library);
        };
        assert!(
            version.as_deref().is_some_and(|it| it.starts_with("3.")),
            "{version:?}"
        );
        let same =
            std::fs::read(&target.path).expect("opens") == std::fs::read(&path).expect("system");
        assert!(same, "{what}: leads to another file");
        target.file
    };
    let before = check(&mut scanner, "mapped");
    let parsed = scanner.parsed();
    check(&mut scanner, "again");
    assert_eq!(scanner.parsed(), parsed, "parsed once");

    std::fs::remove_file(&copy).expect("removed");
    if std::fs::read_dir(format!("/proc/{pid}/map_files")).is_err()
        || scanner
            .scan(pid)
            .is_some_and(|found| !found.unseen.is_empty())
    {
        println!("skipped the rest: may not follow map_files");
        return;
    }
    assert_eq!(check(&mut scanner, "deleted"), before);

    // Another file of the same name is another file, and not the one that is mapped.
    std::fs::File::create(&copy)
        .expect("created")
        .write_all(b"other")
        .expect("written");
    assert_eq!(check(&mut scanner, "replaced"), before);
    assert_eq!(scanner.parsed(), parsed);
}

/// As in a container: the file is on a mount that only the process's namespace has.
#[test]
fn a_file_that_only_the_process_can_name() {
    let Some(path) = system_ssl() else { return };
    let directory = tempfile::tempdir().expect("tempdir");
    let script = "mount -t tmpfs none \"$1\" && cp \"$2\" \"$1/inside.so\" && exec python3 -c '
import ctypes, sys
ctypes.CDLL(sys.argv[1])
print(\"ready\", flush=True)
sys.stdin.read()' \"$1/inside.so\"";
    let child = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .args([directory.path(), &path])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = child else {
        println!("skipped: no unshare");
        return;
    };
    let mut child = Running(child);
    let mut line = String::new();
    let out = child.0.stdout.take().expect("piped");
    BufReader::new(out).read_line(&mut line).expect("readable");
    if line != "ready\n" {
        println!("skipped: may not make mount namespaces");
        return;
    }
    let inside = directory.path().join("inside.so");
    assert!(!inside.exists(), "only in its own namespace");
    let found = Scanner::new(ProcFs::default())
        .scan(child.0.id())
        .expect("running");
    let target = found.targets.iter().find(|target| target.shown == inside);
    let target = target.unwrap_or_else(|| panic!("not among {found:?}"));
    assert_eq!(target.unseen(), None);
    let same = std::fs::read(&target.path).expect("opens") == std::fs::read(&path).expect("system");
    assert!(same, "leads to another file");
}

#[test]
fn who_is_gone_or_never_was_has_nothing() {
    let mut scanner = Scanner::new(ProcFs::default());
    assert!(scanner.scan(u32::MAX).is_none());
    // This program has no TLS functions by symbols, whatever else is found in it.
    let own = scanner.scan(std::process::id()).expect("readable");
    assert!(
        own.targets.iter().all(|it| it.functions.is_empty()),
        "{own:?}"
    );
}

#[test]
fn cut_off_anywhere() {
    let Some(path) = system_ssl() else { return };
    let data = std::fs::read(path).expect("readable");
    let ends = (0..data.len()).step_by(data.len() / 97).chain(0..128);
    for end in ends {
        fuzz(&data[..end]);
    }
}

/// A small library with what is hard: a switch, a jump to another function, a cold part.
fn small() -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().expect("tempdir");
    let (source, out) = (directory.path().join("x.c"), directory.path().join("x.so"));
    std::fs::write(
        &source,
        r#"
        #include <stdlib.h>
        __attribute__((noinline)) int other(int *a, int n) { if (n < 0) abort(); return a[n] * 3; }
        int SSL_read(int *a, int *b, int n) {
            switch (n) {
            case 0: return a[1]; case 1: return b[2] + other(a, 1); case 2: return 7 + a[0];
            case 3: return other(b, 5) / 3; case 4: return a[9] - 1; case 5: b[0] = 1; return 0;
            case 6: a[3] = b[4]; break; case 7: return a[1] ^ b[1];
            }
            return other(a, n);
        }
        int SSL_write(int *a, int *b, int n) { a[0] = b[0]; return SSL_read(a, b, n + 1); }
        void SSL_free(int *a) { free(a); }
        "#,
    )
    .expect("written");
    let status = Command::new("gcc")
        .args([
            "-O2",
            "-shared",
            "-fPIC",
            "-fcf-protection",
            "-Wl,-z,now",
            "-o",
        ])
        .arg(&out)
        .arg(&source)
        .status();
    match status {
        Ok(status) if status.success() => std::fs::read(out).ok(),
        other => {
            println!("skipped: gcc: {other:?}");
            None
        }
    }
}

#[test]
fn a_small_library() {
    let Some(data) = small() else { return };
    let contents = contents(&data, data.len() as u64).expect("understood");
    let library = contents.libraries.first().expect("found by symbols");
    assert_eq!(library.library, TlsLibrary::OpenSsl { version: None });
    assert!(library.refused.is_empty(), "{:?}", library.refused);
    let returns = |probe: TlsFunction| {
        let mut all = library.functions.iter();
        let function = all.find(|it| it.probe == probe).expect("found");
        &function.returns
    };
    // SSL_write jumps to SSL_read, SSL_free into another library.
    assert!(returns(TlsFunction::SslRead).len() > 1);
    assert_eq!(
        returns(TlsFunction::SslWrite),
        returns(TlsFunction::SslRead)
    );
    assert_eq!(returns(TlsFunction::SslFree), &[] as &[u64]);
}

#[test]
fn wrong_bytes_in_headers_and_tables() {
    let Some(data) = small() else { return };
    let len = data.len();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let place = prop_oneof![0..1024_usize, 0..len, (len - 4096)..len];
    let change = (
        place,
        prop_oneof![Just(0_u8), Just(0xff), Just(0x7f), any::<u8>()],
    );
    let changes = proptest::collection::vec(change, 1..6);
    runner
        .run(&changes, |changes| {
            let mut data = data.clone();
            for (at, value) in changes {
                data[at] = value;
            }
            fuzz(&data);
            Ok(())
        })
        .expect("no panic");
}
