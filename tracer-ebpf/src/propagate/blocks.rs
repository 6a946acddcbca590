//! The traces of HTTP/2 requests that come in, from their header blocks; what is called for them goes on with these.
//!
//! In: the frames of every window that a server reads ([`tracer_common::blocks`]). Out: an entry of
//! [`REQUEST_CONTEXTS`] for each request of a connection all of whose blocks were seen from its first byte on.
//!
//! Reached by tail call between the frames and the streams program.

use aya_ebpf::macros::{map, tracepoint, uprobe};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::{ProbeContext, TracePointContext};
use tracer_common::abi::{direction, role};
use tracer_common::blocks::{self, Blocks, Frame, Progress};
use tracer_common::context::incoming as known;

use super::{Incoming, PROPAGATES, Place, RECEIVED, REQUEST_CONTEXTS};
use crate::cause::{Cause, NOTED, Noted, wanted};
use crate::connection::{self, Connection};
use crate::kernel::Socket;
use crate::maps::{BLOCKS_PROGRAM, STREAMS_PROGRAM, Scratch};
use crate::memory::Forgotten;
use crate::probes::deliver::{Bytes, go_on};
use crate::probes::frames::{NOTING, spent};
use crate::way::{Syscalls, Uprobes, Way};

/// Steps in one run: a part of a field, or of a block.
const STEPS: u32 = 96;
/// Tail calls for one call after which no more blocks are gone over.
const MOST: u32 = 26;
/// Blocks that may end in one run; a power of two.
const ENDED: usize = 8;

/// What is known of the requests of a connection, by its key in the connection table; without an entry, nothing.
#[map]
pub static BLOCKS: LruHashMap<Socket, Blocks> = LruHashMap::with_max_entries(8192, 0);

/// Blocks that ended in a run.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ended {
    count: u32,
    streams: [u32; ENDED],
    reserved: u32,
    requests: [Incoming; ENDED],
}

impl Ended {
    /// # Safety
    /// `this` is a place of map memory that is nobody else's meanwhile.
    #[inline(always)]
    unsafe fn add(this: *mut Ended, blocks: *const Blocks) {
        // SAFETY: as the caller says; the masked index is within the arrays.
        unsafe {
            let count = (&raw const (*this).count).read_volatile();
            let index = count as usize & (ENDED - 1);
            let streams = (&raw mut (*this).streams).cast::<u32>();
            streams.add(index).write_volatile((*blocks).stream);
            let request = (&raw mut (*this).requests).cast::<Incoming>().add(index);
            request.write_volatile(Incoming {
                trace: (*blocks).trace,
                state: (*blocks).state,
                flags: (*blocks).flags,
            });
            (&raw mut (*this).count).write_volatile(count + 1);
        }
    }

    /// # Safety
    /// As of [`Ended::add`].
    #[inline(always)]
    unsafe fn is_full(this: *const Ended) -> bool {
        // SAFETY: as the caller says.
        unsafe { (&raw const (*this).count).read_volatile() >= ENDED as u32 }
    }
}

/// See the module's text.
#[tracepoint]
pub fn propagate_blocks(ctx: TracePointContext) -> u32 {
    let _ = try_blocks::<Syscalls>(&ctx);
    0
}

/// The same, reached from uprobes.
#[uprobe]
pub fn propagate_tls_blocks(ctx: ProbeContext) -> u32 {
    let _ = try_blocks::<Uprobes>(&ctx);
    Uprobes::done();
    0
}

#[inline(always)]
fn try_blocks<W: Way>(ctx: &W::Context) -> Option<()> {
    let scratch = W::scratch()?;
    let connection = connection::find(scratch.call.socket)?;
    let progress = go_over(scratch);
    conclude(scratch, connection);
    scratch.call.noting += 1;
    let program = match progress {
        // Two are left for the other programs of this window.
        Progress::GoesOn | Progress::Ended if spent(&scratch.call) < MOST => BLOCKS_PROGRAM,
        Progress::GoesOn | Progress::Ended => {
            lost(scratch.call.socket);
            STREAMS_PROGRAM
        }
        Progress::Done => STREAMS_PROGRAM,
        Progress::Lost => {
            lost(scratch.call.socket);
            STREAMS_PROGRAM
        }
    };
    go_on::<W>(ctx, scratch, connection, program);
    None
}

/// True where the streams of a call bring requests whose traces may be asked for.
#[inline(always)]
fn matters(connection: &Connection, direction: u32) -> bool {
    PROPAGATES.load() != 0 && direction == direction::READ as u32 && connection.role != role::CLIENT
}

/// The frames of a window are about to be gone over: says in `noted` which of them are wanted.
#[inline(always)]
pub fn begin(scratch: &mut Scratch, connection: &Connection) {
    let mut wanted = Noted::wanted(connection, scratch.call.direction as u8);
    let mut looks = 0;
    if wants(scratch, connection) {
        wanted |= wanted::BLOCKS;
        looks = (connection.read.unframed > 0) as u32;
    }
    let most = if spent(&scratch.call) > NOTING {
        u32::MAX
    } else {
        NOTED
    };
    let noted = Forgotten::new(&mut scratch.noted).pointer();
    // By way of map memory: in registers they would be ways of their own through the walk over the frames.
    // SAFETY: the scratch buffer is this program's.
    unsafe {
        (&raw mut (*noted).wanted).write_volatile(wanted);
        (&raw mut (*noted).looks).write_volatile(looks);
        (&raw mut (*noted).most).write_volatile(most);
    }
}

#[inline(always)]
fn wants(scratch: &Scratch, connection: &Connection) -> bool {
    if !matters(connection, scratch.call.direction) {
        return false;
    }
    let key = scratch.call.socket;
    let side = &connection.read;
    if side.position == 0 && connection.from_start != 0 {
        let _ = BLOCKS.insert(&key, &Blocks::new(connection.id), 0);
        return true;
    }
    let Some(blocks) = BLOCKS.get_ptr_mut(&key) else {
        return false;
    };
    // SAFETY: the pointer is into the map.
    let (id, position) = unsafe { ((*blocks).connection, (*blocks).position) };
    if id != connection.id || position != side.position.wrapping_add(side.skip) {
        lost(key);
        return false;
    }
    // SAFETY: as above.
    unsafe { blocks::begin(blocks) };
    true
}

/// They were, and the direction stands behind them.
#[inline(always)]
pub fn followed(key: Socket, connection: &Connection, direction: u32) {
    if !matters(connection, direction) {
        return;
    }
    if let Some(blocks) = BLOCKS.get_ptr_mut(&key) {
        let side = &connection.read;
        // SAFETY: the pointer is into the map.
        unsafe { (*blocks).position = side.position.wrapping_add(side.skip) };
    }
}

/// Some of the connection's blocks were not gone over.
#[inline(always)]
pub fn lost(key: Socket) {
    if PROPAGATES.load() != 0 {
        let _ = BLOCKS.remove(&key);
    }
}

/// Goes over the blocks in the window.
#[inline(always)]
fn go_over(scratch: &mut Scratch) -> Progress {
    let ended = Forgotten::new(&mut scratch.ended).pointer();
    // SAFETY: the scratch buffer is this program's, here and below.
    unsafe { (&raw mut (*ended).count).write_volatile(0) };
    let Some(place) = BLOCKS.get_ptr_mut(&scratch.call.socket) else {
        return Progress::Done;
    };
    let bytes = Bytes::of(scratch);
    let noted = Forgotten::new(&mut scratch.noted).pointer();
    let seen = Forgotten::new(&mut scratch.found.seen);
    let frame = |index| {
        // SAFETY: as above.
        let (says, place) = unsafe {
            if index >= Noted::count(noted) {
                return None;
            }
            Noted::at(noted, index)
        };
        Some(Frame {
            stream: (says >> 16) as u32,
            kind: (says >> 8) as u8,
            flags: says as u8,
            at: place as u32,
            length: (place >> 32) as u32,
        })
    };
    let mut step = 0;
    while step < STEPS {
        step += 1;
        // SAFETY: the pointer is into the map. Where two threads read the same connection at the same time, its
        // position shows that.
        match unsafe { blocks::step(&bytes, seen.load(), place, frame) } {
            Progress::GoesOn => {}
            Progress::Ended => {
                // SAFETY: as above.
                unsafe { Ended::add(ended, place) };
            }
            end => return end,
        }
        // SAFETY: as above.
        if unsafe { Ended::is_full(ended) } {
            break;
        }
    }
    Progress::GoesOn
}

/// Blocks ended: what their requests came with is known.
#[inline(always)]
fn conclude(scratch: &mut Scratch, connection: &Connection) {
    let key = scratch.call.socket;
    let ended = Forgotten::new(&mut scratch.ended).pointer();
    let mut i = 0;
    while i < ENDED {
        // SAFETY: the scratch buffer is this program's; the index is within the arrays.
        let (count, stream, request) = unsafe {
            (
                (&raw const (*ended).count).read_volatile(),
                (&raw const (*ended).streams)
                    .cast::<u32>()
                    .add(i)
                    .read_volatile(),
                (&raw mut (*ended).requests).cast::<Incoming>().add(i),
            )
        };
        if i < count as usize {
            // SAFETY: as above.
            came(key, connection, stream, unsafe { &mut *request });
        }
        i += 1;
    }
}

#[inline(always)]
fn came(key: Socket, connection: &Connection, stream: u32, request: &mut Incoming) {
    let Some(blocks) = BLOCKS.get_ptr_mut(&key) else {
        return;
    };
    // SAFETY: the pointer is into the map.
    unsafe {
        // Those behind a request are trailers.
        if stream <= (*blocks).newest {
            return;
        }
        (*blocks).newest = stream;
    }
    if request.state == known::ABSENT {
        let socket = connection.socket(key);
        if socket == 0 {
            // Whether it came in an option cannot be said.
            return;
        }
        let place = Place {
            sock: socket,
            place: connection.read_sequence.wrapping_add(stream),
            is_stream: 1,
        };
        if connection.sequences != 0 {
            // SAFETY: the value is only read.
            if let Some(received) = unsafe { RECEIVED.get(&place) } {
                *request = *received;
            }
        }
    }
    let cause = Cause {
        connection: connection.id,
        key: stream as u64,
    };
    let _ = REQUEST_CONTEXTS.insert(&cause, request, 0);
}
