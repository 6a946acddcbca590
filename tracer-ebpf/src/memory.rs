//! Values kept in map memory on purpose.
//!
//! The verifier follows every combination of values that it knows in registers and on the stack,
//! but knows nothing of what a map holds. A loop whose state goes through map memory in every step
//! is one state per step to it, instead of one per way to get there.

/// Adds in one instruction. What was there before is not asked for: kernels before 5.12 have no
/// instruction for that (and Rust's atomics need one that has).
///
/// # Safety
/// `place` is an aligned word of map memory.
#[inline(always)]
pub unsafe fn add(place: *mut u64, n: i64) {
    // SAFETY: as the caller says; the instruction changes nothing else.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({place} + 0) += {n}",
            place = in(reg) place,
            n = in(reg) n,
            options(nostack)
        );
    }
}

/// Sets a word to zero. Zeros that are stored side by side become calls of a loop over bytes, which takes
/// longer than most helpers; volatile stores stay what they are.
#[inline(always)]
pub fn zero(place: &mut u64) {
    // SAFETY: a live reference.
    unsafe { core::ptr::write_volatile(place, 0) };
}

/// Eight bytes from anywhere, little endian. All architectures that this runs on can, in one instruction, but LLVM
/// does not know that and reads byte by byte.
///
/// # Safety
///
/// They can be read.
#[inline(always)]
pub unsafe fn word(place: *const u8) -> u64 {
    let value;
    // SAFETY: as the caller says.
    unsafe {
        core::arch::asm!(
            "{v} = *(u64 *)({p} + 0)",
            v = out(reg) value,
            p = in(reg) place,
            options(readonly, nostack, preserves_flags),
        );
    }
    value
}

/// 1 if it is, else 0, without a branch: LLVM, which would make one of any comparison, knows nothing of it.
#[inline(always)]
pub fn is_negative(value: i64) -> u32 {
    let mut bit = value as u64;
    // SAFETY: changes nothing but the register.
    unsafe {
        core::arch::asm!("{bit} >>= 63", bit = inout(reg) bit, options(pure, nomem, nostack));
    }
    bit as u32
}

/// A place of the per-CPU scratch buffer whose value the verifier (and LLVM) should forget.
#[derive(Clone, Copy)]
pub struct Forgotten<T>(*mut T);

impl<T: Copy> Forgotten<T> {
    /// The place of a field of the scratch buffer, which is this CPU's until the program returns.
    #[inline(always)]
    pub fn new(place: &mut T) -> Self {
        Forgotten(place)
    }

    /// The value.
    #[inline(always)]
    pub fn load(self) -> T {
        // SAFETY: made from a live reference into map memory, which nothing else uses meanwhile.
        unsafe { self.0.read_volatile() }
    }

    /// Keeps a value.
    #[inline(always)]
    pub fn store(self, value: T) {
        // SAFETY: as in `load`.
        unsafe { self.0.write_volatile(value) }
    }

    /// The place itself.
    #[inline(always)]
    pub fn pointer(self) -> *mut T {
        self.0
    }
}
