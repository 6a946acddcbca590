//! The kernel struct offsets that the kernel side needs, resolved once from BTF.
//!
//! One line per global of `tracer-ebpf/src/kernel.rs`. A member that this kernel does not have is
//! left out (the global keeps its "absent" value) unless nothing works without it.

use super::btf::{Btf, BtfError};

/// A global's name and the value it gets.
pub type Offset = (&'static str, u32);

/// Why the offsets could not be had.
#[derive(Debug, thiserror::Error)]
pub enum OffsetError {
    /// No usable BTF.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A member that nothing works without.
    #[error("this kernel's type information has no {structure}.{member}")]
    Missing {
        /// The struct.
        structure: &'static str,
        /// The member.
        member: &'static str,
    },
    /// Architecture without a register table.
    #[error("system call arguments cannot be read on this architecture ({0})")]
    Architecture(&'static str),
}

/// The word of a task that tells system calls of 32 bits, and its bits that are set during one: `TS_COMPAT`.
#[cfg(target_arch = "x86_64")]
pub const COMPAT: (&str, u32) = ("thread_info.status", 1 << 1);
/// `TIF_32BIT`.
#[cfg(not(target_arch = "x86_64"))]
pub const COMPAT: (&str, u32) = ("thread_info.flags", 1 << 22);

/// `(global, struct, member, required)`.
const MEMBERS: &[(&str, &str, &str, bool)] = &[
    ("TASK_FILES", "task_struct", "files", true),
    ("TASK_STACK", "task_struct", "stack", true),
    ("TASK_MM", "task_struct", "mm", true),
    ("TASK_TGID", "task_struct", "tgid", true),
    ("TASK_PID", "task_struct", "pid", true),
    ("TASK_WAITS", "task_struct", "nvcsw", false),
    ("TASK_LOSSES", "task_struct", "nivcsw", false),
    ("TASK_REAL_PARENT", "task_struct", "real_parent", true),
    // Called real_start_time before 5.5 (kernel commit cf25e24db61c).
    (
        "TASK_START_BOOTTIME",
        "task_struct",
        "start_boottime",
        false,
    ),
    ("TASK_COMPAT", "task_struct", COMPAT.0, false),
    ("MM_ARG_START", "mm_struct", "arg_start", true),
    ("MM_ARG_END", "mm_struct", "arg_end", true),
    ("MM_ENV_START", "mm_struct", "env_start", true),
    ("MM_ENV_END", "mm_struct", "env_end", true),
    ("FILES_FDT", "files_struct", "fdt", true),
    ("FDT_MAX_FDS", "fdtable", "max_fds", true),
    ("FDT_FD", "fdtable", "fd", true),
    ("FILE_INODE", "file", "f_inode", true),
    ("FILE_FLAGS", "file", "f_flags", false),
    ("FILE_PRIVATE_DATA", "file", "private_data", true),
    ("FILE_COUNT", "file", "f_count", false),
    ("FILE_REF", "file", "f_ref", false),
    ("INODE_MODE", "inode", "i_mode", true),
    ("INODE_INO", "inode", "i_ino", true),
    ("SOCKET_SK", "socket", "sk", true),
    ("SOCKET_TYPE", "socket", "type", true),
    ("SOCK_FAMILY", "sock", "__sk_common.skc_family", true),
    ("SOCK_NUM", "sock", "__sk_common.skc_num", true),
    ("SOCK_DPORT", "sock", "__sk_common.skc_dport", true),
    ("SOCK_DADDR", "sock", "__sk_common.skc_daddr", true),
    ("SOCK_RCV_SADDR", "sock", "__sk_common.skc_rcv_saddr", true),
    ("SOCK_V6_DADDR", "sock", "__sk_common.skc_v6_daddr", false),
    (
        "SOCK_V6_RCV_SADDR",
        "sock",
        "__sk_common.skc_v6_rcv_saddr",
        false,
    ),
    ("SOCK_PROTOCOL", "sock", "sk_protocol", true),
    ("SOCK_ERR", "sock", "sk_err", true),
    ("TCP_COPIED_SEQ", "tcp_sock", "copied_seq", false),
    ("TCP_WRITE_SEQ", "tcp_sock", "write_seq", false),
    ("TCP_SND_NXT", "tcp_sock", "snd_nxt", false),
    ("SOCK_WMEM_QUEUED", "sock", "sk_wmem_queued", false),
    ("SOCK_SNDBUF", "sock", "sk_sndbuf", false),
    ("SOCK_SOCKET", "sock", "sk_socket", false),
    ("SOCKET_FILE", "socket", "file", false),
    ("UNIX_ADDR", "unix_sock", "addr", false),
    ("UNIX_PEER", "unix_sock", "peer", false),
    ("UNIX_ADDRESS_LEN", "unix_address", "len", false),
    ("UNIX_ADDRESS_NAME", "unix_address", "name", false),
    ("SOCK_ULP", "inet_connection_sock", "icsk_ulp_ops", false),
    ("ULP_NAME", "tcp_ulp_ops", "name", false),
    ("INODE_SB", "inode", "i_sb", false),
    ("INODE_SIZE", "inode", "i_size", false),
    ("INODE_GENERATION", "inode", "i_generation", false),
    ("SB_DEV", "super_block", "s_dev", false),
    ("SB_MAGIC", "super_block", "s_magic", false),
    ("URING_OPCODE", "io_kiocb", "opcode", false),
    ("URING_FILE", "io_kiocb", "file", false),
    // Both lie at the start of the request.
    ("URING_RW_ADDRESS", "io_rw", "addr", false),
    ("URING_RW_LENGTH", "io_rw", "len", false),
    ("URING_SR_ADDRESS", "io_sr_msg", "buf", false),
    ("URING_SR_LENGTH", "io_sr_msg", "len", false),
    ("URING_SR_MESSAGE_FLAGS", "io_sr_msg", "msg_flags", false),
    ("URING_SR_FLAGS", "io_sr_msg", "flags", false),
];

/// Registers that hold the arguments of system calls, in `struct pt_regs`.
#[cfg(target_arch = "x86_64")]
const REGISTERS: Option<[&str; 5]> = Some(["di", "si", "dx", "r10", "r8"]);
/// `regs` is an array: the others follow from its start.
#[cfg(not(target_arch = "x86_64"))]
const REGISTERS: Option<[&str; 5]> = None;

const ARGUMENTS: [&str; 5] = [
    "REGS_ARG0",
    "REGS_ARG1",
    "REGS_ARG2",
    "REGS_ARG3",
    "REGS_ARG4",
];
/// Resolves them all.
pub fn resolve(btf: &Btf) -> Result<Vec<Offset>, OffsetError> {
    let mut offsets = Vec::with_capacity(MEMBERS.len() + 8);
    for &(global, structure, member, required) in MEMBERS {
        match btf.offset(structure, member) {
            Some(offset) => offsets.push((global, offset)),
            None if required => return Err(OffsetError::Missing { structure, member }),
            None => {}
        }
    }
    registers(btf, &mut offsets)?;
    offsets.push(("STACK_REGS", stack_registers(btf)?));
    Ok(offsets)
}

fn registers(btf: &Btf, offsets: &mut Vec<Offset>) -> Result<(), OffsetError> {
    let member = |structure, member| {
        btf.offset(structure, member)
            .ok_or(OffsetError::Missing { structure, member })
    };
    if let Some(names) = REGISTERS {
        for (global, name) in ARGUMENTS.into_iter().zip(names) {
            offsets.push((global, member("pt_regs", name)?));
        }
        // Go's internal ABI keeps the current goroutine in R14.
        for (global, name) in [
            ("REGS_GOROUTINE", "r14"),
            ("REGS_GO0", "ax"),
            ("REGS_GO1", "bx"),
            ("REGS_GO2", "cx"),
            ("REGS_GO3", "di"),
            ("REGS_GO5", "r8"),
            ("REGS_C0", "di"),
            ("REGS_C1", "si"),
            ("REGS_C2", "dx"),
            ("REGS_C3", "cx"),
            ("REGS_RESULT", "ax"),
            ("REGS_NUMBER", "orig_ax"),
            ("REGS_SP", "sp"),
            ("REGS_FLAGS", "flags"),
        ] {
            offsets.push((global, member("pt_regs", name)?));
        }
        return Ok(());
    }
    if !cfg!(target_arch = "aarch64") {
        return Err(OffsetError::Architecture(std::env::consts::ARCH));
    }
    // arm64: the first argument is kept in orig_x0, because x0 becomes the return value.
    let regs = member("pt_regs", "regs")?;
    offsets.push((ARGUMENTS[0], member("pt_regs", "orig_x0")?));
    for (i, global) in ARGUMENTS.into_iter().enumerate().skip(1) {
        offsets.push((global, regs + 8 * i as u32));
    }
    offsets.push(("REGS_SP", member("pt_regs", "sp")?));
    // Go keeps the current goroutine in R28.
    for (global, register) in [
        ("REGS_GOROUTINE", 28),
        ("REGS_GO0", 0),
        ("REGS_GO1", 1),
        ("REGS_GO2", 2),
        ("REGS_GO3", 3),
        ("REGS_GO5", 5),
        ("REGS_C0", 0),
        ("REGS_C1", 1),
        ("REGS_C2", 2),
        ("REGS_C3", 3),
        ("REGS_RESULT", 0),
        ("REGS_LINK", 30),
    ] {
        offsets.push((global, regs + 8 * register));
    }
    Ok(())
}

/// Where a task's `struct pt_regs` is, from the bottom of its stack. Only asked for on kernels
/// before 5.15, which have no helper for it: there it ends at the stack's end (16 KiB), without the
/// padding that FRED brought to x86-64 in 6.9.
fn stack_registers(btf: &Btf) -> Result<u32, OffsetError> {
    const STACK: u32 = 16 * 1024;
    let missing = OffsetError::Missing {
        structure: "pt_regs",
        member: "(size)",
    };
    let size = btf.size("pt_regs").ok_or(missing)?;
    Ok(STACK - size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: this machine's kernel. Guarantees: everything required is there, nothing twice.
    #[test]
    fn running_kernel_has_what_is_required() {
        let Ok(btf) = Btf::of_running_kernel() else {
            println!("skipped: no readable /sys/kernel/btf/vmlinux");
            return;
        };
        let offsets = resolve(&btf).expect("offsets");
        let mut names: Vec<_> = offsets.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), offsets.len());
        assert!(
            offsets
                .iter()
                .any(|(name, _)| *name == "FILE_REF" || *name == "FILE_COUNT")
        );
    }
}
