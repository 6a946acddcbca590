//! The only place that puts records into the ring, so that every drop is counted once.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use tracer_common::abi::{
    CarriedEvent, CausedEvent, ConnectionEvent, EndEvent, ForkEvent, Header, connection_flags,
    drop_reason, end as end_cause, kind,
};
use tracer_common::limits::{UNIX_PATH_MAX, WINDOW};
use tracer_common::option::Carried;

use crate::cause::Cause;
use crate::connection::Connection;
use crate::kernel::{self, AF_UNIX, Socket};
use crate::maps::{COUNTS, DROPS, EVENTS, Scratch, UNIX_SEEN, WAKE_BYTES, count};
use crate::memory::add;

/// Counts one thing given up.
#[inline(always)]
pub fn drop_one(reason: u32) {
    if let Some(n) = DROPS.get_ptr_mut(reason) {
        // SAFETY: a word of a per-CPU map. One instruction, because programs of uprobes can be
        // interrupted by other programs.
        unsafe { add(n, 1) };
    }
}

/// Counts one thing seen; an index of [`count`].
#[inline(always)]
pub fn count_one(index: u32) {
    if let Some(n) = COUNTS.get_ptr_mut(index) {
        // SAFETY: a word of a per-CPU map. One instruction, because programs of uprobes can be
        // interrupted by other programs.
        unsafe { add(n, 1) };
    }
}

/// The reader polls; it is woken early only when much is pending. A wake-up per event would cost
/// more than everything else here together.
#[inline(always)]
fn flags() -> u64 {
    let pending = EVENTS.query(BPF_RB_AVAIL_DATA as u64);
    if let Some(highest) = COUNTS.get_ptr_mut(count::RING_HIGHEST) {
        // SAFETY: a per-CPU slot; a lost update under nesting would only show less.
        unsafe {
            *highest = if pending > *highest {
                pending
            } else {
                *highest
            }
        };
    }
    if pending >= WAKE_BYTES.load() {
        BPF_RB_FORCE_WAKEUP as u64
    } else {
        BPF_RB_NO_WAKEUP as u64
    }
}

/// Ships the data event in the scratch buffer, with as many window bytes as its header says.
#[inline(always)]
pub fn data(scratch: &Scratch) {
    const HEADER: u64 = core::mem::size_of::<tracer_common::abi::DataEvent>() as u64;
    let flags = flags();
    // Read from the record and bounded right before its use: verifiers before Linux 6.3 forget the
    // bound of a value that is put aside on the stack.
    // SAFETY: a field of the event that was just written.
    let captured = unsafe { (&raw const scratch.event.header.value).read_volatile() };
    let captured = if captured > WINDOW as u32 {
        WINDOW as u32
    } else {
        captured
    };
    // SAFETY: the window lies right behind the event, and is at least `captured` long.
    let result = unsafe {
        aya_ebpf::helpers::bpf_ringbuf_output(
            core::ptr::addr_of!(EVENTS) as *mut _,
            core::ptr::from_ref(&scratch.event) as *mut _,
            HEADER + captured as u64,
            flags,
        )
    };
    if result == 0 {
        count_one(count::SUBMITTED);
    } else {
        drop_one(drop_reason::RING_FULL_DATA);
    }
}

/// Tells user space of a connection, once. `key` is its key in the table.
#[inline(always)]
pub fn connection(connection: &mut Connection, key: Socket, tgid: u32) {
    if connection.announced != 0 {
        return;
    }
    announce(connection, key, tgid);
}

/// Tells user space of a connection, or again what is known of it now.
#[inline(always)]
pub fn announce(connection: &mut Connection, key: Socket, tgid: u32) {
    let Some(mut entry) = EVENTS.reserve::<ConnectionEvent>(0) else {
        drop_one(drop_reason::RING_FULL_CONTROL);
        return;
    };
    let event = entry.as_mut_ptr();
    let is_tls = connection.is_tls != 0;
    let sock = connection.socket(key);
    let (local, remote) = kernel::addresses(sock, connection.family);
    let is_bare = connection.family == AF_UNIX || connection.family == 0;
    let is_unix = connection.family == AF_UNIX;
    // SAFETY: the entry is as large as the event; every field is written before it is submitted.
    unsafe {
        (*event).header = Header {
            kind: kind::CONNECTION,
            selector: connection.role,
            flags: if connection.from_start != 0 {
                connection_flags::FROM_START
            } else {
                0
            } | if connection.sequences != 0 {
                connection_flags::SEQUENCES
            } else {
                0
            } | if is_tls { connection_flags::TLS } else { 0 },
            reserved: 0,
            value: 0,
        };
        (*event).time_ns = connection.since_ns;
        (*event).connection = connection.id;
        (*event).socket = key;
        (*event).inode = connection.inode;
        (*event).tgid = tgid;
        (*event).family = connection.family;
        (*event).local_port = if is_bare { 0 } else { kernel::local_port(sock) };
        (*event).remote_port = if is_bare {
            0
        } else {
            kernel::remote_port(sock)
        };
        (*event).local = local;
        (*event).remote = remote;
        (*event).read_sequence = connection.read_sequence;
        (*event).write_sequence = connection.write_sequence;
        (*event).peer = if is_unix { kernel::unix_peer(sock) } else { 0 };
        no_path(core::ptr::addr_of_mut!((*event).path).cast());
        (*event).path_len = 0;
        if is_unix {
            let (address, len) = kernel::unix_path(sock);
            if address != 0 && len <= UNIX_PATH_MAX as u32 {
                // Through the record and looked at again: verifiers before Linux 6.3 forget the bound of
                // a value that is put aside on the stack.
                let place = core::ptr::addr_of_mut!((*event).path_len);
                place.write_volatile(len as u16);
                let len = place.read_volatile() as u32;
                let read = if len <= UNIX_PATH_MAX as u32 {
                    aya_ebpf::helpers::generated::bpf_probe_read_kernel(
                        core::ptr::addr_of_mut!((*event).path).cast(),
                        len,
                        address as *const _,
                    )
                } else {
                    -1
                };
                if read != 0 {
                    place.write_volatile(0);
                }
            }
        }
    }
    entry.submit(flags());
    count_one(count::SUBMITTED);
    connection.announced = 1;
    if is_unix
        && !is_tls
        && let Some(seen) = UNIX_SEEN.get_ptr_mut(0)
    {
        // SAFETY: the pointer is into the map; everybody writes the same.
        unsafe { *seen = 1 };
    }
}

/// Empties the path of a record. An array of zeros becomes a call of a loop over bytes: longer, and the verifier goes over
/// it for every way that leads there.
///
/// # Safety
/// It can be written.
#[inline(always)]
unsafe fn no_path(path: *mut u32) {
    const PAIRS: usize = UNIX_PATH_MAX / 8;
    const _: () = assert!(UNIX_PATH_MAX == 4 + 8 * PAIRS);
    const _: () = assert!(core::mem::offset_of!(ConnectionEvent, path) % 8 == 4);
    // SAFETY: as the caller says; both are aligned.
    unsafe {
        path.write_volatile(0);
        let pairs = path.add(1).cast::<u64>();
        let mut i = 0;
        while i < PAIRS {
            pairs.add(i).write_volatile(0);
            i += 1;
        }
    }
}

/// Submits a record that was reserved elsewhere, because it decides whether something is done at all.
#[inline(always)]
pub fn submitted<T>(entry: aya_ebpf::maps::ring_buf::RingBufEntry<T>) {
    entry.submit(flags());
    count_one(count::SUBMITTED);
}

/// How a direction or a connection ended, for [`end`].
pub struct Ended {
    /// One of `abi::end`.
    pub cause: u8,
    /// One of `abi::direction`.
    pub direction: u8,
    /// errno.
    pub errno: u32,
    pub time_ns: u64,
    pub tgid: u32,
    pub tid: u32,
}

/// Tells user space of an end, if it knows the connection.
#[inline(always)]
pub fn end(connection: &mut Connection, ended: &Ended) {
    if connection.announced == 0 || connection.ended != 0 {
        return;
    }
    // A session and the socket that carries it both end.
    connection.ended = connection.is_tls & (ended.cause == end_cause::CLOSED) as u8;
    let Some(mut entry) = EVENTS.reserve::<EndEvent>(0) else {
        drop_one(drop_reason::RING_FULL_CONTROL);
        return;
    };
    let event = EndEvent {
        header: Header {
            kind: kind::END,
            selector: ended.direction,
            flags: ended.cause,
            reserved: 0,
            value: ended.errno,
        },
        time_ns: ended.time_ns,
        connection: connection.id,
        read_position: connection.read.position,
        write_position: connection.write.position,
        read_skipped: connection.read.skipped,
        write_skipped: connection.write.skipped,
        tgid: ended.tgid,
        tid: ended.tid,
    };
    // SAFETY: the entry is as large as the event.
    unsafe { entry.as_mut_ptr().write(event) };
    connection.read.skipped = 0;
    connection.write.skipped = 0;
    entry.submit(flags());
    count_one(count::SUBMITTED);
}

/// Tells user space of a forked process; nobody waits for it. False if there was no room.
#[inline(always)]
pub fn fork(event: &ForkEvent) -> bool {
    let told = EVENTS.output::<ForkEvent>(event, flags()).is_ok();
    if told {
        count_one(count::SUBMITTED);
    } else {
        drop_one(drop_reason::RING_FULL_CONTROL);
    }
    told
}

/// Ships `len` bytes that begin with an event, and wakes the reader: for rare events that user
/// space should see at once. False if there was no room.
#[inline(always)]
pub fn urgent(event: *const u8, len: u64) -> bool {
    // SAFETY: the caller's buffer is at least `len` long; the verifier checks it.
    let result = unsafe {
        aya_ebpf::helpers::bpf_ringbuf_output(
            core::ptr::addr_of!(EVENTS) as *mut _,
            event as *mut _,
            len,
            BPF_RB_FORCE_WAKEUP as u64,
        )
    };
    if result == 0 {
        count_one(count::SUBMITTED);
    } else {
        drop_one(drop_reason::RING_FULL_CONTROL);
    }
    result == 0
}

/// Tells for whom a stream of HTTP/2 is begun.
#[inline(always)]
pub fn caused(time_ns: u64, stream: &Cause, cause: &Cause, method: u32) {
    let Some(mut entry) = EVENTS.reserve::<CausedEvent>(0) else {
        drop_one(drop_reason::RING_FULL_CONTROL);
        return;
    };
    // SAFETY: the entry is as large as the event.
    unsafe {
        entry.as_mut_ptr().write(CausedEvent {
            header: Header {
                kind: kind::CAUSED,
                selector: 0,
                flags: 0,
                reserved: 0,
                value: method,
            },
            time_ns,
            connection: stream.connection,
            stream: stream.key,
            cause_connection: cause.connection,
            cause_key: cause.key,
        })
    };
    submitted(entry);
}

/// Tells of context that came in a TCP option.
#[inline(always)]
pub fn carried(sock: Socket, carried: &Carried) {
    let family = kernel::family(sock);
    let (local, remote) = kernel::addresses(sock, family);
    let Some(mut entry) = EVENTS.reserve::<CarriedEvent>(0) else {
        drop_one(drop_reason::RING_FULL_CONTROL);
        return;
    };
    // SAFETY: the entry is as large as the event.
    unsafe {
        entry.as_mut_ptr().write(CarriedEvent {
            header: Header {
                kind: kind::CARRIED,
                selector: 0,
                flags: 0,
                reserved: 0,
                value: 0,
            },
            time_ns: bpf_ktime_get_boot_ns(),
            trace: carried.trace,
            span: carried.span(),
            place: carried.place,
            flags: carried.flags,
            family,
            local_port: kernel::local_port(sock),
            remote_port: kernel::remote_port(sock),
            reserved: 0,
            local,
            remote,
        })
    };
    submitted(entry);
}
