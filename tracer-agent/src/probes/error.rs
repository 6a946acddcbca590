//! Why the kernel side could not be loaded, in words for people, and what may be done at all.

use crate::kernel::offsets::OffsetError;
use crate::rights;

/// Why nothing can be traced.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Plain `cargo build`.
    #[error("this binary was built without its kernel side; build it with `cargo xtask build`")]
    NotBuilt,
    /// Missing rights.
    #[error(
        "loading eBPF programs is not permitted; run as root, or with CAP_BPF and CAP_PERFMON (see `tracer-agent doctor`)"
    )]
    NotPermitted,
    /// No usable type information.
    #[error(transparent)]
    Offsets(#[from] OffsetError),
    /// The object or a map was refused.
    #[error("cannot load the eBPF object; see `tracer-agent doctor`")]
    Object(#[from] aya::EbpfError),
    /// A program was refused.
    #[error("cannot {action} eBPF program {program}")]
    Program {
        /// `load` or `attach`.
        action: &'static str,
        /// Its name.
        program: String,
        /// Why, with the verifier's log.
        #[source]
        source: aya::programs::ProgramError,
    },
    /// A program of a function was refused.
    #[error("cannot {action} eBPF program {program} for a function")]
    Function {
        /// `load` or `attach`.
        action: &'static str,
        /// Its name.
        program: String,
        /// Why, with the end of the verifier's log.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel does not name it.
    #[error("the kernel's type information has no function of the system call {0}")]
    NoFunction(String),
    /// Who is in a call already is not known.
    #[error("cannot see which threads are in a system call")]
    Threads(#[source] std::sync::Arc<std::io::Error>),
    /// The fast tier was asked for.
    #[error("the fast tier was asked for, and cannot be had here: {0}")]
    NotFast(String),
    /// Nothing could be attached.
    #[error(
        "no data syscall could be attached: {0}; is tracefs mounted at /sys/kernel/tracing, and may this user read it (CAP_DAC_READ_SEARCH)?"
    )]
    NothingAttached(String),
    /// The object and the agent do not fit.
    #[error("the eBPF object has no {0}; rebuild with `cargo xtask build`")]
    Mismatch(&'static str),
    /// Programs are not measured.
    #[error("the kernel does not measure eBPF programs")]
    Measure(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A map operation failed.
    #[error("cannot set up an eBPF map")]
    Map(#[from] aya::maps::MapError),
}

pub(super) fn failed(
    action: &'static str,
    program: &str,
    source: aya::programs::ProgramError,
) -> LoadError {
    LoadError::Program {
        action,
        program: program.to_owned(),
        source,
    }
}

pub(super) fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io
                .raw_os_error()
                .is_some_and(|code| code == libc::EPERM || code == libc::EACCES)
            && !rights::can_trace()
        {
            return true;
        }
        next = error.source();
    }
    false
}
