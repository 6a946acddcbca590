//! System calls that load programs of kernel functions and attach them: aya ties each program of an object to one function and one
//! type, and here the same ones go to many.
#![allow(
    unsafe_code,
    reason = "bpf(2) takes addresses; each block says why it is sound"
)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// When a program of a function runs, as `enum bpf_attach_type` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// `BPF_TRACE_FENTRY`.
    Entry = 24,
    /// `BPF_TRACE_FEXIT`.
    Exit = 25,
}

const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BTF_LOAD: libc::c_int = 18;
/// `BPF_PROG_TYPE_TRACING`.
const TRACING: u32 = 26;
/// Longest name of a program, with the zero behind it.
const NAME: usize = 16;
/// What is kept of what the verifier says.
const LOG: usize = 256 * 1024;
/// Loading is given up by the kernel with EAGAIN when a signal comes.
const TRIES: usize = 5;

/// `union bpf_attr` of `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME],
    interface: u32,
    attach_type: u32,
    btf: u32,
    function_record: u32,
    functions: u64,
    function_count: u32,
    line_record: u32,
    lines: u64,
    line_count: u32,
    /// Type id of the function.
    attach_to: u32,
    attach_object: u32,
    reserved: u32,
}

/// `union bpf_attr` of `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
struct Attach {
    name: u64,
    program: u32,
    reserved: u32,
}

/// `union bpf_attr` of `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct Update {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` of `BPF_BTF_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Types {
    bytes: u64,
    log: u64,
    length: u32,
    log_size: u32,
    log_level: u32,
    reserved: u32,
}

/// A program.
#[derive(Clone, Debug, Default)]
pub struct Code {
    /// Its instructions.
    pub instructions: Vec<u64>,
    /// Which types its functions have (`struct bpf_func_info`): without, none but the first may make tail calls.
    pub functions: Vec<u8>,
    /// Bytes of an entry of that.
    pub record: u32,
}

/// Why a program was refused, with what the verifier said of it.
#[derive(Debug, thiserror::Error)]
#[error("{source}{}{log}", if log.is_empty() { "" } else { ": " })]
pub struct Refused {
    source: io::Error,
    log: String,
}

/// Loads types of programs.
pub fn load_types(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = Types {
        bytes: bytes.as_ptr().expose_provenance() as u64,
        length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        ..Types::default()
    };
    // SAFETY: the address is of what lives until the call returns, with its length.
    unsafe { bpf(BTF_LOAD, &mut attributes) }
}

/// Loads a program for the function with this type id of the kernel's; `types` are those of the program.
pub fn load(
    name: &str,
    code: &Code,
    types: Option<BorrowedFd<'_>>,
    when: When,
    function: u32,
) -> Result<OwnedFd, Refused> {
    let Code {
        instructions,
        functions,
        record,
    } = code;
    let mut attributes = Load {
        kind: TRACING,
        instructions: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        code: instructions.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        attach_type: when as u32,
        attach_to: function,
        ..Load::default()
    };
    if let Some(types) = types
        && *record > 0
    {
        attributes.btf = types.as_raw_fd().cast_unsigned();
        attributes.function_record = *record;
        attributes.functions = functions.as_ptr().expose_provenance() as u64;
        attributes.function_count = u32::try_from(functions.len()).unwrap_or(0) / record;
    }
    let bytes = name.bytes().filter(u8::is_ascii).take(NAME - 1);
    for (place, byte) in attributes.name.iter_mut().zip(bytes) {
        *place = byte;
    }
    let mut tries = 0;
    let source = loop {
        // SAFETY: the addresses are of what lives until the call returns, with their lengths.
        match unsafe { bpf(PROG_LOAD, &mut attributes) } {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < TRIES => tries += 1,
            Err(error) => break error,
            Ok(program) => return Ok(program),
        }
    };
    if source.raw_os_error() == Some(libc::EPERM) {
        let log = String::new();
        return Err(Refused { source, log });
    }
    // Once more, to be told why.
    let mut log = vec![0u8; LOG];
    attributes.log_level = 1;
    attributes.log_size = u32::try_from(log.len()).unwrap_or(0);
    attributes.log = log.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: as above.
    if let Ok(program) = unsafe { bpf(PROG_LOAD, &mut attributes) } {
        return Ok(program);
    }
    let said = String::from_utf8_lossy(&log);
    let said = said.trim_end_matches('\0').trim_end();
    // The end of it says what is wrong.
    let last: Vec<&str> = said.lines().rev().take(8).collect();
    let log = last.into_iter().rev().collect::<Vec<_>>().join("; ");
    Err(Refused { source, log })
}

/// Attaches it; detached with the descriptor.
pub fn attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = Attach {
        name: 0,
        program: program.as_raw_fd().cast_unsigned(),
        reserved: 0,
    };
    // SAFETY: no addresses.
    unsafe { bpf(RAW_TRACEPOINT_OPEN, &mut attributes) }
}

/// Puts a program into a map of programs.
pub fn set_program(map: BorrowedFd<'_>, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let value = program.as_raw_fd();
    let mut attributes = Update {
        map: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: (&raw const index).expose_provenance() as u64,
        value: (&raw const value).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: key and value of such a map are four bytes, and live until the call returns.
    let result = unsafe { raw(MAP_UPDATE_ELEM, &mut attributes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// # Safety
/// Addresses in the attributes are as the command wants them, and it returns a descriptor.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller says.
    let result = unsafe { raw(command, attributes) };
    match libc::c_int::try_from(result) {
        // SAFETY: the kernel has just made it for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// # Safety
/// Addresses in the attributes are as the command wants them.
unsafe fn raw<T>(command: libc::c_int, attributes: &mut T) -> libc::c_long {
    let attributes = std::ptr::from_mut(attributes);
    // SAFETY: as the caller says; the size is that of what is passed, which newer kernels write into.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a program of two instructions, `r0 = 0; exit`, for a type that is no function.
    /// Guarantees: it is refused with words, whatever the rights, and nothing is left behind.
    #[test]
    fn what_is_refused_says_why() {
        let code = Code {
            instructions: vec![0xb7, 0x95],
            ..Code::default()
        };
        let error = load("nothing", &code, None, When::Entry, 0).expect_err("no function");
        assert!(!error.to_string().is_empty());
        assert!(load_types(b"none").is_err());
        assert_eq!(size_of::<Load>(), 120);
        assert_eq!(std::mem::offset_of!(Load, attach_to), 108);
        assert_eq!(std::mem::offset_of!(Load, attach_type), 68);
    }
}
