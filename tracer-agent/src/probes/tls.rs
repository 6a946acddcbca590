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

use super::load::{self, LoadError};
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
            load::load_programs(&mut ebpf, true)?;
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
                    attached.failed.push((function.probe, load::chain(&error)));
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
        .map_err(|source| load::failed("attach", name, source))
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
