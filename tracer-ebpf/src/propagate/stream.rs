//! Puts the field into the requests that [`super::frames`] found, the last one first, so that the places of the
//! others stay.
//!
//! Reached by tail call only, two for each request. Why the byte stream stays right: see [`super::message`].

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, bpf_msg_pop_data, bpf_msg_push_data,
};
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use tracer_common::abi::{Header, InjectedEvent, kind, propagated};
use tracer_common::context::{self, FIELD_BYTES};
use tracer_common::ids::purpose;

use super::bytes::{LONGEST, bounds, join_pieces, pull};
use super::frames::LONGEST_BLOCK;
use super::message::{FIELD, STREAM, plan, tail_call};
use super::{
    ADOPTED, BEGUN, Begun, FLOWS, FRAMINGS, Framing, NAMELESS, Plan, count, id_of, name, number,
};
use crate::cause::{self, Cause};
use crate::emit;
use crate::kernel::{self, opaque};
use crate::maps::EVENTS;
use crate::memory::Forgotten;

const BYTES: u32 = FIELD_BYTES as u32;

/// Says which ids go into the last request that has none yet, and whether they may.
#[sk_msg]
pub fn propagate_stream(ctx: SkMsgContext) -> u32 {
    let sock = sock(&ctx);
    if let (Some(plan), Some(framing)) = (plan(), framing(sock)) {
        next(&ctx, sock, plan, framing);
    }
    SK_PASS
}

/// Puts the field in.
#[sk_msg]
pub fn propagate_field(ctx: SkMsgContext) -> u32 {
    let sock = sock(&ctx);
    if let (Some(plan), Some(framing)) = (plan(), framing(sock)) {
        let outcome = insert(&ctx, sock, plan, framing);
        count(outcome);
        tail_call(&ctx, STREAM);
    }
    SK_PASS
}

#[inline(always)]
fn sock(ctx: &SkMsgContext) -> u64 {
    // SAFETY: a field of the context.
    number(unsafe { (&raw const (*ctx.msg).__bindgen_anon_3.sk).read_volatile() })
}

#[inline(always)]
fn framing(sock: u64) -> Option<&'static mut Framing> {
    // SAFETY: the pointer is into the map; the socket is locked.
    unsafe { FRAMINGS.get_ptr_mut(&sock)?.as_mut() }
}

/// The request whose turn it is.
#[inline(always)]
fn at(framing: &Framing, index: u32) -> Begun {
    let place = (&raw const framing.begun).cast::<Begun>();
    // SAFETY: the masked index is within the array.
    unsafe {
        place
            .add((opaque(index) & (BEGUN - 1)) as usize)
            .read_volatile()
    }
}

#[inline(always)]
fn next(ctx: &SkMsgContext, sock: u64, plan: &mut Plan, framing: &mut Framing) {
    let count_left = framing.count;
    if count_left == 0 {
        if framing.injected > 0 {
            join_pieces(ctx);
        }
        return;
    }
    framing.count = count_left - 1;
    if let Some(outcome) = prepare(sock, plan, framing, count_left) {
        count(outcome);
        tail_call(ctx, STREAM);
        return;
    }
    tail_call(ctx, FIELD);
}

/// Why nothing is to be written, or `None` when the plan has ids and text.
#[inline(always)]
fn prepare(sock: u64, plan: &mut Plan, framing: &Framing, turn: u32) -> Option<u32> {
    let begun = at(framing, turn - 1);
    if begun.frame + BYTES > LONGEST_BLOCK {
        return Some(propagated::TOO_LONG);
    }
    if begun.at + begun.length > LONGEST {
        return Some(propagated::CROWDED);
    }
    // All of them have to be taken with what is before the last one.
    let reach = begun.at + begun.length + (turn + framing.injected) * BYTES;
    if framing.injected == 0 && !kernel::takes_at_once(sock, reach) {
        return Some(propagated::BUSY);
    }
    let own = Cause {
        connection: plan.connection,
        key: begun.stream as u64,
    };
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let (cause, method) = cause::stream_written(
        plan.maker,
        plan.cause,
        plan.cause_method,
        tgid,
        begun.stream,
    );
    plan.stream_cause = cause;
    plan.stream_method = method;
    let ids = Forgotten::new(&mut plan.ids);
    let [high, low, span] = [0usize, 1, 2].map(|i| ids.pointer().cast::<u64>().wrapping_add(i));
    // SAFETY: these point into the plan, which is this thread's, as is the text, which is longer than the
    // field.
    unsafe {
        let flags = name(own, cause, high, low);
        if flags == NAMELESS {
            return Some(propagated::UNKNOWN_TRACE);
        }
        plan.flags = flags & 0xff;
        plan.adopted = (flags & ADOPTED != 0) as u32;
        span.write_volatile(id_of(own, purpose::SPAN));
        context::field(ids.pointer(), plan.flags, (&raw mut plan.text).cast());
    }
    None
}

#[inline(always)]
fn insert(ctx: &SkMsgContext, sock: u64, plan: &mut Plan, framing: &mut Framing) -> u32 {
    let begun = at(framing, framing.count);
    let Some(flow) = FLOWS.get_ptr_mut(&sock) else {
        return propagated::FAILED;
    };
    // SAFETY: the pointer is into the map.
    let added = unsafe { (*flow).added };
    let Some(mut entry) = EVENTS.reserve::<InjectedEvent>(0) else {
        return propagated::FAILED;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the entry is as large as the event; every field is written before it is submitted.
    unsafe {
        (*event).header = Header {
            kind: kind::INJECTED,
            selector: 0,
            flags: 0,
            reserved: 0,
            value: BYTES,
        };
        (*event).time_ns = bpf_ktime_get_boot_ns();
        (*event).connection = plan.connection;
        (*event).position = begun.stream as u64;
        let [high, low, span] = plan.ids;
        (*event).trace = [high, low];
        (*event).span = span;
        (*event).cause_connection = plan.stream_cause.connection;
        (*event).cause_key = plan.stream_cause.key;
        (*event).cause_method = plan.stream_method;
        (*event).shift = added;
        (*event).flags = plan.flags;
        (*event).adopted = plan.adopted;
    }
    if !put(ctx, plan, &begun) {
        entry.discard(0);
        return propagated::FAILED;
    }
    emit::submitted(entry);
    framing.next = framing.next.wrapping_add(BYTES);
    framing.injected += 1;
    // SAFETY: as above; the socket is locked.
    unsafe { (*flow).added = added.wrapping_add(BYTES) };
    propagated::INJECTED
}

/// Makes room behind the block, writes the field there, and the new length into the frame's header. False if
/// nothing was changed.
#[inline(always)]
fn put(ctx: &SkMsgContext, plan: &Plan, begun: &Begun) -> bool {
    let end = opaque(begun.at + begun.length);
    let frame = opaque(begun.at);
    // In one piece from the beginning on: kernels without commit f72eed9b84fb put what is behind the place together
    // wrongly when that is within any piece but the first.
    if end > LONGEST || !pull(ctx, 0, end) {
        return false;
    }
    // SAFETY: the helpers check the ranges.
    unsafe {
        if bpf_msg_push_data(ctx.msg, end, BYTES, 0) != 0 {
            return false;
        }
        // What was just made is one piece, as was the frame's header: these only point at them.
        if pull(ctx, end, end + BYTES)
            && write(ctx, plan)
            && pull(ctx, frame, frame + 3)
            && lengthen(ctx, begun.frame + BYTES)
        {
            return true;
        }
        // What is there now must not leave.
        bpf_msg_pop_data(ctx.msg, end, BYTES, 0);
    }
    false
}

#[inline(always)]
fn write(ctx: &SkMsgContext, plan: &Plan) -> bool {
    let (data, end) = bounds(ctx);
    if data + FIELD_BYTES as u64 > end {
        return false;
    }
    let mut i = 0;
    while i < FIELD_BYTES {
        // SAFETY: within the bounds that were checked.
        unsafe {
            let letter = (&raw const plan.text[i]).read_volatile();
            ((data + i as u64) as *mut u8).write_volatile(letter);
        }
        i += 1;
    }
    true
}

/// The frame's length, which its header begins with.
#[inline(always)]
fn lengthen(ctx: &SkMsgContext, length: u32) -> bool {
    let (data, end) = bounds(ctx);
    if data + 3 > end {
        return false;
    }
    // SAFETY: within the bounds that were checked.
    unsafe {
        (data as *mut u8).write_volatile((length >> 16) as u8);
        ((data + 1) as *mut u8).write_volatile((length >> 8) as u8);
        ((data + 2) as *mut u8).write_volatile(length as u8);
    }
    true
}
