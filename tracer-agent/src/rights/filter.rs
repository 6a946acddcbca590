//! The filter of system calls: what the agent never does, it cannot be made to do.
//!
//! A list of what is refused, not of what is allowed: what the C library, the allocator and the
//! runtime call changes with their versions, and a filter that breaks the agent helps nobody. Refused
//! is what starts programs, changes other processes, the kernel or the host's file system tree, or
//! opens what was never closed before. A refused call fails with EPERM; the log says so once.
//!
//! It cannot see into memory, so namespaces made by `clone3` pass; making one is no way back to rights
//! that the agent has given up.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::sys;

macro_rules! calls {
    ($($name:ident: $number:expr,)*) => { &[$((stringify!($name), $number as i64)),*] };
}

/// What is never needed, whatever its arguments.
const NEVER: &[(&str, i64)] = calls! {
    // Other processes are looked at through /proc and never changed.
    ptrace: libc::SYS_ptrace,
    process_vm_readv: libc::SYS_process_vm_readv,
    process_vm_writev: libc::SYS_process_vm_writev,
    process_madvise: libc::SYS_process_madvise,
    pidfd_getfd: libc::SYS_pidfd_getfd,
    kcmp: libc::SYS_kcmp,
    // The kernel.
    init_module: libc::SYS_init_module,
    finit_module: libc::SYS_finit_module,
    delete_module: libc::SYS_delete_module,
    kexec_load: libc::SYS_kexec_load,
    kexec_file_load: KEXEC_FILE_LOAD,
    reboot: libc::SYS_reboot,
    syslog: libc::SYS_syslog,
    acct: libc::SYS_acct,
    swapon: libc::SYS_swapon,
    swapoff: libc::SYS_swapoff,
    quotactl: libc::SYS_quotactl,
    settimeofday: libc::SYS_settimeofday,
    clock_settime: libc::SYS_clock_settime,
    adjtimex: libc::SYS_adjtimex,
    clock_adjtime: libc::SYS_clock_adjtime,
    sethostname: libc::SYS_sethostname,
    setdomainname: libc::SYS_setdomainname,
    vhangup: libc::SYS_vhangup,
    // The tree of file systems; tracefs is mounted before the filter.
    mount: libc::SYS_mount,
    umount2: libc::SYS_umount2,
    pivot_root: libc::SYS_pivot_root,
    chroot: libc::SYS_chroot,
    open_tree: libc::SYS_open_tree,
    move_mount: libc::SYS_move_mount,
    fsopen: libc::SYS_fsopen,
    fsconfig: libc::SYS_fsconfig,
    fsmount: libc::SYS_fsmount,
    fspick: libc::SYS_fspick,
    mount_setattr: libc::SYS_mount_setattr,
    open_by_handle_at: libc::SYS_open_by_handle_at,
    mknodat: libc::SYS_mknodat,
    fanotify_init: libc::SYS_fanotify_init,
    // Who the agent is.
    setuid: libc::SYS_setuid,
    setgid: libc::SYS_setgid,
    setreuid: libc::SYS_setreuid,
    setregid: libc::SYS_setregid,
    setresuid: libc::SYS_setresuid,
    setresgid: libc::SYS_setresgid,
    setfsuid: libc::SYS_setfsuid,
    setfsgid: libc::SYS_setfsgid,
    setgroups: libc::SYS_setgroups,
    personality: libc::SYS_personality,
    unshare: libc::SYS_unshare,
    setns: libc::SYS_setns,
    // Doors that were open too often.
    add_key: libc::SYS_add_key,
    request_key: libc::SYS_request_key,
    keyctl: libc::SYS_keyctl,
    userfaultfd: libc::SYS_userfaultfd,
    io_uring_setup: libc::SYS_io_uring_setup,
    io_uring_enter: libc::SYS_io_uring_enter,
    io_uring_register: libc::SYS_io_uring_register,
    vmsplice: libc::SYS_vmsplice,
    remap_file_pages: libc::SYS_remap_file_pages,
    lookup_dcookie: libc::SYS_lookup_dcookie,
};

/// Programs are started by a thread of its own, which has no filter, and in `run -- CMD` only. These
/// calls are made where signals are as a new program should find them, so nobody would hear of them.
const PROGRAMS: &[(&str, i64)] = calls! {
    execve: libc::SYS_execve,
    execveat: libc::SYS_execveat,
};

/// Those that only x86-64 has.
#[cfg(target_arch = "x86_64")]
const OF_ARCH: &[(&str, i64)] = calls! {
    iopl: libc::SYS_iopl,
    ioperm: libc::SYS_ioperm,
    modify_ldt: libc::SYS_modify_ldt,
    mknod: libc::SYS_mknod,
};
#[cfg(not(target_arch = "x86_64"))]
const OF_ARCH: &[(&str, i64)] = &[];

/// The libc crate lacks it for some targets.
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: i64 = 320;
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: i64 = 294;

/// The second numbers that x86-64's calls have on kernels with the x32 ABI.
#[cfg(target_arch = "x86_64")]
const OTHER_ABI: Option<i64> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const OTHER_ABI: Option<i64> = None;

const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];
/// Families of sockets that see all packets, or reach into the kernel's own modules.
const FAMILIES: [i32; 3] = [libc::AF_PACKET, libc::AF_ALG, libc::AF_VSOCK];

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It cannot be made for this machine.
    #[error("cannot make a filter for system calls")]
    Make(#[from] seccompiler::BackendError),
    /// The kernel refused it.
    #[error("the kernel refuses the filter")]
    Install(#[from] seccompiler::Error),
    /// What answers refused calls cannot be set up.
    #[error("cannot answer refused calls")]
    Answer(#[source] std::io::Error),
}

/// Installs it for this thread and those that it will start. Sets no_new_privs.
pub(super) fn install() -> Result<(), FilterError> {
    let (programs, others) = (programs()?, others()?);
    sys::answer_refused_calls().map_err(FilterError::Answer)?;
    seccompiler::apply_filter(&programs)?;
    Ok(seccompiler::apply_filter(&others)?)
}

/// Names of system calls refused since the last call of this.
pub fn take_refused() -> Vec<String> {
    let name = |number: u32| {
        let mut known = NEVER.iter().chain(OF_ARCH);
        let known = known.find(|(_, of)| *of == i64::from(number));
        known.map_or_else(
            || format!("number {number}"),
            |(name, _)| (*name).to_owned(),
        )
    };
    sys::take_refused().into_iter().map(name).collect()
}

/// Every call of these, by both of its numbers.
fn whole(calls: &[(&str, i64)]) -> BTreeMap<i64, Vec<SeccompRule>> {
    let numbers = calls.iter().map(|(_, number)| *number);
    let both = numbers.flat_map(|number| [Some(number), OTHER_ABI.map(|bit| number | bit)]);
    both.flatten().map(|number| (number, Vec::new())).collect()
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    action: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?.try_into()
}

fn programs() -> Result<BpfProgram, seccompiler::BackendError> {
    filter(whole(PROGRAMS), SeccompAction::Errno(libc::EPERM as u32))
}

fn others() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = whole(NEVER);
    rules.extend(whole(OF_ARCH));
    let any_of = |values: &[i32], compare: fn(u64) -> SeccompCmpOp| {
        let rule = |value: &i32| {
            let value = u64::from(value.cast_unsigned());
            let condition =
                SeccompCondition::new(0, SeccompCmpArgLen::Dword, compare(value), value)?;
            SeccompRule::new(vec![condition])
        };
        values.iter().map(rule).collect::<Result<Vec<_>, _>>()
    };
    let namespaces = any_of(&NAMESPACES, SeccompCmpOp::MaskedEq)?;
    rules.insert(libc::SYS_clone, namespaces);
    rules.insert(libc::SYS_socket, any_of(&FAMILIES, |_| SeccompCmpOp::Eq)?);
    filter(rules, SeccompAction::Trap)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a thread with the filter calls what is refused, and what is not. Guarantees: the first
    /// fails with EPERM and is told of once, the second works, and other threads are as before.
    #[test]
    fn refused_calls_fail_and_are_told_of() {
        let filtered = std::thread::spawn(|| {
            install().expect("a filter");
            let refused = rustix::process::chroot("/nowhere").expect_err("refused");
            assert_eq!(refused, rustix::io::Errno::PERM);
            let error = std::process::Command::new("/bin/true")
                .status()
                .expect_err("no program is started");
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            // Threads, files and sockets are as they were.
            std::thread::spawn(|| std::fs::read("/proc/self/status").expect("a file"))
                .join()
                .expect("a thread");
            std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
            let mut told = take_refused();
            told.retain(|name| name == "chroot");
            assert_eq!(told, ["chroot"]);
            assert!(rustix::thread::no_new_privs().expect("asked"));
        });
        filtered.join().expect("the filtered thread");
        assert!(!rustix::thread::no_new_privs().expect("asked"));
        let started = std::process::Command::new("true")
            .status()
            .expect("started");
        assert!(started.success());
    }
}
