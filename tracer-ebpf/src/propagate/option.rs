//! Trace context in TCP options: sent with requests of traced clients, read from what servers receive.
//!
//! Hook: sock_ops of the root cgroup, since 5.10: `BPF_SOCK_OPS_HDR_OPT_LEN_CB`, `..._WRITE_HDR_OPT_CB` and
//! `..._PARSE_HDR_OPT_CB` (kernel commits 00d211a4ea6f and 0813a841566f), asked for by flags on each socket.
//!
//! The kernel asks for the length of options when it computes how much goes into a segment, and when it
//! makes one: what is reserved for a segment was reserved before its size was computed, or it would be too
//! long for the path. The option goes with the segment in which the first byte of the request's write is, and
//! with [`MOST`] of them at the most: where somebody on the way drops segments with options that he does not
//! know, the last try goes without.

use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock_ops};
use aya_ebpf::helpers::generated::{
    bpf_load_hdr_opt, bpf_reserve_hdr_opt, bpf_sock_ops_cb_flags_set, bpf_store_hdr_opt,
};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use tracer_common::abi::{propagated, propagation};
use tracer_common::context::incoming;
use tracer_common::option::{self, BEGINNING, BYTES, Carried, SEARCH, SELFTEST, flag};

use super::{
    FLOWS, Incoming, OPTIONS, Offered, PROPAGATION, Place, RECEIVED, count, number, setting,
};
use crate::emit;
use crate::memory::add;

const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const PARSE: u32 = 13;
const LENGTH: u32 = 14;
const WRITE: u32 = 15;
const PARSE_UNKNOWN_FLAG: u32 = 1 << 5;
const WRITE_FLAG: u32 = 1 << 6;
/// `args[0]` of [`LENGTH`]: no segment yet, only its size.
const CURRENT_MSS: u32 = 1;
/// Segments that carry the same option.
const MOST: u32 = 2;

/// See the module's text.
#[sock_ops]
pub fn propagate_option(ctx: SockOpsContext) -> u32 {
    let _ = called(ctx.ops);
    1
}

macro_rules! field {
    ($ops:expr, $($name:tt)+) => {
        // SAFETY: a field of the context; volatile keeps loads of neighbours from being merged.
        unsafe { (&raw const (*$ops).$($name)+).read_volatile() }
    };
}

#[inline(always)]
fn called(ops: *mut bpf_sock_ops) -> Option<()> {
    let op = field!(ops, op);
    if op == LENGTH {
        reserve(ops)
    } else if op == WRITE {
        write(ops)
    } else if op == PARSE {
        parse(ops)
    } else if op == PASSIVE_ESTABLISHED {
        listen(ops, PARSE_UNKNOWN_FLAG)
    } else if op == ACTIVE_ESTABLISHED {
        if is_tested(ops) {
            offer_test(ops);
        } else {
            // SAFETY: the value is not looked at.
            unsafe { FLOWS.get(&sock(ops)) }?;
        }
        listen(ops, WRITE_FLAG)
    } else {
        None
    }
}

#[inline(always)]
fn sock(ops: *mut bpf_sock_ops) -> u64 {
    number(field!(ops, __bindgen_anon_2.sk))
}

/// True for the client's end of the self-test's connection.
#[inline(always)]
fn is_tested(ops: *mut bpf_sock_ops) -> bool {
    const AF_INET: u32 = 2;
    const LOOPBACK: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
    const LOOPBACK_6: u32 = u32::from_ne_bytes([0, 0, 0, 1]);
    let port = setting(propagation::SELFTEST);
    if port == 0 || u32::from_be(field!(ops, remote_port)) as u64 != port {
        return false;
    }
    if field!(ops, family) == AF_INET {
        field!(ops, remote_ip4) == LOOPBACK
    } else {
        field!(ops, remote_ip6[3]) == LOOPBACK_6
            && field!(ops, remote_ip6[0]) | field!(ops, remote_ip6[1]) | field!(ops, remote_ip6[2])
                == 0
    }
}

/// What the self-test's client sends first carries an option.
#[inline(always)]
fn offer_test(ops: *mut bpf_sock_ops) {
    let begin = field!(ops, snd_nxt);
    let carried = Carried {
        trace: SELFTEST,
        place: begin,
        flags: 0,
        nonce: 0,
    };
    let offered = Offered {
        begin,
        armed: 1,
        stored: 0,
        words: carried.words(),
    };
    let _ = OPTIONS.insert(&sock(ops), &offered, 0);
}

/// From now on the kernel asks, beside what others want to be asked for.
#[inline(always)]
fn listen(ops: *mut bpf_sock_ops, flag: u32) -> Option<()> {
    let flags = field!(ops, bpf_sock_ops_cb_flags);
    // SAFETY: the context is this program's.
    unsafe { bpf_sock_ops_cb_flags_set(ops, (flags | flag) as i32) };
    None
}

#[inline(always)]
fn offered(ops: *mut bpf_sock_ops) -> Option<*mut Offered> {
    let offered = OPTIONS.get_ptr_mut(&sock(ops))?;
    // SAFETY: the pointer is into the map.
    unsafe { (*offered).armed != 0 && (*offered).stored < MOST }.then_some(offered)
}

/// How far `to` is behind `from`, of sequence numbers.
#[inline(always)]
fn distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from) as i32
}

#[inline(always)]
fn reserve(ops: *mut bpf_sock_ops) -> Option<()> {
    let offered = offered(ops)?;
    // SAFETY: the pointer is into the map.
    let begin = unsafe { (*offered).begin };
    let acknowledged = field!(ops, snd_una);
    if distance(acknowledged, begin) < 0 {
        // SAFETY: as above.
        unsafe { (*offered).armed = 0 };
        return None;
    }
    if field!(ops, __bindgen_anon_1.args[0]) != CURRENT_MSS {
        let length = field!(ops, skb_len);
        if length == 0 || length > 1 << 20 {
            return None;
        }
        let next = field!(ops, snd_nxt);
        let is_first_time = distance(next, begin) >= 0;
        if is_first_time {
            // This segment begins at `next`.
            if distance(next, begin) >= length as i32 {
                return None;
            }
        } else {
            // Which one it is cannot be seen: one is repeated only if it is lost, or if it is all there is.
            let all = distance(acknowledged, next) == length as i32;
            if !all && field!(ops, lost_out) == 0 {
                return None;
            }
        }
    }
    // SAFETY: the context is this program's. Without room for it there is no option.
    unsafe { bpf_reserve_hdr_opt(ops, BYTES, 0) };
    None
}

#[inline(always)]
fn write(ops: *mut bpf_sock_ops) -> Option<()> {
    let offered = offered(ops)?;
    let header = field!(ops, __bindgen_anon_3.skb_data) as u64;
    let end = field!(ops, __bindgen_anon_4.skb_data_end) as u64;
    if header + 20 > end {
        return None;
    }
    // SAFETY: within the bounds that were checked: the sequence number of the TCP header.
    let sequence = u32::from_be(unsafe { ((header + 4) as *const u32).read_volatile() });
    // SAFETY: the pointer is into the map.
    let before = distance(sequence, unsafe { (*offered).begin });
    if before < 0 || before >= field!(ops, skb_len) as i32 {
        return None;
    }
    // SAFETY: the context is this program's; the words are in the map.
    let stored = unsafe { bpf_store_hdr_opt(ops, (&raw const (*offered).words).cast(), BYTES, 0) };
    if stored != 0 {
        return None;
    }
    // SAFETY: the pointer is into the map; the socket is locked.
    let stored = unsafe {
        let stored = (*offered).stored;
        (*offered).stored = stored + 1;
        stored
    };
    // SAFETY: the pointer is into the map.
    let is_test = unsafe { (*offered).words[1] } == SELFTEST[0] as u32;
    if stored == 0 && !is_test {
        count(propagated::OPTION);
    }
    None
}

#[inline(always)]
fn parse(ops: *mut bpf_sock_ops) -> Option<()> {
    let mut words: option::Words = [0; BYTES as usize / 4];
    words[0] = SEARCH;
    // SAFETY: the context is this program's; the words live until the helper returns.
    let length = unsafe { bpf_load_hdr_opt(ops, words.as_mut_ptr().cast(), BYTES, 0) };
    if length != BYTES as i64 || words[0] != BEGINNING {
        return None;
    }
    let carried = Carried::from_words(&words);
    if !carried.is_valid() {
        return None;
    }
    if carried.trace == SELFTEST {
        if let Some(arrived) = PROPAGATION.get_ptr_mut(propagation::ARRIVED) {
            // SAFETY: an aligned word of map memory.
            unsafe { add(arrived, 1) };
        }
        return None;
    }
    let sock = sock(ops);
    let place = Place {
        sock,
        place: carried.place,
        is_stream: (carried.flags & flag::STREAM != 0) as u32,
    };
    let context = Incoming {
        trace: carried.trace,
        state: incoming::W3C,
        flags: carried.flags & flag::TRACEPARENT,
    };
    // A second segment with the same one.
    if RECEIVED
        .insert(&place, &context, BPF_NOEXIST as u64)
        .is_err()
    {
        return None;
    }
    count(propagated::RECEIVED);
    emit::carried(sock, &carried);
    None
}
