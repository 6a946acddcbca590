//! Probes in TLS libraries: attached to a file when somebody uses it, detached when nobody does.
//!
//! In: targets of `discover::binary`. Out: attached probes. The programs are loaded with the first
//! target, so that a host without TLS pays nothing for them. Attaching and detaching take the kernel
//! a while; the caller has a thread of its own for it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use aya::programs::UProbe;
use aya::programs::uprobe::{UProbeLinkId, UProbeScope};
use tracer_common::abi::MappedFile;

use super::error::{self, LoadError};
use super::load;
use crate::discover::binary::{Target, TlsFunction};

/// Programs reached by tail call, in the order of their indexes in the `TLS_PROGRAMS` map.
const TAIL_CALLED: [&str; 4] = ["tls_window", "tls_head", "tls_chunks", "tls_frames"];
/// The programs at RETs.
const RETURN: &str = "tls_return";
const GO_RETURN: &str = "go_tls_return";

/// Attaches and detaches.
pub struct TlsProbes {
    ebpf: Arc<Mutex<Ebpf>>,
    known: HashMap<MapData, [u64; 3], u8>,
    wanted: Array<MapData, u32>,
    active: Array<MapData, u32>,
    loaded: bool,
}

/// Probes in one file. They stay until [`TlsProbes::detach`] is called.
#[derive(Debug)]
pub struct Attached {
    links: Vec<(&'static str, UProbeLinkId)>,
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
    pub(super) fn new(ebpf: Arc<Mutex<Ebpf>>) -> Result<Self, LoadError> {
        let mut locked = load::lock(&ebpf);
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
            loaded: false,
        })
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
            .any(|function| program_of(function.probe).is_some())
        {
            return Ok(attached);
        }
        let shared = Arc::clone(&self.ebpf);
        let mut ebpf = load::lock(&shared);
        if !self.loaded {
            load::load_programs(&mut ebpf, load::Set::Tls)?;
            load::fill_tail_calls(&mut ebpf, "TLS_PROGRAMS", TAIL_CALLED)?;
            self.active.set(0, 1, 0)?;
            self.loaded = true;
        }
        for function in target.functions.iter() {
            let Some((entry, exit)) = program_of(function.probe) else {
                continue;
            };
            if exit.is_some() && function.returns.is_empty() {
                // A call whose end is not seen would pass for the cause of what comes after it.
                continue;
            }
            let before = attached.links.len();
            // Returns first: a return without an entry is nothing, an entry without a return would be
            // a call that never ends.
            let returns = function.returns.iter().map(|at| (exit, *at));
            let mut points = returns.chain([(Some(entry), function.entry)]);
            let result = points.try_for_each(|(program, at)| {
                if let Some(program) = program {
                    let link = attach_at(&mut ebpf, program, at, &target.path)?;
                    attached.links.push((program, link));
                }
                Ok::<(), LoadError>(())
            });
            match result {
                Ok(()) => attached.functions.push(function.probe),
                Err(error) => {
                    detach_links(&mut ebpf, attached.links.drain(before..));
                    attached.failed.push((function.probe, error::chain(&error)));
                }
            }
        }
        Ok(attached)
    }

    /// Takes the probes out of a file.
    pub fn detach(&mut self, attached: Attached) {
        let mut ebpf = load::lock(&self.ebpf);
        // Entries first, for the same reason.
        detach_links(&mut ebpf, attached.links.into_iter().rev());
    }
}

fn detach_links(ebpf: &mut Ebpf, links: impl Iterator<Item = (&'static str, UProbeLinkId)>) {
    for (name, link) in links {
        if let Ok(program) = program(ebpf, name) {
            // The file may be gone: then so are its probes.
            let _ = program.detach(link);
        }
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut UProbe, LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::Mismatch(name))?;
    program.try_into().map_err(|_| LoadError::Mismatch(name))
}

fn attach_at(
    ebpf: &mut Ebpf,
    name: &'static str,
    at: u64,
    path: &Path,
) -> Result<UProbeLinkId, LoadError> {
    program(ebpf, name)?
        .attach(at, path, UProbeScope::AllProcesses)
        .map_err(|source| error::failed("attach", name, source))
}

/// Programs at the entry and at the RETs of a function; `None` for functions that nothing is to be
/// learned from.
fn program_of(function: TlsFunction) -> Option<(&'static str, Option<&'static str>)> {
    use TlsFunction::*;
    Some(match function {
        SslRead | GnutlsRecordRecv | GnutlsRecordRecvSeq => ("tls_read", Some(RETURN)),
        SslWrite | GnutlsRecordSend | GnutlsRecordSend2 => ("tls_write", Some(RETURN)),
        SslReadEx => ("tls_read_ex", Some(RETURN)),
        SslWriteEx => ("tls_write_ex", Some(RETURN)),
        SslWriteEx2 => ("tls_write_ex2", Some(RETURN)),
        SslSendfile => ("tls_sendfile", Some(RETURN)),
        SslDoHandshake | GnutlsHandshake => ("tls_handshake", Some(RETURN)),
        SslShutdown | GnutlsBye => ("tls_shutdown", None),
        SslNew => ("tls_new", Some(RETURN)),
        GnutlsInit => ("tls_new_out", Some(RETURN)),
        SslFree | GnutlsDeinit => ("tls_free", None),
        GoTlsRead => ("go_tls_read", Some(GO_RETURN)),
        GoTlsWrite => ("go_tls_write", Some(GO_RETURN)),
        GoTlsHandshakeContext => ("go_tls_handshake", Some(GO_RETURN)),
        GoTlsClose => ("go_tls_close", None),
        // Peeking moves nothing; connecting and accepting shake hands; descriptors are seen in use.
        _ => return None,
    })
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
            switches: Switches::default(),
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
