//! Which TLS libraries one file contains, and where their functions are.
//!
//! In: an ELF file. Out: a [`Library`] for each. OpenSSL's family and GnuTLS are told by function
//! symbols, Go's crypto/tls by the function table, rustls by symbols or by the source paths in the
//! texts of panics. Where only texts are left, the library is reported without functions.

use std::ops::Range;
use std::sync::Arc;

use super::BinaryError;
use super::code::{self, Convention, Extents, NotUnderstood, Points};
use super::elf::Elf;
use super::go::GoProgram;
use super::symbols::{self, Symbol, Table};
use super::types::{Function, Refused, TlsFunction, TlsLibrary};
use super::{text, unwind};

use TlsFunction as F;

/// What one file has to do with TLS.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Libraries in it.
    pub libraries: Vec<Library>,
    /// It is the other half of an OpenSSL or LibreSSL installation, libcrypto, and this is what its
    /// text says: a libssl has no version of its own.
    pub crypto: Option<TlsLibrary>,
}

/// One TLS library of one file.
#[derive(Clone, Debug)]
pub struct Library {
    /// What it is.
    pub library: TlsLibrary,
    /// Where to attach, sorted.
    pub functions: Arc<[Function]>,
    /// What is there but not understood.
    pub refused: Arc<[Refused]>,
}

const OPENSSL: &[(&str, TlsFunction)] = &[
    ("SSL_read", F::SslRead),
    ("SSL_read_ex", F::SslReadEx),
    ("SSL_peek", F::SslPeek),
    ("SSL_peek_ex", F::SslPeekEx),
    ("SSL_write", F::SslWrite),
    ("SSL_write_ex", F::SslWriteEx),
    ("SSL_write_ex2", F::SslWriteEx2),
    ("SSL_read_early_data", F::SslReadEarlyData),
    ("SSL_write_early_data", F::SslWriteEarlyData),
    ("SSL_sendfile", F::SslSendfile),
    ("SSL_do_handshake", F::SslDoHandshake),
    ("SSL_connect", F::SslConnect),
    ("SSL_accept", F::SslAccept),
    ("SSL_shutdown", F::SslShutdown),
    ("SSL_new", F::SslNew),
    ("SSL_free", F::SslFree),
    ("SSL_set_fd", F::SslSetFd),
    ("SSL_set_rfd", F::SslSetRfd),
    ("SSL_set_wfd", F::SslSetWfd),
    ("SSL_set_bio", F::SslSetBio),
];

/// Functions that only one of the forks of OpenSSL has. Not those for QUIC, which LibreSSL took over.
const BORINGSSL: &[&str] = &[
    "SSL_CTX_set_grease_enabled",
    "SSL_CTX_set_select_certificate_cb",
    "SSL_CTX_set_permute_extensions",
    "SSL_early_data_reason_string",
];
/// The function of libcrypto that tells its version, now and before 1.1.
const CRYPTO: &[&str] = &["OpenSSL_version", "SSLeay_version"];
/// What a Java virtual machine exports.
const JAVA: &[&str] = &["JNI_CreateJavaVM"];
const LIBRESSL: &[&str] = &[
    "SSL_CTX_use_certificate_chain_mem",
    "SSL_CTX_load_verify_mem",
];

const GNUTLS: &[(&str, TlsFunction)] = &[
    ("gnutls_record_recv", F::GnutlsRecordRecv),
    ("gnutls_record_recv_seq", F::GnutlsRecordRecvSeq),
    ("gnutls_record_recv_packet", F::GnutlsRecordRecvPacket),
    ("gnutls_record_send", F::GnutlsRecordSend),
    ("gnutls_record_send2", F::GnutlsRecordSend2),
    ("gnutls_record_send_range", F::GnutlsRecordSendRange),
    ("gnutls_record_send_file", F::GnutlsRecordSendFile),
    ("gnutls_record_uncork", F::GnutlsRecordUncork),
    ("gnutls_handshake", F::GnutlsHandshake),
    ("gnutls_bye", F::GnutlsBye),
    ("gnutls_init", F::GnutlsInit),
    ("gnutls_deinit", F::GnutlsDeinit),
    ("gnutls_transport_set_int2", F::GnutlsTransportSetInt2),
    ("gnutls_transport_set_ptr", F::GnutlsTransportSetPtr),
    ("gnutls_transport_set_ptr2", F::GnutlsTransportSetPtr2),
];

fn wanted(name: &str) -> bool {
    let others = [BORINGSSL, LIBRESSL, CRYPTO, JAVA];
    probe(name).is_some() || others.iter().any(|names| names.contains(&name))
}

/// One of them begins every name of interest.
const PREFIXES: [&str; 5] = [
    "SSL_",
    "gnutls_",
    "OpenSSL_version",
    "SSLeay_version",
    "JNI_CreateJavaVM",
];

fn probe(name: &str) -> Option<TlsFunction> {
    let mut all = OPENSSL.iter().chain(GNUTLS);
    all.find(|(known, _)| *known == name)
        .map(|(_, probe)| *probe)
}

/// All TLS libraries in a file.
pub fn find(elf: &Elf<'_>) -> Result<Contents, BinaryError> {
    let symbols = by_symbols(elf)?;
    let mut contents = Contents::default();
    let named = |names: &[&str]| {
        let mut all = symbols.iter();
        all.any(|symbol| names.contains(&symbol.name.as_str()))
    };
    let (crypto, java) = (named(CRYPTO), named(JAVA));
    contents.libraries = libraries(elf, symbols)?;
    if java {
        contents.libraries.push(nameless(TlsLibrary::Jsse));
    }
    if crypto && contents.libraries.is_empty() {
        contents.crypto = match text::openssl(elf)? {
            Some(library) => Some(library),
            None => text::libressl(elf)?.map(|version| TlsLibrary::LibreSsl {
                version: Some(version),
            }),
        };
    }
    Ok(contents)
}

fn libraries(elf: &Elf<'_>, symbols: Vec<Symbol>) -> Result<Vec<Library>, BinaryError> {
    let mut libraries = Vec::new();
    let (gnutls, openssl): (Vec<Symbol>, Vec<Symbol>) = symbols
        .into_iter()
        .partition(|symbol| symbol.name.starts_with("gnutls_"));
    if has(
        &openssl,
        &[F::SslRead, F::SslReadEx, F::SslWrite, F::SslWriteEx],
    ) {
        libraries.push(resolve(elf, &openssl, openssl_flavour(elf, &openssl)?));
    }
    if has(&gnutls, &[F::GnutlsRecordRecv, F::GnutlsRecordSend]) {
        let version = text::gnutls(elf)?;
        libraries.push(resolve(elf, &gnutls, TlsLibrary::GnuTls { version }));
    }
    match go(elf) {
        Ok(None) => {}
        Ok(Some(found)) => {
            libraries.extend(found);
            return Ok(libraries);
        }
        Err(error) if libraries.is_empty() => return Err(error),
        Err(_) => return Ok(libraries),
    }
    if !has(&openssl, &[F::SslRead, F::SslWrite])
        && let Some(library) = text::openssl_without_symbols(elf)?
    {
        libraries.push(nameless(library));
    }
    if let Some(version) = text::rustls(elf)? {
        libraries.push(nameless(TlsLibrary::Rustls { version }));
    }
    Ok(libraries)
}

/// crypto/tls of a Go program, if it has that; `None` if the file is no Go program.
fn go(elf: &Elf<'_>) -> Result<Option<Option<Library>>, BinaryError> {
    let Some(program) = GoProgram::parse(elf)? else {
        return Ok(None);
    };
    program.tls().map(Some)
}

/// A library of which only texts are left.
fn nameless(library: TlsLibrary) -> Library {
    Library {
        library,
        functions: Arc::new([]),
        refused: Arc::new([]),
    }
}

fn has(symbols: &[Symbol], any: &[TlsFunction]) -> bool {
    symbols
        .iter()
        .any(|symbol| probe(&symbol.name).is_some_and(|probe| any.contains(&probe)))
}

/// Exported functions first: a file that exports them is a library and its full table says the same.
fn by_symbols(elf: &Elf<'_>) -> Result<Vec<Symbol>, BinaryError> {
    for table in [symbols::dynamic_table(elf), symbols::full_table(elf)] {
        let Some(table) = table else { continue };
        let mut found = symbols::find(elf, table, &PREFIXES, &wanted)?;
        found.retain(|symbol| symbol.function);
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// A fork, where symbols tell one.
fn fork<'a>(mut symbols: impl Iterator<Item = &'a str>) -> Option<TlsLibrary> {
    symbols.find_map(|name| {
        if LIBRESSL.contains(&name) {
            Some(TlsLibrary::LibreSsl { version: None })
        } else if BORINGSSL.contains(&name) {
            Some(TlsLibrary::BoringSsl)
        } else {
            None
        }
    })
}

fn openssl_flavour(elf: &Elf<'_>, symbols: &[Symbol]) -> Result<TlsLibrary, BinaryError> {
    match fork(symbols.iter().map(|symbol| symbol.name.as_str())) {
        Some(TlsLibrary::LibreSsl { .. }) => {
            let version = text::libressl(elf)?;
            return Ok(TlsLibrary::LibreSsl { version });
        }
        Some(fork) => return Ok(fork),
        None => {}
    }
    Ok(match text::openssl(elf)? {
        Some(library) => library,
        None => TlsLibrary::OpenSsl { version: None },
    })
}

fn resolve(elf: &Elf<'_>, found: &[Symbol], library: TlsLibrary) -> Library {
    let extents = CExtents::new(elf);
    let (mut functions, mut refused) = (Vec::<Function>::new(), Vec::new());
    for symbol in found {
        let Some(probe) = probe(&symbol.name) else {
            continue;
        };
        match function(elf, &extents, symbol, probe) {
            // Several versions of one name, or two tables, may lead to the same code.
            Ok(function) if functions.contains(&function) => {}
            Ok(function) => functions.push(function),
            Err(error) => refused.push(Refused {
                probe,
                reason: error.to_string(),
            }),
        }
    }
    functions.sort_by_key(|function| (function.probe, function.entry));
    refused.sort_by_key(|refused| refused.probe);
    Library {
        library,
        functions: functions.into(),
        refused: refused.into(),
    }
}

fn function(
    elf: &Elf<'_>,
    extents: &CExtents<'_>,
    symbol: &Symbol,
    probe: TlsFunction,
) -> Result<Function, NotUnderstood> {
    let range = match symbol.size {
        0 => extents.covering(symbol.address)?,
        size => Some(symbol.address..symbol.address.saturating_add(size)),
    };
    let range = range.filter(|range| range.start == symbol.address);
    let range = range.ok_or(NotUnderstood::NoCode)?;
    let entry = elf.code_offset(&range).ok_or(NotUnderstood::NoCode)?;
    let Points { returns, quick } = match code::points(elf, extents, range, Convention::C) {
        Ok(points) => points.offsets(elf)?,
        Err(_) if !probe.needs_returns() => Points::default(),
        Err(error) => return Err(error),
    };
    Ok(Function {
        probe,
        entry,
        returns,
        quick,
        deferred: None,
    })
}

/// Functions of compiled code: the unwind table knows all of them, also without symbols.
pub struct CExtents<'a> {
    elf: &'a Elf<'a>,
    tables: Vec<Table>,
}

impl<'a> CExtents<'a> {
    /// Of this file.
    pub fn new(elf: &'a Elf<'a>) -> Self {
        let tables = [symbols::full_table(elf), symbols::dynamic_table(elf)];
        CExtents {
            elf,
            tables: tables.into_iter().flatten().collect(),
        }
    }
}

impl Extents for CExtents<'_> {
    fn covering(&self, address: u64) -> Result<Option<Range<u64>>, BinaryError> {
        if let Some(range) = unwind::covering(self.elf, address)? {
            return Ok(Some(range));
        }
        for table in &self.tables {
            if let Some(range) = symbols::covering(self.elf, *table, address)? {
                return Ok(Some(range));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks() {
        let libressl = TlsLibrary::LibreSsl { version: None };
        for (names, expected) in [
            (&["SSL_read", "SSL_sendfile"][..], None),
            (
                &["SSL_read", "SSL_CTX_set_grease_enabled"][..],
                Some(TlsLibrary::BoringSsl),
            ),
            // LibreSSL 3.6 took BoringSSL's functions for QUIC over.
            (
                &[
                    "SSL_set_quic_use_legacy_codepoint",
                    "SSL_CTX_load_verify_mem",
                ][..],
                Some(libressl.clone()),
            ),
        ] {
            assert_eq!(fork(names.iter().copied()), expected, "{names:?}");
        }
    }
}
