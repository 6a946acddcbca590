//! The only file that knows kernel struct offsets.
//!
//! Offsets come from the running kernel's BTF, resolved by the agent before load and handed over as
//! read-only globals (rustc emits no CO-RE relocations). The verifier knows their values, so an
//! offset is as good as a constant. [`ABSENT`] switches off what needs it.

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_user};
use tracer_common::abi::MappedFile;

/// An offset that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        $($(#[$meta])* #[unsafe(no_mangle)] pub static $name: Global<u32> = Global::new(ABSENT);)*
    };
}

offsets! {
    TASK_FILES,
    TASK_STACK,
    TASK_MM,
    TASK_TGID,
    /// Id of the thread.
    TASK_PID,
    /// How often it gave up its CPU to wait.
    TASK_WAITS,
    /// How often it lost its CPU without that.
    TASK_LOSSES,
    TASK_REAL_PARENT,
    TASK_START_BOOTTIME,
    /// Where a task's word is that tells calls of 32 bits (see [`COMPAT`]).
    TASK_COMPAT,
    MM_ARG_START,
    MM_ARG_END,
    MM_ENV_START,
    MM_ENV_END,
    FILES_FDT,
    FDT_MAX_FDS,
    FDT_FD,
    FILE_INODE,
    FILE_FLAGS,
    FILE_PRIVATE_DATA,
    /// `f_count` (reference count, 1 means last) before 6.13.
    FILE_COUNT,
    /// `f_ref` (0 means last) since 6.13, kernel commit 08ef26ea9ab3.
    FILE_REF,
    INODE_MODE,
    INODE_INO,
    SOCKET_SK,
    SOCKET_TYPE,
    SOCK_FAMILY,
    SOCK_NUM,
    SOCK_DPORT,
    SOCK_DADDR,
    SOCK_RCV_SADDR,
    SOCK_V6_DADDR,
    SOCK_V6_RCV_SADDR,
    SOCK_PROTOCOL,
    SOCK_ERR,
    /// Next byte that the process reads, as a sequence number.
    TCP_COPIED_SEQ,
    /// Next byte that the process writes.
    TCP_WRITE_SEQ,
    /// Next byte that the kernel sends: what is before `TCP_WRITE_SEQ` waits.
    TCP_SND_NXT,
    /// Bytes of memory that wait to be sent or to be acknowledged, and their limit.
    SOCK_WMEM_QUEUED,
    SOCK_SNDBUF,
    /// The `struct socket` of a socket, and its file: the kernel's own sockets have none.
    SOCK_SOCKET,
    SOCKET_FILE,
    UNIX_ADDR,
    UNIX_PEER,
    UNIX_ADDRESS_LEN,
    UNIX_ADDRESS_NAME,
    /// Arguments of a system call in `struct pt_regs`, as they are still there at its exit.
    REGS_ARG0,
    REGS_ARG1,
    REGS_ARG2,
    REGS_ARG3,
    REGS_ARG4,
    /// Which system call it is.
    REGS_NUMBER,
    /// Stack pointer in `struct pt_regs`.
    REGS_SP,
    /// Condition flags, where a condition may have to be known (x86-64).
    REGS_FLAGS,
    /// The register that holds the current goroutine (Go's internal ABI).
    REGS_GOROUTINE,
    /// First arguments of a function of Go's (internal ABI); the first is the first result too.
    REGS_GO0,
    REGS_GO1,
    REGS_GO2,
    REGS_GO3,
    REGS_GO5,
    /// First arguments of a function of C's.
    REGS_C0,
    REGS_C1,
    REGS_C2,
    REGS_C3,
    /// Result of a function of C's.
    REGS_RESULT,
    /// Where a function returns to, on architectures that have a register for it.
    REGS_LINK,
    /// What a socket's data goes through (`struct tcp_ulp_ops *`), and its name.
    SOCK_ULP,
    ULP_NAME,
    INODE_SB,
    INODE_SIZE,
    INODE_GENERATION,
    SB_DEV,
    SB_MAGIC,
    /// Of `struct io_kiocb`; absent where completions of io_uring do not tell their request.
    URING_OPCODE,
    URING_FILE,
    /// Where `read` and `write` requests have their bytes (`struct io_rw`), from the request on.
    URING_RW_ADDRESS,
    URING_RW_LENGTH,
    /// Where `recv` and `send` requests have theirs (`struct io_sr_msg`).
    URING_SR_ADDRESS,
    URING_SR_LENGTH,
    URING_SR_MESSAGE_FLAGS,
    URING_SR_FLAGS,
    /// `struct pt_regs` from the bottom of a task's stack; only for kernels without the helper.
    STACK_REGS,
}

/// 1 when the kernel has `bpf_task_pt_regs`.
#[unsafe(no_mangle)]
pub static TASK_REGS_HELPER: Global<u32> = Global::new(0);

/// 1 where the kernel may leave out programs for beginnings of system calls (since 7.x, see `probes/raw.rs`): what
/// one took note of must not be left for the next call.
#[unsafe(no_mangle)]
pub static SKIPS_ENTRIES: Global<u32> = Global::new(0);

/// Number of the system call `write`.
#[unsafe(no_mangle)]
pub static WRITE_CALL: Global<u32> = Global::new(0);

/// Bits of a task's word that are set while it makes a call of 32 bits.
#[unsafe(no_mangle)]
pub static COMPAT: Global<u32> = Global::new(u32::MAX);

/// 1 when uprobes can have cookies (since 5.15).
#[unsafe(no_mangle)]
pub static COOKIES: Global<u32> = Global::new(0);

/// A kernel `struct sock *`, as a number.
pub type Socket = u64;

/// The same value, of which LLVM knows nothing: a bound checked on it stays a bound for the verifier
/// (LLVM likes to check a copy and use the original).
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    // SAFETY: a live local.
    unsafe { core::ptr::read_volatile(&value) }
}

/// Reads one value of the kernel's memory; `None` on a bad address.
#[inline(always)]
pub fn read<T>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address itself and fails on a bad one.
    unsafe { bpf_probe_read_kernel(address as *const T) }.ok()
}

/// Reads a field: `base` plus an offset.
#[inline(always)]
pub fn field<T>(base: u64, offset: &Global<u32>) -> Option<T> {
    read(base.wrapping_add(offset.load() as u64))
}

/// True when the kernel has this field.
#[inline(always)]
pub fn has(offset: &Global<u32>) -> bool {
    offset.load() != ABSENT
}

/// The current task.
#[inline(always)]
pub fn task() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Arguments of the system call that the current task is leaving.
///
/// On x86-64 and arm64 the entry registers stay in `pt_regs` until the return to user space
/// (arm64 keeps the first one in `orig_x0`), so an exit probe needs no probe at entry.
pub struct Arguments(u64);

impl Arguments {
    /// Finds the registers of the current task.
    #[inline(always)]
    pub fn of_current() -> Option<Self> {
        if TASK_REGS_HELPER.load() != 0 {
            // SAFETY: the helpers have no preconditions; they exist since 5.15 (kernel commit
            // dd6e10fbd9fb), which the agent checked before it set the global.
            return Some(Arguments(
                unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64,
            ));
        }
        let stack: u64 = field(task(), &TASK_STACK)?;
        Some(Arguments(stack + STACK_REGS.load() as u64))
    }

    #[inline(always)]
    fn register(&self, offset: &Global<u32>) -> Option<u64> {
        field(self.0, offset)
    }

    /// The first four, with one read where they lie close together (x86-64): what reads cost is the call.
    #[inline(always)]
    pub fn four(&self) -> Option<[u64; 4]> {
        let start = REGS_ARG3.load();
        if REGS_ARG2.load() == start.wrapping_add(40)
            && REGS_ARG1.load() == start.wrapping_add(48)
            && REGS_ARG0.load() == start.wrapping_add(56)
        {
            let words: [u64; 8] = field(self.0, &REGS_ARG3)?;
            return Some([words[7], words[6], words[5], words[0]]);
        }
        Some([self.first()?, self.second()?, self.third()?, self.fourth()?])
    }

    /// First argument, for most calls the file descriptor.
    #[inline(always)]
    pub fn first(&self) -> Option<u64> {
        self.register(&REGS_ARG0)
    }
    /// Second argument.
    #[inline(always)]
    pub fn second(&self) -> Option<u64> {
        self.register(&REGS_ARG1)
    }
    /// Third argument.
    #[inline(always)]
    pub fn third(&self) -> Option<u64> {
        self.register(&REGS_ARG2)
    }
    /// What Go calls `g`: the address of the current goroutine, if this is Go's code.
    #[inline(always)]
    pub fn goroutine(&self) -> Option<u64> {
        if !has(&REGS_GOROUTINE) {
            return None;
        }
        self.register(&REGS_GOROUTINE)
    }
    /// Fourth argument.
    #[inline(always)]
    pub fn fourth(&self) -> Option<u64> {
        self.register(&REGS_ARG3)
    }
    /// Fifth argument.
    #[inline(always)]
    pub fn fifth(&self) -> Option<u64> {
        self.register(&REGS_ARG4)
    }
    /// Which system call it is, where registers tell.
    #[inline(always)]
    pub fn number(&self) -> Option<u32> {
        if !has(&REGS_NUMBER) {
            return None;
        }
        Some(self.register(&REGS_NUMBER)? as u32)
    }
    /// The stack pointer of the process.
    #[inline(always)]
    pub fn stack(&self) -> Option<u64> {
        self.register(&REGS_SP)
    }
}

/// Registers of the process at a uprobe.
#[derive(Clone, Copy)]
pub struct Registers(u64);

impl Registers {
    /// Of the context of a uprobe program, which is a `struct pt_regs`.
    #[inline(always)]
    pub fn at(context: u64) -> Self {
        Registers(context)
    }

    #[inline(always)]
    fn register(&self, offset: &Global<u32>) -> Option<u64> {
        if !has(offset) {
            return None;
        }
        field(self.0, offset)
    }

    /// The current goroutine.
    #[inline(always)]
    pub fn goroutine(&self) -> Option<u64> {
        self.register(&REGS_GOROUTINE)
    }
    /// First argument of a Go function.
    #[inline(always)]
    pub fn go0(&self) -> Option<u64> {
        self.register(&REGS_GO0)
    }
    /// Second argument of a Go function.
    #[inline(always)]
    pub fn go1(&self) -> Option<u64> {
        self.register(&REGS_GO1)
    }
    /// Third argument of a Go function.
    #[inline(always)]
    pub fn go2(&self) -> Option<u64> {
        self.register(&REGS_GO2)
    }
    /// Fourth argument of a Go function.
    #[inline(always)]
    pub fn go3(&self) -> Option<u64> {
        self.register(&REGS_GO3)
    }
    /// Sixth argument of a Go function.
    #[inline(always)]
    pub fn go5(&self) -> Option<u64> {
        self.register(&REGS_GO5)
    }
    /// First argument of a C function.
    #[inline(always)]
    pub fn c0(&self) -> Option<u64> {
        self.register(&REGS_C0)
    }
    /// Second argument of a C function.
    #[inline(always)]
    pub fn c1(&self) -> Option<u64> {
        self.register(&REGS_C1)
    }
    /// Third argument of a C function.
    #[inline(always)]
    pub fn c2(&self) -> Option<u64> {
        self.register(&REGS_C2)
    }
    /// Fourth argument of a C function.
    #[inline(always)]
    pub fn c3(&self) -> Option<u64> {
        self.register(&REGS_C3)
    }
    /// The stack pointer.
    #[inline(always)]
    pub fn stack(&self) -> Option<u64> {
        self.register(&REGS_SP)
    }
    /// Where a function returns to, at its entry.
    #[inline(always)]
    pub fn caller(&self) -> Option<u64> {
        match self.register(&REGS_LINK) {
            Some(link) => Some(link),
            // SAFETY: the helper checks the address.
            None => unsafe { bpf_probe_read_user(self.stack()? as *const u64) }.ok(),
        }
    }
    /// Result of a C function, at its RET.
    #[inline(always)]
    pub fn c_result(&self) -> Option<u64> {
        self.register(&REGS_RESULT)
    }
}

/// A socket's file as the process sees it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SocketFile {
    /// `struct file *`.
    pub file: u64,
    /// `struct socket *`.
    pub socket: u64,
    /// `struct sock *`.
    pub sock: Socket,
    /// `struct inode *`.
    pub inode: u64,
}

const S_IFMT: u16 = 0o170000;
const S_IFSOCK: u16 = 0o140000;
const S_IFREG: u16 = 0o100000;
const S_IFIFO: u16 = 0o010000;

/// The `struct file` behind a file descriptor of the current task.
#[inline(always)]
pub fn file_of(fd: i32) -> Option<u64> {
    let files: u64 = field(task(), &TASK_FILES)?;
    let table: u64 = field(files, &FILES_FDT)?;
    // With one read where they are neighbours, as they are everywhere: what reads cost is the call.
    let (max, array): (u32, u64) = if FDT_FD.load() == FDT_MAX_FDS.load().wrapping_add(8) {
        let [max, array]: [u64; 2] = field(table, &FDT_MAX_FDS)?;
        (max as u32, array)
    } else {
        (field(table, &FDT_MAX_FDS)?, field(table, &FDT_FD)?)
    };
    if fd < 0 || fd as u32 >= max {
        return None;
    }
    let file: u64 = read(array + fd as u64 * 8)?;
    (file != 0).then_some(file)
}

/// Which file it is; `None` where the kernel does not tell.
#[inline(always)]
pub fn identity(file: u64) -> Option<MappedFile> {
    let inode: u64 = field(file, &FILE_INODE)?;
    if !has(&INODE_SB) || !has(&INODE_SIZE) || !has(&SB_DEV) {
        return None;
    }
    let sb: u64 = field(inode, &INODE_SB)?;
    let generation = if has(&INODE_GENERATION) {
        field(inode, &INODE_GENERATION)?
    } else {
        0
    };
    Some(MappedFile {
        inode: field(inode, &INODE_INO)?,
        size: field(inode, &INODE_SIZE)?,
        device: field(sb, &SB_DEV)?,
        generation,
    })
}

/// True for a file on a disk.
#[inline(always)]
pub fn is_regular_file(fd: i32) -> bool {
    let inode = file_of(fd).and_then(|file| field::<u64>(file, &FILE_INODE));
    inode.is_some_and(|inode| {
        field::<u16>(inode, &INODE_MODE).is_some_and(|mode| mode & S_IFMT == S_IFREG)
            && !is_anonymous(inode)
    })
}

/// True for eventfds, timers and the like: since 6.16 they have the mode of regular files.
#[inline(always)]
fn is_anonymous(inode: u64) -> bool {
    /// `ANON_INODE_FS_MAGIC`.
    const MAGIC: u64 = 0x0904_1934;
    has(&INODE_SB)
        && has(&SB_MAGIC)
        && field::<u64>(inode, &INODE_SB)
            .and_then(|sb| field::<u64>(sb, &SB_MAGIC))
            .is_some_and(|magic| magic == MAGIC)
}

/// Where threads leave messages for each other.
#[derive(Clone, Copy)]
pub struct MessagePlace {
    /// The same for both ends.
    pub address: u64,
    /// Or an eventfd (or a timer, which nobody writes to).
    pub is_pipe: bool,
}

/// The pipe or eventfd behind a file descriptor of the current task; `None` if it is none.
#[inline(always)]
pub fn message_place(fd: i32) -> Option<MessagePlace> {
    let file = file_of(fd)?;
    let inode: u64 = field(file, &FILE_INODE)?;
    let mode: u16 = field(inode, &INODE_MODE)?;
    if mode & S_IFMT == S_IFIFO {
        return Some(MessagePlace {
            address: inode,
            is_pipe: true,
        });
    }
    // All of these share one inode.
    is_anonymous(inode).then_some(MessagePlace {
        address: file,
        is_pipe: false,
    })
}

/// The socket behind a file descriptor of the current task; `None` if it is none.
#[inline(always)]
pub fn socket_of(fd: i32) -> Option<SocketFile> {
    socket_file(file_of(fd)?)
}

/// The socket behind a `struct file`; `None` if it is none.
#[inline(always)]
pub fn socket_file(file: u64) -> Option<SocketFile> {
    // Neighbours since 6.10; before that the socket is read only of what is one.
    let together = FILE_INODE.load() == FILE_PRIVATE_DATA.load().wrapping_add(8);
    let (mut socket, inode): (u64, u64) = if together {
        let [socket, inode]: [u64; 2] = field(file, &FILE_PRIVATE_DATA)?;
        (socket, inode)
    } else {
        (0, field(file, &FILE_INODE)?)
    };
    let mode: u16 = field(inode, &INODE_MODE)?;
    if mode & S_IFMT != S_IFSOCK {
        return None;
    }
    if !together {
        socket = field(file, &FILE_PRIVATE_DATA)?;
    }
    let sock: u64 = field(socket, &SOCKET_SK)?;
    if sock == 0 {
        return None;
    }
    Some(SocketFile {
        file,
        socket,
        sock,
        inode,
    })
}

/// A request of io_uring (`struct io_kiocb`).
#[derive(Clone, Copy)]
pub struct UringRequest(u64);

impl UringRequest {
    /// That at this address; `None` for none, and where this kernel's are not known.
    #[inline(always)]
    pub fn at(address: u64) -> Option<Self> {
        (address != 0 && has(&URING_OPCODE)).then_some(UringRequest(address))
    }

    /// `enum io_uring_op`.
    #[inline(always)]
    pub fn opcode(&self) -> Option<u8> {
        field(self.0, &URING_OPCODE)
    }

    /// Its `struct file`.
    #[inline(always)]
    pub fn file(&self) -> Option<u64> {
        field(self.0, &URING_FILE).filter(|file| *file != 0)
    }

    /// Of a `read` or `write`: where the bytes are.
    #[inline(always)]
    pub fn plain_address(&self) -> Option<u64> {
        field(self.0, &URING_RW_ADDRESS)
    }

    /// And how many there may be.
    #[inline(always)]
    pub fn plain_length(&self) -> Option<u32> {
        field(self.0, &URING_RW_LENGTH)
    }

    /// Of a `recv` or `send`: where the bytes are.
    #[inline(always)]
    pub fn socket_address(&self) -> Option<u64> {
        field(self.0, &URING_SR_ADDRESS)
    }

    /// And how many there may be.
    #[inline(always)]
    pub fn socket_length(&self) -> Option<u32> {
        field(self.0, &URING_SR_LENGTH)
    }

    /// `MSG_*`.
    #[inline(always)]
    pub fn message_flags(&self) -> Option<u64> {
        field::<u32>(self.0, &URING_SR_MESSAGE_FLAGS).map(u64::from)
    }

    /// `IORING_RECV*`; 0 where requests have none.
    #[inline(always)]
    pub fn socket_flags(&self) -> Option<u16> {
        match has(&URING_SR_FLAGS) {
            true => field(self.0, &URING_SR_FLAGS),
            false => Some(0),
        }
    }
}

impl SocketFile {
    /// Inode number, as `/proc/PID/fd` shows it.
    #[inline(always)]
    pub fn number(&self) -> u64 {
        field(self.inode, &INODE_INO).unwrap_or(0)
    }

    /// True when calls on it wait (unless they ask not to).
    #[inline(always)]
    pub fn is_blocking(&self) -> bool {
        const O_NONBLOCK: u32 = 0o4000;
        has(&FILE_FLAGS)
            && field::<u32>(self.file, &FILE_FLAGS).is_some_and(|flags| flags & O_NONBLOCK == 0)
    }

    /// True when this descriptor is the last one of the file.
    #[inline(always)]
    pub fn is_last_reference(&self) -> bool {
        if has(&FILE_REF) {
            field::<u64>(self.file, &FILE_REF) == Some(0)
        } else {
            field::<u64>(self.file, &FILE_COUNT) == Some(1)
        }
    }

    /// True for a TCP or unix socket of type `SOCK_STREAM`.
    #[inline(always)]
    pub fn is_stream(&self, family: u16) -> bool {
        const SOCK_STREAM: u16 = 1;
        if field::<u16>(self.socket, &SOCKET_TYPE) != Some(SOCK_STREAM) {
            return false;
        }
        match family {
            AF_UNIX => true,
            AF_INET | AF_INET6 => is_tcp(self.sock),
            _ => false,
        }
    }
}

pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

/// Address family of a socket.
#[inline(always)]
pub fn family(sock: Socket) -> u16 {
    field(sock, &SOCK_FAMILY).unwrap_or(0)
}

/// TCP or multipath TCP.
#[inline(always)]
pub fn is_tcp(sock: Socket) -> bool {
    const IPPROTO_TCP: u16 = 6;
    const IPPROTO_MPTCP: u16 = 262;
    matches!(
        field::<u16>(sock, &SOCK_PROTOCOL),
        Some(IPPROTO_TCP | IPPROTO_MPTCP)
    )
}

/// True when the kernel encrypts what the process writes to the socket (kernel TLS).
#[inline(always)]
pub fn is_kernel_tls(sock: Socket) -> bool {
    if !has(&SOCK_ULP) || !has(&ULP_NAME) || !is_tcp(sock) {
        return false;
    }
    let Some(ulp) = field::<u64>(sock, &SOCK_ULP) else {
        return false;
    };
    ulp != 0 && field::<[u8; 4]>(ulp, &ULP_NAME) == Some(*b"tls\0")
}

/// Pending error of a socket, positive errno or 0.
#[inline(always)]
pub fn error(sock: Socket) -> u32 {
    field::<u32>(sock, &SOCK_ERR).unwrap_or(0)
}

/// Local port, host order.
#[inline(always)]
pub fn local_port(sock: Socket) -> u16 {
    field(sock, &SOCK_NUM).unwrap_or(0)
}

/// Remote port, host order.
#[inline(always)]
pub fn remote_port(sock: Socket) -> u16 {
    u16::from_be(field(sock, &SOCK_DPORT).unwrap_or(0))
}

/// Address and port at the other end, mixed into a number that is not 0.
#[inline(always)]
pub fn remote_place(sock: Socket, family: u16) -> u64 {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let (_, remote) = addresses(sock, family);
    let word = |from: usize| {
        u64::from_le_bytes([
            remote[from],
            remote[from + 1],
            remote[from + 2],
            remote[from + 3],
            remote[from + 4],
            remote[from + 5],
            remote[from + 6],
            remote[from + 7],
        ])
    };
    let mixed = (word(0).wrapping_mul(MIX) ^ word(8)).wrapping_mul(MIX);
    mixed ^ (remote_port(sock) as u64) << 1 | 1
}

/// TCP sequence numbers of the next bytes read and written. Not an `Option`: verifiers before Linux 6.3
/// refuse a value that is there on some paths only.
#[derive(Clone, Copy)]
pub struct Sequences {
    /// 1 when they are known; else the others are 0.
    pub known: u8,
    pub read: u32,
    pub write: u32,
}

/// Sequence numbers of the next bytes that the process reads and writes. Only of plain TCP: a socket
/// of multipath TCP is another struct.
#[inline(always)]
pub fn sequences(sock: Socket, family: u16) -> Sequences {
    match known_sequences(sock, family) {
        Some((read, write)) => Sequences {
            known: 1,
            read,
            write,
        },
        None => Sequences {
            known: 0,
            read: 0,
            write: 0,
        },
    }
}

#[inline(always)]
fn known_sequences(sock: Socket, family: u16) -> Option<(u32, u32)> {
    const IPPROTO_TCP: u16 = 6;
    if family == AF_UNIX || !has(&TCP_COPIED_SEQ) || !has(&TCP_WRITE_SEQ) {
        return None;
    }
    if field::<u16>(sock, &SOCK_PROTOCOL) != Some(IPPROTO_TCP) {
        return None;
    }
    Some((field(sock, &TCP_COPIED_SEQ)?, field(sock, &TCP_WRITE_SEQ)?))
}

/// True for a socket that a process opened, and not the kernel for itself.
#[inline(always)]
pub fn is_of_process(sock: Socket) -> bool {
    if !has(&SOCK_SOCKET) || !has(&SOCKET_FILE) {
        return false;
    }
    let socket: u64 = field(sock, &SOCK_SOCKET).unwrap_or(0);
    socket != 0 && field::<u64>(socket, &SOCKET_FILE).is_some_and(|file| file != 0)
}

/// True when nothing waits to be sent and so much of the send buffer is free that `bytes` more are
/// taken in one go. Only for plain TCP.
#[inline(always)]
pub fn takes_at_once(sock: Socket, bytes: u32) -> bool {
    if !has(&TCP_WRITE_SEQ) || !has(&TCP_SND_NXT) || !has(&SOCK_WMEM_QUEUED) || !has(&SOCK_SNDBUF) {
        return false;
    }
    let next: Option<u32> = field(sock, &TCP_WRITE_SEQ);
    if next.is_none() || field::<u32>(sock, &TCP_SND_NXT) != next {
        return false;
    }
    let queued: i32 = field(sock, &SOCK_WMEM_QUEUED).unwrap_or(i32::MAX);
    let limit: i32 = field(sock, &SOCK_SNDBUF).unwrap_or(0);
    queued >= 0 && queued as i64 + 2 * bytes as i64 + 4096 < limit as i64
}

/// The socket at the other end of a unix connection; 0 if there is none.
#[inline(always)]
pub fn unix_peer(sock: Socket) -> u64 {
    if !has(&UNIX_PEER) {
        return 0;
    }
    field(sock, &UNIX_PEER).unwrap_or(0)
}

/// Local and remote IP address; IPv4 uses the first four bytes.
#[inline(always)]
pub fn addresses(sock: Socket, family: u16) -> ([u8; 16], [u8; 16]) {
    let mut local = [0u8; 16];
    let mut remote = [0u8; 16];
    if family == AF_INET {
        let near: [u8; 4] = field(sock, &SOCK_RCV_SADDR).unwrap_or_default();
        let far: [u8; 4] = field(sock, &SOCK_DADDR).unwrap_or_default();
        local[..4].copy_from_slice(&near);
        remote[..4].copy_from_slice(&far);
    } else if family == AF_INET6 && has(&SOCK_V6_DADDR) {
        local = field(sock, &SOCK_V6_RCV_SADDR).unwrap_or_default();
        remote = field(sock, &SOCK_V6_DADDR).unwrap_or_default();
    }
    (local, remote)
}

/// Address and length of the `sun_path` of the named end of a unix connection: an accepted socket
/// shares its listener's address, the connecting end finds it at its peer. `(0, 0)` if unnamed.
#[inline(always)]
pub fn unix_path(sock: Socket) -> (u64, u32) {
    let mut address: u64 = field(sock, &UNIX_ADDR).unwrap_or(0);
    if address == 0 {
        let peer: u64 = field(sock, &UNIX_PEER).unwrap_or(0);
        if peer != 0 {
            address = field(peer, &UNIX_ADDR).unwrap_or(0);
        }
    }
    if address == 0 {
        return (0, 0);
    }
    // The length counts the two bytes of `sun_family`.
    let len: u32 = field(address, &UNIX_ADDRESS_LEN).unwrap_or(0);
    if len <= 2 || len > 110 {
        return (0, 0);
    }
    (address + UNIX_ADDRESS_NAME.load() as u64 + 2, len - 2)
}
