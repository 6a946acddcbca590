//! Access to the bytes of a message, in sk_msg programs.

use aya_ebpf::helpers::bpf_msg_pull_data;
use aya_ebpf::programs::SkMsgContext;

use crate::kernel::opaque;

/// Offsets from here on are not looked at. With what is loaded there it has to stay below 64 KiB, which
/// is where the verifier's knowledge of packets ends.
pub const LONGEST: u32 = 0xfc00;
/// Longer messages are in pieces anyway.
const ONE_PIECE: u32 = 0x1_0000;

/// In several pieces a message would leave as several segments, and the last ones would wait for the
/// first one's acknowledgement. Where there is no memory for it, that is how it goes.
#[inline(always)]
pub fn join_pieces(ctx: &SkMsgContext) {
    let size = size(ctx);
    if size <= ONE_PIECE {
        // SAFETY: the helper checks the range.
        unsafe { bpf_msg_pull_data(ctx.msg, 0, size, 0) };
    }
}

/// Has the bytes `[from, to)` in one piece, and [`bounds`] be theirs. It copies only what is in several
/// pieces.
#[inline(always)]
pub fn pull(ctx: &SkMsgContext, from: u32, to: u32) -> bool {
    // SAFETY: the helper checks the range.
    unsafe { bpf_msg_pull_data(ctx.msg, from, to, 0) == 0 }
}

/// Bytes of the message.
#[inline(always)]
pub fn size(ctx: &SkMsgContext) -> u32 {
    // SAFETY: a field of the context.
    unsafe { (&raw const (*ctx.msg).size).read_volatile() }
}

/// Where the bytes that can be reached are. Every helper that changes the message moves them.
#[inline(always)]
pub fn bounds(ctx: &SkMsgContext) -> (u64, u64) {
    // SAFETY: fields of the context.
    unsafe {
        (
            (&raw const (*ctx.msg).__bindgen_anon_1.data).read_volatile() as u64,
            (&raw const (*ctx.msg).__bindgen_anon_2.data_end).read_volatile() as u64,
        )
    }
}

/// Address of `length` bytes at an offset, if they are there.
#[inline(always)]
fn place(ctx: &SkMsgContext, at: u32, length: u64) -> Option<u64> {
    let at = opaque(at) as u64 & 0xffff;
    if at > LONGEST as u64 {
        return None;
    }
    let (data, end) = bounds(ctx);
    let place = data + at;
    if place + length > end {
        return None;
    }
    Some(place)
}

macro_rules! loads {
    ($($(#[$meta:meta])* $name:ident: $type:ty, $length:literal, $instruction:literal;)*) => {
        $(
            $(#[$meta])*
            #[inline(always)]
            pub fn $name(ctx: &SkMsgContext, at: u32) -> Option<$type> {
                let place = place(ctx, at, $length)?;
                let value: u64;
                // SAFETY: within the bounds that were checked. One instruction: whole words need not be
                // aligned, which Rust cannot say in fewer.
                unsafe { core::arch::asm!($instruction, v = out(reg) value, p = in(reg) place, options(nostack)) };
                Some(value as $type)
            }
        )*
    };
}

loads! {
    /// Eight bytes.
    word: u64, 8, "{v} = *(u64 *)({p} + 0)";
    /// Two bytes.
    half: u32, 2, "{v} = *(u16 *)({p} + 0)";
    /// One byte.
    byte: u32, 1, "{v} = *(u8 *)({p} + 0)";
}
