//! Go programs: version, functions by name, and where a `tls.Conn` keeps its socket.
//!
//! Works on stripped programs too: Go's runtime needs its function table, so nothing removes it.

mod build_info;
mod deferred;
mod module;
mod pclntab;

use std::ops::Range;

use super::BinaryError;
use super::code::{self, Convention, Extents, NotUnderstood, Points};
use super::elf::{Elf, Machine};
use super::libraries::Library;
use super::types::{Function, GoLayout, GoTls, Refused, TlsFunction, TlsLibrary};
pub use deferred::Deferred;
use pclntab::FunctionTable;

/// The names of crypto/tls that probes are for. A method of this size is never inlined.
const TLS: &[(&str, TlsFunction)] = &[
    ("crypto/tls.(*Conn).Read", TlsFunction::GoTlsRead),
    ("crypto/tls.(*Conn).Write", TlsFunction::GoTlsWrite),
    ("crypto/tls.(*Conn).Close", TlsFunction::GoTlsClose),
    // Once for each connection; what is exported is called in every read and write.
    (
        "crypto/tls.(*Conn).clientHandshake",
        TlsFunction::GoTlsHandshake,
    ),
    (
        "crypto/tls.(*Conn).serverHandshake",
        TlsFunction::GoTlsHandshake,
    ),
];

/// Functions that `Read` and `Write` defer; their names since Go 1.22.
const DEFERRED: &[(&str, TlsFunction)] = &[
    ("crypto/tls.(*Conn).Read.deferwrap1", TlsFunction::GoTlsRead),
    (
        "crypto/tls.(*Conn).Write.deferwrap1",
        TlsFunction::GoTlsWrite,
    ),
    (
        "crypto/tls.(*Conn).Write.deferwrap2",
        TlsFunction::GoTlsWrite,
    ),
];

/// Layout of net and crypto/tls. `tls.Conn` begins with its `net.Conn`; a `net.TCPConn` is a `conn`, which is a
/// `*netFD`; a `netFD` begins with its `poll.FD`, and that with an `fdMutex` of 16 bytes and `Sysfd`.
/// Read in the sources of each release from 1.17 to 1.26.
const LAYOUT: GoLayout = GoLayout {
    conn_itab: 0,
    conn_data: 8,
    tcp_conn_fd: 0,
    net_fd_sysfd: 16,
};
const LAYOUT_KNOWN: std::ops::RangeInclusive<u16> = 17..=26;

/// A function of a Go program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoFunction {
    /// Full name, as `runtime.newproc1`.
    pub name: String,
    /// File offset of the first instruction.
    pub entry: u64,
    /// File offsets of its RETs, or why they are not known.
    pub returns: Result<Vec<u64>, String>,
}

/// A Go program whose function table was understood.
pub struct GoProgram<'a> {
    elf: &'a Elf<'a>,
    /// As the build info says it: `go1.26.8`.
    pub version: String,
    /// Major and minor of it.
    pub release: (u16, u16),
    table: FunctionTable,
}

impl<'a> GoProgram<'a> {
    /// `None` if the file is no Go program; an error if it is one and cannot be understood.
    pub fn parse(elf: &'a Elf<'a>) -> Result<Option<Self>, BinaryError> {
        let Some(version) = build_info::version(elf)? else {
            return Ok(None);
        };
        let release = build_info::release(&version)
            .ok_or(BinaryError::Unsupported("Go version is not a release"))?;
        // Before these, arguments are on the stack.
        let first = match elf.machine {
            Machine::X86_64 => (1, 17),
            Machine::Aarch64 => (1, 18),
        };
        if release < first {
            return Err(BinaryError::Unsupported("Go before register arguments"));
        }
        let table = FunctionTable::parse(elf)?;
        Ok(Some(GoProgram {
            elf,
            version,
            release,
            table,
        }))
    }

    /// Functions by their full names, those that exist, in no order.
    pub fn functions(&self, names: &[&str]) -> Result<Vec<GoFunction>, BinaryError> {
        let found = self.table.find(self.elf, names)?;
        Ok(found
            .into_iter()
            .filter_map(|(name, range)| {
                let entry = self.elf.code_offset(&range)?;
                let points = self.points(&range).map_err(|error| error.to_string());
                Some(GoFunction {
                    name,
                    entry,
                    returns: points.map(|points| points.returns),
                })
            })
            .collect())
    }

    fn points(&self, range: &Range<u64>) -> Result<Points, NotUnderstood> {
        code::points(self.elf, self, range.clone(), Convention::Go)?.offsets(self.elf)
    }

    /// What a function defers that can be probed in place of its RETs, as file offsets.
    fn deferred(
        &self,
        probe: TlsFunction,
        range: &Range<u64>,
        found: &[(String, Range<u64>)],
    ) -> Option<Deferred> {
        if self.elf.machine != Machine::X86_64 {
            return None;
        }
        let of_it = |name: &str| DEFERRED.contains(&(name, probe));
        let candidates = found.iter().filter(|(name, _)| of_it(name));
        let candidates: Vec<_> = candidates
            .filter_map(|(_, range)| {
                let points = code::points(self.elf, self, range.clone(), Convention::Go).ok()?;
                let mut quick = points.quick.into_iter();
                Some((range.start, quick.find(|quick| quick.of == range.start)?))
            })
            .collect();
        let offset = self.elf.code_offset(range)?;
        let code = self.elf.bytes.read(offset, range.end - range.start).ok()?;
        let found = deferred::find(&code, range.start, &candidates)?;
        Some(Deferred {
            at: self.elf.offset(found.at)?,
            returns: found
                .returns
                .iter()
                .map(|at| self.elf.offset(*at))
                .collect::<Option<_>>()?,
            ..found
        })
    }

    /// crypto/tls: what it is and what of it can be attached to; `None` if the program has none.
    pub fn tls(&self) -> Result<Option<Library>, BinaryError> {
        let all = || TLS.iter().chain(DEFERRED);
        let names: Vec<&str> = all().map(|(name, _)| *name).collect();
        let (mut functions, mut refused) = (Vec::new(), Vec::new());
        let found = self.table.find(self.elf, &names)?;
        for (name, range) in &found {
            let known = TLS.iter().find(|(known, _)| known == name);
            let (Some((_, probe)), Some(entry)) = (known, self.elf.code_offset(range)) else {
                continue;
            };
            let probe = *probe;
            match self.points(range) {
                Ok(Points { returns, quick }) => functions.push(Function {
                    probe,
                    entry,
                    returns,
                    quick,
                    deferred: self.deferred(probe, range, &found),
                }),
                Err(_) if !probe.needs_returns() => functions.push(Function {
                    probe,
                    entry,
                    returns: Vec::new(),
                    quick: Vec::new(),
                    deferred: None,
                }),
                Err(reason) => refused.push(Refused {
                    probe,
                    reason: reason.to_string(),
                }),
            }
        }
        if functions.is_empty() && refused.is_empty() {
            return Ok(None);
        }
        functions.sort_by_key(|function| (function.probe, function.entry));
        let known = self.release.0 == 1 && LAYOUT_KNOWN.contains(&self.release.1);
        let tls = GoTls {
            go_version: self.version.clone(),
            release: self.release,
            layout: known.then_some(LAYOUT),
            tcp_conn_itab: known
                .then(|| {
                    let module = module::find(self.elf, self.table.address).ok()??;
                    module::itab(self.elf, module, self.release, "*net.TCPConn", "net.Conn").ok()?
                })
                .flatten(),
        };
        Ok(Some(Library {
            library: TlsLibrary::GoTls(tls),
            functions: functions.into(),
            refused: refused.into(),
        }))
    }
}

impl Extents for GoProgram<'_> {
    fn covering(&self, address: u64) -> Result<Option<Range<u64>>, BinaryError> {
        self.table.covering(self.elf, address)
    }
}

#[cfg(test)]
mod tests;
