//! Probes in TLS libraries: attached to a file when somebody uses it, detached when nobody does.
//!
//! In: targets of `discover::binary`. Out: attached probes. Attaching and detaching take the kernel
//! a while; the caller has a thread of its own for it.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLinkId, UProbeScope};
use tracer_common::abi::{MappedFile, place};

use super::error::{LoadError, failed};
use super::load;
use super::shared::SharedEbpf;
use super::turn::Held;
use crate::causes::chain;
use crate::discover::binary::{Deferred, Function, Quick, Target, TlsFunction, TlsLibrary};

/// Programs reached by tail call, in the order of their indexes in the `TLS_PROGRAMS` map.
const TAIL_CALLED: [&str; 5] = [
    "tls_window",
    "tls_head",
    "tls_chunks",
    "tls_frames",
    "tls_streams",
];
/// The program that looks for a session's socket, and its index.
const PROVE: &str = "tls_prove";
const PROVE_PROGRAM: u32 = 8;
/// The programs at RETs.
const RETURN: &str = "tls_return";
const GO_RETURN: &str = "go_tls_return";
/// The program at functions that Go calls before it returns.
const GO_DEFERRED: &str = "go_tls_deferred";

/// Attaches and detaches.
pub struct TlsProbes {
    ebpf: Arc<SharedEbpf>,
    known: HashMap<MapData, [u64; 3], u8>,
    wanted: Array<MapData, u32>,
    active: Array<MapData, u32>,
    /// `active` is 1 already.
    active_set: bool,
    /// Agents that end wait for what is attached at start.
    starting: Option<Held>,
}

/// Probes in one file. They stay until [`TlsProbes::detach`] is called.
#[derive(Debug)]
pub struct Attached {
    links: Vec<(&'static str, Place, UProbeLinkId)>,
    /// Functions probed.
    pub functions: Vec<TlsFunction>,
    /// Functions that could not be, with the reason.
    pub failed: Vec<(TlsFunction, String)>,
}

impl Attached {
    /// Number of probes.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// True when nothing could be attached.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

impl TlsProbes {
    pub(super) fn new(ebpf: Arc<SharedEbpf>) -> Result<Self, LoadError> {
        let starting = ebpf.hold_turn();
        let mut locked = ebpf.lock();
        let mut take = |name| locked.take_map(name).ok_or(LoadError::Mismatch(name));
        let (known, wanted, active) = (
            take("KNOWN_FILES")?,
            take("MAPPED_WANTED")?,
            take("TLS_ACTIVE")?,
        );
        drop(locked);
        Ok(TlsProbes {
            ebpf,
            known: HashMap::try_from(known)?,
            wanted: Array::try_from(wanted)?,
            active: Array::try_from(active)?,
            active_set: false,
            starting: Some(starting),
        })
    }

    /// What is there at start has its probes.
    pub fn started(&mut self) {
        self.starting = None;
    }

    /// Has the kernel side tell of executable files that processes map.
    pub fn watch(&mut self) -> Result<(), LoadError> {
        Ok(self.wanted.set(0, 1, 0)?)
    }

    /// There is nothing to probe in the file: the kernel side need not tell of it again.
    pub fn set_known(&mut self, file: &MappedFile) {
        // Without an entry it is told again, nothing more.
        let _ = self.known.insert(known_key(file), 1, 0);
    }

    /// Attaches to every function of the target that there is a program for.
    pub fn attach(&mut self, target: &Target) -> Result<Attached, LoadError> {
        let mut attached = Attached {
            links: Vec::new(),
            functions: Vec::new(),
            failed: Vec::new(),
        };
        if !target
            .functions
            .iter()
            .any(|function| program_of(function.probe, target).is_some())
        {
            return Ok(attached);
        }
        let shared = Arc::clone(&self.ebpf);
        if !self.active_set {
            let mut ebpf = shared.lock_in_turn();
            load::fill_tail_calls(&mut ebpf, "TLS_PROGRAMS", TAIL_CALLED)?;
            load::fill_tail_call(&mut ebpf, "TLS_PROGRAMS", PROVE_PROGRAM, PROVE)?;
            drop(ebpf);
            self.active.set(0, 1, 0)?;
            self.active_set = true;
        }
        for function in target.functions.iter() {
            let Some((entry, exit)) = program_of(function.probe, target) else {
                continue;
            };
            if exit.is_some() && function.returns.is_empty() {
                // A call whose end is not seen would pass for the cause of what comes after it.
                continue;
            }
            let before = attached.links.len();
            // Returns first: a return without an entry is nothing, an entry without a return would be
            // a call that never ends.
            let mut all = places(function, entry, exit).into_iter();
            let result = all.try_for_each(|(program, place)| {
                // Functions that end in a jump to another one share its RETs.
                let mut links = attached.links.iter();
                if !links.any(|(name, at, _)| (*name, *at) == (program, place)) {
                    let mut ebpf = shared.lock_in_turn();
                    let link = attach_at(&mut ebpf, program, place, &target.path)?;
                    attached.links.push((program, place, link));
                }
                Ok::<(), LoadError>(())
            });
            match result {
                Ok(()) => attached.functions.push(function.probe),
                Err(error) => {
                    detach_links(&shared, attached.links.drain(before..));
                    attached.failed.push((function.probe, chain(&error)));
                }
            }
        }
        Ok(attached)
    }

    /// Takes the probes out of a file.
    pub fn detach(&mut self, attached: Attached) {
        // Entries first, for the same reason.
        detach_links(&self.ebpf, attached.links.into_iter().rev());
    }
}

fn detach_links(
    shared: &SharedEbpf,
    links: impl Iterator<Item = (&'static str, Place, UProbeLinkId)>,
) {
    for (name, _, link) in links {
        let mut ebpf = shared.lock_in_turn();
        if let Ok(program) = program(&mut ebpf, name) {
            // The file may be gone: then so are its probes.
            let _ = program.detach(link);
        }
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut UProbe, LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::Mismatch(name))?;
    program.try_into().map_err(|_| LoadError::Mismatch(name))
}

/// Where a probe goes: offset in the file, and what its program is told (`abi::place`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    at: u64,
    cookie: u64,
}

/// Where the probes of a function go, with their programs.
fn places(
    function: &Function,
    entry: &'static str,
    exit: Option<&'static str>,
) -> Vec<(&'static str, Place)> {
    let deferred = function.deferred.as_ref().filter(|_| load::has_cookies());
    let is_deferred = |at: &u64| deferred.is_some_and(|it| it.returns.contains(at));
    let mut places = Vec::new();
    if let Some(exit) = exit {
        let returns = function.returns.iter().filter(|at| !is_deferred(at));
        places.extend(returns.map(|at| (exit, Place::of(function, *at))));
        places.extend(deferred.map(|it| (GO_DEFERRED, Place::deferred(it))));
    }
    places.push((entry, Place::of(function, function.entry)));
    places
}

impl Place {
    fn deferred(deferred: &Deferred) -> Self {
        let result = u64::from(deferred.result) << place::RESULT_SHIFT;
        Place {
            at: deferred.at,
            cookie: u64::from(deferred.depth) | result,
        }
    }

    /// The place that the kernel handles with one trap, if there is one, for an entry or a RET.
    fn of(function: &Function, at: u64) -> Self {
        let mut quick = function.quick.iter();
        let usable = |quick: &Quick| load::has_cookies() && !(quick.is_call && has_shadow_stacks());
        match quick.find(|quick| quick.of == at && usable(quick)) {
            Some(quick) => Place {
                at: quick.at,
                cookie: u64::from(quick.depth)
                    | if at == function.entry {
                        0
                    } else {
                        place::IF_EQUAL
                    },
            },
            None => Place { at, cookie: 0 },
        }
    }
}

/// Whether programs of this host may have shadow stacks.
fn has_shadow_stacks() -> bool {
    static FOUND: LazyLock<bool> = LazyLock::new(|| {
        let text = std::fs::read_to_string("/proc/cpuinfo");
        // Not to be told is no permission.
        text.map_or(true, |text| text.contains("user_shstk"))
    });
    *FOUND
}

fn attach_at(
    ebpf: &mut Ebpf,
    name: &'static str,
    Place { at, cookie }: Place,
    path: &Path,
) -> Result<UProbeLinkId, LoadError> {
    let point = UProbeAttachPoint {
        location: UProbeAttachLocation::AbsoluteOffset(at),
        cookie: (cookie != 0).then_some(cookie),
    };
    program(ebpf, name)?
        .attach(point, path, UProbeScope::AllProcesses)
        .map_err(|source| failed("attach", name, source))
}

/// Programs at the entry and at the RETs of a function; `None` for functions that nothing is to be
/// learned from.
fn program_of(
    function: TlsFunction,
    target: &Target,
) -> Option<(&'static str, Option<&'static str>)> {
    use TlsFunction::*;
    Some(match function {
        SslRead | GnutlsRecordRecv | GnutlsRecordRecvSeq => ("tls_read", Some(RETURN)),
        SslWrite | GnutlsRecordSend | GnutlsRecordSend2 => ("tls_write", Some(RETURN)),
        SslReadEx | SslReadEarlyData => ("tls_read_ex", Some(RETURN)),
        SslWriteEx | SslWriteEarlyData => ("tls_write_ex", Some(RETURN)),
        SslWriteEx2 => ("tls_write_ex2", Some(RETURN)),
        SslSendfile => ("tls_sendfile", Some(RETURN)),
        SslDoHandshake | GnutlsHandshake => ("tls_handshake", Some(RETURN)),
        SslShutdown | GnutlsBye => ("tls_shutdown", None),
        SslNew => (new_session(target), Some(RETURN)),
        GnutlsInit => ("tls_new_out", Some(RETURN)),
        SslFree | GnutlsDeinit => ("tls_free", None),
        GoTlsRead => ("go_tls_read", Some(GO_RETURN)),
        GoTlsWrite => ("go_tls_write", Some(GO_RETURN)),
        GoTlsHandshake => ("go_tls_handshake", Some(GO_RETURN)),
        GoTlsClose => ("go_tls_close", None),
        // Peeking moves nothing; connecting and accepting shake hands; descriptors are seen in use.
        _ => return None,
    })
}

/// The program at `SSL_new`: what the kernel side may take for granted of the new object differs. A libssl without a version is
/// told by what it has: `SSL_sendfile` came with 3.0, early data with 1.1.1.
fn new_session(target: &Target) -> &'static str {
    let TlsLibrary::OpenSsl { version } = &target.library else {
        return "tls_new";
    };
    let has = |wanted| {
        let mut functions = target.functions.iter();
        functions.any(|function| function.probe == wanted)
    };
    match version.as_deref() {
        Some(version) if version.starts_with("3.") => "tls_new_3",
        Some(version) if version.starts_with("1.1.") => "tls_new_1",
        None if has(TlsFunction::SslSendfile) => "tls_new_3",
        None if has(TlsFunction::SslWriteEarlyData) => "tls_new_1",
        _ => "tls_new",
    }
}

/// As the kernel side's key lies in memory.
fn known_key(file: &MappedFile) -> [u64; 3] {
    let MappedFile {
        inode,
        size,
        device,
        generation,
    } = *file;
    [inode, size, u64::from(device) | u64::from(generation) << 32]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::binary::Scanner;
    use crate::meta::ProcFs;
    use crate::probes::{Kernel, Options, Switches};

    /// `(session, buffer, length)` of a library that this process may use too.
    fn library() -> Option<Target> {
        [
            "/usr/lib/x86_64-linux-gnu/libssl.so.3",
            "/usr/lib/aarch64-linux-gnu/libssl.so.3",
            "/usr/lib64/libssl.so.3",
        ]
        .iter()
        .find_map(|path| Scanner::new(ProcFs::default()).file(Path::new(path)))
        .and_then(|found| found.targets.into_iter().next())
    }

    /// A client and a server of OpenSSL's own tool, which end with the returned children.
    fn load(directory: &Path) -> Option<(std::process::Child, u16)> {
        use std::process::{Command, Stdio};
        let quiet = |command: &mut Command| {
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .stdin(Stdio::null())
                .spawn()
        };
        let (key, certificate) = (directory.join("key.pem"), directory.join("certificate.pem"));
        let mut make = Command::new("openssl");
        make.args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
        ]);
        quiet(make.arg(&key).arg("-out").arg(&certificate))
            .ok()?
            .wait()
            .ok()?;
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))
            .ok()?
            .local_addr()
            .ok()?
            .port();
        let mut server = Command::new("openssl");
        server.args([
            "s_server",
            "-www",
            "-quiet",
            "-accept",
            &format!("127.0.0.1:{port}"),
            "-cert",
        ]);
        Some((
            quiet(server.arg(&certificate).arg("-key").arg(&key)).ok()?,
            port,
        ))
    }

    /// Scenario: probes come to and go from libssl while a client and a server use it; 12 times, or as
    /// often as `TRACER_TLS_ROUNDS` says. Guarantees: every request is answered and nobody crashes.
    #[test]
    fn attaching_and_detaching_harms_nobody() {
        let options = Options {
            ring_bytes: 1 << 20,
            max_connections: 1024,
            agent_tgid: std::process::id(),
            bpf_stats: false,
            propagate: None,
            tls: true,
            tier: crate::kernel::tier::Choice::Auto,
        };
        if crate::probes::check_rights().is_err() {
            return println!("skipped: no kernel side, or no rights to load it");
        }
        let directory = tempfile::tempdir().expect("directory");
        let Some((target, (mut server, port))) = library().zip(load(directory.path())) else {
            return println!("skipped: no libssl, or no openssl");
        };
        let mut kernel = Kernel::start(&options).expect("kernel side");
        let mut probes = kernel.tls().expect("maps");
        let mut maps = kernel.maps().expect("maps");
        maps.switch(Switches::default()).expect("switches");
        let rounds = std::env::var("TRACER_TLS_ROUNDS")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(12);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let client = std::thread::spawn(move || {
            let (mut asked, mut answered) = (0, 0);
            let url = format!("https://127.0.0.1:{port}/");
            // The server may not listen at once.
            let ask = || {
                let curl = std::process::Command::new("curl")
                    .args(["-sk", "-o", "/dev/null", &url])
                    .status();
                curl.is_ok_and(|status| status.success())
            };
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while !ask() && std::time::Instant::now() < deadline {}
            while !stopping.load(std::sync::atomic::Ordering::Relaxed) {
                asked += 1;
                answered += u32::from(ask());
            }
            (asked, answered)
        });
        for round in 0..rounds {
            let attached = probes.attach(&target).expect("attach");
            assert!(attached.failed.is_empty(), "{round}: {:?}", attached.failed);
            assert!(attached.functions.contains(&TlsFunction::SslRead));
            std::thread::sleep(std::time::Duration::from_millis(20));
            probes.detach(attached);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (asked, answered) = client.join().expect("client");
        assert_eq!(asked, answered);
        assert!(
            server.try_wait().expect("server").is_none(),
            "the server ended"
        );
        server.kill().expect("end the server");
        let _ = server.wait();
        println!("{rounds} rounds, {asked} requests");
    }
}
