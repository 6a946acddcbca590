//! What discovery tells the rooms that attach probes and that report: plain data.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

pub use super::code::Quick;
pub use super::go::Deferred;

/// Which file this is, and which content of it: a file that was replaced or rewritten has another
/// identity, a file that was renamed or deleted while mapped keeps its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device as `stat` tells it (on overlayfs and btrfs not the one that `/proc/PID/maps` shows).
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of the content, nanoseconds since 1970.
    pub modified_ns: i128,
}

/// A TLS implementation inside of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TlsLibrary {
    /// OpenSSL, or a build of it under another name; the version as its own text says it.
    OpenSsl {
        /// `3.0.19`, `1.1.1w`; `None` where no text says it.
        version: Option<String>,
    },
    /// BoringSSL (or AWS-LC, which is made from it): no versions.
    BoringSsl,
    /// LibreSSL.
    LibreSsl {
        /// `4.1.0`.
        version: Option<String>,
    },
    /// GnuTLS.
    GnuTls {
        /// `3.7.9`.
        version: Option<String>,
    },
    /// The crypto/tls package of a Go program.
    GoTls(GoTls),
    /// rustls inside of a Rust program.
    Rustls {
        /// From the paths that panics carry, where they are kept.
        version: Option<String>,
    },
    /// Java's own implementation: runs as byte code, there is nothing native to probe.
    Jsse,
}

/// What is known of a Go program with crypto/tls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GoTls {
    /// As the build info says it: `go1.26.8`.
    pub go_version: String,
    /// 1.17 and later pass arguments in registers on this architecture: major, minor.
    pub release: (u16, u16),
    /// How to get from a `*tls.Conn` to the file descriptor; `None` where the version is not one
    /// of those whose layout was verified.
    pub layout: Option<GoLayout>,
    /// Address (as linked, before any load bias) of the itab `*net.TCPConn, net.Conn`, the first word of a
    /// `tls.Conn`: only behind this one the layout holds. `None` where no symbol tells it.
    pub tcp_conn_itab: Option<u64>,
}

/// Byte offsets in the structs of Go's net package: `tls.Conn.conn` is an interface {itab, data};
/// data is a `*net.TCPConn`, whose `conn.fd` is a `*netFD`, which holds `pfd poll.FD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GoLayout {
    /// Of the interface's itab word in `tls.Conn`.
    pub conn_itab: u16,
    /// Of the interface's data word in `tls.Conn`.
    pub conn_data: u16,
    /// Of the `*netFD` in `net.TCPConn`.
    pub tcp_conn_fd: u16,
    /// Of `pfd.Sysfd` (a Go `int`, 8 bytes) in `netFD`.
    pub net_fd_sysfd: u16,
}

/// A function that probes are for. Several symbols may stand for one (versions, aliases).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the function of that name")]
pub enum TlsFunction {
    SslRead,
    SslReadEx,
    SslPeek,
    SslPeekEx,
    SslWrite,
    SslWriteEx,
    /// `SSL_write_ex2` of OpenSSL 3.3: as `SSL_write_ex` with flags as the fourth argument and
    /// `size_t *written` as the fifth. `SSL_write_ex` of those versions calls it or jumps to it.
    SslWriteEx2,
    /// `SSL_read_early_data`: as `SSL_read_ex`, from the first flight of a resumed session.
    SslReadEarlyData,
    /// `SSL_write_early_data`: as `SSL_write_ex`.
    SslWriteEarlyData,
    SslSendfile,
    SslDoHandshake,
    SslConnect,
    SslAccept,
    SslShutdown,
    /// Returns the new session.
    SslNew,
    SslFree,
    SslSetFd,
    SslSetRfd,
    SslSetWfd,
    SslSetBio,
    GnutlsRecordRecv,
    GnutlsRecordRecvSeq,
    /// `gnutls_record_recv_packet(session, gnutls_packet_t *packet)`.
    GnutlsRecordRecvPacket,
    GnutlsRecordSend,
    GnutlsRecordSend2,
    GnutlsRecordSendRange,
    GnutlsRecordSendFile,
    GnutlsRecordUncork,
    GnutlsHandshake,
    GnutlsBye,
    /// `gnutls_init(gnutls_session_t *session, unsigned flags)`.
    GnutlsInit,
    GnutlsDeinit,
    /// `gnutls_transport_set_int2(session, recv_fd, send_fd)` (`_set_int` is a macro for it).
    GnutlsTransportSetInt2,
    GnutlsTransportSetPtr,
    GnutlsTransportSetPtr2,
    GoTlsRead,
    GoTlsWrite,
    GoTlsClose,
    GoTlsHandshake,
}

/// One function to attach to.
///
/// A RET in [`returns`](Self::returns) may lie in a part shared with other functions (a tail call's target)
/// and the function may be nested or recursive: at a RET, a return of *this* call is told by the
/// stack pointer, which is the same at the entry and at the RET, on x86-64 and on aarch64. In Go programs the
/// stack may have moved meanwhile; there no RET is shared and the goroutine tells the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// What it is.
    pub probe: TlsFunction,
    /// File offset of its first instruction.
    pub entry: u64,
    /// File offsets of all RETs through which a call of it can return, sorted; all of them or, only
    /// for those that can do without ([`TlsFunction::needs_returns`]), none.
    pub returns: Vec<u64>,
    /// What costs less to probe in place of the entry and of some of the RETs, as file offsets.
    pub quick: Vec<Quick>,
    /// What costs less to probe in place of others of the RETs.
    pub deferred: Option<Deferred>,
}

/// A function that is there but cannot be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What it is.
    pub probe: TlsFunction,
    /// Why, in words for people.
    pub reason: String,
}

/// One TLS library of one file, ready to be attached to.
#[derive(Clone, Debug)]
pub struct Target {
    /// Attach once for each identity.
    pub file: FileId,
    /// Leads to exactly this file, whatever mount namespace or deletion is between:
    /// `/proc/self/fd/N` of [`handle`](Self::handle). To be opened while the target is held.
    pub path: PathBuf,
    /// Keeps [`path`](Self::path) valid; dropped with the target, so that mounts are not held busy.
    pub handle: Arc<File>,
    /// What the process calls the file; for people only.
    pub shown: PathBuf,
    /// What it is.
    pub library: TlsLibrary,
    /// Where to attach. May be empty: then `refused` or the library itself says why.
    pub functions: Arc<[Function]>,
    /// What is there but not understood.
    pub refused: Arc<[Refused]>,
}

impl Target {
    /// Why plaintext of this library is not seen, in words for people; `None` if it is.
    pub fn unseen(&self) -> Option<String> {
        use TlsFunction::*;
        match self.library {
            TlsLibrary::Jsse => {
                return Some(
                    "Java's own TLS is byte code: there is no native function to probe".into(),
                );
            }
            TlsLibrary::Rustls { .. } => {
                return Some("rustls is compiled into the callers: no function to probe".into());
            }
            _ => {}
        }
        if self.functions.is_empty() && self.refused.is_empty() {
            return Some("the names of its functions were removed".into());
        }
        // Half of what a program says would make exchanges without their other half.
        let mut refused = self.refused.iter();
        if let Some(Refused { probe, reason }) = refused.find(|it| it.probe.moves_data()) {
            return Some(format!("{probe:?} is not understood: {reason}"));
        }
        let any = |wanted: &[TlsFunction]| {
            let mut all = self.functions.iter();
            all.any(|function| wanted.contains(&function.probe))
        };
        let reads = any(&[SslRead, SslReadEx, GnutlsRecordRecv, GoTlsRead]);
        let writes = any(&[SslWrite, SslWriteEx, GnutlsRecordSend, GoTlsWrite]);
        let why = "it has no function that reads or none that writes";
        (!reads || !writes).then(|| why.into())
    }
}

impl TlsFunction {
    /// Whether programs commonly move plaintext by it.
    const fn moves_data(self) -> bool {
        use TlsFunction::*;
        matches!(
            self,
            SslRead
                | SslReadEx
                | SslWrite
                | SslWriteEx
                | SslWriteEx2
                | SslSendfile
                | GnutlsRecordRecv
                | GnutlsRecordSend
                | GnutlsRecordSend2
                | GoTlsRead
                | GoTlsWrite
        )
    }

    /// Whether a probe of it needs to see the result: then it is found with all of its RETs or not
    /// at all. Of the others all RETs are given, or none: OpenSSL's handshake ends in a jump through a
    /// pointer, for example.
    pub const fn needs_returns(self) -> bool {
        use TlsFunction::*;
        !matches!(
            self,
            SslDoHandshake
                | SslConnect
                | SslAccept
                | GnutlsHandshake
                | GoTlsHandshake
                | SslFree
                | SslSetFd
                | SslSetRfd
                | SslSetWfd
                | SslSetBio
                | SslShutdown
                | GnutlsBye
                | GnutlsDeinit
                | GnutlsTransportSetInt2
                | GnutlsTransportSetPtr
                | GnutlsTransportSetPtr2
                | GoTlsClose
        )
    }
}

impl fmt::Display for TlsLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, version) = match self {
            TlsLibrary::OpenSsl { version } => ("OpenSSL", version.as_deref()),
            TlsLibrary::BoringSsl => ("BoringSSL", None),
            TlsLibrary::LibreSsl { version } => ("LibreSSL", version.as_deref()),
            TlsLibrary::GnuTls { version } => ("GnuTLS", version.as_deref()),
            TlsLibrary::GoTls(go) => ("Go crypto/tls", Some(go.go_version.as_str())),
            TlsLibrary::Rustls { version } => ("rustls", version.as_deref()),
            TlsLibrary::Jsse => ("Java JSSE", None),
        };
        f.write_str(name)?;
        version.map_or(Ok(()), |version| write!(f, " {version}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(functions: &[TlsFunction], refused: &[TlsFunction]) -> Target {
        let function = |probe: &TlsFunction| Function {
            probe: *probe,
            entry: 16,
            returns: vec![32],
            quick: Vec::new(),
            deferred: None,
        };
        let refused = refused.iter().map(|probe| Refused {
            probe: *probe,
            reason: "jumps to a computed address at 0x1".into(),
        });
        Target {
            file: FileId {
                device: 1,
                inode: 2,
                size: 3,
                modified_ns: 4,
            },
            path: PathBuf::new(),
            handle: Arc::new(File::open("/dev/null").expect("opens")),
            shown: PathBuf::new(),
            library: TlsLibrary::LibreSsl { version: None },
            functions: functions.iter().map(function).collect(),
            refused: refused.collect(),
        }
    }

    /// Scenario: some functions are found, others not understood. Guarantees: a library is seen
    /// whole or not at all, and the reason names the function.
    #[test]
    fn whole_or_not_at_all() {
        use TlsFunction::*;
        let both = &[SslRead, SslWrite][..];
        for (functions, refused, why) in [
            (both, &[][..], None),
            (both, &[SslDoHandshake, SslReadEarlyData][..], None),
            (both, &[SslWriteEx][..], Some("SslWriteEx is not under")),
            (
                &[SslRead, SslWriteEx][..],
                &[SslWrite][..],
                Some("SslWrite is not"),
            ),
            (&[SslRead][..], &[][..], Some("it has no function")),
            (&[][..], &[][..], Some("the names of its functions")),
        ] {
            let found = target(functions, refused).unseen();
            let fits = match (&found, why) {
                (None, None) => true,
                (Some(found), Some(why)) => found.starts_with(why),
                _ => false,
            };
            assert!(fits, "{functions:?} {refused:?}: {found:?}");
        }
    }
}
