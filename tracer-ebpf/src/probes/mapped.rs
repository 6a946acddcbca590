//! Executable files that processes map: programs and libraries at start, libraries loaded later.
//!
//! Hook: `syscalls:sys_exit_mmap (addr, length, prot, flags, fd, offset)`, or the function ([`crate::hook`]). Only files that user space has not
//! looked into are told. The program itself is mapped by the kernel: exec records tell of that.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use tracer_common::abi::{Header, MappedEvent, kind};

use super::io::Caller;
use crate::emit;
use crate::hook;
use crate::kernel::{self, Arguments};
use crate::maps::{KNOWN_FILES, MAPPED_WANTED};
use crate::tls::now;

/// See the module's text.
#[tracepoint]
pub fn sys_exit_mmap(ctx: TracePointContext) -> u32 {
    hook::ended();
    let _ = mapped(&ctx);
    0
}

#[inline(always)]
fn mapped(ctx: &TracePointContext) -> Option<()> {
    const PROT_EXEC: u64 = 4;
    const MAP_ANONYMOUS: u64 = 0x20;
    let arguments = Arguments::of_current()?;
    if arguments.third()? & PROT_EXEC == 0 || arguments.fourth()? & MAP_ANONYMOUS != 0 {
        return None;
    }
    let address = hook::result(ctx);
    if (-4095..=0).contains(&address) || MAPPED_WANTED.get(0).is_none_or(|wanted| *wanted == 0) {
        return None;
    }
    let caller = Caller::traced()?;
    let file = kernel::identity(kernel::file_of(arguments.fifth()? as i32)?)?;
    // SAFETY: the value is not looked at.
    if unsafe { KNOWN_FILES.get(&file) }.is_some() {
        return None;
    }
    let event = MappedEvent {
        header: Header {
            kind: kind::MAPPED,
            selector: 0,
            flags: 0,
            reserved: 0,
            value: 0,
        },
        time_ns: now(),
        file,
        tgid: caller.tgid,
        reserved: 0,
    };
    emit::urgent(
        core::ptr::from_ref(&event).cast(),
        core::mem::size_of::<MappedEvent>() as u64,
    );
    None
}
