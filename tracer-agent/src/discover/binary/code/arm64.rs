//! aarch64: one part of a function; every instruction is one word.

use super::{NotUnderstood, Part};

const WORD: usize = 4;
/// How far back the parts of a switch are looked for, in instructions.
const BACK: usize = 8;

/// Decodes all of `code`, which is at `address`.
///
/// A computed jump counts as a switch if its target is a sum of which one part was just loaded as a
/// byte or half word: such a distance, scaled by 4, does not lead out of the function's part.
pub(super) fn decode(code: &[u8], address: u64) -> Result<Part, NotUnderstood> {
    let mut part = Part::default();
    let words: Vec<u32> = code
        .chunks_exact(WORD)
        .filter_map(|word| word.try_into().ok().map(u32::from_le_bytes))
        .collect();
    let end = address.wrapping_add(code.len() as u64);
    if !code.len().is_multiple_of(WORD) || !address.is_multiple_of(WORD as u64) {
        return Err(NotUnderstood::RunsOn(end));
    }
    let mut open = true;
    for (index, word) in words.iter().copied().enumerate() {
        let at = address.wrapping_add((index * WORD) as u64);
        part.starts.push(at);
        let before = std::mem::replace(&mut open, true);
        match word {
            word if is_return(word) => {
                part.returns.push(at);
                open = false;
            }
            // B
            word if word & 0xfc00_0000 == 0x1400_0000 => {
                part.jumps.push(relative(at, word, 0, 26));
                open = false;
            }
            // B.cond, BC.cond, CBZ, CBNZ
            word if word & 0xff00_0000 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 => {
                part.jumps.push(relative(at, word, 5, 19));
            }
            // TBZ, TBNZ
            word if word & 0x7e00_0000 == 0x3600_0000 => {
                part.jumps.push(relative(at, word, 5, 14));
            }
            // BR, BRAA, BRAB and their forms with a zero modifier
            word if word & 0xfeff_f000 == 0xd61f_0000 => {
                let before = words.get(index.saturating_sub(BACK)..index);
                if !is_switch(before.unwrap_or_default(), word >> 5 & 31) {
                    return Err(NotUnderstood::Computed(at));
                }
                open = false;
            }
            // NOP: padding ends nothing, and needs no end after one.
            0xd503_201f => open = before,
            // BL, BLR and its forms, BRK, UDF: what never returns may be the last instruction.
            word if word & 0xfc00_0000 == 0x9400_0000
                || word & 0xfeff_f000 == 0xd63f_0000
                || word & 0xffe0_001f == 0xd420_0000
                || word < 0x1_0000 =>
            {
                open = false;
            }
            // ERET, DRPS: not for programs.
            word if word & 0xffdf_f000 == 0xd69f_0000 => {
                return Err(NotUnderstood::Undecodable(at));
            }
            _ => {}
        }
    }
    match open {
        true => Err(NotUnderstood::RunsOn(end)),
        false => Ok(part),
    }
}

/// RET Xn, RETAA, RETAB.
fn is_return(word: u32) -> bool {
    word & 0xffff_fc1f == 0xd65f_0000 || matches!(word, 0xd65f_0bff | 0xd65f_0fff)
}

/// Target of a branch with a signed distance in words of `width` bits from bit `shift`.
fn relative(at: u64, word: u32, shift: u32, width: u32) -> u64 {
    let unused = 32 - width;
    let distance = ((word >> shift) << unused) as i32 >> unused;
    at.wrapping_add_signed(i64::from(distance) * WORD as i64)
}

fn is_switch(before: &[u32], register: u32) -> bool {
    let writes = |word: u32| word & 31 == register;
    let Some(at) = before.iter().rposition(|word| writes(*word)) else {
        return false;
    };
    // ADD (shifted or extended register), 64 bits.
    let sum = before.get(at).copied().unwrap_or_default();
    if sum & 0xff00_0000 != 0x8b00_0000 {
        return false;
    }
    let loaded = [sum >> 16 & 31, sum >> 5 & 31];
    before.iter().take(at).any(|word| {
        // LDRB, LDRH, LDRSB, LDRSH with a register or an immediate for offset.
        let narrow = word & 0x3b00_0000 == 0x3800_0000 || word & 0x3b00_0000 == 0x3900_0000;
        let size = word >> 30;
        narrow && size < 2 && word >> 22 & 3 != 0 && loaded.contains(&(word & 31))
    })
}

/// The word that a stub of the linkage table jumps through:
/// `[bti c] adrp x16, page; ldr x17, [x16, low]; add x16, x16, low; br x17`.
pub(super) fn stub(code: &[u8], address: u64) -> Option<u64> {
    let mut words = code
        .chunks_exact(WORD)
        .filter_map(|word| word.try_into().ok().map(u32::from_le_bytes))
        .zip((address..).step_by(WORD))
        .skip_while(|(word, _)| word & 0xffff_ff3f == 0xd503_241f);
    let (page, at) = words.next()?;
    let (load, _) = words.next()?;
    if page & 0x9f00_001f != 0x9000_0010 || load & 0xffc0_03ff != 0xf940_0211 {
        return None;
    }
    let distance = ((page >> 5 & 0x7_ffff) << 2 | page >> 29 & 3) << 11;
    let pages = i64::from(distance as i32 >> 11);
    let base = (at & !0xfff).wrapping_add_signed(pages << 12);
    Some(base.wrapping_add(u64::from(load >> 10 & 0xfff) * 8))
}
