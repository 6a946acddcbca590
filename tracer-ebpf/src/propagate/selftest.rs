//! What the self-test has done to the messages of its own sockets, in the ways that others are changed: a head that is
//! in one piece gets a header ([`super::message`]), and a message of frames several fields, the last one first, with what
//! is behind them in pieces ([`super::stream`]).
//!
//! Hook: sk_msg on the self-test's own map of sockets. In: messages that begin with `SELFTEST`, and say in the next two
//! pairs of bytes where lines of `#` are to go; of 0 as the second there is one.

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use tracer_common::context::HEADER_BYTES;

use super::SELFTEST_PLAN;
use super::bytes::{self, LONGEST, half, join_pieces, pull, size, word};

/// Bytes that say what is to be done.
const SAYS: u32 = 16;

/// See the module's text.
#[sk_msg]
pub fn propagate_selftest(ctx: SkMsgContext) -> u32 {
    let _ = try_selftest(&ctx);
    SK_PASS
}

#[inline(always)]
fn try_selftest(ctx: &SkMsgContext) -> Option<()> {
    let size = size(ctx);
    if size < SAYS || !pull(ctx, 0, SAYS) {
        return None;
    }
    if word(ctx, 0)? != u64::from_le_bytes(*b"SELFTEST") {
        return None;
    }
    let (first, second) = (half(ctx, 8)?, half(ctx, 10)?);
    // SAFETY: the pointer is into the map; there is one self-test at a time.
    let plan = unsafe { SELFTEST_PLAN.get_ptr_mut(0)?.as_mut()? };
    let mut i = 0;
    while i < HEADER_BYTES {
        // SAFETY: within the text.
        unsafe { (&raw mut plan.text[i]).write_volatile(b'#') };
        i += 1;
    }
    let is_put = if second > 0 {
        bytes::put::<HEADER_BYTES>(ctx, second, &plan.text, || true)
    } else {
        let length = if size > LONGEST { LONGEST } else { size };
        pull(ctx, 0, length)
    };
    if is_put && bytes::put::<HEADER_BYTES>(ctx, first, &plan.text, || true) {
        join_pieces(ctx);
    }
    None
}
